"""PNG of 16 bits a channel in colour or with transparency: Pillow keeps the upper 8 of them only, OpenCV all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from client.quarantine import Code, Refused

Deep = NDArray[np.uint16]

_PNG = b"\x89PNG\r\n\x1a\n"
_DEPTH_AT = 24  # then the colour type (ISO/IEC 15948 section 11.2.1)
_GREY = 0

_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image.swapaxes(0, 1), 2),
    8: lambda image: np.rot90(image, 1),
}
"""By EXIF's orientation."""


def is_deep_colour(path: Path) -> bool:
    """True for a PNG of 16 bits a channel that is not plain grey.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        first = file.read(_DEPTH_AT + 2)
    return first.startswith(_PNG) and first[_DEPTH_AT:][:1] == b"\x10" and first[-1] != _GREY


def read_deep_colour(path: Path, orientation: int = 1) -> Deep:
    """Such a PNG as (h,w,3) in RGB, or (h,w,4) with its transparency; grey with transparency has three equal channels.

    Args:
        path: the file, whose size the caller has checked.
        orientation: EXIF's, which the image is turned by.

    Raises:
        Refused: TRUNCATED for one that cannot be decoded.
        OSError: it cannot be read.
    """
    decoded = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16 or decoded.ndim != 3:
        raise Refused(Code.TRUNCATED)
    coloured = decoded[..., [2, 1, 0, *range(3, decoded.shape[2])]]
    turned: Deep = np.ascontiguousarray(_UPRIGHT.get(orientation, np.asarray)(coloured))
    return turned
