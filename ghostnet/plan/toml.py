"""TOML tables to frozen dataclasses: the one place where configuration is read.

Unknown key, missing key, wrong type, NaN, infinity and a bool where a number belongs are errors that name the key.
"""

from __future__ import annotations

import dataclasses
import math
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ghostnet.errors import GhostNetError

T = TypeVar("T")


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
    if not isinstance(raw, dict):
        raise error(f"{source}: [{prefix}] = {raw!r} is not a table")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    for key in raw:
        if key not in fields:
            known = ", ".join(fields)
            raise error(f"{source}: unknown key {_dotted(prefix, key)}; [{prefix or 'top level'}] knows: {known}")
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        key = _dotted(prefix, name)
        if name in raw:
            values[name] = _convert(raw[name], hints[name], key=key, source=source, error=error)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise error(f"{source}: key {key} is missing; add it")
    return cls(**values)


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


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _convert(value: Any, hint: Any, *, key: str, source: str, error: type[GhostNetError]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return read_table(hint, value, source=source, error=error, prefix=key)  # type: ignore[arg-type]
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise error(f"{source}: {key} = {value!r} is not one of {', '.join(map(repr, args))}")
    if origin in (Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        return _convert(value, inner, key=key, source=source, error=error)
    if origin is tuple:
        if not isinstance(value, list):
            raise error(f"{source}: {key} = {value!r} is not a list")
        return tuple(_convert(v, args[0], key=f"{key}[{i}]", source=source, error=error) for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise error(f"{source}: {key} = {value!r} is not a table")
        return {k: _convert(v, args[1], key=_dotted(key, k), source=source, error=error) for k, v in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    raise error(f"{source}: {key} = {value!r} is not {_name(hint)}")


def _name(hint: Any) -> str:
    return {float: "a number", int: "a whole number", str: "a text", bool: "true or false", Path: "a path"}.get(
        hint, str(hint)
    )
