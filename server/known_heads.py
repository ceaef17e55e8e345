"""The coordinator's memory of hospitals: the last ledger head of each, by its key, over all runs and output folders.

Lives in `user_state()`, not in a run's folder: a hospital whose ledger was restored between two runs is noticed by the
second run, wherever that writes to. A ledger belongs to a hospital and not to a federation, so heads are kept by key
alone. SQLite with full syncs: a head is noted whole or not at all, and several coordinators may use the file at once.
Heads are hashes of public values.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from ghostnet.errors import FederationError
from ghostnet.exchange import messages, protocol
from ghostnet.user_state import user_state

FILE = "known_heads.sqlite"
_SCHEMA = "CREATE TABLE IF NOT EXISTS heads (public_key TEXT PRIMARY KEY, head TEXT NOT NULL, seen REAL NOT NULL)"
_WAIT_S = 30.0  # for another coordinator


class KnownHeads:
    """Last head of each hospital.

    Args:
        folder: where the file is; `user_state()` when None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def newest(self) -> list[tuple[str, str]]:
        """(public key, head) of the hospitals seen last, as many as a JOIN carries.

        Raises:
            FederationError: the file cannot be read.
        """
        with self._database() as database:
            statement = "SELECT public_key, head FROM heads ORDER BY seen DESC, public_key LIMIT ?"
            return database.execute(statement, (messages.MAX_KNOWN_HEADS,)).fetchall()

    def head(self, public_key: str) -> str:
        """The last head of one hospital; "" where none was seen.

        Raises:
            FederationError: the file cannot be read.
        """
        with self._database() as database:
            found = database.execute("SELECT head FROM heads WHERE public_key = ?", (public_key,)).fetchone()
        return "" if found is None else str(found[0])

    def note(self, heads: Mapping[str, str]) -> None:
        """Keeps heads by public key; on the disk when this returns.

        Raises:
            FederationError: they cannot be stored; a run without them would let a restored ledger pass later.
            ValueError: one is no head; every later run would send it to every hospital, and each would refuse it.
        """
        if not heads:
            return
        if not all(map(protocol.is_head, heads.values())):
            raise ValueError("a ledger head is 64 hexadecimal digits")
        now = time.time()
        with self._database() as database:
            rows = [(key, head, now) for key, head in heads.items()]
            database.executemany("INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", rows)

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        path = Path(FILE)
        try:
            path = (self._folder or user_state()) / FILE
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(path, timeout=_WAIT_S)) as database, database:
                database.execute("PRAGMA synchronous=FULL")
                database.execute(_SCHEMA)
                yield database
        except (OSError, sqlite3.Error) as error:
            raise FederationError(
                f"the hospitals' last ledger heads cannot be kept in {path} ({error}); name a folder that this user "
                "can write to with XDG_STATE_HOME"
            ) from None
