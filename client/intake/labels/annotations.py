"""Annotations of an image, wherever the hospital keeps them: a mask file, a cell of the label table, a box file.

Looked for in that order. Where nothing is known the image is left out, since a black mask would say that there is
nothing; where someone looked and found nothing, the mask is black.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from client.config import LabelSpec, Layout
from client.intake.folder import find_mask, find_mask_beside
from client.intake.labels.boxes import Boxes, Corners, NamedBox
from client.intake.labels.findings import known_findings, label_of_finding
from client.intake.labels.layouts import FINDINGS
from client.intake.labels.pairing import Pair
from client.quarantine import Code


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """A mask file, or boxes to draw; neither where the plan has no masks."""

    mask: Path | None = field(default=None, repr=False)
    boxes: tuple[Corners, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The hospital's annotations, ready to be asked for.

    Attributes:
        folder: of the images.
        table: the label table.
        boxes: of the box file, by the image's name there.
        layout: of the label table.
        rules: which finding stands for which label.
        labels: the plan's.
        named: what lines call their images: what the box file calls so is that line's, and no namesake's.
        shared_names: names that several files have: a box file that says no more does not say which it means.
    """

    folder: Path
    table: Path
    boxes: Boxes
    layout: Layout
    rules: LabelSpec
    labels: Sequence[str]
    named: Set[str] = frozenset()
    shared_names: Set[str] = frozenset()

    def of(self, pair: Pair, label: int) -> Annotation | Code:
        """The annotation of one image, or NO_MASK or BAD_MASK.

        Args:
            pair: the image and its line of the table.
            label: index of its label; boxes of another label's finding do not count.
        """
        line = pair.line
        if line.mask:
            mask = (
                find_mask_beside(line.mask, pair.inside, folder=self.folder, table=self.table)
                if pair.inside
                else find_mask(line.mask, folder=self.folder, table=self.table)
            )
            return Code.BAD_MASK if mask is None else Annotation(mask=mask)
        if line.boxes:
            return Annotation(boxes=line.boxes)
        key = self._key(pair)
        if key in self.boxes:
            unclear = key not in (pair.name, line.image) and key in self.shared_names
            found = None if unclear else self.boxes[key]
            return Code.BAD_MASK if found is None else self._counted(found, label)
        return Code.NO_MASK if line.boxes is None else Annotation(boxes=())

    def _key(self, pair: Pair) -> str:
        """The image's name in the box file: its path, as its line has it, or a name that no other line has."""
        if pair.name not in self.boxes and pair.line.image in self.boxes and not pair.inside:
            return pair.line.image
        key = boxes_key(pair.name, self.boxes, self.layout)
        return key if key == pair.name or key not in self.named else ""

    def _counted(self, found: tuple[NamedBox, ...], label: int) -> Annotation | Code:
        """The boxes that show this label, or say nothing of labels; boxes of other findings alone leave it unknown."""
        silent = known_findings(self.rules, self.labels) | set(FINDINGS[self.layout])
        meant = {
            box: label_of_finding(box.finding, self.rules, self.labels) == self.labels[label]
            or box.finding not in silent
            for box in found
        }
        counted = tuple(box.corners for box in found if meant[box])
        return Annotation(boxes=counted) if counted or not found else Code.NO_MASK


def boxes_key(name: str, boxes: Mapping[str, object], layout: Layout) -> str:
    """The name of an image in a box file: its path below the image folder, or in layout nih its file name."""
    return PurePosixPath(name).name if layout == "nih" and name not in boxes else name


def shared_names(files: Sequence[str]) -> frozenset[str]:
    """File names that several files have, in different folders."""
    return frozenset(name for name, count in Counter(PurePosixPath(file).name for file in files).items() if count > 1)


def boxes_without_image(boxes: Mapping[str, object], files: Sequence[str], layout: Layout) -> int:
    """Images of the box file that are not there."""
    return len(set(boxes) - {boxes_key(name, boxes, layout) for name in files})
