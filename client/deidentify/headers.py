"""Headers are dropped: a handful of typed values from closed lists is copied into a new object, and nothing else.

This is an allow-list, not a profile. PS3.15's table names 655 attributes to remove; a file holds what no table names
(private tags, nested items, curves, trailing bytes). Training needs pixels and the few values below, none of which
can hold free text, a date, a UID or a name. `profile.py` checks the list against that table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from client.formats import FORMATS
from client.modalities import MODALITIES, Modality
from client.quarantine import Code, Refused

if TYPE_CHECKING:  # the parent process reads records, never files: it has no use for pydicom
    from pydicom.dataset import Dataset


_STORAGE = "1.2.840.10008.5.1.4.1.1."

SOP_CLASSES: dict[str, Modality] = {
    _STORAGE + "1": "CR",
    _STORAGE + "1.1": "DX",
    _STORAGE + "1.1.1": "DX",
    _STORAGE + "1.2": "MG",
    _STORAGE + "1.2.1": "MG",
    _STORAGE + "1.3": "IO",
    _STORAGE + "1.3.1": "IO",
    _STORAGE + "2": "CT",
    _STORAGE + "2.1": "CT",  # enhanced
    _STORAGE + "2.2": "CT",  # legacy converted enhanced
    _STORAGE + "3": "US",  # multi-frame, retired
    _STORAGE + "3.1": "US",  # multi-frame
    _STORAGE + "4": "MR",
    _STORAGE + "4.1": "MR",  # enhanced
    _STORAGE + "4.3": "MR",  # enhanced colour
    _STORAGE + "4.4": "MR",  # legacy converted enhanced
    _STORAGE + "5": "NM",  # retired
    _STORAGE + "6": "US",  # retired
    _STORAGE + "6.1": "US",
    _STORAGE + "6.2": "US",  # enhanced volume
    _STORAGE + "7": "SC",
    _STORAGE + "7.1": "SC",  # multi-frame, one bit
    _STORAGE + "7.2": "SC",  # multi-frame, grey, 8 bit
    _STORAGE + "7.3": "SC",  # multi-frame, grey, 16 bit
    _STORAGE + "7.4": "SC",  # multi-frame, colour
    _STORAGE + "12.1": "XA",
    _STORAGE + "12.1.1": "XA",  # enhanced
    _STORAGE + "12.2": "RF",
    _STORAGE + "12.2.1": "RF",  # enhanced
    _STORAGE + "13.1.1": "XA",  # three-dimensional
    _STORAGE + "13.1.3": "MG",  # tomosynthesis
    _STORAGE + "13.1.4": "MG",  # projections of a tomosynthesis
    _STORAGE + "13.1.5": "MG",
    _STORAGE + "20": "NM",
    _STORAGE + "77.1.1": "ES",
    _STORAGE + "77.1.2": "GM",
    _STORAGE + "77.1.4": "XC",
    _STORAGE + "77.1.5.1": "OP",
    _STORAGE + "77.1.5.2": "OP",
    _STORAGE + "77.1.5.4": "OPT",
    _STORAGE + "77.1.7": "DMS",
    _STORAGE + "128": "PT",
    _STORAGE + "128.1": "PT",  # legacy converted enhanced
    _STORAGE + "130": "PT",  # enhanced
}
"""Image objects that are taken, with the one modality each may have (PS3.4 section B.5, PS3.6 table A-1). Video,
whole slides, segmentations, structured reports, documents and presentation states are not among them."""

TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "explicit big endian",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K lossless RPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE",
}

OTHER_SYNTAXES = tuple(syntax for known in FORMATS.values() for syntax in known.syntaxes)
"""What a record gives as transfer syntax for a file that is not DICOM."""

RADIOGRAPHS = frozenset({"CR", "DX", "DR", "PX", "RG"})
"""What devices call a radiograph in Modality, each in the others' SOP classes too."""

PHOTOMETRICS = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"}
)
VIEW_POSITIONS = frozenset(
    {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAO", "RAO", "LPO", "RPO"}  # CR and DX
    | {"CC", "MLO", "ML", "LM", "XCCL", "XCCM", "FB", "SIO"}  # MG
)

_COUNTS = {"rows": 65535, "columns": 65535, "samples": 3, "bits_stored": 64}  # 64: a NIfTI of doubles
_CLOSED: dict[str, frozenset[str]] = {
    "modality": frozenset(MODALITIES),
    "photometric": PHOTOMETRICS,
    "transfer_syntax": frozenset(TRANSFER_SYNTAXES.values()) | frozenset(OTHER_SYNTAXES),
    "view_position": VIEW_POSITIONS | {""},
}

SOURCES: dict[str, tuple[str, ...]] = {
    "modality": ("SOPClassUID", "Modality"),
    "rows": ("Rows",),
    "columns": ("Columns",),
    "samples": ("SamplesPerPixel",),
    "photometric": ("PhotometricInterpretation",),
    "bits_stored": ("BitsStored",),
    "transfer_syntax": ("TransferSyntaxUID",),
    "view_position": ("ViewPosition",),
}
"""The attributes that each field of a record is made from; none may be one that PS3.15 removes (`profile.py`)."""


@dataclass(frozen=True, kw_only=True)
class HeaderRecord:
    """All that is kept of a header.

    Guarantee:
        Every text is one of a closed list of this module and every number lies in 1..65535, checked on construction.
        Not covered: what a value in range says by itself (a rare size or view).
    """

    modality: str
    rows: int
    columns: int
    samples: int  # 1 grey, 3 colour
    photometric: str
    bits_stored: int
    transfer_syntax: str  # a name of TRANSFER_SYNTAXES or OTHER_SYNTAXES
    view_position: str  # "" when absent or not a standard code

    def __post_init__(self) -> None:
        """Refuses any value that is not on the lists: also the last line against a worker that lies."""
        values = asdict(self)
        for name, top in _COUNTS.items():
            if type(values[name]) is not int or not 1 <= values[name] <= top:
                raise Refused(Code.HEADER)
        for name, allowed in _CLOSED.items():
            if type(values[name]) is not str or values[name] not in allowed:
                raise Refused(Code.HEADER)


def read_record(dataset: Dataset, transfer_syntax: str) -> HeaderRecord:
    """Copies the allowed values of a header into a new object.

    Args:
        dataset: the source's header; it is not kept.
        transfer_syntax: UID from the file's meta group.

    Raises:
        Refused: with SOP_CLASS, MODALITY, TRANSFER_SYNTAX or HEADER; never with a value of the file.
    """
    if transfer_syntax not in TRANSFER_SYNTAXES:
        raise Refused(Code.TRANSFER_SYNTAX)
    modality = SOP_CLASSES.get(_text(dataset, "SOPClassUID"))
    if modality is None:
        raise Refused(Code.SOP_CLASS)
    stated = _text(dataset, "Modality")
    agrees = stated == modality or {stated, modality} <= RADIOGRAPHS
    if modality != "SC" and not agrees:  # a capture may show anything
        raise Refused(Code.MODALITY)
    view = _text(dataset, "ViewPosition")
    return HeaderRecord(
        modality=modality,
        rows=_count(dataset, "Rows"),
        columns=_count(dataset, "Columns"),
        samples=_count(dataset, "SamplesPerPixel"),
        photometric=_text(dataset, "PhotometricInterpretation"),
        bits_stored=_count(dataset, "BitsStored"),
        transfer_syntax=TRANSFER_SYNTAXES[transfer_syntax],
        view_position=view if view in VIEW_POSITIONS else "",
    )


def record_from_dict(values: Mapping[str, Any]) -> HeaderRecord:
    """The record that `dataclasses.asdict` wrote, checked again.

    Raises:
        Refused: a key too many or too few, or a value that is not on the lists.
    """
    if set(values) != set(HeaderRecord.__dataclass_fields__):
        raise Refused(Code.HEADER)
    return HeaderRecord(**values)


def attribute(dataset: Dataset, keyword: str) -> Any:
    """The value of an element; None if it is absent.

    Raises:
        Refused: HEADER for one that is there and cannot be read.
    """
    try:
        return dataset.get(keyword)
    except Exception:  # noqa: BLE001 - pydicom raises anything on a value that is not what its VR says
        raise Refused(Code.HEADER) from None


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = attribute(dataset, keyword)
    except Refused:  # no word of a closed list
        return ""
    return str(value).strip(" \0") if isinstance(value, str) else ""


def _count(dataset: Dataset, keyword: str) -> int:
    value = attribute(dataset, keyword)
    if not isinstance(value, int):
        raise Refused(Code.HEADER)
    return int(value)
