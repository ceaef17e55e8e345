"""Ledgers for tests: small real ones, and the ways in which a real one gets damaged."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ghostnet.accounting.epsilon import GaussianRelease, PoissonGaussianSteps
from ghostnet.evidence import keys
from ghostnet.evidence.ledger import Ledger
from ghostnet.evidence.witness import Witnessed, append_witness, default_witness, file_identity

PLAN = "a" * 64
DELTA = 1e-5
WARM = GaussianRelease(name="warm start", noise_multiplier=4.0)
STEPS = PoissonGaussianSteps(name="steps", sampling_rate=0.05, noise_multiplier=2.0, steps=50)
EVENTS = (WARM, STEPS)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def reserve(ledger: Ledger, run: str = "run-1", **changes: Any) -> None:
    """Reserves the small run, or a changed one."""
    values = {"plan_hash": PLAN, "events": EVENTS, "epsilon": 8.0, "delta": DELTA, "requests": ("warm", "round-1")}
    ledger.reserve(run_id=run, **{**values, **changes})


def busy_ledger(folder: Path) -> Path:
    """A ledger of seven entries: two runs, one commit, one crash, one countersigned head."""
    for name, content in _busy_files().items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    bear_witness(folder / "ledger.sqlite")
    return folder / "ledger.sqlite"


def bear_witness(path: Path) -> None:
    """What the second witness would hold if the ledger had grown where it lies: for files that a test has put there."""
    stored = rows(path)
    file = file_identity(path)
    line = Witnessed(
        ledger=json.loads(stored[0][1])["identity"], sequence=len(stored), head=stored[-1][2].decode(), **vars(file)
    )
    append_witness(default_witness(path), line)


@cache
def _busy_files() -> dict[str, bytes]:
    server = Ed25519PrivateKey.generate()
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "state"
        folder.mkdir()
        with Ledger.open(folder / "ledger.sqlite", site="north") as ledger:
            reserve(ledger)
            ledger.begin("run-1", "warm")
            ledger.commit("run-1", "warm", digest("warm"))
            head = ledger.head()
            signature = keys.sign(server, keys.head_document(site="north", head=head))
            ledger.countersign(head, keys.public_hex(server), signature)
            reserve(ledger, "run-2", events=(WARM,))
            ledger.begin("run-2", "warm")
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows(path: Path) -> list[tuple[int, bytes, bytes]]:
    with closing(sqlite3.connect(path)) as database:
        database.text_factory = bytes
        return database.execute("SELECT sequence, body, hash FROM entries ORDER BY sequence").fetchall()


def execute(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)


def forge(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """What an insider can do: changes entries, then renumbers and re-hashes the whole chain; the witness too."""
    documents = [json.loads(body) for _, body, _ in rows(path)]
    change(documents)
    execute(path, "DELETE FROM entries")
    previous = "0" * 64
    for sequence, document in enumerate(documents, start=1):
        document |= {"previous": previous, "sequence": sequence}
        body = keys.canonical_json(document)
        previous = hashlib.sha256(body).hexdigest()
        execute(path, "INSERT INTO entries VALUES (?, ?, ?)", sequence, body.decode(), previous)
    witness = keys.canonical_json({"head": previous, "sequence": len(documents)}) + b"\n"
    path.with_suffix(".head").write_bytes(witness)
