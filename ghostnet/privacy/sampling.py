"""Poisson sampling of patients by secure coins, and of at most so many images of each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ghostnet.errors import PlanError
from ghostnet.privacy.noise import Entropy


def sample_patients(patients: int, sampling_rate: float, entropy: Entropy) -> Tensor:
    """Draws each patient independently with probability `sampling_rate` (Poisson sampling).

    Returns:
        int64, ascending indices of the sampled patients; often another number of them, sometimes none. SENSITIVE.

    Guarantee:
        Unit: patient. The amplification by sampling holds while nobody outside learns who was drawn, so the coins
        come from `entropy` and never from a seed. Not covered: fixed-size or shuffled batches.
    """
    if not 0 < sampling_rate <= 1:
        raise PlanError(f"sampling_rate = {sampling_rate} is not in (0, 1]; set [privacy].sampling_rate in plan.toml")
    return torch.from_numpy(np.flatnonzero(entropy.uniform(patients) < sampling_rate).astype(np.int64))


def choose_rows(owners: Tensor, sampled: Tensor, images_per_patient: int, entropy: Entropy) -> tuple[Tensor, Tensor]:
    """Picks at most `images_per_patient` images of each sampled patient, uniformly without replacement.

    Args:
        owners: int64 (n,), the patient of each image.
        sampled: int64, from `sample_patients`.
        images_per_patient: m, at least 1.
        entropy: source of the choice.

    Returns:
        (row_index (r,), groups (r,)): which images, and the number 0.. of the patient each belongs to. A sampled
        patient without images has no group.
    """
    if images_per_patient < 1:
        raise PlanError(f"images_per_patient = {images_per_patient} is less than 1; set it in [privacy] of plan.toml")
    candidates = torch.isin(owners, sampled).nonzero().flatten().cpu().numpy()
    patient = owners.cpu().numpy()[candidates]
    order = np.lexsort((entropy.uniform(len(candidates)), patient))  # by patient, then at random
    _, first, groups = np.unique(patient[order], return_index=True, return_inverse=True)
    kept = np.arange(len(order)) - first[groups] < images_per_patient if len(order) else np.zeros(0, bool)
    return torch.from_numpy(candidates[order][kept]), torch.from_numpy(groups.astype(np.int64)[kept])
