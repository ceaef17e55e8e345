"""A folder of image files, as names and first bytes. Paths are SENSITIVE: they often hold names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from client.formats import FIRST_BYTES, FORMATS
from ghostnet.errors import DataError, SiteError

_NOT_IMAGES = ("DICOMDIR",)
_MASK_SUFFIXES = (".png", ".nii.gz", ".nii", ".dcm")
_IMAGE_SUFFIXES = tuple(suffix for known in FORMATS.values() for suffix in known.suffixes)


def find_files(folder: Path, leave_out: Sequence[Path] = (), *, strict: bool = True) -> list[str]:
    """Every regular file under a folder, as sorted relative paths with "/"; hidden ones and DICOMDIR are not images.

    Links to folders are not followed.

    Args:
        folder: where to look.
        leave_out: absolute paths of files and folders that are no images (the label table, masks).
        strict: refuse a folder without a file, or with one inside it that cannot be read; otherwise there is nothing in
            it.

    Raises:
        SiteError: it is no folder; or, if strict, one inside it cannot be read.
        DataError: there is no file; only if strict.
    """
    if not folder.is_dir():
        raise SiteError(f"[data].path = {folder} is not a folder; name the folder of the images")

    def unreadable(error: OSError) -> None:
        if strict:
            kind = error.__class__.__name__
            raise SiteError(
                f"a folder under [data].path cannot be read ({kind}); give the site's user access to it"
            ) from None

    left_out = {os.path.realpath(path) for path in leave_out}
    found = []
    for here, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(here, name)) not in left_out
        ]
        for name in names:
            path = Path(here, name)
            if name.startswith(".") or name in _NOT_IMAGES or os.path.realpath(path) in left_out:
                continue
            try:
                if path.is_file():
                    found.append(path.relative_to(folder).as_posix())
            except OSError as error:  # the names of a folder can be had without access to what is in it
                unreadable(error)
    if not found and strict:
        raise DataError(f"[data].path = {folder} holds no image file; put the images there, in any subfolders")
    return sorted(found)


def has_signature(path: Path, format: str) -> bool:
    """True if a file's first bytes are those of a format of `client.formats.FORMATS`.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return FORMATS[format].starts(file.read(FIRST_BYTES))


def find_mask(mask: str, *, folder: Path, table: Path) -> Path | None:
    """The mask file that a label table names, beside the images or beside the table; None if it is in neither."""
    for parent in (folder, table.parent):
        path = resolved(parent / mask)
        try:
            if path is not None and path.is_relative_to(parent) and path.is_file():
                return path
        except (OSError, ValueError):
            continue
    return None


def resolved(path: Path) -> Path | None:
    """A path of a table without links; None for one that no file system can have, or that links to itself."""
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return None


def find_mask_beside(mask: str, inside: str, *, folder: Path, table: Path) -> Path | None:
    """The mask of one image of a folder: a file for all of them, or its namesake, of any format, in a folder of masks.

    Args:
        mask: what the label table names for the folder.
        inside: the image's path below its folder.
        folder: of the images, as in `find_mask`.
        table: the label table, likewise.
    """
    whole = find_mask(mask, folder=folder, table=table)
    stem = inside[: len(inside) - len(image_suffix(inside))]
    names = [f"{mask}/{inside}", *(f"{mask}/{stem}{suffix}" for suffix in _MASK_SUFFIXES)]
    return whole or next(filter(None, (find_mask(name, folder=folder, table=table) for name in names)), None)


def image_suffix(name: str) -> str:
    """The ending of an image's name, as it is written there; "" where it has none of those that images have."""
    length = next((len(suffix) for suffix in _IMAGE_SUFFIXES if name.lower().endswith(suffix)), 0)
    return name[len(name) - length :]


def posix(path: str) -> str:
    """A path of a table with "/" between its parts and no "." among them; "" stays ""."""
    return PurePosixPath(path.replace("\\", "/")).as_posix() if path.strip() else ""
