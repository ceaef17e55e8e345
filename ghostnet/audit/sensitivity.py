"""The sensitivity of the sum that is noised, measured on neighbouring cohorts.

The strongest cheap test of a private step: noise off, the same fakes, one patient more. Over many random and
adversarial cohorts the sum must never move by more than the clip norm. Images only; nothing here reads patient data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ghostnet.audit.findings import Finding

TOLERANCE = 1e-5  # float32 rounding, relative to the clip norm
CLIP_NORMS = (0.01, 0.3, 3.0)  # a wrong clip shows only where clipping binds, so C is swept
_SCALES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # sizes of the extra patient's pixels


@dataclass(frozen=True, kw_only=True)
class StepInput:
    """The inputs of one discriminator step.

    Attributes:
        images: (n, c, h, w), rows of the sampled patients.
        labels: int64 (n,).
        groups: int64 (n,), the patient of each row, 0.. in ascending order.
        fakes: (pool, c, h, w), public; a correct step uses the first `fake_count` of them whatever the reals are.
        fake_labels: int64 (pool,).
        fake_count: PUBLIC number of fakes of a step.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor
    fakes: Tensor
    fake_labels: Tensor
    fake_count: int


ClippedSumStep = Callable[[StepInput, float], Tensor]
"""(what the step reads, clip_norm) -> the sum before noise, flat (d,)."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Two step inputs that differ by one patient, and in words by what kind of patient."""

    without: StepInput
    with_patient: StepInput
    description: str


def worst_ratio(step: ClippedSumStep, neighbours: Sequence[Neighbours], clip_norm: float) -> tuple[float, str]:
    """Largest L2 move of the sum over `clip_norm`, and the neighbours that caused it; inf if a sum is not finite."""
    worst, culprit = 0.0, "none"
    for pair in neighbours:
        moved = step(pair.with_patient, clip_norm).double() - step(pair.without, clip_norm).double()
        ratio = float(torch.linalg.vector_norm(moved)) / clip_norm
        ratio = ratio if math.isfinite(ratio) else math.inf
        if ratio > worst:
            worst, culprit = ratio, pair.description
    return worst, culprit


def check_sensitivity(
    step: ClippedSumStep,
    *,
    trials: int = 60,
    shape: tuple[int, int, int] = (1, 8, 8),
    classes: int = 2,
    clip_norms: Sequence[float] = CLIP_NORMS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Finding:
    """One patient more moves the sum by at most the clip norm.

    Args:
        step: the step under test, without its noise. Whatever is random in it must be the same in both calls.
        trials: neighbouring cohorts for each clip norm.
        shape: (c, h, w) of the images that the step's discriminator takes.
        classes: number of labels.
        clip_norms: values of C to try.
        tolerance: allowed excess over 1, for rounding.
        seed: of the random cohorts, which are public.
    """
    found = []
    for i, clip_norm in enumerate(clip_norms):
        generator = torch.Generator().manual_seed(seed * 1000 + i)
        pairs = list(random_neighbours(trials, shape=shape, classes=classes, generator=generator))
        found.append((*worst_ratio(step, pairs, clip_norm), clip_norm))
    ratio, culprit, clip_norm = max(found)
    tried = trials * len(clip_norms)
    return Finding(
        check="sensitivity",
        passed=ratio <= 1 + tolerance,
        value=ratio,
        detail=f"largest move {ratio:.7g} x C over {tried} neighbours, at C = {clip_norm:g} ({culprit})",
    )


def random_neighbours(
    trials: int, *, shape: tuple[int, int, int], classes: int, generator: torch.Generator
) -> Iterator[Neighbours]:
    """Random cohorts with and without one patient, who is placed anywhere and made to hurt.

    The extra patient has 1 to 4 images, with pixels up to 1,000 times the usual, aligned with or against a fake, not
    finite, or ordinary; or two huge ones that are each other's negative: what they add may cancel, and what others add
    between them must not be lost. Some cohorts are empty without that patient.
    """
    for trial in range(trials):
        patients = 0 if trial % 7 == 6 else int(_integer(1, 8, generator))
        owners = [p for p in range(patients) for _ in range(_integer(1, 3, generator))]
        spread = 3 * torch.randn((1, *shape), generator=generator)
        fakes = torch.randn((16, *shape), generator=generator) * 3 + spread
        fake_labels = torch.randint(classes, (16,), generator=generator)
        images = torch.randn((len(owners), *shape), generator=generator)
        labels = torch.randint(classes, (len(owners),), generator=generator)
        extra, description = _extra_patient(trial, fakes, shape, generator)
        extra_labels = torch.randint(classes, (len(extra),), generator=generator)
        place = _integer(0, patients, generator)  # number of patients before the extra one
        cut = sum(owner < place for owner in owners)
        groups = torch.tensor(owners, dtype=torch.int64)
        without = StepInput(
            images=images, labels=labels, groups=groups, fakes=fakes, fake_labels=fake_labels, fake_count=8
        )
        yield Neighbours(
            without=without,
            with_patient=replace(
                without,
                images=torch.cat([images[:cut], extra, images[cut:]]),
                labels=torch.cat([labels[:cut], extra_labels, labels[cut:]]),
                groups=torch.cat([groups[:cut], torch.full((len(extra),), place), groups[cut:] + 1]),
            ),
            description=f"trial {trial}: {patients} patients, one more with {len(extra)} {description}",
        )


def _extra_patient(
    trial: int, fakes: Tensor, shape: tuple[int, int, int], generator: torch.Generator
) -> tuple[Tensor, str]:
    rows = _integer(1, 4, generator)
    scale = _SCALES[_integer(0, len(_SCALES) - 1, generator)]
    if trial % 8 == 4:
        exponent = _integer(20, 40, generator)
        image = torch.randn((1, *shape), generator=generator) * 2.0**exponent
        return torch.cat([image, -image]), f"images, one 2^{exponent} in size and its negative"
    if trial % 3 == 2:  # aligned with a fake that a correct step uses, or with one that it leaves in the pool
        sign = 1 if trial % 2 else -1
        target = fakes[_integer(0, len(fakes) - 1, generator)]
        factor = sign * (0.1 + 3 * float(torch.rand(1, generator=generator)))
        return (factor * target).expand(rows, *shape).clone(), f"images, {factor:.2g} x a fake"
    images = torch.randn((rows, *shape), generator=generator) * scale
    if trial % 10 == 9:
        images[0, 0, 0, 0] = (math.nan, math.inf)[trial // 10 % 2]
        return images, "images, one not finite"
    return images, f"images of scale {scale:g}"


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))
