"""DICOMDIR, the table of contents of a disc (PS3.10 section 8): what a folder holds beside it, and what it lacks.

It only counts: files in its folder and below that it does not list, and files that it lists and that are not there; a
DICOMDIR further down has the word over its own part. Whether a file is taken never hangs on it, since one patient's
disc would then decide over files of others that were copied beside it. Nothing is opened because a DICOMDIR names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from client.intake.sandbox.pool import list_dicomdirs
from client.intake.task import Limits

NAME = "DICOMDIR"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The entries of a folder's DICOMDIRs about its files. Every count is SENSITIVE.

    Attributes:
        unlisted: files that the DICOMDIR over them does not list.
        missing: files that are listed and not there.
        broken: DICOMDIRs that cannot be read, or list nothing, and are not counted with.
    """

    unlisted: int = 0
    missing: int = 0
    broken: int = 0


def read_contents(folder: Path, files: Sequence[str], *, limits: Limits) -> Contents:
    """Reads every DICOMDIR under a folder, in a worker process.

    Args:
        folder: where the files are.
        files: relative paths with "/", as `find_files` gives them.
        limits: what one DICOMDIR may cost.

    Raises:
        SiteError, MissingDependencyError: no worker can be started.
    """
    parents = {parent for name in files for parent in PurePosixPath(name).parents} | {PurePosixPath(".")}
    found = [parent for parent in sorted(parents) if (folder / parent / NAME).is_file()]
    if not found:
        return Contents()
    listings = list_dicomdirs([folder / parent / NAME for parent in found], limits=limits)
    listed = {
        parent: {_comparable(name) for name in listing}
        for parent, listing in zip(found, listings, strict=True)
        if listing
    }
    unlisted, seen = 0, {parent: set[str]() for parent in listed}
    for name in files:
        path = PurePosixPath(name)
        over = next((parent for parent in path.parents if parent in listed), None)
        if over is None:
            continue
        inside = _comparable(str(path.relative_to(over)))
        if inside in listed[over]:
            seen[over].add(inside)
        else:
            unlisted += 1
    missing = sum(len(listed[parent] - seen[parent]) for parent in listed)
    return Contents(unlisted=unlisted, missing=missing, broken=len(found) - len(listed))


def _comparable(path: str) -> str:
    """Discs are mounted in lower case, and with the version numbers of ISO 9660, by some systems."""
    return path.upper().removesuffix(";1").removesuffix(".")
