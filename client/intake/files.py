"""Image files to prepared entries: from the cache where their content is known, else through the workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache as once
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeVar

import client
from client.deidentify.pseudonyms import content_key, patient_key
from client.intake.cache import Cache, Entry, entry_key
from client.intake.sandbox.pool import Outcome, prepare_files, usable_cores
from client.intake.task import Limits, Settings, Task
from client.quarantine import Code
from ghostnet.progress import Progress

T = TypeVar("T")
U = TypeVar("U")

_SHAPING_CODE = (  # files and whole folders, sub-folders too
    *(
        "preprocess.py",
        "formats.py",
        "modalities.py",
        "quarantine.py",
        "deidentify",
        "intake/readers",
        "intake/sandbox",
    ),
    *("intake/cache.py", "intake/folder.py", "intake/patient_id.py", "intake/task.py"),
)
_SHAPING_LIBRARIES = (
    *("pydicom", "numpy", "opencv-python-headless", "scikit-image", "python-gdcm", "pyjpegls", "pillow", "nibabel"),
    *("rapidocr", "onnxruntime", "pylibjpeg-openjpeg", "pylibjpeg-libjpeg"),
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
        digest: SHA-256 of the file, where it was read already.
    """

    name: str = field(repr=False)
    task: Task = field(repr=False)
    label: int
    patient: str | None = field(repr=False)
    drawn: Literal["", "mask", "boxes"] = ""
    digest: bytes | None = field(default=None, repr=False)


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
    others: Sequence[Path] | None = None,
) -> tuple[list[Entry | Code], list[bool]]:
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
        others: files that are there and not among the jobs: what another plan made of them stays in the cache, and
            what was made of any further file is removed. None: nothing is removed for want of its file.

    Returns:
        The entry, or the code, of each job; and whether it came from the cache.

    Raises:
        OSError: the cache cannot be written.
    """
    image = settings.image
    shape = (image.channels + image.mask_channels, image.size, image.size)
    cache = Cache(folder, rules=_rules(settings), shape=shape)
    with cache.locked():
        sources, keys = _content_keys(jobs, secret)
        entries: list[Entry | Code | None] = [Code.UNREADABLE if key is None else cache.load(key) for key in keys]
        todo = [i for i, entry in enumerate(entries) if entry is None]
        done = len(jobs) - len(todo)
        cached = [key is not None and entry is not None for key, entry in zip(keys, entries, strict=True)]
        progress("images", done, len(jobs))
        tasks = [jobs[i].task for i in todo]
        for index, outcome in prepare_files(tasks, settings, limits=limits, workers=workers):
            i = todo[index]
            entries[i] = _store(cache, keys[i] or "", outcome, jobs[i].patient, secret, excluded)
            done += 1
            progress("images", done, len(jobs))
        final = [_unless_excluded(entry, excluded) for entry in entries]
        known = cache.sources()
        present = known if others is None else {source for source in sources if source}
        if others and known - present:  # else nothing hangs on files that this plan does not use
            present |= {source for source in _in_parallel(lambda path: _source_key(path, secret), others) if source}
        cache.forget(present=present, excluded=excluded)
    return final, cached


def with_digests(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with the SHA-256 of their files; without one where a file cannot be read."""

    def digested(job: Job) -> Job:
        try:
            return replace(job, digest=job.digest or file_digest(job.task.path))
        except OSError:
            return job

    return _in_parallel(digested, jobs)


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


def _content_keys(jobs: Sequence[Job], secret: bytes) -> tuple[list[str | None], list[str | None]]:
    """The key of each file's content, and of its entry; None for what cannot be read."""

    def keys(job: Job) -> tuple[str | None, str | None]:
        task = job.task
        said = json.dumps([task.format, task.boxes, task.approved, job.patient]).encode()
        source = _source_key(task.path, secret, job.digest)
        try:
            more = content_key(secret, b"said", file_digest(task.mask) if task.mask else b"", said)
        except OSError:
            return source, None
        return source, entry_key(source, more) if source else None

    both = _in_parallel(keys, jobs)
    return [source for source, _ in both], [key for _, key in both]


def _source_key(path: Path, secret: bytes, digest: bytes | None = None) -> str | None:
    try:
        return content_key(secret, b"source", digest or file_digest(path))
    except OSError:
        return None


def _in_parallel(work: Callable[[T], U], items: Sequence[T]) -> list[U]:
    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter's lock
        return list(pool.map(work, items))


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _rules(settings: Settings) -> str:
    """Everything but the source that an entry depends on; label names and shares are not among it."""
    shaping = asdict(settings)
    for name in ("labels", "label_prior", "released_prior"):
        del shaping["image"][name]
    return json.dumps([shaping, _code_version()], sort_keys=True)


@once
def _code_version() -> str:
    """Changes with any line of the code that shapes an entry, and with the libraries under it."""
    digest = hashlib.sha256()
    for path in shaping_files(Path(str(client.__file__)).parent):
        digest.update(path.read_bytes())
    for library in _SHAPING_LIBRARIES:
        try:
            digest.update(f"{library} {metadata.version(library)};".encode())
        except metadata.PackageNotFoundError:
            digest.update(f"{library} none;".encode())
    return digest.hexdigest()


def shaping_files(here: Path) -> list[Path]:
    """The modules of the hospital's package that shape an entry, in a fixed order.

    Args:
        here: the folder of the package `client`.
    """
    found = [module for name in _SHAPING_CODE for module in ((here / name), *(here / name).rglob("*.py"))]
    return sorted(module for module in found if module.is_file())
