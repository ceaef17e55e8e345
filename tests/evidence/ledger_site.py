"""A hospital's process, killed anywhere: run as a program, it forks hospitals, kills them, and looks at what is left.

    python -m tests.evidence.ledger_site FOLDER LINE_KILLS TIMED_KILLS SEED

A hospital reserves a run, and answers two requests by the rule of the ledger: begin, draw, store, commit, send. It
writes every draw and every send to a log that survives the kill. Half of the kills come at the k-th line executed in
the ledger or in the hospital, the timed ones anywhere, inside SQLite's own writes too. Prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from ghostnet.accounting.composition import compose
from ghostnet.errors import LedgerError
from ghostnet.evidence.ledger import Ledger, verify_ledger
from tests.evidence.ledgers import PLAN, WARM

REQUESTS = ("warm", "round-1")
TRACED = (
    *(f"ghostnet/evidence/{name}.py" for name in ("ledger", "storage", "faults", "witness", "chain")),
    "ghostnet/durable.py",
    __file__,
)
RUNS_A_FOLDER = 12


def log(folder: Path, *words: str) -> None:
    """Appends one line in one write; a SIGKILL loses nothing that was written."""
    descriptor = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, (" ".join(words) + "\n").encode())
    os.close(descriptor)


def hospital(
    folder: Path, run: str, opened: Callable[[], None] = lambda: None, ledger_type: type[Ledger] = Ledger
) -> None:
    """One process of one hospital; started again after a kill, it goes on where the ledger lets it."""
    with ledger_type.open(folder / "ledger.sqlite", site="north") as ledger:
        opened()
        ledger.reserve(run_id=run, plan_hash=PLAN, events=(WARM,), epsilon=100.0, delta=1e-5, requests=REQUESTS)
        for request in REQUESTS:
            stored = folder / f"{run}.{request}"
            if ledger.state(run, request) == "begun":
                continue  # spent
            if ledger.state(run, request) == "new":
                ledger.begin(run, request)
                log(folder, "draw", run, request)
                stored.write_bytes(os.urandom(16))
                ledger.commit(run, request, hashlib.sha256(stored.read_bytes()).hexdigest())
            sent = hashlib.sha256(stored.read_bytes()).hexdigest()
            if sent != ledger.digest(run, request):
                raise ValueError(f"{run} {request}: the stored bytes are not the committed ones")
            log(folder, "send", run, request, sent)


class LineKiller:
    """Kills this process at the k-th line executed in the traced files; only counts for k = 0."""

    def __init__(self, line: int) -> None:
        self.line, self.count = line, 0

    def start(self) -> None:
        """From here on lines are counted, in the frames that are open already too."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.endswith(TRACED):
                frame.f_trace = self._on_line
            frame = frame.f_back
        sys.settrace(self._on_call)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._on_line if frame.f_code.co_filename.endswith(TRACED) else None

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.line:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line


def fork(work: Callable[[], None]) -> int:
    """Runs `work` in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def count_lines(folder: Path) -> tuple[int, int, float]:
    """Lines of a whole clean session, of its part after the ledger is open, and its seconds."""
    counts = []
    for i, late in enumerate((False, True)):
        killer = LineKiller(0)
        if not late:
            killer.start()
        hospital(folder, f"clean-{i}", killer.start if late else lambda: None)
        sys.settrace(None)
        counts.append(killer.count)
    seconds = []
    for i in range(5):
        start = time.perf_counter()
        hospital(folder, f"timed-{i}")
        seconds.append(time.perf_counter() - start)
    return counts[0], counts[1], min(seconds)


def check(folder: Path, before: list[str]) -> tuple[list[str], list[str]]:
    """Opens what a kill left, as the next process would; returns the entries and every broken promise."""
    Ledger.open(folder / "ledger.sqlite", site="north").close()
    entries = verify_ledger(folder / "ledger.sqlite")
    bodies, faults = [entry.body for entry in entries], []
    if bodies[: len(before)] != before:
        faults.append("an entry that was there before the kill is gone")
    lines = (folder / "log").read_text().split("\n")[:-1] if (folder / "log").exists() else []
    seen = {(entry.kind, entry.fields.get("run"), entry.fields.get("request")): entry for entry in entries}
    draws = Counter(tuple(line.split()[1:]) for line in lines if line.startswith("draw"))
    for (run, request), times in draws.items():
        if times > 1:
            faults.append(f"{run} {request} was drawn {times} times: a double spend")
        reserved, begun = seen.get(("reserve", run, None)), seen.get(("begin", run, request))
        if reserved is None or begun is None or reserved.sequence > begun.sequence:
            faults.append(f"{run} {request} was drawn without being reserved and begun before")
    for _, run, request, sent in (line.split() for line in lines if line.startswith("send")):
        committed = seen.get(("commit", run, request))
        if committed is None or committed.fields["digest"] != sent:
            faults.append(f"{run} {request} was sent without being committed")
    return bodies, faults


def _nothing() -> None:
    pass


def _starts(killer: LineKiller, late: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """When the killer starts to count: before the ledger opens, or after."""
    return (_nothing, killer.start) if late else (killer.start, _nothing)


def _doomed(house: Path, run: str, start_early: Callable[[], None], start_late: Callable[[], None]) -> None:
    start_early()
    hospital(house, run, start_late)


def torture(folder: Path, line_kills: int, timed_kills: int, seed: int) -> dict[str, Any]:
    """Kills hospitals until both counts are reached."""
    chance = random.Random(seed)  # noqa: S311  where to kill is no secret
    for runs in range(1, RUNS_A_FOLDER + 1):
        compose((WARM,) * runs, 1e-5)  # the children inherit the accountant's cache
    (folder / "clean").mkdir()
    whole, after_open, seconds = count_lines(folder / "clean")
    done, faults, finished, failed = Counter[str](), [], 0, 0
    bodies: list[str] = []
    while done["line"] < line_kills or done["timed"] < timed_kills:
        house = folder / f"house-{finished // RUNS_A_FOLDER}"
        if not house.exists():
            house.mkdir()
            bodies = []
        run = f"run-{finished}"
        timed = done["line"] >= line_kills
        late = chance.random() < 0.7  # most kills where something is written, the others also while it opens
        killer = LineKiller(chance.randint(1, after_open if late else whole))
        start_early, start_late = (_nothing, _nothing) if timed else _starts(killer, late)
        child = fork(partial(_doomed, house, run, start_early, start_late))
        if timed:
            time.sleep(chance.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            done["timed" if timed else "line"] += 1
        elif os.waitstatus_to_exitcode(status) == 0:
            finished += 1
        else:
            failed += 1
        try:
            bodies, found = check(house, bodies)
        except LedgerError as error:
            found = [f"the next process cannot go on: {error}"]
        faults += found
        if failed or len(faults) > 20 or finished > 1000:
            break
    return {"lines": whole, "line_kills": done["line"], "timed_kills": done["timed"], "finished": finished,
            "failed": failed, "faults": faults}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(torture(Path(sys.argv[1]), *map(int, sys.argv[2:5]))))
