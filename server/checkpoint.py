"""A coordinator's state, kept so that a run that was cut off can go on.

Lives in RUN/server: run.json (run id, plan hash, rounds done, ledger heads, timings), the signing key, and the released
values as safetensors. Everything here is public except the key.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tomli_w
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

from ghostnet.durable import PUBLIC, write_durably
from ghostnet.errors import RunFolderError
from ghostnet.evidence import keys
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays, to_bytes
from ghostnet.plan import Plan
from server.conversation import Hospital, Known, Timing, tenths

RELEASED = "released"
"""Name under which the warm start's release is saved."""

TRANSCRIPT = "transcript"
"""Name under which the hospitals' last answers are saved, as they are published (`ghostnet.certificate.transcript`)."""

_ROUND, _NUMBER = "round", "rounds_done"
_WEIGHTS, _OPTIMIZER = "weights.", "optimizer."


@dataclass
class Checkpoint:
    """A run folder's progress; open it with `Checkpoint.open`."""

    out: Path
    run_id: str
    plan_hash: str
    rounds_done: int = 0
    finished: bool = False
    known: dict[str, Known] = field(default_factory=dict)
    contributors: list[str] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    server_s: dict[str, float] = field(default_factory=dict)
    roster: str = ""  # pooled: the hospitals of this run with their mask keys, as they all have it
    arrays: dict[str, Arrays] = field(default_factory=dict)
    weights: Arrays = field(default_factory=dict)
    optimizer: Arrays = field(default_factory=dict)

    @classmethod
    def open(cls, out: Path, plan: Plan, *, resume: bool) -> Checkpoint:
        """Starts a run in folder `out`, or takes up the one that it holds.

        Raises:
            RunFolderError: the folder holds another run, a finished one, or an unfinished one without `resume`.
        """
        check_free(out, resume=resume)
        record = out / "server" / "run.json"
        if record.exists():
            return cls._load(out, json.loads(record.read_text()), plan)
        (out / "server").mkdir(parents=True, exist_ok=True)
        checkpoint = cls(out=out, run_id=secrets.token_hex(16), plan_hash=plan.hash())
        write_durably(out / "plan.toml", tomli_w.dumps(plan.to_dict()).encode(), mode=PUBLIC)
        checkpoint._write_record()
        return checkpoint

    @classmethod
    def _load(cls, out: Path, record: dict[str, object], plan: Plan) -> Checkpoint:
        if record["plan_hash"] != plan.hash():
            raise RunFolderError(f"{out} holds a run of another plan; give that plan, or another --out")
        timings = [Timing(**entry) for entry in record.pop("timings")]  # type: ignore[attr-defined]
        known = {name: Known(**entry) for name, entry in record.pop("known").items()}  # type: ignore[attr-defined]
        checkpoint = cls(out=out, timings=timings, known=known, **record)  # type: ignore[arg-type]
        for path in (out / "server").glob("*.safetensors"):
            checkpoint.arrays[path.stem] = load_file(path)
        checkpoint._take_round(checkpoint.arrays.pop(_ROUND, {}))
        return checkpoint

    @property
    def key(self) -> Ed25519PrivateKey:
        """The coordinator's signing key of this run."""
        return keys.load_or_create_key(self.out / "server" / "server.key")

    @property
    def released(self) -> Arrays:
        """The hospitals' total release of the warm start, as it is sent on; empty without one."""
        return self.arrays.get(RELEASED, {})

    @property
    def transcript(self) -> Arrays:
        """The hospitals' last answers, as they are published; empty where none can be."""
        return self.arrays.get(TRANSCRIPT, {})

    @property
    def staged(self) -> Path:
        """The sampler's folder before it is published; hospitals sign its files for good, so it outlives an attempt."""
        return self.out / "server" / "sampler"

    @property
    def released_mean(self) -> torch.Tensor | None:
        """The warm start's mean, (embedding.size,); None without one."""
        mean = self.released.get(protocol.RELEASED_MEAN)
        return None if mean is None else torch.from_numpy(np.array(mean))

    def save(self, name: str, arrays: Arrays) -> None:
        """Keeps released arrays under a name."""
        self.arrays[name] = arrays
        write_arrays(self.out / "server" / f"{name}.safetensors", arrays)

    def save_round(self, rounds_done: int, weights: Arrays, optimizer: Arrays | None = None) -> None:
        """Keeps what a round left: weights, the server optimiser's moments and the round's number, in one file.

        A crash leaves the round before or this one, never new weights with old moments.
        """
        parts = {_WEIGHTS: weights, _OPTIMIZER: optimizer or {}}
        kept = {f"{part}{name}": array for part, arrays in parts.items() for name, array in arrays.items()}
        self.save(_ROUND, {**kept, _NUMBER: np.array([rounds_done], dtype=np.int64)})
        self._take_round(self.arrays.pop(_ROUND))
        self._write_record()

    def _take_round(self, kept: Arrays) -> None:
        if kept:
            self.rounds_done = int(kept[_NUMBER][0])
            self.weights, self.optimizer = (
                {name.removeprefix(part): array for name, array in kept.items() if name.startswith(part)}
                for part in (_WEIGHTS, _OPTIMIZER)
            )

    def note_roster(self, text: str) -> None:
        """Keeps a pooled run's roster: it must be the same at every hospital and in every attempt."""
        self.roster = text
        self._write_record()

    def note(self, hospitals: Iterable[Hospital]) -> None:
        """Keeps each hospital's key and newest ledger head, to notice another or an older one; and who has released."""
        for hospital in hospitals:
            self.known[hospital.name] = Known(public_key=hospital.public_key, ledger_head=hospital.ledger_head)
            if hospital.answered and hospital.name not in self.contributors:
                self.contributors.append(hospital.name)
        self._write_record()

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        """Adds the wall time of the block to what the coordinator itself spent on this work."""
        started = time.monotonic()
        yield
        self.server_s[work] = self.server_s.get(work, 0.0) + time.monotonic() - started

    def finish(self) -> None:
        """Marks the run as published."""
        self.finished = True
        self._write_record()

    def _write_record(self) -> None:
        record = {
            "run_id": self.run_id,
            "plan_hash": self.plan_hash,
            "rounds_done": self.rounds_done,
            "finished": self.finished,
            "known": {name: dataclasses.asdict(known) for name, known in self.known.items()},
            "contributors": self.contributors,
            "timings": [timing.to_dict() for timing in self.timings],
            "server_s": {work: tenths(wall) for work, wall in self.server_s.items()},
            "roster": self.roster,
        }
        write_durably(self.out / "server" / "run.json", (json.dumps(record, indent=2) + "\n").encode(), mode=PUBLIC)


def check_free(out: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something else than a run to take up.

    Raises:
        RunFolderError: says what is there and what to do.
    """
    record = out / "server" / "run.json"
    if record.exists():
        if json.loads(record.read_text())["finished"]:
            raise RunFolderError(f"{out} holds a finished run; choose another --out, or delete it")
        if not resume:
            raise RunFolderError(f"{out} holds an unfinished run; add --resume to go on, or choose another --out")
    elif (out / "sampler").exists() or (out / "plan.toml").exists():
        raise RunFolderError(f"{out} holds files that are not a run to resume; choose another --out")


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Writes safetensors, synced; the file is replaced as a whole or not at all."""
    write_durably(path, to_bytes(arrays), mode=PUBLIC)
