"""Synthetic images as a torch data set, for a `DataLoader`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from ghostnet.sampler.sampler import Samples


class SyntheticImages(Dataset[tuple[torch.Tensor, ...]]):
    """Images that were drawn, in memory: item i is (image, label), or (image, label, mask) where there are masks.

    Args:
        samples: as `Sampler.draw` gives them.
    """

    def __init__(self, samples: Samples) -> None:
        drawn = (samples.images, samples.labels, samples.masks)
        self._columns = tuple(column for column in drawn if column is not None)

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(column[index] for column in self._columns)
