"""Answers that left, or may have left: kept byte for byte, so that a repeated request is never a second draw."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from safetensors.numpy import load, save

from ghostnet.errors import LedgerError
from ghostnet.weights import Arrays


def write_reply(path: Path, arrays: Arrays) -> str:
    """Stores an answer durably and returns its SHA-256, for the ledger's commit."""
    data = save(arrays)
    temporary = path.with_suffix(".tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
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
