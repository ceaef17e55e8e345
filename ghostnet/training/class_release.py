"""A release by class: each patient's vectors in a block for each class, and the classes' means after the noise.

The warm start and the perceptual release share it. The vector of one image with label y is one_hot(y) (x) [f, c]: the
image's features f, and its mass c. A patient's vector is the mean of their images' vectors. Class shares are private:
they are never assumed, the released mass of a class, noise included, divides its block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

MASS_WEIGHT = 0.2  # c: at noise std s, a class's mass is released with an error of s / c patients
FEATURE_WEIGHT = math.sqrt(1 - MASS_WEIGHT**2)  # norm that features have left beside the mass
MIN_SHARE = 0.01  # a class whose released share is below this is treated as having it; noise can make it negative


@dataclass(frozen=True, kw_only=True)
class ClassMeans:
    """Class means and masses from a release, by post-processing alone.

    Attributes:
        means: (labels, d) noisy mean of the features of a class's images.
        shares: (labels,) noisy share of each class among patients, at least MIN_SHARE, summing to 1.
    """

    means: torch.Tensor
    shares: torch.Tensor


def with_mass(features: torch.Tensor) -> torch.Tensor:
    """[f, c]: (b, d) features of norm at most FEATURE_WEIGHT -> (b, d + 1), every row of norm at most 1."""
    return torch.cat([features, features.new_full((len(features), 1), MASS_WEIGHT)], dim=1)


def iter_patient_blocks(
    embed: Callable[[slice], Iterator[torch.Tensor]],
    owners: torch.Tensor,
    row_labels: torch.Tensor,
    *,
    patients: int,
    labels: int,
    width: int,
    most_numbers: int,
    dtype: torch.dtype,
) -> Iterator[torch.Tensor]:
    """One vector a patient: the mean over their rows of one_hot(label) (x) embedding. SENSITIVE.

    Args:
        embed: vectors (some rows, width) of a run of rows, in their order, each a function of its row alone.
        owners: int64 (rows,), ascending: the patient of each row.
        row_labels: int64 (rows,).
        patients: how many there are; one without rows is a zero vector.
        labels: classes.
        width: of a block, d + 1.
        most_numbers: of vectors in memory at once, at least one patient's. What it takes does not grow with the
            patients.
        dtype: of the sums.

    Yields:
        (some patients, labels * width), at least once; every row of norm at most 1 where every embedding's is.
    """
    most = max(1, most_numbers // (labels * width))  # patients at once
    for start in range(0, max(1, patients), most):
        stop = min(start + most, patients)
        begin, end = torch.searchsorted(owners, torch.tensor([start, stop])).tolist()
        sums = torch.zeros((stop - start) * labels, width, dtype=dtype)
        cells = (owners[begin:end] - start) * labels + row_labels[begin:end]
        done = 0
        for vectors in embed(slice(begin, end)):
            sums.index_add_(0, cells[done : done + len(vectors)], vectors.cpu())  # rows of a cell in their order
            done += len(vectors)
        counts = torch.bincount(owners[begin:end] - start, minlength=stop - start).clamp(min=1)  # (stop - start,)
        yield sums.reshape(stop - start, labels * width).div_(counts[:, None])


def class_masses(blocks: torch.Tensor) -> torch.Tensor:
    """Released mass of each class, at least MIN_SHARE of all: (labels, width) -> (labels,)."""
    mass = blocks[:, -1] / MASS_WEIGHT
    return mass.clamp(min=MIN_SHARE * mass.sum())


def means_of(blocks: torch.Tensor) -> ClassMeans | None:
    """Class means and class shares of a noised sum, (labels, width); None where the noise swallowed all mass."""
    if float(blocks[:, -1].sum()) <= 0:
        return None
    mass = class_masses(blocks)
    return ClassMeans(means=blocks[:, :-1] / mass[:, None], shares=mass / mass.sum())
