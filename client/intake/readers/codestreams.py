"""A compressed frame's own words on its size, bits and colours, which the DICOM header may contradict.

A decoder allocates by the size that the frame states.
"""

from __future__ import annotations

from typing import Literal

_J2K_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ (ISO/IEC 15444-1 section A.5.1)
_BOXES = 1 << 12  # bytes of a JP2 file's boxes before its codestream
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}  # TEM, restart markers and SOI stand alone (ISO/IEC 10918-1 table B.1)
_JFIF = b"\xff\xe0\x00\x10JFIF\0"
_ADOBE = b"\xff\xee\x00\x0eAdobe"  # then version, two flags and the transform (ISO/IEC 10918-6 section 6.5.3)
_JPEG_SIZES = {0xF7, *range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF of JPEG-LS, and of JPEG


def stated_size(stream: bytes, syntax: str) -> tuple[int, int, int] | None:
    """(rows, columns, samples) that a codestream gives; None where it gives none that could be found.

    Args:
        stream: one frame, without its fragment headers.
        syntax: a name of `TRANSFER_SYNTAXES`.
    """
    if syntax.startswith(("JPEG 2000", "HTJ2K")):
        return _j2k_size(stream)
    if not syntax.startswith("JPEG"):
        return None
    at = _frame_header(stream)
    if at is None:
        return None
    height, width = (int.from_bytes(stream[at + i : at + i + 2], "big") for i in (5, 7))
    return height, width, stream[at + 9]


def stated_precision(stream: bytes, syntax: str) -> int | None:
    """Bits a sample that a codestream gives (ISO/IEC 10918-1 section B.2.2, 15444-1 A.5.1); None if it gives none.

    Args:
        stream: one frame, without its fragment headers; its beginning is enough.
        syntax: a name of `TRANSFER_SYNTAXES`.
    """
    if syntax.startswith(("JPEG 2000", "HTJ2K")):
        at = stream.find(_J2K_START, 0, _BOXES)
        return (stream[at + 42] & 0x7F) + 1 if 0 <= at < len(stream) - 42 else None
    start = _frame_header(stream) if syntax.startswith("JPEG") else None
    return None if start is None else stream[start + 4]


def stated_colours(stream: bytes) -> Literal["RGB", "YBR_FULL", ""]:
    """The colours of a lossy JPEG of three components; "" where the stream says nothing of them.

    Its component names, its chroma at half the resolution (RGB is never written so), and its markers (JFIF; Adobe's,
    PS3.5 section 8.2.1) are believed before a header.

    Args:
        stream: one frame, without its fragment headers.
    """
    at = _frame_header(stream)
    if at is None or stream[at + 9] != 3 or len(stream) < at + 19:
        return ""
    names, sampling = stream[at + 10 : at + 19 : 3], stream[at + 11 : at + 19 : 3]
    if names.upper() == b"RGB":
        return "RGB"
    marker = _colour_marker(stream[:at])
    return "YBR_FULL" if len(set(sampling)) > 1 or marker == "YBR_FULL" else marker


def is_adobe(stream: bytes) -> bool:
    """True for a JPEG with Adobe's marker, by which some decoders convert colours unasked."""
    at = _frame_header(stream)
    return at is not None and _ADOBE in stream[:at]


def _colour_marker(front: bytes) -> Literal["RGB", "YBR_FULL", ""]:
    at = front.find(_ADOBE)
    if _JFIF in front:
        return "YBR_FULL"
    if at < 0 or len(front) < at + 14:
        return ""
    return "YBR_FULL" if front[at + 13 + 2] else "RGB"


def _j2k_size(stream: bytes) -> tuple[int, int, int] | None:
    at = stream.find(_J2K_START, 0, _BOXES)
    if at < 0 or len(stream) < at + 42:
        return None
    right, bottom, left, top = (int.from_bytes(stream[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in range(4))
    return bottom - top, right - left, int.from_bytes(stream[at + 40 : at + 42], "big")


def _frame_header(stream: bytes) -> int | None:
    """The offset of the frame header in a JPEG or JPEG-LS codestream."""
    at = 0
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker in _JPEG_SIZES:
            return at
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _NO_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return None
