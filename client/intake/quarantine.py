"""Why a file was left out: a closed list of codes, because any longer text could hold what the file holds."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """One reason. The name is what tables and files show; `EXPLAINED` says it in words."""

    NOT_DICOM = "NOT_DICOM"
    NO_LABEL = "NO_LABEL"
    NO_MASK = "NO_MASK"
    NO_PATIENT_ID = "NO_PATIENT_ID"
    UNREADABLE = "UNREADABLE"
    TOO_LARGE = "TOO_LARGE"
    SOP_CLASS = "SOP_CLASS"
    MODALITY = "MODALITY"
    TRANSFER_SYNTAX = "TRANSFER_SYNTAX"
    NO_DECODER = "NO_DECODER"
    HEADER = "HEADER"
    MULTI_FRAME = "MULTI_FRAME"
    NO_PIXELS = "NO_PIXELS"
    TRUNCATED = "TRUNCATED"
    DECODE = "DECODE"
    FLAT = "FLAT"
    BURNED_IN_TEXT = "BURNED_IN_TEXT"
    BAD_MASK = "BAD_MASK"
    PREPARE = "PREPARE"
    MEMORY = "MEMORY"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"


EXPLAINED: dict[Code, str] = {
    Code.NOT_DICOM: "no DICOM signature at byte 128",
    Code.NO_LABEL: "no label for it in the label table",
    Code.NO_MASK: "the plan draws masks and the label table names none for it",
    Code.NO_PATIENT_ID: "no patient identifier, so no patient to protect it under",
    Code.UNREADABLE: "the file or its header cannot be read",
    Code.TOO_LARGE: "more bytes or pixels than the limits allow",
    Code.SOP_CLASS: "not a single-frame CR, DX, MG, CT or MR image object",
    Code.MODALITY: "its modality contradicts its object class, or is not in [deidentify].modalities",
    Code.TRANSFER_SYNTAX: "an unknown transfer syntax",
    Code.NO_DECODER: "no decoder installed for its compression (see `ghostnet doctor`)",
    Code.HEADER: "a header value that the pixels depend on is missing or impossible",
    Code.MULTI_FRAME: "several frames in one file",
    Code.NO_PIXELS: "no pixel data",
    Code.TRUNCATED: "less pixel data than the header says",
    Code.DECODE: "the pixel data cannot be decoded",
    Code.FLAT: "every pixel has the same value, or none is valid",
    Code.BURNED_IN_TEXT: "text in the pixels that could not be blanked, or that [deidentify].burned_in refuses",
    Code.BAD_MASK: "the mask is not a grey PNG of the image's own size inside the data folder",
    Code.PREPARE: "the pixels cannot be prepared",
    Code.MEMORY: "needs more memory than a worker may use",
    Code.TIMEOUT: "took longer than a worker may take",
    Code.CRASHED: "the decoder crashed on it",
}

# What depends on the machine or its load, not on the file, is tried again on the next run.
TRANSIENT = frozenset({Code.TOO_LARGE, Code.NO_DECODER, Code.MEMORY, Code.TIMEOUT, Code.CRASHED, Code.PREPARE})


class Refused(Exception):
    """A file that is left out. Carries a code and nothing else."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code
