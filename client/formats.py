"""The formats of image files that a hospital may have: everything that others ask about one, once.

A new format is a reader in client/intake/readers and an entry in `FORMATS`. Readers are named and not imported: they
run in worker processes on hostile bytes, and few hospitals need all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from client.quarantine import Code

PREAMBLE = 128  # bytes, of anything, before the signature (PS3.10 section 7.1)
SIGNATURE = b"DICM"
GZIP_SIGNATURE = b"\x1f\x8b"
NIFTI_MAGIC = {344: b"n+1\0", 4: b"n+2\0"}  # by its place in the header; NIfTI-1 and NIfTI-2

FIRST_BYTES = 348  # the header of NIfTI-1, and more than any other signature needs

_FIRST_GROUPS = (0x0002, 0x0008)  # of a DICOM file without a preamble: its meta group, or its data set's first
_MAX_FIRST_ELEMENT = 0x00FF
_FORMS = (("<", True), ("<", False), (">", True))  # byte order, explicit VR


def begins_as_dicom(first: bytes) -> bool:
    """True for the signature after a preamble, and for a data set without either, as old archives hold them.

    That is an element of group 2 or 8, in any of the three native forms, and a later one of group 2 or 8 after it.
    """
    if first[PREAMBLE:].startswith(SIGNATURE):
        return True
    return any(_is_element_pair(first, order, explicit=explicit) for order, explicit in _FORMS)


def _is_element_pair(first: bytes, order: str, *, explicit: bool) -> bool:
    if len(first) < 8:
        return False
    tag, length = struct.unpack_from(f"{order}HH", first), struct.unpack_from(f"{order}L", first, 4)[0]
    if explicit:
        if not (first[4:6].isalpha() and first[4:6].isupper()):
            return False
        length = struct.unpack_from(f"{order}H", first, 6)[0]
    at = 8 + length
    if length % 2 or tag[0] not in _FIRST_GROUPS or tag[1] > _MAX_FIRST_ELEMENT or at + 4 > len(first):
        return False
    following: tuple[int, int] = struct.unpack_from(f"{order}HH", first, at)
    return tag < following and following[0] in _FIRST_GROUPS


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """One format, by which a kind of data in site.toml is known.

    Attributes:
        words: what a folder of this kind holds, for people.
        reader: "module:function", from a path to a `Source`. It takes `file_bytes` and `pixels`, the limits; `modality`
            where the file does not say it; and `frames` where a file may hold several.
        starts: whether the first `FIRST_BYTES` of a file are those of this format.
        suffixes: of its files' names, longer ones first; any other dot is part of a name, as in a UID.
        code: of a file that starts otherwise.
        syntaxes: what its records give as transfer syntax, where these are not DICOM's.
        names_patient: a file says whose it is; where it does not, the label table does.
        names_modality: a file says its modality; where it does not, site.toml does.
        has_frames: a file may hold several frames or slices.
        takes_boxes: boxes on a file say which pixels they mean.
    """

    words: str
    reader: str
    starts: Callable[[bytes], bool]
    suffixes: tuple[str, ...]
    code: Code
    syntaxes: tuple[str, ...] = ()
    names_patient: bool = False
    names_modality: bool = False
    has_frames: bool = False
    takes_boxes: bool = False


FORMATS: dict[str, FileFormat] = {
    "dicom": FileFormat(
        words="a folder of DICOM files",
        reader="client.intake.readers.dicom:read_dicom",
        starts=begins_as_dicom,
        suffixes=(".dcm",),
        code=Code.NOT_DICOM,
        names_patient=True,
        names_modality=True,
        has_frames=True,
        takes_boxes=True,
    ),
    "images": FileFormat(
        words="a folder of PNG and JPEG files",
        reader="client.intake.readers.raster:read_picture",
        starts=lambda first: first.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")),
        suffixes=(".png", ".jpg", ".jpeg"),
        code=Code.NOT_PICTURE,
        syntaxes=("PNG", "JPEG file"),
        takes_boxes=True,
    ),
    "nifti": FileFormat(
        words="a folder of NIfTI files",
        reader="client.intake.readers.nifti:read_nifti",
        starts=lambda first: (
            first.startswith(GZIP_SIGNATURE) or any(first[at:].startswith(m) for at, m in NIFTI_MAGIC.items())
        ),
        suffixes=(".nii.gz", ".nii"),
        code=Code.NOT_NIFTI,
        syntaxes=("NIfTI",),
        has_frames=True,
    ),
}
"""By the kind of data whose folders hold such files."""

KINDS = {kind: known.words for kind, known in FORMATS.items()} | {
    "npz": "one file of arrays",
    "pacs": "fetched from an archive",
}
"""Every kind of data, in words."""

if TYPE_CHECKING:
    Kind = str
else:
    Kind = Literal[tuple(KINDS)]  # a closed list where site.toml is read


def format_name(kind: str) -> str:
    """The entry of `FORMATS` for the files of a kind of data; an archive sends DICOM files."""
    return "dicom" if kind == "pacs" else kind


def file_format(kind: str) -> FileFormat:
    """The format of the files of a kind of data."""
    return FORMATS[format_name(kind)]


def kinds_with(asked: Callable[[FileFormat], bool]) -> tuple[str, ...]:
    """The kinds of data whose files' format is so; an NPZ file is no folder of files."""
    return tuple(kind for kind in KINDS if kind != "npz" and asked(file_format(kind)))
