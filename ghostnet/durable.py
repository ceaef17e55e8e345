"""Files and folders that appear whole or not at all, and are on the disk before anything rests on them."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ghostnet.errors import RunFolderError

PRIVATE, PUBLIC = 0o600, 0o666  # readable by the owner alone; by whom the umask lets


def write_durably(path: Path, data: bytes, *, mode: int = PRIVATE) -> None:
    """Writes a file whole or not at all, and syncs it.

    After a power cut the folder may still hold what was there before, until `sync_folder`.
    """
    fresh = path.with_name(path.name + ".new")
    _write(fresh, data, os.O_TRUNC, mode)
    fresh.replace(path)


def write_unsynced(path: Path, data: bytes) -> None:
    """Like `write_durably`, for private files that can be made again: unsynced, and two processes may write one."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        _write(fresh, data, os.O_TRUNC, PRIVATE, synced=False)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def create_durably(path: Path, data: bytes) -> None:
    """Like `write_durably`, unless the file is there: of two processes that race here, one wins whole."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    _write(fresh, data, os.O_EXCL, PRIVATE)
    try:
        with suppress(FileExistsError):  # the other process was first; its file is the one that is read
            os.link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Syncs the names in a folder."""
    _sync(folder)


def sync_file(path: Path) -> None:
    """Syncs the bytes of a file that was written before."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes, flag: int, mode: int, *, synced: bool = True) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | flag | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        if synced:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `path` and renames it to `path` when the block ends well.

    If the block raises, the temporary folder is removed and `path` never comes to exist.

    Args:
        path: where the folder will be; may exist only as an empty folder.

    Raises:
        RunFolderError: `path` holds something already, or cannot be written.
    """
    refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written ({error.strerror}); choose another folder") from None
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())  # mkdtemp makes it private; a published folder follows the person's umask
        try:
            partial.rename(path)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be written ({error.strerror}); choose another folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Refuses a path that already holds something.

    Raises:
        RunFolderError: `path` is a file, or a folder that is not empty.
    """
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunFolderError(f"{path} already exists and is never overwritten; remove it or choose another path")


def replace_file(path: Path, content: bytes) -> None:
    """`write_durably`, of a file for people: a reader sees the old content or the new, never a part.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    try:
        write_durably(path, content, mode=PUBLIC)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written ({error.strerror}); choose another folder") from None


def _umask() -> int:
    current = os.umask(0o077)  # the only way to read it; strict for the instant that it is changed
    os.umask(current)
    return current
