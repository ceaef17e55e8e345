"""TOML tables to frozen dataclasses, by pydantic: the one place where configuration is read.

Unknown key, missing key, wrong type, NaN, infinity and a bool where a number belongs are errors that name the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ghostnet.errors import GhostNetError, printable
from ghostnet.plan.keys import allowed, bare, field_info, found_at, type_words

T = TypeVar("T")

_UNKNOWN = "unexpected_keyword_argument"
_OUT_OF_RANGE = (
    "finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of"
)  # fmt: skip
_SHOWN = 200  # characters of a value in a message
_BARE = re.compile(r"[A-Za-z0-9_-]{1,100}")  # a key that TOML writes without quotes


def read_file(path: Path, *, title: str, example: str, error: type[GhostNetError]) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        path: the file; UTF-8, with a byte order mark where an editor wrote one.
        title: of such files, for messages.
        example: name of such a file, for messages.
        error: the exception class to raise.

    Raises:
        GhostNetError: of class `error`: the file cannot be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{title} {path} is not UTF-8 text; save it as UTF-8 in your editor") from None
    except OSError as refused:
        kind = refused.__class__.__name__
        raise error(f"{title} {path} cannot be read ({kind}); give the path of a {example}") from None
    return parse(text, source=str(path), error=error)


def parse(text: str, *, source: str, error: type[GhostNetError]) -> dict[str, Any]:
    """The tables of a TOML text; see `read_file`."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise error(f"{source} has tables or lists nested too deep; no key needs that: remove them") from None
    except ValueError as refused:  # not TOML, or a number of more digits than Python reads
        raise error(f"{source} is not valid TOML: {printable(str(refused))}; correct it") from None


def read_table(cls: type[T], raw: object, *, source: str, error: type[GhostNetError], prefix: str = "") -> T:
    """Builds dataclass `cls` from a TOML table.

    Args:
        cls: a frozen dataclass; nested dataclasses are nested tables.
        raw: the parsed table.
        source: the file's name, for messages.
        error: the exception class to raise.
        prefix: dotted path of this table inside the file.

    Raises:
        GhostNetError: of class `error`, naming the key.
    """
    try:
        text = json.dumps(raw, default=_no_value)
    except (RecursionError, ValueError):
        raise error(f"{source} has a number of thousands of digits, or is nested too deep; remove it") from None
    try:
        return _reader(cls).validate_json(text, strict=True, extra="forbid")
    except ValidationError as refused:
        faults = refused.errors(include_url=False, include_context=False)
    # A misspelled key is said before the one that is missing for it.
    first = next((fault for fault in faults if fault["type"] == _UNKNOWN), faults[0])
    raise error(_message(cls, first, source=source, prefix=prefix))


def check_number(
    value: float,
    *,
    key: str,
    source: str,
    error: type[GhostNetError],
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Refuses a number outside [low, high], at or under `above`, at or over `below`, or not finite."""
    good = math.isfinite(value) and low <= value <= high
    good = good and (above is None or value > above) and (below is None or value < below)
    if not good:
        bounds = [f"> {above:g}" if above is not None else f">= {low:g}" if low > -math.inf else ""]
        bounds.append(f"< {below:g}" if below is not None else f"<= {high:g}" if high < math.inf else "")
        expected = " and ".join(b for b in bounds if b)
        table, _, name = key.rpartition(".")
        where = f"[{table}].{name}" if table else name
        raise error(f"{key} = {value:g} is not a finite number {expected}; set {where} in {source}")


_readers: dict[type, TypeAdapter[Any]] = {}


def _reader(cls: type[T]) -> TypeAdapter[T]:
    """Made once for each class."""
    if cls not in _readers:
        _readers[cls] = TypeAdapter(cls)
    return _readers[cls]


def _no_value(value: object) -> object:
    """A date of TOML, in a form that no key takes: no key is a date."""
    return [[str(value)]]


def _message(cls: type[Any], fault: Mapping[str, Any], *, source: str, prefix: str) -> str:
    """The message of an error: the given value, the expected one, and the remedy."""
    kind, place, value = fault["type"], fault["loc"], _shown(fault["input"])
    if kind == "json_invalid":
        return f"{source} has tables or lists nested too deep; no key needs that: remove them"
    key = _dotted(prefix, place)
    if kind == _UNKNOWN:
        return f"{source}: unknown key {key}; {_nearest(cls, place, prefix)}"
    if kind == "missing":
        return f"{source}: key {key} is missing; add it"
    if kind in ("dataclass_type", "dict_type"):
        return f"{source}: [{key}] = {value} is not a table; write its keys below a line [{key}]"
    if kind == "tuple_type":
        return f"{source}: {key} = {value} is not a list; put it in [ ]"
    info = found_at(cls, place)
    expected = "" if info is None else allowed(info)
    if kind == "literal_error":
        return f"{source}: {key} = {value} is not one of {expected}; change it"
    if expected and kind in _OUT_OF_RANGE:
        table, _, name = key.rpartition(".")
        where = f"[{table}].{name}" if table else name
        return f"{key} = {value} is not a finite number {expected}; set {where} in {source}"
    wanted = fault["msg"] if info is None else f"not {type_words(info.annotation)}"
    return f"{source}: {key} = {value} is {wanted}; change it"


def _nearest(cls: type[Any], place: tuple[int | str, ...], prefix: str) -> str:
    """The known key that is most like an unknown one, and all others of its table."""
    *tables, name = place
    info = found_at(cls, tuple(tables))
    inner = cls if info is None else bare(info.annotation)
    known = [spec.name for spec in dataclasses.fields(inner) if field_info(inner, spec.name).init is not False]
    near = difflib.get_close_matches(str(name), known, n=1)
    asked = f"did you mean {near[0]}? " if near else ""
    return f"{asked}[{_dotted(prefix, tuple(tables)) or 'top level'}] knows: {', '.join(known)}"


def _dotted(prefix: str, place: tuple[int | str, ...]) -> str:
    key = prefix
    for part in place:
        key += f"[{part}]" if isinstance(part, int) else f".{_quoted(part)}" if key else _quoted(part)
    return key


def _quoted(name: str) -> str:
    """A key as TOML writes it, on one line."""
    return name if _BARE.fullmatch(name) else _shown(name)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
