"""The planted suite: every known wrong build, the check that must catch it, and the clean twin that must pass.

One list for the tests (`test_suite.py`) and for people (`python -m tests.planted`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from client.audited import HOSPITAL as HOSPITAL_BUILD
from ghostnet.audit.every_release import Build
from ghostnet.audit.findings import Finding
from tests.planted import audit_builds, catalogue_bugs, hospital_bugs, later_bugs, release_bugs
from tests.planted import mechanism_bugs as bugs
from tests.planted import mechanism_checks as checks
from tests.planted.hospital_bugs import of_build, under
from tests.planted.mechanism_bugs import Clean, OwnGradients
from tests.planted.release_bugs import gradients_with, no_clip

Bug = Callable[[], AbstractContextManager[None]]

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
    "noise repeated across tensors",
    "noise repeated across steps",
    "noise repeated in blocks",
    "loss of the batch's mean logit",
    "classes weighted by batch counts",
    "weight chosen from the batch's labels",
    "norm chosen from the batch's labels",
    "patient split over physical batches",
    "remainders of a batch in dcgan",
    "remainders of a batch in keras28",
    "remainders of a batch in stylegan",
    "warm start in long batches",
    "utility counts in long batches",
    "perceptual features in long batches",
    "classifier in training mode",
    "warm start with the noise of another table",
    "warm start without clip",
    "warm start with images counted fully",
    "perceptual release with sensitivity 2",
    "utility counts with images counted fully",
    "pooled share without noise",
    "statistic that is not in the catalogue",
    "statistic charged with another noise",
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
    step("no rounding reserve", bugs.NoRoundingReserve, checks.apart, "patients apart", bugs.Cancelling),
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


def planted(
    bug: str, caught_by: str, check: Callable[[Build], Finding], build: Build = HOSPITAL_BUILD, under: Bug = nullcontext
) -> Planted:
    """A bug of one release or one kind of step: a wrong build, or a piece of the product replaced meanwhile."""
    return Planted(
        bug=bug,
        caught_by=caught_by,
        wrong=release_bugs.under_build(under, check, build),
        clean=lambda folder: _clean_build(check),
    )


@cache
def _clean_build(check: Callable[[Build], Finding]) -> Finding:
    return check.of_clean() if isinstance(check, release_bugs.OneOf) else check(HOSPITAL_BUILD)


_TIES, _SIZE, _REPEATS, _LAW = (f"noise {what}" for what in ("ties", "size", "repeats", "law"))
_PART, _APART = "one patient's part", "patients apart"
_step_ties, _step_repeats, _step_law = map(release_bugs.noise_of_steps, (_TIES, _REPEATS, _LAW))
_share_ties, _share_size = map(release_bugs.noise_of_shares, (_TIES, _SIZE))
_apart, _part = release_bugs.parts(_APART), release_bugs.parts(_PART)
_drawn = release_bugs.accounted("noise drawn as accounted")
_warm_part = release_bugs.release_parts(f"{_PART} of a release", "warm start")

NOISE = (
    planted("noise repeated across tensors", _TIES, _step_ties, release_bugs.SAME_IN_EVERY_TENSOR),
    planted(
        "noise repeated across steps", _TIES, _step_ties, release_bugs.repeated_over(release_bugs.KeptForTwoSteps())
    ),
    planted("noise repeated in blocks", _TIES, _step_ties, release_bugs.repeated_over(release_bugs.in_blocks)),
    planted("noise with a shared part", _TIES, _step_ties, release_bugs.repeated_over(release_bugs.shared_component)),
    planted("eight numbers used twice", _REPEATS, _step_repeats, release_bugs.repeated_over(release_bugs.eight_again)),
    planted("uniform noise", _LAW, _step_law, release_bugs.repeated_over(release_bugs.uniform_noise)),
    planted(
        "one draw for all chunks of a tensor",
        _REPEATS,
        release_bugs.noise_of_a_long_tensor(_REPEATS),
        under=release_bugs.one_draw_for_all_chunks,
    ),
    planted(
        "one stream of noise for every request",
        _TIES,
        release_bugs.noise_of_a_run(_TIES),
        under=release_bugs.one_stream_a_request,
    ),
    planted("pooled share that repeats its noise", _TIES, _share_ties, under=release_bugs.share_repeats_its_noise),
    planted("pooled share without noise", _SIZE, _share_size, under=release_bugs.share_without_noise),
    planted("pooled share with noise sigma/n", _SIZE, _share_size, under=release_bugs.noise_over_hospitals),
    planted(
        "pooled noise sigma/n, by the masked sums",
        _SIZE,
        release_bugs.noise_of_masked_sums(_SIZE),
        under=release_bugs.noise_over_hospitals,
    ),
)

BATCHES = (
    planted("loss of the batch's mean logit", _APART, _apart, gradients_with(release_bugs.LossOfTheMeanLogit)),
    planted("classes weighted by batch counts", _APART, _apart, gradients_with(release_bugs.ClassesReweighted)),
    planted("weight chosen from the batch's labels", _APART, _apart, gradients_with(release_bugs.WeightFromTheLabels)),
    planted("norm chosen from the batch's labels", _APART, _apart, gradients_with(release_bugs.NormFromTheLabels)),
    planted("patient split over physical batches", _PART, _part, gradients_with(release_bugs.SplitPatients)),
    planted(
        "patient split, penalty at patients",
        _PART,
        release_bugs.parts(_PART, release_bugs.PENALISED),
        under=release_bugs.penalised_patients_split,
    ),
    planted("patient split in a pooled step", _PART, _part, under=release_bugs.pooled_patients_split),
    *(
        planted(
            f"remainders of a batch in {name.split()[0]}",
            "block boundaries",
            release_bugs.boundaries(name),
            under=release_bugs.remainders_of_a_batch,
        )
        for name in (release_bugs.DCGAN, release_bugs.KERAS, release_bugs.STYLEGAN)
    ),
    planted("no clip in later rounds", _PART, _part, release_bugs.later_rounds_with(patient_gradients=no_clip)),
    planted(
        "pooled steps that remember the last",
        "contribution to pooled steps",
        release_bugs.pooled_canaries("contribution to pooled steps"),
        under=release_bugs.pooled_steps_remember,
    ),
    planted(
        "pooled steps at another rate",
        "Poisson sampling of pooled steps",
        release_bugs.pooled_canaries("Poisson sampling of pooled steps"),
        under=release_bugs.pooled_steps_sample_twice_as_many,
    ),
)

RELEASES = (
    *(
        planted(
            f"{name} in long batches",
            "block boundaries of a release",
            release_bugs.release_boundaries(name),
            under=release_bugs.rows_in_long_batches,
        )
        for name in ("warm start", "utility counts", "perceptual features")
    ),
    planted(
        "classifier in training mode",
        f"{_APART} in a release",
        release_bugs.release_parts(f"{_APART} in a release", "utility counts"),
        under=release_bugs.classifier_in_training_mode,
    ),
    planted("warm start without clip", f"{_PART} of a release", _warm_part, under=release_bugs.releases_not_clipped),
    planted(
        "warm start with images counted fully",
        f"{_PART} of a release",
        _warm_part,
        under=release_bugs.images_counted_fully,
    ),
    planted(
        "perceptual release with sensitivity 2",
        f"{_PART} of a release",
        release_bugs.release_parts(f"{_PART} of a release", "perceptual features of dcgan"),
        under=release_bugs.features_of_norm_two,
    ),
    planted(
        "utility counts with images counted fully",
        f"{_PART} of a release",
        release_bugs.release_parts(f"{_PART} of a release", "utility counts"),
        under=release_bugs.images_counted_many_times,
    ),
    planted(
        "utility counts weighted by the cohort's classes",
        f"{_APART} in a release",
        release_bugs.release_parts(f"{_APART} in a release", "utility counts"),
        under=release_bugs.counts_weighted_by_the_cohort,
    ),
    *(
        planted(
            f"{what} with the noise of another table",
            "noise drawn as accounted",
            _drawn,
            under=partial(release_bugs.noise_of_another_table, request, table),
        )
        for what, request, table in (
            ("warm start", "warm_start", "utility"),
            ("utility counts", "finish", "warm_start"),
            ("steps", "train", "warm_start"),
            ("pooled share", "step", "utility"),
        )
    ),
    planted(
        "perceptual release not charged",
        "noise drawn as accounted",
        _drawn,
        release_bugs.without_event("perceptual features"),
    ),
    planted(
        "hospital that reserves less",
        "ledger holds what is accounted",
        release_bugs.accounted("ledger holds what is accounted"),
        under=partial(release_bugs.reserves_less, "perceptual features"),
    ),
    planted(
        "class counts in an answer",
        "nothing else in an answer",
        release_bugs.accounted("nothing else in an answer"),
        under=release_bugs.sends_class_counts,
    ),
    planted(
        "fresh noise for a repeated request",
        "repeated answers",
        release_bugs.repeated,
        under=release_bugs.drawn_anew_each_time,
    ),
    planted("mask used twice", "masks", release_bugs.masks, under=later_bugs.mask_used_twice),
    planted("share sent without a mask", "masks", release_bugs.masks, under=release_bugs.unmasked),
    planted(
        "adaptive n_D asked about reals",
        "nothing private after the noise",
        release_bugs.after_the_noise,
        replace(HOSPITAL_BUILD, train_round=later_bugs.asks_about_reals),
    ),
    planted(
        "gradient penalty at reals added after the noise",
        "nothing private after the noise",
        release_bugs.after_the_noise,
        replace(HOSPITAL_BUILD, train_round=later_bugs.penalises_at_reals),
    ),
)

CATALOGUE = (
    *(
        planted(bug, "only catalogued statistics", catalogue_bugs.check_only_catalogued, under=under)
        for bug, under in (
            ("statistic that is not in the catalogue", catalogue_bugs.class_counts_with_a_statistic_of_their_own),
            ("statistic noised without the catalogue", catalogue_bugs.class_counts_with_noise_of_their_own),
            ("request that the catalogue does not name", catalogue_bugs.answers_another_request),
        )
    ),
    *(
        planted(bug, "noise drawn as accounted", _drawn, under=under)
        for bug, under in (
            ("statistic charged with another noise", catalogue_bugs.charged_with_more_noise),
            ("statistic noised with less than charged", catalogue_bugs.noised_with_less),
        )
    ),
)

EVERY_RELEASE = (*NOISE, *BATCHES, *RELEASES)
"""Caught by the part of the audit that looks at every kind of step and every release."""

SUITE = (*MECHANISM, *ACCOUNTING, *HOSPITAL, *EVERY_RELEASE, *CATALOGUE)
