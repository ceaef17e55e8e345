"""The two kinds of data a site may have, each read into rows."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import cache as once
from importlib import metadata
from pathlib import Path

import numpy as np

import client
from client.config import SiteConfig
from client.deidentify.pseudonyms import content_key, patient_key
from client.intake.cache import Cache, Entry
from client.intake.decode import Outcome, prepare_files, usable_cores
from client.intake.folder import LabelRow, find_files, find_mask, has_signature, read_labels
from client.intake.npz import NpzData, read_npz
from client.intake.quarantine import Code
from client.intake.rows import Row, Rows
from client.intake.task import Limits, Settings, Task
from client.preprocess import preprocess, preprocess_mask
from ghostnet.errors import DataError, SiteError
from ghostnet.plan import ImageSpec
from ghostnet.progress import Progress

_SHAPING_CODE = ("preprocess.py", "deidentify/*.py", "intake/dicom.py", "intake/prepare.py", "intake/cache.py")
_SHAPING_LIBRARIES = ("pydicom", "numpy", "opencv-python-headless", "scikit-image", "python-gdcm", "pyjpegls")


def dicom_rows(
    config: SiteConfig,
    image: ImageSpec,
    secret: bytes,
    progress: Progress,
    *,
    limits: Limits,
    workers: int | None,
    strict: bool = True,
) -> Rows:
    """Reads a folder of DICOM files in worker processes; what is in the cache is not opened again.

    Raises:
        SiteError: the folder or the label table cannot be read.
        DataError: the folder holds no file, or the label table does not fit the plan.
    """
    folder, labels_path = config.data.path, config.data.labels
    if labels_path is None:
        raise SiteError(f"[data].labels is missing in {config.source}; name a CSV with the columns image,label")
    labels = read_labels(labels_path, image.labels, strict=strict)
    masks = {name: find_mask(row.mask, folder=folder, table=labels_path) for name, row in labels.items() if row.mask}
    files = find_files(folder, [labels_path, *(mask for mask in masks.values() if mask)])
    settings = _settings(config, image)
    shape = (image.channels + image.mask_channels, image.size, image.size)
    cache = Cache(config.state / "cache", rules=_rules(settings), shape=shape)
    wanted, refused = _with_label(folder, files, labels, masks, image)
    with cache.locked():
        entries, from_cache = _entries(wanted, cache, settings, secret, progress, limits=limits, workers=workers)
    taken = []
    for name, entry in entries.items():
        label = labels[name].label
        if isinstance(entry, Code):
            refused.append((name, entry))
        elif label is not None:
            row = Row(
                planes=entry.planes, label=label, patient=entry.patient, record=entry.record, blanked=entry.blanked
            )
            taken.append(row)
    return Rows(
        taken=taken,
        refused=sorted(refused),
        found=len(files),
        from_cache=from_cache,
        rows_without_file=len(labels.keys() - set(files)),
    )


def npz_rows(config: SiteConfig, image: ImageSpec, secret: bytes, progress: Progress, *, strict: bool = True) -> Rows:
    """Reads an NPZ file; uint8 0..255 becomes the plan's range, whatever values an image holds.

    Raises:
        DataError: see `read_npz`; or a patient has rows in both splits.
    """
    data = read_npz(config.data.path, image, strict=strict)
    n = len(data.images)
    taken: list[Row] = []
    refused: list[tuple[str, Code]] = []
    for i in range(n):
        if i % 256 == 0:
            progress("images", i, n)
        if not data.patients[i].strip(" \t\r\n\0"):
            refused.append((f"row {i}", Code.NO_PATIENT_ID))
            continue
        if data.labels[i] < 0:
            refused.append((f"row {i}", Code.NO_LABEL))
            continue
        test = None if data.test is None else bool(data.test[i])
        patient = patient_key(secret, data.patients[i])
        taken.append(Row(planes=_npz_planes(data, i, image), label=int(data.labels[i]), patient=patient, test=test))
    progress("images", n, n)
    return Rows(taken=_one_split(taken, config.data.path, strict), refused=refused, found=n)


def _npz_planes(data: NpzData, i: int, image: ImageSpec) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    planes = [preprocess(data.images[i].astype(np.float32), valid=None, image=image, window=(0.0, 255.0))]
    if data.masks is not None:
        mask, channels = data.masks[i], image.mask_channels
        inside = [mask != 0] if channels == 1 else [mask == k + 1 for k in range(channels)]
        planes += [preprocess_mask(region.astype(np.uint8), image) for region in inside]
    return np.concatenate(planes)


def _one_split(taken: list[Row], path: Path, strict: bool) -> list[Row]:
    """Every patient in one split; one with rows of both is an error or, if not strict, never trained on."""
    train, test = ({row.patient for row in taken if row.test is part} for part in (False, True))
    if train & test and strict:
        raise DataError(
            f"{path}: {len(train & test)} patient(s) have rows of both splits; put all rows of a patient in one"
        )
    return [replace(row, test=True) if row.patient in train & test else row for row in taken]


def _with_label(
    folder: Path, files: list[str], labels: dict[str, LabelRow], masks: dict[str, Path | None], image: ImageSpec
) -> tuple[dict[str, Task], list[tuple[str, Code]]]:
    """Files worth opening, by relative path, and those already refused."""
    wanted, refused = {}, []
    for name in files:
        row = labels.get(name)
        if not _looks_like_dicom(folder / name):
            refused.append((name, Code.NOT_DICOM))
        elif row is None or row.label is None:
            refused.append((name, Code.NO_LABEL))
        elif image.mask_channels and not row.mask:
            refused.append((name, Code.NO_MASK))
        elif image.mask_channels and masks[name] is None:
            refused.append((name, Code.BAD_MASK))
        else:
            wanted[name] = Task(path=folder / name, mask=masks.get(name) if image.mask_channels else None)
    return wanted, refused


def _looks_like_dicom(path: Path) -> bool:
    try:
        return has_signature(path)
    except OSError:
        return True  # a worker says that it cannot be read


def _entries(
    wanted: dict[str, Task],
    cache: Cache,
    settings: Settings,
    secret: bytes,
    progress: Progress,
    *,
    limits: Limits,
    workers: int | None,
) -> tuple[dict[str, Entry | Code], int]:
    """The prepared image, or the code, of every wanted file; and how many came from the cache."""
    keys = _content_keys(wanted, secret)
    entries: dict[str, Entry | Code] = {name: Code.UNREADABLE for name in wanted if name not in keys}
    for name, key in keys.items():
        known = cache.load(key)
        if known is not None:
            entries[name] = known
    todo = [name for name in wanted if name not in entries]
    from_cache = len(keys) - len(todo)
    progress("images", len(entries), len(wanted))
    for index, outcome in prepare_files([wanted[name] for name in todo], settings, limits=limits, workers=workers):
        name = todo[index]
        entries[name] = _keyed(outcome, secret)
        cache.store(keys[name], entries[name])
        progress("images", len(entries), len(wanted))
    cache.forget_all_but(set(keys.values()))
    return {name: entries[name] for name in wanted}, from_cache


def _content_keys(wanted: dict[str, Task], secret: bytes) -> dict[str, str]:
    """The key of each file's content, its mask's included; files that cannot be read are left out."""

    def key(task: Task) -> str | None:
        try:
            return content_key(secret, _digest(task.path), _digest(task.mask))
        except OSError:
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter's lock
        keys = pool.map(key, wanted.values())
        return {name: found for name, found in zip(wanted, keys, strict=True) if found is not None}


def _keyed(outcome: Outcome, secret: bytes) -> Entry | Code:
    if isinstance(outcome, Code):
        return outcome
    try:
        patient = patient_key(secret, outcome.patient_id)
    except ValueError:
        return Code.NO_PATIENT_ID
    return Entry(planes=outcome.planes, record=outcome.record, blanked=outcome.blanked, patient=patient)


def _digest(path: Path | None) -> bytes:
    if path is None:
        return b""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _settings(config: SiteConfig, image: ImageSpec) -> Settings:
    deidentify = config.deidentify
    return Settings(
        image=image,
        burned_in=deidentify.burned_in,
        trusted_modalities=deidentify.trusted_modalities,
        modalities=deidentify.modalities,
    )


def _rules(settings: Settings) -> str:
    """Everything but the source that an entry depends on; label names and shares are not among it."""
    shaping = asdict(settings)
    for name in ("labels", "label_prior"):
        del shaping["image"][name]
    return json.dumps([shaping, _code_version()], sort_keys=True)


@once
def _code_version() -> str:
    """Changes with any line of the code that shapes an entry, and with the libraries under it."""
    digest, here = hashlib.sha256(), Path(str(client.__file__)).parent
    for pattern in _SHAPING_CODE:
        for path in sorted(here.glob(pattern)):
            digest.update(path.read_bytes())
    for library in _SHAPING_LIBRARIES:
        try:
            digest.update(f"{library} {metadata.version(library)};".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{library} none;".encode())
    return digest.hexdigest()
