"""Images that a PACS sent of patients who have withdrawn: deleted, and by keyed hashes never fetched again.

The list holds no identifier: the patient's key and a keyed hash of each UID. It counts only for patients who are on the
list of exclusions; one who is taken off it is fetched again.
"""

from __future__ import annotations

import hmac
import re
import shutil
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

from client.deidentify.pseudonyms import patient_key
from client.intake.pacs.store import COMPLETE, SUFFIX, Withdrawn, is_uid, keyed_uid
from client.intake.sandbox.pool import read_patients
from client.intake.task import Limits
from ghostnet.durable import write_durably, write_unsynced
from ghostnet.errors import SiteError

FILE = "withdrawn.txt"
PATIENTS_FILE = "excluded.txt"
REVIEW = "review"
_LINE = re.compile(r"[0-9a-f]{64} [0-9a-f]{64}")


def read_withdrawn(state: Path, secret: bytes, excluded: Set[str]) -> Withdrawn:
    """The images of patients excluded now that are not fetched again.

    Args:
        state: the site's state folder.
        secret: the site's.
        excluded: keys of patients, as of `read_exclusions`.

    Raises:
        SiteError: the list cannot be read or is not what `forget_fetched` wrote.
    """
    lines = _lines(state)
    return Withdrawn(key=_key(secret), hashes=frozenset(uid for uid, patient in lines.items() if patient in excluded))


def forget_fetched(
    state: Path, folder: Path, names: Iterable[str], secret: bytes, excluded: Set[str], *, limits: Limits
) -> int:
    """Deletes those files whose patient is excluded, after noting that they are not to be fetched again.

    The patient is read, in a worker process, of every file that was left out, whatever for: one that waits for a
    person or cannot be decoded is theirs too. A file whose PatientID cannot be read stays.

    Args:
        state: the site's state folder.
        folder: where the PACS's files are: <study>/<instance>.dcm.
        names: SENSITIVE: paths below it, of files that were left out.
        secret: the site's.
        excluded: keys of patients.
        limits: what one file may cost.

    Returns:
        How many were deleted.

    Raises:
        SiteError: no worker can be started, or the list is not what this wrote.
        OSError: the list cannot be written, or a file cannot be deleted.
    """
    gone: dict[Path, str] = {}
    paths = [folder / name for name in names]
    for path, patient_id in zip(paths, read_patients(paths, limits=limits), strict=True):
        if patient_id.strip(" \t\r\n\0") and (patient := patient_key(secret, patient_id)) in excluded:
            gone[path] = patient
    if not gone:
        return 0
    emptied = {at: who for at, who in _folders(gone).items() if not set(at.glob(f"*{SUFFIX}")) - gone.keys()}
    noted = {path.stem: patient for path, patient in gone.items()} | {at.name: who for at, who in emptied.items()}
    key = _key(secret)
    lines = _lines(state) | {keyed_uid(key, uid): patient for uid, patient in noted.items() if is_uid(uid)}
    write_durably(state / FILE, "".join(f"{uid} {patient}\n" for uid, patient in sorted(lines.items())).encode())
    _delete(gone, emptied.keys() - {folder}, key)
    return len(gone)


def forget_review(state: Path, review: Path, excluded: Set[str]) -> bool:
    """Deletes a review whose pictures may show a patient who was not excluded yet when it was written.

    Args:
        state: the site's state folder; the keys of the excluded patients are noted in it.
        review: the folder with the review's pages.
        excluded: keys of patients.

    Returns:
        Whether there was one and it was deleted.

    Raises:
        OSError: it cannot be deleted, or the keys not be noted.
    """
    try:
        known = set((state / PATIENTS_FILE).read_text("ascii").split())
    except (FileNotFoundError, UnicodeDecodeError):
        known = set()
    if known == excluded:
        return False
    shown = bool(excluded - known) and review.is_dir()
    if shown:
        shutil.rmtree(review)
    write_durably(state / PATIENTS_FILE, "".join(f"{patient}\n" for patient in sorted(excluded)).encode())
    return shown


def _folders(gone: Mapping[Path, str]) -> dict[Path, str]:
    return {path.parent: patient for path, patient in gone.items()}


def _delete(gone: Iterable[Path], emptied: Set[Path], key: bytes) -> None:
    """Deletes files and folders in which none is left; lists of what came name the files by hashes from now on."""
    for path in gone:
        path.unlink(missing_ok=True)
        complete = path.parent / COMPLETE
        if path.parent not in emptied and complete.is_file():
            lines = complete.read_text("ascii").splitlines()
            kept = (keyed_uid(key, line) if line == path.stem else line for line in lines)
            write_unsynced(complete, "".join(f"{line}\n" for line in kept).encode())
    for folder in emptied:
        shutil.rmtree(folder, ignore_errors=True)


def _lines(state: Path) -> dict[str, str]:
    """The patient's key by the hash of a UID."""
    path = state / FILE
    try:
        lines = path.read_text("ascii").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SiteError(f"{path} cannot be read ({error.__class__.__name__}); restore or delete it") from None
    if any(not _LINE.fullmatch(line) for line in lines):
        raise SiteError(f"{path} has a line that GhostNet did not write; restore it, or delete it to fetch anew")
    return {line[:64]: line[65:] for line in lines}


def _key(secret: bytes) -> bytes:
    return hmac.digest(secret, b"withdrawn\0", "sha256")
