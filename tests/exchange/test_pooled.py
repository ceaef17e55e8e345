"""A pooled step: what n hospitals add up is one pooled data set's step, and its noise is worth what is claimed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from ghostnet.accounting.epsilon import epsilon_pld
from ghostnet.accounting.events import (
    PoissonGaussianSteps,
    SharedNoiseSteps,
    coalition_events,
    event_from_dict,
    event_to_dict,
    other_hospital_events,
    repeat_for_hospitals,
)
from ghostnet.accounting.plan_cost import claim, plan_events
from ghostnet.errors import PlanError
from ghostnet.exchange import pooled
from ghostnet.exchange.pooled import noised_share, share_std, total_gradient
from ghostnet.exchange.secure_sum import sum_modulo
from ghostnet.models import build_discriminator
from ghostnet.plan import Plan
from ghostnet.privacy.mechanism import PatientGradients
from ghostnet.privacy.noise import RESERVE, grid_step
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import train_round
from ghostnet.training.state import LocalState
from tests.entropy import SeededEntropy
from tests.plans import tiny_plan

pytestmark = pytest.mark.usefixtures("one_thread")

HOSPITALS = 3
STEPS = SharedNoiseSteps(name="s", sampling_rate=0.1, noise_multiplier=2.0, steps=50, hospitals=4)


class Silent(SeededEntropy):
    """Test only: draws no noise, so that two ways to the same sum can be compared."""

    def discrete_gaussian(self, n: int, std: float) -> np.ndarray:
        return np.zeros(n, dtype=np.int64)


def pooled_plan(**privacy: object) -> Plan:
    base = tiny_plan(epsilon="epsilon = 50.0", patients=f'patients = 20\nshare = "pooled"\nhospitals = {HOSPITALS}')
    return dataclasses.replace(base, privacy=dataclasses.replace(base.privacy, **{"noise_multiplier": 1.0, **privacy}))


def central_plan(plan: Plan) -> Plan:
    """The same for one hospital that holds all patients."""
    federation = dataclasses.replace(
        plan.federation, share="generator", hospitals=0, patients=plan.federation.patients * HOSPITALS
    )
    return dataclasses.replace(plan, federation=federation)


def cohort(seed: int, patients: int = 8) -> Cohort:
    public = torch.Generator().manual_seed(seed)
    owners = torch.arange(2 * patients) // 2
    images = torch.rand(2 * patients, 1, 28, 28, generator=public) * 2 - 1
    return Cohort(images=images, labels=owners % 2, owners=owners, patients=patients)


def together(cohorts: list[Cohort]) -> Cohort:
    starts = np.cumsum([0, *(c.patients for c in cohorts)])
    return Cohort(
        images=torch.cat([c.images for c in cohorts]),
        labels=torch.cat([c.labels for c in cohorts]),
        owners=torch.cat([c.owners + int(start) for c, start in zip(cohorts, starts[:-1], strict=True)]),
        patients=int(starts[-1]),
    )


def none_of(plan: Plan) -> Cohort:
    none = torch.zeros(0, dtype=torch.long)
    return Cohort(images=torch.zeros(0, plan.planes, 28, 28), labels=none, owners=none, patients=0)


def shares(plan: Plan, network: torch.nn.Module, cohorts: list[Cohort], entropy: type = Silent) -> list[np.ndarray]:
    return [noised_share(network, c, plan, entropy=entropy(i)) for i, c in enumerate(cohorts)]


@pytest.mark.parametrize("views", [1, 2])
def test_pooled_steps_are_the_steps_of_one_pooled_data_set(views: int) -> None:
    # q = 1 and no noise: the two ways draw different coins. With views the images shift at random: only counted.
    plan = pooled_plan(sampling_rate=1.0, views=views, images_per_patient=2)
    cohorts = [cohort(i) for i in range(HOSPITALS)]
    if views > 1:  # every shift gives the same image
        cohorts = [dataclasses.replace(c, images=c.images[:, :, :1, :1].expand_as(c.images).clone()) for c in cohorts]
    one, many = LocalState(central_plan(plan)), LocalState(plan)

    def add(step: int, summed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        total = total_gradient(
            sum_modulo(shares(plan, many.discriminator, cohorts)), many.discriminator, std=share_std(plan)
        )
        return {name: (value + total[name]).float() for name, value in summed.items()}

    def run(state: LocalState, data: Cohort, this: Plan, **rest: object) -> None:
        train_round(
            state.generator, state.discriminator, state.optimizers, data, this,
            first_step=0, steps=3, released_mean=None, entropy=Silent(9), **rest,
        )  # fmt: skip

    run(one, together(cohorts), central_plan(plan))
    run(many, none_of(plan), plan, add_noise=add)
    for name in ("discriminator", "generator"):
        for (key, a), b in zip(
            getattr(one, name).state_dict().items(), getattr(many, name).state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
    assert one.plan.public_denominator == many.plan.public_denominator


def test_physical_rows_change_no_bit_of_a_share() -> None:
    plan = pooled_plan(sampling_rate=1.0)
    network = build_discriminator(plan.networks)
    sums = []
    for rows in (1, 5, 128):
        this = dataclasses.replace(plan, training=dataclasses.replace(plan.training, physical_rows=rows))
        sums.append(noised_share(network, cohort(0), this, entropy=Silent(0)))
    for other in sums[1:]:  # other blocks may round a patient's part otherwise, by less than 1e-5 C
        assert np.abs(sums[0] - other).max() * total_unit(plan) < 1e-5
    assert np.array_equal(*sums[:2])  # blocks of 8 both times, in parts of other sizes: the same to the bit


def total_unit(plan: Plan) -> float:
    """One grid step, in the gradient's unit."""
    network = build_discriminator(plan.networks)
    one = total_gradient(
        np.ones(sum(p.numel() for p in network.parameters()), dtype=np.int64), network, std=share_std(plan)
    )
    return float(next(iter(one.values())).flatten()[0])


def test_rows_in_memory_are_bounded_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pooled_plan(sampling_rate=1.0, views=2)
    plan = dataclasses.replace(plan, training=dataclasses.replace(plan.training, physical_rows=8))
    seen, counted = [], PatientGradients.clipped_sum

    def watch(self: PatientGradients, rows: object, *args: object, **rest: object) -> dict[str, torch.Tensor]:
        seen.append(len(rows.images))  # type: ignore[attr-defined]
        return counted(self, rows, *args, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(PatientGradients, "clipped_sum", watch)
    noised_share(build_discriminator(plan.networks), cohort(0, patients=20), plan, entropy=Silent(0))
    assert max(seen) <= 8
    assert sum(seen) == 20 * 2 * 2


def test_one_patient_more_moves_a_share_by_at_most_clip_norm() -> None:
    plan = pooled_plan(sampling_rate=1.0, clip_norm=0.01)
    more = cohort(0, patients=9)
    kept = more.owners < 8
    less = Cohort(images=more.images[kept], labels=more.labels[kept], owners=more.owners[kept], patients=8)
    network = build_discriminator(plan.networks)
    one, two = (noised_share(network, c, plan, entropy=Silent(0)) for c in (less, more))
    moved = np.linalg.norm((two - one).astype(np.float64)) * total_unit(plan)
    assert 0.9 * 0.01 < moved <= 0.01 * (1 + 1e-5)


@torch.no_grad()
def test_a_patient_whose_images_cancel_under_a_crafted_discriminator_takes_nothing_from_the_others() -> None:
    plan = pooled_plan(sampling_rate=1.0)
    plan = dataclasses.replace(plan, model=dataclasses.replace(plan.model, discriminator_norm="none"))
    network = build_discriminator(plan.networks)
    for parameter in network.parameters():
        parameter.zero_()
    first, second = (layer.weight for layer in network.features if isinstance(layer, torch.nn.Conv2d))
    first[0, 0, 1, 1], first[1, 0, 1, 1], second[0, 0, 1, 1] = 1.0, -1.0, 2.0**40
    # Leaky slopes make 0.5 and -1 into (0.5, -0.1) and (-0.2, 1): weights (1, -23/5) turn those into +0.96 and -0.96.
    second[0, 1, 1, 1] = -4.600000381469727 * 2.0**40
    constants = torch.tensor([0.5, -1.0]).reshape(2, 1, 1, 1).expand(2, 1, 28, 28)
    at = network.features(constants)
    assert float((at[0] + at[1]).abs().max()) == 0 < float(at.abs().max())
    other = cohort(0, patients=30)
    less = dataclasses.replace(other, labels=torch.zeros_like(other.labels))
    owners = torch.cat([other.owners[:30], torch.full((2,), 15), other.owners[30:] + 1])
    images = torch.cat([other.images[:30], constants, other.images[30:]])
    more = Cohort(images=images, labels=torch.zeros(62, dtype=torch.long), owners=owners, patients=31)
    one, two = (noised_share(network, c, plan, entropy=Silent(0)) for c in (less, more))
    assert np.linalg.norm((two - one).astype(np.float64)) * total_unit(plan) <= 1e-4 * plan.privacy.clip_norm


def test_each_share_has_its_part_of_the_noise_and_the_total_has_all_of_it() -> None:
    plan = pooled_plan(noise_multiplier=3.0, clip_norm=0.5)
    network = build_discriminator(plan.networks)
    drawn = [
        noised_share(network, none_of(plan), plan, entropy=SeededEntropy(i)).astype(np.float64) * total_unit(plan)
        for i in range(HOSPITALS)
    ]
    d = len(drawn[0])
    tolerance = 5 / math.sqrt(2 * d)  # five standard errors of a standard deviation
    promised = 3.0 * 0.5 * (1 + RESERVE)
    for share in drawn:
        assert share.std() == pytest.approx(promised / math.sqrt(HOSPITALS), rel=tolerance)
    assert sum(drawn).std() == pytest.approx(promised, rel=tolerance)


def test_the_grid_is_one_for_all_hospitals_and_fine_enough_for_a_share() -> None:
    plan = pooled_plan()
    assert share_std(plan) == plan.privacy.clip_norm / math.sqrt(HOSPITALS)
    assert grid_step(share_std(plan)) <= share_std(plan) * 2.0**-19


@pytest.mark.parametrize("sigma", [0.0, float("nan"), -1.0])
def test_a_share_without_noise_is_refused(sigma: float) -> None:
    with pytest.raises(PlanError):
        noised_share(build_discriminator(pooled_plan().networks), cohort(0), pooled_plan(noise_multiplier=sigma),
                     entropy=Silent(0))  # fmt: skip


def test_an_empty_hospital_answers_like_any_other() -> None:
    plan = pooled_plan()
    share = noised_share(build_discriminator(plan.networks), none_of(plan), plan, entropy=SeededEntropy(0))
    assert share.shape == (sum(p.numel() for p in build_discriminator(plan.networks).parameters()),)
    assert share.dtype == np.int64


def test_the_total_costs_what_one_gaussian_of_the_plan_costs() -> None:
    alone = PoissonGaussianSteps(name="s", sampling_rate=0.1, noise_multiplier=2.0, steps=50)
    assert epsilon_pld([STEPS], 1e-5) == epsilon_pld([alone], 1e-5)


def test_who_knows_more_shares_sees_less_noise() -> None:
    def of(sigma: float) -> float:
        event = PoissonGaussianSteps(name="s", sampling_rate=0.1, noise_multiplier=sigma, steps=50)
        return epsilon_pld([event], 1e-5)

    assert epsilon_pld(other_hospital_events([STEPS]), 1e-5) == of(2.0 * math.sqrt(3 / 4))
    assert epsilon_pld(coalition_events([STEPS]), 1e-5) == of(1.0)
    assert of(2.0) < of(2.0 * math.sqrt(3 / 4)) < of(1.0)


def test_a_patient_of_two_pooled_hospitals_moves_one_sum_twice() -> None:
    everywhere = repeat_for_hospitals([STEPS], 2)
    (event,) = everywhere
    assert event == dataclasses.replace(STEPS, sampling_rate=event.sampling_rate, noise_multiplier=1.0)
    assert event.sampling_rate == pytest.approx(1 - 0.9**2)
    in_sequence = PoissonGaussianSteps(name="s", sampling_rate=0.1, noise_multiplier=2.0, steps=100)
    assert epsilon_pld(everywhere, 1e-5) > epsilon_pld([in_sequence], 1e-5)  # two noises would protect better than one


def test_the_plan_claims_all_three_and_charges_the_total() -> None:
    plan = pooled_plan()
    assert isinstance(plan_events(plan)[-1], SharedNoiseSteps)
    promised = claim(plan)
    assert promised.epsilon_pld < promised.epsilon_pld_other_hospital < promised.epsilon_pld_coalition
    plain = claim(central_plan(plan))
    assert plain.epsilon_pld == plain.epsilon_pld_coalition == plain.epsilon_pld_other_hospital == promised.epsilon_pld


def test_the_event_survives_its_written_form() -> None:
    assert event_from_dict(event_to_dict(STEPS)) == STEPS
    for hospitals in (0, 1, True, 2.0):
        with pytest.raises(PlanError):
            dataclasses.replace(STEPS, hospitals=hospitals)


def test_rows_are_cut_between_patients_only() -> None:
    groups = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    parts = list(pooled._parts(torch.arange(7), groups, 3))
    assert [part.tolist() for part, _ in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [numbers.tolist() for _, numbers in parts] == [[0, 0, 1], [0, 0, 0], [0]]
    assert list(pooled._parts(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 3)) == []
