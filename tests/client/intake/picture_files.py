"""PNG, JPEG and NIfTI files with planted identifiers, and folders of them, for the tests of intake."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image, PngImagePlugin

from client.config import SiteConfig
from tests.client.intake.dicom_files import picture, write_site

PLANTED = "ZQPLANTEDQZ"
"""Stands for a name or number of a patient wherever a file can hold one."""


def eight_bit(seed: int = 0, shape: tuple[int, int] = (40, 40)) -> np.ndarray:
    """uint8 pixels that differ from seed to seed."""
    pixels = picture(seed, shape)
    return (pixels / pixels.max() * 255).astype(np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """A PNG with a planted text chunk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Patient", PLANTED)
    Image.fromarray(pixels).save(path, pnginfo=texts)
    return path


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """A NIfTI file with a planted description and extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    volume.header["descrip"] = PLANTED.encode()
    volume.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", PLANTED.encode()))
    nibabel.save(volume, path)
    return path


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    """A CSV file; the first row is its header."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def picture_site(
    folder: Path, *, kind: str = "images", modality: str = "DX", data: str = "", more: str = ""
) -> SiteConfig:
    """A site whose images are in folder/images and whose table is folder/labels.csv; no text is looked for."""
    text = f'[data]\nkind = "{kind}"\npath = "images"\nlabels = "labels.csv"\nmodality = "{modality}"\n{data}'
    trust = f'burned_in = "trust"\ntrusted_modalities = ["{modality}"]'
    return write_site(folder, data=text, deidentify=trust, more=more)


def state_bytes(config: SiteConfig) -> bytes:
    """Everything that the site keeps, but the list that names quarantined files to the hospital."""
    kept = (path for path in sorted(config.state.rglob("*")) if path.is_file() and path.name != "quarantine.csv")
    return b"\0".join(path.name.encode() + path.read_bytes() for path in kept)
