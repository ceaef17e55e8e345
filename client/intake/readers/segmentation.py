"""The regions that a DICOM segmentation object draws on one frame of an image (PS3.3 section A.51)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.deidentify.headers import TRANSFER_SYNTAXES
from client.intake.readers.datasets import open_dataset
from client.intake.readers.pixeldata import frame_count, stored_frames
from client.intake.task import Limits
from client.quarantine import Code, Refused

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
_BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}


@dataclass(frozen=True, kw_only=True)
class Place:
    """The image that one frame of a segmentation belongs to. SENSITIVE: it holds UIDs.

    Attributes:
        segment: its number, from 1; 0 in a label map, whose pixels are segment numbers.
        images: (SOPInstanceUID, frame number from 1 or None for every frame) that it was drawn on.
    """

    segment: int
    images: frozenset[tuple[str, int | None]]


def read_segmentation(
    path: Path, *, shape: tuple[int, ...], frame_number: int, frames_total: int, limits: Limits, instance_uid: str
) -> NDArray[np.int32]:
    """The segments on one frame; (h,w), k inside segment number k, the higher number where two overlap.

    A segmentation that says which images its frames were drawn on is believed: an image that it refers to but has no
    frame for is empty. One that does not say must have for each segment as many frames as the image, which are taken
    to be in the same order; several frames with positions in space of their own may be in another, and are refused.

    Args:
        path: the segmentation.
        shape: (h,w) of the image.
        frame_number: the image's frame, from 0.
        frames_total: frames of the image's file.
        limits: what the file may cost.
        instance_uid: SENSITIVE: the image's SOPInstanceUID.

    Raises:
        Refused: BAD_MASK. Decoders may raise anything else.
    """
    dataset, uid = open_dataset(path, file_bytes=limits.file_bytes, pixels=limits.pixels)
    total = _check(dataset, shape, limits)
    places = [_place(dataset, index) for index in range(total)]
    if any(place.images for place in places):
        drawn_on = {(instance_uid, None), (instance_uid, frame_number + 1)}
        wanted = [index for index, place in enumerate(places) if place.images & drawn_on]
        if not wanted and instance_uid not in _referred_to(dataset):
            raise Refused(Code.BAD_MASK)
    else:
        placed = any(group.get("PlanePositionSequence") for group in _groups(dataset, 0))
        if placed and frames_total > 1:
            raise Refused(Code.BAD_MASK)
        wanted = _by_order(places, frame_number, frames_total)
    if len(wanted) * dataset.Rows * dataset.Columns > limits.pixels:
        raise Refused(Code.BAD_MASK)
    mask = np.zeros(tuple(shape), np.int32)
    if not wanted:
        return mask
    half = int(dataset.get("MaximumFractionalValue") or 0) / 2 if _kind(dataset) == "FRACTIONAL" else 0
    syntax = TRANSFER_SYNTAXES.get(uid, "")
    for index, stored in zip(wanted, stored_frames(dataset, syntax, wanted, frames=total), strict=True):
        segment = places[index].segment
        values = stored.astype(np.int32) if segment == 0 else np.where(stored > half, segment, 0)
        mask = np.maximum(mask, values)
    return mask


def _check(dataset: Dataset, shape: tuple[int, ...], limits: Limits) -> int:
    """Everything that decoding would allocate by; gives the number of frames."""
    total, kind = frame_count(dataset), _kind(dataset)
    sized = (dataset.get("Rows"), dataset.get("Columns"), dataset.get("SamplesPerPixel")) == (*shape, 1)
    if str(dataset.get("SOPClassUID")) not in (_SEGMENTATION, _LABEL_MAP) or not sized or total > limits.pixels:
        raise Refused(Code.BAD_MASK)
    if dataset.get("BitsAllocated") not in _BITS.get(kind, ()):
        raise Refused(Code.BAD_MASK)
    return total


def _kind(dataset: Dataset) -> str:
    return str(dataset.get("SegmentationType"))


def _place(dataset: Dataset, index: int) -> Place:
    groups = list(_groups(dataset, index))
    segment = 0
    if _kind(dataset) != "LABELMAP":
        named = [found for group in groups if (found := group.get("SegmentIdentificationSequence"))]
        segment = int(named[0][0].ReferencedSegmentNumber) if named else -1
        if not 1 <= segment <= 65535:
            raise Refused(Code.BAD_MASK)
    images = set()
    for group in groups:
        for derivation in group.get("DerivationImageSequence") or ():
            for source in derivation.get("SourceImageSequence") or ():
                numbers = source.get("ReferencedFrameNumber")
                numbers = [numbers] if isinstance(numbers, int) or numbers is None else list(numbers)
                images |= {(str(source.get("ReferencedSOPInstanceUID")), number) for number in numbers}
    return Place(segment=segment, images=frozenset(images))


def _groups(dataset: Dataset, index: int) -> Iterator[Dataset]:
    each = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if index < len(each):
        yield each[index]
    yield from (dataset.get("SharedFunctionalGroupsSequence") or ())[:1]


def _referred_to(dataset: Dataset) -> set[str]:
    return {
        str(instance.get("ReferencedSOPInstanceUID"))
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedInstanceSequence") or ()
    }


def _by_order(places: list[Place], frame_number: int, frames_total: int) -> list[int]:
    """For each segment the frame at the image's own place."""
    wanted = []
    for segment in sorted({place.segment for place in places}):
        own = [index for index, place in enumerate(places) if place.segment == segment]
        if len(own) != frames_total:
            raise Refused(Code.BAD_MASK)
        wanted.append(own[frame_number])
    return wanted
