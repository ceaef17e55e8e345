"""The invented hospitals: readable DICOM of three kinds of scanner, with every planted value really in the files."""

import csv
import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from client.config import load_site
from ghostnet.errors import DataError, RunFolderError
from ghostnet.simulation.demo_hospitals import planted_values, write_hospitals


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    write_hospitals(out, patients=(6, 5, 4), seed=4)
    return out


def rows(site: Path) -> list[dict[str, str]]:
    with (site / "labels.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_hospital_has_its_own_scanner(folder: Path):
    kinds = {}
    for name in ("north", "south", "harbour"):
        site = folder / "sites" / name
        data = pydicom.dcmread(site / "images" / rows(site)[0]["image"])
        assert data.pixel_array.shape == (256, 256)
        kinds[name] = (data.Modality, data.PhotometricInterpretation, data.BitsStored)
        assert (data.file_meta.TransferSyntaxUID == RLELossless) is (name == "harbour")
    assert kinds == {
        "north": ("CR", "MONOCHROME2", 12),
        "south": ("DX", "MONOCHROME1", 16),
        "harbour": ("DX", "MONOCHROME2", 12),
    }


def test_every_site_file_is_read_by_the_hospitals_own_parser(folder: Path):
    for path in folder.glob("sites/*/site.toml"):
        site = load_site(path)
        assert site.name == path.parent.name
        assert site.data.path.is_dir()
        assert site.data.labels is not None
        assert site.data.labels.is_file()


def test_every_planted_value_of_a_header_is_in_its_files(folder: Path):
    for site in (folder / "sites").iterdir():
        data = b"".join(p.read_bytes() for p in sorted((site / "images").rglob("IM*.dcm")))
        values = json.loads((site / "planted.json").read_text())["values"]
        # Names drawn into pixels have a blank where the header has a caret.
        missing = [v for v in values if v.encode() not in data and v.replace(" ", "^").encode() not in data]
        assert missing == []
    assert len(planted_values(folder)) > 15 * 15  # a few of the 16 values of 15 people may coincide


def test_labels_and_masks_belong_together(folder: Path):
    for site in (folder / "sites").iterdir():
        table = rows(site)
        assert {row["label"] for row in table} == {"normal", "lesion"}
        for row in table:
            mask = cv2.imread(str(site / row["mask"]), cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            assert mask.any() == (row["label"] == "lesion")


def test_one_file_a_hospital_is_cut_short(folder: Path):
    for site in (folder / "sites").iterdir():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cut = pydicom.dcmread(site / "images" / "TRUNCATED.dcm")
            with pytest.raises(Exception, match=r".+"):  # whatever pydicom says of it
                _ = cut.pixel_array


def test_the_same_seed_writes_the_same_pixels(folder: Path, tmp_path: Path):
    write_hospitals(tmp_path, hospitals=1, patients=(6,), seed=4)
    first, second = (sorted((f / "sites/north/images").rglob("IM*.dcm")) for f in (folder, tmp_path))
    assert [p.name for p in first] == [p.name for p in second]
    assert all(
        np.array_equal(pydicom.dcmread(a).pixel_array, pydicom.dcmread(b).pixel_array)
        for a, b in zip(first, second, strict=True)
    )


def test_an_existing_hospital_is_not_overwritten(folder: Path):
    with pytest.raises(RunFolderError, match="sites"):
        write_hospitals(folder, hospitals=1, patients=(1,))


def test_hospitals_that_were_not_written_to_their_end_are_not_there(tmp_path: Path):
    def stopped(_phase: str, done: int, _total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_hospitals(tmp_path, patients=(3, 3, 3), progress=stopped)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("hospitals", "patients"), [(0, (5,)), (4, (5, 5, 5, 5)), (2, (5,)), (1, (0,))])
def test_impossible_numbers_are_refused(tmp_path: Path, hospitals: int, patients: tuple[int, ...]):
    with pytest.raises(DataError):
        write_hospitals(tmp_path, hospitals=hospitals, patients=patients)
