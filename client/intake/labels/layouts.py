"""Label tables in the layouts that hospitals have, each read into the same lines.

A line says of one image (or folder of images) whose it is and what was found. Every text of a line is SENSITIVE.
Errors count lines and give their numbers, and never quote one.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from client.config import Layout
from client.intake.folder import posix
from client.intake.labels.boxes import Corners, parse_boxes
from client.intake.labels.csv_lines import CsvLine, read_lines
from ghostnet.errors import DataError, SiteError

NO_FINDING = "No Finding"

NIH_FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", NO_FINDING),
)
CHEXPERT_FINDINGS = (
    *(NO_FINDING, "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
FINDINGS: dict[Layout, tuple[str, ...]] = {"plain": (), "nih": NIH_FINDINGS, "chexpert": CHEXPERT_FINDINGS}
"""Every finding of a layout; a plain table has no closed list."""

CHEXPERT_PATIENT = re.compile(r"patient\d+")
_MAX_NUMBERS = 5
_MARKS = {"1": "present", "0": "absent", "-1": "uncertain", "": "absent"}


@dataclass(frozen=True, kw_only=True)
class ImageLine:
    """One line of a label table. SENSITIVE.

    Attributes:
        image: path with "/", as the table names it.
        patient: "" where the table does not say.
        present, uncertain: findings.
        mask: path of a mask; "" where there is none.
        boxes: None if the line says nothing of boxes, empty if it says that there are none.
        sound: whether every cell could be read; a line that is not keeps its image out.
        number: of the line in its file, from 1; 0 if it comes from no file.
    """

    image: str = field(repr=False)
    patient: str = field(default="", repr=False)
    present: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    mask: str = field(default="", repr=False)
    boxes: tuple[Corners, ...] | None = None
    sound: bool = True
    number: int = 0

    def without_patient(self) -> ImageLine:
        """The same line for a file that says itself whose it is."""
        return replace(self, patient="")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The demands on a label table.

    Attributes:
        labels: the plan's labels, for messages.
        findings: what the plan or `[labels].map` knows; a plain table may hold nothing else.
        patients: the table has to say whose each image is.
    """

    labels: Sequence[str]
    findings: Collection[str]
    patients: bool


_Row = Mapping[str, str]
_Reader = Callable[[_Row, Wanted], tuple[ImageLine, str]]


def read_layout(table: Path, layout: Layout, wanted: Wanted, *, strict: bool = True) -> list[ImageLine]:
    """Reads a label table.

    plain: the columns image and label, and where there are such, patient, mask and box. nih: Data_Entry_2017.csv.
    chexpert: train.csv. Further columns are not read.

    Args:
        table: the CSV file.
        layout: its form.
        wanted: what it is read for.
        strict: refuse the table for one bad line; otherwise the line is not sound, and its image left out.

    Raises:
        SiteError: the file cannot be read or lacks a column.
        DataError: lines that cannot be used; the message counts them, with the numbers of the first.
    """
    try:
        header, raw = read_lines(table)
    except (OSError, csv.Error) as error:
        raise unreadable_table(table, error) from None
    _check_columns(table, layout, header.cells, wanted)
    lines, problems = [], defaultdict[str, list[int]](list)
    for one in raw:
        line, problem = _read_line(one, header.cells, layout, wanted)
        if problem:
            problems[problem].append(one.number)
        if line.image:
            lines.append(replace(line, sound=not problem, number=one.number))
    if strict and problems:
        said = ", ".join(
            f"{len(numbers)} line(s) {problem}{numbered(numbers)}" for problem, numbers in sorted(problems.items())
        )
        raise DataError(f"the label table has {said}; correct them, or leave the label empty to keep an image out")
    return lines


def unreadable_table(table: Path, error: Exception) -> SiteError:
    """The refusal of a label table that is no table."""
    kind = error.__class__.__name__
    return SiteError(
        f"[data].labels = {table} cannot be read ({kind}); give a UTF-8 CSV file, or UTF-16 as Excel's Unicode text"
    )


def numbered(numbers: Iterable[int]) -> str:
    """Line numbers for messages: up to five, which name nobody; "" if none is known."""
    known = sorted({number for number in numbers if number})
    more = ", ..." if len(known) > _MAX_NUMBERS else ""
    return f" (line {', '.join(map(str, known[:_MAX_NUMBERS]))}{more})" if known else ""


def _read_line(one: CsvLine, header: Sequence[str], layout: Layout, wanted: Wanted) -> tuple[ImageLine, str]:
    row = dict(zip(header, (*one.cells, *[""] * len(header)), strict=False))
    line, problem = _READERS[layout](row, wanted)
    if any(one.cells[len(header) :]):
        problem = "with more cells than the first line has columns (a comma in a text needs quotes)"
    if not line.image:
        problem = "without an image"
    return line, one.problem or problem


def _check_columns(table: Path, layout: Layout, header: Sequence[str], wanted: Wanted) -> None:
    needed = {
        "plain": ["image", "patient", "label"] if wanted.patients else ["image", "label"],
        "nih": ["Image Index", "Finding Labels", "Patient ID"],
        "chexpert": ["Path", *(name for name in CHEXPERT_FINDINGS if name in wanted.findings)],
    }[layout]
    for name in needed:
        if name not in header:
            whose = "; each image needs the patient it belongs to" if name == "patient" else ""
            raise SiteError(
                f"[data].labels = {table} has no column {name}{whose}; layout {layout!r} needs {','.join(needed)}"
            )
        if header.count(name) > 1:
            raise SiteError(f"[data].labels = {table} has {header.count(name)} columns {name}; keep one of them")


def _plain(row: _Row, wanted: Wanted) -> tuple[ImageLine, str]:
    label, cell = row["label"], row.get("box", "")
    boxes = parse_boxes(cell) if cell else None
    problem = ""
    if label and label not in wanted.findings:
        problem = f"with a label that the plan does not name ({', '.join(wanted.labels)}), nor [labels].map"
    elif cell and boxes is None:
        problem = 'with a box that is not "x0 y0 x1 y1; ..." in px, nor "none"'
    line = ImageLine(
        image=posix(row["image"]),
        patient=row.get("patient", ""),
        present=(label,) if label else (),
        mask=posix(row.get("mask", "")),
        boxes=boxes,
    )
    return line, problem


def _nih(row: _Row, wanted: Wanted) -> tuple[ImageLine, str]:
    findings = tuple(name.strip() for name in row["Finding Labels"].split("|") if name.strip())
    unknown = set(findings) - set(NIH_FINDINGS)
    # Boxes were drawn on few images only; but where nothing was found there is nothing to draw.
    boxes = () if findings == (NO_FINDING,) else None
    line = ImageLine(image=posix(row["Image Index"]), patient=row["Patient ID"], present=findings, boxes=boxes)
    return line, "with a finding that layout 'nih' does not have" if unknown else ""


def _chexpert(row: _Row, wanted: Wanted) -> tuple[ImageLine, str]:
    image = posix(row["Path"])
    patient = next((part for part in image.split("/") if CHEXPERT_PATIENT.fullmatch(part)), "")
    marks = {name: _mark(row.get(name, "")) for name in CHEXPERT_FINDINGS}
    line = ImageLine(
        image=image,
        patient=patient,
        present=tuple(name for name, mark in marks.items() if mark == "present"),
        uncertain=tuple(name for name, mark in marks.items() if mark == "uncertain"),
    )
    return line, "" if all(marks.values()) else "with a finding that is not 1, 0, -1 or empty"


def _mark(cell: str) -> str:
    return _MARKS.get(cell.removesuffix(".0"), "")


_READERS: dict[Layout, _Reader] = {"plain": _plain, "nih": _nih, "chexpert": _chexpert}
