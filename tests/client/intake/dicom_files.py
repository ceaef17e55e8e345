"""Real DICOM files, written by pydicom, for the tests of intake."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from client.config import SiteConfig, load_site
from client.intake.task import Settings
from ghostnet.plan import ImageSpec

SECRET = bytes(range(32))
SOP_CLASS = {
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
}
TRUST_ALL = 'burned_in = "trust"\ntrusted_modalities = ["CR", "DX", "MG", "CT", "MR"]'


def image_spec(**changes: Any) -> ImageSpec:
    """A small plan image without de-noising."""
    values: dict[str, Any] = {"size": 28, "labels": ("normal", "lesion"), "label_prior": (0.5, 0.5), "denoise": "none"}
    return ImageSpec(**(values | changes))


def settings(image: ImageSpec | None = None, **changes: Any) -> Settings:
    """Intake settings that look for no text."""
    modalities = ("CR", "DX", "MG", "CT", "MR")
    values = {"burned_in": "trust", "trusted_modalities": modalities, "modalities": modalities}
    return Settings(image=image or image_spec(), **(values | changes))


def picture(seed: int = 0, shape: tuple[int, int] = (40, 40)) -> np.ndarray:
    """12-bit pixels that differ from seed to seed."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = 1000 + 30 * rows + 20 * columns + rng.integers(0, 400) * ((rows - 20) ** 2 + (columns - 15) ** 2 < 60)
    return (smooth + rng.integers(0, 50, shape)).clip(0, 4095).astype(np.uint16)


def dicom(pixels: np.ndarray, *, patient: str | None = "P1", modality: str = "CR", **attributes: Any) -> Dataset:
    """A single-frame data set, explicit little endian, ready to save."""
    uid = generate_uid()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SOP_CLASS[modality]
    meta.MediaStorageSOPInstanceUID = uid
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = SOP_CLASS[modality]
    dataset.SOPInstanceUID = uid
    dataset.Modality = modality
    if patient is not None:
        dataset.PatientID = patient
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    """Writes a Part 10 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_labels(folder: Path, rows: Mapping[str, str] | Sequence[Sequence[str]], *, masks: bool = False) -> Path:
    """Writes labels.csv beside the image folder."""
    path = folder / "labels.csv"
    lines = list(rows.items()) if isinstance(rows, Mapping) else rows
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label", "mask"] if masks else ["image", "label"], *lines])
    return path


def write_site(folder: Path, *, data: str | None = None, more: str = "", deidentify: str = TRUST_ALL) -> SiteConfig:
    """Writes a site.toml and loads it; images are looked for in folder/images."""
    data = data or '[data]\nkind = "dicom"\npath = "images"\nlabels = "labels.csv"'
    path = folder / "site.toml"
    text = f'name = "north"\nstate = "state"\n{data}\n[deidentify]\n{deidentify}\n{more}\n'
    path.write_text(text + "[policy]\nmax_epsilon = 8.0\ndelta = 1e-5\n")
    return load_site(path)


def write_hospital(folder: Path, *, patients: int = 6, images: int = 2) -> SiteConfig:
    """A small hospital: each patient has `images` different pictures and one label."""
    labels = {}
    for patient in range(patients):
        for number in range(images):
            name = f"p{patient}/{number}.dcm"
            dataset = dicom(picture(100 * patient + number), patient=f"MRN{patient:05d}")
            save(dataset, folder / "images" / name)
            labels[name] = ("normal", "lesion")[patient % 2]
    write_labels(folder, labels)
    return write_site(folder)
