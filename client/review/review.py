"""Review by a person before images of held modalities are used: pictures before and after blanking.

Everything here is SENSITIVE and stays in the state folder: the pictures show what was burned into the images.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from client.config import SiteConfig
from client.exclusions import read_exclusions
from client.intake.approvals import approval_key, shown_rules
from client.intake.cache import Entry
from client.intake.files import Job, file_digest, prepare_jobs
from client.intake.sandbox.pool import prepare_files
from client.intake.sources import SortedFiles, sort_files
from client.intake.task import Limits, Prepared
from client.quarantine import Code
from client.review.page import Card, Counts, render_pages
from ghostnet.durable import write_unsynced
from ghostnet.errors import SiteError
from ghostnet.plan import ImageSpec
from ghostnet.progress import Progress, silent

FOLDER = "review"
SHOWN = "shown.txt"
"""Keys that the last review showed and that can be approved, one a line: --approve-all means these."""

BLANKED_SAMPLE = 24  # images with blanked text, in the order of their keys, which is as good as random
MAX_HELD = 300  # pictures in one review; the rest waits for the next one
_BOX = (220, 38, 38)


@dataclass(frozen=True, kw_only=True)
class Review:
    """The result of a review. Counts are SENSITIVE.

    Attributes:
        page: index.html.
        counts: as at the top of the page.
    """

    page: Path
    counts: Counts


def write_review(
    config: SiteConfig,
    image: ImageSpec,
    secret: bytes,
    progress: Progress = silent,
    *,
    folder: Path | None = None,
    limits: Limits | None = None,
    workers: int | None = None,
) -> Review:
    """Prepares held images and a sample of blanked ones, and writes the page that shows them.

    Args:
        config: the site.
        image: the plan's image.
        secret: the site's.
        progress: called with ("images", done, total).
        folder: where the page goes; None is state/review. What an earlier review left there is removed.
        limits: what one file may cost.
        workers: processes that decode; None is one a core.

    Raises:
        SiteError: the data is an NPZ file, or a folder cannot be read or written.
        DataError: the label table does not fit the plan.
    """
    if config.data.kind == "npz":
        raise SiteError("[data].kind = 'npz' has nothing to review: an NPZ file is taken as it is; use it for images")
    folder, limits = folder or config.state / FOLDER, limits or Limits()
    excluded = read_exclusions(config.cohort.exclude, secret) if config.cohort.exclude else frozenset()
    _check_folder(folder)
    files = sort_files(config, image, secret, progress, excluded=excluded, limits=limits)
    try:
        entries, _ = prepare_jobs(
            files.jobs,
            config.state / "cache",
            files.settings,
            secret,
            progress,
            excluded=excluded,
            limits=limits,
            workers=workers,
        )
        held, blanked = _worth_seeing(config, secret, files, entries)
        shown = [*held[:MAX_HELD], *blanked[:BLANKED_SAMPLE]]
        cards = _cards(shown, files, progress, limits=limits, workers=workers)
        counts = Counts(
            held=len(held),
            shown=min(len(held), MAX_HELD),
            approvable=sum(card.code == Code.HELD.value and bool(card.frames) for card in cards),
            approved=sum(job.task.approved for job in files.jobs),
            blanked=len(blanked),
            blanked_shown=min(len(blanked), BLANKED_SAMPLE),
        )
        return Review(page=_write(folder, cards, counts, config), counts=counts)
    except OSError as error:
        kind = error.strerror or error.__class__.__name__
        raise SiteError(f"the review cannot be written ({kind}); check space and access, then start again") from None


def shown_keys(folder: Path) -> list[str]:
    """Keys that the last review showed and that can be approved.

    Raises:
        SiteError: there was no review.
    """
    try:
        return (folder / SHOWN).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        raise SiteError(f"{folder} holds no review; run `ghostnet site review` without --approve first") from None


@dataclass(frozen=True, kw_only=True)
class _Shown:
    key: str
    code: Code | None  # HELD, or None for a sample of what was taken
    job: Job


def _worth_seeing(
    config: SiteConfig, secret: bytes, files: SortedFiles, entries: Sequence[Entry | Code]
) -> tuple[list[_Shown], list[_Shown]]:
    """Held images, and images that are taken and had text blanked, each in the order of their keys."""
    held, blanked = [], []
    for job, entry in zip(files.jobs, entries, strict=True):
        if entry is Code.HELD:
            held.append(_shown(config, secret, job, Code.HELD))
        elif isinstance(entry, Entry) and any(entry.blanked):
            blanked.append(_shown(config, secret, job, None))
    return sorted(held, key=_by_key), sorted(blanked, key=_by_key)


def _shown(config: SiteConfig, secret: bytes, job: Job, code: Code | None) -> _Shown:
    digest = file_digest(job.task.path)
    return _Shown(key=approval_key(secret, digest, shown_rules(config)), code=code, job=job)


def _by_key(shown: _Shown) -> str:
    return shown.key


def _cards(
    shown: Sequence[_Shown], files: SortedFiles, progress: Progress, *, limits: Limits, workers: int | None
) -> list[Card]:
    settings = dataclasses.replace(files.settings, thumbnails=True)
    tasks = [dataclasses.replace(item.job.task, approved=True) for item in shown]  # so that held ones are prepared
    cards: dict[int, Card] = {}
    for index, outcome in prepare_files(tasks, settings, limits=limits, workers=workers):
        cards[index] = _card(shown[index], outcome)
        progress("pictures", len(cards), len(tasks))
    return [cards[index] for index in range(len(shown))]


def _card(item: _Shown, outcome: Prepared | Code) -> Card:
    if isinstance(outcome, Code) or outcome.thumbnails is None:
        code = outcome if isinstance(outcome, Code) else Code.PREPARE
        return Card(key=item.key, code=code.value, held=item.code is Code.HELD)
    return Card(
        key=item.key,
        code=item.code.value if item.code else "",
        held=item.code is Code.HELD,
        modality=outcome.record.modality,
        rows=outcome.record.rows,
        columns=outcome.record.columns,
        blanked=sum(outcome.blanked),
        frames=tuple((outlined(before, after), after) for before, after in outcome.thumbnails),
    )


def outlined(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture before blanking, with a red frame around every part that was blanked; (h,w) twice to (h,w,3)."""
    changed = cv2.dilate((before != after).astype(np.uint8), np.ones((9, 9), np.uint8))
    _, _, parts, _ = cv2.connectedComponentsWithStats(changed)
    drawn = np.repeat(before[..., None], 3, axis=2)
    for x, y, width, height, _ in parts[1:]:  # the first is what did not change
        cv2.rectangle(drawn, (int(x), int(y)), (int(x + width) - 1, int(y + height) - 1), _BOX, 1)
    return drawn


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SiteError(f"{folder} is a file; name a folder for the review")
    if folder.exists() and any(folder.iterdir()) and not (folder / SHOWN).is_file():
        raise SiteError(f"{folder} holds something other than a review; name another folder, or empty this one")


def _write(folder: Path, cards: Sequence[Card], counts: Counts, config: SiteConfig) -> Path:
    """Replaces the folder's content; folder 0700, files 0600."""
    _check_folder(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    approvable = [card.key for card in cards if card.held and card.frames]
    write_unsynced(folder / SHOWN, "".join(f"{key}\n" for key in approvable).encode())
    for name, page in render_pages(cards, counts, site=config.source.name, folder=str(folder)):
        write_unsynced(folder / name, page.encode())
    return folder / "index.html"
