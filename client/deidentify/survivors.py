"""The last look: does what is about to be kept hold any text of the header it came from?

A worker collects the texts of a file's header (`identifiers_of`), and before an artefact is written the parent looks
for each of them in its bytes (`survivors`). Neither trusts the allow-list: the scan is there for the day when that has
a bug, a decoder copies a comment along, or somebody adds a field.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.deidentify.headers import OTHER_SYNTAXES, PHOTOMETRICS, TRANSFER_SYNTAXES, VIEW_POSITIONS, HeaderRecord
from client.modalities import MODALITIES

if TYPE_CHECKING:  # the parent process searches artefacts, never files: it has no use for pydicom
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

MIN_IDENTIFIER_BYTES = 5  # bytes (in UTF-8: two Chinese characters have 6); shorter texts are in any file by chance
MAX_IDENTIFIER_CHARACTERS = 64  # characters; a longer text that survived would survive with its beginning
MAX_IDENTIFIERS = 4096

_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")
# The character sets of DICOM (PS3.3 section C.12.1.1.2) in which a text that is not ASCII has other bytes.
_CHARACTER_SETS = (
    *("latin-1", "iso8859-2", "iso8859-3", "iso8859-4", "iso8859-5", "iso8859-6", "iso8859-7", "iso8859-8"),
    *("iso8859-9", "iso8859-11", "iso8859-15", "shift_jis", "euc_jp", "iso2022_jp_2", "euc_kr", "gb18030", "gbk"),
)

# What an artefact of any file holds: a header text that is part of one of these says nothing.
_CACHE_WORDS = ("__metadata__", "data_offsets", "shape", "dtype", "planes", "entry", "record", "blanked", "patient")
_FIXED_TEXT = "\n".join(
    (
        *_CACHE_WORDS,
        *(field.name for field in fields(HeaderRecord)),
        *(*MODALITIES, *OTHER_SYNTAXES, *PHOTOMETRICS, *TRANSFER_SYNTAXES.values(), *VIEW_POSITIONS),
    )
).lower()

# Sizes that any artefact of these dimensions has, checked to be numbers when it is read.
_SIZES = re.compile(rb'"(?:shape|data_offsets)":\[[0-9,]*\]|"(?:rows|columns)\\?": ?[0-9]{1,5}')

# A keyed hash holds the digits of an identifier by chance alone; five of them once in 17,000 keys.
_KEYED = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_FRONT = 1 << 14  # bytes; an artefact's sizes and keys stand before its pixels, where a pattern is slow to look for
_LONGER_THAN_CHANCE = 24  # hexadecimal digits

_GRAM = 4  # bytes
_SLOT_BITS = 20


def survivors(artefact: bytes, identifiers: Iterable[str]) -> int:
    """The number of identifiers that occur in an artefact, in any letter case.

    Each is looked for in UTF-8, UTF-16 of both byte orders, as JSON escapes it (once and twice), and where it is not
    ASCII in every DICOM character set and Unicode normal form. One pass over the artefact with a table of the first
    four bytes of each finds the few that may be there: 1 MB takes some 10 ms for any number of them.

    False positives: a float32 in [-1,1] has in its top byte a value that is no letter in either case, and a digit only
    below 2^-11 in size. Five bytes of text cover at least one top byte, so a name is never found in pixels; five given
    digits are found at one place of uniformly distributed pixels with probability under 5e-4 x 2^-32, which is 1.2e-7
    a megabyte, and every further character divides it by about 200. A text that is not ASCII may share bytes with the
    top byte of negative numbers: at five bytes 1.5e-5 a megabyte, at six 6e-8. uint8 pixels have no such protection
    (a smooth ramp is "12345"): look in them only for longer texts.

    Args:
        artefact: the bytes that are about to be written.
        identifiers: SENSITIVE: texts of the source's header; those of fewer than five bytes in an encoding are not
            looked for in it, nor is one that is part of the fixed words of an artefact ("MONOCHROME2", "shape").

    Returns:
        The number of different identifiers found; 0 is what lets an artefact be kept.

    Guarantee:
        No identifier is left as text in the encodings above.
        Not covered: compressed, encrypted, hashed or re-formatted text (a date with other separators), parts of an
        identifier, numbers that the header holds in binary, and what is drawn in the pixels.
    """
    needles = {text: _needles(text) for text in set(identifiers) if text.lower() not in _FIXED_TEXT}
    every = {needle for forms in needles.values() for needle in forms}
    haystack = (_SIZES.sub(b"", artefact[:_FRONT]) + artefact[_FRONT:]).lower()
    grams = _present_grams(haystack, np.array([_gram(needle) for needle in every], np.uint32))
    without_keys = _KEYED.sub(b"", haystack[:_FRONT]) + haystack[_FRONT:]
    found = {
        needle
        for needle in every
        if _gram(needle) in grams and needle in (haystack if len(needle) > _LONGER_THAN_CHANCE else without_keys)
    }
    return sum(not found.isdisjoint(forms) for forms in needles.values())


def _needles(text: str) -> set[bytes]:
    """The lower-case bytes that a text may have become; ASCII letters are lowered in every encoding alike."""
    forms, encodings = {text}, [*_ENCODINGS]
    if not text.isascii():
        normal = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
        forms = {cased for form in normal for cased in (form, form.lower(), form.upper())}
        encodings += _CHARACTER_SETS
    needles = set()
    for form in forms:
        once = json.dumps(form)[1:-1]
        needles |= {once.encode(), json.dumps(once)[1:-1].encode()}
        for encoding in encodings:
            with suppress(UnicodeEncodeError):
                needles.add(form.encode(encoding))
    return {needle.lower() for needle in needles if len(needle) >= MIN_IDENTIFIER_BYTES}


def _present_grams(haystack: bytes, grams: NDArray[np.uint32]) -> set[int]:
    """The four-byte groups that occur somewhere in the haystack (and a few that do not)."""
    if len(haystack) < _GRAM or not grams.size:
        return set()
    data = np.frombuffer(haystack, np.uint8)
    at = np.zeros(len(data) - _GRAM + 1, np.uint32)
    for i in range(_GRAM):
        at |= data[i : len(at) + i].astype(np.uint32) << np.uint32(8 * i)
    table = np.zeros(1 << _SLOT_BITS, np.bool_)
    table[_slots(grams)] = True
    return set(np.unique(at[table[_slots(at)]]).tolist())


def _slots(grams: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (grams * np.uint32(2654435761)) >> np.uint32(32 - _SLOT_BITS)


def _gram(needle: bytes) -> int:
    return int.from_bytes(needle[:_GRAM], "little")


_MAX_ELEMENTS = 20_000  # looked at in one file
_MAX_BINARY = 1 << 16  # bytes of one binary value that are searched for text
_MAX_PIECES = 16  # of one long text
_TEXT_VRS = frozenset(
    ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
)
_ONE_VALUE = frozenset(("LT", "ST", "UR", "UT"))  # where a backslash is a character
_ESCAPE = b"\x1b"  # begins another character set (ISO 2022)
_WELL_KNOWN = "1.2.840.10008."  # UIDs of the standard itself
_READABLE = re.compile(rb"[\x20-\x7e]{6,}")
_PIXEL_GROUP = 0x7FE0


def identifiers_of(dataset: Dataset) -> tuple[str, ...]:
    """The texts of a header that nothing which is kept may hold: SENSITIVE, to be searched for and dropped.

    Every value of a text VR in the data set, its sequences and its file meta group, with names also in their parts and
    long texts in pieces; readable runs in binary values and in the preamble. Pixel data is not looked at. Outer
    elements come first, so that the bounds of `bounded` (number and length) and of this module (elements, bytes) cut
    the innermost.

    Args:
        dataset: as read; values are converted on the way. One that cannot be is searched for readable runs.

    Returns:
        At most `MAX_IDENTIFIERS` texts of at most `MAX_IDENTIFIER_CHARACTERS` characters, none twice.
    """
    return bounded(_texts(dataset))


def _texts(dataset: Dataset) -> Iterator[str]:
    yield from _readable(getattr(dataset, "preamble", None) or b"")
    meta = getattr(dataset, "file_meta", None)
    queue, looked = deque([dataset] if meta is None else [meta, dataset]), 0
    while queue and looked < _MAX_ELEMENTS:
        items = queue.popleft()
        for tag in [*items.keys()][: _MAX_ELEMENTS - looked]:
            looked += 1
            if tag.group != _PIXEL_GROUP:
                yield from _element_texts(items, tag, queue)


def _element_texts(items: Dataset, tag: BaseTag, queue: deque[Dataset]) -> list[str]:
    """The texts of one element; the items of a sequence go to the queue instead."""
    original = b""
    try:
        raw = items.get_item(tag)
        original = raw.value if raw.is_raw and isinstance(raw.value, bytes) else b""
        if raw.is_raw and raw.VR in _TEXT_VRS and original.isascii() and _ESCAPE not in original:
            return [*_plain(raw.VR, original.decode("ascii"))]  # converting each value costs ten times as much
        element = items[tag]
        if element.VR != "SQ":
            return [*_values(element.VR, element.value, original)]
        inner = [item for item in element.value or () if hasattr(item, "get_item")]
    except Exception:  # noqa: BLE001 - pydicom raises anything on a value that is not what its VR says
        return [*_readable(original)]
    queue.extend(inner)
    return []


def _plain(vr: str, text: str) -> Iterator[str]:
    yield from _each(vr, [text] if vr in _ONE_VALUE else text.split("\\"))


def _values(vr: str, value: Any, original: bytes) -> Iterator[str]:
    if isinstance(value, bytes):
        yield from _readable(value)
    if vr not in _TEXT_VRS:
        return
    texts = [str(each) for each in value] if hasattr(value, "append") else [str(value)]
    if not original.isascii():
        # The very bytes of the file: latin-1 gives them back one for one, whatever their character set is.
        texts += original.decode("latin-1").split("\\")
    yield from _each(vr, texts)


def _each(vr: str, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if vr != "UI" or not text.startswith(_WELL_KNOWN):
            yield from _pieces(text)
        if vr == "PN":
            yield from re.split(r"[\^=]", text)


def _pieces(text: str) -> Iterator[str]:
    for line in re.split(r"[\r\n]+", text)[:_MAX_PIECES]:
        for start in range(0, min(len(line), _MAX_PIECES * MAX_IDENTIFIER_CHARACTERS), MAX_IDENTIFIER_CHARACTERS):
            yield line[start : start + MAX_IDENTIFIER_CHARACTERS]


def _readable(value: bytes) -> Iterator[str]:
    for run in _READABLE.findall(value[:_MAX_BINARY])[:_MAX_PIECES]:
        yield from _pieces(run.decode("ascii"))


def bounded(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts of a header as `Source.identifiers`: no short ones, none twice, the beginnings of long ones, not too many.

    Args:
        texts: SENSITIVE: values as they were read; surrounding padding does not count.
    """
    found: dict[str, None] = {}
    for text in texts:
        stripped = text.strip(" \t\r\n\0")
        if len(stripped.encode("utf-8", "replace")) >= MIN_IDENTIFIER_BYTES:
            found[stripped[:MAX_IDENTIFIER_CHARACTERS]] = None
            if len(found) == MAX_IDENTIFIERS:
                break
    return tuple(found)
