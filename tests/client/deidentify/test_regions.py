"""Ultrasound regions: the screen around the image is blanked, and a broken list of regions is never half believed."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from client.deidentify.regions import MAX_REGIONS, blank_outside, image_regions
from client.deidentify.text_detector import Box
from client.intake.readers.dicom import read_dicom
from client.intake.sandbox.prepare import prepare_file
from client.intake.task import Limits, Task
from client.quarantine import Code, Refused
from tests.client.intake import dicom_files

US = "1.2.840.10008.5.1.4.1.1.6.1"


def region(x0: object, y0: object, x1: object, y1: object) -> Dataset:
    item = Dataset()
    for keyword, value in zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), (x0, y0, x1, y1), strict=True):
        if value is not None:
            setattr(item, f"RegionLocation{keyword}", value)
    return item


def header(*items: Dataset, rows: int = 60, columns: int = 80) -> Dataset:
    dataset = Dataset()
    dataset.Rows, dataset.Columns = rows, columns
    dataset.SequenceOfUltrasoundRegions = list(items)
    return dataset


def test_corners_are_inclusive_and_one_too_many_is_the_edge():
    assert image_regions(header(region(10, 5, 70, 50))) == (Box(x0=10, y0=5, x1=71, y1=51),)
    assert image_regions(header(region(0, 0, 80, 60))) == (Box(x0=0, y0=0, x1=80, y1=60),)


def test_a_file_without_regions_is_all_image():
    pixels = np.ones((4, 4), np.float32)
    assert image_regions(Dataset()) == ()
    assert blank_outside(pixels, ()) is pixels


@pytest.mark.parametrize(
    "item",
    [region(None, 0, 9, 9), region(20, 0, 10, 9), region(0, 50, 9, 10), region(90, 0, 99, 9), region(0, 70, 9, 99)],
)
def test_one_impossible_region_refuses_the_whole_file(item: Dataset):
    with pytest.raises(Refused) as refusal:
        image_regions(header(region(0, 0, 9, 9), item))
    assert refusal.value.code is Code.HEADER


def test_more_regions_than_any_scanner_writes_are_refused():
    with pytest.raises(Refused):
        image_regions(header(*[region(0, 0, 9, 9)] * (MAX_REGIONS + 1)))


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3)])
def test_everything_outside_the_regions_becomes_the_darkest_value_and_the_inside_stays(shape: tuple[int, ...]):
    pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    before = pixels.copy()
    blanked = blank_outside(pixels, [Box(x0=1, y0=1, x1=3, y1=3), Box(x0=2, y0=2, x1=8, y1=4)])
    inside = np.zeros(shape[:2], bool)
    inside[1:3, 1:3] = inside[2:4, 2:8] = True
    assert np.array_equal(blanked[inside], pixels[inside])
    assert (blanked[~inside] == pixels.min()).all()
    assert np.array_equal(pixels, before)


def ultrasound(folder: Path, *items: Dataset) -> Path:
    pixels = dicom_files.picture(shape=(60, 80))
    pixels[:10] = 4095  # the banner of the screen
    dataset = dicom_files.dicom(pixels, Modality="US", SOPClassUID=US)
    dataset.file_meta.MediaStorageSOPClassUID = US
    if items:
        dataset.SequenceOfUltrasoundRegions = list(items)
    return dicom_files.save(dataset, folder / "us.dcm")


def test_the_screen_of_a_real_file_is_gone_even_where_the_detector_is_not_asked(tmp_path: Path):
    path, limits = ultrasound(tmp_path, region(0, 12, 79, 59)), Limits()
    source = read_dicom(path, file_bytes=limits.file_bytes, pixels=limits.pixels)
    assert source.text_regions == (Box(x0=0, y0=12, x1=80, y1=60),)
    image = dicom_files.image_spec(size=80, range="[0,1]")
    rules = dicom_files.settings(image, modalities=("US",), trusted_modalities=("US",))
    banner = [
        prepare_file(Task(path=file), rules, limits, decoded=lambda: None).planes[0, 0, 12:18].max()
        for file in (ultrasound(tmp_path / "without"), path)
    ]
    assert banner[0] == 1
    assert banner[1] == 0
