"""An NPZ file's rows as images, each scaled to the plan by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.config import SiteConfig
from client.deidentify.pseudonyms import patient_key
from client.intake.images import Row, Rows
from client.intake.readers.npz import NpzData, read_npz
from client.preprocess import preprocess, preprocess_mask
from client.quarantine import Code
from ghostnet.errors import DataError
from ghostnet.plan import ImageSpec
from ghostnet.progress import Progress


def array_rows(
    config: SiteConfig,
    image: ImageSpec,
    secret: bytes,
    progress: Progress,
    *,
    excluded: Set[str] = frozenset(),
    strict: bool = True,
) -> Rows:
    """Reads an NPZ file; uint8 0..255 becomes the plan's range, whatever values an image holds.

    Raises:
        DataError: see `read_npz`; or a patient has rows in both splits.
    """
    data = read_npz(config.data.path, image, strict=strict, validation=config.data.validation)
    n = len(data.images)
    taken: list[Row] = []
    refused: list[tuple[str, Code]] = []
    for i in range(n):
        if i % 256 == 0:
            progress("images", i, n)
        row = _row(data, i, image, secret, excluded)
        if isinstance(row, Code):
            refused.append((f"row {i}", row))
        else:
            taken.append(row)
    progress("images", n, n)
    return Rows(taken=_one_split(taken, config.data.path, strict), refused=refused, found=n)


def _row(data: NpzData, i: int, image: ImageSpec, secret: bytes, excluded: Set[str]) -> Row | Code:
    try:
        patient = patient_key(secret, data.patients[i])
    except ValueError:
        return Code.NO_PATIENT_ID
    if patient in excluded:
        return Code.EXCLUDED
    if data.labels[i] < 0:
        return Code.NO_LABEL
    if data.masks is not None and 1 < image.mask_channels < data.masks[i].max():  # a region that no channel takes
        return Code.BAD_MASK
    test = None if data.test is None else bool(data.test[i])
    return Row(
        planes=_planes(data, i, image),
        label=int(data.labels[i]),
        patient=patient,
        source=hashlib.sha256(data.images[i].tobytes()).digest(),
        test=test,
        drawn="mask" if image.mask_channels else "",
    )


def _planes(data: NpzData, i: int, image: ImageSpec) -> NDArray[np.float32]:
    planes = [preprocess(data.images[i].astype(np.float32), valid=None, image=image, window=(0.0, 255.0))]
    if data.masks is not None:
        mask, channels = data.masks[i], image.mask_channels
        inside = [mask != 0] if channels == 1 else [mask == k + 1 for k in range(channels)]
        planes += [preprocess_mask(region.astype(np.uint8), image) for region in inside]
    return np.concatenate(planes)


def _one_split(taken: list[Row], path: Path, strict: bool) -> list[Row]:
    """Every patient in one split; one with rows of both is an error or, if not strict, never trained on."""
    train, test = ({row.patient for row in taken if row.test is part} for part in (False, True))
    if train & test and strict:
        raise DataError(
            f"{path}: {len(train & test)} patient(s) have rows of both splits; put all rows of a patient in one"
        )
    return [replace(row, test=True) if row.patient in train & test else row for row in taken]
