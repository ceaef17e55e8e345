"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ghostnet.errors import RunFolderError


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
    """Writes a file so that a reader sees the old content or the new, never a part.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written ({error.strerror}); choose another folder") from None
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written ({error.strerror}); choose another folder") from None
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o077)  # the only way to read it; strict for the instant that it is changed
    os.umask(current)
    return current
