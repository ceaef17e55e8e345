"""The site's own secret: it keys patients and file names, and never leaves the state folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ghostnet.errors import SiteError

SECRET_BYTES = 32


def load_or_create_secret(path: Path) -> bytes:
    """Reads the site's secret, or draws one from the operating system (mode 0600).

    Raises:
        SiteError: the file exists but is not a secret.
    """
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{os.urandom(4).hex()}.new")
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first; its secret is the one that is read
            os.link(fresh, path)
        fresh.unlink()
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise SiteError(f"{path} holds {len(secret)} bytes, not {SECRET_BYTES}; restore it from your backup")
    return secret
