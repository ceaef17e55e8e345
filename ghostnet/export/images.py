"""Draws samples from a sampler and writes them in a format that others read."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, PngImagePlugin

from ghostnet import __version__
from ghostnet.durable import new_folder, refuse_existing
from ghostnet.errors import DataError
from ghostnet.plan.unit import UNITS, unit_line
from ghostnet.progress import Progress, silent
from ghostnet.sampler.pixels import median_denoise, to_uint8
from ghostnet.sampler.sampler import Sampler, Samples, check_count

Format = Literal["png", "npz", "dicom", "nifti"]
NOTICE = "SYNTHETIC - NOT FOR DIAGNOSTIC USE"
ARRAYS_FILE, TABLE_FILE = "images.npz", "labels.csv"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One sample on its way into files.

    Attributes:
        number: position among the samples, from 0.
        pixels: uint8 (h,w) or (h,w,3).
        label: name of its class.
        masks: uint8 0/1 (mask_channels, h, w); mask_channels may be 0.
    """

    number: int
    pixels: np.ndarray
    label: str
    masks: np.ndarray


FileWriter = Callable[[Path, str, Picture], str]
"""Writes the image of (folder, stem, picture) and returns the file's name."""


def write_images(
    sampler: Sampler,
    n: int,
    label: str | int | None,
    seed: int,
    image_format: Format,
    out: Path,
    *,
    denoise: bool = False,
    progress: Progress = silent,
) -> list[str]:
    """Draws n images and writes them to a new folder, complete or not at all.

    png, dicom and nifti: one file an image, masks beside them, and labels.csv (image,label[,mask]), the table that
    site.toml reads. npz: one file images.npz with `images` uint8 (n,h,w[,3]), `labels` int64 and, where the sampler
    draws masks, `masks` uint8 0/1 (n,h,w), or (n,m,h,w) for m > 1 masks an image.

    Args:
        sampler: what draws.
        n: number of images, at least 1.
        label: class name or index; None draws classes from the plan's public prior.
        seed: public seed of the images.
        image_format: "png", "npz", "dicom" or "nifti".
        out: the folder to make.
        denoise: also apply a 3x3 median; for samplers whose images are speckled.
        progress: told about images.

    Returns:
        Names of the files in the folder.

    Raises:
        DataError: n, label, seed or image_format cannot be used.
        MissingDependencyError: the format's library is not installed.
        RunFolderError: `out` holds something already, or cannot be written.
    """
    if image_format not in get_args(Format):
        raise DataError(f"format {image_format!r} is unknown; use one of: {', '.join(get_args(Format))}")
    check_count(n, "n", low=1)
    sampler.label_index(label)
    refuse_existing(out)
    batches = _pictures(sampler, n, label, seed, denoise=denoise, progress=progress)
    if image_format == "npz":
        with new_folder(out) as folder:
            _write_arrays(folder / ARRAYS_FILE, batches, sampler)
        return [ARRAYS_FILE]
    write_file = _file_writer(image_format, sampler)
    with new_folder(out) as folder:
        rows = [_write_files(folder, picture, write_file, image_format, width=len(str(n - 1))) for picture in batches]
        names = _write_table(folder / TABLE_FILE, rows)
    return names


def _pictures(
    sampler: Sampler, n: int, label: str | int | None, seed: int, *, denoise: bool, progress: Progress
) -> Any:
    done = 0
    for batch in sampler.batches(n, label, seed):
        images = median_denoise(batch.images) if denoise else batch.images
        pixels = to_uint8(images, sampler.config.image.range)
        masks = _masks(batch, sampler)
        for i, name in enumerate(sampler.labels[index] for index in batch.labels.tolist()):
            yield Picture(number=done + i, pixels=pixels[i], label=name, masks=masks[i])
        done += len(pixels)
        progress("images", done, n)


def _masks(batch: Samples, sampler: Sampler) -> np.ndarray:
    size = sampler.config.image.size
    return np.zeros((len(batch.labels), 0, size, size), np.uint8) if batch.masks is None else batch.masks.numpy()


def _write_arrays(path: Path, pictures: Any, sampler: Sampler) -> None:
    drawn = list(pictures)
    arrays = {
        "images": np.stack([picture.pixels for picture in drawn]),
        "labels": np.array([sampler.labels.index(picture.label) for picture in drawn], np.int64),
    }
    if sampler.config.image.mask_channels:
        masks = np.stack([picture.masks for picture in drawn])  # (n,m,h,w)
        arrays["masks"] = masks[:, 0] if masks.shape[1] == 1 else masks
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _write_files(
    folder: Path, picture: Picture, write_file: FileWriter, image_format: Format, *, width: int
) -> list[str]:
    """Writes one image and its masks; returns its row of labels.csv and any further mask names."""
    stem = f"{picture.number:0{width}d}_{_file_safe(picture.label)}"
    row = [write_file(folder, stem, picture), picture.label]
    for i, mask in enumerate(picture.masks):
        mask_stem = f"{stem}_mask" if len(picture.masks) == 1 else f"{stem}_mask{i + 1}"
        row.append(_write_mask(folder, mask_stem, mask, image_format))
    return row


def _write_mask(folder: Path, stem: str, mask: np.ndarray, image_format: Format) -> str:
    if image_format == "nifti":
        _optional("nifti").write_nifti(folder / f"{stem}.nii.gz", mask)
        return f"{stem}.nii.gz"
    _write_png(folder / f"{stem}.png", mask * np.uint8(255))
    return f"{stem}.png"


def _write_table(path: Path, rows: list[list[str]]) -> list[str]:
    masks = len(rows[0]) - 2
    header = ["image", "label", *(["mask"] if masks == 1 else [f"mask{i + 1}" for i in range(masks)])]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return [name for row in rows for name in (row[0], *row[2:])] + [path.name]


def _file_writer(image_format: Format, sampler: Sampler) -> FileWriter:
    if image_format == "png":
        return lambda folder, stem, picture: _write_png(folder / f"{stem}.png", picture.pixels)
    if image_format == "nifti":
        nifti = _optional("nifti")

        def write_nifti(folder: Path, stem: str, picture: Picture) -> str:
            nifti.write_nifti(folder / f"{stem}.nii.gz", picture.pixels)
            return f"{stem}.nii.gz"

        return write_nifti
    dicom = _optional("dicom")
    series, provenance = dicom.new_series(), dicom.Provenance(**_provenance(sampler))

    def write_dicom(folder: Path, stem: str, picture: Picture) -> str:
        dataset = dicom.synthetic_dataset(
            picture.pixels, label=picture.label, number=picture.number + 1, provenance=provenance, series=series
        )
        dicom.write_dicom(folder / f"{stem}.dcm", dataset)
        return f"{stem}.dcm"

    return write_dicom


def _write_png(path: Path, pixels: np.ndarray) -> str:
    notice = PngImagePlugin.PngInfo()
    notice.add_text("Description", NOTICE)
    notice.add_text("Software", f"GhostNet {__version__}")
    Image.fromarray(pixels).save(path, pnginfo=notice)
    return path.name


def _provenance(sampler: Sampler) -> dict[str, str]:
    facts = {
        "sampler_name": sampler.config.name,
        "software_version": __version__,
        "weights_sha256": sampler.config.weights_sha256,
    }
    certificate = sampler.folder / "certificate.json" if sampler.folder else None
    if certificate is None or not certificate.is_file():
        return facts
    content = certificate.read_bytes()
    return {**facts, "certificate_sha256": hashlib.sha256(content).hexdigest(), "privacy": _claim(content)}


def _claim(certificate: bytes) -> str:
    """The certificate's claim in words, or "" where it cannot be read; `ghostnet verify` is what judges it."""
    try:
        raw = json.loads(certificate)
        epsilon, delta = float(raw["epsilon_pld"]), float(raw["delta"])
        unit = UNITS[UNITS.index(raw["unit"])]
    except (ValueError, KeyError, TypeError):
        return ""
    return f"epsilon {epsilon:g}, delta {delta:g} {unit_line(unit)}, at each hospital"


def _optional(name: Literal["dicom", "nifti"]) -> Any:
    return importlib.import_module(f"ghostnet.export.{name}")  # its library may be missing; then it says so


def _file_safe(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", label)[:40].strip("-") or "class"
