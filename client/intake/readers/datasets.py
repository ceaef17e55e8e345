"""One DICOM file to a data set, in the worker process: whole, inflated within a bound, with or without a preamble."""

from __future__ import annotations

import struct
import zlib
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO, cast

import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from client.formats import FIRST_BYTES, PREAMBLE, SIGNATURE, begins_as_dicom
from client.quarantine import Code, Refused

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_BYTES = 1 << 16  # where a transfer syntax is looked for; one further back meets the worker's own limits
_PIECE = 1 << 16
_SMALL_INFLATED = 4 << 20  # bytes that any deflated file may have
_MAX_DEFLATION_RATIO = 200  # inflated bytes for one deflated; images have 2 to 60
_UNDEFINED = 0xFFFFFFFF  # a length that a delimiter ends (PS3.5 section 7.1)
_ELEMENT_HEADER = 8  # bytes that pydicom reads before an element's value

_NATIVE = {(True, True): ImplicitVRLittleEndian, (False, True): ExplicitVRLittleEndian} | {
    (False, False): ExplicitVRBigEndian
}
"""Transfer syntax by (implicit VR, little endian), for files that do not say it."""


class _Mapped(mmap):
    """A mapped file in which, as in an open one, a place beyond the end can be sought: nothing is read there."""

    ends_in_a_header = False

    def seek(self, pos: int, whence: int = 0, /) -> None:
        base = (0, self.tell(), len(self))[whence]
        super().seek(max(0, min(base + pos, len(self))))

    def read(self, n: int | None = None, /) -> bytes:
        found = super().read(n)
        self.ends_in_a_header |= n == _ELEMENT_HEADER and 0 < len(found) < n
        return found


def open_dataset(path: Path, *, file_bytes: int, pixels: int) -> tuple[Dataset, str]:
    """Reads a DICOM file's data set and its transfer syntax's UID ("" where it says none).

    A file without a preamble is taken where a plausible data set begins it: one of native pixels, whose form its first
    element shows, or with a file meta group.

    Args:
        path: the file.
        file_bytes: larger files are refused unread.
        pixels: files that inflate to more than 8 bytes for each, or to 200 times their size, are refused.

    Raises:
        Refused: UNREADABLE, TOO_LARGE, NOT_DICOM, or TRUNCATED for a file that ends within its data set, whatever
            kind of object it is.
    """
    try:
        if path.stat().st_size > file_bytes:
            raise Refused(Code.TOO_LARGE)
        with path.open("rb") as file:
            if not begins_as_dicom(file.read(FIRST_BYTES)):
                raise Refused(Code.NOT_DICOM)
            # Mapped, because reading a file allocates whatever length an element claims before it finds the end.
            with _Mapped(file.fileno(), 0, access=ACCESS_READ) as data:
                _check_inflated(path, data, limit=8 * pixels)
                dataset = _read(data)
    except OSError:
        raise Refused(Code.UNREADABLE) from None
    return dataset, _syntax(dataset)


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
            raise Refused(Code.TRUNCATED)
        try:
            total += len(inflater.decompress(piece, 1 << 20))
        except zlib.error:
            raise Refused(Code.UNREADABLE) from None
        if total > limit:
            raise Refused(Code.TOO_LARGE)


def _read(data: _Mapped) -> Dataset:
    try:
        dataset = pydicom.dcmread(cast(BinaryIO, data), force=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises anything on elements that are none, or not whole
        cut = isinstance(error, EOFError | struct.error) or data.tell() == len(data)
        raise Refused(Code.TRUNCATED if cut else Code.UNREADABLE) from None
    pixels = dataset.get_item("PixelData")
    if pixels is None:
        # pydicom gives an empty data set where the file ends before the delimiter of an element.
        cut = not len(dataset) or data.ends_in_a_header or any(_is_short(element) for element in dataset.values())
    else:  # whatever follows them, padding or not, is none of the image
        cut = _is_short(pixels)
    if cut:
        raise Refused(Code.TRUNCATED)
    return dataset


def _is_short(element: DataElement | RawDataElement) -> bool:
    """True for an element that has fewer bytes than it says."""
    if not isinstance(element, RawDataElement) or element.length == _UNDEFINED:
        return False
    return len(element.value or b"") < element.length


def _syntax(dataset: Dataset) -> str:
    meta = dataset.file_meta
    pixels = dataset.get_item("PixelData")
    if not len(meta) and not (isinstance(pixels, RawDataElement) and pixels.length == _UNDEFINED):
        meta.TransferSyntaxUID = _NATIVE[dataset.original_encoding]  # type: ignore[index]
    return str(meta.get("TransferSyntaxUID", ""))
