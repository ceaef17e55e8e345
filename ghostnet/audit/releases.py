"""Audit of what a hospital releases beside its steps: warm start, perceptual features, utility counts, masked sums.

They are asked of a real hospital with a ledger of its own, noise off for the exact checks and on for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from ghostnet.accounting.catalogue import (
    CATALOGUE,
    PERCEPTUAL_FEATURES,
    UTILITY_COUNTS,
    WARM_START,
    Statistic,
    counted_tasks,
)
from ghostnet.accounting.events import Event
from ghostnet.audit.accounted import NotedEntropy, accounted_draws, check_draws
from ghostnet.audit.canaries import NoEntropy
from ghostnet.audit.contributions import (
    SEEN,
    TOLERANCE,
    Moves,
    cohorts,
    drawn_cohort,
    parts_of,
    run_discriminator,
)
from ghostnet.audit.crafted import crafted_weights
from ghostnet.audit.findings import Finding
from ghostnet.audit.fresh_noise import FALSE_ALARM, Noise
from ghostnet.audit.hospitals import (
    NONE,
    Networks,
    OpenHospital,
    Source,
    answers_of_one_run,
    finish,
    joined,
    masked_steps,
    released_by,
    run_of,
    single_statistics,
)
from ghostnet.audit.kinds import as_pooled, chosen
from ghostnet.errors import AuditError
from ghostnet.exchange import pooled
from ghostnet.exchange.arrays import Arrays
from ghostnet.exchange.secure_sum import sum_modulo
from ghostnet.models import build_discriminator
from ghostnet.plan import MIN_BANDWIDTH, Plan
from ghostnet.plan.federation import Share
from ghostnet.plan.tasks import REGISTRY as TASKS
from ghostnet.privacy.noise import Entropy, SystemEntropy, from_grid
from ghostnet.progress import Progress, silent
from ghostnet.training.cohort import Cohort
from ghostnet.utility.task import find_task, task_spec

WIDE_LABELS = 8  # with the most features that a hospital takes, a release is longer than any chunk of the noise
WIDE_FEATURES = 20_000
BINS = 1000
SCALE = 1e8
NEIGHBOURS = (3, 30)
ANSWERS = 3
NOISE_MULTIPLIERS = (1.3, 2.3, 1.7, 1.0, 1.9, 1.1, 1.5)  # no two a power of two apart: each tells its statistic
RUN_SIZES = (1, 2, 3, *(1,) * 60)  # patients enough to be seen through the noise of the perceptual release

PlanEvents = Callable[[Plan], Sequence[Event]]

NoisedFeatures = Callable[[nn.Module, Cohort, Plan, Entropy], Tensor]
"""`ghostnet.training.perceptual.noised_features`."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """One release of a hospital, as a function of its patients.

    Attributes:
        name: which.
        ask: (patients, source) -> what is released, flat float64, in units of its accounted sensitivity.
        plan: what is asked for; its image is the patients'.
        noise_multiplier: as accounted.
    """

    name: str
    ask: Callable[[Cohort, Source], Tensor]
    plan: Plan
    noise_multiplier: float

    def bare(self, cohort: Cohort) -> Tensor:
        """Without noise."""
        return self.ask(cohort, NoEntropy())


def release_plan(base: Plan) -> Plan:
    """A plan with every statistic on, each with a noise multiplier of its own that tells it from the others."""
    plan = replace(
        base,
        privacy=replace(base.privacy, sampling_rate=0.5, steps=4, images_per_patient=2),
        warm_start=replace(base.warm_start, features=64, feature_size=14),
        training=replace(base.training, perceptual_weight=1.0, embedding_weight=1.0),
        utility=replace(base.utility, bins=BINS, tasks=_tasks(base)),
        federation=replace(base.federation, rounds=2),
    )
    keys = list(dict.fromkeys(statistic.noise_key for statistic in CATALOGUE))
    if len(keys) > len(NOISE_MULTIPLIERS):
        raise AuditError(f"{len(keys)} statistics and {len(NOISE_MULTIPLIERS)} NOISE_MULTIPLIERS; the audit needs more")
    for key, noise_multiplier in zip(keys, NOISE_MULTIPLIERS, strict=False):
        table, _, name = key.partition(".")
        plan = replace(plan, **{table: replace(getattr(plan, table), **{name: noise_multiplier})})
    return plan


def _tasks(base: Plan) -> tuple[str, ...]:
    """Every utility task that the plan's images can serve."""
    return tuple(name for name, entry in TASKS.items() if base.image.mask_channels or not entry.needs_masks)


def releases_of(
    open_hospital: OpenHospital, noised_features: NoisedFeatures, plan: Plan, kinds: Mapping[str, Plan]
) -> list[Release]:
    """Every statistic but the steps; the warm start and the counts long ones too, features of every architecture."""
    labels = tuple(f"label {number}" for number in range(WIDE_LABELS))
    image = replace(plan.image, labels=labels, label_prior=(1 / WIDE_LABELS,) * WIDE_LABELS)
    wide = replace(plan, image=image, warm_start=replace(plan.warm_start, features=WIDE_FEATURES))
    found = [_asked(open_hospital, statistic, plan, statistic.name) for statistic in single_statistics()]
    found.append(_asked(open_hospital, WARM_START, wide, "wide warm start"))
    for counts in (UTILITY_COUNTS[name] for name in counted_tasks(wide)):
        found.append(_asked(open_hospital, counts, wide, f"{counts.name} of {WIDE_LABELS} labels"))
    for name, own in _by_architecture(plan, kinds).items():
        found.append(
            _features(noised_features, own, build_discriminator(own.networks), f"perceptual features of {name}")
        )
    return found


def harmful_releases(
    open_hospital: OpenHospital, noised_features: NoisedFeatures, plan: Plan, kinds: Mapping[str, Plan]
) -> Iterator[tuple[Release, Cohort]]:
    """Releases under numbers that a coordinator made to harm, and the patients that they were made for."""
    for others in NEIGHBOURS:
        cohort = drawn_cohort(plan, (1,) * (others + 1), seed=others)
        narrow = replace(plan, warm_start=replace(plan.warm_start, bandwidth=MIN_BANDWIDTH))
        yield _asked(open_hospital, WARM_START, narrow, f"warm start at bandwidth {MIN_BANDWIDTH:g}"), cohort
        for name in counted_tasks(plan):
            counts, build = UTILITY_COUNTS[name], partial(_untrained, name, plan)
            for made in crafted_weights(build, partial(_run_on_images, images=cohort.images), SCALE):
                words = f"{counts.name}, {made.words}"
                yield _asked(open_hospital, counts, plan, words, {name: made.network}), cohort
        for name, own in _by_architecture(plan, kinds).items():
            drawn = drawn_cohort(own, (1,) * (others + 1), seed=others)
            run = partial(run_discriminator, cohort=drawn)
            for made in crafted_weights(partial(build_discriminator, own.networks), run, SCALE):
                words = f"perceptual features of {name}, {made.words}"
                yield _features(noised_features, own, made.network, words), drawn


def _untrained(name: str, plan: Plan) -> nn.Module:
    """The network of a utility task, with initial weights."""
    return find_task(name).untrained(task_spec(plan)).network


def _run_on_images(network: nn.Module, images: Tensor) -> object:
    return network(images)


def _by_architecture(plan: Plan, kinds: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plan with the networks of every architecture."""
    return {
        kind.model.architecture: replace(plan, image=replace(plan.image, size=kind.image.size), model=kind.model)
        for kind in kinds.values()
    }


def _asked(
    open_hospital: OpenHospital, statistic: Statistic, plan: Plan, name: str, networks: Networks = NONE
) -> Release:
    bound = statistic.norm_bound(plan)
    return Release(
        name=name,
        ask=lambda cohort, entropy: released_by(open_hospital, statistic, cohort, plan, entropy, networks) / bound,
        plan=plan,
        noise_multiplier=statistic.noise_multiplier(plan),
    )


def _features(noised_features: NoisedFeatures, plan: Plan, discriminator: nn.Module, name: str) -> Release:
    snapshot = discriminator.eval().requires_grad_(False)
    return Release(
        name=name,
        ask=lambda cohort, entropy: noised_features(snapshot, cohort, plan, entropy or SystemEntropy()).double(),
        plan=plan,
        noise_multiplier=PERCEPTUAL_FEATURES.noise_multiplier(plan),
    )


def check_release_parts(releases: Sequence[Release], progress: Progress = silent) -> Iterator[Finding]:
    """Every patient adds at most 1 to every release, and the same whoever else is there."""
    largest, tied, tried, blind = (0.0, "none"), (0.0, "none"), 0, []
    for number, release in enumerate(releases):
        progress("releases", number, len(releases))
        for words, cohort in cohorts(release.plan):
            found = parts_of(release.bare, cohort)
            tried += 1
            largest = max(largest, (found.largest, f"{release.name}, {words}"))
            tied = max(tied, (found.tied, f"{release.name}, {words}"))
            blind += [release.name] if found.largest < SEEN else []
    progress("releases", len(releases), len(releases))
    yield Finding(
        check="one patient's part of a release",
        passed=not blind and tried > 0 and largest[0] <= 1 + TOLERANCE,
        value=largest[0],
        detail=f"a patient adds at most {largest[0]:.7g} x the accounted sensitivity, in {tried} cohorts ({largest[1]})"
        + (f"; nobody is seen in {blind[0]}" if blind else ""),
    )
    yield Finding(
        check="patients apart in a release",
        passed=tried > 0 and tied[0] <= TOLERANCE,
        value=tied[0],
        detail=f"a release is at most {tied[0]:.2g} of a patient's part away from the sum of parts taken alone "
        f"(at most {TOLERANCE:g}), in {tried} cohorts ({tied[1]})",
    )


def check_release_boundaries(harmful: Iterable[tuple[Release, Cohort]], progress: Progress = silent) -> Finding:
    """One patient more, first, in the middle or last, moves nobody else in a release."""
    moves = Moves()
    for release, cohort in harmful:
        progress("boundaries of releases", moves.tried, moves.tried + 1)
        moves.try_neighbours(release.bare, cohort, release.name)
    return moves.finding("block boundaries of a release", tolerance=TOLERANCE)


def noise_of_releases(releases: Sequence[Release], entropy: Source) -> dict[str, Noise]:
    """Noise of several answers to the same request for each release, in units of its accounted size."""
    found: dict[str, Noise] = {}
    for release in releases:
        cohort = drawn_cohort(release.plan, (1, 3))
        bare = release.bare(cohort)
        noise = torch.stack([release.ask(cohort, entropy) - bare for _ in range(ANSWERS)]) / release.noise_multiplier
        found[release.name] = {release.name: noise.numpy()}
    return found


def noise_of_one_run(open_hospital: OpenHospital, plan: Plan, entropy: Source) -> Noise:
    """Noise of what a hospital releases by itself in one run but for the steps, in units of its accounted sizes."""
    cohort = drawn_cohort(plan, (1, 3))
    bare = answers_of_one_run(open_hospital, cohort, plan, NoEntropy())
    noisy = answers_of_one_run(open_hospital, cohort, plan, entropy)
    return {s.name: ((noisy[s] - bare[s]) / s.noise_std(plan))[None].numpy() for s in bare}


def check_accounted(
    open_hospital: OpenHospital,
    plan_events: PlanEvents,
    runs: Mapping[str, Plan],
    entropy: Entropy,
    progress: Progress = silent,
) -> Iterator[Finding]:
    """In whole runs every hospital charges and draws just the noise of its events, and answers with nothing else.

    Args:
        open_hospital: under audit.
        plan_events: under audit.
        runs: plans by name, with all their releases.
        entropy: of coins and noise.
        progress: told (check, done, total).
    """
    drawn, uncharged, unexpected = {}, [], []
    for number, (name, plan) in enumerate(runs.items()):
        progress("whole runs", number, len(runs))
        noted = [NotedEntropy(entropy) for _ in range(plan.federation.hospitals or 1)]
        found = run_of(open_hospital, drawn_cohort(plan, RUN_SIZES), plan, noted)
        events = tuple(plan_events(plan))
        for hospital, (notes, whole) in enumerate(zip(noted, found, strict=True)):
            own = f"{name}, hospital {hospital + 1}"
            drawn[own] = (dict(notes.draws), accounted_draws(plan, events))
            uncharged += [own] if whole.charged != events else []
            unexpected += [f"{array} in {own}" for array in whole.unexpected]
    progress("whole runs", len(runs), len(runs))
    yield check_draws(drawn)
    yield Finding(
        check="ledger holds what is accounted",
        passed=bool(drawn) and not uncharged,
        value=float(len(uncharged)),
        detail=f"{len(uncharged)} of {len(drawn)} ledgers reserved other events than the plan is accounted as "
        f"({', '.join(uncharged[:2]) or 'none'})",
    )
    yield Finding(
        check="nothing else in an answer",
        passed=bool(drawn) and not unexpected,
        value=float(len(unexpected)),
        detail=f"{len(unexpected)} arrays in the answers of {len(drawn)} whole runs are no release of the plan "
        f"({', '.join(unexpected[:2]) or 'none'})",
    )


def accounted_runs(plan: Plan, kinds: Mapping[str, Plan]) -> dict[str, Plan]:
    """A plan with every release for every kind of step, and in every mode; pooled, for every architecture."""
    runs, architectures = {}, set()
    for number, (name, kind) in enumerate(kinds.items()):
        training = replace(
            kind.training,
            perceptual_noise_multiplier=plan.training.perceptual_noise_multiplier,
            perceptual_weight=plan.training.perceptual_weight,
        )
        own = replace(plan, image=replace(plan.image, size=kind.image.size), model=kind.model, training=training)
        share: Share = "gan" if number % 2 else "generator"
        runs[f"{name}, {share}"] = replace(own, federation=replace(own.federation, share=share))
        if kind.model.architecture in architectures:
            continue
        architectures.add(kind.model.architecture)
        bare = replace(training, perceptual_noise_multiplier=0.0, perceptual_weight=0.0)
        runs[f"{name}, pooled"] = as_pooled(replace(own, training=bare))
    return runs


def masked_plan(plan: Plan) -> Plan:
    """The plan as a pooled one, for what its messages look like."""
    return as_pooled(replace(plan, training=replace(plan.training, perceptual_noise_multiplier=0.0)))


def check_masked_sums(open_hospital: OpenHospital, plan: Plan, entropy: Source) -> Finding:
    """Masked messages are uniform, each under masks of its own.

    Args:
        open_hospital: under audit.
        plan: pooled; no hospital has patients.
        entropy: of coins and noise.
    """
    nobody = chosen(drawn_cohort(plan, (1,)), [])
    sent = masked_steps(open_hospital, plan, entropy, patients=nobody)  # (steps, hospitals, d)
    differences = (sent[:-1].view(np.uint64) - sent[1:].view(np.uint64)).view(np.int64)
    between = (sent[:, :-1].view(np.uint64) - sent[:, 1:].view(np.uint64)).view(np.int64)
    chances = {
        "a message": _uniform(sent),
        "the difference of two steps": _uniform(differences),
        "the difference of two hospitals": _uniform(between),
    }
    name = min(chances, key=lambda key: chances[key])
    chance = min(1.0, len(chances) * chances[name])
    return Finding(
        check="masks",
        passed=chance >= FALSE_ALARM,
        value=chance,
        detail=f"{name} is uniform with chance {chance:.2g}, the least of {len(chances)} (at least {FALSE_ALARM:g})",
        false_alarm=FALSE_ALARM,
    )


def noise_of_masked_sums(open_hospital: OpenHospital, plan: Plan, entropy: Source) -> Noise:
    """Noise of the sums of all hospitals' messages, in units of the accounted size."""
    nobody = chosen(drawn_cohort(plan, (1,)), [])
    sent = masked_steps(open_hospital, plan, entropy, patients=nobody)  # (steps, hospitals, d)
    totals = torch.from_numpy(np.stack([sum_modulo(list(step)) for step in sent]))
    values = from_grid(totals, std=pooled.share_std(plan)) / (plan.privacy.clip_norm * plan.privacy.noise_multiplier)
    return {"sum of all hospitals": values.numpy()}


def _uniform(words: NDArray[np.int64]) -> float:
    """Chance of so uneven a histogram of the highest byte, by chi-square."""
    counts = np.bincount((words.view(np.uint64).ravel() >> np.uint64(56)).astype(np.int64), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def check_repeated_answers(open_hospital: OpenHospital, plan: Plan, entropy: Source) -> Finding:
    """The same request again gets the same bytes: fresh noise on one sum would average away."""
    cohort = drawn_cohort(plan, (1, 2))
    with joined(open_hospital, [cohort], plan, [entropy]) as run:
        hospital, run_id = run.hospitals[0], run.run_id
        sums = [hospital.warm_start(plan, run_id) for _ in range(2)]
        counts = [finish(hospital, run_id, plan) for _ in range(2)]
    other = sum(not _same(first, second) for first, second in (sums, counts))
    return Finding(
        check="repeated answers",
        passed=other == 0,
        value=float(other),
        detail=f"{other} of 2 requests got another answer when they were repeated (must be none)",
    )


def _same(first: Arrays, second: Arrays) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
