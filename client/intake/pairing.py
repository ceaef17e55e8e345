"""Which line of the label table speaks of which file.

A line reaches only the files that it names, and a file that two lines give to two patients is an image of each: so
that nobody's line decides over another patient's images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath

from client.config import Layout
from client.intake.folder import resolved
from client.intake.layouts import CHEXPERT_PATIENT, ImageLine, numbered
from ghostnet.errors import DataError

Masks = Mapping[tuple[str, str], Set[str]]
"""By patient and folder: files and folders that lines of this patient about images in this folder name as masks."""

_NO_MASKS: Masks = {}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One file and the line that speaks of it. SENSITIVE."""

    name: str = field(repr=False)  # relative path below the image folder
    line: ImageLine
    inside: str = field(default="", repr=False)  # below the folder that the line names; "" if it names the file


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Every line with its files.

    Attributes:
        pairs: in the order of the files; at most one for a file and patient.
        lines_without_file: lines that reach none.
    """

    pairs: list[Pair]
    lines_without_file: int


def pair(
    lines: Sequence[ImageLine],
    files: Sequence[str],
    layout: Layout,
    *,
    masks: Masks = _NO_MASKS,
    strict: bool = True,
) -> Pairs:
    """Finds the files of each line.

    plain: the path below the image folder, with or without ".dcm"; or a folder, which stands for every file under it.
    nih: the path, or else the file's name in any subfolder, where no folder that the line names says otherwise.
    chexpert: the path, whose first parts may lie above the image folder.

    Args:
        lines: of the label table.
        files: relative paths below the image folder.
        layout: of the label table.
        masks: as `mask_names` gives them: no images of the folder that a line names.
        strict: refuse the table for a file that is named twice, a box on a folder or a name that several files have;
            otherwise those files are left out. A file that is given to two patients is refused too, and otherwise taken
            for both.

    Raises:
        DataError: such files; the message counts them, with the numbers of the first lines.
    """
    index = _index(files, layout)
    found: dict[tuple[str, str], Pair] = {}
    named: dict[tuple[str, str], list[int]] = defaultdict(list)
    boxed_folders, unclear = [], []
    without_file = 0
    for line in lines:
        own = masks.get((line.patient, line.image), frozenset())
        reached = [(name, below) for name, below in _reached(line, index, layout) if not (below and is_mask(name, own))]
        without_file += not reached
        boxed = bool(line.boxes) and any(inside for _, inside in reached)
        several = layout == "nih" and len(reached) > 1
        boxed_folders += [line.number] * boxed
        unclear += [line.number] * several
        for name, inside in reached:
            key = (name, line.patient)
            named[key].append(line.number)
            sound = line.sound and not boxed and not several and len(named[key]) == 1
            found[key] = Pair(name=name, line=replace(line, sound=sound), inside=inside)
    if strict:
        _refuse(named, boxed_folders, unclear)
    place = {name: i for i, name in enumerate(files)}
    ordered = sorted(found.values(), key=lambda known: (place[known.name], known.line.patient))
    return Pairs(pairs=ordered, lines_without_file=without_file)


def mask_names(lines: Sequence[ImageLine], *, folder: Path, table: Path) -> dict[tuple[str, str], set[str]]:
    """The files and folders below the image folder that lines name as masks, for each folder their images lie in.

    A line about an image elsewhere says nothing about a folder: what it calls a mask may be an image there.

    Args:
        lines: of the label table.
        folder: of the images.
        table: the label table, beside which masks may lie too.
    """
    names: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in lines:
        for parent in (folder, table.parent) if line.mask else ():
            path = resolved(parent / line.mask)
            if path is None or not path.is_relative_to(folder) or (folder / line.image).is_relative_to(path):
                continue
            image = PurePosixPath(line.image)
            for about in (image, *image.parents):
                names[line.patient, about.as_posix()].add(path.relative_to(folder).as_posix())
    return names


def is_mask(name: str, masks: Set[str]) -> bool:
    """Whether a file is one of these masks or lies in a folder of them."""
    path = PurePosixPath(name)
    return name in masks or any(parent.as_posix() in masks for parent in path.parents)


_ANYWHERE = "**/"  # before a file's name: in any folder

_Index = Mapping[str, Sequence[tuple[str, str]]]
"""By what a line may say: (file, its path inside the folder that was named, or "")."""


def _index(files: Sequence[str], layout: Layout) -> _Index:
    index: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in files:
        path = PurePosixPath(name)
        if layout == "nih":
            index[_ANYWHERE + path.name].append((name, ""))
        index[name].append((name, ""))
        if layout == "plain":
            if path.suffix == ".dcm":
                index[path.with_suffix("").as_posix()].append((name, ""))
            for folder in path.parents:
                index[folder.as_posix()].append((name, path.relative_to(folder).as_posix()))
    return index


def _reached(line: ImageLine, index: _Index, layout: Layout) -> Sequence[tuple[str, str]]:
    if layout == "nih":
        namesakes = index.get(_ANYWHERE + PurePosixPath(line.image).name, ())
        return index.get(line.image) or [one for one in namesakes if _same_end(one[0], line.image)]
    parts = line.image.split("/")
    last = 0
    if layout == "chexpert":  # "CheXpert-v1.0-small/train/patient00001/...": the folder may start anywhere before it
        last = next((i for i, part in enumerate(parts) if CHEXPERT_PATIENT.fullmatch(part)), 0)
    return next((index["/".join(parts[at:])] for at in range(last + 1) if "/".join(parts[at:]) in index), ())


def _same_end(file: str, named: str) -> bool:
    """Whether one path is the other's end: what they say of the folders above a file does not differ."""
    return f"/{file}".endswith(f"/{named}") or f"/{named}".endswith(f"/{file}")


def _refuse(named: Mapping[tuple[str, str], Sequence[int]], boxed_folders: list[int], unclear: list[int]) -> None:
    if unclear:
        raise DataError(
            f"the label table has {len(unclear)} line(s) with a file name that several images have"
            f"{numbered(unclear)}; write the path below the image folder"
        )
    twice = [numbers for numbers in named.values() if len(numbers) > 1]
    if twice:
        raise DataError(
            f"the label table names {len(twice)} image(s) twice{numbered(chain(*twice))}; keep one line for each"
        )
    owners: dict[str, list[int]] = defaultdict(list)
    for (name, _), numbers in named.items():
        owners[name] += numbers
    shared = [numbers for numbers in owners.values() if len(numbers) > 1]
    if shared:
        raise DataError(
            f"the label table gives {len(shared)} image file(s) to two patients{numbered(chain(*shared))}; "
            "correct the patient of one of the lines"
        )
    if boxed_folders:
        raise DataError(
            f"the label table has {len(boxed_folders)} line(s) with a box on a folder{numbered(boxed_folders)}; "
            "name the file that the box is on"
        )
