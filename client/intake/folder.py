"""A folder of image files and the label table beside it. Paths are SENSITIVE: they often hold names."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ghostnet.errors import DataError, SiteError

PREAMBLE = 128  # bytes, of anything, before the signature (PS3.10 section 7.1)
SIGNATURE = b"DICM"
_NOT_IMAGES = ("DICOMDIR",)


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """What the label table says of one image."""

    label: int | None  # index into the plan's labels; None where the cell is empty
    mask: str  # path relative to the image folder or the table's; "" where there is none


def find_files(folder: Path, leave_out: Sequence[Path] = ()) -> list[str]:
    """Every regular file under a folder, as sorted relative paths with "/"; hidden ones and DICOMDIR are not images.

    Links to folders are not followed.

    Args:
        folder: where to look.
        leave_out: absolute paths that are no images (the label table, masks).

    Raises:
        SiteError: the folder, or one inside it, cannot be read.
        DataError: there is no file.
    """
    if not folder.is_dir():
        raise SiteError(f"[data].path = {folder} is not a folder; name the folder of the images")

    def unreadable(error: OSError) -> None:
        kind = error.__class__.__name__
        raise SiteError(
            f"a folder under [data].path cannot be read ({kind}); give the site's user access to it"
        ) from None

    left_out = {os.path.realpath(path) for path in leave_out}
    found = []
    for here, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if name.startswith(".") or name in _NOT_IMAGES or os.path.realpath(path) in left_out or not path.is_file():
                continue
            found.append(path.relative_to(folder).as_posix())
    if not found:
        raise DataError(f"[data].path = {folder} holds no image file; put the images there, in any subfolders")
    return sorted(found)


def has_signature(path: Path) -> bool:
    """Whether a file says that it is DICOM."""
    with path.open("rb") as file:
        return file.read(PREAMBLE + len(SIGNATURE))[PREAMBLE:] == SIGNATURE


def read_labels(table: Path, labels: Sequence[str], *, strict: bool = True) -> dict[str, LabelRow]:
    """Reads a label table: CSV with a header line and the columns image, label and, if there are masks, mask.

    Args:
        table: the CSV file.
        labels: the plan's label names.
        strict: refuse the table for one bad row; otherwise the image of that row has no label.

    Returns:
        The rows by image path, relative to the image folder. Further columns are not read.

    Raises:
        SiteError: the file cannot be read or lacks a column.
        DataError: labels that the plan does not name, or images named twice; the message counts them and no more.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            missing = [name for name in ("image", "label") if name not in columns]
            if missing:
                raise SiteError(
                    f"[data].labels = {table} has no column {missing[0]}; its first line must be image,label[,mask]"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        kind = error.__class__.__name__
        raise SiteError(f"[data].labels = {table} cannot be read ({kind}); give a UTF-8 CSV file") from None
    return _by_image(rows, labels, strict)


def find_mask(mask: str, *, folder: Path, table: Path) -> Path | None:
    """The mask file that a label table names, beside the images or beside the table; None if it is in neither."""
    for parent in (folder, table.parent):
        path = (parent / _posix(mask)).resolve()
        if path.is_relative_to(parent) and path.is_file():
            return path
    return None


def _by_image(rows: Sequence[Mapping[str, str | None]], labels: Sequence[str], strict: bool) -> dict[str, LabelRow]:
    indices: dict[str, int | None] = {name: index for index, name in enumerate(labels)} | {"": None}
    cells = [{key: (row.get(key) or "").strip() for key in ("image", "label", "mask")} for row in rows]
    unknown = sum(cell["label"] not in indices for cell in cells)
    if unknown and strict:
        raise DataError(
            f"the label table has {unknown} label(s) that the plan does not name ({', '.join(labels)}); "
            "correct them, or leave the cell empty to keep the image out"
        )
    by_image = {
        _posix(cell["image"]): LabelRow(label=indices.get(cell["label"]), mask=cell["mask"])
        for cell in cells
        if cell["image"]
    }
    named = Counter(_posix(cell["image"]) for cell in cells if cell["image"])
    twice = [image for image, count in named.items() if count > 1]
    if twice and strict:
        raise DataError(f"the label table names {len(twice)} image(s) twice; keep one line for each")
    return by_image | {image: LabelRow(label=None, mask="") for image in twice}


def _posix(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).as_posix()
