"""The modality LUT of a DICOM file: a table from stored values to the modality's own (PS3.3 section C.11.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from client.quarantine import Code, Refused

_ALL = 1 << 16  # entries, where the descriptor says 0


def through_lut(stored: NDArray[Any], item: Dataset) -> NDArray[np.float32]:
    """Looks up every value; those before the first entry get the first one, those beyond the last the last.

    The width of an entry is what the data has for each: the descriptor's bits and the VR are often wrong. So entries
    may be words, or bytes, two in a word.

    Args:
        stored: stored values, any shape.
        item: of ModalityLUTSequence.

    Raises:
        Refused: HEADER for a table without its descriptor, or with another number of entries than that says.
    """
    count, first = _descriptor(item, signed=stored.dtype.kind == "i")
    table = _entries(item, count).astype(np.float32)
    return table[np.clip(stored.astype(np.int64) - first, 0, count - 1)]


def _descriptor(item: Dataset, *, signed: bool) -> tuple[int, int]:
    """The number of entries and the stored value of the first; both may have been written in the other sign's form."""
    numbers = _words(item, "LUTDescriptor").tolist()
    if len(numbers) != 3:
        raise Refused(Code.HEADER)
    count, first, _ = numbers
    return count or _ALL, first - _ALL if signed and first >= _ALL // 2 else first


def _entries(item: Dataset, count: int) -> NDArray[np.uint16]:
    words = _words(item, "LUTData")
    if len(words) == count:
        return words
    if len(words) == (count + 1) // 2:  # two bytes a word, the first in the lower half (PS3.5 section 8.1.1)
        return np.stack([words & 0xFF, words >> 8], axis=1).reshape(-1)[:count]
    raise Refused(Code.HEADER)


def _words(item: Dataset, keyword: str) -> NDArray[np.uint16]:
    """The 16-bit words of an element, whatever its VR says that they are."""
    element = item.get_item(keyword)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and len(element.value) % 2 == 0:
        order = "<" if element.is_little_endian else ">"
        return np.frombuffer(element.value, f"{order}u2").astype(np.uint16)
    raise Refused(Code.HEADER)
