"""Every key of plan.toml and site.toml is described once; the page and the editors' schemas are made of that."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator

from client.config import SiteConfig
from client.site_toml import site_text
from ghostnet.cli.reference import FILES, reference_page, schema_text, write
from ghostnet.errors import PlanError
from ghostnet.plan import load_plan
from ghostnet.plan.keys import SET_BY_PROGRAM, Key, found_at, key, keys_of
from ghostnet.plan.schema import file_schema
from ghostnet.plan.template import explained, file_text
from ghostnet.plan.toml import read_table
from tests.plans import tiny_plan_text
from tests.test_site_cli import NEEDED, answers

ROOT = Path(__file__).resolve().parent.parent
PLANS = sorted([*(ROOT / "docs" / "examples").glob("*.toml"), ROOT / "examples" / "tiny.toml"])
DIMSE = {"pacs.protocol": "dimse", "pacs.url": "", "pacs.host": "pacs.example", "pacs.called_aet": "PACS"}
SCHEMAS = {name: Draft202012Validator(json.loads(schema_text(name))) for name in FILES}


def stale(docs: Path) -> list[str]:
    """Files of a docs folder that are not what the fields give."""
    given = {"reference.md": reference_page()} | {f"schemas/{name}.schema.json": schema_text(name) for name in FILES}
    return [name for name, text in given.items() if (docs / name).read_text(encoding="utf-8") != text]


def faults(name: str, raw: object) -> list[str]:
    return [error.message for error in SCHEMAS[name].iter_errors(raw)]


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Tables of values by dotted key; "" is a key that is left out."""
    raw: dict[str, Any] = {}
    for dotted, value in values.items():
        table, _, name = dotted.rpartition(".")
        if value != "":
            (raw.setdefault(table, {}) if table else raw)[name] = value
    return raw


def site_values(kinds: tuple[str, ...]) -> dict[str, Any]:
    """The least of a site.toml that one of the kinds has; any kind where there are none."""
    if "dimse" in kinds:
        return answers("pacs") | DIMSE
    return answers(next((kind for kind in kinds if kind in NEEDED), "pacs" if "dicomweb" in kinds else "dicom"))


def raw_with(name: str, asked: Key, value: object) -> dict[str, Any]:
    """A file with one value, which nothing else is wrong with."""
    if name == "site":
        return nested(site_values(asked.kinds or asked.table_kinds) | {asked.dotted: value})
    raw = tomllib.loads(tiny_plan_text())
    (raw.setdefault(asked.table, {}) if asked.table else raw)[asked.name] = value
    return raw


def reads(name: str, raw: dict[str, Any]) -> bool:
    """Whether the reader takes every single value; what goes together is not asked."""
    if name == "site":
        raw = raw | {"data": {"path": "images"} | raw["data"]}
    try:
        read_table(FILES[name], raw, source="file", error=PlanError)
    except PlanError:
        return False
    return True


def edges() -> Iterator[Any]:
    """(file, key, the last good value, the first bad one) for every bound of every key."""
    for name, cls in FILES.items():
        for asked in keys_of(cls):
            in_list = asked.type.startswith("a list")
            info = found_at(cls, (*asked.dotted.split("."), *([0] if in_list else [])))
            for mark in info.metadata if info else []:
                if step := getattr(mark, "multiple_of", None):
                    yield pytest.param(name, asked, 5 * step, 5 * step + 1, id=f"{asked.dotted}-multiple_of")
                for sign, outwards, inside in (("ge", -1, True), ("gt", -1, False), ("le", 1, True), ("lt", 1, False)):
                    if (bound := getattr(mark, sign, None)) is not None:
                        whole = asked.type == "a whole number"
                        good = bound if inside else beside(bound, -outwards, whole=whole)
                        bad = beside(bound, outwards, whole=whole) if inside else bound
                        values = ([good], [bad]) if in_list else (good, bad)
                        yield pytest.param(name, asked, *values, id=f"{asked.dotted}-{sign}")


def beside(bound: float, towards: int, *, whole: bool) -> float:
    return bound + towards if whole else math.nextafter(bound, towards * math.inf)


EDGES = list(edges())


# --- The page and the schemas are what the fields give ---


def test_the_committed_page_and_schemas_are_what_the_fields_give() -> None:
    assert stale(ROOT / "docs") == [], "run `make reference` and commit what it writes"


@pytest.mark.parametrize(
    ("file", "now", "then"),
    [
        ("reference.md", "`>= 1 and <= 65535`", "`>= 0 and <= 65535`"),
        ("schemas/plan.schema.json", '"maximum": 64', '"maximum": 65'),
        ("schemas/site.schema.json", '"default": 0.2', '"default": 0.1'),
    ],
)
def test_a_page_that_says_another_range_is_caught(file: str, now: str, then: str, tmp_path: Path) -> None:
    write(tmp_path)
    assert stale(tmp_path) == []
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert now in text
    (tmp_path / file).write_text(text.replace(now, then, 1), encoding="utf-8")
    assert stale(tmp_path) == [file]


def test_every_key_is_on_the_page_once_with_its_words() -> None:
    rows = [line for line in reference_page().splitlines() if line.startswith("| `")]
    asked = [key for cls in FILES.values() for key in keys_of(cls)]
    assert [re.match(r"\| `(\w+)`", row)[1] for row in rows] == [key.name for key in asked]  # type: ignore[index]
    assert all(key.words in row for key, row in zip(asked, rows, strict=True))
    assert len(asked) > 120
    assert [key.dotted for key in asked if key.default is MISSING and key.example is None] == []


def test_a_key_without_words_is_refused_wherever_keys_are_listed() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Forgotten:
        said: Annotated[int, key("It is said.")] = 1
        unsaid: int = 2

    @dataclass(frozen=True, kw_only=True)
    class Marked:
        said: Annotated[int, key("It is said.")] = 1
        source: Annotated[int, SET_BY_PROGRAM] = 2

    globals().update(Annotated=Annotated, key=key)
    with pytest.raises(ValueError, match=r"Forgotten\.unsaid has no words"):
        list(keys_of(Forgotten))
    with pytest.raises(ValueError, match="no words"):
        file_text(Forgotten, {}, heading="")
    assert [found.dotted for found in keys_of(Marked)] == ["said"]


# --- Ranges ---


def test_every_bound_has_an_edge() -> None:
    assert len(EDGES) > 120
    assert {edge.values[0] for edge in EDGES} == set(FILES)


@pytest.mark.parametrize(("name", "asked", "good", "bad"), EDGES)
def test_the_reader_and_the_schema_have_the_same_edge(name: str, asked: Key, good: object, bad: object) -> None:
    assert reads(name, raw_with(name, asked, good))
    assert faults(name, raw_with(name, asked, good)) == []
    assert not reads(name, raw_with(name, asked, bad))
    assert faults(name, raw_with(name, asked, bad)) != []


@pytest.mark.parametrize(("name", "asked"), [(name, asked) for name, cls in FILES.items() for asked in keys_of(cls)])
def test_a_value_of_another_type_is_refused_by_both(name: str, asked: Key) -> None:
    wrong = raw_with(name, asked, {"no": {"key": "is this"}})
    assert not reads(name, wrong)
    assert faults(name, wrong) != []


# --- Files in an editor ---


@pytest.mark.parametrize("name", FILES)
def test_a_schema_is_one_and_closed(name: str) -> None:
    Draft202012Validator.check_schema(json.loads(schema_text(name)))
    misspelled = raw_with(name, next(iter(keys_of(FILES[name]))), "north")
    assert faults(name, misspelled) == []
    for table in [None, *(table for table, value in misspelled.items() if isinstance(value, dict))]:
        raw = json.loads(json.dumps(misspelled))
        (raw[table] if table else raw)["latnet"] = 1
        assert any("latnet" in message for message in faults(name, raw)), table
        assert not reads(name, raw), table


def test_a_field_that_the_program_sets_is_no_key_of_the_schema() -> None:
    assert "source" not in file_schema(SiteConfig, "site.toml")["properties"]
    assert faults("site", nested(answers("npz")) | {"source": "x"}) != []


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_shipped_plan_validates_and_names_its_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert faults("plan", tomllib.loads(text)) == []
    schema = path.parent / text.splitlines()[0].removeprefix("#:schema ")
    assert schema.resolve() == ROOT / "docs" / "schemas" / "plan.schema.json"


def test_a_plan_that_was_written_out_validates_and_means_the_same(tmp_path: Path) -> None:
    weighed = tiny_plan_text(rounds="rounds = 1\nweights = { a = 2.0, b = 1.0 }")
    (tmp_path / "plan.toml").write_text(weighed)
    plan = load_plan(tmp_path / "plan.toml")
    values = {f"{t}.{n}" if t else n: v for t, n, v in _leaves(plan.to_dict())}
    text = file_text(FILES["plan"], values, heading="Written out.")
    assert faults("plan", tomllib.loads(weighed)) == faults("plan", tomllib.loads(text)) == []
    (tmp_path / "again.toml").write_text(text)
    assert load_plan(tmp_path / "again.toml").hash() == plan.hash()
    for asked in keys_of(FILES["plan"]):
        assert asked.words.split()[0] in text
        assert " ".join(explained(asked).split()) in " ".join(text.replace("\n# ", " ").split()), asked.dotted


def _leaves(raw: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from ((name, inner, found) for inner, found in value.items())
        else:
            yield "", name, value


@pytest.mark.parametrize("kind", [*NEEDED, "dimse"])
def test_a_generated_site_validates(kind: str) -> None:
    text = site_text(answers("pacs") | DIMSE if kind == "dimse" else answers(kind))
    text = text.replace('url = ""\n', "")
    assert faults("site", tomllib.loads(text)) == []


@pytest.mark.parametrize("kind", NEEDED)
def test_the_schema_knows_which_keys_go_with_which_kind(kind: str) -> None:
    for asked in keys_of(SiteConfig):
        if asked.table == "data" and asked.kinds:
            value = asked.example if asked.example is not None else asked.default
            said = faults("site", nested(answers(kind) | {asked.dotted: value}))
            assert bool(said) == (kind not in asked.kinds), (asked.dotted, said)
    without_path = answers(kind) | {"data.path": ""}
    assert bool(faults("site", nested(without_path))) == (kind != "pacs")


def test_a_value_for_no_key_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"data\.pth"):
        site_text(answers("npz") | {"data.pth": "x"})
