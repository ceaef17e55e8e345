"""Wrong builds that look right at one release, one kind of step or one batch: each the product with a piece replaced.

A check is one of the audit's own, on as few kinds of step and releases as show the bug.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import client.site
from client.audited import HOSPITAL
from client.site import Site
from ghostnet.accounting.catalogue import Statistic
from ghostnet.accounting.events import Event
from ghostnet.audit import canaries, contributions, every_release, post_processing, releases
from ghostnet.audit.every_release import Build
from ghostnet.audit.findings import Finding
from ghostnet.audit.kinds import step_kinds
from ghostnet.exchange import pooled
from ghostnet.exchange.arrays import Arrays
from ghostnet.plan import Plan
from ghostnet.privacy import blocks, mechanism
from ghostnet.privacy import noise as noise_module
from ghostnet.privacy import releases as release_module
from ghostnet.privacy.blocks import Block
from ghostnet.privacy.mechanism import PatientGradients, RowLoss, Rows, noised_sum
from ghostnet.privacy.noise import Entropy, add_gaussian
from ghostnet.privacy.penalised import PenalisedGradients
from ghostnet.training import perceptual, release, warm_start
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import patient_gradients
from ghostnet.utility import classification, classifier
from ghostnet.utility.task import TaskModel, TaskSpec
from tests.entropy import SeededEntropy
from tests.planted.audit_builds import NoClip, loop_with

DCGAN, PENALISED = "dcgan non-saturating", "wgan-gp wasserstein penalty at patient"
KERAS, STYLEGAN = "keras28 non-saturating", "stylegan non-saturating penalty at fakes"
STEPS = 8

# Checks: the audit's, on a part of what it looks at.


@cache
def base() -> Plan:
    """What the audit's plans have in common, with few fakes."""
    plan = canaries.audit_plan(sampling_rate=0.1, noise_multiplier=1.0, steps=4, patients=20)
    training = dataclasses.replace(plan.training, discriminator_steps=1_000_000)
    return dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, fakes=4), training=training)


def kind(name: str) -> dict[str, Plan]:
    """One kind of step."""
    return {name: step_kinds(base())[name]}


def _named(findings: Iterator[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One finding of a check that gives several; such checks of one `look` have one clean twin."""

    look: Callable[[Build], Iterator[Finding]]
    check: str

    def __call__(self, build: Build) -> Finding:
        """Looks at the build as it is now."""
        return _named(self.look(build), self.check)

    def of_clean(self) -> Finding:
        """The finding on the product, which is looked at once."""
        return _named(iter(_findings_of_clean(self.look)), self.check)


@cache
def _findings_of_clean(look: Callable[[Build], Iterator[Finding]]) -> tuple[Finding, ...]:
    return tuple(look(HOSPITAL))


def parts(check: str, name: str = DCGAN) -> OneOf:
    """The check of what patients add to one kind of step, alone and pooled."""
    return OneOf(_parts_of(name), check)


@cache
def _parts_of(name: str) -> Callable[[Build], Iterator[Finding]]:
    return lambda build: contributions.check_contributions(every_release.steps_of(build, kind(name)))


def boundaries(name: str) -> Callable[[Build], Finding]:
    """The check of neighbours at block boundaries, for one kind of step, alone and pooled."""
    return lambda build: contributions.check_block_boundaries(every_release.steps_of(build, kind(name)))


def release_boundaries(name: str) -> Callable[[Build], Finding]:
    """The same for releases whose names begin so."""

    def found(build: Build) -> Finding:
        plan = releases.release_plan(base())
        every = releases.harmful_releases(build.open_hospital, build.noised_features, plan, kind(STYLEGAN))
        return releases.check_release_boundaries(each for each in every if each[0].name.startswith(name))

    return found


def noise_of_steps(check: str) -> Callable[[Build], Finding]:
    """The check of a step's noise."""

    def found(build: Build) -> Finding:
        noise = every_release.noise_of_steps(build.train_round, kind(DCGAN)[DCGAN], SeededEntropy(1), steps=STEPS)
        return _named(every_release.check_noises({DCGAN: noise}), check)

    return found


def noise_of_shares(check: str) -> Callable[[Build], Finding]:
    """The check of a pooled share's noise."""

    def found(build: Build) -> Finding:
        noise = every_release.noise_of_shares(build.noised_share, kind(DCGAN)[DCGAN], SeededEntropy(2), steps=STEPS)
        return _named(every_release.check_noises({DCGAN: noise}), check)

    return found


def noise_of_a_long_tensor(check: str) -> Callable[[Build], Finding]:
    """The check of the noise of a step with a tensor longer than any chunk."""

    def found(build: Build) -> Finding:
        plan = kind(DCGAN)[DCGAN]
        plan = dataclasses.replace(plan, model=dataclasses.replace(plan.model, discriminator_width=every_release.WIDE))
        noise = every_release.noise_of_steps(build.train_round, plan, SeededEntropy(3), steps=1)
        return _named(every_release.check_noises({DCGAN: noise}), check)

    return found


def release_of(build: Build, name: str) -> releases.Release:
    """One release of the audit's."""
    plan = releases.release_plan(base())
    found = releases.releases_of(build.open_hospital, build.noised_features, plan, kind(DCGAN))
    return next(release for release in found if release.name == name)


def release_parts(check: str, name: str) -> OneOf:
    """The check of what patients add to one release."""
    return OneOf(_release_parts_of(name), check)


@cache
def _release_parts_of(name: str) -> Callable[[Build], Iterator[Finding]]:
    return lambda build: releases.check_release_parts([release_of(build, name)])


def noise_of_a_run(check: str) -> Callable[[Build], Finding]:
    """The check of the noise that a hospital draws by itself in one run."""

    def found(build: Build) -> Finding:
        noise = {"one run": releases.noise_of_one_run(build.open_hospital, releases.release_plan(base()), None)}
        return _named(every_release.check_noises(noise), check)

    return found


def noise_of_release(check: str, name: str) -> Callable[[Build], Finding]:
    """The check of one release's noise."""

    def found(build: Build) -> Finding:
        noise = releases.noise_of_releases([release_of(build, name)], SeededEntropy(4))
        return _named(every_release.check_noises(noise), check)

    return found


def accounted(check: str = "noise drawn as accounted") -> OneOf:
    """A check of whole runs, alone and pooled."""
    return OneOf(_whole_runs, check)


def _whole_runs(build: Build) -> Iterator[Finding]:
    runs = releases.accounted_runs(releases.release_plan(base()), kind(DCGAN))
    return releases.check_accounted(build.open_hospital, build.plan_events, runs, SeededEntropy(5))


def masks(build: Build) -> Finding:
    """Messages of a pooled run are uniform."""
    plan = releases.masked_plan(releases.release_plan(base()))
    return releases.check_masked_sums(build.open_hospital, plan, SeededEntropy(6))


def noise_of_masked_sums(check: str) -> Callable[[Build], Finding]:
    """The check of the noise that is left when all hospitals' messages are added."""

    def found(build: Build) -> Finding:
        plan = releases.masked_plan(releases.release_plan(base()))
        noise = releases.noise_of_masked_sums(build.open_hospital, plan, SeededEntropy(7))
        return _named(every_release.check_noises({"masked sums": noise}), check)

    return found


def repeated(build: Build) -> Finding:
    """A repeated request gets the same answer."""
    return releases.check_repeated_answers(build.open_hospital, releases.release_plan(base()), SeededEntropy(8))


def pooled_canaries(check: str) -> Callable[[Build], Finding]:
    """A check of who takes part in pooled steps, and with how much."""
    return lambda build: _named(
        every_release.check_pooled_sampling(build.noised_share, base(), SeededEntropy(9)), check
    )


def after_the_noise(build: Build) -> Finding:
    """Nothing private follows the noise where the generator may adapt, and where there is a penalty."""
    plans = kind(DCGAN) | kind("wgan-gp wasserstein penalty at fakes")
    return post_processing.check_after_the_noise(build.train_round, plans, SeededEntropy(10))


# Noise that is used twice.


def repeated_over(spread: Callable[[Tensor], Tensor]) -> Build:
    """A build whose noise of a step, all tensors in a row and of size 1, is changed before it is added."""

    def noised(summed: dict[str, Tensor], *, clip_norm: float, noise_multiplier: float, entropy: Entropy) -> Any:
        noise = noised_sum(
            {name: torch.zeros_like(value) for name, value in summed.items()},
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            entropy=entropy,
        )
        std = clip_norm * noise_multiplier
        row = std * spread(torch.cat([value.flatten() for value in noise.values()]) / std)
        changed = row.split([value.numel() for value in summed.values()])
        return {
            name: (summed[name] + part.reshape(summed[name].shape)).float()
            for name, part in zip(summed, changed, strict=True)
        }

    return dataclasses.replace(HOSPITAL, name="noise used twice", train_round=loop_with(noised_sum=noised))


def same_in_every_tensor(
    summed: dict[str, Tensor], *, clip_norm: float, noise_multiplier: float, entropy: Entropy
) -> dict[str, Tensor]:
    """One row of noise, of which each tensor takes the beginning."""
    longest = torch.zeros(max(value.numel() for value in summed.values()), dtype=torch.float64)
    row = add_gaussian(longest, std=clip_norm * noise_multiplier, entropy=entropy)
    return {name: (value + row[: value.numel()].reshape(value.shape)).float() for name, value in summed.items()}


class KeptForTwoSteps:
    """Every second step uses the noise of the one before."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def __call__(self, row: Tensor) -> Tensor:
        """This step's noise."""
        kept, self._kept = self._kept, row if self._kept is None else None
        return row if kept is None else kept


def in_blocks(row: Tensor) -> Tensor:
    """The first 97 numbers again and again."""
    return row[:97].repeat(-(-len(row) // 97))[: len(row)]


def eight_again(row: Tensor) -> Tensor:
    """Eight numbers stand at two places, the second time negated."""
    again = row.clone()
    again[1500:1508] = -row[300:308]
    return again


def shared_component(row: Tensor) -> Tensor:
    """Each number holds a part of the one 5 places before: the size is right."""
    return math.sqrt(1 - 0.3**2) * row + 0.3 * row.roll(5)


SAME_IN_EVERY_TENSOR = dataclasses.replace(
    HOSPITAL, name="noise repeated across tensors", train_round=loop_with(noised_sum=same_in_every_tensor)
)


@contextmanager
def one_draw_for_all_chunks() -> Iterator[None]:
    """A long tensor's chunks all get the first one's noise."""

    def add(value: Tensor, *, std: float, entropy: Entropy) -> Tensor:
        flat, chunk = value.detach().flatten().double(), 1 << 17
        drawn = add_gaussian(torch.zeros(min(chunk, len(flat)), dtype=torch.float64), std=std, entropy=entropy)
        noise = drawn.repeat(-(-len(flat) // max(1, len(drawn))))[: len(flat)]
        return (flat + noise).float().reshape(value.shape)

    with mock.patch("ghostnet.privacy.mechanism.add_gaussian", add):
        yield


@contextmanager
def one_stream_a_request() -> Iterator[None]:
    """A hospital keys its noise by something that is the same at each request."""

    def keyed(self: noise_module.SystemEntropy, n: int, std: float) -> Any:
        del self
        return SeededEntropy(11).discrete_gaussian(n, std)

    with mock.patch.object(client.site.SystemEntropy, "discrete_gaussian", keyed):
        yield


@contextmanager
def share_repeats_its_noise() -> Iterator[None]:
    """A pooled share's second half of noise is its first."""
    steps = noise_module.add_gaussian_steps

    def add(value: Tensor, *, std: float, entropy: Entropy) -> Tensor:
        noise = steps(torch.zeros_like(value), std=std, entropy=entropy)
        half = len(noise) // 2
        noise[half : 2 * half] = noise[:half]
        return value + noise

    with mock.patch.object(release, "add_gaussian_steps", add):
        yield


@contextmanager
def share_without_noise() -> Iterator[None]:
    """The noise is left to the other hospitals."""
    with mock.patch.object(release, "add_gaussian_steps", lambda value, **_: value):
        yield


@contextmanager
def noise_over_hospitals() -> Iterator[None]:
    """Standard deviation sigma C / n, so that the sum has sigma C / sqrt(n)."""
    steps = noise_module.add_gaussian_steps

    def less(value: Tensor, *, std: float, entropy: Entropy) -> Tensor:
        hospitals = 3
        scaled = steps(torch.zeros_like(value), std=std / math.sqrt(hospitals), entropy=entropy)
        unit = noise_module.from_grid(torch.ones(1, dtype=torch.int64), std=std / math.sqrt(hospitals))
        grid = noise_module.from_grid(torch.ones(1, dtype=torch.int64), std=std)
        return value + (scaled * float(unit / grid)).round().long()

    with mock.patch.object(release, "add_gaussian_steps", less):
        yield


@contextmanager
def pooled_steps_sample_twice_as_many() -> Iterator[None]:
    """A hospital's pooled steps draw patients at another rate than accounted."""
    sample = pooled.sample_patients
    with mock.patch.object(
        pooled, "sample_patients", lambda patients, rate, entropy: sample(patients, min(1.0, 2 * rate), entropy)
    ):
        yield


@contextmanager
def pooled_steps_remember() -> Iterator[None]:
    """A hospital adds its last clipped sum, before the noise, to the next."""
    right, kept = noise_module.add_gaussian_steps, []

    def remembers(value: Tensor, **named: Any) -> Tensor:
        last = kept.pop() if kept else torch.zeros_like(value)
        kept.append(value.clone())
        return right(value + last, **named)

    with mock.patch.object(release, "add_gaussian_steps", remembers):
        yield


def uniform_noise(row: Tensor) -> Tensor:
    """Noise of the right size and of a bounded law."""
    return (torch.special.ndtr(row.double()) - 0.5) * math.sqrt(12)


def no_clip(discriminator: nn.Module, plan: Plan) -> PatientGradients:
    """What sums patients' gradients as they are."""
    del plan
    return NoClip(discriminator)


def later_rounds_with(**replaced: object) -> Build:
    """A build whose first round is right."""
    wrong = loop_with(**replaced)

    def loop(*arguments: Any, first_step: int, **named: Any) -> None:
        (wrong if first_step else HOSPITAL.train_round)(*arguments, first_step=first_step, **named)

    return dataclasses.replace(HOSPITAL, name="later rounds are wrong", train_round=loop)


# A loss, a weight or a norm that is chosen from the batch.


def gradients_with(changed: type[PatientGradients]) -> Build:
    """A build whose steps, alone and pooled, compute clipped sums in another way."""

    def chosen(discriminator: nn.Module, plan: Plan) -> Any:
        right = patient_gradients(discriminator, plan)
        return changed(discriminator) if isinstance(right, PatientGradients) else right

    def share(*arguments: Any, **named: Any) -> Any:
        with mock.patch.object(pooled, "patient_gradients", chosen):
            return pooled.noised_share(*arguments, **named)

    loop = loop_with(patient_gradients=chosen)
    return dataclasses.replace(HOSPITAL, name=changed.__name__, train_round=loop, noised_share=share)


class LossOfTheMeanLogit(PatientGradients):
    """Each real row's logit is taken against the mean of the batch's."""

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, **named: Any) -> dict[str, Tensor]:
        """Clipped as it should be."""
        with torch.no_grad():
            reals = self._discriminator(rows.images, rows.labels)[rows.real]
            mean = reals[reals.isfinite()].mean() if bool(reals.isfinite().any()) else reals.new_zeros(())

        def centred(logits: Tensor, real: Tensor) -> Tensor:
            return row_loss(torch.where(real, logits - mean, logits), real)

        return super().clipped_sum(rows, centred, **named)


class ClassesReweighted(PatientGradients):
    """Patients of a rare class in the batch weigh more; whoever has several classes stands with the first."""

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, **named: Any) -> dict[str, Tensor]:
        """Each clipped to C."""
        total: dict[str, Tensor] = {}
        first = torch.diff(rows.groups, prepend=rows.groups.new_tensor([-1])) != 0
        label_of = rows.labels[first]  # (groups,)
        for label in label_of.unique() if len(label_of) else [torch.tensor(0)]:
            weight = len(label_of) / 2 / max(1, int((label_of == label).sum()))
            some = _only(rows, label_of == label)
            found = super().clipped_sum(
                some,
                lambda logits, real, weight=weight: weight * row_loss(logits, real),
                **named,
            )
            total = {name: total.get(name, 0) + value for name, value in found.items()}
        return total


class WeightFromTheLabels(PatientGradients):
    """The discriminator's label head is moved by how frequent each label is among the batch's reals."""

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, **named: Any) -> dict[str, Tensor]:
        """Clipped as it should be, under another network."""
        head = next(layer for layer in self._discriminator.modules() if isinstance(layer, nn.Embedding))
        kept = head.weight.detach().clone()
        counts = torch.bincount(rows.labels[rows.real], minlength=len(kept)).to(kept)
        with torch.no_grad():
            head.weight.mul_(1 + counts[:, None] / counts.sum().clamp(min=1))
        found = super().clipped_sum(rows, row_loss, **named)
        with torch.no_grad():
            head.weight.copy_(kept)
        return found


class NormFromTheLabels(PatientGradients):
    """Where a batch holds a rare label its pixels are scaled."""

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, **named: Any) -> dict[str, Tensor]:
        """Clipped as it should be, on other images."""
        scale = 0.5 if bool((rows.labels[rows.real] == 1).any()) else 1.0
        images = torch.where(rows.real[:, None, None, None], scale * rows.images, rows.images)
        changed = dataclasses.replace(rows, images=images)
        return super().clipped_sum(changed, row_loss, **named)


def _only(rows: Rows, groups: Tensor) -> Rows:
    keep = groups[rows.groups]
    renumbered = groups.cumsum(0) - 1
    return Rows(
        images=rows.images[keep],
        labels=rows.labels[keep],
        groups=renumbered[rows.groups[keep]],
        real=rows.real[keep],
        group_count=int(groups.sum()),
    )


# A patient over two physical batches.


def _cut_into_batches(rows: Rows, physical_rows: int) -> Iterator[Rows]:
    for start in range(0, len(rows.images), physical_rows):
        some = slice(start, start + physical_rows)
        _, groups = rows.groups[some].unique(return_inverse=True)
        yield Rows(
            images=rows.images[some],
            labels=rows.labels[some],
            groups=groups,
            real=rows.real[some],
            group_count=int(groups[-1]) + 1,
        )


class SplitPatients(PatientGradients):
    """Physical batches are cut by rows, and each part of a patient is clipped by itself."""

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, **named: Any) -> dict[str, Tensor]:
        """A patient over k batches adds up to k C."""
        total = super().clipped_sum(_none(rows), row_loss, **named)
        for batch in _cut_into_batches(rows, named["physical_rows"]):
            found = super().clipped_sum(batch, row_loss, **named)
            total = {name: total[name] + value for name, value in found.items()}
        return total


def _none(rows: Rows) -> Rows:
    return _only(rows, torch.zeros(rows.group_count, dtype=torch.bool))


@contextmanager
def penalised_patients_split() -> Iterator[None]:
    """The same where each row's gradient is computed by itself."""
    right = PenalisedGradients.clipped_sum

    def cut(self: PenalisedGradients, rows: Rows, row_loss: RowLoss, **named: Any) -> dict[str, Tensor]:
        total = right(self, _none(rows), row_loss, **named)
        for batch in _cut_into_batches(rows, named["physical_rows"]):
            found = right(self, batch, row_loss, **named)
            total = {name: total[name] + value for name, value in found.items()}
        return total

    with mock.patch.object(PenalisedGradients, "clipped_sum", cut):
        yield


@contextmanager
def pooled_patients_split() -> Iterator[None]:
    """A pooled step's runs of rows are cut wherever they are full."""

    def cut(index: Tensor, groups: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(index), most):
            part = slice(start, start + most)
            yield index[part], groups[part] - groups[start]

    with mock.patch.object(pooled, "_parts", cut):
        yield


# Rows whose results depend on their place.


@contextmanager
def remainders_of_a_batch() -> Iterator[None]:
    """Physical batches are as long as their patients are many: no padding, and what is left over at the end."""

    def unfilled(rows: Rows, part: Block, block: int) -> Rows:
        del block
        return Rows(
            images=rows.images[part.rows].detach(),
            labels=rows.labels[part.rows],
            groups=rows.groups[part.rows] - part.groups.start,
            real=rows.real[part.rows],
            group_count=part.groups.stop - part.groups.start,
        )

    with (
        mock.patch.object(mechanism, "_block", unfilled),
        mock.patch.object(mechanism, "block_rows", lambda most: most),
        mock.patch.object(mechanism, "_is_invariant", return_value=True),
    ):
        yield


@contextmanager
def rows_in_long_batches() -> Iterator[None]:
    """The utility counts, the warm start and the perceptual release take 256 rows at once, in float32."""
    embed = warm_start.embed_images

    def batches(function: Callable[[Tensor], Tensor], rows: Tensor, **_: object) -> Iterator[Tensor]:
        yield from (function(rows[start : start + 256]) for start in range(0, len(rows), 256))

    with (
        mock.patch.object(classifier, "row_by_row", batches),
        mock.patch.object(perceptual, "row_by_row", batches),
        mock.patch.object(warm_start, "row_by_row", batches),
        mock.patch.object(
            warm_start, "_embed_in_float64", lambda images, embedding, device: embed(images, embedding).double()
        ),
    ):
        yield


@contextmanager
def classifier_in_training_mode() -> Iterator[None]:
    """The received classifier keeps its dropout, whose masks go by a row's place in the batch.

    The self-test, which refuses it, is left out.
    """
    right = client.site.received_models

    def training(*arguments: Any) -> dict[str, TaskModel]:
        models = right(*arguments)
        for model in models.values():
            model.network.train()
        return models

    with (
        mock.patch.object(client.site, "received_models", training),
        mock.patch.object(blocks, "_rows_are_invariant", return_value=False),
    ):
        yield


# Warm start, perceptual release, utility counts.


@contextmanager
def releases_not_clipped() -> Iterator[None]:
    """Vectors are summed as they are, NaN rows left out."""

    def as_they_are(rows: Tensor, norm_bound: float, step: float) -> Tensor:
        del norm_bound
        rows = rows.detach().cpu().double()
        return (torch.where(rows.isfinite().all(dim=1, keepdim=True), rows, 0.0) / step).trunc()

    with mock.patch.object(release_module, "_in_steps", as_they_are):
        yield


def each_image_a_patient(cohort: Cohort) -> Cohort:
    """The same images, each its own owner's."""
    return dataclasses.replace(cohort, owners=torch.arange(len(cohort.images)), patients=len(cohort.images))


@contextmanager
def images_counted_fully() -> Iterator[None]:
    """The warm start takes one vector an image."""
    right = warm_start.iter_patient_embeddings

    def embeddings(cohort: Cohort, *arguments: Any) -> Iterator[Tensor]:
        yield from right(each_image_a_patient(cohort), *arguments)

    with mock.patch.object(client.site.warm_start, "iter_patient_embeddings", embeddings):
        yield


@contextmanager
def images_counted_many_times() -> Iterator[None]:
    """The utility counts take one row an image."""
    right = classification.TASK

    def counts(model: TaskModel, cohort: Cohort, spec: TaskSpec) -> Tensor:
        return right.counts(model, each_image_a_patient(cohort), spec)

    with mock.patch.object(classification, "TASK", dataclasses.replace(right, counts=counts)):
        yield


@contextmanager
def features_of_norm_two() -> Iterator[None]:
    """The perceptual release bounds a patient by 2, and adds the noise of 1."""
    noisy_sum, features = release.noisy_sum, perceptual._patient_features

    def wider(vectors: Iterator[Tensor], *, norm_bound: float, noise_multiplier: float, entropy: Entropy) -> Tensor:
        return noisy_sum(vectors, norm_bound=2 * norm_bound, noise_multiplier=noise_multiplier / 2, entropy=entropy)

    def doubled(*arguments: Any) -> Iterator[Tensor]:
        yield from (2 * block for block in features(*arguments))

    with mock.patch.object(release, "noisy_sum", wider), mock.patch.object(perceptual, "_patient_features", doubled):
        yield


@contextmanager
def counts_weighted_by_the_cohort() -> Iterator[None]:
    """Classes of the test patients weigh by how rare they are."""
    right = classification.TASK

    def counts(model: TaskModel, cohort: Cohort, spec: TaskSpec) -> Tensor:
        found = right.counts(model, cohort, spec)
        share = torch.bincount(cohort.labels, minlength=2).float() / max(1, len(cohort.labels))
        return found * (1 - share[0] / 2)

    with mock.patch.object(classification, "TASK", dataclasses.replace(right, counts=counts)):
        yield


# A noise multiplier of another table, an uncharged release, a second answer.


@contextmanager
def noise_of_another_table(request: str, table: str) -> Iterator[None]:
    """A hospital answers a request with the noise multiplier that the plan gives to something else.

    Args:
        request: method of the site.
        table: of the plan, whose noise multiplier is used.
    """
    right = client.site.release_vectors
    right_loop, right_share = client.site.train_round, client.site.pooled.noised_share
    method = getattr(Site, request)

    def wrong(self: Site, plan: Plan, *arguments: Any) -> Any:
        other = getattr(plan, table).noise_multiplier

        def summed(statistic: Statistic, vectors: Any, own: Plan, **named: Any) -> Tensor:
            key, _, name = statistic.noise_key.partition(".")
            changed = dataclasses.replace(getattr(own, key), **{name: other})
            return right(statistic, vectors, dataclasses.replace(own, **{key: changed}), **named)

        def loop(*given: Any, **named: Any) -> None:
            *networks, own = given
            right_loop(*networks, _with_noise(own, other), **named)

        def share(network: nn.Module, cohort: Cohort, own: Plan, **named: Any) -> Any:
            return right_share(network, cohort, _with_noise(own, other), **named)

        with (
            mock.patch.object(client.site, "release_vectors", summed),
            mock.patch.object(client.site, "train_round", loop),
            mock.patch.object(client.site.pooled, "noised_share", share),
        ):
            return method(self, plan, *arguments)

    with mock.patch.object(Site, request, wrong):
        yield


def _with_noise(plan: Plan, noise_multiplier: float) -> Plan:
    return dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, noise_multiplier=noise_multiplier))


def without_event(name: str) -> Build:
    """A build whose accountant has never heard of a release."""

    def events(plan: Plan) -> tuple[Event, ...]:
        return tuple(event for event in HOSPITAL.plan_events(plan) if event.name != name)

    return dataclasses.replace(HOSPITAL, name=f"{name} not charged", plan_events=events)


@contextmanager
def reserves_less(name: str) -> Iterator[None]:
    """The hospital reserves its events but for one."""
    right = client.site.plan_events
    with mock.patch.object(
        client.site, "plan_events", lambda plan: tuple(event for event in right(plan) if event.name != name)
    ):
        yield


@contextmanager
def sends_class_counts() -> Iterator[None]:
    """A round's answer holds the hospital's patients by class."""
    train = Site.train

    def talkative(self: Site, plan: Plan, *arguments: Any) -> Arrays:
        labels = self._train_patients(plan.image).labels
        return {**train(self, plan, *arguments), "classes": torch.bincount(labels, minlength=2).numpy()}

    with mock.patch.object(Site, "train", talkative):
        yield


@contextmanager
def drawn_anew_each_time() -> Iterator[None]:
    """A repeated request is computed again, with fresh noise."""

    def release(self: Site, plan: Plan, run_id: str, request: str, receive: Callable[[], Any]) -> Arrays:
        with self._ledger() as ledger:
            self._reserve(ledger, plan, run_id)
        answer: Arrays = receive()()
        return answer

    with mock.patch.object(Site, "_release", release):
        yield


@contextmanager
def unmasked() -> Iterator[None]:
    """A hospital sends its share as it is."""
    step = Site.step

    def bare(self: Site, plan: Plan, run_id: str, number: int, discriminator: Arrays, roster: str) -> Arrays:
        with mock.patch("ghostnet.exchange.secure_sum.Masks.masked", lambda masks, values, request: values):
            return step(self, plan, run_id, number, discriminator, roster)

    with mock.patch.object(Site, "step", bare):
        yield


def under_build(
    bug: Callable[[], Any], check: Callable[[Build], Finding], build: Build = HOSPITAL
) -> Callable[[Path], Finding]:
    """The check of a build, made while the bug is in place."""

    def wrong(folder: Path) -> Finding:
        del folder
        with bug():
            return check(build)

    return wrong
