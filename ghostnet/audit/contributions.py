"""Checks a patient's contribution to a sum: a function of that patient alone, of norm at most the clip norm.

Noise off, the same coins for everyone. A cohort's sum must be the sum of what its patients add when each is there
alone; what anyone adds is at most C. Together they bound every pair of neighbours that the cohorts hold, and find what
pairs of whole sums hide where the clip binds: a loss, a weight or a norm that is chosen from the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ghostnet.audit.canaries import NoEntropy
from ghostnet.audit.crafted import crafted_weights
from ghostnet.audit.findings import Finding
from ghostnet.audit.kinds import StepSum, chosen
from ghostnet.models import build_discriminator
from ghostnet.plan import Plan
from ghostnet.progress import Progress, silent
from ghostnet.training.cohort import Cohort

TOLERANCE = 1e-5  # of one patient's norm: float32 rounding of a released sum
CLIP_NORMS = (0.01, 0.3, 30.0)  # at the least every patient is clipped, at the largest none
SIZES = (1, 3, 17, 1, 2, 9, 1, 5)  # images of each patient: some have more than a block of rows
PHYSICAL_ROWS = 8
SEEN = 0.5  # where nobody moves a sum by this part of its sensitivity, nobody was looked at
BOUNDARIES = ((3, 2, 1e10), (7, 2, 1e6), (8, 7, 1e10), (30, 128, 1e10))
"""Other patients, rows in memory at once, and the scale of the weights made to harm."""

Sum = Callable[[Cohort], Tensor]
"""What is released of a cohort without noise, flat (d,)."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Sizes of the patients' parts of a cohort's sum.

    Attributes:
        largest: norm of the largest part, in units of the sensitivity.
        least: norm of the smallest one.
        tied: how far the sum is from the sum of the parts, relative to the largest part.
    """

    largest: float
    least: float
    tied: float


def parts_of(released: Sum, cohort: Cohort, unit: float = 1.0) -> Parts:
    """Compares a cohort's sum with what its patients add one by one; `unit` is the sensitivity."""
    nobody = released(chosen(cohort, []))
    alone = [released(chosen(cohort, [patient])) - nobody for patient in range(cohort.patients)]
    norms = [_norm(part) for part in alone]
    off = _norm(released(cohort) - nobody - torch.stack(alone).sum(0))
    tied = off / max(norms) if 0 < max(norms) < math.inf else math.inf
    return Parts(largest=max(norms) / unit, least=min(norms) / unit, tied=tied)


def _norm(vector: Tensor) -> float:
    """L2 norm; infinity where a number is not finite."""
    norm = float(torch.linalg.vector_norm(vector))
    return norm if math.isfinite(norm) else math.inf


def check_contributions(
    steps: dict[str, tuple[StepSum, Plan]], *, clip_norms: Sequence[float] = CLIP_NORMS, progress: Progress = silent
) -> Iterator[Finding]:
    """Every patient of every kind of step adds at most C, and the same whoever else is in the batch.

    Args:
        steps: by name, a step's sum and its plan.
        clip_norms: values of C.
        progress: told (check, done, total).
    """
    largest: list[tuple[float, str]] = []
    tied: list[tuple[float, str]] = []
    binds = loose = True
    for number, (name, (step, plan)) in enumerate(steps.items()):
        progress("contributions", number, len(steps))
        plan = replace(plan, training=replace(plan.training, physical_rows=PHYSICAL_ROWS))
        plan = replace(plan, privacy=replace(plan.privacy, views=2))
        for clip_norm in clip_norms:
            for words, cohort in cohorts(plan):
                found = parts_of(without_noise(step, plan, clip_norm), cohort, clip_norm)
                where = f"{name}, C = {clip_norm:g}, {words}"
                largest.append((found.largest, where))
                tied.append((found.tied, where))
                binds &= clip_norm > min(clip_norms) or found.largest > 1 - 1e-3
                loose &= clip_norm < max(clip_norms) or "huge" in words or found.least < 1
    progress("contributions", len(steps), len(steps))
    yield _largest_part(largest, passed=binds and loose)
    worst, where = max(tied)
    yield Finding(
        check="patients apart",
        passed=worst == 0,  # sums are exact
        value=worst,
        detail=f"a sum is at most {worst:.2g} of a patient's part away from the sum of parts taken alone "
        f"(must be 0), in {len(steps)} kinds of step ({where})",
    )


def _largest_part(found: list[tuple[float, str]], *, passed: bool) -> Finding:
    worst, where = max(found)
    return Finding(
        check="one patient's part",
        passed=passed and worst <= 1 + TOLERANCE,
        value=worst,
        detail=f"a patient adds at most {worst:.7g} x C, in {len(found)} cohorts ({where})"
        + ("" if passed else "; the clip did not bind where it must, or bound where it must not"),
    )


def check_block_boundaries(
    steps: dict[str, tuple[StepSum, Plan]],
    *,
    boundaries: Sequence[tuple[int, int, float]] = BOUNDARIES,
    progress: Progress = silent,
) -> Finding:
    """One patient more, first, in the middle or last, moves nobody else, under weights that amplify rounding.

    Args:
        steps: by name, a step's sum and its plan.
        boundaries: numbers of other patients, rows in memory at once, and the scale of the weights.
        progress: told (check, done, total).
    """
    moves = Moves()
    for number, (name, (step, plan)) in enumerate(steps.items()):
        progress("block boundaries", number, len(steps))
        for others, rows, scale in boundaries:
            cohort = drawn_cohort(plan, (1,) * (others + 1), seed=others)
            plan = replace(plan, training=replace(plan.training, physical_rows=rows))
            build = partial(build_discriminator, plan.networks)
            for made in crafted_weights(build, partial(run_discriminator, cohort=cohort), scale):
                words = f"{name}, {made.words}, {rows} rows at once"
                moves.try_neighbours(without_noise(step, plan, 1.0, made.network), cohort, words)
    progress("block boundaries", len(steps), len(steps))
    return moves.finding("block boundaries", tolerance=0.0)


def run_discriminator(network: nn.Module, cohort: Cohort) -> object:
    """Logits of every image of a cohort."""
    return network(cohort.images, cohort.labels)


class Moves:
    """The largest movement of a sum by one patient more, and of the others' parts, in the pairs tried so far."""

    def __init__(self) -> None:
        self.tried = 0
        self._sum, self._others = (0.0, "none"), (0.0, "none")

    def try_neighbours(self, released: Sum, cohort: Cohort, words: str) -> None:
        """A cohort without its first, its middle and its last patient."""
        everybody, nobody = released(cohort), released(chosen(cohort, []))
        last = cohort.patients - 1
        for place in sorted({0, last // 2, last}):
            others = [patient for patient in range(cohort.patients) if patient != place]
            moved = everybody - released(chosen(cohort, others))
            own = released(chosen(cohort, [place])) - nobody
            where = f"{words}, patient {place} of {last + 1}"
            self.tried += 1
            self._sum = max(self._sum, (_norm(moved), where))
            self._others = max(self._others, (_norm(moved - own), where))

    def finding(self, check: str, *, tolerance: float) -> Finding:
        """Nobody moves a sum by more than its sensitivity, nor others by more than the tolerance; somebody moves it."""
        (moved, where), (others, where_others) = self._sum, self._others
        return Finding(
            check=check,
            passed=SEEN <= moved <= 1 + TOLERANCE and others <= tolerance,
            value=moved,
            detail=f"one patient more moves a sum by at most {moved:.7g} x its sensitivity ({where}), and what others "
            f"add by {others:.2g} (at most {tolerance:g}; {where_others}), in {self.tried} pairs under hostile numbers",
        )


def without_noise(step: StepSum, plan: Plan, clip_norm: float, discriminator: nn.Module | None = None) -> Sum:
    """A step's sum without noise as a function of the cohort alone."""
    plan = replace(plan, privacy=replace(plan.privacy, clip_norm=clip_norm))
    network = discriminator or build_discriminator(plan.networks)
    return lambda cohort: step(plan, network, cohort, NoEntropy())


def cohorts(plan: Plan) -> Iterator[tuple[str, Cohort]]:
    """Patients with few and many images, of one rare class and of mixed ones; and the same with hostile pixels."""
    ordinary = drawn_cohort(plan, SIZES)
    yield "ordinary pixels", ordinary
    images = ordinary.images.clone()
    images[ordinary.owners == 2] *= 1000.0
    huge = images[ordinary.owners == 4]
    images[ordinary.owners == 4] = torch.stack([huge[0], -huge[0]]) * 2.0**30
    images[ordinary.owners == 6] = math.nan
    yield "huge, cancelling and NaN pixels", replace(ordinary, images=images)


def drawn_cohort(plan: Plan, sizes: Sequence[int], *, seed: int = 0) -> Cohort:
    """Random images of patients with so many each; a patient's are alike, as one body's are.

    The third patient holds all of class 1 but for one image of the sixth.
    """
    public = torch.Generator().manual_seed(seed)
    shape = (plan.planes, plan.image.size, plan.image.size)
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
    own = torch.rand(len(sizes), *shape, generator=public)
    images = (0.9 * own[owners] + 0.1 * torch.rand(len(owners), *shape, generator=public)) * 2 - 1
    labels = (owners == 2).long()
    if len(sizes) > 5:
        labels[(owners == 5).nonzero().flatten()[0]] = 1
    return Cohort(images=images, labels=labels, owners=owners, patients=len(sizes))
