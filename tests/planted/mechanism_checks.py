"""The audit's checks of a private step, on the pieces that `mechanism_bugs` replaces."""

from collections.abc import Callable
from functools import cache

import torch

from ghostnet.audit import conformance
from ghostnet.audit.findings import Finding
from ghostnet.audit.sensitivity import StepInput, check_sensitivity, random_neighbours
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


def noise_scale(step: Clean) -> Finding:
    return conformance.check_noise_scale(
        step.noised_sum,
        step_input(),
        clip_norm=CLIP_NORM,
        noise_multiplier=NOISE_MULTIPLIER,
        entropy=SeededEntropy(5),
        steps=32,  # the planted 5 % is then many standard errors away
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
    *(sensitivity, noise_scale, noise_freshness, definition),
    *(network_apart, loss_apart, sampling),
)
