"""The ledger's second witness, outside the state folder: one line for each entry, appended and synced.

The file is only ever appended to, so it may lie on another disk, be made append-only (`chattr +a`) or lie on a WORM
share that takes appends. A line names the ledger, its newest entry, and the database file itself: inode and time of
birth, since a folder that was restored, copied or moved to another disk holds another file even if every byte is the
same; and its time of modification, since a file that was overwritten in place is younger than its newest entry.

A crash in the middle of an append leaves a line without its end. It counts as not written; the next append closes it
with an exclamation mark.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ghostnet.durable import sync_folder
from ghostnet.errors import LedgerError
from ghostnet.evidence.keys import DIGEST, canonical_json

SUFFIX = ".witness"
UNKNOWN = 0
_NUMBERS = ("sequence", "inode", "born_ns", "modified_ns")  # written as texts: JSON's numbers are exact to 2^53 only
_WHOLE = re.compile(r"0|[1-9][0-9]{0,19}")
_TAIL = 16_384  # bytes read at the end; a line has about 250
_CLOSED = b"!"  # last byte of a line that was cut off

_AT_FDCWD, _STATX_BTIME = -100, 0x800
_STATX_BYTES, _BTIME_OFFSET = 256, 80  # of struct statx, the same on every Linux


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """A file as the file system knows it."""

    inode: int
    born_ns: int  # time of birth; 0 where the file system keeps none
    modified_ns: int


@dataclass(frozen=True, kw_only=True)
class Witnessed:
    """One line: what was seen of a ledger after an entry."""

    ledger: str  # identity in its open entry
    sequence: int
    head: str
    inode: int
    born_ns: int
    modified_ns: int  # of the database after that entry; UNKNOWN while a cut-off transaction is being undone


def default_witness(ledger: Path) -> Path:
    """Beside the state folder: `/x/north.witness` for `/x/north/ledger.sqlite`."""
    state = ledger.parent
    return state.with_name(state.name + SUFFIX)


def file_identity(path: Path) -> FileIdentity:
    """Inode, time of birth (statx) and of modification.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    return FileIdentity(inode=found.st_ino, born_ns=_born_ns(path), modified_ns=found.st_mtime_ns)


def append_witness(path: Path, witnessed: Witnessed) -> None:
    """Appends a line and syncs it.

    Raises:
        OSError: it cannot be stored.
    """
    line = canonical_json({name: str(value) for name, value in asdict(witnessed).items()}) + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = _CLOSED + b"\n" + line
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if size == 0:
        sync_folder(path.parent)


def read_witness(path: Path) -> Witnessed | None:
    """The newest line; None where there is no file, or no whole line in it.

    Raises:
        LedgerError: the newest whole line is damaged.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            whole = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    written = [line for line in (whole if size <= _TAIL else whole[1:]) if not line.endswith(_CLOSED)]
    if not written and size <= _TAIL:
        return None
    newest = _parse(written[-1]) if written else None
    if newest is None:
        raise LedgerError(f"witness {path} is damaged; put its newest copy back")
    return newest


def read_history(path: Path) -> Iterator[Witnessed]:
    """Every line that can be read, oldest first; for telling what was lost.

    Raises:
        OSError: the file cannot be read; a missing one has no lines.
    """
    if path.exists():
        with path.open("rb") as file:
            yield from (witnessed for line in file if (witnessed := _parse(line.rstrip(b"\n"))) is not None)


def _parse(line: bytes) -> Witnessed | None:
    try:
        document = json.loads(line)
        good = canonical_json(document) == line and all(_WHOLE.fullmatch(document[name]) for name in _NUMBERS)
        witnessed = Witnessed(**document | {name: int(document[name]) for name in _NUMBERS})
        good = good and witnessed.sequence >= 1
        good = good and all(DIGEST.fullmatch(text) for text in (witnessed.ledger, witnessed.head))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return witnessed if good else None


def _born_ns(path: Path) -> int:
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except (OSError, AttributeError):
        return 0
    found = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, found) != 0:
        return 0
    if not struct.unpack_from("=I", found)[0] & _STATX_BTIME:
        return 0
    seconds, nanoseconds = struct.unpack_from("=qI", found, _BTIME_OFFSET)
    return max(0, int(seconds) * 10**9 + int(nanoseconds))
