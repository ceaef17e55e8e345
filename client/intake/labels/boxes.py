"""Boxes on images: COCO JSON or CSV. Names of images are SENSITIVE: they often hold a patient's."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.intake.folder import posix
from client.intake.labels.csv_lines import read_lines
from ghostnet.errors import DataError, SiteError

Corners = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in px of the image, from its top left."""

NONE = "none"
"""In a `box` cell: someone looked, and there is nothing."""

_MAX_BYTES = 1 << 30
_FARTHEST = 1e6  # px
_MAX_DIGITS = 300
_COLUMNS: dict[str, tuple[str, str, tuple[str, str, str, str]]] = {
    "corners": ("image", "finding", ("x0", "y0", "x1", "y1")),
    "size": ("image", "finding", ("x", "y", "width", "height")),
}
_NIH_START = ("Image Index", "Finding Label")
_NIH_ALIASES = {"Infiltrate": "Infiltration"}  # the boxes' word for what the labels call so


@dataclass(frozen=True, kw_only=True)
class NamedBox:
    """One box, and the finding that it shows; "" where the file does not say."""

    finding: str
    corners: Corners


Boxes = dict[str, tuple[NamedBox, ...] | None]
"""By image as the file names it: its boxes; none if it was looked at in vain; None if they cannot be read."""


def read_boxes(path: Path, *, strict: bool = True) -> Boxes:
    """Reads a file of boxes.

    COCO (.json): `images` (id, file_name), `annotations` (image_id, bbox = [x, y, width, height], category_id) and
    `categories` (id, name); an image without annotations has no finding. CSV: the columns image, optionally finding,
    and x0,y0,x1,y1 or x,y,width,height, a line with four empty cells saying that there is nothing; or
    BBox_List_2017.csv of NIH ChestX-ray14 as it is.

    Args:
        path: the file.
        strict: refuse the file for one bad box; otherwise its image has None.

    Raises:
        SiteError: the file cannot be read, or is neither form.
        DataError: boxes that are no boxes; the message counts them and no more.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SiteError(f"[data].boxes = {path} has more than {_MAX_BYTES >> 20} MiB; split the data among sites")
        found = _read_coco(path, strict=strict) if path.suffix.lower() == ".json" else _read_csv(path)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        kind = error.__class__.__name__
        raise SiteError(f"[data].boxes = {path} cannot be read ({kind}); give COCO JSON or a UTF-8 CSV file") from None
    boxes: Boxes = {}
    bad = 0
    for image, box in found:
        known = boxes.setdefault(posix(image), ())
        if box is None:
            bad += 1
            boxes[posix(image)] = None
        elif isinstance(box, NamedBox) and known is not None:
            boxes[posix(image)] = (*known, box)
    if bad and strict:
        raise DataError(
            f"[data].boxes has {bad} box(es) that are not four finite numbers with a width and a height > 0; "
            "correct or delete them"
        )
    return boxes


def parse_boxes(cell: str) -> tuple[Corners, ...] | None:
    """The `box` cell of a label table: "x0 y0 x1 y1; x0 y0 x1 y1", or "none".

    Returns:
        The boxes; None if the cell is not that.
    """
    if cell.strip().lower() == NONE:
        return ()
    corners = [_corners(part.split()) for part in cell.split(";") if part.strip()]
    sound = tuple(box for box in corners if box is not None)
    return sound if sound and len(sound) == len(corners) else None


_Found = tuple[str, NamedBox | str | None]
"""(image, its box, or "" for none there, or None for one that cannot be read)."""


def _read_csv(path: Path) -> Iterable[_Found]:
    first, lines = read_lines(path)
    header, wide = first.cells, max(6, len(first.cells))
    rows = [(*line.cells, *[""] * wide, line.problem) for line in lines]
    if header[:2] == _NIH_START:  # the four numbers follow, whatever the header calls their columns
        return [
            _from_cells(row[0], _NIH_ALIASES.get(row[1], row[1]), row[2:6], sized=True, problem=row[-1]) for row in rows
        ]
    for form, (image, finding, numbers) in _COLUMNS.items():
        if {image, *numbers} <= set(header):
            at = {name: header.index(name) for name in (image, finding, *numbers) if name in header}
            return [
                _from_cells(
                    row[at[image]],
                    row[at[finding]] if finding in at else "",
                    [row[at[name]] for name in numbers],
                    sized=form == "size",
                    problem=row[-1],
                )
                for row in rows
            ]
    raise SiteError(
        f"[data].boxes = {path} has none of the columns that are known; its first line must be "
        "image,x0,y0,x1,y1 or image,x,y,width,height (and finding, if you like)"
    )


def _from_cells(image: str, finding: str, cells: Sequence[str], *, sized: bool, problem: str) -> _Found:
    if problem:
        return image, None
    if not any(cells):
        return image, ""
    corners = _corners(cells, sized=sized)
    return image, None if corners is None else NamedBox(finding=finding, corners=corners)


def _read_coco(path: Path, *, strict: bool) -> Iterable[_Found]:
    text = path.read_bytes().decode("utf-8-sig", errors="strict" if strict else "surrogateescape")
    raw = json.loads(text, parse_int=_whole)
    tables = {name: raw.get(name) if isinstance(raw, dict) else None for name in ("images", "annotations")}
    wrong = any(
        not isinstance(table, list) or (strict and not all(isinstance(row, dict) for row in table))
        for table in tables.values()
    )
    if wrong:
        raise SiteError(f"[data].boxes = {path} is no COCO: it needs the lists images and annotations; export it anew")
    names = {_id(row.get("id")): str(row.get("file_name") or "") for row in _rows(raw["images"])}
    findings = {_id(row.get("id")): str(row.get("name") or "") for row in _rows(raw.get("categories"))}
    found: list[_Found] = [(name, "") for name in names.values()]
    return found + [_annotation(row, names, findings) for row in _rows(raw["annotations"])]


def _rows(table: object) -> list[dict[str, Any]]:
    return [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []


def _whole(digits: str) -> int | str:
    """Python refuses to convert thousands of digits; as text such a number is one bad box and no more."""
    return int(digits) if len(digits) <= _MAX_DIGITS else digits


def _annotation(row: Mapping[str, Any], names: Mapping[str, str], findings: Mapping[str, str]) -> _Found:
    image, box = names.get(_id(row.get("image_id")), ""), row.get("bbox")
    corners = _corners(box, sized=True) if image and isinstance(box, list) else None
    finding = findings.get(_id(row.get("category_id")), "")
    return image, None if corners is None else NamedBox(finding=finding, corners=corners)


def _id(value: object) -> str:
    return json.dumps(value)


def _corners(numbers: Sequence[object], *, sized: bool = False) -> Corners | None:
    if len(numbers) != 4 or not all(isinstance(number, str | int | float) for number in numbers):
        return None
    try:
        x0, y0, x1, y1 = (float(str(number)) for number in numbers)
    except ValueError:
        return None
    if sized:
        x1, y1 = x0 + x1, y0 + y1
    inside = all(math.isfinite(value) and abs(value) <= _FARTHEST for value in (x0, y0, x1, y1))
    return (x0, y0, x1, y1) if inside and x0 < x1 and y0 < y1 else None
