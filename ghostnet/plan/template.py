"""A configuration file as text, every key explained: words, units, ranges and defaults are its fields' own."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from ghostnet.plan.keys import Key, keys_of, table_words

_WIDTH = 110


def file_text(cls: type[Any], values: Mapping[str, object], *, heading: str, chosen: Collection[str] = ()) -> str:
    """TOML with every key of a file and its explanation.

    Args:
        cls: the file's dataclass.
        values: by dotted key ("data.path").
        heading: the first comment; each of its lines is wrapped.
        chosen: the kinds of this file; a key of other kinds only is behind a "#".

    Returns:
        TOML. A key that is neither given nor has a default is behind a "#" too, with an example.

    Raises:
        ValueError: a value for a key that the file does not have.
    """
    keys = list(keys_of(cls))
    if unknown := set(values) - {key.dotted for key in keys}:
        raise ValueError(f"no such key: {', '.join(sorted(unknown))}")
    lines = [line for part in heading.splitlines() for line in comment(part)] + [""]
    table = ""
    for key in keys:
        if key.table != table:
            table = key.table
            used = any(_is_written(other, values, chosen) for other in keys if other.table == table)
            lines += [
                *comment(_noted(table_words(cls, table), only(key.table_kinds))),
                f"{'' if used else '# '}[{table}]",
                "",
            ]
        lines += [*comment(explained(key)), _line(key, values, chosen), ""]
    return "\n".join(lines)


def explained(key: Key, *, brief: bool = False) -> str:
    """The words of a key with its unit, its range and the kinds that it is for.

    Args:
        key: the key.
        brief: the first sentence of its words alone.
    """
    words = key.heading if brief else key.words
    said = words if brief or key.default is MISSING else f"{words} {toml_value(key.default)}"
    named = all(choice in said for choice in key.range.split(", "))
    return _noted(words, key.unit, "" if named else key.range, only(key.kinds))


def only(kinds: tuple[str, ...]) -> str:
    """The kinds that have a key or a table, in words; "" for all."""
    return f"only with {', '.join(kinds)}" if kinds else ""


def comment(text: str) -> list[str]:
    """A text as lines of a comment."""
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def toml_value(value: object) -> str:
    """A value as TOML writes it, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{toml_value(str(name))} = {toml_value(entry)}" for name, entry in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(entry) for entry in value)}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _noted(words: str, *facts: str) -> str:
    shown = "; ".join(fact for fact in facts if fact)
    return f"{words} ({shown})" if shown else words


def _is_written(key: Key, values: Mapping[str, object], chosen: Collection[str]) -> bool:
    """True if a key counts, with a value that was given or with its default."""
    if key.dotted in values:
        return True
    applies = all(not kinds or not set(kinds).isdisjoint(chosen) for kinds in (key.kinds, key.table_kinds))
    return applies and key.default is not MISSING and key.default not in (None, "", (), {})


def _line(key: Key, values: Mapping[str, object], chosen: Collection[str]) -> str:
    if _is_written(key, values, chosen):
        return f"{key.name} = {toml_value(values.get(key.dotted, key.default))}"
    shown = key.default if key.example is None else key.example
    return f"# {key.name} = {toml_value(shown)}"
