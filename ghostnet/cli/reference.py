"""Every key of plan.toml and site.toml: the reference page and the schemas for editors, from the keys' own fields.

python -m ghostnet.cli.reference docs     # writes them anew (`make reference`)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING
from itertools import groupby
from pathlib import Path
from typing import Any

from client.config import SiteConfig
from ghostnet.plan import Plan
from ghostnet.plan.keys import Key, keys_of, table_words
from ghostnet.plan.schema import file_schema
from ghostnet.plan.template import only, toml_value

FILES: dict[str, type[Any]] = {"plan": Plan, "site": SiteConfig}

_HEAD = """\
# Every key of plan.toml and site.toml

Written by `make reference` from the fields that the keys are read into; a test holds this page against them. Beside
these ranges there are rules on what goes together: `ghostnet plan check` and `ghostnet site check` say which one is
broken, and what to do. Any other key is an error. A key without a default has to be given.

An editor completes and checks both files by their schemas, [plan.schema.json](schemas/plan.schema.json) and
[site.schema.json](schemas/site.schema.json) (JSON schema, draft 2020-12). In editors with Taplo (Even Better TOML in VS
Code) the file's first line names the schema, relative to the file or as an address:

    #:schema ../schemas/plan.schema.json
"""


def reference_page() -> str:
    """docs/reference.md."""
    lines = [_HEAD]
    for name, cls in FILES.items():
        lines.append(f"## {name}.toml\n")
        for table, keys in groupby(keys_of(cls), key=lambda key: key.table):
            lines += _section(cls, table, list(keys))
    return "\n".join(lines)


def schema_text(name: str) -> str:
    """docs/schemas/NAME.schema.json."""
    return json.dumps(file_schema(FILES[name], f"{name}.toml"), indent=1, ensure_ascii=False) + "\n"


def write(docs: Path) -> None:
    """Writes the page and the schemas into a folder."""
    (docs / "schemas").mkdir(parents=True, exist_ok=True)
    (docs / "reference.md").write_text(reference_page(), encoding="utf-8")
    for name in FILES:
        (docs / "schemas" / f"{name}.schema.json").write_text(schema_text(name), encoding="utf-8")


def _section(cls: type[Any], table: str, keys: list[Key]) -> Iterator[str]:
    if table:
        words = " ".join(part for part in (table_words(cls, table), _sentence(only(keys[0].table_kinds))) if part)
        yield f"### [{table}]\n\n{words}\n"
    yield "| key | type | range | unit | default | what it does |"
    yield "|---|---|---|---|---|---|"
    yield from map(_row, keys)
    yield ""


def _row(key: Key) -> str:
    default = "" if key.default in (MISSING, None) else f"`{toml_value(key.default)}`"
    words = " ".join(part for part in (key.words, _sentence(only(key.kinds))) if part)
    return "| " + " | ".join((f"`{key.name}`", key.type, _code(key.range), key.unit, default, _cell(words))) + " |"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
