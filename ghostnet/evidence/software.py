"""The software that a hospital says it ran: digests of the sources, versions of the libraries that decide numbers.

It is the hospital's own word. Nobody outside can tell what really ran.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import cache
from pathlib import Path

PACKAGES = ("cryptography", "dp-accounting", "flwr", "numpy", "opacus", "safetensors", "scipy", "torch")
"""They decide arithmetic, noise, accounts, signatures and what arrives."""

Software = dict[str, str]
"""`ghostnet` (version), `ghostnet_sha256`, `client_sha256`, `python`, and one version for each of PACKAGES."""


@cache
def installed_software(client: Path) -> Software:
    """The software that is installed here.

    Args:
        client: folder of the package `client`, which shared code cannot name.
    """
    return {
        "ghostnet": _version("ghostnet"),
        "ghostnet_sha256": sources_sha256(Path(__file__).resolve().parents[1]),
        "client_sha256": sources_sha256(client),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def sources_sha256(package: Path) -> str:
    """One SHA-256, hex, over the names and contents of a package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(package).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source folder
        return "not installed"
