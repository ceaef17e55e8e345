"""One image as the cohort sees it, whatever it was read from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.deidentify.headers import HeaderRecord
from client.quarantine import Code


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image that is taken.

    Attributes:
        planes: float32 (planes,size,size) in the plan's range.
        label: index into the plan's labels.
        patient: the patient's key.
        source: SENSITIVE: SHA-256 of what it was read from: the file, or the pixels of an NPZ row.
        test: never trained on; None where the site splits by patient.
        record: header values that are kept; None without a header.
        blanked: boxes of text that were blanked.
        drawn: what its mask was drawn from; "" without a mask.
        cached: its file was not opened again, because its content is known.
    """

    planes: NDArray[np.float32]
    label: int
    patient: str
    source: bytes = field(repr=False)
    test: bool | None = None
    record: HeaderRecord | None = None
    blanked: int = 0
    drawn: Literal["", "mask", "boxes"] = ""
    cached: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """Entries besides images: without their files, without their images, lost or deleted. SENSITIVE.

    Attributes:
        rows_without_file: lines of the label table whose image is not there.
        mask_files: files that a line of the label table names as a mask, and none as an image.
        unlisted_files: files that no DICOMDIR above them lists, though there is one; looked at like any other.
        listed_without_file: files that a DICOMDIR lists and that are not there.
        broken_dicomdirs: DICOMDIRs that could not be read: every file was looked at as if they were not there.
        boxes_without_file: images of the box file that are not there.
        images_missing: images that the PACS lists and did not send, or sent as something else or too large.
        studies_failed: studies that the PACS could not list.
        studies_missing: studies of which the PACS has no image of a wanted kind.
        files_deleted: files from the PACS that were deleted because their patients have withdrawn.
        review_deleted: whether a review was deleted that may have shown such a patient.
    """

    rows_without_file: int = 0
    mask_files: int = 0
    unlisted_files: int = 0
    listed_without_file: int = 0
    broken_dicomdirs: int = 0
    boxes_without_file: int = 0
    images_missing: int = 0
    studies_failed: int = 0
    studies_missing: int = 0
    files_deleted: int = 0
    review_deleted: bool = False


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The images that one reader took, and those that it left out.

    Attributes:
        taken: in the order of the source.
        refused: (relative path, code); the paths are SENSITIVE.
        found: files or rows looked at.
        source_counts: what there was besides.
    """

    taken: list[Row]
    refused: list[tuple[str, Code]]
    found: int
    source_counts: SourceCounts = SourceCounts()
