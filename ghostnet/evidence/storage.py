"""The ledger's three files in the state folder: the database, the writer's lock and the newest head.

Every write is on the disk before its function returns. SQLite runs with synchronous=FULL and journal_mode=TRUNCATE:
this pair also syncs the end of the journal, so a power cut cannot bring a committed entry's journal back and undo it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ghostnet.durable import sync_folder, write_durably
from ghostnet.errors import LedgerError
from ghostnet.evidence.chain import Chain, Entry
from ghostnet.evidence.keys import canonical_json

Row = tuple[object, object, object]  # sequence, body, hash as SQLite holds them

_SCHEMA = "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL)"
_WRITER_WAIT_S = 30.0  # for a reader (a backup, a verification) that holds the file for a moment


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns whatever the disk or SQLite says into a LedgerError: storage that fails refuses, it never guesses."""
    try:
        yield
    except (OSError, UnicodeError, sqlite3.Error) as error:  # Unicode: SQLite quotes a damaged page in its message
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LedgerError(
            f"ledger {path} cannot be read or stored ({reason}); nothing more is released. Check the disk's space and "
            "rights, then start again"
        ) from None


def lock_writer(path: Path) -> int:
    """Takes the one writer's lock beside ledger `path`; the operating system drops it when the process ends.

    Returns:
        A file descriptor; closing it lets the next writer in.

    Raises:
        LedgerError: at once, when another writer has it.
    """
    lock = path.with_suffix(".lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise LedgerError(
            f"ledger {path} is in use by process {holder}; one writer at a time: wait until that run ends, or stop it"
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_in_use(path: Path) -> bool:
    """True if a writer has ledger `path` open now."""
    try:
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def connect(path: Path) -> sqlite3.Connection:
    """Opens (or creates, readable by its owner only) the database for its one writer."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=_WRITER_WAIT_S, isolation_level=None, check_same_thread=False)
    database.text_factory = bytes  # a flipped bit may not be UTF-8, and must still be named by its entry
    mode = database.execute("PRAGMA journal_mode=TRUNCATE").fetchone()[0]
    database.execute("PRAGMA synchronous=FULL")
    database.execute("PRAGMA fullfsync=ON")
    if (mode, database.execute("PRAGMA synchronous").fetchone()[0]) != (b"truncate", 2):
        database.close()
        raise LedgerError(f"ledger {path}: this SQLite does not sync every entry; keep the ledger on a local disk")
    return database


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Opens the database without the right to change it."""
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    database.text_factory = bytes
    return database


def read_rows(database: sqlite3.Connection, path: Path) -> list[Row]:
    """All rows in order of their number, read in one go so that a writer is never kept waiting.

    Raises:
        LedgerError: the database holds anything but a ledger's one table; one without any table gives no rows.
    """
    schema = database.execute("SELECT sql FROM sqlite_master").fetchall()
    if not schema:
        return []
    if schema != [(_SCHEMA.encode(),)]:
        raise LedgerError(f"{path} holds other tables, indexes or triggers than a ledger's; put the newest copy back")
    return database.execute("SELECT sequence, body, hash FROM entries ORDER BY sequence").fetchall()


def replay(rows: Iterable[Row], chain: Chain) -> Iterator[Entry]:
    """Takes stored rows into `chain`, each checked first.

    Raises:
        LedgerError: naming the first bad entry.
    """
    for sequence, body, digest in rows:
        if not (isinstance(body, bytes) and isinstance(digest, bytes)):
            raise LedgerError(f"ledger entry {len(chain) + 1}: its bytes or its hash are not text")
        entry = chain.check(sequence, body, digest.decode("ascii", "replace"))
        chain.add(entry)
        yield entry


def insert(database: sqlite3.Connection, entry: Entry, *, previous: str) -> None:
    """Appends one entry, fsynced, if the newest stored hash is still `previous`.

    The second look inside the transaction holds even where the lock file does not (two names of one file, a network
    disk without locks): two writers cannot both follow the same entry.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        if entry.sequence == 1:
            database.execute(_SCHEMA)
        _check_newest(database, entry, previous)
        row = (entry.sequence, entry.body, entry.hash)
        database.execute("INSERT INTO entries (sequence, body, hash) VALUES (?, ?, ?)", row)
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _check_newest(database: sqlite3.Connection, entry: Entry, previous: str) -> None:
    newest = database.execute("SELECT hash FROM entries ORDER BY sequence DESC LIMIT 1").fetchone()
    if entry.sequence > 1 and (newest is None or newest[0] != previous.encode()):
        raise LedgerError("the ledger was changed by another program while it was open here")


def write_head(path: Path, chain: Chain) -> None:
    """Writes the newest head beside ledger `path`, whole or not at all, and syncs it and its folder."""
    write_durably(path.with_suffix(".head"), canonical_json({"head": chain.head, "sequence": len(chain)}) + b"\n")
    sync_folder(path.parent)


def read_head(path: Path) -> tuple[int, str] | None:
    """The (sequence, head) written last beside ledger `path`; None where there is no such file.

    Raises:
        LedgerError: the file holds something else.
    """
    file = path.with_suffix(".head")
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        document = json.loads(text)
        sequence, head = document["sequence"], document["head"]
        good = type(sequence) is int and sequence >= 1 and isinstance(head, str)
        good = good and text == canonical_json(document) + b"\n" and len(document) == 2
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise LedgerError(f"{file} is damaged; put it back together with {path.name} from the newest copy of both")
    return sequence, head


def is_cut_off(path: Path) -> bool:
    """True if a crash left a transaction that SQLite undoes when it opens the database next."""
    journal = path.with_name(path.name + "-journal")
    return journal.exists() and journal.stat().st_size > 0
