"""Which line of the label table speaks of which file.

A line reaches only the files that it names, and a file that two lines give to two patients is an image of each: so
that nobody's line decides over another patient's images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from client.config import Layout
from client.intake.layouts import CHEXPERT_PATIENT, ImageLine
from ghostnet.errors import DataError

_NO_MASKS: Mapping[str, Set[str]] = {}


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
    masks: Mapping[str, Set[str]] = _NO_MASKS,
    strict: bool = True,
) -> Pairs:
    """Finds the files of each line.

    plain: the path below the image folder, with or without ".dcm"; or a folder, which stands for every file under it.
    nih: the file's name, in any subfolder. chexpert: the path, whose first parts may lie above the image folder.

    Args:
        lines: of the label table.
        files: relative paths below the image folder.
        layout: of the label table.
        masks: of each patient, as `mask_names` gives them: no images of a folder that this patient's line names.
        strict: refuse the table for a file that is named twice or a box on a folder; otherwise that file is left out.
            A file that is given to two patients is refused too, and otherwise taken for both.

    Raises:
        DataError: such files; the message counts them and no more.
    """
    index = _index(files, layout)
    found: dict[tuple[str, str], Pair] = {}
    named: Counter[tuple[str, str]] = Counter()
    boxed_folders = without_file = 0
    for line in lines:
        own = masks.get(line.patient, frozenset())
        reached = [(name, below) for name, below in _reached(line, index, layout) if not (below and is_mask(name, own))]
        without_file += not reached
        boxed = bool(line.boxes) and any(inside for _, inside in reached)
        boxed_folders += boxed
        for name, inside in reached:
            key = (name, line.patient)
            named[key] += 1
            sound = line.sound and not boxed and named[key] == 1
            found[key] = Pair(name=name, line=replace(line, sound=sound), inside=inside)
    if strict:
        _refuse(named, boxed_folders)
    place = {name: i for i, name in enumerate(files)}
    ordered = sorted(found.values(), key=lambda known: (place[known.name], known.line.patient))
    return Pairs(pairs=ordered, lines_without_file=without_file)


def mask_names(lines: Sequence[ImageLine], *, folder: Path, table: Path) -> dict[str, set[str]]:
    """The files and folders below the image folder that the lines of each patient name as masks.

    Args:
        lines: of the label table.
        folder: of the images.
        table: the label table, beside which masks may lie too.
    """
    names: dict[str, set[str]] = {}
    for line in lines:
        for parent in (folder, table.parent) if line.mask else ():
            path = (parent / line.mask).resolve()
            if path.is_relative_to(folder) and not (folder / line.image).is_relative_to(path):
                names.setdefault(line.patient, set()).add(path.relative_to(folder).as_posix())
    return names


def is_mask(name: str, masks: Set[str]) -> bool:
    """Whether a file is one of these masks or lies in a folder of them."""
    path = PurePosixPath(name)
    return name in masks or any(parent.as_posix() in masks for parent in path.parents)


_Index = Mapping[str, Sequence[tuple[str, str]]]
"""By what a line may say: (file, its path inside the folder that was named, or "")."""


def _index(files: Sequence[str], layout: Layout) -> _Index:
    index: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in files:
        path = PurePosixPath(name)
        if layout == "nih":
            index[path.name].append((name, ""))
            continue
        index[name].append((name, ""))
        if layout == "plain":
            if path.suffix == ".dcm":
                index[path.with_suffix("").as_posix()].append((name, ""))
            for folder in path.parents:
                index[folder.as_posix()].append((name, path.relative_to(folder).as_posix()))
    return index


def _reached(line: ImageLine, index: _Index, layout: Layout) -> Sequence[tuple[str, str]]:
    if layout == "nih":
        return index.get(PurePosixPath(line.image).name, ())
    parts = line.image.split("/")
    last = 0
    if layout == "chexpert":  # "CheXpert-v1.0-small/train/patient00001/...": the folder may start anywhere before it
        last = next((i for i, part in enumerate(parts) if CHEXPERT_PATIENT.fullmatch(part)), 0)
    return next((index["/".join(parts[at:])] for at in range(last + 1) if "/".join(parts[at:]) in index), ())


def _refuse(named: Mapping[tuple[str, str], int], boxed_folders: int) -> None:
    twice = sum(count > 1 for count in named.values())
    if twice:
        raise DataError(f"the label table names {twice} image(s) twice; keep one line for each")
    shared = sum(count > 1 for count in Counter(name for name, _ in named).values())
    if shared:
        raise DataError(
            f"the label table gives {shared} image file(s) to two patients; correct the patient of one of the lines"
        )
    if boxed_folders:
        raise DataError(
            f"the label table has {boxed_folders} line(s) with a box on a folder; name the file that the box is on"
        )
