"""A CSV file as lines that are read each by itself: what is wrong with one never reaches into the next.

So a cell may hold no line break: a quote that is left open would otherwise swallow the lines of other patients. Every
cell is SENSITIVE.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

NOT_UTF8 = "that is not UTF-8 (save the table as UTF-8)"
QUOTES = "whose quotes do not match (a cell may hold no line break)"

_LINE_END = re.compile("\r\n|\r|\n")
_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is no UTF-8


@dataclass(frozen=True, kw_only=True)
class CsvLine:
    """One line.

    Attributes:
        number: from 1, as an editor counts.
        cells: SENSITIVE: without the spaces around them.
        problem: why the cells may not be what was meant; "" if nothing is wrong with them.
    """

    number: int
    cells: tuple[str, ...] = field(repr=False)
    problem: str = ""


def read_lines(path: Path) -> tuple[CsvLine, list[CsvLine]]:
    """The header of a CSV file (RFC 4180, but one line a record), and its lines that are not empty.

    Raises:
        OSError: the file cannot be read.
        csv.Error: its first line cannot.
    """
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a long cell is no reason to stop
    lines = [_line(number, line) for number, line in enumerate(_LINE_END.split(text), 1)]
    header = lines[0]
    if header.problem:
        raise csv.Error
    return header, [line for line in lines[1:] if line.problem or any(line.cells)]


def _line(number: int, text: str) -> CsvLine:
    problem = NOT_UTF8 if _BYTE.search(text) else ""
    try:
        cells = next(csv.reader([text], strict=True), [])
    except csv.Error:
        problem = QUOTES
        cells = next(csv.reader([text], strict=False), [])
    return CsvLine(number=number, cells=tuple(cell.strip() for cell in cells), problem=problem)
