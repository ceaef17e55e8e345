"""The step that hospitals take together: each gives a noised sum over its own patients, the coordinator adds them up.

    hospital i:   s_i = sum_p trunc(clip(g_p, C)) + N_Z(0, (sigma C)^2 / n)        p: its sampled patients
    coordinator:  g = sum_i s_i + sum_f clip(g_f, C)                               f: public fakes
                  D <- Adam(D, g / public denominator),  then G as everywhere      (`training.train_round`)

The s_i are whole steps of one public grid, so that masks can hide each of them and cancel exactly in the sum
(`secure_sum`). N_Z is the discrete Gaussian. The sum of n of them is not one itself, but almost: for std s grid steps
the log-ratio to N_Z(0, n s^2) is at most 10 sum_{k<n} exp(-2 pi^2 s^2 k / (k + 1)) (Kairouz, Liu and Steinke 2021,
arXiv:2102.06387, distributed discrete Gaussian), and s >= 2^19 here: the total is counted as one Gaussian release of
noise multiplier sigma, by the argument of privacy/noise.py.

The fakes are the coordinator's: their gradients are functions of public weights, no layer couples rows, and the sum is
the same wherever they are added. So a hospital needs the discriminator alone, never the generator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ghostnet.accounting.catalogue import POOLED_STEPS
from ghostnet.errors import PlanError
from ghostnet.plan import Plan
from ghostnet.privacy.mechanism import choose_rows, join_rows, sample_patients
from ghostnet.privacy.noise import Entropy, from_grid, grid_step
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import patient_gradients, private_views
from ghostnet.training.losses import discriminator_loss
from ghostnet.training.release import release_share

Part = tuple[torch.Tensor, torch.Tensor]


def noised_share(discriminator: nn.Module, cohort: Cohort, plan: Plan, *, entropy: Entropy) -> NDArray[np.int64]:
    """One hospital's clipped sum of one step, with its share of the noise, on the public grid.

    Args:
        discriminator: as the coordinator sent it; it may have been made to harm, and the guarantee is the same.
        cohort: SENSITIVE, the training patients.
        plan: resolved; `training.physical_rows` bounds the rows in memory at once.
        entropy: source of sampling and noise.

    Returns:
        int64 (d,): all parameters' sums in the network's order, in steps of the grid of `share_std`.

    Raises:
        PlanError: the discriminator cannot be trained privately, or the noise is not resolved.

    Guarantee:
        Unit: patient of this hospital, add/remove one. Sensitivity: clip_norm. By itself this is a sampled Gaussian
        mechanism (q, sigma / sqrt(n)): that is all that holds against whoever sees it unmasked, or knows the n - 1
        other shares. In the sum over n hospitals the mechanism is (q, sigma).
        Not covered: a patient of two hospitals (`repeat_for_hospitals` has that price).
    """
    privacy, std = plan.privacy, share_std(plan)
    device = next(discriminator.parameters()).device
    shapes = trained_parameters(discriminator)
    numbers = sum(shape.numel() for shape in shapes.values())
    gradients, row_loss = patient_gradients(discriminator, plan), discriminator_loss(plan.training.loss)
    sampled = sample_patients(cohort.patients, privacy.sampling_rate, entropy)  # (p,)
    index, groups = choose_rows(cohort.owners, sampled, privacy.images_per_patient, entropy)  # (r,), (r,)
    total = torch.zeros(numbers, dtype=torch.float64)
    for part, part_groups in _parts(index, groups, max(1, plan.training.physical_rows // privacy.views)):
        part, part_groups = (t.repeat_interleave(privacy.views) for t in (part, part_groups))  # (r K,)
        images = private_views(cohort.images[part], privacy.views, entropy)  # (r K, c, h, w)
        rows = join_rows(
            images=images.to(device),
            labels=cohort.labels[part].to(device),
            groups=part_groups.to(device),
            fakes=images[:0].to(device),
            fake_labels=cohort.labels[:0].to(device),
        )
        summed = gradients.clipped_sum(
            rows,
            row_loss,
            clip_norm=privacy.clip_norm,
            physical_rows=plan.training.physical_rows,
            grid_step=grid_step(std),
        )
        total += torch.cat([summed[name].flatten() for name in shapes]).cpu()
        del images, rows, summed
    return release_share(POOLED_STEPS, total, plan, entropy=entropy).numpy()


def share_std(plan: Plan) -> float:
    """Standard deviation of one hospital's noise, sigma C / sqrt(n); it fixes the grid that all hospitals round to.

    Raises:
        PlanError: the plan is not pooled, or its noise is not resolved.
    """
    hospitals, sigma = plan.federation.hospitals, plan.privacy.noise_multiplier
    if hospitals < 1 or not (math.isfinite(sigma) and sigma > 0):
        raise PlanError(
            f"noise_multiplier = {sigma} over federation.hospitals = {hospitals}: "
            "a pooled step needs both > 0; a step without noise is never released"
        )
    return POOLED_STEPS.noise_std(plan)


def trained_parameters(discriminator: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of the parameters that a sum is about, in its order."""
    return {name: p.shape for name, p in discriminator.named_parameters() if p.requires_grad}


def total_gradient(total: NDArray[np.int64], discriminator: nn.Module, *, std: float) -> dict[str, torch.Tensor]:
    """The unmasked total as gradients by parameter name, float32; public.

    Args:
        total: int64 (d,), the sum of all hospitals' shares.
        discriminator: gives names and shapes.
        std: of one hospital's noise (`share_std`), which fixes the grid.
    """
    values = from_grid(torch.from_numpy(total), std=std).float()
    shapes = trained_parameters(discriminator)
    parts = values.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _parts(index: torch.Tensor, groups: torch.Tensor, most: int) -> Iterator[Part]:
    """Rows in runs of whole patients, of about `most` rows each, their groups renumbered from 0."""
    sizes = torch.bincount(groups).tolist() if len(groups) else []
    start = stop = first = 0
    for number, size in enumerate(sizes):
        if stop > start and stop + size - start > most:
            yield index[start:stop], groups[start:stop] - first
            start, first = stop, number
        stop += size
    if stop > start:
        yield index[start:stop], groups[start:stop] - first
