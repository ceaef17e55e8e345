"""The planted suite: every known wrong build, the check that must catch it, and the clean twin that must pass.

One list for the tests (`test_suite.py`) and for people (`python -m tests.planted`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ghostnet.audit.findings import Finding
from tests.planted import audit_builds, hospital_bugs, later_bugs
from tests.planted import mechanism_bugs as bugs
from tests.planted import mechanism_checks as checks
from tests.planted.hospital_bugs import of_build, under
from tests.planted.mechanism_bugs import Clean, OwnGradients

ASKED = (
    "no noise",
    "noise / B",
    "noise / physical batches",
    "noise x 0.5",
    "same noise each step",
    "no clip",
    "batch clip",
    "image-level clip",
    "two forwards with fixed fakes",
    "fakes sized by the real batch",
    "minibatch-stddev",
    "relativistic loss",
    "shuffled batches",
    "q/2 accounted",
    "T/4 accounted",
    "public values from len(dataset)",
    "fresh accountant each round",
    "DP skipped after a restart",
    "NaN sigma from the server",
    "raw metrics in a message",
    "no rounding reserve",
    "pooled share with noise sigma/n",
    "mask used twice",
    "perceptual release not charged",
    "adaptive n_D asked about reals",
    "gradient penalty at reals added after the noise",
)
"""The bugs that the project promised to catch. A name goes only with the promise."""


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A bug, the check that must catch it, and both runs of the check, each in a folder of its own.

    Attributes:
        bug: its name.
        caught_by: the check's name, as in its findings.
        wrong: the check on the wrong build; must not pass.
        clean: the same check on the product, with nothing else changed; must pass.
    """

    bug: str
    caught_by: str
    wrong: Callable[[Path], Finding]
    clean: Callable[[Path], Finding]


def step(
    bug: str, build: Callable[[], Clean], check: checks.Check, caught_by: str, twin: type[Clean] = Clean
) -> Planted:
    """A bug of the private step: one piece of its twin overridden."""
    return Planted(
        bug=bug, caught_by=caught_by, wrong=lambda folder: check(build()), clean=lambda folder: _clean_step(check, twin)
    )


@cache
def _clean_step(check: checks.Check, twin: type[Clean]) -> Finding:
    return check(twin())


def _after_the_noise(folder: Path) -> Finding:
    return later_bugs.check_after_the_noise(audit_builds.HOSPITAL.train_round)


MECHANISM = (
    step("no noise", bugs.NoNoise, checks.noise_scale, "noise scale"),
    step("noise / B", lambda: bugs.ScaledNoise(lambda g: 1 / bugs.rows_in(g)), checks.noise_scale, "noise scale"),
    step(
        "noise / physical batches",
        lambda: bugs.ScaledNoise(lambda g: 1 / -(-bugs.rows_in(g) // bugs.PHYSICAL_ROWS)),
        checks.noise_scale,
        "noise scale",
    ),
    step("noise x 0.5", lambda: bugs.ScaledNoise(lambda g: 0.5), checks.noise_scale, "noise scale"),
    step("noise x 0.95", lambda: bugs.ScaledNoise(lambda g: 0.95), checks.noise_scale, "noise scale"),
    step("same noise each step", bugs.SameNoise, checks.noise_freshness, "noise freshness"),
    step("no clip", bugs.NoClip, checks.sensitivity, "sensitivity", OwnGradients),
    step("batch clip", bugs.BatchClip, checks.sensitivity, "sensitivity", OwnGradients),
    step("image-level clip", bugs.ImageClip, checks.sensitivity, "sensitivity", OwnGradients),
    step("image-level clip, by the definition", bugs.ImageClip, checks.definition, "definition", OwnGradients),
    step("two forwards with fixed fakes", bugs.TwoForwards, checks.sensitivity, "sensitivity", OwnGradients),
    step("fakes sized by the real batch", bugs.FakesSizedByReals, checks.sensitivity, "sensitivity"),
    step("minibatch-stddev", bugs.CoupledNetwork, checks.sensitivity, "sensitivity", OwnGradients),
    step(
        "minibatch-stddev, by its network",
        bugs.CoupledNetwork,
        checks.network_apart,
        "network keeps rows apart",
        OwnGradients,
    ),
    step("relativistic loss", bugs.CoupledLoss, checks.sensitivity, "sensitivity", OwnGradients),
    step(
        "relativistic loss, by its formula", bugs.CoupledLoss, checks.loss_apart, "loss keeps rows apart", OwnGradients
    ),
    step("no rounding reserve", bugs.NoRoundingReserve, checks.sensitivity, "sensitivity", bugs.Cancelling),
    step("views by row position", bugs.ViewsByRow, checks.sensitivity, "sensitivity"),
    step("fakes' gradient dropped", bugs.FakesDropped, checks.definition, "definition"),
    step("shuffled batches", bugs.Shuffled, checks.sampling, "Poisson sampling"),
    step("another sampling rate", bugs.OtherRate, checks.sampling, "Poisson sampling"),
)

ACCOUNTING = (
    Planted(
        bug="q/2 accounted",
        caught_by="Poisson sampling",
        wrong=of_build(hospital_bugs.check_sampling_as_accounted, audit_builds.HALF_RATE_CLAIMED),
        clean=of_build(hospital_bugs.check_sampling_as_accounted),
    ),
    Planted(
        bug="T/4 accounted",
        caught_by="step count",
        wrong=of_build(hospital_bugs.check_steps_as_accounted, audit_builds.QUARTER_CLAIMED),
        clean=of_build(hospital_bugs.check_steps_as_accounted),
    ),
    Planted(
        bug="public values from len(dataset)",
        caught_by="public values",
        wrong=lambda folder: hospital_bugs.check_public_numbers(hospital_bugs.public_from_data),
        clean=lambda folder: hospital_bugs.check_public_numbers(audit_builds.HOSPITAL.train_round),
    ),
)

HOSPITAL = (
    Planted(
        bug="fresh accountant each round",
        caught_by="every epsilon recomputed",
        wrong=under(hospital_bugs.fresh_accountant, hospital_bugs.check_epsilons_of_a_ledger),
        clean=hospital_bugs.check_epsilons_of_a_ledger,
    ),
    Planted(
        bug="DP skipped after a restart",
        caught_by="noise after a restart",
        wrong=under(hospital_bugs.skips_dp_after_a_restart, hospital_bugs.check_noise_after_a_restart),
        clean=hospital_bugs.check_noise_after_a_restart,
    ),
    Planted(
        bug="NaN sigma from the server",
        caught_by="policy refuses NaN",
        wrong=under(hospital_bugs.lets_nan_through, hospital_bugs.check_nan_is_refused),
        clean=hospital_bugs.check_nan_is_refused,
    ),
    Planted(
        bug="raw metrics in a message",
        caught_by="only released values in a message",
        wrong=under(hospital_bugs.sends_raw_metrics, hospital_bugs.check_message),
        clean=hospital_bugs.check_message,
    ),
    Planted(
        bug="patient said for images without patients",
        caught_by="unit of the data",
        wrong=under(hospital_bugs.says_patient_for_images, hospital_bugs.check_unit_of_the_data),
        clean=hospital_bugs.check_unit_of_the_data,
    ),
)

LATER = (
    Planted(
        bug="pooled share with noise sigma/n",
        caught_by="pooled noise",
        wrong=under(later_bugs.noise_over_hospitals, later_bugs.check_pooled_noise),
        clean=later_bugs.check_pooled_noise,
    ),
    Planted(
        bug="mask used twice",
        caught_by="masks of two steps",
        wrong=under(later_bugs.mask_used_twice, later_bugs.check_masks_of_two_steps),
        clean=later_bugs.check_masks_of_two_steps,
    ),
    Planted(
        bug="perceptual release not charged",
        caught_by="noise drawn as accounted",
        wrong=of_build(later_bugs.check_noise_as_accounted, later_bugs.PERCEPTUAL_NOT_CHARGED),
        clean=of_build(later_bugs.check_noise_as_accounted),
    ),
    Planted(
        bug="adaptive n_D asked about reals",
        caught_by="nothing private after the noise",
        wrong=lambda folder: later_bugs.check_after_the_noise(later_bugs.asks_about_reals),
        clean=_after_the_noise,
    ),
    Planted(
        bug="gradient penalty at reals added after the noise",
        caught_by="nothing private after the noise",
        wrong=lambda folder: later_bugs.check_after_the_noise(later_bugs.penalises_at_reals),
        clean=_after_the_noise,
    ),
)

SUITE = (*MECHANISM, *ACCOUNTING, *HOSPITAL, *LATER)
