"""Exports: every format holds the same images, says that they are synthetic, and appears whole or not at all."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from ghostnet.durable import new_folder, replace_file
from ghostnet.errors import DataError, RunFolderError
from ghostnet.export import images as images_module
from ghostnet.export.images import write_images
from ghostnet.models import build_generator
from ghostnet.plan import FederationSpec, ImageSpec, ModelSpec, Plan, PrivacySpec
from ghostnet.sampler.pixels import to_uint8
from ghostnet.sampler.sampler import Sampler
from ghostnet.sampler.write import write_sampler

N = 5
FORMATS = ("png", "npz", "dicom", "nifti")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the networks are tiny; more threads only wait for each other


def make_sampler(folder: Path, *, channels: int = 1, mask_channels: int = 1) -> Sampler:
    plan = Plan(
        name="small",
        image=ImageSpec(
            size=28,
            channels=channels,
            mask_channels=mask_channels,
            labels=("nor/mal", "lesion"),
            label_prior=(0.5, 0.5),
        ),
        model=ModelSpec(generator_width=8, latent=16),
        privacy=PrivacySpec(epsilon=4.0, delta=1e-5, sampling_rate=0.1, steps=10),
        federation=FederationSpec(rounds=1, patients=100),
    )
    write_sampler(folder, build_generator(plan.networks), plan)
    return Sampler.load(folder)


@pytest.fixture
def sampler(tmp_path: Path) -> Sampler:
    return make_sampler(tmp_path / "sampler")


def read_pixels(path: Path) -> np.ndarray:
    if path.suffix == ".dcm":
        return pydicom.dcmread(path).pixel_array
    if path.suffix == ".gz":
        stored = np.asarray(nibabel.load(path).dataobj)[:, :, 0].T
        return stored.view(np.uint8).reshape(*stored.shape, 3) if stored.dtype.names else stored
    return np.asarray(Image.open(path))


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / "labels.csv").read_text())))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["png", "dicom", "nifti"])
def test_every_file_holds_the_pixels_and_mask_that_were_drawn(tmp_path: Path, format: str, channels: int) -> None:
    sampler = make_sampler(tmp_path / "sampler", channels=channels)
    names = write_images(sampler, N, None, 3, format, tmp_path / "out")  # type: ignore[arg-type]
    drawn = sampler.draw(N, None, 3)
    rows = table(tmp_path / "out")
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    for i, row in enumerate(rows):
        expected = to_uint8(drawn.images, "[-1,1]")[i]
        assert np.array_equal(read_pixels(tmp_path / "out" / row["image"]), expected)
        assert row["label"] == sampler.labels[int(drawn.labels[i])]
        assert drawn.masks is not None
        assert np.array_equal(read_pixels(tmp_path / "out" / row["mask"]) > 0, drawn.masks[i, 0].numpy() > 0)
    assert len(rows) == N


@pytest.mark.parametrize(("channels", "shape"), [(1, (N, 28, 28)), (3, (N, 28, 28, 3))])
def test_npz_has_the_columns_that_training_reads(tmp_path: Path, channels: int, shape: tuple[int, ...]) -> None:
    sampler = make_sampler(tmp_path / "sampler", channels=channels)
    write_images(sampler, N, "lesion", 0, "npz", tmp_path / "out")
    with np.load(tmp_path / "out/images.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"images", "labels", "masks"}
        assert arrays["images"].shape == shape
        assert arrays["images"].dtype == np.uint8
        assert arrays["masks"].shape == (N, 28, 28)
        assert arrays["labels"].tolist() == [1] * N


def test_several_masks_are_each_written(tmp_path: Path) -> None:
    sampler = make_sampler(tmp_path / "sampler", mask_channels=2)
    write_images(sampler, 2, 0, 0, "png", tmp_path / "out")
    assert set(table(tmp_path / "out")[0]) == {"image", "label", "mask1", "mask2"}


def dicom_files(sampler: Sampler, out: Path) -> list[pydicom.FileDataset]:
    write_images(sampler, N, None, 0, "dicom", out)
    return [pydicom.dcmread(path) for path in sorted(out.glob("*.dcm"))]


def test_a_dicom_file_says_in_every_place_that_it_is_synthetic(sampler: Sampler, tmp_path: Path) -> None:
    for dataset in dicom_files(sampler, tmp_path / "out"):
        assert dataset[0x0008, 0x001C].value == "YES"
        assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
        assert dataset.ConversionType == "SYN"
        assert dataset.PatientIdentityRemoved == "YES"
        assert str(dataset.PatientName).startswith("SYNTHETIC")
        assert dataset.PatientID.startswith("SYN-")
        assert dataset.PatientBirthDate == ""
        assert "NOT FOR DIAGNOSTIC USE" in dataset.SeriesDescription
        assert "SourceImageSequence" not in dataset
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID


def test_every_dicom_file_and_every_export_has_fresh_uids(sampler: Sampler, tmp_path: Path) -> None:
    first, second = dicom_files(sampler, tmp_path / "a"), dicom_files(sampler, tmp_path / "b")
    assert len({dataset.SOPInstanceUID for dataset in first + second}) == 2 * N
    assert len({dataset.StudyInstanceUID for dataset in first}) == 1
    assert first[0].StudyInstanceUID != second[0].StudyInstanceUID


def test_contributing_equipment_names_the_weights_and_the_certificate(sampler: Sampler, tmp_path: Path) -> None:
    equipment = dicom_files(sampler, tmp_path / "a")[0].ContributingEquipmentSequence[0]
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
    assert sampler.config.weights_sha256 in equipment.ContributionDescription
    assert "certificate" not in equipment.ContributionDescription
    assert sampler.folder is not None
    (sampler.folder / "certificate.json").write_text('{"epsilon_pld": 3.5, "delta": 1e-5, "unit": "patient"}')
    described = dicom_files(sampler, tmp_path / "b")[0].ContributingEquipmentSequence[0].ContributionDescription
    assert "certificate SHA-256" in described
    assert "epsilon 3.5, delta 1e-05 per patient" in described


def test_png_and_nifti_say_that_they_are_synthetic(sampler: Sampler, tmp_path: Path) -> None:
    write_images(sampler, 1, 0, 0, "png", tmp_path / "png")
    write_images(sampler, 1, 0, 0, "nifti", tmp_path / "nifti")
    assert "SYNTHETIC" in Image.open(tmp_path / "png" / table(tmp_path / "png")[0]["image"]).text["Description"]
    header = nibabel.load(tmp_path / "nifti" / table(tmp_path / "nifti")[0]["image"]).header
    assert b"SYNTHETIC" in header["descrip"].tobytes()


def test_a_label_never_becomes_a_path(sampler: Sampler, tmp_path: Path) -> None:
    write_images(sampler, 1, "nor/mal", 0, "png", tmp_path / "out")
    row = table(tmp_path / "out")[0]
    assert "/" not in row["image"]
    assert row["label"] == "nor/mal"


@pytest.mark.parametrize("format", FORMATS)
def test_a_failure_in_the_middle_leaves_nothing_behind(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    class DiskFullError(OSError):
        pass

    def full(phase: str, done: int, total: int) -> None:
        raise DiskFullError

    with pytest.raises(DiskFullError):
        write_images(sampler, N, None, 0, format, tmp_path / "here" / "out", progress=full)  # type: ignore[arg-type]
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_written_over(sampler: Sampler, tmp_path: Path, format: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="never overwritten"):
        write_images(sampler, N, None, 0, format, tmp_path / "out")  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("n", "label", "format"), [(0, None, "png"), (1, "tumour", "png"), (1, None, "jpeg"), (-3, None, "npz")]
)
def test_a_bad_request_is_refused_before_anything_is_written(
    sampler: Sampler, tmp_path: Path, n: int, label: str | None, format: str
) -> None:
    with pytest.raises(DataError):
        write_images(sampler, n, label, 0, format, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_progress_counts_to_the_number_of_images(sampler: Sampler, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    write_images(sampler, 70, None, 0, "npz", tmp_path / "out", progress=lambda *call: seen.append(call))
    assert seen == [("images", 64, 70), ("images", 70, 70)]


def test_denoising_changes_the_pixels_only_when_asked(sampler: Sampler, tmp_path: Path) -> None:
    for name, denoise in (("plain", False), ("smooth", True)):
        write_images(sampler, 2, 0, 0, "npz", tmp_path / name, denoise=denoise)
    plain, smooth = (np.load(tmp_path / name / "images.npz")["images"].astype(int) for name in ("plain", "smooth"))
    assert np.abs(np.diff(smooth, axis=2)).mean() < np.abs(np.diff(plain, axis=2)).mean()


def test_a_new_folder_appears_only_when_its_block_ends_well(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_a_replaced_file_is_the_old_or_the_new(tmp_path: Path) -> None:
    replace_file(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        replace_file(tmp_path / "a", "text")  # type: ignore[arg-type]
    assert (tmp_path / "a").read_bytes() == b"old"
    replace_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_formats_are_those_the_command_line_offers() -> None:
    assert set(images_module.get_args(images_module.Format)) == set(FORMATS)
