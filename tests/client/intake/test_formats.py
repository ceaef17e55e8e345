"""One reader and one entry make a file format; nothing else in the hospital's code knows one by its name."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from client.formats import FIRST_BYTES, FORMATS, KINDS, FileFormat, Kind, file_format, kinds_with
from client.intake.folder import image_suffix
from tests.house import ROOT, copy_packages

HERE = Path(__file__).resolve().parent
NOT_ASKED = ("client/formats.py", "client/intake/readers/masks.py")  # masks are read in three formats of their own
LAST_LINES = '        syntaxes=("NIfTI",),\n        has_frames=True,\n    ),\n'
ENTRY = """\
    "pgm": FileFormat(
        words="a folder of PGM files",
        reader="client.intake.readers.pgm:read_pgm",
        starts=lambda first: first.startswith(b"P5"),
        suffixes=(".pgm",),
        code=Code.HEADER,
        syntaxes=("PGM",),
    ),
"""


def places_that_name(word: str, root: Path) -> Iterator[str]:
    """Lines of the hospital's code that hold a format's name as a text of its own."""
    for path in sorted((root / "client").rglob("*.py")):
        if path.relative_to(root).as_posix() not in NOT_ASKED:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and node.value == word:
                    yield f"{path.relative_to(root)}:{node.lineno}"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the three packages that a test may change."""
    return copy_packages(tmp_path)


def test_no_module_but_the_list_names_a_format(house: Path) -> None:
    assert list(places_that_name("nifti", ROOT)) == []
    (house / "client" / "planted.py").write_text('kind = "other"\nhas_slices = kind == "nifti"\n', encoding="utf-8")
    assert list(places_that_name("nifti", house)) == ["client/planted.py:2"]


@pytest.mark.parametrize("known", FORMATS.values(), ids=FORMATS)
def test_an_entry_names_a_reader_that_takes_what_it_is_given(known: FileFormat) -> None:
    module, _, function = known.reader.partition(":")
    assert module.startswith("client.intake.readers.")
    taken = set(inspect.signature(getattr(importlib.import_module(module), function)).parameters)
    wanted = {"path", "file_bytes", "pixels"}
    wanted |= set() if known.names_modality else {"modality"}
    wanted |= {"frames"} if known.has_frames else set()
    assert taken == wanted
    assert not known.starts(bytes(FIRST_BYTES))
    assert not known.starts(b"")


def test_kinds_are_the_formats_an_npz_and_an_archive_of_dicom() -> None:
    assert get_args(Kind) == tuple(KINDS) == (*FORMATS, "npz", "pacs")
    assert file_format("pacs") is FORMATS["dicom"]
    assert kinds_with(lambda _: True) == (*FORMATS, "pacs")
    suffixes = [suffix for known in FORMATS.values() for suffix in known.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert all(image_suffix(f"a.b{suffix.upper()}") == suffix.upper() for suffix in suffixes)


def add(house: Path) -> None:
    """The reader, and its entry."""
    shutil.copy(HERE / "added_reader.py", house / "client" / "intake" / "readers" / "pgm.py")
    registry = house / "client" / "formats.py"
    before = registry.read_text(encoding="utf-8")
    assert before.count(LAST_LINES) == 1
    registry.write_text(before.replace(LAST_LINES, LAST_LINES + ENTRY), encoding="utf-8")


def use(house: Path, out: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "use_added_format.py"), str(house / out)]
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_a_reader_and_an_entry_make_a_format_that_is_proposed_written_checked_and_read(house: Path) -> None:
    assert "data.kind = 'pgm' is not one of" in use(house, "before").stderr
    add(house)
    result = use(house, "after")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["proposed"] == "pgm"
    written = {"kind": "pgm", "path": "images", "labels": "labels.csv", "layout": "plain", "modality": "DX"}
    assert found["written"] == written
    assert "[data].frames_per_file does not go with kind = 'pgm' (only with dicom, nifti, pacs)" in found["refused"][0]
    assert "[data].boxes does not go with kind = 'pgm'" in found["refused"][1]
    assert found["shape"][1:] == [1, 32, 32]
    assert found["range"][0] >= -1
    assert found["range"][1] <= 1
    assert found["patients"] == 3
    assert found["syntaxes"] == {"PGM": 5}
    assert found["quarantined"] == {"HEADER": 1, "TRUNCATED": 1}
    assert found["in_schema"]
    assert found["on_page"]
