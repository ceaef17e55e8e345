"""One file, from bytes to training planes, as a worker does it: decode, drop headers, blank text, fit to the plan."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import cv2
import numpy as np
from numpy.typing import NDArray

from client.deidentify.burned_in import blank_text, find_text, render
from client.deidentify.regions import blank_outside
from client.formats import FORMATS
from client.intake.readers.frames import Frame, Source
from client.intake.readers.masks import draw_boxes, read_mask
from client.intake.task import THUMBNAIL_SIDE, Limits, Prepared, Settings, Task
from client.preprocess import preprocess, preprocess_mask
from client.quarantine import Code, Refused
from ghostnet.errors import DataError

Mask = NDArray[np.int32]

MAX_BLANKED = 0.25  # of an image's pixels; one that loses more to text is shown to a person first


def prepare_file(task: Task, settings: Settings, limits: Limits, *, decoded: Callable[[], None]) -> Prepared:
    """Decodes and prepares one file.

    Text is looked for in the full-size pixels, before any filter or resize could make it unreadable to the detector
    and not to a person.

    Args:
        task: the file.
        settings: what it is prepared with.
        limits: what it may cost.
        decoded: called when everything is decoded: what follows is our own work on arrays.

    Raises:
        Refused: the file is to be quarantined with this code. Anything else that is raised is the decoder's.
    """
    source = _read(task, settings, limits)
    if source.record.modality not in settings.modalities:
        raise Refused(Code.MODALITY)
    if source.record.modality in settings.held_modalities and not task.approved:
        raise Refused(Code.HELD)
    if FORMATS[task.format].names_patient and not source.patient_id.strip(" \t\r\n\0"):  # others: the label table knows
        raise Refused(Code.NO_PATIENT_ID)
    wanted = settings.image.mask_channels
    masks = [_mask(task, source, index, limits, wanted) if wanted else None for index in range(len(source.frames))]
    decoded()
    done = [
        _prepare_frame(source, frame, mask, settings, approved=task.approved)
        for frame, mask in zip(source.frames, masks, strict=True)
    ]
    return Prepared(
        planes=np.stack([planes for planes, _, _ in done]),
        record=source.record,
        blanked=tuple(blanked for _, blanked, _ in done),
        patient_id=source.patient_id,
        identifiers=source.identifiers,
        thumbnails=np.stack([pair for _, _, pair in done if pair is not None]) if settings.thumbnails else None,
    )


def warm_up(settings: Settings) -> None:
    """Loads the text detector if these settings need it, so that its memory and its absence show before any file.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if set(settings.modalities) - set(_trusted(settings)):
        find_text(np.zeros((32, 32), np.uint8))


def _read(task: Task, settings: Settings, limits: Limits) -> Source:
    """Readers are imported when a task first asks for them: few hospitals need all."""
    known = FORMATS[task.format]
    asked: dict[str, str | int] = {}
    if not known.names_modality:
        asked["modality"] = settings.modality
    if known.has_frames:
        asked["frames"] = settings.frames_per_file
    module, _, function = known.reader.partition(":")
    read: Callable[..., Source] = getattr(import_module(module), function)
    return read(task.path, file_bytes=limits.file_bytes, pixels=limits.pixels, **asked)


def _mask(task: Task, source: Source, index: int, limits: Limits, channels: int) -> Mask:
    """The annotation of one frame; a mask file comes before boxes."""
    shape = source.frames[index].pixels.shape[:2]
    if task.mask is None:
        if task.boxes is None:
            raise Refused(Code.NO_MASK)
        if task.boxes and source.frames_total > 1:  # they do not say on which frame they lie
            raise Refused(Code.BAD_MASK)
        return draw_boxes(task.boxes, shape)
    mask = read_mask(
        task.mask,
        shape=shape,
        frame_number=source.frame_numbers[index],
        frames_total=source.frames_total,
        limits=limits,
        instance_uid=source.instance_uid,
    )
    if 1 < channels < mask.max():  # a region that no channel takes would be drawn as nothing
        raise Refused(Code.BAD_MASK)
    return mask


def _prepare_frame(
    source: Source, frame: Frame, mask: Mask | None, settings: Settings, *, approved: bool
) -> tuple[NDArray[np.float32], int, NDArray[np.uint8] | None]:
    """(planes,size,size) of one frame, its boxes of text, and (2,side,side) before and after if they are wanted."""
    pixels, blanked = _without_text(source, frame, settings, approved=approved)
    image = settings.image
    try:
        planes = [preprocess(pixels, valid=frame.valid, image=image, window=frame.window, spacing=frame.spacing)]
    except DataError:
        raise Refused(Code.FLAT) from None
    if mask is not None:
        # With one mask channel anything non-zero is inside; with several, the value k is the k-th channel.
        inside = [mask != 0] if image.mask_channels == 1 else [mask == k + 1 for k in range(image.mask_channels)]
        planes += [preprocess_mask(region.astype(np.uint8), image, spacing=frame.spacing) for region in inside]
    bottom = np.float32(0.0 if image.range == "[0,1]" else -1.0)
    pair = None
    if settings.thumbnails:
        pair = np.stack([_thumbnail(shown, like=frame.pixels) for shown in (frame.pixels, pixels)])
    return np.concatenate(planes).clip(bottom, np.float32(1.0)), blanked, pair


def _thumbnail(pixels: NDArray[np.float32], *, like: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(side,side) in the grey levels of `like`, so that before and after differ only where something was blanked."""
    shown = render(pixels, like=like)
    scale = THUMBNAIL_SIDE / max(shown.shape)
    height, width = (max(1, round(side * scale)) for side in shown.shape)
    out = np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    top, left = (THUMBNAIL_SIDE - height) // 2, (THUMBNAIL_SIDE - width) // 2
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    out[top : top + height, left : left + width] = cv2.resize(shown, (width, height), interpolation=method)
    return out


def _trusted(settings: Settings) -> tuple[str, ...]:
    return settings.trusted_modalities if settings.burned_in == "trust" else ()


def _without_text(
    source: Source, frame: Frame, settings: Settings, *, approved: bool
) -> tuple[NDArray[np.float32], int]:
    """Pixels with the screen around the image and burned-in text blanked, and the number of boxes of text."""
    pixels = blank_outside(frame.pixels, source.text_regions)
    if source.record.modality in _trusted(settings):
        return pixels, 0
    if settings.burned_in == "quarantine":
        if find_text(render(pixels)):
            raise Refused(Code.BURNED_IN_TEXT)
        return pixels, 0
    blanked = blank_text(pixels)
    if not blanked.clean:
        raise Refused(Code.BURNED_IN_TEXT)
    if blanked.share > MAX_BLANKED and not approved:
        raise Refused(Code.HELD)
    return blanked.pixels, len(blanked.boxes)
