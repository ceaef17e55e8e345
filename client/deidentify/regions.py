"""The region of the image on an ultrasound screen, as the scanner says, and blanking of the screen around it.

Sequence of Ultrasound Regions (0018,6011), PS3.3 section C.8.5.5: each region is a rectangle of columns X0..X1 and
rows Y0..Y1, both ends included. What lies outside all of them is the screen: patient, hospital, time, menus. Text
inside them (measurements, and on some scanners more) is left to the detector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.deidentify.text_detector import Box
from client.quarantine import Code, Refused

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Pixel = TypeVar("Pixel", bound=np.number)

MAX_REGIONS = 256
_CORNERS = ("RegionLocationMinX0", "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1")


def image_regions(dataset: Dataset) -> tuple[Box, ...]:
    """The rectangles of an ultrasound image that show the patient and not the screen.

    Args:
        dataset: the header; a wrong value in it is not believed.

    Returns:
        One box a region, inside the image; empty if the file names none.

    Raises:
        Refused: HEADER: too many regions, or one without corners, turned inside out or outside the image. The whole
            file goes, because blanking by part of a broken list would leave what the rest was to hide.
    """
    items = dataset.get("SequenceOfUltrasoundRegions")
    if not items:
        return ()
    columns, rows = dataset.get("Columns"), dataset.get("Rows")
    if len(items) > MAX_REGIONS or not (_is_count(columns) and _is_count(rows)):
        raise Refused(Code.HEADER)
    return tuple(_region(item, columns, rows) for item in items)


def blank_outside(pixels: NDArray[Pixel], regions: Sequence[Box]) -> NDArray[Pixel]:
    """The image with everything outside the regions overwritten by its darkest value; the same array if there is none.

    Args:
        pixels: (h,w) or (h,w,3), larger is brighter; left as it is.
        regions: from `image_regions`; empty for an image that is all image.
    """
    if not regions:
        return pixels
    inside = np.zeros(pixels.shape[:2], bool)
    for box in regions:
        inside[box.y0 : box.y1, box.x0 : box.x1] = True
    if inside.all():
        return pixels
    blanked = pixels.copy()
    blanked[~inside] = np.nanmin(pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels)
    return blanked


def _region(item: Dataset, columns: int, rows: int) -> Box:
    x0, y0, x1, y1 = (item.get(keyword) for keyword in _CORNERS)
    if not all(type(value) is int for value in (x0, y0, x1, y1)):
        raise Refused(Code.HEADER)
    # Some scanners count one column or row too many.
    x1, y1 = min(x1, columns - 1), min(y1, rows - 1)
    if not (0 <= x0 <= x1 and 0 <= y0 <= y1):
        raise Refused(Code.HEADER)
    return Box(x0=x0, y0=y0, x1=x1 + 1, y1=y1 + 1)


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0
