"""The output of `ghostnet site check`: the table of one intake, and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from client.intake.images import SourceCounts
from client.intake.summary import IntakeTable
from client.quarantine import EXPLAINED, TRANSIENT, Code

_ADVICE = {
    Code.HELD: "look at the images that wait: ghostnet site review {site} --plan {plan}",
    Code.NO_DECODER: "see which decoder is missing: ghostnet doctor",
    Code.NO_LABEL: "name the images without a label in the label table, or leave them out on purpose",
    Code.NO_MASK: "name a mask for each image in the label table: the plan draws masks",
    Code.BURNED_IN_TEXT: "look at the images whose text could not be blanked; leave them out or export them anew",
    Code.IDENTIFIER: "report this: a header's text was about to be kept, and was stopped (docs/privacy-officer.md)",
}


def intake_view(table: IntakeTable, *, site: Path, plan: Path, quarantine: Path, warnings: Sequence[str] = ()) -> Group:
    """The table as people read it.

    Args:
        table: what intake did. Every count is SENSITIVE: for the hospital's own screen.
        site: the site.toml, for the commands that are proposed.
        plan: that it was checked against, likewise.
        quarantine: the file that says which image has which code.
        warnings: said before what to do next.
    """
    parts = [_totals(table)]
    parts += [
        _counts(title, head, counts)
        for title, head, counts in (
            ("Modality", "images", table.modalities),
            ("Format", "images", table.syntaxes),
            ("Label", "images", table.labels),
            ("Images of one patient", "patients", table.images_a_patient),
        )
        if counts
    ]
    if table.label_rules:
        parts.append(_rules(table.label_rules))
    if table.quarantined:
        parts.append(_left_out(table.quarantined))
    steps = [*warnings, *next_steps(table, site=site, plan=plan, quarantine=quarantine)]
    return Group(*parts, Text("Next", style="bold"), *(Text(f"- {step}") for step in steps))


def next_steps(table: IntakeTable, *, site: Path, plan: Path, quarantine: Path) -> list[str]:
    """Advice after this intake, most urgent first."""
    return list(_next_steps(table, site, plan, quarantine))


def _next_steps(table: IntakeTable, site: Path, plan: Path, quarantine: Path) -> Iterator[str]:
    shown_site, shown_plan = shlex.quote(str(site)), shlex.quote(str(plan))  # lines can be pasted
    codes = {Code(code) for code in table.quarantined}
    if not table.train_images:
        yield "there is no image to train on: see what was left out, and why"
    if table.refused:
        yield f"which file has which code: {quarantine} (holds paths; keep it in the hospital)"
    yield from (advice.format(site=shown_site, plan=shown_plan) for code, advice in _ADVICE.items() if code in codes)
    if codes & TRANSIENT - {Code.HELD, Code.EXCLUDED, Code.NO_DECODER}:
        yield "what was left out for memory or time is tried again: run this command again on an idle machine"
    yield from _source_steps(table.source_counts)
    if table.shared_pixels:
        yield (
            f"{table.shared_pixels} image(s) have the same pixels as another patient's: if they are one person, give "
            "that person one identifier"
        )
    if table.train_images:
        yield f"take part when the plan is approved; what has been spent: ghostnet site budget {shown_site}"


def _source_steps(counts: SourceCounts) -> Iterator[str]:
    if counts.studies_failed:
        yield f"{counts.studies_failed} study(ies) could not be listed by the PACS: run this command again"
    if counts.studies_missing:
        yield f"the PACS has no image of a wanted kind of {counts.studies_missing} study(ies): check their UIDs"
    if counts.images_missing:
        yield (
            f"{counts.images_missing} image(s) did not come from the PACS, or came too large or as something else: run "
            "this command again; see [pacs].max_file_mib"
        )
    if counts.files_deleted:
        yield f"{counts.files_deleted} file(s) from the PACS were deleted: their patients have withdrawn"
    if counts.review_deleted:
        yield "the review was deleted, since it may have shown patients who have withdrawn; write it anew"
    if counts.rows_without_file:
        yield f"{counts.rows_without_file} line(s) of the label table name an image that is not there"
    if counts.mask_files:
        yield f"{counts.mask_files} file(s) are named as masks and are no images"
    if counts.unlisted_files:
        yield (
            f"{counts.unlisted_files} file(s) are not listed by the DICOMDIR above them; they are taken like any other"
        )
    if counts.listed_without_file:
        yield f"{counts.listed_without_file} file(s) that a DICOMDIR lists are not there: the copy may be incomplete"
    if counts.broken_dicomdirs:
        yield f"{counts.broken_dicomdirs} DICOMDIR(s) cannot be read; what they list was not checked"
    if counts.boxes_without_file:
        yield f"{counts.boxes_without_file} image(s) of the box file are not there"


def _totals(table: IntakeTable) -> Table:
    rows: dict[str, object] = {
        "Files or rows found": table.found,
        "Images taken": table.taken,
        "  of these from the cache": table.from_cache,
        "Same pixels twice, dropped": table.duplicates,
        "Left out": sum(table.quarantined.values()),
        "  waiting for a person": table.held,
        "  of withdrawn patients": table.excluded,
        "Text blanked": f"{table.blanked_boxes} boxes on {table.blanked_images} images",
        "With mask, with boxes": f"{table.mask_images}, {table.boxed_images}",
        "Patients": table.patients,
        "  to train on": f"{table.train_patients} with {table.train_images} images",
        "  to test on": f"{table.test_patients} with {table.test_images} images",
    }
    if table.kind == "pacs":
        rows |= {
            "Images that the PACS did not send": table.source_counts.images_missing,
            "Studies that it could not list": table.source_counts.studies_failed,
            "Studies without a wanted image": table.source_counts.studies_missing,
        }
    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_column()
    shown.add_column(justify="right")
    for name, value in rows.items():
        shown.add_row(name, str(value))
    return shown


def _counts(title: str, head: str, counts: Mapping[str, int]) -> Table:
    shown = Table(title, box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column(head, justify="right")
    for name, count in counts.items():
        shown.add_row(Text(name), str(count))
    return shown


def _rules(rules: Mapping[str, str]) -> Table:
    shown = Table("Findings of an image", "what is done", box=box.SIMPLE_HEAD, pad_edge=False)
    for findings, done in rules.items():
        shown.add_row(Text(findings), Text(done))
    return shown


def _left_out(quarantined: Mapping[str, int]) -> Table:
    shown = Table("Left out", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("files", justify="right")
    shown.add_column("why")
    for code, count in sorted(quarantined.items(), key=lambda item: -item[1]):
        shown.add_row(code, str(count), Text(EXPLAINED[Code(code)]))
    return shown
