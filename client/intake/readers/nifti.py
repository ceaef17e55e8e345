"""One NIfTI file to axial slices, in the worker process: of the file, only voxels go on.

Header texts (descrip, aux_file, db_name, intent_name) and extensions, which may hold a whole DICOM header, are only
gathered as what must not survive. The file is read by what its header says: a gzip of a few kilobytes can hold
gigabytes. Of a gzip the rest is unpacked too, up to a limit, and thrown away: its checksum stands at its end.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from client.deidentify.headers import HeaderRecord
from client.deidentify.survivors import bounded
from client.formats import GZIP_SIGNATURE, NIFTI_MAGIC
from client.intake.readers.frames import CT_WINDOW_HU, Frame, Source, evenly_spaced, is_hounsfield
from client.quarantine import Code, Refused

_NIFTI1_BYTES = 348
_NIFTI2_BYTES = 540
_MAX_EXTENSION_BYTES = 1 << 26
_PIECE = 1 << 20
_TEXT = re.compile(rb"[\x20-\x7e]{5,}")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A header, checked, and where its voxels are.

    Attributes:
        shape: (x,y,z) as stored, z = 1 for a single slice.
        dtype: of a stored voxel.
        offset: bytes before the first voxel.
        scale: (slope, intercept) that give physical units.
        affine: float64 (4,4), voxel to RAS millimetres.
        spacing: of the three stored axes, mm.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    scale: tuple[float, float]
    affine: NDArray[np.float64] = field(repr=False)
    spacing: tuple[float, float, float]


def read_nifti(path: Path, *, modality: str, file_bytes: int, pixels: int, frames: int) -> Source:
    """Decodes axial slices of a NIfTI-1 or -2 file (.nii, .nii.gz); of a 4-D one, the first volume.

    Slices lie as DICOM's do: anterior on top, the patient's right on the left, the lowest slice first. A volume that
    is one voxel thick is cut along that axis instead.

    Args:
        path: the file.
        modality: what site.toml says that it is; CT has to be in Hounsfield units.
        file_bytes: larger files, and volumes of more bytes, are refused before anything of that size is allocated.
        pixels: slices that have more samples together are refused.
        frames: how many slices, evenly spaced; 1 is the middle one.

    Returns:
        The slices with anything on them: one that is all of one value is left out while others are not.

    Raises:
        Refused: with a code; FLAT if nothing is on any of the slices, NOT_HOUNSFIELD for CT in other units.
    """
    volume, texts, stored = _read(path, file_bytes)
    slices = stored.shape[2]
    numbers = evenly_spaced(slices, frames)
    if stored.shape[0] * stored.shape[1] * len(numbers) > pixels:
        raise Refused(Code.TOO_LARGE)
    window = CT_WINDOW_HU if modality == "CT" else None
    if window and not _in_hounsfield(stored, volume):
        raise Refused(Code.NOT_HOUNSFIELD)
    cut = {number: _frame(_in_units(stored[:, :, number].T, volume), window, _spacing(volume)) for number in numbers}
    taken = {number: frame for number, frame in cut.items() if frame is not None}
    if not taken:
        raise Refused(Code.FLAT)
    record = HeaderRecord(
        modality=modality,
        rows=stored.shape[1],
        columns=stored.shape[0],
        samples=1,
        photometric="MONOCHROME2",
        bits_stored=min(16, 8 * volume.dtype.itemsize),
        transfer_syntax="NIfTI",
        view_position="",
    )
    return Source(
        frames=tuple(taken.values()),
        frame_numbers=tuple(taken),
        frames_total=slices,
        record=record,
        patient_id="",
        identifiers=bounded(texts),
    )


def read_slice(path: Path, *, frame_number: int, frames_total: int, file_bytes: int) -> NDArray[np.float32]:
    """One axial slice, float32 (h,w), of a NIfTI mask: the same cut that `read_nifti` makes of its image.

    Args:
        path: the mask.
        frame_number: the image's slice, from 0; a mask of a single slice serves an image of a single frame.
        frames_total: slices of the image.
        file_bytes: as in `read_nifti`.

    Raises:
        Refused: with a code; BAD_MASK if the mask has another number of slices.
    """
    volume, _, stored = _read(path, file_bytes)
    if stored.shape[2] != frames_total or not 0 <= frame_number < frames_total:
        raise Refused(Code.BAD_MASK)
    values = _in_units(stored[:, :, frame_number].T, volume)
    if not np.isfinite(values).all():
        raise Refused(Code.NOT_FINITE)
    return values


def _frame(
    pixels: NDArray[np.float32], window: tuple[float, float] | None, spacing: tuple[float, float] | None
) -> Frame | None:
    """One slice; None if its known pixels have one value. NaN around the body is padding, as tools that mask write it.

    Raises:
        Refused: NOT_FINITE for any other number that is not finite.
    """
    unknown = np.isnan(pixels)
    valid = None
    if unknown.any():
        if not unknown.all() and not _surrounds(unknown):
            raise Refused(Code.NOT_FINITE)
        valid = ~unknown
    known = pixels if valid is None else pixels[valid]
    if not np.isfinite(known).all():
        raise Refused(Code.NOT_FINITE)
    if not known.size or known.min() == known.max():
        return None
    if valid is not None:
        pixels[unknown] = known.min()
    return Frame(pixels=pixels, valid=valid, window=window, spacing=spacing)


def _surrounds(mask: NDArray[np.bool_]) -> bool:
    """True where every part of a mask (4-connected) reaches the edge of the image."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    return len(set(np.unique(edge).tolist()) - {0}) == count - 1


def _in_hounsfield(stored: NDArray[Any], volume: Volume) -> bool:
    slope, intercept = volume.scale
    known = stored[np.isfinite(stored)] if stored.dtype.kind == "f" else stored
    if not known.size:
        return True  # nothing is there to be drawn wrongly
    ends = sorted(float(end) * slope + intercept for end in (known.min(), known.max()))
    return is_hounsfield(ends[0], ends[1])


def _read(path: Path, file_bytes: int) -> tuple[Volume, list[str], NDArray[Any]]:
    """The checked header, its texts and the stored voxels as (columns,rows,slices)."""
    try:
        if path.stat().st_size > file_bytes:
            raise Refused(Code.TOO_LARGE)
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_SIGNATURE
            raw.seek(0)
            file: BinaryIO = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            header, volume = _header(file, file_bytes)
            between = _exactly(file, volume.offset - len(header))
            stored = np.frombuffer(_exactly(file, _bytes(volume)), volume.dtype)
            if packed:
                _read_to_checksum(file, file_bytes)
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise Refused(Code.TRUNCATED) from None
    except OSError:
        raise Refused(Code.UNREADABLE) from None
    return volume, list(_texts(header, between)), _as_slices(stored.reshape(volume.shape, order="F"), volume)


def _header(file: BinaryIO, most_bytes: int) -> tuple[bytes, Volume]:
    data = file.read(_NIFTI1_BYTES)
    if len(data) < _NIFTI1_BYTES:
        raise Refused(Code.NOT_NIFTI)
    try:
        if data[344:].startswith(NIFTI_MAGIC[344]):
            header = Nifti1Header.from_fileobj(BytesIO(data), check=False)
        elif data[4:].startswith(NIFTI_MAGIC[4]):
            data += _exactly(file, _NIFTI2_BYTES - _NIFTI1_BYTES)
            header = Nifti2Header.from_fileobj(BytesIO(data), check=False)
        else:
            raise Refused(Code.NOT_NIFTI)
        return data, _volume(header, len(data), most_bytes)
    except (HeaderDataError, ValueError, KeyError, TypeError, OverflowError, np.linalg.LinAlgError):
        raise Refused(Code.HEADER) from None


def _volume(header: Nifti1Header, header_bytes: int, most_bytes: int) -> Volume:
    """Everything that reading would allocate by, before it does."""
    shape, dtype = tuple(int(side) for side in header.get_data_shape()), np.dtype(header.get_data_dtype())
    sides = (*shape, 1, 1)[:3]
    slope, intercept = header.get_slope_inter()
    affine = np.asarray(header.get_best_affine(), np.float64)
    offset = float(header["vox_offset"])
    spacing = tuple(float(zoom) for zoom in (*header.get_zooms(), 1.0, 1.0)[:3])
    if not 2 <= len(shape) <= 5 or min(shape) < 1 or max(sides) > 65535 or (len(shape) == 5 and shape[3:] != (1, 1)):
        raise Refused(Code.HEADER)
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or not np.isfinite(affine).all():
        raise Refused(Code.HEADER)
    if not header_bytes <= offset <= _MAX_EXTENSION_BYTES or offset % 1:
        raise Refused(Code.HEADER)
    volume = Volume(
        shape=(sides[0], sides[1], sides[2]),
        dtype=dtype,
        offset=int(offset),
        scale=(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)),
        affine=affine,
        spacing=(spacing[0], spacing[1], spacing[2]),
    )
    if _bytes(volume) > most_bytes:
        raise Refused(Code.TOO_LARGE)
    return volume


def _bytes(volume: Volume) -> int:
    x, y, z = volume.shape
    return x * y * z * volume.dtype.itemsize


def _exactly(file: BinaryIO, count: int) -> bytes:
    """That many bytes, held only as far as the file really has them."""
    data = bytearray()
    while len(data) < count:
        piece = file.read(min(_PIECE, count - len(data)))
        if not piece:
            raise Refused(Code.TRUNCATED)
        data += piece
    return bytes(data)


def _read_to_checksum(file: BinaryIO, most_bytes: int) -> None:
    """Throws the rest of a gzip away: its checksum, which says whether all before it is as it was, stands at its end.

    Raises:
        Refused: TOO_LARGE for more than `most_bytes` of rest.
        gzip.BadGzipFile: the checksum does not fit.
    """
    rest = 0
    while piece := file.read(_PIECE):
        rest += len(piece)
        if rest > most_bytes:
            raise Refused(Code.TOO_LARGE)


def _texts(header: bytes, between: bytes) -> Iterator[str]:
    """SENSITIVE: whatever could be read as text in the header and its extensions."""
    for part in (header, between):
        for found in _TEXT.finditer(part):
            with contextlib.suppress(UnicodeDecodeError):
                yield found.group().decode("ascii")


def _axes(volume: Volume) -> NDArray[np.float64]:
    """From the stored axes to left, posterior, superior, as nibabel writes an orientation; slices last."""
    orientation = io_orientation(volume.affine)
    if np.isnan(orientation).any() or sorted(orientation[:, 0]) != [0, 1, 2]:
        raise Refused(Code.HEADER)
    turned = orientation.copy()
    turned[:, 1] *= np.where(orientation[:, 0] < 2, -1, 1)  # RAS to LPS: left and posterior grow
    thin = [axis for axis, side in enumerate(volume.shape) if side == 1]
    if len(thin) == 1 and turned[thin[0], 0] != 2:  # a sagittal or coronal slice: its rows go from the head down
        cut = int(turned[thin[0], 0])
        turned[turned[:, 0] == 2, 1] *= -1
        turned[turned[:, 0] > cut, 0] -= 1
        turned[thin[0], 0] = 2
    return np.asarray(turned, np.float64)


def _as_slices(stored: NDArray[Any], volume: Volume) -> NDArray[Any]:
    turned: NDArray[Any] = apply_orientation(stored, _axes(volume))
    return turned


def _spacing(volume: Volume) -> tuple[float, float] | None:
    place = [int(axis) for axis in _axes(volume)[:, 0]]
    width, height = volume.spacing[place.index(0)], volume.spacing[place.index(1)]
    known = 0 < width < float("inf") and 0 < height < float("inf")
    return (height, width) if known else None


def _in_units(stored: NDArray[Any], volume: Volume) -> NDArray[np.float32]:
    slope, intercept = volume.scale
    with np.errstate(over="ignore"):
        values = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    return np.ascontiguousarray(values)
