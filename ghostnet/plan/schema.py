"""The JSON schema of a configuration file (draft 2020-12), from its dataclass: editors complete and check by it.

It says what single keys may be. What goes together is said by the reader alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema


class _TomlSchema(GenerateJsonSchema):
    """TOML has no null: a key that may be left out is of its type where it is there."""

    def nullable_schema(self, schema: Any) -> dict[str, Any]:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> dict[str, Any]:
        found = super().default_schema(schema)
        return {name: value for name, value in found.items() if name != "default" or value is not None}


def file_schema(cls: type[Any], title: str) -> dict[str, Any]:
    """A schema in which every key has its type, range, default and words, and no other key may stand.

    Args:
        cls: the dataclass of the file.
        title: of the schema.
    """
    found = TypeAdapter(cls).json_schema(schema_generator=_TomlSchema)
    parts = found.pop("$defs", {})
    for table in (found, *parts.values()):
        _close(table, parts)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **found,
        "title": title,
        "description": f"Every key of {title}.",
        "$defs": parts,
    }


def _close(table: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Keeps the described keys of a table and allows no other; some only with the kinds that have them."""
    # A table whose words are its class's own is a bare reference.
    keys = {name: entry for name, entry in table["properties"].items() if {"description", "$ref"} & set(entry)}
    required, rules = set(table.get("required", ())), []
    for name, entry in keys.items():
        entry.pop("title", None)
        if kinds := entry.pop("kinds", None):
            rules.append(_rule(name, kinds, keys, parts, needed=name in required))
            required.discard(name)
    table |= {"properties": keys, "required": sorted(required), "additionalProperties": False}
    table |= {"allOf": rules} if rules else {}


def _rule(
    name: str, kinds: list[str], keys: Mapping[str, Any], parts: Mapping[str, Any], *, needed: bool
) -> dict[str, Any]:
    """A key goes with some kinds only; with these it must be there, if it has no default."""
    rule: dict[str, Any] = {"if": _is_one(kinds, keys, parts), "else": {"properties": {name: False}}}
    return rule | ({"then": {"required": [name]}} if needed else {})


def _is_one(kinds: list[str], keys: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """The condition that a table, or one below it, is of one of some kinds."""
    for name, entry in keys.items():
        if set(kinds) <= set(entry.get("enum", ())):
            return {"properties": {name: {"enum": kinds}}, "required": [name]}
    for name, entry in keys.items():
        below = parts.get(entry.get("$ref", "").rpartition("/")[2], {}).get("properties", {})
        if any(set(kinds) <= set(inner.get("enum", ())) for inner in below.values()):
            return {"properties": {name: _is_one(kinds, below, {})}, "required": [name]}
    raise ValueError(f"no key of the file can be {', '.join(kinds)}")
