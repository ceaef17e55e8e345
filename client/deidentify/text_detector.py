"""The network that finds lines of text: PP-OCRv4's detector, which ships inside the rapidocr-onnxruntime wheel.

Nothing is read and nothing is downloaded: a picture goes in, boxes with a score come out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostnet.errors import MissingDependencyError

STRONG = 0.5  # score from which a box is text by itself: the package's own threshold
WEAK = 0.3  # score from which a box is text if it continues other text
TALLEST = 0.15  # of the image's shorter side; a taller "letter" is a lung or a bone
TALL = 0.1  # of the image's shorter side; what is taller must be a long line to be text
TALL_TURNED = 0.08  # of the image's shorter side: a stack of ribs or vertebrae looks like a line of turned letters

_UNIT = 32  # px; the network wants multiples of it
_SMALLEST = 3  # px; a box no wider than this is a speck
_Detector = Callable[[NDArray[np.uint8]], tuple[NDArray[Any], list[float]]]


@dataclass(frozen=True, kw_only=True)
class Box:
    """Pixels x0 <= x < x1 and y0 <= y < y1 of the image it was found in."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def height(self) -> int:
        """Of the line: the shorter side, since text may be turned."""
        return min(self.x1 - self.x0, self.y1 - self.y0)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A box and how sure the network is of it, in [0,1]."""

    box: Box
    score: float


def detect(view: NDArray[np.uint8], shortest_side: float, *, turned: bool = False) -> list[Found]:
    """Lines of upright text of one view, down to `WEAK`.

    Args:
        view: (h,w) uint8, either polarity; letters of about 8 to 100 px.
        shortest_side: of the whole image at the view's scale, in px; what is tall beside it is no letter.
        turned: whether the view was turned by 90 degrees.

    Raises:
        MissingDependencyError: the detector is not installed.
    """
    height, width = view.shape
    found = []
    for points, score in zip(*_detector()(view), strict=True):
        if not _can_be_text(points, shortest_side, turned):
            continue
        (x0, y0), (x1, y1) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0)) + 1
        box = Box(x0=max(0, int(x0)), y0=max(0, int(y0)), x1=min(width, int(x1)), y1=min(height, int(y1)))
        if box.height > _SMALLEST:
            found.append(Found(box=box, score=float(score)))
    return found


def detect_turned(view: NDArray[np.uint8], shortest_side: float) -> list[Found]:
    """Lines of text that reads upwards or downwards; boxes are of the view as it was given."""
    height, width = view.shape
    # np.rot90 turns counter-clockwise: row of the turned view = width - 1 - x, column = y.
    return [
        Found(
            box=Box(x0=max(0, width - b.y1), y0=b.x0, x1=width - b.y0, y1=min(height, b.x1)),
            score=found.score,
        )
        for found in detect(np.ascontiguousarray(np.rot90(view)), shortest_side, turned=True)
        for b in (found.box,)
    ]


def _can_be_text(points: NDArray[Any], shortest_side: float, turned: bool) -> bool:
    width, height = (float(np.linalg.norm(points[0] - points[i])) for i in (1, 3))
    low, high = sorted((width, height))
    if high > 2 * low and (height > width) != turned:
        return low <= TALL_TURNED * shortest_side
    return low <= TALL * shortest_side or (low <= TALLEST * shortest_side and high >= 3 * low)


@cache
def _detector() -> _Detector:
    try:
        import rapidocr_onnxruntime
        from rapidocr_onnxruntime.ch_ppocr_det.text_detect import TextDetector
    except ImportError:
        raise MissingDependencyError(
            'the detector of burned-in text is not installed; run "make install" (rapidocr-onnxruntime 1.4.4), '
            'or set [deidentify].burned_in = "trust" in site.toml if no image carries text'
        ) from None
    network = TextDetector(_settings(Path(rapidocr_onnxruntime.__file__).parent))
    prepare = network.get_preprocess(_UNIT)

    def run(view: NDArray[np.uint8]) -> tuple[NDArray[Any], list[float]]:
        # In parts, because the package's own call drops the scores.
        maps = network.infer(prepare(np.repeat(view[..., None], 3, axis=2)))[0]
        boxes, scores = network.postprocess_op(maps, view.shape)
        return boxes.astype(np.float32), scores

    return run


def _settings(package: Path) -> dict[str, object]:
    return {
        "model_path": str(package / "models" / "ch_PP-OCRv4_det_infer.onnx"),
        # One thread: hospitals decode in several processes, and a thread pool in each starves the others.
        "intra_op_num_threads": 1,
        "inter_op_num_threads": 1,
        "use_cuda": False,
        "use_dml": False,
        # Views come at the size they are to be looked at; the network itself only needs multiples of 32.
        "limit_side_len": _UNIT,
        "limit_type": "min",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        # Lower than the package's 0.3 and 0.5, for the weak ends of lines; the rest is its own (config.yaml of 1.4.4).
        "thresh": 0.2,
        "box_thresh": WEAK,
        "max_candidates": 1000,
        "unclip_ratio": 1.6,
        "use_dilation": True,
        "score_mode": "fast",
    }
