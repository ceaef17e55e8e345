"""The PatientID of a DICOM file, the same text in whatever bytes and character set it was written.

One patient's files come from several machines: one writes Latin-1, one UTF-8, one forgets the character set or names a
wrong one. Read as they are declared they would be several patients, each with a budget, and a withdrawal would find
one of them.
"""

from __future__ import annotations

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

_ESCAPE = b"\x1b"  # begins another character set within a text (ISO 2022), whose bytes are ASCII's


def patient_id(dataset: Dataset) -> str:
    """The identifier as text; "" where there is none.

    Bytes that are UTF-8 are read so, whatever is declared: no other character set makes valid UTF-8 of letters beyond
    ASCII by chance. Others are read as declared and, if they do not fit, as Latin-1.
    """
    raw = dataset.get_item("PatientID")
    value = raw.value if isinstance(raw, RawDataElement) else None
    if not isinstance(value, bytes):  # absent, empty, or in a file without bytes of its own
        return str(dataset.get("PatientID") or "")
    if _ESCAPE not in value:
        for encoding in ("utf-8", *_declared(dataset)):
            try:
                return value.decode(encoding)
            except (UnicodeDecodeError, LookupError):
                continue
        return value.decode("latin-1")
    return str(decode_bytes(value, _declared(dataset), set("\n\r\t\f")))


def _declared(dataset: Dataset) -> list[str]:
    """Python's names of the file's character sets; unknown ones count as none."""
    declared = dataset.get("SpecificCharacterSet")
    try:
        return convert_encodings(declared)
    except (LookupError, TypeError, ValueError):
        return []
