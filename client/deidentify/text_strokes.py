"""Places where letters may be: a cheap test that decides where the network looks closely.

Letters are strokes a few pixels wide, many of them close together, brighter or darker than what is beside them.
Morphological opening and closing remove such strokes and leave bones, organs and their edges; where much was removed
within a small window, letters may be. Noise and fine anatomy pass too: this test only rules out smooth ground.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from client.deidentify.text_detector import Box

Bytes = NDArray[np.uint8]

STROKE = 7  # px; narrower strokes are removed: those of letters up to some 40 px
WINDOW = 11  # px; within which strokes are counted
DENSITY = 0.15  # of the window's pixels belong to strokes
EDGES = 0.1  # of the window's pixels begin or end a stroke, along rows and along columns: a wire does it along one
MIN_CONTRAST = 16  # grey levels between a stroke and what is beside it
ABOVE_TYPICAL = 3.0  # times the image's typical difference: what noise removes everywhere is no stroke
MARGIN = 16  # px around a place: the network wants to see what letters stand out from
CROWDED = 0.9  # of the image: above that it is looked at whole, which costs less than its parts


def stroke_places(pixels: Bytes, *, contrast: float = MIN_CONTRAST) -> list[Box]:
    """Rectangles that cover everything that letters up to some 40 px could be.

    Args:
        pixels: (h,w) uint8 at its own size.
        contrast: grey levels between a stroke and what is beside it.
    """
    dense = np.zeros(pixels.shape, bool)
    for removed in _removed(pixels):
        strokes = (removed > max(contrast, ABOVE_TYPICAL * float(np.median(removed)))).astype(np.uint8)
        across, down = np.zeros_like(strokes), np.zeros_like(strokes)
        across[:, 1:] = strokes[:, 1:] != strokes[:, :-1]
        down[1:] = strokes[1:] != strokes[:-1]
        dense |= (_share(strokes) > DENSITY) & (np.minimum(_share(across), _share(down)) > EDGES)
    places = _joined(_rectangles(dense))
    if sum(_area(box) for box in places) > CROWDED * pixels.size:
        places = [Box(x0=0, y0=0, x1=pixels.shape[1], y1=pixels.shape[0])]
    return places


def _share(marked: Bytes) -> NDArray[np.float32]:
    size = (WINDOW, WINDOW)
    return cv2.boxFilter(marked.astype(np.float32), -1, size, borderType=cv2.BORDER_REFLECT).astype(np.float32)


def _removed(pixels: Bytes) -> Iterator[Bytes]:
    """What opening takes away (bright strokes) and what closing fills in (dark ones)."""
    square = np.ones((STROKE, STROKE), np.uint8)
    yield cv2.morphologyEx(pixels, cv2.MORPH_TOPHAT, square).astype(np.uint8)
    yield cv2.morphologyEx(pixels, cv2.MORPH_BLACKHAT, square).astype(np.uint8)


def _rectangles(dense: NDArray[np.bool_]) -> list[Box]:
    reach = np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8)
    _, _, parts, _ = cv2.connectedComponentsWithStats(cv2.dilate(dense.astype(np.uint8), reach))
    return [Box(x0=int(x), y0=int(y), x1=int(x + w), y1=int(y + h)) for x, y, w, h, _ in parts[1:]]


def _joined(boxes: list[Box]) -> list[Box]:
    """Two are one wherever that is no larger than both."""
    joined: list[Box] = []
    for given in boxes:
        box = given
        while near := next((o for o in joined if _area(_hull(box, o)) <= _area(box) + _area(o)), None):
            joined.remove(near)
            box = _hull(box, near)
        joined.append(box)
    return joined


def _hull(a: Box, b: Box) -> Box:
    return Box(x0=min(a.x0, b.x0), y0=min(a.y0, b.y0), x1=max(a.x1, b.x1), y1=max(a.y1, b.y1))


def _area(box: Box) -> int:
    return (box.x1 - box.x0) * (box.y1 - box.y0)
