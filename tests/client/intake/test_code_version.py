"""The cache's code version: whatever shapes a prepared image is in it, wherever in the package it lies."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
from pathlib import Path

import pytest

import client
from client.intake import files

READER = re.compile(r"(client[\w.]+):\w+")
PACKAGE = Path(str(client.__file__)).parent


def imported_by(module: Path) -> set[Path]:
    """The package's modules that a module imports anywhere in it, or names as "module:function", and theirs."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "client":
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and (named := READER.fullmatch(str(node.value))):
                names = [named[1]]
            else:
                continue
            paths = [PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in names]
            waiting += [path for path in paths if path.is_file()]
    return found


def version_of(package: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in files.shaping_files(package))).hexdigest()


def test_everything_that_an_image_worker_imports_counts() -> None:
    workers = imported_by(PACKAGE / "intake" / "sandbox" / "worker.py")
    assert {path.name for path in workers} >= {"dicom.py", "burned_in.py", "preprocess.py", "prepare.py", "headers.py"}
    assert sorted(workers - set(files.shaping_files(PACKAGE))) == []


@pytest.mark.parametrize("place", ["intake/readers/dicom.py", "deidentify/headers.py", "preprocess.py"])
def test_one_changed_line_of_a_reader_makes_the_cache_anew(tmp_path: Path, place: str) -> None:
    copy = tmp_path / "client"
    shutil.copytree(PACKAGE, copy)
    before = version_of(copy)
    (copy / place).write_text((copy / place).read_text() + "\n# mended\n")
    assert version_of(copy) != before


def test_a_module_in_a_new_sub_folder_counts_too(tmp_path: Path) -> None:
    copy = tmp_path / "client"
    shutil.copytree(PACKAGE, copy)
    before = version_of(copy)
    new = copy / "intake" / "readers" / "vendors"
    new.mkdir()
    (new / "scanner.py").write_text("SCALE = 2\n")
    assert version_of(copy) != before
    flat = [path for name in ("deidentify/*.py", "intake/*.py") for path in copy.glob(name)]  # as it was once done
    assert new / "scanner.py" not in flat


def test_the_version_is_of_those_files(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files._code_version.__wrapped__()
    some = files.shaping_files(PACKAGE)[1:]
    monkeypatch.setattr(files, "shaping_files", lambda here: some)
    assert files._code_version.__wrapped__() != whole
