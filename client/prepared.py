"""The state folders of this user and the images that they prepared, to notice that one image has two budgets.

A budget belongs to one state folder: a second site.toml over the same images has a ledger of its own, and neither knows
of the other. `ghostnet site check` tells when images were prepared elsewhere, too. Kept in `user_state()`: the paths of
state folders, and for each image a hash of its source under a key that never leaves this machine.

Not noticed: the same picture in another file (exported anew, as DICOM and as PNG), another user, another machine.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from client.secrets import load_or_create_secret
from ghostnet.errors import SiteError
from ghostnet.user_state import user_state

FILE, KEY_FILE = "prepared.sqlite", "prepared.key"
_DIGEST_BYTES = 16
_SCHEMA = "CREATE TABLE IF NOT EXISTS prepared (digest BLOB, state TEXT, PRIMARY KEY (digest, state)) WITHOUT ROWID"
_SHARED = (
    "SELECT other.state, count(*) FROM prepared AS mine JOIN prepared AS other USING (digest) "
    "WHERE mine.state = ? AND other.state != mine.state GROUP BY other.state ORDER BY other.state"
)
_WAIT_S = 30.0  # for another process of this user


def note_prepared(state: Path, sources: Iterable[bytes]) -> None:
    """Notes the images that a state folder has prepared, in place of what was noted of it before.

    Args:
        state: the state folder.
        sources: SENSITIVE: digest of each image's source. Whose patient has withdrawn is not among them any more.

    Raises:
        SiteError: it cannot be stored.
    """
    with _database() as (database, key):
        database.execute("DELETE FROM prepared WHERE state = ?", (str(state),))
        digests = {hmac.new(key, source, hashlib.sha256).digest()[:_DIGEST_BYTES] for source in sources}
        database.executemany("INSERT INTO prepared VALUES (?, ?)", [(digest, str(state)) for digest in digests])


def prepared_elsewhere(state: Path) -> dict[str, int]:
    """Other state folders that have prepared images of this one, and how many; also such as are gone now.

    Raises:
        SiteError: it cannot be read.
    """
    with _database() as (database, _):
        return dict(database.execute(_SHARED, (str(state),)).fetchall())


@contextmanager
def _database() -> Iterator[tuple[sqlite3.Connection, bytes]]:
    try:
        folder = user_state()
        key = load_or_create_secret(folder / KEY_FILE)
        path = folder / FILE
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(path, timeout=_WAIT_S)) as database, database:
            database.execute(_SCHEMA)
            yield database, key
    except (OSError, sqlite3.Error) as error:
        raise SiteError(
            f"which images were prepared by which state folder cannot be kept ({error}); name a folder that this user "
            "can write to with XDG_STATE_HOME"
        ) from None
