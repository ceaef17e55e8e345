"""Releases that are one noisy sum over all patients: the warm start's embeddings, the utility figures' counts."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ghostnet.errors import PlanError
from ghostnet.privacy.noise import Entropy, add_gaussian, grid_step

_CHUNK_NUMBERS = 1 << 22  # numbers of the vectors in work at once: 32 MiB in float64


def noisy_sum(
    vectors: torch.Tensor | Iterable[torch.Tensor], *, norm_bound: float, noise_multiplier: float, entropy: Entropy
) -> torch.Tensor:
    """Clips each patient's vector, sums, and adds Gaussian noise once.

    Rows are clipped in float64, rounded toward zero to the noise's grid and summed as integers, so the sum is exact and
    one patient's part of it does not depend on the others, as it would in a floating-point sum (Casacuberta et al.,
    arXiv 2207.10635).

    Args:
        vectors: float (patients, d); one row a patient. A row with a NaN or an infinity counts as zero. There may be
            no rows: the release is then noise alone. Or such matrices one after the other, at least one, for cohorts
            whose vectors do not fit in memory.
        norm_bound: PUBLIC bound on a row's L2 norm; longer rows are scaled down to it.
        noise_multiplier: PUBLIC sigma; the noise has standard deviation norm_bound * sigma.
        entropy: where the noise comes from.

    Returns:
        Float32 (d,): the noisy sum, not divided by anything.

    Raises:
        PlanError: norm_bound or noise_multiplier is not a finite number > 0.
        ValueError: vectors holds something else than floating-point matrices of one width.

    Guarantee:
        Unit: patient, add/remove one. Sensitivity: norm_bound (L2). One Gaussian release of this noise multiplier.
        Assumes: one row holds all that a patient contributes and is a function of that patient's data and of public
        numbers alone, to the bit (blocks.py); d, norm_bound and noise_multiplier are public.
        Not covered: charging the ledger, which the caller does first; the time taken, which grows with the patients.
    """
    for name, value in (("norm_bound", norm_bound), ("noise_multiplier", noise_multiplier)):
        if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
            raise PlanError(f"{name} = {value!r} is not a finite number > 0; nothing is released without noise")
    std = norm_bound * noise_multiplier
    step = grid_step(std)
    total: torch.Tensor | None = None
    for block in [vectors] if isinstance(vectors, torch.Tensor) else vectors:
        _check_block(block, total)
        if total is None:
            total = torch.zeros(block.shape[1], dtype=torch.int64)
        most = min(_CHUNK_NUMBERS // max(1, len(total)), int(2.0**52 * step / norm_bound))  # float64 adds them exactly
        for part in block.split(max(1, most)):
            total += _in_steps(part, norm_bound, step).sum(0).clamp_(-(2.0**62), 2.0**62).long()
    if total is None:
        raise ValueError("no matrix of vectors was given; give at least one, which may have no rows")
    return add_gaussian(total, std=std, entropy=entropy)


def _check_block(block: torch.Tensor, total: torch.Tensor | None) -> None:
    width = "d" if total is None else str(len(total))
    if block.dim() != 2 or not block.is_floating_point() or width not in ("d", str(block.shape[1])):
        raise ValueError(f"vectors is {block.dtype} of shape {tuple(block.shape)}; give floats (patients, {width})")


def _in_steps(rows: torch.Tensor, norm_bound: float, step: float) -> torch.Tensor:
    """Whole numbers (rows, d) in float64, each row of norm <= norm_bound / step; a row that is not finite is zero."""
    rows = rows.detach().cpu().double()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # (rows, 1)
    if not bool(norms.isfinite().all()):
        finite = rows.isfinite().all(dim=1, keepdim=True)
        # Entries that large come from float64 only; without the clamp their squares would overflow. Rows whose norm is
        # finite stay as they are: what a patient adds must not depend on whether another's overflows.
        rows = rows.masked_fill(~finite, 0.0)
        rows = torch.where(norms.isfinite(), rows, rows.clamp(-1e150, 1e150))
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    factors = (norm_bound / norms).clamp_(max=1.0) / step  # the step is a power of two
    steps: torch.Tensor = (rows * factors).trunc_()
    return steps
