"""One PNG or JPEG file to an array, in the worker process: nothing of the file but decoded pixels goes on.

Text chunks, EXIF, comments, colour profiles, thumbnails and trailing bytes are left behind with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.deidentify.headers import HeaderRecord
from client.deidentify.survivors import bounded
from client.intake.folder import has_signature
from client.intake.readers.frames import Frame, Source
from client.quarantine import Code, Refused

FORMATS = {"PNG": "PNG", "JPEG": "JPEG file"}
"""Pillow's name of a format, and ours in `TRANSFER_SYNTAXES`."""

_SAMPLES = {"1": 1, "L": 1, "I;16": 1, "I": 1, "LA": 2, "P": 4, "RGB": 3, "RGBA": 4}  # "P" may turn out as RGBA
_FULL_SCALE = (0.0, 255.0)


def read_picture(path: Path, *, modality: str, file_bytes: int, pixels: int) -> Source:
    """Decodes a PNG or JPEG file.

    The image is turned as its EXIF orientation says: boxes and masks refer to what a person sees. Grey stored as
    colour is grey. Where it is transparent it is black and counts as not valid. A colour picture keeps its levels
    (window 0 to 255); a grey one is windowed from its own percentiles, as radiographs in DICOM are.

    Args:
        path: the file.
        modality: what site.toml says that it is.
        file_bytes: larger files are refused unread.
        pixels: images of more samples (rows x columns x channels) are refused before they are allocated.

    Raises:
        Refused: with a code. The decoder may raise anything else; the caller turns it into a code.
    """
    try:
        too_large, signed = path.stat().st_size > file_bytes, has_signature(path, "images")
    except OSError:
        raise Refused(Code.UNREADABLE) from None
    if too_large or not signed:
        raise Refused(Code.TOO_LARGE if too_large else Code.NOT_PICTURE)
    try:
        with Image.open(path, formats=tuple(FORMATS)) as opened:
            return _source(opened, modality, pixels)
    except Image.DecompressionBombError:
        raise Refused(Code.TOO_LARGE) from None
    except OSError:  # Pillow's word for data that ends too early or is not what it should be
        raise Refused(Code.TRUNCATED) from None


def _source(opened: Image.Image, modality: str, pixels: int) -> Source:
    if opened.format not in FORMATS or getattr(opened, "n_frames", 1) != 1:
        raise Refused(Code.FRAMES)
    if opened.mode not in _SAMPLES:  # CMYK: its inks are stored either way round and nothing says which
        raise Refused(Code.HEADER)
    if opened.width * opened.height * _SAMPLES[opened.mode] > pixels:
        raise Refused(Code.TOO_LARGE)
    opened.load()
    syntax, bits, identifiers = FORMATS[opened.format], _bits(opened.mode), bounded(_texts(opened))
    upright = ImageOps.exif_transpose(opened)
    values, valid = _values(upright)
    known = values if valid is None else values[valid]
    if not known.size or float(known.min()) == float(known.max()):
        raise Refused(Code.FLAT)
    colour = values.ndim == 3
    record = HeaderRecord(
        modality=modality,
        rows=values.shape[0],
        columns=values.shape[1],
        samples=3 if colour else 1,
        photometric="RGB" if colour else "MONOCHROME2",
        bits_stored=bits,
        transfer_syntax=syntax,
        view_position="",
    )
    frame = Frame(pixels=values, valid=valid, window=_FULL_SCALE if colour else None)
    return Source(frames=(frame,), frame_numbers=(0,), record=record, patient_id="", identifiers=identifiers)


def _bits(mode: str) -> int:
    return {"1": 1, "I;16": 16, "I": 16}.get(mode, 8)


def _values(image: Image.Image) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Float32 (h,w) or (h,w,3), and where it is not wholly transparent; None if it is opaque everywhere."""
    if image.mode in ("I;16", "I", "L", "1") and ("transparency" not in image.info or image.mode != "L"):
        return np.asarray(image).astype(np.float32), None
    coloured = np.asarray(image.convert("RGBA"))
    colours, alpha = coloured[..., :3], coloured[..., 3:]
    pixels = colours.astype(np.float32)
    if (alpha < 255).any():
        pixels *= alpha.astype(np.float32) / 255
    valid = None if (alpha > 0).all() else alpha[..., 0] > 0
    grey = bool((colours == colours[..., :1]).all())
    return (np.ascontiguousarray(pixels[..., 0]) if grey else pixels), valid


def _texts(image: Image.Image) -> Iterator[str]:
    """SENSITIVE: text chunks, comments and EXIF values."""
    for value in (*image.info.values(), *image.getexif().values()):
        if isinstance(value, str):
            yield value
        elif isinstance(value, bytes):
            yield value[:4096].decode("latin-1")
