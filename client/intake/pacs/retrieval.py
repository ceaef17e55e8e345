"""From the studies wanted to files on disk, whatever the protocol; a PACS that goes down is waited for."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from client.deidentify.headers import SOP_CLASSES
from client.intake.pacs.faults import OF_ONE_STUDY, PASSING, Fault, FileRefused, PacsFault
from client.intake.pacs.store import Listed, PacsFiles
from ghostnet.progress import Progress

T = TypeVar("T")

STUDIES, IMAGES, WAITING = PHASES = (
    "studies from the PACS",
    "images from the PACS",
    "seconds waiting for the PACS",
)
_FIRST_ANSWER_S = 5.0  # a PACS that never answered is more likely a wrong address than a restart
_FIRST_DELAY_S, _MAX_DELAY_S = 0.25, 30.0
_GRACE_TIMEOUTS, _MIN_RATE = 20, 1 << 16  # bytes a second
_TRIES = 3  # of what fails without the connection being at fault

Wanted = Mapping[str, AbstractSet[str]]
"""StudyInstanceUIDs, each with the SOPInstanceUIDs wanted of it; none named: all."""


class Archive(Protocol):
    """A PACS as one of the protocols shows it. Every method raises PacsFault, and nothing else."""

    def verify_connection(self) -> None:
        """Asks something small: who is there, and are we welcome."""

    def studies(self, study_date: str, modalities: Sequence[str]) -> list[str]:
        """StudyInstanceUIDs of a range of dates."""

    def images(self, study: str, modalities: Sequence[str]) -> list[Listed]:
        """The images of a study; where the PACS cannot choose modalities, of all."""

    def retrieve(self, study: str, wanted: Sequence[Listed], inbox: Inbox) -> None:
        """Puts what the PACS sends of `wanted` into the inbox; what it does not send is passed over."""

    def close(self) -> None:
        """Ends what is open."""


@dataclass(kw_only=True)
class Counts:
    """The files received. SENSITIVE: for the hospital's own eyes."""

    names: tuple[str, ...] = ()  # StudyInstanceUIDs, where the PACS said which; else none
    studies: int = 0  # wanted
    studies_missing: int = 0  # of which the PACS has no image of a wanted kind
    studies_failed: int = 0  # that the PACS could not list
    images: int = 0  # wanted, as listed by the PACS
    images_new: int = 0  # that came now; the rest were there
    images_missing: int = 0  # that the PACS does not have, did not send, or sent as something else or too large


class Inbox:
    """Takes the files of one study as they arrive, and only those that were asked for."""

    def __init__(self, files: PacsFiles, study: str, expected: Iterable[str], arrived: Callable[[], None]) -> None:
        self.refused: set[str] = set()
        self._files = files
        self._study = study
        self._expected = frozenset(expected)
        self._arrived = arrived

    def put(self, instance: str, parts: Iterable[bytes | memoryview]) -> bool:
        """Stores one file; says whether it is kept.

        Raises:
            PacsFault: the disk or the limit on all files is full; or `parts` raised it.
        """
        if instance not in self._expected or instance in self.refused:
            return False
        if self._files.has(self._study, instance):
            return True
        try:
            self._files.put(self._study, instance, parts)
        except FileRefused:
            self.refused.add(instance)
            return False
        self._arrived()
        return True

    def missing(self) -> list[str]:
        """Names of the images that may still come."""
        return [name for name in self._expected - self.refused if not self._files.has(self._study, name)]


class Pace:
    """Ends an answer that only drips: after a grace of some timeouts, it must have come at a least rate."""

    def __init__(self, timeout_s: float) -> None:
        self._grace_s = _GRACE_TIMEOUTS * timeout_s
        self.restart()

    def restart(self) -> None:
        """Another answer begins."""
        self.received = 0
        self._start = time.monotonic()

    def count(self, size: int) -> None:
        """Counts bytes that came.

        Raises:
            PacsFault: TIMEOUT.
        """
        self.received += size
        if time.monotonic() - self._start > self._grace_s + self.received / _MIN_RATE:
            raise PacsFault(Fault.TIMEOUT)


@dataclass(kw_only=True)
class Patience:
    """Waits between attempts, longer each time, as long as something came within `limit_s`."""

    limit_s: float
    tell: Progress
    welcomed: bool = False
    _since: float = field(default_factory=time.monotonic)
    _delay_s: float = _FIRST_DELAY_S
    _tries: int = 0

    def refresh(self) -> None:
        """Something came: the PACS is there."""
        self.welcomed, self._since, self._delay_s, self._tries = True, time.monotonic(), _FIRST_DELAY_S, 0

    def wait(self, fault: PacsFault) -> None:
        """Sleeps before another attempt.

        Raises:
            PacsFault: the same, where another attempt would not help or patience is out.
        """
        self._tries += 1
        limit = self.limit_s if self.welcomed else min(self.limit_s, _FIRST_ANSWER_S)
        waited = time.monotonic() - self._since
        hopeless = fault.fault not in PASSING and (fault.fault not in OF_ONE_STUDY or self._tries >= _TRIES)
        if hopeless or (waited >= limit and self._tries > 1):
            raise fault
        self.tell(WAITING, int(waited), int(limit))
        time.sleep(max(0.0, min(self._delay_s, limit - waited)))
        self._delay_s = min(2 * self._delay_s, _MAX_DELAY_S)


def fetch(
    archive: Archive,
    wanted: Wanted | None,
    files: PacsFiles,
    tell: Progress,
    *,
    modalities: Sequence[str],
    study_date: str,
    patience_s: float,
) -> Counts:
    """Brings the wanted images to disk; what is there is not fetched again.

    Args:
        archive: the PACS.
        wanted: studies; None for those of `study_date` and `modalities`.
        files: where they go.
        tell: told of studies and images done, and of seconds waited for a PACS that is down.
        modalities: fetched at all; none named: every modality.
        study_date: a range, as DICOM writes it.
        patience_s: how long nothing may come before it is given up.

    Raises:
        PacsFault: the PACS refuses, or does not come back, or the disk is full. What came stays and counts.
    """
    rules = rules_of(modalities)
    patience = Patience(limit_s=patience_s, tell=tell)
    _patiently(patience, archive.verify_connection)
    names: tuple[str, ...] = ()
    if wanted is None:
        names = tuple(_patiently(patience, lambda: archive.studies(study_date, modalities)))
        wanted = {study: frozenset() for study in names}
    counts = Counts(studies=len(wanted), names=names)
    for done, (study, only) in enumerate(wanted.items()):
        tell(STUDIES, done, len(wanted))
        if is_here(files, study, only, rules):
            continue
        visit = _Visit(study=study, only=only, modalities=modalities, rules=rules)
        visit.run(archive, files, patience, counts, tell)
    tell(STUDIES, len(wanted), len(wanted))
    return counts


@dataclass(kw_only=True)
class _Visit:
    """One study."""

    study: str
    only: AbstractSet[str]
    modalities: Sequence[str]
    rules: str

    def run(self, archive: Archive, files: PacsFiles, patience: Patience, counts: Counts, tell: Progress) -> None:
        """Lists and fetches until all is there, or the PACS sends no more of it."""
        try:
            listed = _patiently(patience, lambda: self._wanted(archive.images(self.study, self.modalities)))
        except PacsFault as fault:
            counts.studies_failed += 1
            _pass_over(fault, archive)
            patience.refresh()
            return
        counts.studies_missing += not listed
        absent = self.only - {image.instance for image in listed} if listed else frozenset()
        counts.images_missing += sum(instance not in files.withdrawn for instance in absent)
        every = [image.instance for image in listed]
        listed = [image for image in listed if image.instance not in files.withdrawn]
        counts.images += len(listed)

        def arrived() -> None:
            patience.refresh()
            counts.images_new += 1
            tell(IMAGES, counts.images_new, counts.images)

        inbox = Inbox(files, self.study, (image.instance for image in listed), arrived)
        self._fetch(archive, listed, inbox, patience)
        failed = len(inbox.refused) + len(inbox.missing())
        counts.images_missing += failed
        if listed and not failed and not self.only:
            files.mark_complete(self.study, self.rules, every)

    def _fetch(self, archive: Archive, listed: Sequence[Listed], inbox: Inbox, patience: Patience) -> None:
        """Asks for what is not here until all came, or nothing more comes."""
        fruitless = faults = 0
        while fruitless < _TRIES:
            missing = set(inbox.missing())
            wanted = [image for image in listed if image.instance in missing]
            if not wanted:
                return
            first = faults % len(wanted)  # not always the same one first: it may be what the PACS breaks down on
            try:
                archive.retrieve(self.study, wanted[first:] + wanted[:first], inbox)
            except PacsFault as fault:
                faults += 1
                try:
                    patience.wait(fault)
                except PacsFault:
                    _pass_over(fault, archive)
                    patience.refresh()
                    return
            else:
                fruitless = fruitless + 1 if len(inbox.missing()) == len(missing) else 0

    def _wanted(self, listed: Sequence[Listed]) -> list[Listed]:
        if self.only:
            return [image for image in listed if image.instance in self.only]
        return [
            image
            for image in listed
            if (not image.sop_class or image.sop_class in SOP_CLASSES)
            and (not self.modalities or not image.modality or image.modality in self.modalities)
        ]


def _patiently(patience: Patience, ask: Callable[[], T]) -> T:
    while True:
        try:
            answer = ask()
        except PacsFault as fault:
            patience.wait(fault)
        else:
            patience.refresh()
            return answer


def _pass_over(fault: PacsFault, archive: Archive) -> None:
    """Goes on to the next study if the PACS is there and well: one study must not decide about the others."""
    if fault.fault not in PASSING | OF_ONE_STUDY:
        raise fault
    try:
        archive.verify_connection()
    except PacsFault:
        raise fault from None


def is_here(files: PacsFiles, study: str, only: AbstractSet[str], rules: str) -> bool:
    """True if everything requested of a study came already."""
    if only:
        return all(files.has(study, instance) or instance in files.withdrawn for instance in only)
    return files.is_complete(study, rules)


def rules_of(modalities: Sequence[str]) -> str:
    """A text that changes when other images of a study would be wanted."""
    text = json.dumps([sorted(modalities), sorted(SOP_CLASSES)])
    return hashlib.sha256(text.encode()).hexdigest()
