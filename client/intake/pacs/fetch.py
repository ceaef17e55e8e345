"""Images from a PACS into a folder, by a process of its own; the errors a person can act on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from client.intake.pacs.faults import EXPLAINED, Fault
from client.intake.pacs.retrieval import PHASES, is_here, rules_of
from client.intake.pacs.store import NOBODY, PacsFiles, Withdrawn, is_uid
from client.intake.sandbox.process import start_process
from client.pacs_config import PacsSpec, read_credentials
from ghostnet.errors import DataError, SiteError, not_installed
from ghostnet.progress import Progress

_MAX_LINE = 1 << 26  # a period may hold a million studies


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The result of a fetch. SENSITIVE: for the hospital's own eyes."""

    names: tuple[str, ...] = field(default=(), repr=False)  # StudyInstanceUIDs of `study_date`; else none
    studies: int = 0  # wanted
    studies_missing: int = 0  # of which the PACS has no image of a wanted kind
    studies_failed: int = 0  # that the PACS could not list
    images: int = 0  # wanted of the studies that were asked for, as the PACS lists them
    images_new: int = 0  # that came now; the rest were there
    images_missing: int = 0  # not had, not sent, too large or other than asked for


def fetch_studies(
    spec: PacsSpec,
    wanted: Sequence[str] | None,
    folder: Path,
    progress: Progress,
    *,
    strict: bool = True,
    withdrawn: Withdrawn = NOBODY,
) -> Fetched:
    """Fetches studies, or single images of them, to folder/<study>/<instance>.dcm; what is there stays.

    Args:
        spec: the PACS.
        wanted: each StudyInstanceUID or StudyInstanceUID/SOPInstanceUID. None: the studies of `spec.study_date`.
        folder: where the files go; mode 0700.
        progress: told of studies and images, and of seconds waited for a PACS that is down.
        strict: refuse items that are no UIDs, and a PACS that has none of the studies; otherwise leave them out.
        withdrawn: what is not fetched.

    Raises:
        SiteError: the PACS cannot be reached or refuses, or credentials, certificates or the folder are not usable.
            What came before stays and is not fetched again.
        DataError: see `strict`.
        MissingDependencyError: a library for the protocol is not installed.
    """
    if wanted is None and not spec.study_date:
        raise SiteError("[pacs].study_date is missing; without a label table it says which studies to fetch")
    studies = None if wanted is None else _by_study(wanted, strict=strict)
    files, rules = (
        PacsFiles(folder, file_bytes=spec.file_bytes, total_bytes=spec.total_bytes, withdrawn=withdrawn),
        rules_of(spec.modalities),
    )
    if studies is not None and all(is_here(files, study, only, rules) for study, only in studies.items()):
        return Fetched(studies=len(studies))
    request = {
        "spec": {name: value for name, value in asdict(spec).items() if value is not None},
        "credentials": read_credentials(spec),
        "wanted": None if studies is None else {study: sorted(only) for study, only in studies.items()},
        "folder": folder.absolute(),
        "withdrawn": {"key": withdrawn.key.hex(), "hashes": sorted(withdrawn.hashes)},
    }
    fetched = _run(request, spec, progress)
    if strict and fetched.images and fetched.images == fetched.images_missing:
        raise DataError(
            f"the PACS lists {fetched.images} image(s) and sent none that could be kept; have this site allowed to "
            "retrieve (by C-MOVE: its title, address and port registered as a destination), and see "
            "[pacs].max_file_mib"
        )
    if strict and fetched.studies_missing + fetched.studies_failed == fetched.studies:
        raise DataError(
            f"the PACS has no image of any of the {fetched.studies} studies asked for; check the StudyInstanceUIDs, "
            "[pacs].modalities and what [pacs] may see"
        )
    return fetched


def _by_study(wanted: Sequence[str], *, strict: bool) -> dict[str, frozenset[str]]:
    """The instances wanted of each study; none for all of them."""
    studies: dict[str, set[str]] = {}
    whole: set[str] = set()
    bad = 0
    for item in wanted:
        study, slash, instance = item.partition("/")
        if not is_uid(study) or (slash and not is_uid(instance)):
            bad += 1
            continue
        studies.setdefault(study, set()).update([instance] if slash else [])
        whole.update([] if slash else [study])
    if bad and strict:
        raise DataError(
            f"{bad} image(s) wanted from the PACS are named by neither StudyInstanceUID nor "
            "StudyInstanceUID/SOPInstanceUID; correct them"
        )
    return {study: frozenset() if study in whole else frozenset(only) for study, only in studies.items()}


def _run(request: Mapping[str, Any], spec: PacsSpec, progress: Progress) -> Fetched:
    process = start_process("client.intake.pacs.worker", {})
    try:
        if process.stdin is None or process.stdout is None:
            raise SiteError(_said(spec, Fault.CRASHED))
        try:
            process.stdin.write(json.dumps(request, default=os.fspath).encode() + b"\n")
            process.stdin.flush()
            return _listen(process.stdout, spec, progress)
        except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
            raise SiteError(_said(spec, Fault.CRASHED)) from None
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _listen(answers: IO[bytes], spec: PacsSpec, progress: Progress) -> Fetched:
    while line := answers.readline(_MAX_LINE):
        message = json.loads(line)
        if "phase" in message:
            progress(PHASES[int(message["phase"])], int(message["done"]), int(message["total"]))
        elif "counts" in message:
            names = tuple(name for name in message["counts"].pop("names") if is_uid(name))
            return Fetched(names=names, **{name: int(count) for name, count in message["counts"].items()})
        elif "missing" in message:
            raise not_installed(message["missing"], "site")
        else:
            raise SiteError(_said(spec, Fault(message["fault"])))
    raise SiteError(_said(spec, Fault.CRASHED))


def _said(spec: PacsSpec, fault: Fault) -> str:
    where = spec.url if spec.protocol == "dicomweb" else f"{spec.called_aet} at {spec.host}:{spec.port}"
    return f"PACS {where}: {EXPLAINED[fault]}"
