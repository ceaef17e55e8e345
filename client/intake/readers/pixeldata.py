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

from client.deidentify.headers import HeaderRecord, attribute
from client.intake.readers.codestreams import is_adobe, stated_colours, stated_precision, stated_size
from client.intake.readers.stored import stored_values
from client.quarantine import Code, Refused

# The first of a syntax that is installed, so that two hospitals decode a lossy file alike (decoders differ by up to 5
# grey levels); the next only where that one is not installed or fails. The Rust decoder of RLE can abort the process
# on a broken file; that is what a worker process is for, and pydicom's own takes four times as long on every whole one.
DECODERS = {
    "JPEG baseline": ("gdcm", "pillow", "pylibjpeg"),
    "JPEG extended": ("gdcm", "pylibjpeg"),
    "JPEG lossless": ("gdcm", "pylibjpeg"),
    "JPEG lossless SV1": ("gdcm", "pylibjpeg"),
    "JPEG-LS lossless": ("pyjpegls", "gdcm", "pylibjpeg"),
    "JPEG-LS": ("pyjpegls", "gdcm", "pylibjpeg"),
    "JPEG 2000 lossless": ("pylibjpeg", "gdcm"),
    "JPEG 2000": ("pylibjpeg", "gdcm"),
    "HTJ2K lossless": ("pylibjpeg",),
    "HTJ2K lossless RPCL": ("pylibjpeg",),
    "HTJ2K": ("pylibjpeg",),
    "RLE": ("pylibjpeg", "pydicom"),
}
# GDCM, as it is built for Python, and Pillow decode 8 bits only; this one is not installed with GhostNet (GPL).
_DECODERS_12_BIT = ("pylibjpeg",)
_LOSSY_JPEG = ("JPEG baseline", "JPEG extended")
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
    try:
        stated = dataset.get("NumberOfFrames")
        count = 1 if stated in (None, "", 0) else int(stated)
    except Exception:  # noqa: BLE001 - pydicom raises anything on a value that is not what its VR says
        raise Refused(Code.FRAMES) from None
    if count < 1 or (isinstance(stated, float) and stated != count):
        raise Refused(Code.FRAMES)
    return count


def check_pixel_data(dataset: Dataset, record: HeaderRecord, *, frames: int) -> None:
    """Everything that decoding would allocate by, before it does.

    Raises:
        Refused: NO_PIXELS, HEADER, NO_DECODER or TRUNCATED.
    """
    if "PixelData" not in dataset or not dataset.PixelData:
        raise Refused(Code.NO_PIXELS)
    _check_bits(dataset, record)
    if record.transfer_syntax in DECODERS:
        _plugins(dataset, record.transfer_syntax)
        if _fragments(dataset.PixelData) < frames:
            raise Refused(Code.TRUNCATED)
    else:
        samples = 2 if record.photometric == "YBR_FULL_422" else record.samples
        bits = frames * record.rows * record.columns * samples * int(dataset.BitsAllocated)
        if len(dataset.PixelData) < (bits + 7) // 8:
            raise Refused(Code.TRUNCATED)


def _check_bits(dataset: Dataset, record: HeaderRecord) -> None:
    allocated, high_bit = attribute(dataset, "BitsAllocated"), attribute(dataset, "HighBit")
    grey = record.photometric.startswith("MONOCHROME")
    one_bit = allocated == 1 and grey and record.transfer_syntax not in DECODERS
    if not (one_bit or allocated in (8, 16)) or record.bits_stored > allocated:
        raise Refused(Code.HEADER)
    if record.samples != (1 if grey or record.photometric == _PALETTE else 3):
        raise Refused(Code.HEADER)
    if attribute(dataset, "PixelRepresentation") not in (0, 1):
        raise Refused(Code.HEADER)
    if high_bit is None:
        return
    # Of colours, whose channels are converted before they are looked at, other bits than the lowest are not taken.
    if not isinstance(high_bit, int) or high_bit >= (allocated if record.samples == 1 else record.bits_stored):
        raise Refused(Code.HEADER)


def decode_frames(
    dataset: Dataset, record: HeaderRecord, indices: Sequence[int], *, frames: int
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None]]:
    """Yields stored values of some frames, (rows,columns) or (rows,columns,3) in RGB, maybe read-only.

    Only these frames are decoded. Of each word the stored bits count; a palette is applied. With them comes where grey
    pixels are not padding, or None if the file says nothing of it.

    Raises:
        Refused: DECODE for a frame of another size than the header's, or as of `stored_values`; a decoder may raise
            anything.
    """
    high_bit = _high_bit(dataset, record)
    for words in stored_frames(dataset, record.transfer_syntax, indices, frames=frames):
        if words.shape != (record.rows, record.columns, 3)[: 3 if record.samples == 3 else 2]:
            raise Refused(Code.DECODE)
        if record.samples == 3:
            yield words, None
            continue
        stored, valid = stored_values(words, dataset, bits_stored=record.bits_stored, high_bit=high_bit)
        yield (apply_color_lut(stored, dataset)[..., :3], None) if record.photometric == _PALETTE else (stored, valid)


def _high_bit(dataset: Dataset, record: HeaderRecord) -> int:
    """The highest stored bit of a decoded word: a codestream of no more bits than are stored has them lowest."""
    lowest = record.bits_stored - 1
    stated = attribute(dataset, "HighBit")
    if stated is None or stated < lowest:
        return lowest
    front = _first_fragment(dataset.PixelData) if record.transfer_syntax in DECODERS else b""
    precision = stated_precision(front, record.transfer_syntax)
    return lowest if precision is not None and precision <= record.bits_stored else int(stated)


def stored_frames(dataset: Dataset, syntax: str, indices: Sequence[int], *, frames: int) -> Iterator[NDArray[Any]]:
    """Yields some frames as pydicom decodes them, maybe read-only; grey ones with the unused bits of their words.

    Args:
        dataset: with Rows, Columns and SamplesPerPixel, whose sizes the caller has checked.
        syntax: a name of `TRANSFER_SYNTAXES`.
        indices: from 0.
        frames: frames that the pixel data holds.
    """
    # view_only: without it native pixels are copied once more.
    options: dict[str, Any] = {"view_only": True, "correct_unused_bits": dataset.SamplesPerPixel != 1}
    plugins = _plugins(dataset, syntax)
    if not plugins:
        yield from iter_pixels(dataset, indices=list(indices), **options)
        return
    for index in indices:
        stream = _stream(dataset, index, frames)
        size = stated_size(stream, syntax)
        if size is not None and size != (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel):
            raise Refused(Code.DECODE)
        colours = stated_colours(stream) if syntax in _LOSSY_JPEG else ""
        stated = {"photometric_interpretation": colours} if colours else {}
        yield _decoded(dataset, index, plugins, options | stated, adobe=is_adobe(stream))


def _decoded(
    dataset: Dataset, index: int, plugins: Sequence[str], options: dict[str, Any], *, adobe: bool
) -> NDArray[Any]:
    """One frame, by the first of these decoders that does not fail."""
    failure: Exception | None = None
    for plugin in plugins:
        # Pillow converts by Adobe's marker to RGB, whatever it is asked for.
        own = options | {"photometric_interpretation": "RGB"} if adobe and plugin == "pillow" else options
        try:
            frame: NDArray[Any] = next(iter(iter_pixels(dataset, indices=[index], decoding_plugin=plugin, **own)))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise anything
            failure = failure or error
        else:
            return frame
    raise failure or Refused(Code.NO_DECODER)


def full_scale(stored: NDArray[Any], record: HeaderRecord) -> tuple[float, float]:
    """The values of black and white of a colour frame."""
    if record.photometric == _PALETTE:
        # A table of 16-bit entries may use the lower 8 bits only.
        return 0.0, 255.0 if stored.dtype == np.uint8 or not stored.size or stored.max() < 256 else 65535.0
    return 0.0, float(2**record.bits_stored - 1)


def _plugins(dataset: Dataset, syntax: str) -> tuple[str, ...]:
    """The installed decoders of a syntax in the order of their use; none for one that needs none."""
    wanted = DECODERS.get(syntax, ())
    if not wanted:
        return ()
    if syntax == "JPEG extended" and stated_precision(_first_fragment(dataset.PixelData), syntax) == 12:
        wanted = _DECODERS_12_BIT
    installed = get_decoder(UID(dataset.file_meta.TransferSyntaxUID)).available_plugins
    plugins = tuple(name for name in wanted if name in installed)
    if not plugins:
        raise Refused(Code.NO_DECODER)
    return plugins


def _stream(dataset: Dataset, index: int, frames: int) -> bytes:
    tables = [dataset.get(f"ExtendedOffsetTable{name}") for name in ("", "Lengths")]
    offsets = (tables[0], tables[1]) if all(tables) else None
    return get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets)


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
