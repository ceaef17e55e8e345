"""The size that a compressed frame states by itself: a decoder allocates by that, whatever the DICOM header says."""

from __future__ import annotations

_J2K_START = b"\xff\x4f\xff\x51"  # SOC, then SIZ (ISO/IEC 15444-1 section A.5.1)
_BOXES = 1 << 12  # bytes of a JP2 file's boxes before its codestream
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}  # TEM, restart markers and SOI stand alone (ISO/IEC 10918-1 table B.1)
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


def stated_precision(stream: bytes) -> int | None:
    """Bits a sample that a JPEG or JPEG-LS codestream gives (ISO/IEC 10918-1 section B.2.2); None if it gives none.

    Args:
        stream: one frame, without its fragment headers; its beginning is enough.
    """
    at = _frame_header(stream)
    return None if at is None else stream[at + 4]


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
