"""Why a file was left out: a closed list of codes, because any longer text could hold what the file holds."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """One reason. The name is what tables and files show; `EXPLAINED` says it in words."""

    NOT_DICOM = "NOT_DICOM"
    NOT_PICTURE = "NOT_PICTURE"
    NOT_NIFTI = "NOT_NIFTI"
    NO_LABEL = "NO_LABEL"
    UNCERTAIN_LABEL = "UNCERTAIN_LABEL"
    SEVERAL_LABELS = "SEVERAL_LABELS"
    NO_MASK = "NO_MASK"
    NO_PATIENT_ID = "NO_PATIENT_ID"
    UNREADABLE = "UNREADABLE"
    TOO_LARGE = "TOO_LARGE"
    SOP_CLASS = "SOP_CLASS"
    MODALITY = "MODALITY"
    TRANSFER_SYNTAX = "TRANSFER_SYNTAX"
    NO_DECODER = "NO_DECODER"
    HEADER = "HEADER"
    FRAMES = "FRAMES"
    NO_PIXELS = "NO_PIXELS"
    TRUNCATED = "TRUNCATED"
    DECODE = "DECODE"
    NOT_FINITE = "NOT_FINITE"
    NOT_HOUNSFIELD = "NOT_HOUNSFIELD"
    FLAT = "FLAT"
    HELD = "HELD"
    BURNED_IN_TEXT = "BURNED_IN_TEXT"
    IDENTIFIER = "IDENTIFIER"
    EXCLUDED = "EXCLUDED"
    BAD_MASK = "BAD_MASK"
    PREPARE = "PREPARE"
    MEMORY = "MEMORY"
    TIMEOUT = "TIMEOUT"
    CRASHED = "CRASHED"


EXPLAINED: dict[Code, str] = {
    Code.NOT_DICOM: "no DICOM signature at byte 128, and no data set at byte 0",
    Code.NOT_PICTURE: "neither PNG nor JPEG by its first bytes",
    Code.NOT_NIFTI: "no NIfTI-1 or NIfTI-2 file, plain or gzip",
    Code.NO_LABEL: "no label for it in the label table, or no finding that stands for one ([labels].missing)",
    Code.UNCERTAIN_LABEL: "its only findings are uncertain ([labels].uncertain)",
    Code.SEVERAL_LABELS: "its findings stand for several labels ([labels].several)",
    Code.NO_MASK: "the plan draws masks and the label table names none for it",
    Code.NO_PATIENT_ID: "no patient identifier, so no patient to protect it under",
    Code.UNREADABLE: "the file or its data set cannot be read (or inflated)",
    Code.TOO_LARGE: "more bytes or pixels than the limits allow",
    Code.SOP_CLASS: "not an image object of a kind that is taken",
    Code.MODALITY: "its modality contradicts its object class, or is not in [deidentify].modalities",
    Code.TRANSFER_SYNTAX: "an unknown transfer syntax",
    Code.NO_DECODER: "no decoder installed for its compression (see `ghostnet doctor`)",
    Code.HEADER: (
        "a header value that the pixels depend on is missing or impossible, or the pixels contradict it: Rows, "
        "Columns, SamplesPerPixel, PhotometricInterpretation, BitsAllocated, BitsStored, HighBit, PixelRepresentation, "
        "PixelPaddingValue, pixel spacing, rescale or modality LUT"
    ),
    Code.FRAMES: "its number of frames is impossible or is not what the pixel data holds",
    Code.NO_PIXELS: "no pixel data of whole numbers",
    Code.TRUNCATED: "less pixel data than the header says",
    Code.DECODE: "the pixel data cannot be decoded",
    Code.NOT_FINITE: "a pixel is not a finite number, and not background outside of the body",
    Code.NOT_HOUNSFIELD: "CT whose values are no Hounsfield units: scaled already, or a mask",
    Code.FLAT: "every pixel has the same value, or none is valid",
    Code.BURNED_IN_TEXT: "text in the pixels that could not be blanked, or that [deidentify].burned_in refuses",
    Code.HELD: "usually carries text, or over a quarter of it was blanked: a person must look (`ghostnet site review`)",
    Code.IDENTIFIER: "a text of its header was found in what would have been kept of it",
    Code.EXCLUDED: "its patient is on the list of patients to leave out",
    Code.BAD_MASK: "the mask is missing, not of the image's own size and frames, or has a region that the plan has not",
    Code.PREPARE: "the pixels cannot be prepared",
    Code.MEMORY: "needs more memory than a worker may use",
    Code.TIMEOUT: "took longer than a worker may take",
    Code.CRASHED: "the decoder crashed on it",
}

# What depends on the machine, its load or a person's word, not on the file, is tried again on the next run.
TRANSIENT = frozenset(
    {Code.TOO_LARGE, Code.NO_DECODER, Code.MEMORY, Code.TIMEOUT, Code.CRASHED, Code.PREPARE, Code.HELD, Code.EXCLUDED}
)


class Refused(Exception):
    """A file that is left out. Carries a code and nothing else."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code
