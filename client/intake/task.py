"""The messages between the parent and its workers: one file to prepare, how, at what cost, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.deidentify.headers import HeaderRecord
from client.modalities import BurnedIn, Modality
from ghostnet.plan import ImageSpec

THUMBNAIL_SIDE = 512  # px; a person must be able to see whether letters are left


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one file: they keep a hostile or broken one from taking the machine."""

    file_bytes: int = 1 << 30
    pixels: int = 50_000_000  # samples decoded of one file, all its frames together: a 30-megapixel mammogram passes
    memory_bytes: int = 3 << 30  # address space on top of the idle worker's
    timeout_s: float = 8.0  # to read and decode a small file and its mask: what hostile bytes can stretch
    timeout_s_per_mb: float = 1.0  # more for each 2^20 bytes of the file: JPEG 2000 decodes some 4 MB a second
    timeout_most_s: float = 120.0  # whatever the size
    prepare_s: float = 60.0  # for each frame, once decoded: text is looked for in a large one for many seconds
    startup_s: float = 120.0  # imports of a fresh worker on a loaded machine


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that every file of one intake is prepared with."""

    image: ImageSpec
    burned_in: BurnedIn
    trusted_modalities: tuple[Modality, ...]
    modalities: tuple[Modality, ...]
    held_modalities: tuple[Modality, ...] = ()  # refused as HELD unless the task is approved
    modality: str = ""  # of pictures and NIfTI, which do not say it
    frames_per_file: int = 1  # of several, evenly spaced
    thumbnails: bool = False  # for a person who reviews what blanking did


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image file, and what the label table says lies on it.

    Attributes:
        path: the file.
        format: how it is read: an entry of `client.formats.FORMATS`.
        mask: PNG, NIfTI or DICOM segmentation of the same size.
        boxes: (x0, y0, x1, y1) in px of the source image, drawn as a mask where the plan has mask channels; none if
            someone looked and there is nothing, None if nothing is known.
        approved: a person has seen it and lets it pass although its modality is held.
    """

    path: Path
    format: str = "dicom"
    mask: Path | None = None
    boxes: tuple[tuple[float, float, float, float], ...] | None = None
    approved: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One file, ready for training.

    Attributes:
        planes: float32 (frames,planes,size,size) in the plan's range: image channels, then masks.
        record: the header values that are kept.
        blanked: for each frame, the boxes of burned-in text that were blanked.
        patient_id: SENSITIVE: to be keyed, then dropped.
        identifiers: SENSITIVE: texts of the source's header, to be looked for in what is kept, then dropped.
        thumbnails: SENSITIVE: uint8 (frames,2,side,side), each frame before and after blanking; None if not asked for.
    """

    planes: NDArray[np.float32]
    record: HeaderRecord
    blanked: tuple[int, ...]
    patient_id: str = field(repr=False)
    identifiers: tuple[str, ...] = field(default=(), repr=False)
    thumbnails: NDArray[np.uint8] | None = field(default=None, repr=False)
