"""Answers that left, or may have left: kept byte for byte, so that a repeated request is never a second draw."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors.numpy import load

from ghostnet.durable import sync_folder, write_durably
from ghostnet.errors import LedgerError
from ghostnet.exchange.arrays import Arrays, to_bytes


def write_reply(path: Path, arrays: Arrays) -> str:
    """Stores an answer durably and returns its SHA-256 (`weights.arrays_sha256`), for the ledger's commit."""
    data = to_bytes(arrays)
    write_durably(path, data)
    sync_folder(path.parent)
    return hashlib.sha256(data).hexdigest()


def read_reply(path: Path, digest: str) -> Arrays:
    """The stored answer, if its bytes are still those that the ledger committed to.

    Raises:
        LedgerError: the file is missing or changed; the request stays answered and cannot be drawn again.
    """
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise LedgerError(
            f"the stored answer {path.name} is not the one the ledger committed to; "
            "it cannot be drawn again: start a new run"
        )
    return load(data)
