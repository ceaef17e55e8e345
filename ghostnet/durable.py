"""Files that are on the disk before anything rests on them."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all, readable by its owner alone (0600), and syncs it.

    After a power cut the folder may still hold what was there before, until `sync_folder`.
    """
    fresh = path.with_name(path.name + ".new")
    _write(fresh, data, os.O_TRUNC)
    fresh.replace(path)


def create_durably(path: Path, data: bytes) -> None:
    """Like `write_durably`, unless the file is there: of two processes that race here, one wins whole."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    _write(fresh, data, os.O_EXCL)
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


def _write(path: Path, data: bytes, flag: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | flag | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
