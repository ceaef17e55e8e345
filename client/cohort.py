"""A hospital's images as two cohorts of patients: one to train on, one to test on.

Whether an image is taken, in which form and in which part depends on its own patient alone, never on another one:
that is what lets "one patient more or less" be the unit of privacy. So the same pixels twice are dropped within a
patient and kept between patients.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from client.config import SiteConfig
from client.deidentify.pseudonyms import file_key, in_test_split
from client.exclusions import read_exclusions
from client.intake.images import Row, Rows
from client.intake.labels.findings import rules_in_words
from client.intake.sources import read_source
from client.intake.summary import IntakeTable, write_table
from client.intake.task import Limits
from client.intake.unit import data_unit
from client.intake.withdrawn import REVIEW, forget_fetched, forget_review
from client.prepared import note_prepared
from client.quarantine import Code
from client.secrets import load_or_create_secret
from ghostnet.errors import DataError, SiteError
from ghostnet.plan import ImageSpec
from ghostnet.progress import Progress, silent
from ghostnet.training.cohort import Cohort


@dataclass(frozen=True, kw_only=True)
class Cohorts:
    """A hospital's patients, split; no patient is in both parts.

    Attributes:
        train: trained on.
        test: only counted on, for the utility figures; may be empty.
        table: what intake did.
    """

    train: Cohort
    test: Cohort
    table: IntakeTable


def load_cohorts(
    config: SiteConfig,
    image: ImageSpec,
    secret: bytes,
    progress: Progress = silent,
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    strict: bool = True,
) -> Cohorts:
    """Takes in a site's images: decoded, without headers and burned-in text, de-noised, in the plan's range and size.

    Writes state/intake.json (counts and codes), state/quarantine.csv (which file has which code) and, for files,
    state/cache. Deletes what the PACS sent of patients who have withdrawn, and a review that may show them.

    Args:
        config: the site.
        image: the plan's image.
        secret: the site's secret; keys patients, files and the split.
        progress: called with ("images", done, total).
        limits: what one file may cost; None is the default.
        workers: processes that decode; None is one a core.
        strict: for people: refuse the whole data set for a row that does not fit, or when no image is left. A
            coordinator must never see whether that happened, since one patient's row would decide it: whoever answers
            one sets it to False, and such rows are left out by themselves.

    Raises:
        SiteError: the data or the state folder cannot be read or written.
        DataError: an array or table does not fit the plan; if strict, also for one row, or when no image is left.

    Guarantee:
        Unit: patient, or the image where the data names no patients. A patient's rows depend on this patient's files,
        the plan and the secret only.
        Not covered: one person under two patient identifiers; strict refusals.
    """
    rows, kept = _take_in(config, image, secret, progress, limits, workers, strict)
    parts = [[row for row in kept if _is_test(row, config, secret) is test] for test in (False, True)]
    table = _write_table(config, image, secret, rows, parts)
    if not parts[0] and strict:
        codes = ", ".join(f"{code} {count}" for code, count in table.quarantined.items())
        reasons = codes or "every patient is a test patient"
        raise DataError(
            f"no image to train on among {table.found} in [data].path ({reasons}); "
            f"see {config.state / 'quarantine.csv'} for which file has which code"
        )
    train, test = (_cohort(part, image) for part in parts)
    return Cohorts(train=train, test=test, table=table)


def check_site(
    config: SiteConfig,
    image: ImageSpec,
    progress: Progress = silent,
    *,
    limits: Limits | None = None,
    workers: int | None = None,
) -> IntakeTable:
    """Takes in a site's images as `load_cohorts` does and says what happened to each, also when none is left.

    What it prepares stays in the cache for the run itself; no privacy budget is touched and nothing is released.

    Raises:
        SiteError, DataError: as in `load_cohorts`, except for a cohort without images.
    """
    config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = load_or_create_secret(config.state / "secret.key")
    rows, kept = _take_in(config, image, secret, progress, limits, workers)
    parts = [[row for row in kept if _is_test(row, config, secret) is test] for test in (False, True)]
    return _write_table(config, image, secret, rows, parts)


def _take_in(
    config: SiteConfig,
    image: ImageSpec,
    secret: bytes,
    progress: Progress,
    limits: Limits | None,
    workers: int | None,
    strict: bool = True,
) -> tuple[Rows, list[Row]]:
    """The images that the reader took, without those whose pixels the same patient has twice."""
    try:
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_withdrawal(config)
        excluded = read_exclusions(config.cohort.exclude, secret) if config.cohort.exclude else frozenset()
        rows = read_source(
            config,
            image,
            secret,
            progress,
            excluded=excluded,
            limits=limits or Limits(),
            workers=workers,
            strict=strict,
        )
        rows = _forget(config, secret, rows, excluded, limits or Limits())
        _note_prepared(config, rows)
    except OSError as error:
        raise SiteError(
            f"the data or the state folder of {config.source} failed ({error.strerror or error.__class__.__name__}); "
            "check space and access, then start again: what was done is kept"
        ) from None
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows.taken:
        pixels = (row.patient, _pixels_digest(row))
        if pixels not in seen:
            seen.add(pixels)
            kept.append(row)
    return rows, kept


def _note_prepared(config: SiteConfig, rows: Rows) -> None:
    """For `site check` of another site.toml; whether it can be kept decides over no intake."""
    try:
        note_prepared(config.state, [row.source for row in rows.taken])
    except SiteError as error:
        logging.getLogger("ghostnet.site").warning("%s", error)


def _check_withdrawal(config: SiteConfig) -> None:
    """Refuses a list of patients where the data names none: going on would train on people who said no."""
    if config.cohort.exclude is not None and data_unit(config) == "image":
        raise SiteError(
            f"[cohort].exclude in {config.source} lists patients, and this data names none; give it a column patient, "
            "or take the images of people who have withdrawn out of [data].path and remove the key"
        )


def _forget(config: SiteConfig, secret: bytes, rows: Rows, excluded: frozenset[str], limits: Limits) -> Rows:
    """Deletes what the state folder holds of patients who have withdrawn; the cache has done so already."""
    files = 0
    if config.data.kind == "pacs" and excluded:
        names = [name for name, _ in rows.refused]
        files = forget_fetched(config.state, config.data.path, names, secret, excluded, limits=limits)
    review = forget_review(config.state, config.state / REVIEW, excluded)
    return replace(rows, source_counts=replace(rows.source_counts, files_deleted=files, review_deleted=review))


def _is_test(row: Row, config: SiteConfig, secret: bytes) -> bool:
    if row.test is not None:
        return row.test
    return in_test_split(secret, row.patient, config.cohort.test_fraction)


def _pixels_digest(row: Row) -> str:
    return hashlib.sha256(row.planes.tobytes()).hexdigest()


def _cohort(rows: Sequence[Row], image: ImageSpec) -> Cohort:
    """Patients in the order of their keys, which says nothing about them; images in the order of the source."""
    patients = sorted({row.patient for row in rows})
    index = {patient: i for i, patient in enumerate(patients)}
    images = torch.empty(len(rows), image.channels + image.mask_channels, image.size, image.size)
    for i, row in enumerate(rows):
        images[i] = torch.from_numpy(row.planes)
    return Cohort(
        images=images,
        labels=torch.tensor([row.label for row in rows], dtype=torch.int64),
        owners=torch.tensor([index[row.patient] for row in rows], dtype=torch.int64),
        patients=len(patients),
    )


def _write_table(
    config: SiteConfig, image: ImageSpec, secret: bytes, rows: Rows, parts: Sequence[Sequence[Row]]
) -> IntakeTable:
    train, test = parts
    kept = [*train, *test]
    patients = [len({row.patient for row in part}) for part in (kept, train, test)]
    records = [row.record for row in kept if row.record is not None]
    keys = {path: file_key(secret, path) for path, _ in rows.refused}
    codes = _counted([code.value for _, code in rows.refused])
    table = IntakeTable(
        kind=config.data.kind,
        found=rows.found,
        taken=len(kept),
        from_cache=sum(row.cached for row in kept),
        duplicates=len(rows.taken) - len(kept),
        shared_pixels=_shared_pixels(kept),
        patients=patients[0],
        train_patients=patients[1],
        test_patients=patients[2],
        train_images=len(train),
        test_images=len(test),
        images_a_patient=_images_a_patient(kept),
        blanked_images=sum(row.blanked > 0 for row in kept),
        blanked_boxes=sum(row.blanked for row in kept),
        mask_images=sum(row.drawn == "mask" for row in kept),
        boxed_images=sum(row.drawn == "boxes" for row in kept),
        excluded=codes.get(Code.EXCLUDED.value, 0),
        held=codes.get(Code.HELD.value, 0),
        labels=_counted([image.labels[row.label] for row in kept]),
        modalities=_counted([record.modality for record in records]),
        syntaxes=_counted([record.transfer_syntax for record in records]),
        label_rules={} if config.data.kind == "npz" else rules_in_words(config.labels),
        quarantined=codes,
        refused=tuple((keys[path], code.value) for path, code in rows.refused),
        source_counts=rows.source_counts,
    )
    write_table(config.state, table, {key: path for path, key in keys.items()})
    return table


def _counted(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _images_a_patient(kept: Sequence[Row]) -> dict[str, int]:
    sizes = Counter(row.patient for row in kept).values()
    groups = {"1": range(1, 2), "2-5": range(2, 6), "6+": range(6, max(sizes, default=0) + 1)}
    return {name: sum(size in group for size in sizes) for name, group in groups.items()}


def _shared_pixels(kept: Sequence[Row]) -> int:
    """Images whose pixels another patient has too; duplicates within a patient are gone already."""
    owners = Counter(_pixels_digest(row) for row in kept)
    return sum(count for count in owners.values() if count > 1)
