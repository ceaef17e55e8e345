"""One PNG or JPEG file to an array, in the worker process: nothing of the file but decoded pixels goes on.

Text chunks, EXIF, comments, colour profiles, thumbnails and trailing bytes are left behind with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from client.deidentify.headers import HeaderRecord
from client.deidentify.survivors import bounded
from client.intake.folder import has_signature
from client.intake.readers.deep_png import is_deep_colour, read_deep_colour
from client.intake.readers.frames import Frame, Source
from client.quarantine import Code, Refused

FORMATS = {"PNG": "PNG", "JPEG": "JPEG file", "MPO": "JPEG file"}
"""Pillow's name of a format, and ours in `TRANSFER_SYNTAXES`. MPO is a JPEG with previews after it, as phones write."""

_OPENED = ("PNG", "JPEG")  # Pillow tells MPO from JPEG by itself

_SAMPLES = {"1": 1, "L": 1, "I;16": 1, "I": 1, "LA": 2, "P": 4, "RGB": 3, "RGBA": 4}  # "P" may turn out as RGBA
_GREY_MODES = ("I;16", "I", "L", "1")
_ORIENTATION = 0x0112  # EXIF's tag


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
        with Image.open(path, formats=_OPENED) as opened:
            return _source(opened, path, modality, pixels)
    except Image.DecompressionBombError:
        raise Refused(Code.TOO_LARGE) from None
    except OSError:  # Pillow's word for data that ends too early or is not what it should be
        raise Refused(Code.TRUNCATED) from None


def _source(opened: Image.Image, path: Path, modality: str, pixels: int) -> Source:
    if opened.format not in FORMATS or (opened.format != "MPO" and getattr(opened, "n_frames", 1) != 1):
        raise Refused(Code.FRAMES)
    if opened.mode not in _SAMPLES:  # CMYK: its inks are stored either way round and nothing says which
        raise Refused(Code.HEADER)
    if opened.width * opened.height * _SAMPLES[opened.mode] > pixels:
        raise Refused(Code.TOO_LARGE)
    opened.load()
    deep = is_deep_colour(path)
    syntax, bits, identifiers = FORMATS[opened.format], 16 if deep else _bits(opened.mode), bounded(_texts(opened))
    if deep:
        values, valid = _coloured(read_deep_colour(path, int(opened.getexif().get(_ORIENTATION, 1))))
    else:
        values, valid = _values(ImageOps.exif_transpose(opened))
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
    frame = Frame(pixels=values, valid=valid, window=(0.0, float(2**bits - 1)) if colour else None)
    return Source(frames=(frame,), frame_numbers=(0,), record=record, patient_id="", identifiers=identifiers)


def _bits(mode: str) -> int:
    return {"1": 1, "I;16": 16, "I": 16}.get(mode, 8)


def _values(image: Image.Image) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """Float32 (h,w) or (h,w,3), and where it is not wholly transparent; None if it is opaque everywhere."""
    transparent = image.info.get("transparency")
    if image.mode in _GREY_MODES and transparent is None:
        return np.asarray(image).astype(np.float32), None
    if image.mode in ("I;16", "I"):  # one grey stands for transparent
        pixels = np.asarray(image).astype(np.float32)
        valid = pixels != transparent
        return np.where(valid, pixels, np.float32(0)), None if valid.all() else valid
    return _coloured(np.asarray(image.convert("RGBA")))


def _coloured(channels: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """The same for (h,w,3) or (h,w,4), whose fourth channel is how opaque a pixel is."""
    colours, opaque = channels[..., :3], np.iinfo(channels.dtype).max
    pixels, valid = colours.astype(np.float32), None
    if channels.shape[2] == 4 and (channels[..., 3] < opaque).any():
        alpha = channels[..., 3:]
        pixels *= alpha.astype(np.float32) / opaque
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
