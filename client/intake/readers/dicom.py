"""One DICOM file to arrays, in the worker process: nothing of the file but decoded pixels goes on.

What is drawn is the same for every file of a modality: MONOCHROME1 is inverted, rescale or modality LUT applied,
padding marked. The file's own values of interest (VOI window or LUT) are NOT used, because they differ from vendor to
vendor and were chosen for one reader: CT in Hounsfield units has one fixed window, colour its full scale, and
everything else the percentiles of its own pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.deidentify.headers import HeaderRecord, attribute, read_record
from client.deidentify.regions import image_regions
from client.deidentify.survivors import identifiers_of
from client.intake.patient_id import patient_id
from client.intake.readers.datasets import open_dataset
from client.intake.readers.frames import CT_WINDOW_HU, Frame, Source, evenly_spaced, is_hounsfield
from client.intake.readers.modality_lut import through_lut
from client.intake.readers.pixeldata import channels, check_pixel_data, decode_frames, frame_count, full_scale
from client.quarantine import Code, Refused

_MAX_PIXEL_SIDES = 10.0  # sides of a pixel; more is no image plane
_SQUARE = 0.01  # sides that differ less than this share are a rounding of the writer's

# Where an enhanced object keeps what a plain one has at its top (PS3.3 section C.7.6.16.2).
_MACROS = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
}


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
    dataset, syntax = open_dataset(path, file_bytes=file_bytes, pixels=pixels)
    patient = patient_id(dataset)  # before anything decodes it as the file declares
    record = read_record(dataset, syntax)
    total = frame_count(dataset)
    numbers = evenly_spaced(total, frames)
    if len(numbers) * record.rows * record.columns * channels(record) > pixels:
        raise Refused(Code.TOO_LARGE)
    check_pixel_data(dataset, record, frames=total)
    decoded = zip(numbers, decode_frames(dataset, record, numbers, frames=total), strict=True)
    taken = {
        number: frame
        for number, (stored, valid) in decoded
        if (frame := _frame(dataset, record, stored, valid, number))
    }
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


def _frame(
    dataset: Dataset, record: HeaderRecord, stored: NDArray[Any], valid: NDArray[np.bool_] | None, number: int
) -> Frame | None:
    """One frame in its modality's unit; None if all its known pixels have one value."""
    spacing = _spacing(dataset, number)
    if channels(record) == 3:
        if stored.min() == stored.max():
            return None
        window: tuple[float, float] | None = full_scale(stored, record)
        return Frame(pixels=stored.astype(np.float32), window=window, spacing=spacing)
    known = stored if valid is None else stored[valid]
    if not known.size or (lowest := known.min()) == (highest := known.max()):
        return None
    ends = np.array([lowest, highest], stored.dtype)
    values, ends = (_modality_units(dataset, part, number) for part in (stored, ends))
    if not np.isfinite(ends).all():  # the rescale lies: it was finite for whole numbers of 16 bits
        raise Refused(Code.HEADER)
    window = CT_WINDOW_HU if record.modality == "CT" and _in_hounsfield(dataset, number) else None
    offset = _factor(dataset, number, "RescaleIntercept", 0.0)
    if window and not offset and not is_hounsfield(float(ends.min()), float(ends.max())):
        raise Refused(Code.NOT_HOUNSFIELD)
    if record.photometric == "MONOCHROME1":
        np.negative(values, out=values)
        ends, window = -ends, None if window is None else (-window[1], -window[0])
    if valid is not None:
        values[~valid] = ends.min()
    return Frame(pixels=values, valid=valid, window=window, spacing=spacing)


def _modality_units(dataset: Dataset, stored: NDArray[Any], number: int) -> NDArray[np.float32]:
    if tables := attribute(dataset, "ModalityLUTSequence"):
        return through_lut(stored, tables[0])
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
    if tables := attribute(dataset, "ModalityLUTSequence"):
        return str(attribute(tables[0], "ModalityLUTType")) == "HU"
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
    """Height and width of a pixel; None where the file says nothing of them, or that they are equal."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        stated = _value(dataset, number, name)
        if stated is None or stated in ("", b""):
            continue
        try:
            height, width = (float(side) for side in stated)
        except (TypeError, ValueError):
            raise Refused(Code.HEADER) from None
        if not (0 < height < np.inf and 0 < width < np.inf):
            raise Refused(Code.HEADER)
        if not 1 / _MAX_PIXEL_SIDES <= height / width <= _MAX_PIXEL_SIDES:
            raise Refused(Code.HEADER)
        return None if abs(height / width - 1) < _SQUARE else (height, width)
    return None


def _value(dataset: Dataset, number: int, keyword: str) -> Any:
    """An attribute of one frame: its own, else one that all frames share, else the object's."""
    for group in _functional_groups(dataset, number):
        macro = group.get(_MACROS.get(keyword, ""))
        value = attribute(macro[0], keyword) if macro else None
        if value is not None:
            return value
    return attribute(dataset, keyword)


def _functional_groups(dataset: Dataset, number: int) -> Iterator[Dataset]:
    for name, index in (("PerFrameFunctionalGroupsSequence", number), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(name)
        if groups and index < len(groups):
            yield groups[index]
