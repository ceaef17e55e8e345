"""Files with identifiers planted wherever DICOM has room for one, over any single-frame image.

Each planted value is unique and turns up nowhere by chance, so that one search of whatever is kept tells whether
anything came through. The places are those in which de-identifiers were measured to leave identifiers behind.
"""

from __future__ import annotations

import copy
import datetime
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from pydicom import config
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import JPEGBaseline8Bit

from client.deidentify.profile import load_profile

TEXT_VRS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
TIME_VRS = ("DA", "DT", "TM")
NUMBER_VRS = ("DS", "IS")
BINARY_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
# What the image itself is made of: with text in it the file is no image, and is refused.
_IMAGE_GROUP, _PIXEL_GROUP = 0x0028, 0x7FE0
_NEEDED = {Tag(0x0008, 0x0005), Tag(0x0008, 0x0016), Tag(0x0008, 0x0060), Tag(0x0010, 0x0020), Tag(0x0018, 0x5101)}


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One file, and every value that was planted in it."""

    place: str
    content: bytes = field(repr=False)
    values: tuple[str, ...]


class Planter:
    """Writes values into a copy of a base data set, and remembers them."""

    def __init__(self, base: Dataset, first: int) -> None:
        self.dataset = copy.deepcopy(base)
        self.values: list[str] = []
        self._next = first

    def value(self, vr: str) -> str | bytes:
        """A value that no other call gives."""
        self._next += 1
        token = f"ZQ{self._next:06d}QZ"
        date = (datetime.date(1905, 1, 1) + datetime.timedelta(days=self._next)).strftime("%Y%m%d")
        special = {
            "PN": f"{token}^{token[::-1]}",
            "UR": f"http://{token}",
            "UI": f"1.2.840.99999.{self._next}",
            "DA": date,
            "DT": f"{date}120000.{self._next:06d}",
            "TM": f"{self._next % 24:02d}{self._next % 60:02d}12.{self._next:06d}",
            "AS": f"{self._next % 120:03d}Y",  # four characters: no search finds them
            "DS": f"{self._next}.125",
            "IS": str(7_000_000 + self._next),
        }
        made = special.get(vr, token)
        if vr not in ("AS",):
            self.values.append(made)
        return f"{token}PAD".encode() + b"PADPA"[: 16 - len(token) - 3] if vr in BINARY_VRS else made

    def add(self, item: Dataset, tag: int | tuple[int, int], vr: str) -> None:
        """Plants a value, or, for a sequence, a name and a text in an item."""
        vr = vr.split(" or ")[-1]
        if vr == "SQ":
            inner = Dataset()
            self.add(inner, (0x0010, 0x0010), "PN")
            self.add(inner, (0x0008, 0x0104), "LO")
            item.add_new(tag, "SQ", Sequence([inner]))
        elif vr in (*TEXT_VRS, *TIME_VRS, *NUMBER_VRS, *BINARY_VRS, "UI", "AS"):
            item.add_new(tag, vr, self.value(vr))
        # Numbers in binary hold no text; "AT" holds no value of anybody.

    def done(self, place: str, content: bytes | None = None) -> Planted:
        """The file."""
        return Planted(place=place, content=content or _written(self.dataset), values=tuple(self.values))


def plant_everywhere(base: Dataset) -> list[Planted]:
    """One file for each kind of place; each is still an image that can be read.

    Args:
        base: a single-frame data set with native pixels and a file meta group; it is not changed.
    """
    places: tuple[Callable[[Dataset, int], Planted], ...] = (
        *(_listed, _nested, _private, _curves_and_overlays, _misplaced, _unlisted, _every_vr),
        *(_meta_and_preamble, _icon_and_profile, _names_in_other_scripts, _jpeg_comment, _trailing_bytes),
    )
    mode = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        return [place(base, 10_000 * (number + 1)) for number, place in enumerate(places)]
    finally:
        config.settings.writing_validation_mode = mode


def _listed(base: Dataset, first: int) -> Planted:
    """Every attribute of PS3.15's table."""
    planter = Planter(base, first)
    for tag in _table_tags():
        planter.add(planter.dataset, tag, _vr(tag))
    return planter.done("listed")


def _nested(base: Dataset, first: int) -> Planted:
    """Every attribute of the table that is no sequence, one to three sequences deep."""
    planter = Planter(base, first)
    items = [Dataset() for _ in range(3)]
    for depth in range(3):
        for tag in _table_tags():
            if _vr(tag) != "SQ":
                planter.add(items[depth], tag, _vr(tag))
    items[1].add_new((0x0008, 0x2218), "SQ", Sequence([items[2]]))
    items[0].add_new((0x0008, 0x9124), "SQ", Sequence([items[1]]))
    planter.dataset.add_new((0x5200, 0x9229), "SQ", Sequence([items[0]]))
    return planter.done("nested")


def _private(base: Dataset, first: int) -> Planted:
    """Private groups with a creator, without one, with one that is a name, and nested."""
    planter = Planter(base, first)
    for group in (0x0009, 0x0019, 0x7FE1):
        planter.dataset.add_new((group, 0x0010), "LO", "ACME HEADER")
        for offset, vr in enumerate(("LO", "UN", "OB", "PN", "DA", "DS", "UI", "UT", "SQ")):
            planter.add(planter.dataset, (group, 0x1000 + offset), vr)
    planter.add(planter.dataset, (0x0021, 0x1001), "LO")
    planter.add(planter.dataset, (0x0023, 0x0010), "LO")
    inner = Dataset()
    inner.add_new((0x0009, 0x0010), "LO", "ACME HEADER")
    for offset, vr in enumerate(("LO", "UN", "OB", "PN")):
        planter.add(inner, (0x0009, 0x1000 + offset), vr)
    planter.dataset.add_new((0x0008, 0x2218), "SQ", Sequence([inner]))
    return planter.done("private")


def _curves_and_overlays(base: Dataset, first: int) -> Planted:
    """Repeating groups: 50xx and 60xx."""
    planter = Planter(base, first)
    for group in (0x5000, 0x501E):
        for element, vr in ((0x0022, "LO"), (0x2500, "LO"), (0x3000, "OB")):
            planter.add(planter.dataset, (group, element), vr)
    for group in (0x6000, 0x6002, 0x601E):
        for element, vr in ((0x0022, "LO"), (0x1500, "LO"), (0x3000, "OW"), (0x4000, "LT")):
            planter.add(planter.dataset, (group, element), vr)
    return planter.done("curves and overlays")


def _misplaced(base: Dataset, first: int) -> Planted:
    """A name where a code belongs, in an attribute that no dictionary has, and in the padding after everything."""
    planter = Planter(base, first)
    planter.add(planter.dataset, (0x0018, 0x5101), "CS")  # view position, which is kept if it is a standard code
    planter.add(planter.dataset, (0x0008, 0x0008), "CS")
    planter.add(planter.dataset, (0x0018, 0xFF77), "UN")
    planter.add(planter.dataset, (0xFFFC, 0xFFFC), "OB")
    return planter.done("misplaced")


def _unlisted(base: Dataset, first: int) -> Planted:
    """Every text, date and time of the data dictionary that the table does not name."""
    planter = Planter(base, first)
    listed = set(_table_tags())
    for number, (vr, *_) in sorted(DicomDictionary.items()):
        tag = Tag(number)
        if vr in (*TEXT_VRS, *TIME_VRS) and vr != "CS" and tag not in listed and _may_change(tag):
            planter.add(planter.dataset, tag, vr)
    return planter.done("unlisted")


def _every_vr(base: Dataset, first: int) -> Planted:
    """Each VR that can hold a value of somebody, in a private block."""
    planter = Planter(base, first)
    block = planter.dataset.private_block(0x0043, "EVERY VR", create=True)
    for offset, vr in enumerate((*TEXT_VRS, *TIME_VRS, *NUMBER_VRS, *BINARY_VRS, "UI", "SQ")):
        planter.add(planter.dataset, block.get_tag(offset), vr)
    return planter.done("every VR")


def _meta_and_preamble(base: Dataset, first: int) -> Planted:
    """The 128 bytes before the signature, and the file meta group."""
    planter = Planter(base, first)
    meta = planter.dataset.file_meta
    for element, vr in ((0x0013, "SH"), (0x0016, "AE"), (0x0017, "AE"), (0x0018, "AE"), (0x0026, "UR"), (0x0100, "UI")):
        planter.add(meta, (0x0002, element), vr)
    planter.add(meta, (0x0002, 0x0102), "OB")
    preamble = planter.value("OB")
    planter.dataset.preamble = bytes(preamble) + bytes(128 - len(preamble))
    return planter.done("file meta and preamble")


def _icon_and_profile(base: Dataset, first: int) -> Planted:
    """A small copy of the image, and a colour profile."""
    planter = Planter(base, first)
    icon = Dataset()
    icon.Rows = icon.Columns = 4
    icon.BitsAllocated = icon.BitsStored = 8
    icon.HighBit, icon.PixelRepresentation, icon.SamplesPerPixel = 7, 0, 1
    icon.PhotometricInterpretation = "MONOCHROME2"
    planter.add(icon, (0x7FE0, 0x0010), "OB")
    planter.dataset.add_new((0x0088, 0x0200), "SQ", Sequence([icon]))
    planter.add(planter.dataset, (0x0028, 0x2000), "OB")
    return planter.done("icon and profile")


def _names_in_other_scripts(base: Dataset, first: int) -> Planted:
    """A Japanese name in three forms, in the character set that Japanese hospitals use, and a German address."""
    planter = Planter(base, first)
    planter.dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87", "ISO 2022 IR 100"]
    name = "Yamazaki^Tarouzaemon=山崎^太郎左衛門=やまざき^たろうざえもん"
    address = f"Äußere Röntgenstraße {first}"
    planter.dataset.PatientName, planter.dataset.PatientAddress = name, address
    planter.values += ["Yamazaki", "Tarouzaemon", "山崎", "太郎左衛門", "やまざき", "たろうざえもん", address]
    return planter.done("other scripts")


def _jpeg_comment(base: Dataset, first: int) -> Planted:
    """Comment and application segments of the compressed image itself."""
    planter = Planter(base, first)
    stored = np.frombuffer(base.PixelData, "<u2").reshape(base.Rows, base.Columns)
    grey = (stored.astype(np.float64) / max(1, stored.max()) * 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "JPEG", quality=95)
    jpeg = stream.getvalue()
    segments = b"".join(
        marker + (len(text) + 2).to_bytes(2, "big") + text
        for marker, text in ((b"\xff\xfe", bytes(planter.value("OB"))), (b"\xff\xe5", bytes(planter.value("OB"))))
    )
    dataset = planter.dataset
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = encapsulate([jpeg[:2] + segments + jpeg[2:]])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return planter.done("JPEG comment")


def _trailing_bytes(base: Dataset, first: int) -> Planted:
    """Bytes after the last pixel inside the pixel data, and after the last element of the file."""
    planter = Planter(base, first)
    planter.dataset.PixelData = base.PixelData + bytes(planter.value("OB"))
    padding = bytes(planter.value("OB"))
    element = b"\xfc\xff\xfc\xffOB\x00\x00" + len(padding).to_bytes(4, "little") + padding
    return planter.done("trailing bytes", _written(planter.dataset) + element)


def _table_tags() -> Iterator[BaseTag]:
    for group, element in sorted(load_profile().tags):
        tag = Tag(group, element)
        if _may_change(tag):
            yield tag


def _may_change(tag: BaseTag) -> bool:
    return 0x0008 <= tag.group < _PIXEL_GROUP and tag.group != _IMAGE_GROUP and tag not in _NEEDED


def _vr(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:  # newer than pydicom's dictionary
        return "LO"


def _written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
