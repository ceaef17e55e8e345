"""The result of reading one file, of any format: decoded frames, a checked record, and the identifiers to look for.

Readers run in worker processes. Nothing here opens a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.deidentify.headers import HeaderRecord

if TYPE_CHECKING:  # the parent process has no use for OpenCV
    from client.deidentify.text_detector import Box

CT_WINDOW_HU = (-1000.0, 1000.0)
"""Air to dense bone. Other modalities have no absolute unit: their window is taken from the image's percentiles."""

_SCALED_CT = (-1.0, 255.0)  # what CT scaled to [0,1], [-1,1] or 8 bits lies in: neither air nor fat is among it
_MIN_HU_SPAN = 10.0  # less from darkest to brightest is a standard score, or a mask


def is_hounsfield(lowest: float, highest: float) -> bool:
    """False for the range of a CT that was scaled to other units, which the window of Hounsfield units draws flat.

    >>> is_hounsfield(-1024.0, 1800.0), is_hounsfield(0.0, 1.0), is_hounsfield(0.0, 255.0), is_hounsfield(-2.5, 3.1)
    (True, False, False, False)
    """
    scaled = _SCALED_CT[0] <= lowest and highest <= _SCALED_CT[1]
    return not scaled and highest - lowest >= _MIN_HU_SPAN


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One decoded image.

    Attributes:
        pixels: float32 (h,w), or (h,w,3) for colour; larger is brighter, padding darkest.
        valid: (h,w), False where the scanner padded; None if the source says nothing of padding.
        window: (low, high) in the unit of `pixels`, drawn black and white; None to take it from the image.
        spacing: height and width of a pixel, in any common unit; None where unknown, which means square.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_] | None = None
    window: tuple[float, float] | None = None
    spacing: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The frames and records taken from one file.

    Attributes:
        frames: at least one.
        frame_numbers: for each frame, its index in the file (from 0).
        frames_total: frames that the file holds.
        record: the few header values that are kept.
        patient_id: SENSITIVE: as written in the file, only to be keyed; "" when absent.
        instance_uid: SENSITIVE: what a mask refers to the image by; "" when absent.
        identifiers: SENSITIVE: texts of the header that no artefact may hold; see `bounded`.
        text_regions: pixels that show the image and not the screen around it; empty if the source does not say.
    """

    frames: tuple[Frame, ...]
    frame_numbers: tuple[int, ...]
    frames_total: int = 1
    record: HeaderRecord
    patient_id: str = field(repr=False)
    instance_uid: str = field(default="", repr=False)
    identifiers: tuple[str, ...] = field(default=(), repr=False)
    text_regions: tuple[Box, ...] = ()


def evenly_spaced(count: int, wanted: int) -> tuple[int, ...]:
    """Indices of `wanted` of `count` frames, each in the middle of its share; all of them if there are no more.

    >>> evenly_spaced(9, 1), evenly_spaced(9, 3), evenly_spaced(2, 4)
    ((4,), (1, 4, 7), (0, 1))
    """
    taken = max(0, min(count, wanted))
    return tuple((2 * i + 1) * count // (2 * taken) for i in range(taken))
