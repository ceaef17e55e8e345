"""Headers are dropped: a handful of typed values from closed lists is copied into a new object, and nothing else.

This is an allow-list, not a profile. PS3.15's table names 655 attributes to remove; a file holds what no table names
(private tags, nested items, curves, trailing bytes). Training needs pixels and the few values below, none of which
can hold free text, a date, a UID or a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from client.intake.quarantine import Code, Refused

if TYPE_CHECKING:  # the parent process reads records, never files: it has no use for pydicom
    from pydicom.dataset import Dataset

Modality = Literal["CR", "DX", "MG", "CT", "MR"]
"""What may be taken in; `SOP_CLASSES` says as which objects."""

BurnedIn = Literal["blank", "quarantine", "trust"]
"""What is done about text in the pixels."""

SOP_CLASSES: dict[str, Modality] = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "MG",
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
}
"""Image objects that are taken, with the one modality each may have. Screen captures and ultrasound, which usually
carry text, are not among them."""

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

PHOTOMETRICS = frozenset({"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})
VIEW_POSITIONS = frozenset(
    {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LAO", "RAO", "LPO", "RPO"}  # CR and DX
    | {"CC", "MLO", "ML", "LM", "XCCL", "XCCM", "FB", "SIO"}  # MG
)

_COUNTS = {"rows": 65535, "columns": 65535, "samples": 3, "bits_stored": 16}
_CLOSED: dict[str, frozenset[str]] = {
    "modality": frozenset(SOP_CLASSES.values()),
    "photometric": PHOTOMETRICS,
    "transfer_syntax": frozenset(TRANSFER_SYNTAXES.values()),
    "view_position": VIEW_POSITIONS | {""},
}


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
    transfer_syntax: str  # a name of TRANSFER_SYNTAXES
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
    if _text(dataset, "Modality") != modality:
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


def _text(dataset: Dataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return str(value).strip(" \0") if isinstance(value, str) else ""


def _count(dataset: Dataset, keyword: str) -> int:
    value = dataset.get(keyword)
    if not isinstance(value, int):
        raise Refused(Code.HEADER)
    return int(value)
