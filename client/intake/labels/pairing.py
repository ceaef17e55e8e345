"""Pairs the lines of the label table with files.

A line reaches only the files that it names, and a file that two lines give to two patients is an image of each: so
that nobody's line decides over another patient's images.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath

from client.config import Layout
from client.intake.folder import image_suffix, resolved
from client.intake.labels.layouts import CHEXPERT_PATIENT, ImageLine, numbered
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
    folder: str = "",
    masks: Masks = _NO_MASKS,
    strict: bool = True,
) -> Pairs:
    """Finds the files of each line.

    plain: the path below the image folder, with or without ".dcm"; or a folder, which stands for every file under it;
    or else the path with its ending in another case or left out, or beginning above the image folder.
    nih: the path, or else the file's name in any subfolder, where no folder that the line names says otherwise.
    chexpert: the path, whose first parts may lie above the image folder.

    A file that a line names in a stricter form is no other line's in a looser one (`_reach`).

    Args:
        lines: of the label table.
        files: relative paths below the image folder.
        layout: of the label table.
        folder: name of the image folder, which paths of a plain table may begin with.
        masks: as `mask_names` gives them: no images of the folder that a line names.
        strict: refuse the table for a file that is named twice, a box on a folder or a name that several files have;
            otherwise those files are left out. A file that is given to two patients is refused too, and otherwise taken
            for both.

    Raises:
        DataError: such files; the message counts them, with the numbers of the first lines.
    """
    found: dict[tuple[str, str], Pair] = {}
    named: dict[tuple[str, str], list[int]] = defaultdict(list)
    boxed_folders, unclear = [], []
    without_file = 0
    for line, all_reached in zip(lines, _reach(lines, _forms(files, layout, folder)), strict=True):
        own = masks.get((line.patient, line.image), frozenset())
        reached = [(name, below) for name, below in all_reached if not (below and is_mask(name, own))]
        without_file += not reached
        boxed = bool(line.boxes) and any(inside for _, inside in reached)
        several = len([inside for _, inside in reached if not inside]) > 1
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
    """True if a file is one of these masks or lies in a folder of them."""
    path = PurePosixPath(name)
    return name in masks or any(parent.as_posix() in masks for parent in path.parents)


_Reached = Sequence[tuple[str, str]]
"""(file, its path inside the folder that was named, or "")."""

_Form = Callable[[ImageLine], _Reached]
"""One way in which a line may name files."""


def _reach(lines: Sequence[ImageLine], forms: Sequence[_Form]) -> list[_Reached]:
    """The files of each line, by the first form that reaches any.

    A file that one line names in a stricter form is out of reach for every other line's looser one, in whatever order
    they stand: a namesake is another patient's image, and neither makes this one's name unclear nor stands in for it.
    Of files that no stricter form names nothing says whose they are.
    """
    reached: list[_Reached] = [()] * len(lines)
    named: set[str] = set()
    for form in forms:
        found = {}
        for i, line in enumerate(lines):
            if not reached[i]:
                found[i] = [(name, inside) for name, inside in form(line) if inside or name not in named]
        for i, files in found.items():
            reached[i] = files
            named.update(name for name, _ in files)
    return reached


def _forms(files: Sequence[str], layout: Layout, folder: str) -> list[_Form]:
    """The ways in which a line of this layout may name one of these files, strictest first."""
    exact = _by_key(files, lambda name: [name])
    forms: list[_Form] = [lambda line: exact.get(line.image, ())]
    if layout == "chexpert":
        return [*forms, partial(_below_a_patient, exact)]
    if layout == "nih":
        names = _by_key(files, lambda name: [PurePosixPath(name).name])
        deepest = max((name.count("/") + 1 for name in files), default=0)
        return [*forms, *(partial(_same_end, names, parts) for parts in range(deepest, 0, -1))]
    forms.append(partial(_folder_or_instance, _folders(files), _by_key(files, _without_dcm)))
    keys = [_by_key(files, spelling) for spelling in _SPELLINGS]
    forms += [partial(_spelled, index, key) for index, key in zip(keys, _SPELLINGS, strict=True)]
    return [*forms, *(partial(_end_spelled, i, key, folder) for i, key in zip(keys, _SPELLINGS, strict=True))]


_Index = Mapping[str, _Reached]
_Keys = Callable[[str], Sequence[str]]


def _by_key(files: Sequence[str], keys: _Keys) -> _Index:
    index: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in files:
        for key in keys(name):
            index[key].append((name, ""))
    return index


def _folders(files: Sequence[str]) -> _Index:
    """By folder: every file under it."""
    index: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in files:
        path = PurePosixPath(name)
        for folder in path.parents:
            index[folder.as_posix()].append((name, path.relative_to(folder).as_posix()))
    return index


def _folder_or_instance(folders: _Index, instances: _Index, line: ImageLine) -> _Reached:
    return [*instances.get(line.image, ()), *folders.get(line.image, ())]


def _below_a_patient(exact: _Index, line: ImageLine) -> _Reached:
    """CheXpert-v1.0-small/train/patient00001/...: the image folder may start anywhere before the patient."""
    parts = line.image.split("/")
    last = next((i for i, part in enumerate(parts) if CHEXPERT_PATIENT.fullmatch(part)), 0)
    return next((exact[end] for at in range(1, last + 1) if (end := "/".join(parts[at:])) in exact), ())


def _same_end(names: _Index, parts: int, line: ImageLine) -> _Reached:
    """Namesakes of which one path is the other's end, in so many parts: what both say of the folders agrees."""
    namesakes = names.get(PurePosixPath(line.image).name, ())
    short = [(min(name.count("/"), line.image.count("/")) + 1, name) for name, _ in namesakes]
    return [(name, "") for length, name in short if length == parts and _ends_alike(name, line.image)]


def _ends_alike(file: str, named: str) -> bool:
    return f"/{file}".endswith(f"/{named}") or f"/{named}".endswith(f"/{file}")


def _without_dcm(name: str) -> Sequence[str]:
    return [name.removesuffix(".dcm")] if name.endswith(".dcm") else ()


def _composed(name: str) -> Sequence[str]:
    """The name as most systems spell it; macOS stores accents apart from their letters."""
    return [unicodedata.normalize("NFC", name)]


def _any_case_of_ending(name: str) -> Sequence[str]:
    ending = image_suffix(name)
    return [_composed(name[: len(name) - len(ending)])[0] + ending.lower()]


def _without_ending(name: str) -> Sequence[str]:
    return [_composed(name[: len(name) - len(image_suffix(name))])[0]]


_SPELLINGS: tuple[_Keys, ...] = (_composed, _any_case_of_ending, _without_ending)


def _spelled(index: _Index, key: _Keys, line: ImageLine) -> _Reached:
    return _by_text(index, key, line.image)


def _by_text(index: _Index, key: _Keys, named: str) -> _Reached:
    if key is _without_ending:  # of the file alone: an ending that the table gives has to be there
        return index.get(_composed(named)[0], ()) if not image_suffix(named) else ()
    return index.get(key(named)[0], ())


def _end_spelled(index: _Index, key: _Keys, folder: str, line: ImageLine) -> _Reached:
    """The same for a path that begins above the image folder: an absolute one, or one that names the folder."""
    parts = line.image.split("/")
    absolute = line.image.startswith("/") or PureWindowsPath(line.image).drive
    ends = ["/".join(parts[at:]) for at in range(1, len(parts)) if absolute or parts[at - 1] == folder]
    return next((found for end in ends if (found := _by_text(index, key, end))), ())


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
