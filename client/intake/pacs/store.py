"""Files received from the PACS, on disk: folder/<study>/<instance>.dcm, whole files only. Names are SENSITIVE: UIDs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from client.intake.pacs.faults import Fault, FileRefused, PacsFault
from ghostnet.durable import sync_folder

if TYPE_CHECKING:
    from pydicom.tag import BaseTag

# "[0-9.]+" would let ".." through, which is no file name.
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*", re.ASCII)
_HEAD = 1 << 16  # bytes that are read to find the SOP Instance UID, the first of a dataset's few identifiers
_SOP_INSTANCE_UID = 0x00080018
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PART = ".part"
COMPLETE = ".complete"
SUFFIX = ".dcm"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One image that the PACS says it has; SENSITIVE."""

    series: str
    instance: str
    sop_class: str = ""  # "" where the PACS does not say
    modality: str = ""


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """UIDs that are not fetched, since their patients have withdrawn.

    Attributes:
        key: SENSITIVE: of the hashes.
        hashes: of SOPInstanceUIDs, and of StudyInstanceUIDs of which nothing is left.
    """

    key: bytes = field(default=b"", repr=False)
    hashes: frozenset[str] = field(default=frozenset(), repr=False)

    def __contains__(self, uid: str) -> bool:
        return bool(self.hashes) and keyed_uid(self.key, uid) in self.hashes


NOBODY = Withdrawn()


def keyed_uid(key: bytes, uid: str) -> str:
    """64 hex digits that stand for a UID."""
    return hmac.new(key, uid.encode(), hashlib.sha256).hexdigest()


def is_uid(text: object) -> bool:
    """True if a text is a DICOM UID (PS3.5 section 9.1; leading zeros, which occur, are let through)."""
    return isinstance(text, str) and _UID.fullmatch(text) is not None


class PacsFiles:
    """The folder of fetched files. One process at a time writes to it."""

    def __init__(self, folder: Path, *, file_bytes: int, total_bytes: int, withdrawn: Withdrawn = NOBODY) -> None:
        self.withdrawn = withdrawn
        self._folder = folder
        self._file_bytes = file_bytes
        self._total_bytes = total_bytes
        self._used = 0
        self._lock = threading.Lock()  # a PACS may send over several associations

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out, and clears what one that was killed left half-written.

        Raises:
            PacsFault: another process is at it, or the folder cannot be written.
        """
        with disk_faults():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise PacsFault(Fault.IN_USE) from None
            with disk_faults():
                self._used = self._tidy()
            yield
        finally:
            os.close(lock)

    def has(self, study: str, instance: str) -> bool:
        """True if the file is there; it is whole then."""
        return self._path(study, instance).is_file()

    def is_complete(self, study: str, rules: str) -> bool:
        """True if everything that `rules` requested of a study came, and is still there or was withdrawn."""
        if study in self.withdrawn:
            return True
        try:
            first, *instances = (self._folder / _checked(study) / COMPLETE).read_text("ascii").splitlines()
        except (OSError, ValueError):
            return False
        known = self.withdrawn.hashes
        return first == rules and all(name in known or (is_uid(name) and self.has(study, name)) for name in instances)

    def mark_complete(self, study: str, rules: str, instances: Iterable[str]) -> None:
        """Notes that a study need not be asked for again under the same rules."""
        key = self.withdrawn.key
        names = [keyed_uid(key, uid) if uid in self.withdrawn else _checked(uid) for uid in instances]
        lines = "\n".join([rules, *sorted(names)]) + "\n"
        folder = self._study_folder(study)
        with self._fresh(folder) as (file, path), disk_faults():
            file.write(lines.encode("ascii"))
        with disk_faults():
            path.replace(folder / COMPLETE)
            sync_folder(folder)

    def put(self, study: str, instance: str, parts: Iterable[bytes | memoryview]) -> int:
        """Writes one file as it arrives: under another name, to the disk, and only then under its own.

        Args:
            study: StudyInstanceUID, as asked for.
            instance: SOPInstanceUID, as asked for.
            parts: the bytes of a DICOM file; nothing of them but the SOPInstanceUID is looked at.

        Returns:
            How many bytes it has.

        Raises:
            FileRefused: it is too large, or is not the instance asked for.
            PacsFault: the disk or the limit on all files is full.
        """
        size = 0
        with self._fresh(self._study_folder(study)) as (file, path):
            for part in parts:
                size += len(part)
                if size > self._file_bytes:
                    raise FileRefused
                self._count(len(part))
                with disk_faults():
                    file.write(part)
            with disk_faults():
                file.flush()
            if sop_instance(path) != instance:
                raise FileRefused
        with disk_faults():
            path.replace(self._path(study, instance))
        return size

    def _count(self, size: int) -> None:
        with self._lock:
            self._used += size
            if self._used > self._total_bytes:
                raise PacsFault(Fault.TOTAL_LIMIT)

    def _study_folder(self, study: str) -> Path:
        folder = self._folder / _checked(study)
        with disk_faults():
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _fresh(self, folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
        """A new file, on the disk when the block ends, gone when it fails."""
        path = folder / f".{os.urandom(8).hex()}{_PART}"
        with disk_faults():
            file = open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        try:
            with file:
                yield file, path
                with disk_faults():
                    file.flush()
                    os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def _path(self, study: str, instance: str) -> Path:
        return self._folder / _checked(study) / f"{_checked(instance)}{SUFFIX}"

    def _tidy(self) -> int:
        used = 0
        for path in self._folder.glob("*/*"):
            if path.name.endswith(_PART):
                path.unlink(missing_ok=True)
            else:
                used += path.lstat().st_size
        return used


def sop_instance(path: Path) -> str:
    """The SOPInstanceUID of a DICOM file; "" where its first bytes do not say. Reads no pixel data."""
    from pydicom.filereader import read_file_meta_info, read_partial  # not for the parent process, which reads no file

    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head[128:132] != b"DICM":
        return ""
    try:
        if _DEFLATED in head[:1024]:  # inflating it is a worker's job
            return str(read_file_meta_info(path).MediaStorageSOPInstanceUID)
        wanted: list[BaseTag | int] = [_SOP_INSTANCE_UID]
        start = read_partial(BytesIO(head), lambda tag, vr, length: tag > _SOP_INSTANCE_UID, specific_tags=wanted)
        return str(start.SOPInstanceUID)
    except Exception:  # noqa: BLE001 - hostile bytes: whatever it is, they are not the file asked for
        return ""


@contextlib.contextmanager
def disk_faults() -> Iterator[None]:
    """Turns what a disk says into a cause."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise PacsFault(Fault.DISK_FULL if full else Fault.DISK) from None


def _checked(uid: str) -> str:
    """A UID that may be a file name; everything from the network passes here on its way to the disk."""
    if not is_uid(uid):
        raise FileRefused
    return uid
