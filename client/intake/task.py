"""What the parent and its workers say to each other: one file to prepare, how, at what cost, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.deidentify.headers import BurnedIn, HeaderRecord, Modality
from ghostnet.plan import ImageSpec


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one file: they keep a hostile or broken one from taking the machine."""

    file_bytes: int = 1 << 30
    pixels: int = 50_000_000  # samples: a 30-megapixel mammogram passes
    memory_bytes: int = 3 << 30  # address space on top of the idle worker's
    timeout_s: float = 60.0
    startup_s: float = 120.0  # imports of a fresh worker on a loaded machine


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every file of one intake is prepared with."""

    image: ImageSpec
    burned_in: BurnedIn
    trusted_modalities: tuple[Modality, ...]
    modalities: tuple[Modality, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image file, and its mask if it has one."""

    path: Path
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One image, ready for training.

    Attributes:
        planes: float32 (planes,size,size) in the plan's range: image channels, then masks.
        record: the header values that are kept.
        blanked: number of boxes of burned-in text that were blanked.
        patient_id: SENSITIVE: to be keyed, then dropped.
    """

    planes: NDArray[np.float32]
    record: HeaderRecord
    blanked: int
    patient_id: str = field(repr=False)
