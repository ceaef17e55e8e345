"""From boxes of text to what is overwritten: weak boxes that continue other text, margins, blocks of lines.

Text comes in lines and lines in blocks. Where a block crosses something as bright as its letters, a word of it may be
missed while its neighbours are found; so the whole rectangle of a block goes, and a line above and below it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from client.deidentify.text_detector import STRONG, Box, Found

REACH_ALONG = 1.25  # line heights on each side of a box within which, along the line, another continues it
REACH_ACROSS = 1.0  # the same across the line: enough for one line between them that was missed
ALIKE = 2.0  # lines of one block differ in height by this factor at most
AROUND = 10  # line heights around a group within which more of it is looked for
MIN_MARGIN = 0.5  # of the image's shorter side: the network wants to see what letters stand out from
BLOCK = 3  # boxes beside each other that make a block: fewer are blanked for themselves
FILLED = 0.3  # of a block's rectangle lies under its boxes


def linked(found: Sequence[Found], done: Sequence[Box] = ()) -> list[Box]:
    """The strong boxes, and the weak ones that continue one of them, or what was blanked before.

    Args:
        found: everything the detector reported.
        done: tight boxes of earlier looks.
    """
    kept = [item.box for item in found if item.score >= STRONG]
    weak = [item.box for item in found if item.score < STRONG]
    reached = [*kept, *done]
    while weak and reached:
        near = [box for box in weak if any(_continues(box, other) for other in reached)]
        weak = [box for box in weak if box not in near]
        kept += near
        reached = near
    return kept


def areas(boxes: Sequence[Box], shape: tuple[int, ...]) -> list[Box]:
    """The rectangles to overwrite for these tight boxes: each with its margin, and the rectangle of each block.

    Args:
        boxes: tight boxes of all looks so far.
        shape: (h,w,...) of the image.
    """
    upright, turned = ([box for box in boxes if (_turned(box) is True) is side] for side in (False, True))
    groups = [*_groups(upright), *_groups(turned)]
    blocks = [_block(group, shape) for group in groups if _is_block(group)]
    return [with_margin(box, shape) for box in dict.fromkeys(boxes)] + blocks


def outermost(areas: Sequence[Box]) -> tuple[Box, ...]:
    """The areas that lie in no other, in their order: the same pixels are counted once."""

    def within(inner: Box, outer: Box) -> bool:
        return outer.x0 <= inner.x0 and outer.y0 <= inner.y0 and inner.x1 <= outer.x1 and inner.y1 <= outer.y1

    apart = list(dict.fromkeys(areas))
    return tuple(area for area in apart if not any(within(area, other) for other in apart if other != area))


def surroundings(boxes: Sequence[Box], shape: tuple[int, ...]) -> list[Box]:
    """For each group of boxes, the rectangle in which more of it may be; those that overlap are one."""
    apart: list[Box] = []
    for group in _groups(boxes):
        reach = max(AROUND * _line(group), round(MIN_MARGIN * min(shape[:2])))
        place = _grown(_hull(group), reach, reach, shape)
        while near := [other for other in apart if _overlap(place, other)]:
            place = _hull([place, *near])
            apart = [other for other in apart if other not in near]
        apart.append(place)
    return apart


def with_margin(box: Box, shape: tuple[int, ...]) -> Box:
    """Half a line's height across it and one along it: ascenders, and the ends of words that the detector cut off."""
    across = 2 + (box.height + 1) // 2
    along = 2 + box.height
    upright = box.x1 - box.x0 >= box.y1 - box.y0
    return _grown(box, *((along, across) if upright else (across, along)), shape)


def _is_block(group: Sequence[Box]) -> bool:
    """True if these are lines of text close together; scattered boxes that the detector found on bone are not."""
    hull = _hull(group)
    inside = np.zeros((hull.y1 - hull.y0, hull.x1 - hull.x0), bool)
    for box in group:
        inside[box.y0 - hull.y0 : box.y1 - hull.y0, box.x0 - hull.x0 : box.x1 - hull.x0] = True
    return len(_apart(group)) >= BLOCK and float(inside.mean()) >= FILLED


def _apart(group: Sequence[Box]) -> list[Box]:
    """Without boxes whose middle lies in a larger one: several views find the same word."""
    kept: list[Box] = []
    for box in sorted(group, key=lambda b: (b.x1 - b.x0) * (b.y1 - b.y0), reverse=True):
        x, y = (box.x0 + box.x1) // 2, (box.y0 + box.y1) // 2
        if not any(other.x0 <= x < other.x1 and other.y0 <= y < other.y1 for other in kept):
            kept.append(box)
    return kept


def _block(group: Sequence[Box], shape: tuple[int, ...]) -> Box:
    """The rectangle around a block and one line more on every side."""
    line = 2 + _line(group)
    return _grown(_hull(group), line, line, shape)


def _hull(group: Sequence[Box]) -> Box:
    return Box(
        x0=min(box.x0 for box in group),
        y0=min(box.y0 for box in group),
        x1=max(box.x1 for box in group),
        y1=max(box.y1 for box in group),
    )


def _line(group: Sequence[Box]) -> int:
    """The middle one of the boxes' heights."""
    return sorted(box.height for box in group)[len(group) // 2]


def _groups(boxes: Sequence[Box]) -> list[list[Box]]:
    """Boxes that continue each other, directly or through others."""
    left, groups = list(dict.fromkeys(boxes)), []
    while left:
        group = [left.pop()]
        for box in group:  # grows while it is gone through
            near = [other for other in left if _continues(other, box)]
            left = [other for other in left if other not in near]
            group += near
        groups.append(group)
    return groups


def _continues(box: Box, other: Box) -> bool:
    low, high = sorted((box.height, other.height))
    if high > ALIKE * max(1, low) or {_turned(box), _turned(other)} == {True, False}:
        return False
    return _overlap(_reach(box), _reach(other))


def _overlap(a: Box, b: Box) -> bool:
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def _turned(box: Box) -> bool | None:
    """True if the line is vertical; None for a single letter or so, which may be either."""
    width, height = box.x1 - box.x0, box.y1 - box.y0
    return None if max(width, height) < 2 * box.height else height > width


def _reach(box: Box) -> Box:
    along, across = round(REACH_ALONG * box.height), round(REACH_ACROSS * box.height)
    dx, dy = (along, across) if box.x1 - box.x0 >= box.y1 - box.y0 else (across, along)
    return Box(x0=box.x0 - dx, y0=box.y0 - dy, x1=box.x1 + dx, y1=box.y1 + dy)


def _grown(box: Box, dx: int, dy: int, shape: tuple[int, ...]) -> Box:
    return Box(
        x0=max(0, box.x0 - dx),
        y0=max(0, box.y0 - dy),
        x1=min(shape[1], box.x1 + dx),
        y1=min(shape[0], box.y1 + dy),
    )
