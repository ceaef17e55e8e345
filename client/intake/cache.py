"""The cache of prepared images. Entries hold pixels, closed-list values and keys: no identifier.

An entry is found by a keyed hash of the source file and one of what the label table says of it, below a folder named
after everything that shaped it (the plan's image, the site's rules, this code). It stays as long as its source file is
there and its patient has not withdrawn, whatever plan is asked for in between; of such folders, only those last used
stay. Entries are written whole or not at all, readable by the site's user only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from client.deidentify.headers import HeaderRecord, record_from_dict
from client.deidentify.survivors import survivors
from client.quarantine import TRANSIENT, Code, Refused
from ghostnet.durable import write_unsynced

_SUFFIX = ".safetensors"
_MAX_RULES = 8  # sets of rules whose entries are kept: some plans in turn, not every version of this code


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file as it is kept.

    Attributes:
        planes: float32 (frames,planes,size,size) in the plan's range.
        record: the header values that are kept.
        blanked: for each frame, the boxes of text that were blanked.
        patient: the patient's key.
    """

    planes: NDArray[np.float32]
    record: HeaderRecord
    blanked: tuple[int, ...]
    patient: str


class Cache:
    """One site's prepared images for one set of rules.

    Args:
        folder: the site's cache folder; made if it is not there.
        rules: text that determines how a source becomes an entry.
        shape: (planes,size,size) of every frame of every entry.
    """

    def __init__(self, folder: Path, *, rules: str, shape: tuple[int, ...]) -> None:
        self._root = folder
        self._shape = shape
        self._folder = folder / hashlib.sha256(rules.encode()).hexdigest()[:32]
        for made in (self._root, self._folder):
            made.mkdir(parents=True, exist_ok=True, mode=0o700)
            made.chmod(0o700)
        os.utime(self._folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Waits until no other process works on this cache; the lock goes with the process that holds it."""
        with open(os.open(self._root / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def load(self, key: str) -> Entry | Code | None:
        """The entry under a key, the code it was refused with, or None if it is not there or not whole."""
        try:
            with safe_open(self._path(key), framework="numpy") as file:
                kept = json.loads(file.metadata()["entry"])
                if "code" in kept:
                    return Code(kept["code"])
                planes: NDArray[np.float32] = file.get_tensor("planes")
            entry = Entry(
                planes=planes,
                record=record_from_dict(kept["record"]),
                blanked=tuple(int(count) for count in kept["blanked"]),
                patient=str(kept["patient"]),
            )
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, Refused):
            return None
        whole = planes.shape == (len(entry.blanked), *self._shape) and planes.dtype == np.float32
        return entry if whole and planes.size and np.isfinite(planes).all() else None

    def store(self, key: str, entry: Entry | Code, identifiers: Sequence[str] = ()) -> Entry | Code:
        """Keeps an entry, or a refusal that would come again; others are not kept.

        Args:
            key: as `entry_key` gives it.
            entry: what came of it.
            identifiers: SENSITIVE: texts of the source's header; dropped.

        Returns:
            The entry, or IDENTIFIER instead of one whose bytes hold such a text.

        Guarantee:
            No byte that is written for an image holds an identifier as `survivors` looks for it.
            Not covered: what is drawn in the pixels, and identifiers that are short or beyond the bound on their count.
        """
        if isinstance(entry, Entry):
            kept = {"record": asdict(entry.record), "blanked": entry.blanked, "patient": entry.patient}
            artefact = _artefact({"planes": entry.planes}, kept)
            if not survivors(artefact, identifiers):
                write_unsynced(self._path(key), artefact)
                return entry
            entry = Code.IDENTIFIER
        if entry not in TRANSIENT:
            write_unsynced(self._path(key), _artefact({}, {"code": entry.value}))
        return entry

    def sources(self) -> set[str]:
        """The source of every entry, under whatever rules it was made."""
        return {_source(path) for path in self._root.glob(f"*/*{_SUFFIX}")}

    def forget(self, *, present: Set[str], excluded: Set[str]) -> None:
        """Removes entries whose source is gone or whose patient has withdrawn, under whatever rules they were made.

        Args:
            present: sources whose files are there.
            excluded: keys of patients of whom nothing is kept.
        """
        last_used = sorted((path for path in self._root.iterdir() if path.is_dir()), key=_modified, reverse=True)
        for folder in last_used[_MAX_RULES:]:
            if folder != self._folder:
                shutil.rmtree(folder, ignore_errors=True)
        for path in self._root.glob(f"*/*{_SUFFIX}*"):
            gone = path.suffix != _SUFFIX or _source(path) not in present
            if gone or (excluded and _patient(path) in excluded):
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"


def entry_key(source: str, said: str) -> str:
    """The key of an entry, from two of `content_key`: of the source file, and of what else it was made from."""
    return f"{source}-{said}"


def _source(path: Path) -> str:
    return path.name.split(".")[0].partition("-")[0]


def _modified(folder: Path) -> float:
    return folder.stat().st_mtime


def _patient(path: Path) -> str:
    """Whose an entry is; "" for a refusal, which holds nothing of a patient, and for one that is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return str(json.loads(file.metadata()["entry"]).get("patient", ""))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _artefact(arrays: dict[str, NDArray[np.float32]], kept: Mapping[str, object]) -> bytes:
    return bytes(save(arrays, metadata={"entry": json.dumps(kept, sort_keys=True)}))
