"""The summary of an intake, in numbers: for the hospital alone, and without a name, path or header text."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from client.intake.images import SourceCounts
from client.quarantine import EXPLAINED, Code
from ghostnet.durable import write_unsynced


@dataclass(frozen=True, kw_only=True)
class IntakeTable:
    """Counts of one intake. Every count is SENSITIVE: it is not released.

    Attributes:
        kind: of [data].
        found: files, or rows of an NPZ.
        taken: images that go on, duplicates already dropped.
        from_cache: images taken whose files were not opened again because their content is known.
        duplicates: images dropped because the same patient has the same pixels already.
        shared_pixels: images whose pixels another patient has too; they are KEPT, because leaving one out would make
            one patient's data depend on another's. Look whether they are one person.
        patients, train_patients, test_patients, train_images, test_images: sizes of the cohort and its parts.
        images_a_patient: patients with 1, 2 to 5, and 6 or more images.
        blanked_images, blanked_boxes: images in which text was blanked, and the boxes in all.
        mask_images, boxed_images: images whose mask came from a file, and from boxes.
        excluded: files of patients on the list of [cohort].exclude.
        held: files that wait for a person to look at them.
        labels, modalities: images taken, by name.
        syntaxes: images taken, by file format and compression.
        label_rules: what becomes of an image whose findings are not exactly one label.
        quarantined: files left out, by code; the excluded and held are among them.
        refused: (key of the file, code) for each file left out; state/quarantine.csv says which file it is.
        source_counts: what there was besides the files or rows in `found`.
    """

    kind: str
    found: int
    taken: int
    from_cache: int = 0
    duplicates: int = 0
    shared_pixels: int = 0
    patients: int = 0
    train_patients: int = 0
    test_patients: int = 0
    train_images: int = 0
    test_images: int = 0
    images_a_patient: dict[str, int] = field(default_factory=dict)
    blanked_images: int = 0
    blanked_boxes: int = 0
    mask_images: int = 0
    boxed_images: int = 0
    excluded: int = 0
    held: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    modalities: dict[str, int] = field(default_factory=dict)
    syntaxes: dict[str, int] = field(default_factory=dict)
    label_rules: dict[str, str] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    source_counts: SourceCounts = SourceCounts()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists, with each quarantine code in words; `source_counts` stand beside."""
        explained = {code: EXPLAINED[Code(code)] for code in self.quarantined}
        refused = [{"file": key, "code": code} for key, code in self.refused]
        own = asdict(self)
        del own["source_counts"]
        return own | {"refused": refused} | asdict(self.source_counts) | {"explained": explained}


def write_table(state: Path, table: IntakeTable, refused_paths: dict[str, str]) -> None:
    """Writes state/intake.json and, for the hospital's eyes only, state/quarantine.csv with the files' paths.

    Args:
        state: the site's state folder.
        table: what intake did.
        refused_paths: SENSITIVE: relative path by file key.
    """
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["file", "code", "path"])
    writer.writerows([key, code, refused_paths.get(key, "")] for key, code in table.refused)
    write_unsynced(state / "quarantine.csv", lines.getvalue().encode("utf-8", "backslashreplace"))
    write_unsynced(state / "intake.json", (json.dumps(table.to_dict(), indent=2) + "\n").encode())
