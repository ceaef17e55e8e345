"""One DICOM file to arrays, in the worker process: nothing of the file but decoded pixels goes on.

What is drawn is the same for every file of a modality: MONOCHROME1 is inverted, rescale or modality LUT applied,
padding marked. The file's own values of interest (VOI window or LUT) are NOT used, because they differ from vendor to
vendor and were chosen for one reader: CT in Hounsfield units has one fixed window, colour its full scale, and
everything else the percentiles of its own pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut  # type: ignore[attr-defined]

from client.deidentify.headers import HeaderRecord, read_record
from client.deidentify.regions import image_regions
from client.deidentify.survivors import identifiers_of
from client.formats import PREAMBLE, SIGNATURE
from client.intake.patient_id import patient_id
from client.intake.readers.frames import CT_WINDOW_HU, Frame, Source, evenly_spaced
from client.intake.readers.pixeldata import channels, check_pixel_data, decode_frames, frame_count, full_scale
from client.quarantine import Code, Refused

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 1 << 16  # where a transfer syntax is looked for; one further back meets the worker's own limits
_PIECE = 1 << 16
_SMALL_INFLATED = 4 << 20  # bytes that any deflated file may have
_MAX_DEFLATION_RATIO = 200  # inflated bytes for one deflated; images have 2 to 60

_MAX_PIXEL_SIDES = 10.0  # sides of a pixel; more is no image plane
_SQUARE = 0.01  # sides that differ less than this share are a rounding of the writer's

# Where an enhanced object keeps what a plain one has at its top (PS3.3 section C.7.6.16.2).
_MACROS = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}


class _Mapped(mmap):
    """A mapped file in which, as in an open one, a place beyond the end can be sought: nothing is read there."""

    def seek(self, pos: int, whence: int = 0, /) -> None:
        base = (0, self.tell(), len(self))[whence]
        super().seek(max(0, min(base + pos, len(self))))


def read_dicom(path: Path, *, file_bytes: int, pixels: int, frames: int = 1) -> Source:
    """Decodes a DICOM file.

    Args:
        path: the file.
        file_bytes: larger files are refused unread.
        pixels: files of which more samples (frames x rows x columns x channels) would be decoded, and files that
            inflate to more than 8 bytes for each of them or to 200 times their size, are refused before they are
            allocated.
        frames: of several frames, as many are decoded, evenly spaced.

    Returns:
        The frames with anything on them: one that is all of one value is left out while others are not.

    Raises:
        Refused: with a code. Decoders may raise anything else; the caller turns it into a code.
    """
    try:
        if path.stat().st_size > file_bytes:
            raise Refused(Code.TOO_LARGE)
        with path.open("rb") as file:
            if file.read(PREAMBLE + len(SIGNATURE))[PREAMBLE:] != SIGNATURE:
                raise Refused(Code.NOT_DICOM)
            # Mapped, because reading a file allocates whatever length an element claims before it finds the end.
            with _Mapped(file.fileno(), 0, access=ACCESS_READ) as data:
                _check_inflated(path, data, limit=8 * pixels)
                dataset, syntax = _read(data)
    except OSError:
        raise Refused(Code.UNREADABLE) from None
    patient = patient_id(dataset)  # before anything decodes it as the file declares
    record = read_record(dataset, syntax)
    total = frame_count(dataset)
    numbers = evenly_spaced(total, frames)
    if len(numbers) * record.rows * record.columns * channels(record) > pixels:
        raise Refused(Code.TOO_LARGE)
    check_pixel_data(dataset, record, frames=total)
    decoded = zip(numbers, decode_frames(dataset, record, numbers, frames=total), strict=True)
    taken = {number: frame for number, stored in decoded if (frame := _frame(dataset, record, stored, number))}
    if not taken:
        raise Refused(Code.FLAT)
    return Source(
        frames=tuple(taken.values()),
        frame_numbers=tuple(taken),
        frames_total=total,
        record=record,
        patient_id=patient,
        instance_uid=str(dataset.get("SOPInstanceUID") or ""),
        identifiers=identifiers_of(dataset),
        text_regions=image_regions(dataset) if record.modality == "US" else (),
    )


def _check_inflated(path: Path, data: mmap, *, limit: int) -> None:
    """Inflates a deflated file piece by piece and throws the pieces away: a few kilobytes can hold gigabytes."""
    if data.find(_DEFLATED, 0, _META_BYTES) < 0:
        return
    try:
        meta = read_file_meta_info(path)
    except (InvalidDicomError, EOFError):
        raise Refused(Code.UNREADABLE) from None
    if str(meta.get("TransferSyntaxUID", "")).encode() != _DEFLATED:
        return
    # The meta group's length element is the first after the signature; what follows the group is deflated.
    at = PREAMBLE + len(SIGNATURE) + 12 + int(meta.FileMetaInformationGroupLength)
    limit = min(limit, max(_SMALL_INFLATED, _MAX_DEFLATION_RATIO * len(data)))
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflater.eof:
        piece = inflater.unconsumed_tail or data[at : at + _PIECE]
        at += 0 if inflater.unconsumed_tail else len(piece)
        if not piece:
            return
        total += len(inflater.decompress(piece, 1 << 20))
        if total > limit:
            raise Refused(Code.TOO_LARGE)


def _read(data: mmap) -> tuple[Dataset, str]:
    """The data set and its transfer syntax."""
    try:
        dataset = pydicom.dcmread(cast(BinaryIO, data))
    except (EOFError, InvalidDicomError):
        raise Refused(Code.TRUNCATED) from None
    return dataset, str(dataset.file_meta.get("TransferSyntaxUID", ""))


def _frame(dataset: Dataset, record: HeaderRecord, stored: NDArray[Any], number: int) -> Frame | None:
    """One frame in its modality's unit; None if all its known pixels have one value."""
    spacing = _spacing(dataset, number)
    if channels(record) == 3:
        if stored.min() == stored.max():
            return None
        window: tuple[float, float] | None = full_scale(stored, record)
        return Frame(pixels=stored.astype(np.float32), window=window, spacing=spacing)
    valid = _valid(dataset, stored)
    known = stored if valid is None else stored[valid]
    if not known.size or (lowest := known.min()) == (highest := known.max()):
        return None
    ends = np.array([lowest, highest], stored.dtype)
    values, ends = (_modality_units(dataset, part, number) for part in (stored, ends))
    if not np.isfinite(ends).all():  # the rescale lies: it was finite for whole numbers of 16 bits
        raise Refused(Code.HEADER)
    window = CT_WINDOW_HU if record.modality == "CT" and _in_hounsfield(dataset, number) else None
    if record.photometric == "MONOCHROME1":
        np.negative(values, out=values)
        ends, window = -ends, None if window is None else (-window[1], -window[0])
    if valid is not None:
        values[~valid] = ends.min()
    return Frame(pixels=values, valid=valid, window=window, spacing=spacing)


def _valid(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    if dataset.get("PixelPaddingValue") is None:
        return None
    first = _stored_value(dataset, "PixelPaddingValue")
    limit = first
    if dataset.get("PixelPaddingRangeLimit") is not None:
        limit = _stored_value(dataset, "PixelPaddingRangeLimit")
    valid: NDArray[np.bool_] = (stored < min(first, limit)) | (stored > max(first, limit))
    return valid


def _stored_value(dataset: Dataset, keyword: str) -> int:
    value = dataset.get(keyword)
    if not isinstance(value, int):
        raise Refused(Code.HEADER)
    # Many writers give the unsigned form of a negative padding value.
    return value - 65536 if dataset.get("PixelRepresentation") == 1 and value > 32767 else value


def _modality_units(dataset: Dataset, stored: NDArray[Any], number: int) -> NDArray[np.float32]:
    if dataset.get("ModalityLUTSequence"):
        table: NDArray[np.float32] = apply_modality_lut(stored, dataset).astype(np.float32)
        return table
    slope, intercept = _factor(dataset, number, "RescaleSlope", 1.0), _factor(dataset, number, "RescaleIntercept", 0.0)
    if slope == 0:
        raise Refused(Code.HEADER)
    values = stored.astype(np.float32)
    if (slope, intercept) != (1.0, 0.0):
        values *= np.float32(slope)
        values += np.float32(intercept)
    return values


def _in_hounsfield(dataset: Dataset, number: int) -> bool:
    """A CT object without rescale, or that says another unit, is a scout, a map or a drawing."""
    unit = _value(dataset, number, "RescaleType")
    return _value(dataset, number, "RescaleIntercept") is not None and unit in (None, "", "HU")


def _factor(dataset: Dataset, number: int, name: str, default: float) -> float:
    value = _value(dataset, number, name)
    if value is None or value == "":
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Refused(Code.HEADER) from None


def _spacing(dataset: Dataset, number: int) -> tuple[float, float] | None:
    """Height and width of a pixel; None where the file says nothing that could be, or that they are equal."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        try:
            height, width = (float(side) for side in _value(dataset, number, name))
        except (TypeError, ValueError):
            continue
        if 0 < height < np.inf and 0 < width < np.inf:
            if not 1 / _MAX_PIXEL_SIDES <= height / width <= _MAX_PIXEL_SIDES:
                raise Refused(Code.HEADER)
            return None if abs(height / width - 1) < _SQUARE else (height, width)
    return None


def _value(dataset: Dataset, number: int, keyword: str) -> Any:
    """An attribute of one frame: its own, else one that all frames share, else the object's."""
    for group in _functional_groups(dataset, number):
        macro = group.get(_MACROS.get(keyword, ""))
        value = macro[0].get(keyword) if macro else None
        if value is not None:
            return value
    return dataset.get(keyword)


def _functional_groups(dataset: Dataset, number: int) -> Iterator[Dataset]:
    for name, index in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(name)
        if groups and index < len(groups):
            yield groups[index]
