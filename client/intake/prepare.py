"""One file, from bytes to training planes, as a worker does it: decode, drop headers, blank text, fit to the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.deidentify.burned_in import blank_text, find_text, render
from client.intake.dicom import DicomImage, read_dicom
from client.intake.quarantine import Code, Refused
from client.intake.task import Limits, Prepared, Settings, Task
from client.preprocess import preprocess, preprocess_mask
from ghostnet.errors import DataError

_MASK_MODES = ("1", "L", "P", "I;16", "I")


def prepare_file(task: Task, settings: Settings, limits: Limits) -> Prepared:
    """Decodes and prepares one DICOM file.

    Text is looked for in the full-size pixels, before any filter or resize could make it unreadable to the detector
    and not to a person.

    Raises:
        Refused: the file is to be quarantined with this code. Anything else that is raised is the decoder's.
    """
    source = read_dicom(task.path, file_bytes=limits.file_bytes, pixels=limits.pixels)
    if source.record.modality not in settings.modalities:
        raise Refused(Code.MODALITY)
    if not source.patient_id.strip(" \t\r\n\0"):
        raise Refused(Code.NO_PATIENT_ID)
    pixels, blanked = _without_text(source, settings)
    image = settings.image
    try:
        planes = [preprocess(pixels, valid=source.valid, image=image, window=source.window)]
    except DataError:
        raise Refused(Code.FLAT) from None
    if image.mask_channels:
        mask = _read_mask(task.mask, pixels.shape[:2], limits)
        # With one mask channel anything non-zero is inside; with several, the value k is the k-th channel.
        inside = [mask != 0] if image.mask_channels == 1 else [mask == k + 1 for k in range(image.mask_channels)]
        planes += [preprocess_mask(region.astype(np.uint8), image) for region in inside]
    return Prepared(
        planes=np.concatenate(planes).clip(0.0 if image.range == "[0,1]" else -1.0, 1.0).astype(np.float32),
        record=source.record,
        blanked=blanked,
        patient_id=source.patient_id,
    )


def warm_up(settings: Settings) -> None:
    """Loads the text detector if these settings need it, so that its memory and its absence show before any file.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if set(settings.modalities) - set(_trusted(settings)):
        find_text(np.zeros((32, 32), np.uint8))


def _trusted(settings: Settings) -> tuple[str, ...]:
    return settings.trusted_modalities if settings.burned_in == "trust" else ()


def _without_text(source: DicomImage, settings: Settings) -> tuple[NDArray[np.float32], int]:
    """Pixels with burned-in text blanked, and the number of boxes."""
    if source.record.modality in _trusted(settings):
        return source.pixels, 0
    if settings.burned_in == "quarantine":
        if find_text(render(source.pixels)):
            raise Refused(Code.BURNED_IN_TEXT)
        return source.pixels, 0
    blanked = blank_text(source.pixels)
    if not blanked.clean:
        raise Refused(Code.BURNED_IN_TEXT)
    return blanked.pixels, len(blanked.boxes)


def _read_mask(path: Path | None, shape: tuple[int, ...], limits: Limits) -> NDArray[np.int32]:
    if path is None:
        raise Refused(Code.NO_MASK)
    try:
        if not path.is_file() or path.stat().st_size > limits.file_bytes:
            raise Refused(Code.BAD_MASK)
        with Image.open(path, formats=["PNG"]) as opened:
            if (opened.height, opened.width) != shape or opened.mode not in _MASK_MODES:
                raise Refused(Code.BAD_MASK)
            return np.asarray(opened).astype(np.int32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise Refused(Code.BAD_MASK) from None
