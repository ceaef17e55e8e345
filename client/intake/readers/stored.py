"""Words of pixel data to stored values: which of their bits count, and which pixels are padding (PS3.5 section 8.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.deidentify.headers import attribute
from client.quarantine import Code, Refused

Words = NDArray[Any]
Mask = NDArray[np.bool_]

_OVERLAY_GROUPS = range(0x6000, 0x6020, 2)
_BIT_POSITION = 0x0102


def stored_values(words: Words, dataset: Dataset, *, bits_stored: int, high_bit: int) -> tuple[Words, Mask | None]:
    """The stored values of one grey frame, and where they are not padding; None if the file says nothing of padding.

    Args:
        words: (h,w), as the pixel data holds them.
        dataset: for its padding value and overlays.
        bits_stored: bits of a value.
        high_bit: place of the highest of them in a word, from 0.

    Raises:
        Refused: HEADER for a padding value that is no whole number, or bits above the stored ones that are neither a
            sign, nor padding, nor an overlay of the file.
    """
    stored = _counted_bits(words, bits_stored, high_bit)
    ends = _padding_ends(dataset, signed=words.dtype.kind == "i")
    padding = None if ends is None else _padding(words, stored, ends, bits_stored)
    above = _bits_above(words, high_bit)
    if above is not None and padding is not None:
        above &= ~padding
    if above is not None and above.any() and not _has_overlay_bits(dataset):
        raise Refused(Code.HEADER)
    return stored, None if padding is None else ~padding


def _counted_bits(words: Words, bits_stored: int, high_bit: int) -> Words:
    container = 8 * words.dtype.itemsize
    if high_bit + 1 > container:  # a decoder that gave as few bytes as the values need
        return words
    low, high = _range(bits_stored, signed=words.dtype.kind == "i")
    if high_bit + 1 == bits_stored and words.min() >= low and words.max() <= high:
        return words
    stored: Words = (words << (container - high_bit - 1)) >> (container - bits_stored)
    return stored


def _range(bits: int, *, signed: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _bits_above(words: Words, high_bit: int) -> Mask | None:
    """Pixels with bits above the highest stored one that are no sign; None if there are none such."""
    if high_bit + 1 >= 8 * words.dtype.itemsize:
        return None
    _, most = _range(high_bit + 1, signed=False)
    if words.dtype.kind == "u":
        return words > most if words.max() > most else None
    low, _ = _range(high_bit + 1, signed=True)
    return (words > most) | (words < low) if words.max() > most or words.min() < low else None


def _padding_ends(dataset: Dataset, *, signed: bool) -> tuple[int, int] | None:
    """The lowest and highest value that are padding, as the file writes them; None if it names none."""
    first = _whole(attribute(dataset, "PixelPaddingValue"))
    if first is None:
        return None
    limit = _whole(attribute(dataset, "PixelPaddingRangeLimit"))
    ends = (first, first if limit is None else limit)
    if signed:  # many writers give the unsigned form of a negative value
        ends = (_wrapped(ends[0], 16, signed=True), _wrapped(ends[1], 16, signed=True))
    return min(ends), max(ends)


def _whole(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise Refused(Code.HEADER)
    return int(value)


def _padding(words: Words, stored: Words, ends: tuple[int, int], bits_stored: int) -> Mask:
    """Pixels between the ends: values as they are, or else of their form in a word, or else in the stored bits."""
    signed = stored.dtype.kind == "i"
    low, high = _range(bits_stored, signed=signed)
    if low <= ends[0] and ends[1] <= high:
        return _between(stored, *ends)
    for values, bits in ((words, 8 * words.dtype.itemsize), (stored, bits_stored)):
        if ends[1] - ends[0] < 1 << bits:
            found = _between(values, *(_wrapped(end, bits, signed=signed) for end in ends))
            if found.any():
                return found
    return np.zeros(stored.shape, np.bool_)


def _between(values: Words, low: int, high: int) -> Mask:
    """Values from low to high, around the end of their range where low is the larger."""
    above, below = values >= low, values <= high
    between: Mask = above & below if low <= high else above | below
    return between


def _wrapped(value: int, bits: int, *, signed: bool) -> int:
    """The number that the lowest bits of a value stand for."""
    rest = value % (1 << bits)
    return rest - (1 << bits) if signed and rest >> bits - 1 else rest


def _has_overlay_bits(dataset: Dataset) -> bool:
    """True if an overlay of the file lies in the pixels' own words (PS3.3 section C.9.2, retired)."""
    return any((group, _BIT_POSITION) in dataset and _position(dataset, group) > 0 for group in _OVERLAY_GROUPS)


def _position(dataset: Dataset, group: int) -> int:
    try:
        return int(dataset[group, _BIT_POSITION].value or 0)
    except (TypeError, ValueError):
        return 0
