"""A plan's hash is of every key: neither a value nor a default can change and leave it as it was.

A hospital approves a plan by its hash, so two plans that train differently may not share one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import pytest

from ghostnet.errors import PlanError
from ghostnet.plan import Plan, plan_from_dict, spec
from ghostnet.plan.keys import keys_of
from tests.plans import tiny_plan


def without_defaults(plan: Plan) -> str:
    """Planted: a hash that leaves out keys at their defaults, as one did so that old plans would keep theirs."""
    tables = plan.to_dict()
    for table, field in _fields(plan):
        owner, values = (getattr(plan, table), tables[table]) if table else (plan, tables)
        if getattr(owner, field.name) == _default(field):
            del values[field.name]
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()


def test_every_key_changes_the_hash() -> None:
    plan = tiny_plan()
    changed = {
        _dotted(table, field): _with(plan, table, field, _other(plan, table, field)) for table, field in _fields(plan)
    }
    assert set(changed) == {key.dotted for key in keys_of(Plan)}
    assert [name for name, other in changed.items() if other.hash() == plan.hash()] == []
    assert len({other.hash() for other in changed.values()}) == len(changed) > 70


def test_every_default_changes_the_hash() -> None:
    assert _blind(Plan.hash) == []


def test_a_hash_that_leaves_out_defaults_is_caught() -> None:
    with_default = {_dotted(table, field) for table, field in _fields(tiny_plan()) if _default(field) is not MISSING}
    assert set(_blind(without_defaults)) == with_default
    assert len(with_default) > 60


def test_the_number_of_the_format_changes_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny_plan().hash()
    monkeypatch.setattr(spec, "PLAN_FORMAT", spec.PLAN_FORMAT + 1)
    assert tiny_plan().hash() != before


def test_a_plan_that_says_its_defaults_has_the_same_hash() -> None:
    plan = tiny_plan()
    assert set(plan.to_dict()["training"]) == {field.name for field in dataclasses.fields(plan.training)}
    assert plan_from_dict(plan.to_dict()).hash() == plan.hash()


def _blind(hash_of: Callable[[Plan], str]) -> list[str]:
    """Keys whose default could be another in the next version, and every plan without them would keep its hash."""
    found, plan = [], tiny_plan()
    for table, field in _fields(plan):
        if _default(field) is MISSING:
            continue
        now = _with(plan, table, field, _default(field))
        hashed, other = hash_of(now), _other(now, table, field)
        with patch.object(field, "default", other), patch.object(field, "default_factory", MISSING):
            if hash_of(_with(now, table, field, other)) == hashed:
                found.append(_dotted(table, field))
    return found


def _fields(plan: Plan) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for field in dataclasses.fields(plan):
        value = getattr(plan, field.name)
        if dataclasses.is_dataclass(value):
            yield from ((field.name, inner) for inner in dataclasses.fields(value))
        else:
            yield "", field


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _dotted(table: str, field: dataclasses.Field[Any]) -> str:
    return f"{table}.{field.name}" if table else field.name


def _with(plan: Plan, table: str, field: dataclasses.Field[Any], value: object) -> Plan:
    if not table:
        return dataclasses.replace(plan, **{field.name: value})
    return dataclasses.replace(plan, **{table: dataclasses.replace(getattr(plan, table), **{field.name: value})})


def _other(plan: Plan, table: str, field: dataclasses.Field[Any]) -> object:
    """Some other value of the same type."""
    owner = getattr(plan, table) if table else plan
    value = getattr(owner, field.name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, value[0] if value else 2.5)
    if isinstance(value, str):
        choices = [choice for choice in get_args(get_type_hints(type(owner))[field.name]) if choice != value]
        return choices[0] if choices else f"{value}x"
    return value + (1 if isinstance(value, int) else 0.0078125)


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("", "seed", 2**53),
        ("training", "generator_delay", 2**53),
        ("utility", "synthetic_images", 10**400),
        ("utility", "classifier_steps", 2**53),
        ("federation", "round_timeout_s", 1e300),
    ],
)
def test_a_number_that_no_hash_or_deadline_can_hold_is_one_line(table: str, name: str, value: float) -> None:
    document = tiny_plan().to_dict()
    (document[table] if table else document)[name] = value
    with pytest.raises(PlanError, match=name):
        plan_from_dict(document, source="plan.toml")
