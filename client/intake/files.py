"""Image files to prepared entries: from the cache where their content is known, else through the workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache as once
from importlib import metadata
from pathlib import Path
from typing import Literal

import client
from client.deidentify.pseudonyms import content_key, patient_key
from client.intake.cache import Cache, Entry
from client.intake.decode import Outcome, prepare_files, usable_cores
from client.intake.quarantine import Code
from client.intake.task import Limits, Settings, Task
from ghostnet.progress import Progress

_SHAPING_CODE = ("preprocess.py", "deidentify/*.py", "intake/*.py")
# A new module counts as one that shapes entries until it is named here.
_NOT_SHAPING = (
    *("sources.py", "layouts.py", "findings.py", "pairing.py", "boxes.py", "annotations.py", "arrays.py", "npz.py"),
    *("rows.py", "table.py", "retrieval.py", "dicomweb.py", "dimse.py", "dimse_desk.py", "pacs.py", "pacs_config.py"),
    *("pacs_faults.py", "pacs_files.py", "pacs_worker.py"),
)
_SHAPING_LIBRARIES = (
    *("pydicom", "numpy", "opencv-python-headless", "scikit-image", "python-gdcm", "pyjpegls", "pillow", "nibabel"),
    *("highdicom", "pylibjpeg-openjpeg"),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file that is worth opening.

    Attributes:
        name: SENSITIVE: its path below the image folder.
        task: what a worker is told.
        label: index into the plan's labels.
        patient: SENSITIVE: whose it is; None where the file itself says so.
        drawn: what its mask is drawn from.
    """

    name: str = field(repr=False)
    task: Task = field(repr=False)
    label: int
    patient: str | None = field(repr=False)
    drawn: Literal["", "mask", "boxes"] = ""


def prepare_jobs(
    jobs: Sequence[Job],
    folder: Path,
    settings: Settings,
    secret: bytes,
    progress: Progress,
    *,
    excluded: Set[str],
    limits: Limits,
    workers: int | None,
) -> tuple[list[Entry | Code], int]:
    """Prepares files; what is in the cache is not opened again.

    A second process waits. One that is stopped loses at most the files it was at.

    Args:
        jobs: the files.
        folder: of the cache.
        settings: what each is prepared with.
        secret: the site's.
        progress: called with ("images", done, total).
        excluded: keys of patients of whom nothing is kept.
        limits: what one file may cost.
        workers: processes that decode; None is one a core.

    Returns:
        The entry, or the code, of each job; and how many came from the cache.

    Raises:
        OSError: the cache cannot be written.
    """
    image = settings.image
    shape = (image.channels + image.mask_channels, image.size, image.size)
    cache = Cache(folder, rules=_rules(settings), shape=shape)
    with cache.locked():
        keys = _content_keys(jobs, secret)
        entries: list[Entry | Code | None] = [Code.UNREADABLE if key is None else cache.load(key) for key in keys]
        todo = [i for i, entry in enumerate(entries) if entry is None]
        done = len(jobs) - len(todo)
        from_cache = done - keys.count(None)
        progress("images", done, len(jobs))
        tasks = [jobs[i].task for i in todo]
        for index, outcome in prepare_files(tasks, settings, limits=limits, workers=workers):
            i = todo[index]
            entries[i] = _store(cache, keys[i] or "", outcome, jobs[i].patient, secret, excluded)
            done += 1
            progress("images", done, len(jobs))
        final = [_unless_excluded(entry, excluded) for entry in entries]
        cache.forget_all_but(
            {key for key, entry in zip(keys, final, strict=True) if key and entry is not Code.EXCLUDED}
        )
    return final, from_cache


def _store(
    cache: Cache, key: str, outcome: Outcome, patient: str | None, secret: bytes, excluded: Set[str]
) -> Entry | Code:
    """Keeps what came of a file, under its patient's key."""
    if isinstance(outcome, Code):
        return cache.store(key, outcome)
    try:
        keyed = patient_key(secret, outcome.patient_id if patient is None else patient)
    except ValueError:
        return cache.store(key, Code.NO_PATIENT_ID)
    if keyed in excluded:
        return Code.EXCLUDED
    entry = Entry(planes=outcome.planes, record=outcome.record, blanked=outcome.blanked, patient=keyed)
    return cache.store(key, entry, outcome.identifiers if patient is None else (*outcome.identifiers, patient))


def _unless_excluded(entry: Entry | Code | None, excluded: Set[str]) -> Entry | Code:
    if entry is None:
        return Code.CRASHED
    return Code.EXCLUDED if isinstance(entry, Entry) and entry.patient in excluded else entry


def _content_keys(jobs: Sequence[Job], secret: bytes) -> list[str | None]:
    """The key of each file's content and of what the table says about it; None for one that cannot be read."""

    def key(job: Job) -> str | None:
        task = job.task
        said = json.dumps([task.format, task.boxes, task.approved, job.patient]).encode()
        try:
            return content_key(secret, _digest(task.path), _digest(task.mask), said)
        except OSError:
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(key, jobs))


def _digest(path: Path | None) -> bytes:
    if path is None:
        return b""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


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
            digest.update(path.read_bytes() if path.name not in _NOT_SHAPING else b"")
    for library in _SHAPING_LIBRARIES:
        try:
            digest.update(f"{library} {metadata.version(library)};".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{library} none;".encode())
    return digest.hexdigest()
