"""PS3.15's table of attributes that de-identification removes, to check our allow-list against.

Nothing is de-identified by this table: `headers.py` keeps a handful of values and drops all else, which is stronger.
The table is the standard's own opinion of what identifies, so nothing that we keep may be on it; it comes from
dicom-anonymizer, the edition is pinned, and a table of another size is refused.

It runs in workers and at the command line: importing the table imports pydicom.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from client.deidentify.headers import SOURCES
from ghostnet.errors import GhostNetError, MissingDependencyError

EDITION = "2026c"
ROWS = 655
"""Rows of table E.1-1 in this edition (PS3.15 annex E)."""

Tag = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ProfileTable:
    """The attributes that the Basic Application Level Confidentiality Profile removes, empties or replaces.

    Attributes:
        tags: (group, element) of single attributes.
        ranges: (group, element, group mask, element mask) of repeating groups: curves and overlays.
    """

    tags: frozenset[Tag]
    ranges: tuple[tuple[int, int, int, int], ...]

    def lists(self, tag: Tag) -> bool:
        """True if the table acts on an attribute; every private one (odd group) counts."""
        group, element = tag
        masked = ((group & gm, element & em) == (g & gm, e & em) for g, e, gm, em in self.ranges)
        return group % 2 == 1 or tag in self.tags or any(masked)


@cache
def load_profile() -> ProfileTable:
    """The pinned edition.

    Raises:
        MissingDependencyError: dicom-anonymizer is not installed, or its table is another one than this code was
            checked with.
    """
    try:
        from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

        rows = dicom_anonymization_database_selector(f"dicomfields_{EDITION}")["ALL_TAGS"]
    except (ImportError, ValueError, KeyError, AttributeError):
        rows = []
    listed = {tuple(row) for row in rows}
    if len(listed) != ROWS:
        raise MissingDependencyError(
            f"the PS3.15 table {EDITION} has {len(listed)} rows here, not {ROWS}; pip install 'ghostnet[site]'"
        )
    return ProfileTable(
        tags=frozenset((row[0], row[1]) for row in listed if len(row) == 2),
        ranges=tuple(sorted((row[0], row[1], row[2], row[3]) for row in listed if len(row) == 4)),
    )


def listed_attributes_in(keywords: Iterable[str]) -> tuple[str, ...]:
    """Those of some attributes that the table acts on.

    Args:
        keywords: DICOM keywords ("PatientName"). A word that is none counts as listed: it cannot be told what it is.
    """
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag as split

    profile, found = load_profile(), []
    for keyword in keywords:
        number = tag_for_keyword(keyword)
        if number is None or profile.lists((split(number).group, split(number).element)):
            found.append(keyword)
    return tuple(found)


def check_allow_list() -> None:
    """Refuses to work with an allow-list that keeps what the table removes.

    Raises:
        MissingDependencyError: as in `load_profile`.
        GhostNetError: an attribute that a `HeaderRecord` is made from is on the table. This installation is changed or
            broken.

    Guarantee:
        No value that intake keeps comes from an attribute that PS3.15's Basic Profile removes, empties or replaces.
        Not covered: what those attributes' values, or the pixels, say by themselves.
    """
    listed = listed_attributes_in(keyword for keywords in SOURCES.values() for keyword in keywords)
    if listed:
        raise GhostNetError(
            f"the header allow-list keeps {', '.join(listed)}, which PS3.15 {EDITION} removes; install GhostNet anew"
        )
