"""Images of held modalities that a person at the hospital has seen and let pass: state/approved.csv.

An image is named by a keyed hash of its file's content and of all that decides what the person saw of it: how many of
its frames are used, what the site does about text, and the code that blanks it. When one of them changes, the image is
held again. The file holds keys and dates: no name, no path.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache as once
from pathlib import Path

import client.deidentify
from client.config import SiteConfig
from client.deidentify.pseudonyms import content_key
from client.intake.files import Job, file_digest
from ghostnet.durable import write_unsynced
from ghostnet.errors import SiteError

FILE = "approved.csv"
_BLANKING = ("burned_in.py", "text_detector.py", "text_blocks.py", "text_strokes.py", "regions.py")
_HEADER = ["key", "date"]
_KEY = re.compile(r"[0-9a-f]{64}")


def shown_rules(config: SiteConfig) -> str:
    """The settings that decide how a file's images look to the person who approves them."""
    deidentify = config.deidentify
    rules = [config.data.frames_per_file, deidentify.burned_in, sorted(deidentify.trusted_modalities), _blanking_code()]
    return json.dumps(rules)


@once
def _blanking_code() -> str:
    """Changes with any line of the code that finds and blanks text: it may come to blank less than was seen."""
    digest, here = hashlib.sha256(), Path(str(client.deidentify.__file__)).parent
    for name in _BLANKING:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()


def approval_key(secret: bytes, digest: bytes, shown: str) -> str:
    """64 hex digits that stand for what a person sees of a file.

    Args:
        secret: the site's.
        digest: SHA-256 of the file.
        shown: from `shown_rules`.
    """
    return content_key(secret, b"approval", digest, shown.encode())


def read_approvals(state: Path) -> dict[str, str]:
    """The date of each approval by its key; empty if there is none.

    Raises:
        SiteError: the file cannot be read or is not what `write_approvals` wrote: an approval is never guessed.
    """
    path = state / FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SiteError(f"{path} cannot be read ({error.__class__.__name__}); restore it or delete it") from None
    wrong = sum(len(row) != 2 or not _KEY.fullmatch(row[0]) or not _is_date(row[1]) for row in rows[1:])
    if rows[:1] != [_HEADER] or wrong:
        raise SiteError(f"{path} has {wrong or 1} line(s) that `ghostnet site review` did not write; delete them")
    return {key: date for key, date in rows[1:]}


def write_approvals(state: Path, approvals: Mapping[str, str]) -> None:
    """Replaces the approvals, whole or not at all; mode 0600."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(_HEADER)
    writer.writerows(sorted(approvals.items()))
    state.mkdir(parents=True, exist_ok=True)
    write_unsynced(state / FILE, lines.getvalue().encode())


def approve(state: Path, keys: Sequence[str]) -> int:
    """Adds approvals, dated today; how many are new."""
    known = read_approvals(state)
    today = datetime.datetime.now().astimezone().date().isoformat()
    new = {key: today for key in keys if key not in known}
    write_approvals(state, known | new)
    return len(new)


def revoke(state: Path, keys: Sequence[str]) -> int:
    """Takes approvals back; how many there were. The images are held again from the next intake on."""
    known = read_approvals(state)
    gone = set(keys) & known.keys()
    write_approvals(state, {key: date for key, date in known.items() if key not in gone})
    return len(gone)


def with_approval(job: Job, secret: bytes, shown: str, approvals: Mapping[str, str]) -> Job:
    """The job, marked if a person approved its file. One that cannot be read stays as it is: a worker says so."""
    if not approvals:
        return job
    try:
        digest = file_digest(job.task.path)
    except OSError:
        return job
    approved = approval_key(secret, digest, shown) in approvals
    return dataclasses.replace(job, digest=digest, task=dataclasses.replace(job.task, approved=approved))


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True
