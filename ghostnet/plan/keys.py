"""The keys of a configuration file, as its dataclass has them: type, range, unit, default and words of each.

Messages, templates, the reference page and the schemas for editors ask here, so that a key is written once.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

Number = Annotated[float, Field(allow_inf_nan=False)]
"""A finite number."""

SET_BY_PROGRAM: Any = Field(init=False)
"""Marks a field that is no key of the file."""

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_TYPES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", Path: "a path"}


def key(
    words: str,
    *,
    unit: str = "",
    example: object = None,
    kinds: tuple[str, ...] = (),
    schema: Mapping[str, Any] | None = None,
    **bounds: Any,
) -> Any:
    """Describes one key, beside its type.

    Args:
        words: what it does.
        unit: of its number.
        example: shown in a template where the key has no default to show.
        kinds: the kinds (of data, or protocols) that have the key; all, where none is named.
        schema: what an editor's schema says in place of the type's own.
        bounds: `gt`, `ge`, `lt`, `le`, `multiple_of`.
    """
    more = {"unit": unit, "kinds": list(kinds)}
    extra: Any = {name: value for name, value in more.items() if value}
    if schema is not None:
        own = extra | dict(schema) | {"description": words}

        def extra(found: dict[str, Any]) -> None:
            found.clear()
            found.update(own)

    examples = None if example is None else [example]
    return Field(description=words, examples=examples, json_schema_extra=extra or None, **bounds)


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a file.

    Attributes:
        dotted: its tables and its name.
        hint: its type, without annotations.
        range: the numbers or the words that it may be; "" where its type says all.
        unit: of its number.
        default: MISSING where it has to be given.
        words: what it does.
        example: a value to show; None where there is none.
        kinds: the kinds that have it; () for all.
        table_kinds: the kinds that have its table; () for all.
    """

    dotted: str
    hint: Any
    range: str
    unit: str
    default: Any
    words: str
    example: Any
    kinds: tuple[str, ...]
    table_kinds: tuple[str, ...]

    @property
    def table(self) -> str:
        """The tables that it stands in; "" for the top level."""
        return self.dotted.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Its name in its table."""
        return self.dotted.rpartition(".")[2]

    @property
    def type(self) -> str:
        """Its type in words."""
        return type_words(self.hint)

    @property
    def heading(self) -> str:
        """The first sentence of its words."""
        return self.words.partition(". ")[0].removesuffix(".")


def keys_of(cls: type[Any], table: str = "", kinds: tuple[str, ...] = ()) -> Iterator[Key]:
    """Every key of a file, table by table; plain keys come first, as TOML wants them.

    Args:
        cls: the dataclass of the file, or of one table.
        table: dotted name of that table.
        kinds: that have the table.

    Raises:
        ValueError: a field without words, which nobody could look up.
    """
    nested = []
    for spec in dataclasses.fields(cls):
        info, dotted = field_info(cls, spec.name), f"{table}.{spec.name}" if table else spec.name
        if info.init is False:
            continue
        if not info.description:
            raise ValueError(f"{cls.__name__}.{spec.name} has no words; describe it with key(...)")
        inner = bare(info.annotation)
        if dataclasses.is_dataclass(inner):
            nested.append((inner, dotted, kinds_of(info)))
        else:
            yield Key(
                dotted=dotted,
                hint=inner,
                range=allowed(info),
                unit=str(_extra(info).get("unit", "")),
                default=spec.default_factory() if spec.default_factory is not MISSING else spec.default,
                words=info.description,
                example=info.examples[0] if info.examples else None,
                kinds=kinds_of(info),
                table_kinds=kinds,
            )
    for inner, dotted, of_table in nested:
        yield from keys_of(inner, dotted, of_table)  # type: ignore[arg-type]


def kinds_of(info: FieldInfo) -> tuple[str, ...]:
    """The kinds that have a field; () for all."""
    return tuple(_extra(info).get("kinds", ()))


def table_words(cls: type[Any], table: str) -> str:
    """The words of a table of a file."""
    info = found_at(cls, tuple(table.split(".")))
    return "" if info is None else info.description or ""


_FIELDS: dict[type[Any], dict[str, FieldInfo]] = {}  # a class's are read once: they take longer than a small file


def _extra(info: FieldInfo) -> Mapping[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def field_info(cls: type[Any], name: str) -> FieldInfo:
    """Type, bounds and words of one field."""
    if cls not in _FIELDS:
        hints = get_type_hints(cls, include_extras=True)
        _FIELDS[cls] = {spec.name: FieldInfo.from_annotation(hints[spec.name]) for spec in dataclasses.fields(cls)}
    return _FIELDS[cls][name]


def found_at(cls: type[Any], place: tuple[int | str, ...]) -> FieldInfo | None:
    """The field, or the part of one, that a fault is in; None where no field has that place."""
    info = FieldInfo.from_annotation(cls)
    for part in place:
        hint = bare(info.annotation)
        origin, args = get_origin(hint), get_args(hint)
        if dataclasses.is_dataclass(hint) and part in {spec.name for spec in dataclasses.fields(hint)}:
            info = field_info(hint, str(part))  # type: ignore[arg-type]
        elif origin in (tuple, dict):
            info = FieldInfo.from_annotation(args[0] if origin is tuple else args[1])
        else:
            return None
    return info


def allowed(info: FieldInfo) -> str:
    """The allowed values of a field: "> 0 and <= 1", or the words of a choice; "" where its type says all."""
    hint = bare(info.annotation)
    if get_origin(hint) is Literal:
        return ", ".join(json.dumps(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return allowed(FieldInfo.from_annotation(get_args(hint)[0]))
    found = [f"{_SIGNS[n]} {_plain(getattr(m, n))}" for m in info.metadata for n in _SIGNS if hasattr(m, n)]
    found += [f"a multiple of {m.multiple_of}" for m in info.metadata if getattr(m, "multiple_of", None)]
    return " and ".join(found)


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def type_words(hint: Any) -> str:
    """A type in words."""
    hint = bare(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "a choice"
    if origin is tuple:
        return f"a list, each {type_words(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    return _TYPES.get(hint, str(hint))


def bare(hint: Any) -> Any:
    """The type without its annotations, and without the None of a key that may be left out."""
    if get_origin(hint) is Annotated:
        return bare(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return bare(next(a for a in get_args(hint) if a is not type(None)))
    return hint
