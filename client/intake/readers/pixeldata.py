"""Pixel data of a DICOM data set to arrays of stored values: sizes are checked before anything is allocated.

Pixel data is always decoded, never passed on: compressed streams hide comments and native ones trailing bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels  # type: ignore[attr-defined]
from pydicom.uid import UID

from client.deidentify.headers import HeaderRecord
from client.intake.readers.codestreams import stated_precision, stated_size
from client.quarantine import Code, Refused

# One decoder a syntax, so that two hospitals decode a lossy file alike (decoders differ by up to 5 grey levels); the
# next is used only where the first is not installed. The Rust decoder of RLE can abort the process on a broken file;
# that is what a worker process is for, and pydicom's own takes four times as long on every whole one.
DECODERS = {
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
    "RLE": ("pylibjpeg", "pydicom"),
}
# GDCM, as it is built for Python, and Pillow decode 8 bits only; this one is not installed with GhostNet (GPL).
_DECODERS_12_BIT = ("pylibjpeg",)
_ITEM = b"\xfe\xff\x00\xe0"
_PALETTE = "PALETTE COLOR"


def channels(record: HeaderRecord) -> int:
    """Channels of a decoded frame: 1 grey, 3 colour."""
    return 3 if record.photometric == _PALETTE else record.samples


def frame_count(dataset: Dataset) -> int:
    """Frames that the header states; 0, as some devices write, is one frame: the pixel data has to hold just that.

    Raises:
        Refused: FRAMES.
    """
    stated = dataset.get("NumberOfFrames")
    try:
        count = 1 if stated in (None, "", 0) else int(stated)
    except (TypeError, ValueError):
        raise Refused(Code.FRAMES) from None
    if count < 1:
        raise Refused(Code.FRAMES)
    return count


def check_pixel_data(dataset: Dataset, record: HeaderRecord, *, frames: int) -> None:
    """Everything that decoding would allocate by, before it does.

    Raises:
        Refused: NO_PIXELS, HEADER, NO_DECODER or TRUNCATED.
    """
    if "PixelData" not in dataset or not dataset.PixelData:
        raise Refused(Code.NO_PIXELS)
    allocated = dataset.get("BitsAllocated")
    colour = not record.photometric.startswith("MONOCHROME") and record.photometric != _PALETTE
    if allocated not in (8, 16) or record.bits_stored > allocated or record.samples != (3 if colour else 1):
        raise Refused(Code.HEADER)
    if record.transfer_syntax in DECODERS:
        _plugin(dataset, record.transfer_syntax)
        if _fragments(dataset.PixelData) < frames:
            raise Refused(Code.TRUNCATED)
    else:
        samples = 2 if record.photometric == "YBR_FULL_422" else record.samples
        if len(dataset.PixelData) < frames * record.rows * record.columns * samples * int(allocated) // 8:
            raise Refused(Code.TRUNCATED)


def decode_frames(
    dataset: Dataset, record: HeaderRecord, indices: Sequence[int], *, frames: int
) -> Iterator[NDArray[Any]]:
    """Yields stored values of some frames, (rows,columns) or (rows,columns,3) in RGB, maybe read-only.

    Only these frames are decoded. Overlay bits in unused high bits are cleared; a palette is applied.

    Raises:
        Refused: DECODE for a frame of another size than the header's; a decoder may raise anything.
    """
    for stored in stored_frames(dataset, record.transfer_syntax, indices, frames=frames):
        if stored.shape != (record.rows, record.columns, 3)[: 3 if record.samples == 3 else 2]:
            raise Refused(Code.DECODE)
        yield apply_color_lut(stored, dataset)[..., :3] if record.photometric == _PALETTE else stored


def stored_frames(dataset: Dataset, syntax: str, indices: Sequence[int], *, frames: int) -> Iterator[NDArray[Any]]:
    """Yields some frames as pydicom decodes them, maybe read-only.

    Args:
        dataset: with Rows, Columns and SamplesPerPixel, whose sizes the caller has checked.
        syntax: a name of `TRANSFER_SYNTAXES`.
        indices: from 0.
        frames: frames that the pixel data holds.
    """
    plugin = _plugin(dataset, syntax)
    if plugin:
        for index in indices:
            _check_stream(dataset, syntax, index, frames)
    # view_only: without it native pixels are copied once more.
    yield from iter_pixels(dataset, indices=list(indices), decoding_plugin=plugin, view_only=True)


def full_scale(stored: NDArray[Any], record: HeaderRecord) -> tuple[float, float]:
    """The values of black and white of a colour frame."""
    if record.photometric == _PALETTE:
        # A table of 16-bit entries may use the lower 8 bits only.
        return 0.0, 255.0 if stored.dtype == np.uint8 or not stored.size or stored.max() < 256 else 65535.0
    return 0.0, float(2**record.bits_stored - 1)


def _plugin(dataset: Dataset, syntax: str) -> str:
    wanted = DECODERS.get(syntax, ())
    if not wanted:
        return ""
    if syntax == "JPEG extended" and stated_precision(_first_fragment(dataset.PixelData)) == 12:
        wanted = _DECODERS_12_BIT
    installed = get_decoder(UID(dataset.file_meta.TransferSyntaxUID)).available_plugins
    plugin = next((name for name in wanted if name in installed), "")
    if not plugin:
        raise Refused(Code.NO_DECODER)
    return plugin


def _check_stream(dataset: Dataset, syntax: str, index: int, frames: int) -> None:
    tables = [dataset.get(f"ExtendedOffsetTable{name}") for name in ("", "Lengths")]
    offsets = (tables[0], tables[1]) if all(tables) else None
    size = stated_size(get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets), syntax)
    if size is not None and size != (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel):
        raise Refused(Code.DECODE)


def _first_fragment(encapsulated: bytes) -> bytes:
    """The first item after the offset table: a beginning of the first frame, whatever follows."""
    at = 8 + int.from_bytes(encapsulated[4:8], "little")
    return encapsulated[at + 8 : at + 8 + int.from_bytes(encapsulated[at + 4 : at + 8], "little")]


def _fragments(encapsulated: bytes) -> int:
    """Fragments with pixels that are as long as their own lengths say (PS3.5 section A.4); -1 if one is not."""
    at, items = 0, 0
    while at + 8 <= len(encapsulated) and encapsulated[at : at + 4] == _ITEM:
        at += 8 + int.from_bytes(encapsulated[at + 4 : at + 8], "little")
        items += 1
    return items - 1 if at <= len(encapsulated) else -1
