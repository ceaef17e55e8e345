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

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_TYPES = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", Path: "a path"}


def key(
    words: str,
    *,
    unit: str = "",
    example: object = None,
    kinds: tuple[str, ...] = (),
    schema: Mapping[str, Any] | None = None,
    **bounds: float,
) -> Any:
    """What is said of one key, beside its type.

    Args:
        words: what it does.
        unit: of its number.
        example: shown in a template where the key has no default to show.
        kinds: site.toml: the kinds of data that have the key; all, where none is named.
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
    return Field(description=words, examples=examples, json_schema_extra=extra or None, **bounds)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a file.

    Attributes:
        dotted: its tables and its name.
        type: in words.
        range: the numbers or the words that it may be; "" where its type says all.
        unit: of its number.
        default: MISSING where it has to be given.
        words: what it does.
        example: a value to show; None where there is none.
        kinds: the kinds of data that have it; () for all.
    """

    dotted: str
    type: str
    range: str
    unit: str
    default: Any
    words: str
    example: Any
    kinds: tuple[str, ...]


def keys_of(cls: type[Any], table: str = "") -> Iterator[Key]:
    """Every described key of a file, table by table; plain keys come first, as TOML wants them."""
    nested = []
    for spec in dataclasses.fields(cls):
        info, dotted = field_info(cls, spec.name), f"{table}.{spec.name}" if table else spec.name
        inner = bare(info.annotation)
        if dataclasses.is_dataclass(inner):
            nested.append((inner, dotted))
        elif info.description:
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            default = spec.default_factory() if spec.default_factory is not MISSING else spec.default
            kinds: Any = extra.get("kinds", ())
            yield Key(
                dotted=dotted,
                type=type_words(info.annotation),
                range=allowed(info),
                unit=str(extra.get("unit", "")),
                default=default,
                words=info.description,
                example=info.examples[0] if info.examples else None,
                kinds=tuple(kinds),
            )
    for inner, dotted in nested:
        yield from keys_of(inner, dotted)  # type: ignore[arg-type]


def field_info(cls: type[Any], name: str) -> FieldInfo:
    """Type, bounds and words of one field."""
    return FieldInfo.from_annotation(get_type_hints(cls, include_extras=True)[name])


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
    """What a field may hold: "> 0 and <= 1", or the words of a choice; "" where its type says all."""
    hint = bare(info.annotation)
    if get_origin(hint) is Literal:
        return ", ".join(json.dumps(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return allowed(FieldInfo.from_annotation(get_args(hint)[0]))
    found = [f"{_SIGNS[n]} {getattr(m, n):g}" for m in info.metadata for n in _SIGNS if hasattr(m, n)]
    found += [f"a multiple of {m.multiple_of:g}" for m in info.metadata if getattr(m, "multiple_of", None)]
    return " and ".join(found)


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
