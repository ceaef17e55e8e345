"""DICOMDIR: it counts what is not listed and what is missing, and decides over no file."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from client.cohort import load_cohorts
from client.intake.dicomdir import Contents, read_contents
from client.intake.folder import find_files
from client.intake.task import Limits
from tests.client.intake.dicom_files import SECRET, dicom, image_spec, picture, save, write_labels, write_site


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    """A disc of four images, one file that its DICOMDIR does not list and one that it lists in vain."""
    files = FileSet()
    for number in range(5):
        dataset = dicom(picture(number), patient=f"P{number % 2}")
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.{number % 2}", f"1.2.{number % 2}.1"
        dataset.PatientName, dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "A^B", "20240101", "1200", "1"
        dataset.SeriesNumber, dataset.InstanceNumber, dataset.AccessionNumber = 1, number, ""
        files.add(dataset)
    folder = tmp_path / "images"
    files.write(folder)
    save(dicom(picture(9)), folder / "viewer" / "logo.dcm")
    sorted(path for path in folder.rglob("IM*"))[0].unlink()
    return folder


def contents(folder: Path) -> Contents:
    return read_contents(folder, find_files(folder), limits=Limits())


def test_unlisted_and_missing_files_are_counted_and_every_file_is_read(disc: Path) -> None:
    names = find_files(disc)
    write_labels(disc.parent, {name: ("normal", "lesion")[i % 2] for i, name in enumerate(names)})
    config = write_site(disc.parent, more="[cohort]\ntest_fraction = 0.0")
    table = load_cohorts(config, image_spec(), SECRET).table
    assert table.taken == 5
    assert table.quarantined == {}
    assert table.source_counts.unlisted_files == 1
    assert table.source_counts.listed_without_file == 1
    assert table.source_counts.broken_dicomdirs == 0


def test_a_disc_mounted_in_lower_case_with_versions_is_the_same_disc(disc: Path) -> None:
    for path in sorted(disc.rglob("*"), key=lambda path: -len(path.parts)):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower() + (";1" if path.is_file() else "")))
    found = contents(disc)
    assert found.unlisted == 1
    assert found.missing == 1


@pytest.mark.parametrize("content", [b"", b"no DICOMDIR at all", bytes(128) + b"DICM" + bytes(400)])
def test_a_broken_one_is_counted_and_everything_is_read(disc: Path, content: bytes) -> None:
    (disc / "DICOMDIR").write_bytes(content)
    assert contents(disc) == Contents(broken=1)


def test_an_empty_one_is_broken(disc: Path) -> None:
    dataset = pydicom.dcmread(disc / "DICOMDIR")
    dataset.DirectoryRecordSequence = []
    dataset.save_as(disc / "DICOMDIR")
    assert contents(disc).broken == 1


def test_it_speaks_for_its_own_folder_only(disc: Path) -> None:
    save(dicom(picture(3)), disc.parent / "other" / "a.dcm")
    assert contents(disc.parent).unlisted == 1


def test_one_patients_disc_takes_nothing_from_another_patient(disc: Path) -> None:
    save(dicom(picture(20), patient="BERTA"), disc / "berta" / "1.dcm")
    write_labels(disc.parent, {name: "normal" for name in find_files(disc)})
    config = write_site(disc.parent, more="[cohort]\ntest_fraction = 0.0")
    with_disc = load_cohorts(config, image_spec(), SECRET).table
    (disc / "DICOMDIR").unlink()
    without = load_cohorts(config, image_spec(), SECRET).table
    assert (with_disc.taken, with_disc.patients) == (without.taken, without.patients) == (6, 3)


def test_paths_out_of_its_folder_lead_nowhere(disc: Path) -> None:
    outside = save(dicom(picture(3)), disc.parent / "secret.dcm")
    dataset = pydicom.dcmread(disc / "DICOMDIR")
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["..", outside.name]
    dataset.DirectoryRecordSequence.append(record)
    dataset.save_as(disc / "DICOMDIR")
    found = contents(disc)
    assert found.missing == 2
    assert found.unlisted == 1
