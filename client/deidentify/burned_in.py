"""Text burned into pixels: find it, blank it, look again until none is found.

The header cannot be trusted to say whether there is any, and which words identify somebody cannot be told from the
words, so every text is blanked, view markers included. The detector is the text-detection network (PP-OCRv4) that
ships inside the rapidocr-onnxruntime wheel; nothing is read, nothing is downloaded, and no text is ever kept: boxes
only. There is no cheaper test in front of it, because none was found that could not miss text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from client.preprocess import denoise, detect_noise
from ghostnet.errors import DataError, MissingDependencyError

Pixel = TypeVar("Pixel", bound=np.generic)

ROUNDS = 5  # detections, the last of which must be empty
SHORTEST_SIDE = 512  # px; smaller images are enlarged to it: at 256 px the detector misses half of 9-px letters
LARGEST_TILE = 1024  # px; larger images are looked at in tiles, and again at half the size for large letters
TILE_OVERLAP = 128  # px; letters up to this height are whole in at least one tile
TALLEST = 0.15  # of the view's shorter side; a taller "letter" is a lung or a bone
TALL = 0.1  # of the view's shorter side; what is taller must be a long line to be text
RENDER_PERCENTILES = (0.1, 99.9)  # what the detector is shown; a hot pixel must not make everything else black


@dataclass(frozen=True, kw_only=True)
class Box:
    """Pixels x0 <= x < x1 and y0 <= y < y1 of the image it was found in."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, kw_only=True)
class Blanked:
    """An image whose text was overwritten."""

    pixels: NDArray[Any]  # same shape and dtype as what was given
    boxes: tuple[Box, ...]  # what was overwritten; empty if no text was found
    clean: bool  # True if the last look found no text; an image that is not clean must not be used


def find_text(pixels: NDArray[np.uint8]) -> list[Box]:
    """Finds text, upright and turned by 90 degrees, of any content.

    Args:
        pixels: (h,w) uint8, either polarity.

    Returns:
        One box a line or word. Boxes are tight; see `blank_text` for the margin.

    Raises:
        DataError: another shape or dtype.
        MissingDependencyError: the detector is not installed.
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        raise DataError(f"text is looked for in (h,w) uint8, not {pixels.shape} {pixels.dtype}; render the image first")
    boxes: list[Box] = []
    for tile, scale, left, top in [view for look in _looks(pixels) for view in _views(look)]:
        height = tile.shape[0]
        tile = _even_contrast(tile)
        upright = _detect(tile)
        # np.rot90 turns counter-clockwise: row of the turned view = width - 1 - x, column = y.
        turned = [
            Box(x0=tile.shape[1] - b.y1, y0=b.x0, x1=tile.shape[1] - b.y0, y1=min(height, b.x1))
            for b in _detect(np.ascontiguousarray(np.rot90(tile)))
        ]
        boxes += [_to_image(box, scale, left, top, pixels.shape) for box in (*upright, *turned)]
    return boxes


def blank_text(pixels: NDArray[Pixel]) -> Blanked:
    """Overwrites every text, with a margin, and looks again until none is found or `ROUNDS` is reached.

    A box is filled with the median of the pixels just outside it, so that blanking draws no new edge for the detector
    or for a network to learn.

    Args:
        pixels: (h,w) or (h,w,3), any real dtype; left as it is.

    Raises:
        DataError: another shape, or no finite pixel.
        MissingDependencyError: the detector is not installed (the image was NOT checked).

    Guarantee:
        `clean` means that the detector finds nothing more, not that nothing is there. Of 39 short texts of 7 to 22 px
        drawn on a real chest image of 256 px, 37 were covered; of 165 annotations in 16 files of an outside set, 150.
        Not covered: small letters under acquisition noise, letters that blend into what is behind them, handwriting.
    """
    blanked = pixels.copy()
    done: list[Box] = []
    for _ in range(ROUNDS):
        found = [_with_margin(box, pixels.shape) for box in find_text(render(blanked))]
        if not found:
            return Blanked(pixels=blanked, boxes=tuple(done), clean=True)
        for box in found:
            _fill(blanked, box)
        done += found
    return Blanked(pixels=blanked, boxes=tuple(done), clean=False)


def render(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """What the detector is shown of an image: grey, 0.1 to 99.9 percentile; (h,w) uint8."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise DataError(f"an image needs shape (h,w) or (h,w,3), not {pixels.shape}; give one frame, grey or RGB")
    grey = pixels.astype(np.float32) if pixels.ndim == 2 else pixels.astype(np.float32).mean(axis=2)
    finite = np.isfinite(grey)
    if not finite.any():
        raise DataError("the image has no finite pixel; leave it out")
    low, high = (float(v) for v in np.percentile(grey[finite], RENDER_PERCENTILES))
    if low == high:
        low, high = float(grey[finite].min()), float(grey[finite].max())
    scaled = (np.where(finite, grey, low) - low) * (255 / (high - low or 1.0))
    rendered: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return rendered


def _looks(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """The image, and again without salt and pepper where it has any: impulses hide letters from the detector."""
    pixels01 = (pixels / np.float32(255)).astype(np.float32)
    noise = detect_noise(pixels01)
    if not noise.impulse_fraction:
        return [pixels]
    cleaned = denoise(pixels01, dataclasses.replace(noise, sigma=0.0))
    return [pixels, np.rint(cleaned * 255).astype(np.uint8)]


def _views(pixels: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], float, int, int]]:
    """Yields (tile, scale, left, top): the image at its own size or enlarged, then at half sizes, cut into tiles."""
    scale = max(1.0, SHORTEST_SIDE / min(pixels.shape))
    # A very long strip is not enlarged without limit.
    scale = min(scale, max(1.0, 4 * SHORTEST_SIDE / max(pixels.shape)))
    while True:
        level = pixels if scale == 1 else _resize(pixels, scale)
        for top in _starts(level.shape[0]):
            for left in _starts(level.shape[1]):
                yield level[top : top + LARGEST_TILE, left : left + LARGEST_TILE], scale, left, top
        if max(level.shape) <= LARGEST_TILE:
            return
        scale /= 2


def _even_contrast(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Local mean to mid-grey and local spread to a fixed one: white letters on white bone become letters again."""
    spread = min(view.shape) / 24
    level = view.astype(np.float32)
    level -= cv2.GaussianBlur(level, (0, 0), spread)
    local = np.sqrt(cv2.GaussianBlur(level * level, (0, 0), spread))
    # 6 grey levels: flatter than that is noise, and is not blown up to full contrast.
    evened: NDArray[np.uint8] = np.clip(128 + level / np.maximum(local, 6) * 50, 0, 255).astype(np.uint8)
    return evened


def _starts(length: int) -> range:
    return range(0, max(1, length - TILE_OVERLAP), LARGEST_TILE - TILE_OVERLAP)


def _resize(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(pixels, size, interpolation=method).astype(np.uint8)


def _to_image(box: Box, scale: float, left: int, top: int, shape: tuple[int, ...]) -> Box:
    return Box(
        x0=max(0, int((box.x0 + left) / scale)),
        y0=max(0, int((box.y0 + top) / scale)),
        x1=min(shape[1], int(np.ceil((box.x1 + left) / scale))),
        y1=min(shape[0], int(np.ceil((box.y1 + top) / scale))),
    )


def _with_margin(box: Box, shape: tuple[int, ...]) -> Box:
    """Half a line's height on every side: ascenders, and the ends of words that the detector cut off."""
    margin = 2 + (min(box.x1 - box.x0, box.y1 - box.y0) + 1) // 2
    return Box(
        x0=max(0, box.x0 - margin),
        y0=max(0, box.y0 - margin),
        x1=min(shape[1], box.x1 + margin),
        y1=min(shape[0], box.y1 + margin),
    )


def _fill(pixels: NDArray[Any], box: Box) -> None:
    outer = pixels[max(0, box.y0 - 2) : box.y1 + 2, max(0, box.x0 - 2) : box.x1 + 2]
    around = np.ones(outer.shape[:2], bool)
    around[min(2, box.y0) :, min(2, box.x0) :][: box.y1 - box.y0, : box.x1 - box.x0] = False
    ring = outer[around]
    value = np.median(ring, axis=0) if len(ring) else np.zeros(pixels.shape[2:])
    pixels[box.y0 : box.y1, box.x0 : box.x1] = np.asarray(value).astype(pixels.dtype)


def _detect(pixels: NDArray[np.uint8]) -> list[Box]:
    """Upright boxes of one view."""
    corners = _detector()(np.repeat(pixels[..., None], 3, axis=2))[0]
    boxes = []
    for points in corners if corners is not None else ():
        if not _can_be_text(points, min(pixels.shape)):
            continue
        (x0, y0), (x1, y1) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0)) + 1
        boxes.append(Box(x0=int(x0), y0=int(y0), x1=int(x1), y1=int(y1)))
    return boxes


def _can_be_text(points: NDArray[Any], shortest_side: int) -> bool:
    sides = np.linalg.norm(points[0] - points[1]), np.linalg.norm(points[0] - points[3])
    low, high = float(min(sides)), float(max(sides))
    return low <= TALL * shortest_side or (low <= TALLEST * shortest_side and high >= 3 * low)


@cache
def _detector() -> Callable[[NDArray[np.uint8]], tuple[Any, float]]:
    try:
        import rapidocr_onnxruntime
        from rapidocr_onnxruntime.ch_ppocr_det import TextDetector
    except ImportError:
        raise MissingDependencyError(
            'the detector of burned-in text is not installed; run "make install" (rapidocr-onnxruntime 1.4.4), '
            'or set [deidentify].burned_in = "trust" in site.toml if no image carries text'
        ) from None
    model = Path(rapidocr_onnxruntime.__file__).parent / "models" / "ch_PP-OCRv4_det_infer.onnx"
    detector: Callable[[NDArray[np.uint8]], tuple[Any, float]] = TextDetector(
        {
            "model_path": str(model),
            # One thread: hospitals decode in several processes, and a thread pool in each starves the others.
            "intra_op_num_threads": 1,
            "inter_op_num_threads": 1,
            "use_cuda": False,
            "use_dml": False,
            # Enlarging is done in `_views`; the network itself only needs multiples of 32.
            "limit_side_len": 32,
            "limit_type": "min",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            # From here on the package's own settings (config.yaml of 1.4.4).
            "thresh": 0.3,
            "box_thresh": 0.5,
            "max_candidates": 1000,
            "unclip_ratio": 1.6,
            "use_dilation": True,
            "score_mode": "fast",
        }
    )
    return detector
