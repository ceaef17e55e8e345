"""Every planted bug of the private step is caught by the check that is named beside it; the clean step passes them all.

A bug class overrides one piece of `Clean`, so the clean twin of each case is the same piece in the product.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from ghostnet.audit import conformance
from ghostnet.audit.findings import Finding
from ghostnet.audit.sensitivity import StepInput, check_sensitivity, random_neighbours
from ghostnet.cohort import Cohort
from ghostnet.errors import PlanError
from ghostnet.privacy.mechanism import PatientGradients
from tests.entropy import SeededEntropy
from tests.planted import mechanism_bugs as bugs
from tests.planted.mechanism_bugs import Clean

pytestmark = pytest.mark.usefixtures("one_thread")

CLIP_NORM, NOISE_MULTIPLIER = 0.5, 2.0


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


def public_values(step: Clean) -> Finding:
    owners = torch.arange(12) // 3
    cohort = Cohort(images=torch.zeros(12, 1, 8, 8), labels=owners % 2, owners=owners, patients=4)
    return conformance.check_public_values(step.public_values, cohort)


Check = Callable[[Clean], Finding]
CHECKS: tuple[Check, ...] = (
    *(sensitivity, noise_scale, noise_freshness, definition),
    *(network_apart, loss_apart, sampling, public_values),
)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug and the check that must catch it."""

    bug: str
    build: Callable[[], Clean]
    caught_by: Check


TABLE = (
    Planted(bug="no noise", build=bugs.NoNoise, caught_by=noise_scale),
    Planted(bug="noise / B", build=lambda: bugs.ScaledNoise(lambda g: 1 / bugs.rows_in(g)), caught_by=noise_scale),
    Planted(
        bug="noise / physical batches",
        build=lambda: bugs.ScaledNoise(lambda g: 1 / -(-bugs.rows_in(g) // bugs.PHYSICAL_ROWS)),
        caught_by=noise_scale,
    ),
    Planted(bug="noise x 0.5", build=lambda: bugs.ScaledNoise(lambda g: 0.5), caught_by=noise_scale),
    Planted(bug="noise x 0.95", build=lambda: bugs.ScaledNoise(lambda g: 0.95), caught_by=noise_scale),
    Planted(bug="same noise every step", build=bugs.SameNoise, caught_by=noise_freshness),
    Planted(bug="no clip", build=bugs.NoClip, caught_by=sensitivity),
    Planted(bug="batch clip", build=bugs.BatchClip, caught_by=sensitivity),
    Planted(bug="image-level clip", build=bugs.ImageClip, caught_by=sensitivity),
    Planted(bug="two forwards, fixed fakes", build=bugs.TwoForwards, caught_by=sensitivity),
    Planted(bug="fakes sized by the real batch", build=bugs.FakesSizedByReals, caught_by=sensitivity),
    Planted(bug="minibatch standard deviation", build=bugs.CoupledNetwork, caught_by=sensitivity),
    Planted(bug="minibatch standard deviation, by its network", build=bugs.CoupledNetwork, caught_by=network_apart),
    Planted(bug="relativistic loss", build=bugs.CoupledLoss, caught_by=sensitivity),
    Planted(bug="relativistic loss, by its formula", build=bugs.CoupledLoss, caught_by=loss_apart),
    Planted(bug="views by row position", build=bugs.ViewsByRow, caught_by=sensitivity),
    Planted(bug="fakes' gradient dropped", build=bugs.FakesDropped, caught_by=definition),
    Planted(bug="image-level clip, by the definition", build=bugs.ImageClip, caught_by=definition),
    Planted(bug="shuffled batches", build=bugs.Shuffled, caught_by=sampling),
    Planted(bug="another sampling rate", build=bugs.OtherRate, caught_by=sampling),
    Planted(bug="public values from len(dataset)", build=bugs.PublicFromData, caught_by=public_values),
)


@pytest.mark.parametrize("planted", TABLE, ids=lambda p: p.bug)
def test_a_planted_bug_is_caught_by_its_check(planted: Planted) -> None:
    finding = planted.caught_by(planted.build())
    assert not finding.passed, f"{planted.bug} got past {planted.caught_by.__name__}: {finding.detail}"


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("twin", [Clean, bugs.OwnGradients])
def test_the_clean_twins_pass_every_check(twin: type[Clean], check: Check) -> None:
    finding = check(twin())
    assert finding.passed, finding.detail
    assert re.fullmatch(r"[A-Za-z ]+", finding.check)


def test_the_product_refuses_the_coupled_network_before_a_step() -> None:
    with pytest.raises(PlanError, match="row_independent"):
        PatientGradients(bugs.MinibatchStandardDeviation())


def test_every_check_catches_some_bug() -> None:
    assert {p.caught_by for p in TABLE} == set(CHECKS)
