"""Faults of a ledger that its own chain cannot show: what was seen of it, by whom, and is not there now.

Seen by `ledger.head` in the state folder, by the second witness outside it (`ghostnet.evidence.witness`), and by
the key and the run folders, which no hospital has before it has a ledger.

    what was done to the state folder                              noticed by
    ledger.sqlite restored, deleted or replaced                    ledger.head, the second witness
    that and ledger.head, or the whole folder                      the second witness
    the whole folder and the witness deleted, not the key or runs  the key, the runs
    all restored or copied as new files, the witness too           the second witness: other inode or time of birth
    all overwritten in place, the witness too                      the second witness: younger than its newest entry
    the same with times set back (cp -p), or a disk's snapshot     the coordinator's head, if it has seen a newer one
    all deleted, the witness and the key too; a second folder      nothing: its budget is another one
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostnet.errors import LedgerError
from ghostnet.evidence.chain import Chain
from ghostnet.evidence.storage import connect_to_read, is_in_use, read_head, read_rows, replay, storage_errors
from ghostnet.evidence.witness import (
    UNKNOWN,
    FileIdentity,
    Witnessed,
    default_witness,
    file_identity,
    read_history,
    read_witness,
)

KEY_NAME, RUNS_NAME = "site.key", "runs"  # beside the ledger, and made after it
_HOW_TO_GO_ON = "ghostnet site ledger SITE.toml tells more, and how to go on without (--adopt)"
_BACK = "Go on with the newest copy alone; without it this cohort's budget counts as spent"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is not as it was seen: its code (`chain.MISSING`) and a sentence."""

    missing: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """A person's decision to go on from a ledger of which something is missing.

    Attributes:
        reason: in words, for whoever reads the ledger later; at most `chain.MAX_REASON` characters.
        lost: heads that are known to have been there and are not, besides those that the witnesses know.
        missing: codes (`chain.MISSING`) of what is missing besides what the ledger itself sees.
    """

    reason: str
    lost: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The witnesses of a ledger; read before its entries, which a hospital at work only adds to."""

    path: Path
    file: FileIdentity | None  # the database; None where there is none
    witness_path: Path
    head: tuple[int, str] | None
    witness: Witnessed | None
    traces: tuple[str, ...]  # names of things that exist only after a ledger
    damaged: tuple[Fault, ...]  # files that cannot be read as what they are


def look_around(path: Path, witness_path: Path) -> Seen:
    """Reads what a ledger is held against: the head file, the second witness, and what exists only after a ledger.

    Raises:
        OSError: one of them cannot be read.
    """
    damaged = []
    head, witness = None, None
    try:
        head = read_head(path)
    except LedgerError as error:
        damaged.append(Fault(missing="head", text=str(error)))
    try:
        witness = read_witness(witness_path)
    except LedgerError as error:
        damaged.append(Fault(missing="witness", text=str(error)))
    return Seen(
        path=path,
        file=file_identity(path) if path.exists() else None,
        witness_path=witness_path,
        head=head,
        witness=witness,
        traces=tuple(_traces(path.parent)),
        damaged=tuple(damaged),
    )


def faults(seen: Seen, chain: Chain, *, is_writer: bool) -> Iterator[Fault]:
    """Everything about a ledger that is not as it was seen.

    Args:
        seen: what it is held against.
        chain: its entries, read after `seen`.
        is_writer: the caller holds the writer's lock, so that nobody adds entries meanwhile.
    """
    yield from seen.damaged
    if len(chain) == 0:
        yield from _lost_ledger(seen)
        return
    yield from _against_head(seen, chain, is_writer)
    yield from _against_witness(seen, chain, is_writer)


def require(found: tuple[Fault, ...], adoption: Adoption | None, seen: Seen, chain: Chain) -> None:
    """Nothing may be missing; for an adoption something must be, and no head that is said to be lost may be there.

    Raises:
        LedgerError: it is the other way round.
    """
    present = [head for head in adoption.lost if head in chain] if adoption is not None else []
    if present:
        raise LedgerError(f"{seen.path} holds entry {present[0]}: it is not lost; give only heads that are")
    if adoption is None and found:
        raise LedgerError(f"{found[0].text}. {_HOW_TO_GO_ON}")
    if adoption is not None and not (found or adoption.missing or adoption.lost):
        raise LedgerError(f"{seen.path} is in order; there is nothing to adopt")


def adopt_fields(adoption: Adoption, found: tuple[Fault, ...], seen: Seen, chain: Chain) -> dict[str, Any]:
    """Fields of the `adopt` entry: the reason, what was missing, and every head that was seen and is given up."""
    missing = {*(fault.missing for fault in found), *adoption.missing, *(["coordinator"] if adoption.lost else [])}
    heads = [*(witnessed.head for witnessed in read_history(seen.witness_path)), *adoption.lost]
    heads += [seen.head[1]] if seen.head else []
    lost = list(dict.fromkeys(head for head in heads if head not in chain))
    return {"reason": adoption.reason, "missing": sorted(missing), "lost": lost}


def is_behind(seen: Seen, chain: Chain) -> bool:
    """True if a witness is not at the newest entry, with the file as it is."""
    head, witness, newest = seen.head, seen.witness, len(chain)
    if head is None or witness is None or witness.modified_ns == UNKNOWN:
        return True
    return (head[0], witness.sequence) != (newest, newest)


def inspect_ledger(path: Path, *, witness: Path | None = None) -> tuple[Fault, ...]:
    """The faults that opening the ledger at `path` would refuse; reads only, also beside a running hospital.

    Raises:
        LedgerError: an entry is bad, or a file cannot be read.
    """
    path = path.resolve()
    chain = Chain()
    with storage_errors(path):
        is_writer = not is_in_use(path)
        seen = look_around(path, witness or default_witness(path))
        if seen.file is not None:
            with closing(connect_to_read(path)) as database:
                for _ in replay(read_rows(database, path), chain):
                    pass
    return tuple(faults(seen, chain, is_writer=is_writer))


def _traces(state: Path) -> Iterator[str]:
    if (state / KEY_NAME).exists():
        yield KEY_NAME
    runs = state / RUNS_NAME
    if runs.is_dir() and any(runs.iterdir()):
        yield f"{RUNS_NAME}/"


def _lost_ledger(seen: Seen) -> Iterator[Fault]:
    by = [*seen.traces]
    by += [seen.path.with_suffix(".head").name] if seen.head else []
    by += [str(seen.witness_path)] if seen.witness else []
    if by:
        be = "is" if len(by) == 1 else "are"
        yield Fault(
            missing="ledger",
            text=f"{seen.path} is missing or empty, but {', '.join(by)} {be} there: there was a ledger. {_BACK}",
        )


def _against_head(seen: Seen, chain: Chain, is_writer: bool) -> Iterator[Fault]:
    name = seen.path.with_suffix(".head").name
    if seen.head is not None:
        yield from head_faults(seen.path, chain, *seen.head, by=name)
        if is_writer:
            yield from _unwitnessed(seen.path, chain, seen.head[0], by=name)
    elif len(chain) > 1 and not any(fault.missing == "head" for fault in seen.damaged):
        # A crash can leave the first entry without it, no other.
        yield Fault(
            missing="head", text=f"{name} is missing beside {seen.path}: put it back from the newest copy of both"
        )


def head_faults(path: Path, chain: Chain, sequence: int, head: str, *, by: str) -> Iterator[Fault]:
    """The fault of a chain that lacks the entry that `by` has seen."""
    if sequence > len(chain):
        yield Fault(
            missing="entries",
            text=f"{path} ends at entry {len(chain)}, but {by} has seen entry {sequence}: an old copy was put back, or "
            f"the file was cut. {_BACK}",
        )
    elif chain.heads[sequence - 1] != head:
        yield Fault(
            missing="fork",
            text=f"{path} has another entry {sequence} than {by} has seen: it is a fork, or another ledger. {_BACK}",
        )


def _unwitnessed(path: Path, chain: Chain, sequence: int, *, by: str) -> Iterator[Fault]:
    """A crash leaves one entry that is not witnessed, and the next opening makes up for it; more is no crash."""
    if len(chain) > sequence + 1:
        yield Fault(
            missing="unwitnessed",
            text=f"{path} has {len(chain)} entries and {by} has seen {sequence}: they were written without it, or an "
            f"old copy of {by} was put back. Put its newest copy back",
        )


def _against_witness(seen: Seen, chain: Chain, is_writer: bool) -> Iterator[Fault]:
    witness, by = seen.witness, str(seen.witness_path)
    if witness is None:
        is_new = len(chain) == 1 and not seen.traces  # a crash can leave the first entry without it
        if not is_new and not any(fault.missing == "witness" for fault in seen.damaged):
            yield Fault(
                missing="witness",
                text=f"witness {by} of {seen.path} is missing: the state folder was copied, moved or restored, or the "
                "disk of the witness is not there. Put the newest copies back where they were",
            )
        return
    if witness.ledger != chain.identity:
        yield Fault(missing="fork", text=f"witness {by} is of another ledger than {seen.path}. {_BACK}")
        return
    found = [*head_faults(seen.path, chain, witness.sequence, witness.head, by=by)]
    if is_writer:
        found += _unwitnessed(seen.path, chain, witness.sequence, by=by)
    yield from found or _against_file(seen, chain, witness, is_writer)


def _against_file(seen: Seen, chain: Chain, witness: Witnessed, is_writer: bool) -> Iterator[Fault]:
    file = seen.file
    if file is None:  # made since: there was nothing to restore
        return
    if (file.inode, file.born_ns) != (witness.inode, witness.born_ns):
        yield Fault(
            missing="file",
            text=f"{seen.path} is not the file that witness {seen.witness_path} knows: the state folder was restored "
            f"from a copy, or copied, and may lack newer entries. {_BACK}",
        )
    elif is_writer and len(chain) == witness.sequence and UNKNOWN != witness.modified_ns < file.modified_ns:
        yield Fault(
            missing="file",
            text=f"{seen.path} was written to after the newest entry that witness {seen.witness_path} knows: a copy "
            f"was put back over it, or another program changed it. {_BACK}",
        )
