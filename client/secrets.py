"""The site's own secret: it keys patients and file names, and never leaves the state folder."""

from __future__ import annotations

import os
from pathlib import Path

from ghostnet.durable import create_durably, sync_folder
from ghostnet.errors import SiteError

SECRET_BYTES = 32


def load_or_create_secret(path: Path) -> bytes:
    """Reads the site's secret, or draws one from the operating system (mode 0600), in a new state folder too.

    Raises:
        SiteError: the file exists but is not a secret, or the state folder cannot be used.
    """
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_durably(path, os.urandom(SECRET_BYTES))
            sync_folder(path.parent)
        secret = path.read_bytes()
    except OSError as error:
        raise SiteError(
            f"{path} cannot be read or made ({error.strerror or error.__class__.__name__}); give this user access to "
            "the state folder of site.toml"
        ) from None
    if len(secret) != SECRET_BYTES:
        raise SiteError(f"{path} holds {len(secret)} bytes, not {SECRET_BYTES}; restore it from your backup")
    return secret
