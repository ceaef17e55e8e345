"""The one folder that GhostNet keeps for a user outside runs and state folders.

`$XDG_STATE_HOME/ghostnet`, or `~/.local/state/ghostnet` where that variable is not set (XDG Base Directory
Specification 0.8). A coordinator keeps the ledger heads of hospitals there (`server.known_heads`), a hospital the
digests of images that its state folders have prepared (`client.prepared`).
"""

from __future__ import annotations

import os
from pathlib import Path


def user_state() -> Path:
    """The folder, made readable by its owner alone (0700) when it is not there.

    Raises:
        OSError: it cannot be made, or the user has no home folder and XDG_STATE_HOME is not set.
    """
    named = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not named.is_absolute():  # the specification: a relative path is ignored
        try:
            named = Path.home() / ".local" / "state"
        except RuntimeError:
            raise OSError("this user has no home folder; set XDG_STATE_HOME to a folder that it owns") from None
    folder = named / "ghostnet"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
