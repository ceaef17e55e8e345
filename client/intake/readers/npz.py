"""An NPZ file to checked columns: shapes, types and sizes are read before anything is loaded; nothing is unpickled.

Two forms are read: the columns `images`, `labels`, `patient`, `masks` and `split`; and MedMNIST's, {train,val,test}_
{images,labels} with labels of shape (n,1). Where a file does not say whose the images are, every image is a patient of
its own, and the same pixels twice are one: so that a patient's key and split never depend on another row.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ghostnet.errors import DataError
from ghostnet.plan import ImageSpec

_MAX_BYTES = 16 << 30
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_WANTED = ("images", "labels", "patient", "masks", "split")
_PARTS = ("train", "val", "test")

Validation = Literal["train", "test", "drop"]
"""What MedMNIST's part "val" counts as."""

_Headers = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


@dataclass(frozen=True, kw_only=True)
class NpzData:
    """The checked columns of one file; n rows each.

    Attributes:
        images: uint8 (n,h,w) or (n,h,w,3).
        labels: int64 (n,), index into the plan's labels.
        patients: SENSITIVE: an identifier a row, "" where it is missing; only to be keyed.
        masks: uint8 (n,h,w), or None.
        test: bool (n,), rows never trained on; None where the site is to split by patient.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    patients: list[str] = field(repr=False)
    masks: NDArray[np.uint8] | None
    test: NDArray[np.bool_] | None


def read_npz(path: Path, image: ImageSpec, *, strict: bool = True, validation: Validation = "train") -> NpzData:
    """Reads the columns `images`, `labels`, `patient`, `masks` and `split`, or a MedMNIST file; others must only be
    plain arrays.

    Args:
        path: the file.
        image: the plan's image; it says how many labels there are and whether masks are needed.
        strict: refuse the file for one bad row, or none; otherwise a bad one's label is -1, or it is never trained on.
        validation: what a MedMNIST file's part "val" counts as.

    Raises:
        DataError: one line that names the column, what it holds and what was expected.
    """
    headers = _check_columns(path)
    columns = _load(path, headers, _WANTED, validation)
    n = len(columns["images"])
    if n == 0 and strict:
        raise DataError(f"{path}: images has no row; give at least one image")
    return NpzData(
        images=columns["images"],
        labels=_labels(path, columns.get("labels"), n, image, strict),
        patients=[str(patient) for patient in columns["patient"]],
        masks=_masks(path, columns.get("masks"), image),
        test=_test_rows(path, columns.get("split"), strict),
    )


def has_patients(path: Path) -> bool:
    """True if the file names the patient of each image; its list of columns alone is read.

    Raises:
        DataError: it is not an NPZ file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from None
    return {"images", "patient"} <= names  # without images it is MedMNIST's form, whose other columns are not read


def read_columns(path: Path, *, validation: Validation = "train") -> dict[str, NDArray[Any]]:
    """Every column of a file with one entry a row, checked as in `read_npz`; for sharing rows out among sites.

    `patient` is always there: without the column each image is a patient of its own, and the same pixels are one.

    Raises:
        DataError: as in `read_npz`; or a further column has another number of rows.
    """
    headers = _check_columns(path)
    if "images" in headers:
        n = headers["images"][0][0]
        for name, (shape, _) in headers.items():
            if shape[:1] != (n,):
                raise DataError(
                    f"{path}: {name} has shape {shape}, images has {n} rows; give every column one entry a row"
                )
    return _load(path, headers, tuple(headers), validation)


def _load(path: Path, headers: _Headers, names: tuple[str, ...], validation: Validation) -> dict[str, NDArray[Any]]:
    columns = _load_parts(path, headers, names, validation)
    if "patient" in columns:
        return columns
    pixels = [hashlib.sha256(image.tobytes()).hexdigest() for image in columns["images"]]
    patients = np.array(pixels, dtype="U64")
    if "split" in columns:  # nobody said that two equal images are one patient: no mistake, but never trained on
        tested = np.isin(patients, patients[columns["split"] == "test"])
        columns["split"] = np.where(tested, "test", columns["split"])
    return {"patient": patients, **columns}


def _load_parts(
    path: Path, headers: _Headers, names: tuple[str, ...], validation: Validation
) -> dict[str, NDArray[Any]]:
    parts = [] if "images" in headers else [part for part in _PARTS if f"{part}_images" in headers]
    wanted = [f"{part}_{kind}" for part in parts for kind in ("images", "labels")] or [n for n in names if n in headers]
    try:
        with np.load(path, allow_pickle=False) as file:
            columns: dict[str, NDArray[Any]] = {name: file[name] for name in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, MemoryError) as error:
        raise _broken(path, error) from None
    if not parts:
        return columns
    kept = [part for part in parts if part != "val" or validation != "drop"]
    if not kept:
        raise DataError(f'{path} has only the part val, which [data].validation = "drop" leaves out; change it')
    split = {"val": validation}
    return {
        "images": np.concatenate([columns[f"{part}_images"] for part in kept]),
        "labels": np.concatenate([columns[f"{part}_labels"].reshape(-1) for part in kept]),
        "split": np.concatenate([np.full(len(columns[f"{part}_images"]), split.get(part, part)) for part in kept]),
    }


def _check_columns(path: Path) -> _Headers:
    """Shape and type of every column, read from the members' own headers and checked before anything is allocated."""
    headers = _read_headers(path)
    parts = [part for part in _PARTS if f"{part}_images" in headers]
    if "images" not in headers and not parts:
        raise DataError(
            f"{path} has no column images; give uint8 (n,h,w) or (n,h,w,3), or a MedMNIST file with train_images"
        )
    for name, (_, dtype) in headers.items():
        if dtype.hasobject:
            raise DataError(
                f"{path}: {name} is an object array, which only pickle can read; save it as numbers or text"
            )
    if "images" in headers:
        for name in _WANTED:
            if name in headers:
                _check_column(path, name, *headers[name], headers["images"][0])
        total = sum(_bytes(*headers[name]) for name in _WANTED if name in headers)
    else:
        _check_parts(path, parts, headers)
        total = 2 * sum(_bytes(*headers[f"{part}_images"]) for part in parts)  # they are joined
    if total > _MAX_BYTES:
        raise DataError(f"{path} unpacks to {total >> 30} GiB, more than {_MAX_BYTES >> 30}; split it among sites")
    return headers


def _check_parts(path: Path, parts: list[str], headers: _Headers) -> None:
    first = headers[f"{parts[0]}_images"][0]
    for part in parts:
        name = f"{part}_images"
        shape, dtype = headers[name]
        _check_column(path, "images", shape, dtype, shape, called=name)
        if shape[1:] != first[1:]:
            raise DataError(f"{path}: {name} has images of {shape[1:]}, {parts[0]}_images of {first[1:]}; use one size")
        labels = headers.get(f"{part}_labels")
        if labels is None:
            raise DataError(f"{path} has {name} and no {part}_labels; add them")
        if labels[0] not in (shape[:1], (shape[0], 1)) or labels[1].kind not in "iu":
            several = " (several labels an image are not taken)" if len(labels[0]) == 2 and labels[0][1] > 1 else ""
            raise DataError(
                f"{path}: {part}_labels is {labels[1]} {labels[0]}, not whole numbers ({shape[0]}, 1){several}; "
                "save it so"
            )


def _check_column(
    path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], images: tuple[int, ...], called: str = ""
) -> None:
    if name == "images":
        good = len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)
        good, expected = good and dtype == np.uint8 and min(shape[1:3]) > 0, "uint8 (n,h,w) or (n,h,w,3)"
    elif name == "masks":
        good, expected = shape == images[:3] and dtype == np.uint8, f"uint8 {images[:3]}"
    else:
        kinds, words = {"labels": ("iu", "whole numbers"), "patient": ("iuU", "text or whole numbers")}.get(
            name, ("U", "the texts train and test")
        )
        typed = dtype.kind in kinds or not images[0]  # a column without values has whatever type was at hand
        good, expected = shape == images[:1] and typed, f"{words} ({images[0]},)"
    if not good:
        raise DataError(f"{path}: {called or name} is {dtype} {shape}, not {expected}; save it so")


def _read_headers(path: Path) -> _Headers:
    headers: _Headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as member:
                    version = npy.read_magic(member)
                    shape, _, dtype = _HEADERS[version](member, max_header_size=10_000)
                    held = info.file_size - member.tell()
                if not dtype.hasobject and held != _bytes(shape, dtype):
                    raise DataError(f"{path}: {name} says {dtype} {shape} but holds {held} bytes; write the file again")
                if name in headers:
                    raise DataError(f"{path}: two columns are called {name}; write the file again")
                headers[name] = (shape, dtype)
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise _broken(path, error) from None
    return headers


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    total = dtype.itemsize
    for side in shape:
        total *= side
    return total


def _missing(path: Path) -> DataError:
    return DataError(f"{path} does not exist; give the path of an NPZ file")


def _broken(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} is not a whole NPZ file of plain arrays ({error.__class__.__name__}); write it with numpy.savez"
    )


def _labels(path: Path, labels: NDArray[Any] | None, n: int, image: ImageSpec, strict: bool) -> NDArray[np.int64]:
    classes = len(image.labels)
    if labels is None:
        if classes > 1:
            raise DataError(
                f"{path} has no column labels, and the plan has {classes} labels; add it, or use a plan with one"
            )
        return np.zeros(n, np.int64)
    outside = (labels < 0) | (labels >= classes)
    if strict and outside.any():
        raise DataError(
            f"{path}: {int(outside.sum())} label(s) are not in 0..{classes - 1}, the plan's {classes} labels; "
            "correct them"
        )
    return np.where(outside, -1, labels.astype(np.int64))


def _masks(path: Path, masks: NDArray[Any] | None, image: ImageSpec) -> NDArray[np.uint8] | None:
    if not image.mask_channels:
        return None
    if masks is None:
        raise DataError(f"{path} has no column masks, and the plan draws masks; add it, or set image.mask_channels = 0")
    return masks


def _test_rows(path: Path, split: NDArray[Any] | None, strict: bool) -> NDArray[np.bool_] | None:
    if split is None:
        return None
    test: NDArray[np.bool_] = split == "test"
    trained: NDArray[np.bool_] = split == "train"
    other = int((~test & ~trained).sum())
    if other and strict:
        raise DataError(f'{path}: split has {other} value(s) that are neither "train" nor "test"; correct them')
    return ~trained
