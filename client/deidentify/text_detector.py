"""The network that finds lines of text: PP-OCRv4's detector (mobile), which ships inside the wheel of rapidocr 3.8.4.

Nothing is read and nothing is downloaded: a picture goes in, boxes with a score come out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostnet.errors import MissingDependencyError, install_line, not_installed

MODEL = "ch_PP-OCRv4_det_mobile.onnx"
MODEL_SHA256 = "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"
"""Another network has other figures, and approvals hold for what this one was seen to blank (intake/approvals.py)."""

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
        import rapidocr
        from onnxruntime import InferenceSession, SessionOptions
        from rapidocr.ch_ppocr_det.utils import DBPostProcess, DetPreProcess
    except ImportError as error:
        raise MissingDependencyError(
            f"{not_installed('rapidocr', 'ocr')}; it finds burned-in text. "
            'Or set [deidentify].burned_in = "trust" in site.toml if no image carries text'
        ) from error
    options = SessionOptions()
    # One thread: hospitals decode in several processes, and a thread pool in each starves the others.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = _read_model(Path(rapidocr.__file__).parent / "models" / MODEL)
    network = InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
    (entrance,) = network.get_inputs()
    # Views come at the size they are to be looked at; the network itself only needs multiples of 32.
    prepare = DetPreProcess(_UNIT, "min")
    # Thresholds lower than the package's 0.3 and 0.5, for the weak ends of lines; the rest is its own (config.yaml).
    to_boxes = DBPostProcess(thresh=0.2, box_thresh=WEAK, unclip_ratio=1.6, use_dilation=True, score_mode="fast")

    def run(view: NDArray[np.uint8]) -> tuple[NDArray[Any], list[float]]:
        # In parts, because the package's own call sorts the boxes and leaves the scores as they were.
        (maps,) = network.run(None, {entrance.name: prepare(np.repeat(view[..., None], 3, axis=2))})
        boxes, scores = to_boxes(maps, view.shape)
        return boxes.astype(np.float32), scores

    return run


def _read_model(path: Path) -> bytes:
    """The network's file.

    Raises:
        MissingDependencyError: it is missing, or another one than the figures of this project are of.
    """
    model = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        raise MissingDependencyError(f"{path} is not the network that finds burned-in text; {install_line('ocr')}")
    return model
