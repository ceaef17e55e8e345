"""A reader that a contributor might add: PGM (Netpbm), grey pictures with comments in their header."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from client.deidentify.headers import HeaderRecord
from client.deidentify.survivors import bounded
from client.intake.readers.frames import Frame, Source
from client.quarantine import Code, Refused

_HEADER = re.compile(rb"P5\s+((?:#[^\n]*\n\s*)*)(\d{1,5})\s+(\d{1,5})\s+(\d{1,5})\s")


def read_pgm(path: Path, *, modality: str, file_bytes: int, pixels: int) -> Source:
    """One grey picture; sizes are checked before anything is allocated."""
    if path.stat().st_size > file_bytes:
        raise Refused(Code.TOO_LARGE)
    data = path.read_bytes()
    header = _HEADER.match(data)
    if not header:
        raise Refused(Code.HEADER)
    width, height, brightest = (int(header[place]) for place in (2, 3, 4))
    if not 0 < width * height <= pixels or not 0 < brightest < 256:
        raise Refused(Code.TOO_LARGE if width * height > pixels else Code.HEADER)
    if len(data) < header.end() + width * height:
        raise Refused(Code.TRUNCATED)
    values = np.frombuffer(data, np.uint8, width * height, header.end()).reshape(height, width)
    if values.min() == values.max():
        raise Refused(Code.FLAT)
    record = HeaderRecord(
        modality=modality,
        rows=height,
        columns=width,
        samples=1,
        photometric="MONOCHROME2",
        bits_stored=8,
        transfer_syntax="PGM",
        view_position="",
    )
    frame = Frame(pixels=values.astype(np.float32))
    texts = [line.decode("latin-1").lstrip("# ") for line in header[1].splitlines()]
    return Source(frames=(frame,), frame_numbers=(0,), record=record, patient_id="", identifiers=bounded(texts))
