"""Masks from PNG, NIfTI, DICOM segmentations and boxes: on the image they belong to, or refused."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from client.intake.readers.masks import draw_boxes, read_mask
from client.intake.readers.nifti import read_nifti
from client.intake.task import Limits
from client.quarantine import Code, Refused
from tests.client.intake.dicom_files import dicom, picture, save
from tests.client.intake.test_raster import deep_png

LIMITS = Limits()
SHAPE = (40, 40)


def mask_of(
    path: Path, *, frame: int = 0, frames: int = 1, uid: str = "", shape: tuple[int, int] = SHAPE
) -> np.ndarray:
    return read_mask(path, shape=shape, frame_number=frame, frames_total=frames, limits=LIMITS, instance_uid=uid)


def refusal_of(path: Path, **about: object) -> Code:
    with pytest.raises(Refused) as caught:
        mask_of(path, **about)  # type: ignore[arg-type]
    return caught.value.code


def slices(count: int) -> list[Dataset]:
    """CT slices of one series, with what a segmentation must refer to."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    made = []
    for number in range(count):
        dataset = dicom(picture(number), modality="CT", RescaleSlope="1", RescaleIntercept="-1024")
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, -5 * number], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness, dataset.InstanceNumber = [1, 1], 5, number + 1
        dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "A^B", "", ""
        dataset.AccessionNumber = dataset.StudyID = dataset.StudyDate = dataset.StudyTime = ""
        dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
        made.append(dataset)
    return made


def segmentation(images: list[Dataset], pixels: np.ndarray, kind: str = "BINARY") -> Dataset:
    """Two segments drawn on slices; pixels (slices,rows,columns) of 0, 1 and 2."""
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"region {number}",
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.ConnectiveTissue,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number in (1, 2)
    ]
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
    )


def drawn(count: int) -> np.ndarray:
    pixels = np.zeros((count, *SHAPE), np.uint8)
    for number in range(count):
        pixels[number, 5 + number : 20, 8:30] = 1
        pixels[number, 25:35, 3 + number : 12] = 2
    return pixels


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_a_segmentation_lies_on_the_slice_it_refers_to(tmp_path: Path, kind: str) -> None:
    images, pixels = slices(3), drawn(3)
    pixels[1] = 0  # frames without anything are left out of a segmentation
    path = save(segmentation(images, pixels, kind), tmp_path / "seg.dcm")
    for number, image in enumerate(images):
        np.testing.assert_array_equal(mask_of(path, uid=image.SOPInstanceUID), pixels[number])
    assert refusal_of(path, uid=generate_uid()) is Code.BAD_MASK


def test_a_segmentation_without_references_goes_by_frame_number(tmp_path: Path) -> None:
    pixels = drawn(3)
    dataset = segmentation(slices(3), pixels)
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    placed = save(dataset, tmp_path / "placed.dcm")
    assert refusal_of(placed, frame=2, frames=3) is Code.BAD_MASK  # their order in space may be another
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence
    path = save(dataset, tmp_path / "seg.dcm")
    np.testing.assert_array_equal(mask_of(path, frame=2, frames=3), pixels[2])
    assert refusal_of(path, frame=0, frames=4) is Code.BAD_MASK


def test_a_segmentation_without_a_preamble_is_one(tmp_path: Path) -> None:
    images, pixels = slices(1), np.zeros((1, *SHAPE), np.uint8)
    pixels[0, 5:20] = 1
    path = save(segmentation(images, pixels), tmp_path / "seg.dcm")
    path.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(mask_of(path, uid=str(images[0].SOPInstanceUID)), pixels[0])
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal_of(path, uid=str(images[0].SOPInstanceUID)) is Code.BAD_MASK


def test_an_image_is_no_segmentation(tmp_path: Path) -> None:
    assert refusal_of(save(dicom(picture()), tmp_path / "a.dcm")) is Code.BAD_MASK


def test_a_segmentation_of_another_size_is_refused(tmp_path: Path) -> None:
    path = save(segmentation(slices(1), drawn(1)), tmp_path / "seg.dcm")
    assert refusal_of(path, shape=(40, 41)) is Code.BAD_MASK


def test_a_nifti_mask_is_cut_as_its_image(tmp_path: Path) -> None:
    volume = np.zeros((8, 6, 5), np.int16)
    volume[1:4, 2:5, 3] = 2
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for name, data in (("mask", volume), ("image", volume * 100 + np.arange(5, dtype=np.int16))):
        nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
    source = read_nifti(tmp_path / "image.nii.gz", modality="MR", file_bytes=1 << 20, pixels=1 << 20, frames=5)
    at = source.frame_numbers.index(3)
    shape = source.frames[at].pixels.shape
    mask = mask_of(tmp_path / "mask.nii.gz", frame=3, frames=5, shape=(shape[0], shape[1]))
    np.testing.assert_array_equal(mask == 2, source.frames[at].pixels > 100)
    assert (mask == 2).sum() == 9
    assert refusal_of(tmp_path / "mask.nii.gz", frame=3, frames=6, shape=(shape[0], shape[1])) is Code.BAD_MASK
    assert refusal_of(tmp_path / "mask.nii.gz", frame=3, frames=5, shape=(40, 40)) is Code.BAD_MASK


@pytest.mark.parametrize("value", [-1.0, 0.5, 70000.0])
def test_a_nifti_mask_of_other_than_region_numbers_is_refused(tmp_path: Path, value: float) -> None:
    nibabel.save(nibabel.Nifti1Image(np.full((40, 40, 1), value, np.float32), np.eye(4)), tmp_path / "m.nii")
    assert refusal_of(tmp_path / "m.nii") is Code.BAD_MASK


def test_a_png_mask_keeps_its_values(tmp_path: Path) -> None:
    pixels = np.arange(1600, dtype=np.uint16).reshape(SHAPE)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    np.testing.assert_array_equal(mask_of(tmp_path / "m.png"), pixels)
    assert refusal_of(tmp_path / "m.png", shape=(40, 39)) is Code.BAD_MASK
    assert refusal_of(tmp_path / "none.png") is Code.BAD_MASK


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_png_mask_of_equal_channels_is_one_channel(mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    grey.convert(mode).save(tmp_path / "m.png")
    assert (mask_of(tmp_path / "m.png", shape=(6, 8)) == np.asarray(grey)).all()
    coloured = np.array(grey.convert(mode))
    coloured[2, 3, -1] ^= 1  # a colour or an alpha of its own
    Image.fromarray(coloured, mode=mode).save(tmp_path / "c.png")
    assert refusal_of(tmp_path / "c.png", shape=(6, 8)) is Code.BAD_MASK


def test_a_png_mask_of_sixteen_bit_colour_keeps_its_numbers(tmp_path: Path) -> None:
    numbers = np.arange(48, dtype=np.uint16).reshape(6, 8)
    deep_png(tmp_path / "m.png", np.repeat(numbers[..., None], 3, axis=2))
    assert (mask_of(tmp_path / "m.png", shape=(6, 8)) == numbers).all()


def test_a_png_mask_does_not_say_on_which_of_several_frames_it_lies(tmp_path: Path) -> None:
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "m.png")
    assert refusal_of(tmp_path / "m.png", frame=1, frames=3) is Code.BAD_MASK


def test_boxes_fill_every_pixel_that_they_touch() -> None:
    mask = draw_boxes([(2.5, 1.0, 4.1, 3.0), (30, 38, 100, 200)], SHAPE)
    expected = np.zeros(SHAPE, np.int32)
    expected[1:3, 2:5], expected[38:, 30:] = 1, 1
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(draw_boxes([(4.1, 3.0, 2.5, 1.0)], SHAPE), draw_boxes([(2.5, 1, 4.1, 3)], SHAPE))
    assert not draw_boxes([], SHAPE).any()


@pytest.mark.parametrize("box", [(50, 50, 60, 60), (1, 2, 1, 9), (0, 0, float("nan"), 3), (0, 1, 2)])
def test_a_box_that_is_none_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(Refused, match="BAD_MASK"):
        draw_boxes([box], SHAPE)
