"""The kinds of data that a site may have, each read into rows.

Of a folder, whatever its format: the label table says which files are wanted, the box file and the masks what lies on
them, and only then is a file opened, by a worker.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from client.config import SiteConfig
from client.deidentify.pseudonyms import patient_key
from client.formats import file_format, format_name
from client.intake.approvals import read_approvals, shown_rules, with_approval
from client.intake.arrays import array_rows
from client.intake.cache import Entry
from client.intake.dicomdir import Contents, read_contents
from client.intake.files import Job, file_digest, prepare_jobs, with_digests
from client.intake.folder import find_files, has_signature
from client.intake.images import Row, Rows, SourceCounts
from client.intake.labels.annotations import Annotation, Annotations, boxes_without_image, shared_names
from client.intake.labels.boxes import Boxes, read_boxes
from client.intake.labels.findings import check_rules, known_findings, plan_label
from client.intake.labels.layouts import FINDINGS, ImageLine, Wanted, read_layout
from client.intake.labels.pairing import Pair, Pairs, is_mask, mask_names, pair
from client.intake.pacs.fetch import Fetched, fetch_studies
from client.intake.pacs.store import Withdrawn
from client.intake.task import Limits, Settings, Task
from client.intake.unit import data_unit
from client.intake.withdrawn import read_withdrawn
from client.quarantine import Code
from ghostnet.errors import SiteError
from ghostnet.plan import ImageSpec, Unit
from ghostnet.progress import Progress

Refusals = list[tuple[str, Code]]
"""(path or row, code); the paths are SENSITIVE."""


def read_source(
    config: SiteConfig,
    image: ImageSpec,
    secret: bytes,
    progress: Progress,
    *,
    excluded: Set[str],
    limits: Limits,
    workers: int | None,
    strict: bool = True,
) -> Rows:
    """Reads a site's images into rows; files in worker processes, those in the cache not at all.

    Args:
        config: the site.
        image: the plan's image.
        secret: the site's.
        progress: called with (what, done, total).
        excluded: keys of patients that are left out.
        limits: what one file may cost.
        workers: processes that decode; None is one a core.
        strict: refuse the whole data set for a bad line or row; otherwise only its image is left out.

    Raises:
        SiteError: the folder, a table or the PACS cannot be read.
        DataError: the folder holds no file, or the data does not fit the plan.
        OSError: the state folder cannot be written.
    """
    if config.data.kind == "npz":
        return array_rows(config, image, secret, progress, excluded=excluded, strict=strict)
    sorted_files = sort_files(config, image, secret, progress, excluded=excluded, limits=limits, strict=strict)
    jobs, refused = with_digests(sorted_files.jobs), sorted_files.refused
    entries, cached = prepare_jobs(
        jobs,
        config.state / "cache",
        sorted_files.settings,
        secret,
        progress,
        excluded=excluded,
        limits=limits,
        workers=workers,
        others=[config.data.path / name for name, code in refused if code is not Code.EXCLUDED],
    )
    taken = [row for job, entry, known in zip(jobs, entries, cached, strict=True) for row in _rows(job, entry, known)]
    refused = refused + [(job.name, entry) for job, entry in zip(jobs, entries, strict=True) if isinstance(entry, Code)]
    return Rows(
        taken=taken,
        refused=sorted(refused),
        found=sorted_files.found,
        source_counts=sorted_files.source_counts,
    )


@dataclass(frozen=True, kw_only=True)
class SortedFiles:
    """A site's files before any is opened.

    Attributes:
        jobs: worth opening, with the approvals that a person gave.
        refused: left out by the label table.
        settings: what each is to be prepared with.
        found: files in the folder that are no masks.
        source_counts: what there was besides, by the label table, the box file, DICOMDIRs and the PACS.
    """

    jobs: list[Job]
    refused: Refusals
    settings: Settings
    found: int
    source_counts: SourceCounts


def sort_files(
    config: SiteConfig,
    image: ImageSpec,
    secret: bytes,
    progress: Progress,
    *,
    excluded: Set[str],
    limits: Limits,
    strict: bool = True,
) -> SortedFiles:
    """Lists a site's files to open, each with its format; arguments and errors as of `read_source`. Not for NPZ."""
    findings = FINDINGS[config.data.layout]
    check_rules(config.labels, image.labels, findings=findings, source=str(config.source))
    unit = data_unit(config)
    lines = [] if config.data.labels is None else _read_table(config, image, strict, unit)
    boxes = read_boxes(config.data.boxes, strict=strict) if config.data.boxes and image.mask_channels else {}
    fetched = Fetched()
    if config.data.kind == "pacs":
        withdrawn = read_withdrawn(config.state, secret, excluded)
        fetched = _fetch(config, lines, progress, strict, withdrawn)
        lines = lines if config.data.labels else _period(fetched)
    sorter = _FileSorter(config=config, image=image, secret=secret, boxes=boxes, excluded=excluded, unit=unit)
    files, masks, found = _paired(config, lines, strict, unit)
    contents = read_contents(config.data.path, files, limits=limits) if config.data.kind == "dicom" else Contents()
    jobs, refused = sorter.sort(files, found.pairs)
    approvals, shown = read_approvals(config.state), shown_rules(config)
    return SortedFiles(
        jobs=[with_approval(job, secret, shown, approvals) for job in jobs],
        refused=refused,
        settings=_settings(config, image),
        found=len(files),
        source_counts=SourceCounts(
            rows_without_file=found.lines_without_file,
            mask_files=masks,
            unlisted_files=contents.unlisted,
            listed_without_file=contents.missing,
            broken_dicomdirs=contents.broken,
            boxes_without_file=boxes_without_image(boxes, files, config.data.layout),
            images_missing=fetched.images_missing,
            studies_failed=fetched.studies_failed,
            studies_missing=fetched.studies_missing,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _FileSorter:
    """Sorts files into those worth opening and those left out, each by its own line of the table."""

    config: SiteConfig
    image: ImageSpec
    secret: bytes
    boxes: Boxes
    excluded: Set[str]
    unit: Unit

    def sort(self, files: Sequence[str], pairs: Sequence[Pair]) -> tuple[list[Job], Refusals]:
        annotations = Annotations(
            folder=self.config.data.path,
            table=_labels_path(self.config),
            boxes=self.boxes,
            layout=self.config.data.layout,
            rules=self.config.labels,
            labels=self.image.labels,
            named={known.line.image for known in pairs},
            shared_names=shared_names(files),
        )
        unsigned = {name for name in files if not self._is_signed(name)}
        paired = {known.name for known in pairs}
        code = file_format(self.config.data.kind).code
        refused: Refusals = [(name, code) for name in files if name in unsigned]
        refused += [(name, Code.NO_LABEL) for name in files if name not in unsigned and name not in paired]
        jobs = []
        for known in pairs:
            if known.name in unsigned:
                continue
            job = self._job(known, annotations)
            if isinstance(job, Code):
                refused.append((known.name, job))
            else:
                jobs.append(job)
        return jobs, refused

    def _is_signed(self, name: str) -> bool:
        try:
            return has_signature(self.config.data.path / name, format_name(self.config.data.kind))
        except OSError:
            return True  # a worker says that it cannot be read

    def _job(self, known: Pair, annotations: Annotations) -> Job | Code:
        line = known.line
        if not line.sound:
            return Code.NO_LABEL
        patient = line.patient if _patients_in_table(self.config, self.unit) else None
        if patient is not None:
            try:
                if patient_key(self.secret, patient) in self.excluded:
                    return Code.EXCLUDED
            except ValueError:
                return Code.NO_PATIENT_ID
        digest = None
        if patient is None and self.unit == "image":  # the same bytes twice are one image
            try:
                digest = file_digest(self.config.data.path / known.name)
            except OSError:
                return Code.UNREADABLE
            patient = digest.hex()
        label = plan_label(line.present, line.uncertain, self.config.labels, self.image.labels)
        if isinstance(label, Code):
            return label
        drawn = annotations.of(known, label) if self.image.mask_channels else Annotation()
        if isinstance(drawn, Code):
            return drawn
        return Job(
            name=known.name,
            task=Task(
                path=self.config.data.path / known.name,
                format=format_name(self.config.data.kind),
                mask=drawn.mask,
                boxes=drawn.boxes,
            ),
            label=label,
            patient=patient,
            digest=digest,
            drawn="mask" if drawn.mask else "boxes" if drawn.boxes is not None else "",
        )


def _paired(config: SiteConfig, lines: Sequence[ImageLine], strict: bool, unit: Unit) -> tuple[list[str], int, Pairs]:
    """The image files, how many files are masks, and the lines with the images that they speak of."""
    folder, table = config.data.path, _labels_path(config)
    if unit == "image":  # each image stands by itself: no line reaches another's, as no patient's does
        lines = [replace(line, patient=line.image) for line in lines]
    elif not _patients_in_table(config, unit):  # the file says whose it is: lines of one file are about one patient
        lines = [line.without_patient() for line in lines]
    others = [path for path in (table, config.data.boxes, config.cohort.exclude) if path is not None]
    files = find_files(folder, others, strict=strict)
    masks = mask_names(lines, folder=folder, table=table)
    found = pair(lines, files, config.data.layout, folder=folder.name, masks=masks, strict=strict)
    # A file that a line names as an image stays one, whatever mask another patient's line makes of it.
    paired, any_mask = {known.name for known in found.pairs}, set().union(*masks.values())
    images = [name for name in files if name in paired or not is_mask(name, any_mask)]
    return images, len(files) - len(images), found


def _rows(job: Job, entry: Entry | Code, cached: bool) -> list[Row]:
    """One row a frame: all of the same patient, with the same label."""
    if isinstance(entry, Code):
        return []
    return [
        Row(
            planes=planes,
            label=job.label,
            patient=entry.patient,
            source=job.digest or b"",
            record=entry.record,
            blanked=blanked,
            drawn=job.drawn,
            cached=cached,
        )
        for planes, blanked in zip(entry.planes, entry.blanked, strict=True)
    ]


def _read_table(config: SiteConfig, image: ImageSpec, strict: bool, unit: Unit) -> list[ImageLine]:
    wanted = Wanted(
        labels=image.labels,
        findings=known_findings(config.labels, image.labels),
        patients=_patients_in_table(config, unit),
    )
    return read_layout(_labels_path(config), config.data.layout, wanted, strict=strict)


def _period(fetched: Fetched) -> list[ImageLine]:
    """All studies of [pacs].study_date, each a line without findings: `[labels].missing` says what they are.

    A file of another period, fetched before, is no study of this one, so each study that the PACS names is a line, and
    not each that is in the folder.
    """
    return [ImageLine(image=study) for study in fetched.names]


def _fetch(
    config: SiteConfig, lines: Sequence[ImageLine], progress: Progress, strict: bool, withdrawn: Withdrawn
) -> Fetched:
    if config.pacs is None:
        raise SiteError(f"[pacs] is missing in {config.source}; add its protocol and address")
    wanted = [line.image for line in lines if line.sound] if config.data.labels else None
    return fetch_studies(config.pacs, wanted, config.data.path, progress, strict=strict, withdrawn=withdrawn)


def _labels_path(config: SiteConfig) -> Path:
    """The label table; where a PACS is asked for a period there is none, and its folder stands for it."""
    if config.data.labels is None and config.data.kind != "pacs":
        raise SiteError(f"[data].labels is missing in {config.source}; name a CSV with the columns image,label")
    return config.data.labels or config.data.path


def _patients_in_table(config: SiteConfig, unit: Unit) -> bool:
    """True if the label table has to name each image's patient: the files do not, and the plan protects patients."""
    return not file_format(config.data.kind).names_patient and unit == "patient"


def _settings(config: SiteConfig, image: ImageSpec) -> Settings:
    deidentify = config.deidentify
    return Settings(
        image=image,
        burned_in=deidentify.burned_in,
        trusted_modalities=deidentify.trusted_modalities,
        modalities=deidentify.modalities,
        held_modalities=deidentify.held_modalities,
        modality=config.data.modality or "",
        frames_per_file=config.data.frames_per_file,
    )
