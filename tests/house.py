"""The product's packages as tests look at them: a copy to change, and the places that know a thing by its name."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ghostnet", "client", "server")


def copy_packages(target: Path) -> Path:
    """Copies the three packages into a folder, and returns it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def places_that_know(
    root: Path, names: Collection[str], modules: Collection[str], own: Collection[Path]
) -> Iterator[str]:
    """Places that hold one of these names as a text constant, or import one of these modules.

    Args:
        root: holds the packages.
        names: as a registry has them.
        modules: of the things themselves.
        own: files and folders that may know them.
    """
    for path in sorted(file for package in PACKAGES for file in (root / package).rglob("*.py")):
        if {path, *path.parents} & set(own):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            known = isinstance(node, ast.Constant) and node.value in names
            if isinstance(node, ast.ImportFrom):
                imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                known = not imported.isdisjoint(modules)
            if isinstance(node, ast.Import):
                known = not {alias.name for alias in node.names}.isdisjoint(modules)
            if known:
                yield f"{path.relative_to(root)}:{node.lineno}"
