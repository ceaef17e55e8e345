"""The site's own secret: it keys patients and file names, and never leaves the state folder."""

from __future__ import annotations

import os
from pathlib import Path

from ghostnet.errors import SiteError

SECRET_BYTES = 32


def load_or_create_secret(path: Path) -> bytes:
    """Reads the site's secret, or draws one from the operating system (mode 0600).

    Raises:
        SiteError: the file exists but is not a secret.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise SiteError(
                f"{path} holds {len(secret)} bytes, not {SECRET_BYTES}; restore it from your backup"
            ) from None
        return secret
    secret = os.urandom(SECRET_BYTES)
    with open(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    return secret
