"""Patients as tensors: what a hospital trains and tests on, and all that the mechanism ever sees of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ghostnet.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Images of one hospital, grouped by patient.

    Every field is SENSITIVE, the number of patients included: nothing that leaves the hospital is computed from it
    except through a mechanism.

    Attributes:
        images: float32 (n, planes, h, w), in the plan's range; mask planes follow the image channels.
        labels: int64 (n,), index into the plan's labels.
        owners: int64 (n,), the patient of each image, in 0..patients-1.
        patients: number of patients.
    """

    images: torch.Tensor
    labels: torch.Tensor
    owners: torch.Tensor
    patients: int

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.dim() != 4 or self.labels.shape != (n,) or self.owners.shape != (n,):
            raise DataError(
                f"a cohort needs images (n,c,h,w) with n labels and n owners, not {tuple(self.images.shape)}, "
                f"{tuple(self.labels.shape)} and {tuple(self.owners.shape)}"
            )
        if n and not (0 <= int(self.owners.min()) and int(self.owners.max()) < self.patients):
            raise DataError(f"a cohort of {self.patients} patients has an owner outside 0..{self.patients - 1}")
