"""The epsilon of a list of mechanisms for one patient, by PLD, cross-checked by RDP.

Both accountants are for the add/remove adjacency of one unit whose influence on each noised sum is at most the norm
bound (L2 sensitivity 1 in units of the noise multiplier). The privacy loss distribution (Google dp-accounting,
connect-the-dots, pessimistic) is the authority; Renyi DP (renyi.py) is looser, and independent code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from ghostnet.accounting import renyi
from ghostnet.accounting.events import (
    Event,
    GaussianRelease,
    PoissonGaussianSteps,
    event_from_dict,
    event_to_dict,
    repeat_for_hospitals,
)
from ghostnet.errors import PlanError

__all__ = [
    "EPSILON_CEILING",
    "EPSILON_STEP",
    "Event",
    "GaussianRelease",
    "PoissonGaussianSteps",
    "accountants_agree",
    "calibrate_noise_multiplier",
    "epsilon_pld",
    "epsilon_rdp",
    "event_from_dict",
    "event_to_dict",
    "repeat_for_hospitals",
]

EPSILON_STEP = 1e-4
"""Every reported epsilon is rounded up to a multiple of this."""

EPSILON_CEILING = 1000.0
"""An epsilon that RDP puts above this is reported as infinite: it promises nothing, and PLD would need gigabytes."""

_INTERVAL = 1e-4  # discretisation of the privacy loss; 1e-3 would over-state small epsilons by half
_COARSE_INTERVAL = 1e-3  # ten times faster: finds where to look, and serves noise whose losses span ten times more
_COARSE_BELOW = 0.4  # noise multiplier under which losses are so wide that the coarse interval changes no digit
_SIGMA_STEPS = 1000  # noise multipliers are calibrated in steps of 1/1000
_SIGMA_MAX = 1000.0
_ORDERS = np.array(
    [1.001, 1.002, 1.005, 1.01, 1.02, 1.05]
    + [1 + x / 10 for x in range(1, 100)]
    + [float(x) for x in (*range(11, 64), 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1000)]
)
_CEILING_ORDERS = np.array(
    [1.05, 1.1, 1.5, 2.0, 3.0, 4.0, 6.0, 12.0, 64.0]
)  # enough to see whether the ceiling is passed


def epsilon_pld(events: Sequence[Event], delta: float) -> float:
    """Epsilon of all events together at `delta`, by privacy loss distributions.

    Args:
        events: in any order; they may have been chosen before or while running, but not by looking at their outputs.
        delta: in (0, 1).

    Returns:
        Epsilon, rounded up to EPSILON_STEP; 0 for no events; inf without noise or above EPSILON_CEILING.

    Raises:
        PlanError: delta is not in (0, 1).

    Guarantee:
        Unit and sensitivity: those of the events' sums. Adjacency: add/remove one unit.
        Assumes: independent Poisson sampling at the stated rate, Gaussian noise as in noise.py.
        Source: Doroshenko et al., arXiv 2207.04380 (connect the dots).
    """
    _check_delta(delta)
    composition = _composition(events)
    return _epsilon_pld(composition, delta, _interval(composition))


def epsilon_rdp(events: Sequence[Event], delta: float) -> float:
    """Epsilon of all events together at `delta`, by Renyi DP (renyi.py; Mironov et al., arXiv 1908.10530).

    Args:
        events: as in `epsilon_pld`.
        delta: in (0, 1).

    Returns:
        Epsilon, rounded up to EPSILON_STEP; 0 for no events; inf without noise.

    Raises:
        PlanError: delta is not in (0, 1).
    """
    _check_delta(delta)
    return _epsilon_rdp(_composition(events), delta)


def accountants_agree(by_pld: float, by_rdp: float) -> bool:
    """True if epsilon by PLD is within the bound by RDP, which is looser and independent; never for NaN."""
    return by_pld <= by_rdp * 1.001 + 0.05


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    other: Sequence[Event],
) -> float:
    """The least noise, on a grid of 1/1000, with which all events stay within a budget.

    Args:
        epsilon: budget by PLD, > 0.
        delta: in (0, 1).
        sampling_rate: q of the steps to calibrate.
        steps: how many, >= 1.
        other: events that are fixed already and share the budget.

    Returns:
        The noise multiplier: `epsilon_pld` of the other events and the steps is <= epsilon, and one grid step less
        would exceed it.

    Raises:
        PlanError: the other events alone exceed the budget, or more than 1000 would be needed, or a bad argument.
    """
    _check_delta(delta)
    if isinstance(epsilon, bool) or not (math.isfinite(epsilon) and epsilon > 0) or steps < 1:
        raise PlanError(f"epsilon = {epsilon!r} over {steps} steps: give a finite epsilon > 0 and at least one step")
    spent = epsilon_pld(other, delta)
    if spent > epsilon:
        raise PlanError(
            f"the other releases already cost epsilon {spent:.4f} of {epsilon:g}; raise [privacy].epsilon, "
            "or the noise_multiplier of [warm_start] and [utility]"
        )

    def planned(sigma_steps: float) -> list[Event]:
        step_event = PoissonGaussianSteps(
            name="planned",
            sampling_rate=sampling_rate,
            noise_multiplier=sigma_steps / _SIGMA_STEPS,
            steps=steps,
        )
        return [*other, step_event]

    def fits(sigma_steps: int) -> bool:
        return epsilon_pld(planned(sigma_steps), delta) <= epsilon

    if not fits(int(_SIGMA_MAX * _SIGMA_STEPS)):
        raise PlanError(
            f"{steps} steps at sampling_rate = {sampling_rate:g} do not fit in epsilon {epsilon:g} even with "
            f"noise_multiplier = {_SIGMA_MAX:g}; raise [privacy].epsilon or lower steps or sampling_rate"
        )
    guess = _coarse_root(lambda at: _epsilon_pld(_composition(planned(at)), delta, _COARSE_INTERVAL), epsilon)
    nearer = _refined(lambda at: epsilon_pld(planned(at), delta), epsilon, guess)
    return _least(fits, nearer) / _SIGMA_STEPS


Composition = tuple[tuple[float, float, int], ...]
"""Sorted (sampling_rate, noise_multiplier, steps), what both accountants work on."""


def _composition(events: Sequence[Event]) -> Composition:
    """Equal mechanisms added up; unsampled Gaussians as one, since k of them at sigma are one at sigma / sqrt(k)."""
    steps: Counter[tuple[float, float]] = Counter()
    precision = 0.0  # sum of count / sigma^2
    for event in events:
        rate, count = (1.0, event.count) if isinstance(event, GaussianRelease) else (event.sampling_rate, event.steps)
        if not count:
            continue
        if event.noise_multiplier == 0:
            return ((1.0, 0.0, 1),)
        if rate == 1:
            precision += count / event.noise_multiplier / event.noise_multiplier
        else:
            steps[rate, event.noise_multiplier] += count
    if precision:
        steps[1.0, precision**-0.5] += 1
    return tuple(sorted((*mechanism, count) for mechanism, count in steps.items()))


def _interval(composition: Composition) -> float:
    return _COARSE_INTERVAL if any(sigma < _COARSE_BELOW for _, sigma, _ in composition) else _INTERVAL


@lru_cache(maxsize=256)
def _epsilon_pld(composition: Composition, delta: float, interval: float) -> float:
    if not composition:
        return 0.0
    # RDP at any orders is an upper bound, so what is called infinite here may be less, never more.
    if _renyi_epsilon(composition, delta, _CEILING_ORDERS) > EPSILON_CEILING:
        return math.inf
    losses = (_losses(rate, sigma, interval).self_compose(count) for rate, sigma, count in composition)
    total = reduce(lambda left, right: left.compose(right), losses)
    return _round_up(float(total.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=8)  # tens of megabytes each; calibration and hospitals_per_patient come back to the same ones
def _losses(rate: float, sigma: float, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution  # here: seconds to import

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=sigma, sampling_prob=rate, value_discretization_interval=interval
    )


@lru_cache(maxsize=256)
def _epsilon_rdp(composition: Composition, delta: float) -> float:
    return _round_up(_renyi_epsilon(composition, delta, _ORDERS)) if composition else 0.0


def _renyi_epsilon(composition: Composition, delta: float, orders: renyi.Floats) -> float:
    if composition[0][1] == 0:
        return math.inf
    total = sum((count * renyi.divergences(rate, sigma, orders) for rate, sigma, count in composition), np.zeros(1))
    return renyi.epsilon_of(total, delta, orders)


def _round_up(epsilon: float) -> float:
    if not math.isfinite(epsilon):
        return math.inf
    # The slack keeps a value that is already a multiple, but for its last bits, where it is.
    return math.ceil(epsilon / EPSILON_STEP - 1e-9) / round(1 / EPSILON_STEP)


def _coarse_root(epsilon_of: Callable[[float], float], target: float) -> int:
    """Grid step near which epsilon crosses the target, found in log-log scale, where the curve is almost straight."""
    from scipy.optimize import brentq

    def excess(log_steps: float) -> float:
        return math.log(min(max(epsilon_of(math.exp(log_steps)), 1e-9), EPSILON_CEILING) / target)

    low, high = math.log(500.0), math.log(1000.0)
    top, bottom = math.log(_SIGMA_MAX * _SIGMA_STEPS), 0.0
    while excess(high) > 0 and high < top:
        low, high = high, min(high + 1, top)
    while excess(low) <= 0 and low > bottom:
        low, high = max(low - 0.7, bottom), low
    if excess(low) <= 0 or excess(high) > 0:
        return round(math.exp(high))
    return math.ceil(math.exp(brentq(excess, low, high, xtol=2e-4, rtol=1e-6)))


def _refined(epsilon_of: Callable[[int], float], target: float, guess: int) -> int:
    """A grid step nearer to the target, as if epsilon fell as 1 / sigma: over many steps the coarse interval errs."""
    for _ in range(3):
        nearer = min(guess * epsilon_of(guess) / target, _SIGMA_MAX * _SIGMA_STEPS)
        if abs(nearer - guess) < 2:
            break
        guess = max(round(nearer), 1)
    return guess


def _least(fits: Callable[[int], bool], guess: int) -> int:
    """Smallest positive integer that fits, by doubling steps away from a guess and halving back; `fits` is monotone."""
    stride = 1
    if fits(guess):
        high, low = guess, guess - stride
        while low > 0 and fits(low):
            stride *= 2
            high, low = low, low - stride
        low = max(low, 0)
    else:
        low, high = guess, guess + stride
        while not fits(high):
            stride *= 2
            low, high = high, high + stride
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _check_delta(delta: float) -> None:
    if isinstance(delta, bool) or not 0 < delta < 1:
        raise PlanError(f"delta = {delta!r} is not a number > 0 and < 1; set [privacy].delta in plan.toml")
