"""Epsilon of typed events: frozen reference values, exact formulas, and calibration."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as library
from opacus.accountants.analysis import rdp as opacus
from scipy.optimize import brentq
from scipy.stats import norm

from ghostnet.accounting import epsilon as accounting
from ghostnet.accounting import renyi
from ghostnet.accounting.epsilon import (
    Event,
    GaussianRelease,
    PoissonGaussianSteps,
    calibrate_noise_multiplier,
    epsilon_pld,
    epsilon_rdp,
    event_from_dict,
    event_to_dict,
    repeat_for_hospitals,
)
from ghostnet.errors import PlanError

DELTA = 1e-5

# (sampling rate, noise multiplier, steps): epsilon at delta 1e-5 by dp-accounting 0.6 PLD (connect the dots, interval
# 1e-4) and by Opacus 1.6 RDP with its own orders. Measured outside this code, once.
GRID = {
    (0.01, 0.6, 1000): (7.433616, 8.665908),
    (0.01, 0.6, 5000): (15.625260, 17.322042),
    (0.01, 0.6, 20000): (35.209021, 37.968574),
    (0.01, 1.0, 1000): (1.828244, 2.101365),
    (0.01, 1.0, 5000): (4.201859, 4.588969),
    (0.01, 1.0, 20000): (9.267541, 9.996442),
    (0.01, 2.0, 1000): (0.622049, 0.686185),
    (0.01, 2.0, 5000): (1.477423, 1.613130),
    (0.01, 2.0, 20000): (3.187004, 3.455422),
    (0.05, 0.6, 1000): (35.971338, 39.325164),
    (0.05, 0.6, 5000): (104.166119, 111.025346),
    (0.05, 0.6, 20000): (305.560732, 318.363812),
    (0.05, 1.0, 1000): (10.986679, 11.979547),
    (0.05, 1.0, 5000): (29.437336, 31.476671),
    (0.05, 1.0, 20000): (78.094947, 82.202820),
    (0.05, 2.0, 1000): (3.699742, 4.024351),
    (0.05, 2.0, 5000): (9.379936, 10.094898),
    (0.05, 2.0, 20000): (22.517881, 23.992275),
    (0.1, 0.6, 1000): (78.648523, 84.461253),
    (0.1, 0.6, 5000): (260.364285, 272.187834),
    (0.1, 0.6, 20000): (840.997900, 863.067090),
    (0.1, 1.0, 1000): (25.204555, 27.163494),
    (0.1, 1.0, 5000): (75.555960, 79.789269),
    (0.1, 1.0, 20000): (223.159848, 233.211483),
    (0.1, 2.0, 1000): (8.279293, 8.943850),
    (0.1, 2.0, 5000): (22.513335, 24.015109),
    (0.1, 2.0, 20000): (59.161414, 62.320082),
}
QUICK = [cell for cell, (epsilon, _) in GRID.items() if cell[1] == 2 and epsilon < 30] + [(0.01, 1.0, 5000)]


def steps_of(rate: float, sigma: float, steps: int) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(name="steps", sampling_rate=rate, noise_multiplier=sigma, steps=steps)


def gaussian(sigma: float, count: int = 1) -> GaussianRelease:
    return GaussianRelease(name="sum", noise_multiplier=sigma, count=count)


@pytest.fixture
def distributions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The interval of each privacy loss distribution that is made from here on; nearly all the time goes into them."""
    made: list[float] = []
    make = library.from_gaussian_mechanism

    def counted(**given: float) -> object:
        made.append(given["value_discretization_interval"])
        return make(**given)

    monkeypatch.setattr(library, "from_gaussian_mechanism", counted)
    for kept in (accounting._epsilon_pld, accounting._losses):
        kept.cache_clear()
    return made


def check_cell(cell: tuple[float, float, int]) -> None:
    by_pld, by_rdp = GRID[cell]
    events = [steps_of(*cell)]
    assert epsilon_pld(events, DELTA) == pytest.approx(by_pld, abs=0.01)
    ours = epsilon_rdp(events, DELTA)
    assert ours <= by_rdp + 1e-4  # more orders than Opacus's own can only tighten it
    assert by_pld <= ours * 1.001 + 0.05


@pytest.mark.parametrize("cell", QUICK)
def test_epsilon_is_that_of_the_reference_grid(cell: tuple[float, float, int]) -> None:
    check_cell(cell)


@pytest.mark.slow  # a minute on two idle cores: the cells of large epsilon hold losses of millions of intervals
def test_epsilon_is_that_of_all_27_cells_of_the_reference_grid() -> None:
    assert len(GRID) == 27
    for cell in GRID:
        check_cell(cell)


@pytest.mark.parametrize("planted", [(0.025, 2.0, 5000), (0.05, 2.0, 1250), (0.05, 2.02, 5000)])
def test_grid_tells_half_the_rate_a_quarter_of_the_steps_and_one_percent_of_noise(
    planted: tuple[float, float, int],
) -> None:
    assert abs(epsilon_pld([steps_of(*planted)], DELTA) - GRID[0.05, 2.0, 5000][0]) > 0.01


def by_opacus(events: list[PoissonGaussianSteps | GaussianRelease], delta: float) -> float:
    """Epsilon by Opacus's own accountant at the orders of this project."""
    orders = [float(order) for order in accounting._ORDERS]
    divergences = sum(
        np.asarray(opacus.compute_rdp(q=rate, noise_multiplier=sigma, steps=count, orders=orders))
        for rate, sigma, count in accounting._composition(events)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the first or the last order is the best one
        return max(0.0, float(opacus.get_privacy_spent(orders=orders, rdp=divergences, delta=delta)[0]))


@pytest.mark.parametrize("delta", [1e-3, 1e-8])
@pytest.mark.parametrize(
    "cell",
    [(1e-4, 1.0, 1_000_000), (0.001, 0.3, 5000), (0.02, 20.0, 40), (0.2, 0.5, 1), (0.2, 1.3, 5000), (0.9, 5.0, 1)],
)
def test_renyi_epsilon_is_that_of_opacus_to_the_printed_digits(cell: tuple[float, float, int], delta: float) -> None:
    for events in ([steps_of(*cell)], [steps_of(*cell), gaussian(2.0), steps_of(0.05, 0.8, 300)]):
        assert epsilon_rdp(events, delta) == accounting._round_up(by_opacus(events, delta))


def test_comparison_with_opacus_tells_a_series_that_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [steps_of(0.2, 1.3, 5000)]
    accounting._epsilon_rdp.cache_clear()
    monkeypatch.setattr(renyi, "_TERMS", 2)
    monkeypatch.setattr(renyi, "_MAX_TERMS", 2)
    assert epsilon_rdp(events, DELTA) != accounting._round_up(by_opacus(events, DELTA))
    accounting._epsilon_rdp.cache_clear()


# Against formulas that share no code with the accountants.


@pytest.mark.parametrize(("sigma", "delta"), [(0.5, 1e-5), (1.0, 1e-6), (2.0, 1e-5), (3.73, 1e-5), (20.0, 1e-8)])
def test_one_gaussian_is_the_analytic_formula(sigma: float, delta: float) -> None:
    """Balle and Wang, arXiv 1805.06530, theorem 8."""
    exact = brentq(lambda epsilon: gaussian_delta(epsilon, sigma) - delta, 0, 200, xtol=1e-10)
    assert exact <= epsilon_pld([gaussian(sigma)], delta) <= exact + 5e-4


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 0.7), (0.1, 1.0), (0.5, 2.0), (0.9, 1.0)])
def test_one_sampled_step_is_the_integral(rate: float, sigma: float) -> None:
    epsilon = epsilon_pld([steps_of(rate, sigma, 1)], DELTA)
    assert sampled_delta(epsilon, rate, sigma) <= DELTA * (1 + 1e-6) < sampled_delta(epsilon - 5e-4, rate, sigma)


def test_releases_compose_like_one_gaussian_of_their_joint_precision() -> None:
    together = [gaussian(2.0, 4), steps_of(1.0, 3.0, 9), gaussian(5.0)]
    joint = (4 / 4 + 9 / 9 + 1 / 25) ** -0.5
    assert epsilon_pld(together, DELTA) == epsilon_pld([gaussian(joint)], DELTA)


def test_warm_start_steps_and_counts_are_one_composition() -> None:
    steps, warm, counts = steps_of(0.02, 2.0, 1000), gaussian(4.0), gaussian(6.0)
    together = epsilon_pld([warm, steps, counts], DELTA)
    alone = [epsilon_pld([event], DELTA) for event in (warm, steps, counts)]
    assert max(alone) < together < sum(alone)
    assert together == epsilon_pld([counts, warm, steps], DELTA)
    assert together <= epsilon_rdp([warm, steps, counts], DELTA)


def test_splitting_a_run_into_rounds_costs_the_same() -> None:
    whole = epsilon_pld([steps_of(0.02, 2.0, 900)], DELTA)
    assert epsilon_pld([steps_of(0.02, 2.0, 300)] * 3, DELTA) == whole
    assert epsilon_pld([steps_of(0.02, 2.0, 300)], DELTA) < whole  # a fresh accountant each round would say this


def test_epsilon_is_rounded_up_and_nothing_costs_nothing() -> None:
    epsilon = epsilon_pld([steps_of(0.01, 2.0, 1000)], DELTA)
    assert epsilon >= 0.6220485
    assert round(epsilon * 10_000) == pytest.approx(epsilon * 10_000, abs=1e-9)
    for nothing in ([], [steps_of(0.1, 1.0, 0)], [gaussian(1.0, 0)], [gaussian(0.0, 0)]):
        assert epsilon_pld(nothing, DELTA) == epsilon_rdp(nothing, DELTA) == 0.0


@pytest.mark.parametrize("event", [gaussian(0.0), steps_of(0.1, 0.0, 1), gaussian(1e-6), gaussian(1e-300)])
def test_no_noise_is_infinite_without_a_loss_distribution(event: Event, distributions: list[float]) -> None:
    assert epsilon_pld([gaussian(5.0), event], DELTA) == math.inf
    assert distributions == []
    if event.noise_multiplier == 0:
        assert epsilon_rdp([gaussian(5.0), event], DELTA) == math.inf


def test_a_million_quiet_steps_can_be_accounted() -> None:
    events = [steps_of(1e-4, 1.0, 1_000_000)]
    assert 0.3 < epsilon_pld(events, DELTA) <= epsilon_rdp(events, DELTA) * 1.001 + 0.05 < 1.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, float("nan"), float("inf"), True])
def test_delta_outside_its_range_is_refused(delta: float) -> None:
    for epsilon in (epsilon_pld, epsilon_rdp):
        with pytest.raises(PlanError, match="delta"):
            epsilon([gaussian(1.0)], delta)


# Events.


def test_a_patient_of_three_hospitals_pays_for_three() -> None:
    events = (gaussian(2.0, 2), steps_of(0.05, 1.5, 100))
    tripled = repeat_for_hospitals(events, 3)
    assert tripled == (gaussian(2.0, 6), steps_of(0.05, 1.5, 300))
    assert epsilon_pld(tripled, DELTA) == epsilon_pld([*events] * 3, DELTA)
    assert repeat_for_hospitals(events, 1) == events
    with pytest.raises(PlanError, match="hospitals"):
        repeat_for_hospitals(events, 0)


@pytest.mark.parametrize("event", [gaussian(2.0, 3), steps_of(0.1, 1.25, 40)])
def test_an_event_survives_json(event: Event) -> None:
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": "laplace"},
        {"mechanism": None},
        {"mechanism": ["gaussian"]},
        {"noise_multiplier": "2"},
        {"noise_multiplier": True},
        {"noise_multiplier": float("nan")},
        {"noise_multiplier": -1.0},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"steps": 1.5},
        {"steps": -1},
        {"steps": None},
        {"name": ""},
        {"name": 3},
        {"epsilon": 1.0},
    ],
)
def test_an_event_that_is_not_one_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        event_from_dict({**event_to_dict(steps_of(0.1, 1.0, 5)), **change})


@pytest.mark.parametrize("absent", ["mechanism", "name", "noise_multiplier", "count"])
def test_an_event_that_lacks_a_number_is_refused(absent: str) -> None:
    raw = event_to_dict(gaussian(1.0))
    del raw[absent]
    with pytest.raises(PlanError):
        event_from_dict(raw)


@pytest.mark.parametrize("raw", [None, [], "gaussian", 3])
def test_something_else_than_a_table_is_no_event(raw: object) -> None:
    with pytest.raises(PlanError):
        event_from_dict(raw)  # type: ignore[arg-type]


# Calibration.


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps", "other"),
    [
        (4.0, 1e-5, 0.1, 300, [gaussian(3.0), gaussian(4.0)]),
        (0.3, 1e-6, 0.01, 500, []),
        (0.5, 1e-8, 1.0, 20, []),
    ],
)
def test_calibrated_noise_is_the_least_that_fits_and_is_found_in_a_few_looks(
    epsilon: float, delta: float, rate: float, steps: int, other: list[Event], distributions: list[float]
) -> None:
    sigma = calibrate_noise_multiplier(epsilon=epsilon, delta=delta, sampling_rate=rate, steps=steps, other=other)
    assert 0 < distributions.count(accounting._INTERVAL) <= 15
    assert 0 < distributions.count(accounting._COARSE_INTERVAL) <= 15
    assert sigma == round(sigma, 3)
    assert epsilon_pld([*other, steps_of(rate, sigma, steps)], delta) <= epsilon
    assert epsilon_pld([*other, steps_of(rate, round(sigma - 0.001, 3), steps)], delta) > epsilon


def test_calibration_makes_room_for_the_other_releases() -> None:
    least = {"epsilon": 0.5, "delta": DELTA, "sampling_rate": 0.05, "steps": 100}
    assert calibrate_noise_multiplier(**least, other=[gaussian(12.0)]) > calibrate_noise_multiplier(**least, other=[])


def test_a_budget_that_the_other_releases_exceed_is_refused() -> None:
    with pytest.raises(PlanError, match="other releases already cost"):
        calibrate_noise_multiplier(epsilon=1.0, delta=DELTA, sampling_rate=0.1, steps=10, other=[gaussian(1.0)])


def test_a_budget_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(PlanError, match="do not fit"):
        calibrate_noise_multiplier(epsilon=0.01, delta=DELTA, sampling_rate=1.0, steps=1_000_000, other=[])


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": float("nan")},
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"epsilon": True},
        {"delta": 0.0},
        {"steps": 0},
        {"sampling_rate": 0.0},
        {"sampling_rate": float("nan")},
    ],
)
def test_calibration_of_nonsense_is_refused(change: dict[str, float]) -> None:
    arguments = {"epsilon": 1.0, "delta": DELTA, "sampling_rate": 0.1, "steps": 10, **change}
    with pytest.raises(PlanError):
        calibrate_noise_multiplier(**arguments, other=[])  # type: ignore[arg-type]


def gaussian_delta(epsilon: float, sigma: float) -> float:
    near, far = 0.5 / sigma - epsilon * sigma, -0.5 / sigma - epsilon * sigma
    return float(norm.cdf(near) - np.exp(epsilon + norm.logcdf(far)))


def sampled_delta(epsilon: float, rate: float, sigma: float) -> float:
    """Hockey-stick divergence of one Poisson-sampled Gaussian step, the worse of add and remove, by quadrature."""
    x = np.linspace(-15 * sigma, 15 * sigma + 1, 200_001)
    without = norm.pdf(x, scale=sigma)
    with_patient = (1 - rate) * without + rate * norm.pdf(x, loc=1, scale=sigma)
    factor = math.exp(epsilon)
    remove = np.maximum(with_patient - factor * without, 0).sum()
    add = np.maximum(without - factor * with_patient, 0).sum()
    return float(max(remove, add) * (x[1] - x[0]))
