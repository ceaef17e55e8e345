"""Conformance of a private step to the accounted mechanism: its noise, its sampling, its rows, its public values.

Each check takes the piece under test as a function over tensors and returns a `Finding`. They need no patient data:
random inputs do. Statistical checks allow 5 standard errors, a false alarm below 1e-6 for each statistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghostnet.audit.findings import Finding
from ghostnet.audit.sensitivity import ClippedSumStep, StepInput
from ghostnet.privacy.mechanism import RowLoss
from ghostnet.privacy.noise import Entropy
from ghostnet.training.cohort import Cohort

NoisedSumStep = Callable[[StepInput, float, float, Entropy], Tensor]
"""(what the step reads, clip_norm, noise_multiplier, entropy) -> the noised sum, flat (d,)."""

PatientSampler = Callable[[int, float, int, Entropy], Sequence[Tensor]]
"""(patients, sampling_rate, steps, entropy) -> the sampled patients of each step."""

PublicValues = Callable[[Cohort], Mapping[str, object]]
"""Whatever a hospital tells, or lets the released sum depend on, beside the sum itself."""

_ERRORS = 5.0
FALSE_ALARM = 1e-6  # of one statistic at so many standard errors; of a Gaussian it is 6e-7


def check_noise_scale(
    step: NoisedSumStep,
    given: StepInput,
    *,
    clip_norm: float,
    noise_multiplier: float,
    entropy: Entropy,
    steps: int = 8,
) -> Finding:
    """Two releases of the same sum differ by Gaussian noise of exactly the claimed size.

    Args:
        step: the whole step under test, on the sum's scale.
        given: its input.
        clip_norm: C.
        noise_multiplier: sigma that was accounted.
        entropy: the step's randomness.
        steps: pairs of releases to compare.
    """
    pairs = [[step(given, clip_norm, noise_multiplier, entropy).double() for _ in range(2)] for _ in range(steps)]
    noise = torch.cat([a - b for a, b in pairs]) / math.sqrt(2) / (clip_norm * noise_multiplier)
    std, error = float(noise.square().mean().sqrt()), 1 / math.sqrt(2 * noise.numel())
    fourth = float(noise.pow(4).mean()) / max(std, 1e-30) ** 4
    scaled = abs(std - 1) <= _ERRORS * error
    normal = abs(fourth - 3) <= _ERRORS * math.sqrt(96 / noise.numel())
    return Finding(
        check="noise scale",
        passed=scaled and normal,
        value=std,
        detail=f"noise is {std:.4f} x the claimed size (1 +- {_ERRORS * error:.4f}), kurtosis {fourth:.2f} (3)",
        false_alarm=2 * FALSE_ALARM,
    )


def check_noise_fresh(
    step: NoisedSumStep,
    given: StepInput,
    *,
    clip_norm: float,
    noise_multiplier: float,
    entropy: Entropy,
    steps: int = 8,
) -> Finding:
    """No two steps share noise: releases of the same sum are not correlated around their mean.

    Noise that is the same at each step is averaged away by whoever subtracts two releases.
    """
    releases = torch.stack([step(given, clip_norm, noise_multiplier, entropy).double() for _ in range(steps)])
    exact = step(given, clip_norm, 1e-6, entropy).double()  # the sum, as good as bare
    noise = (releases - exact) / (clip_norm * noise_multiplier)  # (steps, d)
    size = noise.square().mean()
    worst = max(
        abs(float((noise[:-lag] * noise[lag:]).mean() / size)) * math.sqrt(noise[lag:].numel())
        for lag in range(1, min(4, steps))
    )
    return Finding(
        check="noise freshness",
        passed=worst <= _ERRORS,  # NaN, from no noise at all, does not pass
        value=worst,
        detail=f"noise of different steps is correlated by {worst:.1f} standard errors (at most {_ERRORS:g})",
        false_alarm=3 * FALSE_ALARM,
    )


def check_against_definition(
    step: ClippedSumStep, discriminator: nn.Module, row_loss: RowLoss, given: StepInput, *, clip_norm: float
) -> Finding:
    """The sum before noise is what the definition gives, one patient and one fake at a time with plain autograd."""
    found = step(given, clip_norm).double()
    expected = definition(discriminator, row_loss, given, clip_norm=clip_norm)
    off = float(torch.linalg.vector_norm(found - expected)) / clip_norm
    limit = 1e-4 * max(1.0, float(torch.linalg.vector_norm(expected)) / clip_norm)
    return Finding(
        check="definition",
        passed=off <= limit,
        value=off,
        detail=f"the sum is {off:.3g} x C away from the sum of clipped means, patient by patient (at most {limit:.1g})",
    )


def definition(discriminator: nn.Module, row_loss: RowLoss, given: StepInput, *, clip_norm: float) -> Tensor:
    """Sum over patients and fakes of the clipped gradient of the mean loss over rows; flat float64 (d,)."""
    parameters = [p for p in discriminator.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    fakes = [torch.tensor([i]) for i in range(given.fake_count)]
    patients = [(given.groups == g).nonzero().flatten() for g in torch.arange(len(torch.bincount(given.groups)))]
    for rows, real in [(rows, True) for rows in patients] + [(rows, False) for rows in fakes]:
        images, labels = (given.images, given.labels) if real else (given.fakes, given.fake_labels)
        logits = discriminator(images[rows], labels[rows])
        loss = row_loss(logits, torch.full_like(logits, real, dtype=torch.bool)).mean()
        gradient = torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, parameters)])
        norm = float(torch.linalg.vector_norm(gradient))
        if math.isfinite(norm):
            total += gradient * min(1.0, clip_norm / max(norm, 1e-300))
    return total


def check_network_keeps_rows_apart(discriminator: nn.Module, images: Tensor, labels: Tensor) -> Finding:
    """No logit depends on another row's image: one pixel of influence is enough to fail."""
    images = images.detach().clone().requires_grad_()
    logits = discriminator(images, labels)
    worst = 0.0
    for i in range(len(images)):
        (gradient,) = torch.autograd.grad(logits.flatten()[i], images, retain_graph=True)
        others = torch.arange(len(images)) != i
        worst = max(worst, float(gradient[others].abs().max()))
    return Finding(
        check="network keeps rows apart",
        passed=worst == 0.0,
        value=worst,
        detail=f"largest derivative of a row's logit by another row's pixel: {worst:.3g} (must be 0)",
    )


def check_loss_keeps_rows_apart(row_loss: RowLoss, *, rows: int = 8, seed: int = 0) -> Finding:
    """No row's loss depends on another row's logit."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, generator=generator)
    real = torch.arange(rows) % 2 == 0
    derivatives = torch.func.jacrev(lambda x: row_loss(x, real))(logits)  # (r, r)
    worst = float((derivatives - derivatives.diagonal().diag()).abs().max())
    return Finding(
        check="loss keeps rows apart",
        passed=worst == 0.0,
        value=worst,
        detail=f"largest derivative of a row's loss by another row's logit: {worst:.3g} (must be 0)",
    )


def check_poisson_sampling(
    sampler: PatientSampler, *, patients: int, sampling_rate: float, steps: int, entropy: Entropy
) -> Finding:
    """Each patient joins each step independently with probability q; shuffled or fixed-size batches do not.

    Compared with their exact Poisson-sampling values: the mean participation, the variance of the batch size, the
    variance of a patient's total, and how often a patient is in two consecutive steps.
    """
    joined = np.zeros((steps, patients))
    for t, sampled in enumerate(sampler(patients, sampling_rate, steps, entropy)):
        np.add.at(joined[t], sampled.numpy(), 1.0)
    q, once = sampling_rate, sampling_rate * (1 - sampling_rate)
    size, total = joined.sum(1), joined.sum(0)
    both = joined[1:] * joined[:-1]
    z = {
        "mean participation": (joined.mean() - q) / math.sqrt(once / joined.size),
        "variance of the batch size": _variance_z(size, patients * once, once * patients),
        "variance of a patient's total": _variance_z(total, steps * once, once * steps),
        "consecutive steps": (both.mean() - q * q) / math.sqrt((q**2 + 2 * q**3) / both.size),
        "at most once a step": 0.0 if joined.max() <= 1 else math.inf,
    }
    name, worst = max(z.items(), key=lambda item: abs(item[1]))
    return Finding(
        check="Poisson sampling",
        passed=abs(worst) <= _ERRORS,
        value=worst,
        detail=f"{name} is {worst:+.1f} standard errors from Poisson sampling at q = {q:g} (at most {_ERRORS:g})",
        false_alarm=4 * FALSE_ALARM,
    )


def _variance_z(counts: np.ndarray, variance: float, once_total: float) -> float:
    """Standard errors between the observed variance and a binomial one; kurtosis excess is at most 1 / variance."""
    error = variance * math.sqrt((2 + 1 / once_total) / len(counts))
    return (float(counts.var(ddof=1)) - variance) / error


def check_public_values(values: PublicValues, cohort: Cohort) -> Finding:
    """Everything public is the same with one patient more: q, denominators, steps, sizes, schedules."""
    larger = Cohort(
        images=torch.cat([cohort.images, cohort.images[:1]]),
        labels=torch.cat([cohort.labels, cohort.labels[:1]]),
        owners=F.pad(cohort.owners, (0, 1), value=cohort.patients),
        patients=cohort.patients + 1,
    )
    before, after = dict(values(cohort)), dict(values(larger))
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Finding(
        check="public values",
        passed=not changed,
        value=float(len(changed)),
        detail=f"one patient more changes {', '.join(changed) if changed else 'nothing'} (must change nothing)",
    )
