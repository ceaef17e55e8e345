"""The audit's checks of a private step, on the pieces that `mechanism_bugs` replaces."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from ghostnet.audit import canaries, conformance
from ghostnet.audit.contributions import TOLERANCE, cohorts, parts_of
from ghostnet.audit.findings import Finding
from ghostnet.audit.sensitivity import StepInput, check_sensitivity, random_neighbours
from ghostnet.training.cohort import Cohort
from tests.entropy import SeededEntropy
from tests.planted.mechanism_bugs import Clean

CLIP_NORM, NOISE_MULTIPLIER = 0.5, 2.0


@cache
def step_input() -> StepInput:
    """Five patients with several images each, and fakes; more rows than one physical batch."""
    generator = torch.Generator().manual_seed(7)
    pairs = random_neighbours(30, shape=(1, 8, 8), classes=2, generator=generator)
    return next(p.with_patient for p in pairs if len(p.without.images) > 8 and p.with_patient.images.isfinite().all())


def sensitivity(step: Clean) -> Finding:
    return check_sensitivity(step.clipped_sum, trials=24, seed=1)


def apart(step: Clean) -> Finding:
    """A cohort's sum is the sum of what its patients add alone, hostile pixels included."""
    plan = canaries.audit_plan(sampling_rate=1.0, noise_multiplier=1.0, steps=1, patients=8)
    plan = replace(plan, image=replace(plan.image, size=8))
    given = step_input()

    def summed(cohort: Cohort) -> Tensor:
        patients = replace(given, images=cohort.images, labels=cohort.labels, groups=cohort.owners)
        return step.clipped_sum(patients, CLIP_NORM).double()

    worst = max(parts_of(summed, cohort).tied for _, cohort in cohorts(plan))
    return Finding(
        check="patients apart",
        passed=worst <= TOLERANCE,
        value=worst,
        detail=f"a sum is {worst:.2g} of a patient's part away from the sum of parts taken alone",
    )


def noise_scale(step: Clean) -> Finding:
    return conformance.check_noise_scale(
        step.noised_sum,
        step_input(),
        clip_norm=CLIP_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        entropy=SeededEntropy(5),
        steps=32,
    )


def noise_freshness(step: Clean) -> Finding:
    return conformance.check_noise_fresh(
        step.noised_sum,
        step_input(),
        clip_norm=CLIP_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        entropy=SeededEntropy(6),
    )


def definition(step: Clean) -> Finding:
    return conformance.check_against_definition(
        step.clipped_sum, step.discriminator, step.row_loss, step_input(), clip_norm=CLIP_NORM
    )


def network_apart(step: Clean) -> Finding:
    given = step_input()
    return conformance.check_network_keeps_rows_apart(step.discriminator, given.fakes, given.fake_labels)


def loss_apart(step: Clean) -> Finding:
    return conformance.check_loss_keeps_rows_apart(step.row_loss)


def sampling(step: Clean) -> Finding:
    return conformance.check_poisson_sampling(
        step.sample, patients=100, sampling_rate=0.1, steps=500, entropy=SeededEntropy(8)
    )


Check = Callable[[Clean], Finding]
CHECKS: tuple[Check, ...] = (
    *(sensitivity, apart, noise_scale, noise_freshness, definition),
    *(network_apart, loss_apart, sampling),
)
