"""Masks of an image: a mask file or boxes, as whole numbers on the image's own grid.

Mask files are as hostile as images: this runs in the worker. Readers of rarer formats are loaded when one comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.intake.folder import has_signature
from client.intake.readers.deep_png import is_deep_colour, read_deep_colour
from client.intake.task import Limits
from client.quarantine import Code, Refused

Mask = NDArray[np.int32]

_PNG_MODES = ("1", "L", "P", "I;16", "I")
_GREY_IN_COLOURS = ("RGB", "RGBA", "LA")  # as programs save a grey mask; colours that differ are no region numbers
_MAX_REGIONS = 65535


def read_mask(
    path: Path,
    *,
    shape: tuple[int, ...],
    frame_number: int,
    frames_total: int,
    limits: Limits,
    instance_uid: str = "",
) -> Mask:
    """Reads the mask of one frame; (h,w), 0 outside, k inside the k-th region.

    Args:
        path: PNG (of a file of one frame: it does not say on which it lies), NIfTI (the slice that `read_nifti` would
            cut) or DICOM segmentation, told by its first bytes.
        shape: (h,w) of the image.
        frame_number: the image's frame, from 0.
        frames_total: frames of the image's file.
        limits: what the file may cost.
        instance_uid: SENSITIVE: the image's SOPInstanceUID, "" if it has none.

    Raises:
        Refused: BAD_MASK. Decoders may raise anything else; the caller turns it into a code.
    """
    try:
        if not path.is_file() or path.stat().st_size > limits.file_bytes:
            mask = None
        elif has_signature(path, "dicom"):
            from client.intake.readers.segmentation import read_segmentation

            mask = read_segmentation(
                path,
                shape=shape,
                frame_number=frame_number,
                frames_total=frames_total,
                limits=limits,
                instance_uid=instance_uid,
            )
        elif has_signature(path, "nifti"):
            from client.intake.readers.nifti import read_slice

            mask = _whole(
                read_slice(path, frame_number=frame_number, frames_total=frames_total, file_bytes=limits.file_bytes)
            )
        else:
            mask = _read_png(path, shape) if frames_total == 1 else None
    except (Refused, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
        mask = None
    if mask is None or mask.shape != tuple(shape):
        raise Refused(Code.BAD_MASK)
    return mask


def draw_boxes(boxes: Sequence[Sequence[float]], shape: tuple[int, ...]) -> Mask:
    """Fills boxes; (h,w), 1 inside any of them.

    Args:
        boxes: (x0, y0, x1, y1) in px of the image, corners in any order; a box covers every pixel that it touches.
        shape: (h,w) of the image.

    Raises:
        Refused: BAD_MASK for a box that is not four finite numbers or lies wholly outside the image.
    """
    mask = np.zeros(tuple(shape), np.int32)
    height, width = mask.shape
    for box in boxes:
        corners = np.asarray(box, np.float64)
        if corners.shape != (4,) or not np.isfinite(corners).all():
            raise Refused(Code.BAD_MASK)
        left, right = np.sort(corners[[0, 2]]).clip(0, width)
        top, bottom = np.sort(corners[[1, 3]]).clip(0, height)
        if left >= right or top >= bottom:
            raise Refused(Code.BAD_MASK)
        mask[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 1
    return mask


def _read_png(path: Path, shape: tuple[int, ...]) -> Mask | None:
    with Image.open(path, formats=["PNG"]) as opened:
        if (opened.height, opened.width) != tuple(shape):
            return None
        if is_deep_colour(path):
            deep = read_deep_colour(path)
            return _grey(deep, alpha=deep.shape[2] == 4)
        if opened.mode in _GREY_IN_COLOURS:
            return _grey(np.asarray(opened), alpha=opened.mode != "RGB")
        return np.asarray(opened).astype(np.int32) if opened.mode in _PNG_MODES else None


def _grey(channels: NDArray[Any], *, alpha: bool) -> Mask | None:
    """The one channel of a picture (h,w,c) whose colours are equal and which is opaque; None for any other."""
    colours = channels[..., :-1] if alpha else channels
    opaque = not alpha or bool((channels[..., -1] == np.iinfo(channels.dtype).max).all())
    equal = bool((colours == colours[..., :1]).all())
    return colours[..., 0].astype(np.int32) if equal and opaque else None


def _whole(values: NDArray[np.float32]) -> Mask | None:
    """Region numbers out of floats; None where they are anything else."""
    rounded = np.rint(values)
    whole = bool((np.abs(values - rounded) < 1e-3).all()) and 0 <= rounded.min() <= rounded.max() <= _MAX_REGIONS
    return rounded.astype(np.int32) if whole else None
