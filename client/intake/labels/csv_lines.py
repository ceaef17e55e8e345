"""A CSV file as lines that are read each by itself: what is wrong with one never reaches into the next.

So a cell may hold no line break: a quote that is left open would otherwise swallow the lines of other patients. Every
cell is SENSITIVE.
"""

from __future__ import annotations

import codecs
import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

NOT_UTF8 = "that is not UTF-8 (save the table as UTF-8)"
QUOTES = "whose quotes do not match (a cell may hold no line break)"

_LINE_END = re.compile("\r\n|\r|\n")
_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is no UTF-8
_SEPARATORS = ",;\t|"
_SAID = re.compile(r'"?sep=([,;\t|])"?', re.IGNORECASE)  # Excel's own first line


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

    The separator is what a first line `sep=;` says, or else the one of comma, semicolon, tab and bar that makes most
    columns of the header. UTF-8, or UTF-16 with its byte order mark, as Excel's "Unicode text" has it.

    Raises:
        OSError: the file cannot be read.
        csv.Error: its first line cannot.
    """
    header, separator, rest = _header(path)
    lines = [_line(number, line, separator) for number, line in enumerate(_LINE_END.split(rest), header.number + 1)]
    return header, [line for line in lines if line.problem or any(line.cells)]


def read_header(path: Path) -> tuple[str, ...]:
    """The columns of a CSV file; arguments and errors as of `read_lines`."""
    return _header(path)[0].cells


def _header(path: Path) -> tuple[CsvLine, str, str]:
    """The first line that holds columns, what separates cells, and the text after that line."""
    text = _decoded(path.read_bytes())
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a long cell is no reason to stop
    first, *rest = _LINE_END.split(text, maxsplit=1)
    said, number = _SAID.fullmatch(first.strip(" ")), 1
    if said:
        first, *rest = _LINE_END.split("".join(rest), maxsplit=1)
        number = 2
    # max takes the first of equals: the comma where none makes more columns.
    separator = said.group(1) if said else max(_SEPARATORS, key=lambda each: len(_line(1, first, each).cells))
    header = _line(number, first, separator)
    if header.problem:
        raise csv.Error
    return header, separator, "".join(rest)


def _decoded(data: bytes) -> str:
    """The text; a byte that does not fit stays on its own line, as a lone surrogate."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace").replace("\ufffd", "\udcff")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _line(number: int, text: str, separator: str) -> CsvLine:
    problem = NOT_UTF8 if _BYTE.search(text) else ""
    try:
        cells = next(csv.reader([text], delimiter=separator, strict=True), [])
    except csv.Error:
        problem = QUOTES
        cells = next(csv.reader([text], delimiter=separator, strict=False), [])
    return CsvLine(number=number, cells=tuple(cell.strip() for cell in cells), problem=problem)
