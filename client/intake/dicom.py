"""One DICOM file to an array, in the worker process: nothing of the file but decoded pixels goes on.

The reader is told the attributes it may read, sizes are checked before anything is allocated, and the pixel data is
always decoded, never passed on: compressed streams hide comments and native ones trailing bytes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array  # type: ignore[attr-defined]
from pydicom.uid import UID

from client.deidentify.headers import TRANSFER_SYNTAXES, HeaderRecord, read_record
from client.intake.folder import PREAMBLE, SIGNATURE, has_signature
from client.intake.quarantine import Code, Refused

CT_WINDOW_HU = (-1000.0, 1000.0)
"""Air to dense bone. Other modalities have no absolute unit: their window is taken from the image's percentiles."""

# One decoder a syntax, so that two hospitals decode a lossy file alike (decoders differ by up to 5 grey levels); the
# next is used only where the first is not installed. RLE stays with pydicom's own: the Rust one aborts the process.
_DECODERS = {
    "JPEG baseline": ("gdcm", "pillow"),
    "JPEG extended": ("gdcm",),
    "JPEG lossless": ("gdcm",),
    "JPEG lossless SV1": ("gdcm",),
    "JPEG-LS lossless": ("pyjpegls", "gdcm"),
    "JPEG-LS": ("pyjpegls", "gdcm"),
    "JPEG 2000 lossless": ("pylibjpeg", "gdcm"),
    "JPEG 2000": ("pylibjpeg", "gdcm"),
    "HTJ2K lossless": ("pylibjpeg",),
    "HTJ2K lossless RPCL": ("pylibjpeg",),
    "HTJ2K": ("pylibjpeg",),
    "RLE": ("pydicom",),
}

_READ = [
    "SOPClassUID",
    "Modality",
    "PatientID",
    "ViewPosition",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "PixelData",
]


@dataclass(frozen=True, kw_only=True)
class DicomImage:
    """What is taken from one file.

    Attributes:
        pixels: float32 (h,w), or (h,w,3) for colour; after the modality LUT, larger is brighter, padding darkest.
        valid: (h,w), False where the scanner padded; None if it says nothing of padding.
        window: (low, high) in the unit of `pixels`, or None to take it from the image.
        record: the few header values that are kept.
        patient_id: SENSITIVE: as written in the file, only to be keyed; "" when absent.
    """

    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_] | None
    window: tuple[float, float] | None
    record: HeaderRecord
    patient_id: str = field(repr=False)


def read_dicom(path: Path, *, file_bytes: int, pixels: int) -> DicomImage:
    """Decodes a single-frame DICOM file.

    MONOCHROME1 is inverted, the modality LUT or rescale slope and intercept applied, padding marked. Values of
    interest (VOI) are not used: they differ from file to file.

    Args:
        path: the file.
        file_bytes: larger files are refused unread.
        pixels: images of more samples (rows x columns x channels), and files that inflate to more than 8 bytes for
            each of them, are refused before they are allocated.

    Raises:
        Refused: with a code. Decoders may raise anything else; the caller turns it into a code.
    """
    try:
        too_large, signed = path.stat().st_size > file_bytes, has_signature(path)
    except OSError:
        raise Refused(Code.UNREADABLE) from None
    if too_large or not signed:
        raise Refused(Code.TOO_LARGE if too_large else Code.NOT_DICOM)
    syntax = _transfer_syntax(path, inflated_bytes=8 * pixels)
    dataset = _read(path)
    record = read_record(dataset, syntax)
    _check_pixels(dataset, record, pixels)
    stored = _decode(dataset, record)
    valid = _valid(dataset, stored) if record.samples == 1 else None
    values = _modality_units(dataset, stored)
    window = CT_WINDOW_HU if record.modality == "CT" else None
    if record.photometric == "MONOCHROME1":
        values, window = -values, None if window is None else (-window[1], -window[0])
    known = values if valid is None else values[valid]
    if not known.size or float(known.min()) == float(known.max()):
        raise Refused(Code.FLAT)
    if valid is not None:
        values[~valid] = known.min()
    return DicomImage(
        pixels=values, valid=valid, window=window, record=record, patient_id=str(dataset.get("PatientID") or "")
    )


def _transfer_syntax(path: Path, *, inflated_bytes: int) -> str:
    try:
        meta = read_file_meta_info(path)
    except (InvalidDicomError, EOFError):
        raise Refused(Code.UNREADABLE) from None
    uid = str(meta.get("TransferSyntaxUID", ""))
    if TRANSFER_SYNTAXES.get(uid) == "deflated":
        with path.open("rb") as file:
            # The meta group's length element is the first after the signature; what follows the group is deflated.
            file.seek(PREAMBLE + len(SIGNATURE) + 12 + int(meta.FileMetaInformationGroupLength))
            _check_inflated(file, inflated_bytes)
    return uid


def _check_inflated(file: BinaryIO, limit: int) -> None:
    """Inflates piece by piece and throws the pieces away: a few kilobytes can hold gigabytes."""
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflater.eof and (piece := inflater.unconsumed_tail or file.read(1 << 16)):
        total += len(inflater.decompress(piece, 1 << 20))
        if total > limit:
            raise Refused(Code.TOO_LARGE)


def _read(path: Path) -> Dataset:
    try:
        return pydicom.dcmread(path, specific_tags=_READ)
    except (EOFError, InvalidDicomError):
        raise Refused(Code.TRUNCATED) from None


def _check_pixels(dataset: Dataset, record: HeaderRecord, pixels: int) -> None:
    """Everything that decoding would allocate by, before it does."""
    if "PixelData" not in dataset or not dataset.PixelData:
        raise Refused(Code.NO_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise Refused(Code.MULTI_FRAME)
    if record.rows * record.columns * record.samples > pixels:
        raise Refused(Code.TOO_LARGE)
    allocated = dataset.get("BitsAllocated")
    colour = not record.photometric.startswith("MONOCHROME")
    if allocated not in (8, 16) or record.bits_stored > allocated or record.samples != (3 if colour else 1):
        raise Refused(Code.HEADER)


def _decode(dataset: Dataset, record: HeaderRecord) -> NDArray[np.int32]:
    """Stored values, (rows,columns) or (rows,columns,3) in RGB; overlay bits in unused high bits are cleared."""
    wanted = _DECODERS.get(record.transfer_syntax)
    plugin = ""
    if wanted:
        installed = get_decoder(UID(dataset.file_meta.TransferSyntaxUID)).available_plugins
        plugin = next((name for name in wanted if name in installed), "")
        if not plugin:
            raise Refused(Code.NO_DECODER)
        if not _is_complete(dataset.PixelData):
            raise Refused(Code.TRUNCATED)
    elif len(dataset.PixelData) < _native_bytes(dataset, record):
        raise Refused(Code.TRUNCATED)
    stored = pixel_array(dataset, index=0, decoding_plugin=plugin)
    if stored.shape != (record.rows, record.columns, 3)[: 3 if record.samples == 3 else 2]:
        raise Refused(Code.DECODE)
    return stored.astype(np.int32)


def _is_complete(encapsulated: bytes) -> bool:
    """Whether the first and only frame's fragments are as long as their own lengths say (PS3.5 section A.4)."""
    at, fragments = 0, 0
    while at + 8 <= len(encapsulated) and encapsulated[at : at + 4] == b"\xfe\xff\x00\xe0":
        at += 8 + int.from_bytes(encapsulated[at + 4 : at + 8], "little")
        fragments += 1
    return fragments >= 2 and at <= len(encapsulated)


def _native_bytes(dataset: Dataset, record: HeaderRecord) -> int:
    samples = 2 if record.photometric == "YBR_FULL_422" else record.samples
    return record.rows * record.columns * samples * int(dataset.BitsAllocated) // 8


def _valid(dataset: Dataset, stored: NDArray[np.int32]) -> NDArray[np.bool_] | None:
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


def _modality_units(dataset: Dataset, stored: NDArray[np.int32]) -> NDArray[np.float32]:
    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(stored, dataset).astype(np.float32)
    else:
        slope, intercept = (_factor(dataset, name, default) for name, default in (("Slope", 1.0), ("Intercept", 0.0)))
        if slope == 0:
            raise Refused(Code.HEADER)
        values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if not np.isfinite(values).all():
        raise Refused(Code.HEADER)
    return values


def _factor(dataset: Dataset, name: str, default: float) -> float:
    value = dataset.get(f"Rescale{name}")
    if value is None or value == "":
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Refused(Code.HEADER) from None
