"""How long some things take that people wait for: CPU time (`time.process_time`), medians over the repeats.

    python -m benchmarks.speed [--json] [--repeats 9]

One thread; what is prepared beforehand (tables, files, imports) is not in a figure. The tests count work instead,
which no other program on the machine changes.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from client.deidentify.survivors import MAX_IDENTIFIERS, survivors
from ghostnet.accounting import epsilon
from ghostnet.accounting.epsilon import GaussianRelease, calibrate_noise_multiplier
from ghostnet.evidence.chain import Chain
from ghostnet.evidence.ledger import Ledger, verify_ledger
from ghostnet.evidence.storage import replay
from ghostnet.privacy.noise import SystemEntropy, add_gaussian

Prepare = Callable[[Path], Callable[[], object]]
"""Given a folder, prepares a figure's work and returns it."""


def main() -> None:
    """Prints every figure in milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each figure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {name: median_cpu_ms(prepare, arguments.repeats) for name, prepare in FIGURES.items()}
    lines = [f"{name:75s} {figure:8.1f} ms" for name, figure in figures.items()]
    print(json.dumps(figures, indent=2) if arguments.json else "\n".join(lines))


def median_cpu_ms(prepare: Prepare, repeats: int) -> float:
    """Median CPU time of the prepared work, in milliseconds."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(Path(folder))
        for _ in range(repeats):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
    return 1e3 * statistics.median(seconds)


def noise(folder: Path) -> Callable[[], object]:
    """Noise on a million numbers, its table built before."""
    del folder
    zeros, source = torch.zeros(1_000_000), SystemEntropy()
    add_gaussian(zeros[:1], std=1.7, entropy=source)
    return lambda: add_gaussian(zeros, std=1.7, entropy=source)


def scan(folder: Path) -> Callable[[], object]:
    """A megabyte of pixels, searched for as many numbers as a header may have texts."""
    del folder
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, 250_000).astype(np.float32).tobytes()
    numbers = [str(number) for number in rng.integers(10**7, 10**8, MAX_IDENTIFIERS)]
    return lambda: survivors(pixels, numbers)


def verification(folder: Path) -> Callable[[], object]:
    """A ledger of 10,000 answered requests, verified from its first entry."""
    path = long_ledger(folder / "ledger.sqlite", 10_000)
    return lambda: verify_ledger(path)


def calibration(folder: Path) -> Callable[[], object]:
    """The noise of 300 steps beside two other releases; nothing is kept from the run before."""
    del folder
    other = [GaussianRelease(name="other", noise_multiplier=sigma) for sigma in (3.0, 4.0)]

    def calibrate() -> float:
        epsilon._epsilon_pld.cache_clear()
        epsilon._losses.cache_clear()
        return calibrate_noise_multiplier(epsilon=4.0, delta=1e-5, sampling_rate=0.1, steps=300, other=other)

    return calibrate


def long_ledger(path: Path, requests: int) -> Path:
    """Writes a ledger with one run and so many answered requests, without an fsync for each."""
    with Ledger.open(path) as ledger:
        ledger.reserve(
            run_id="run-1",
            plan_hash="a" * 64,
            events=(GaussianRelease(name="sums", noise_multiplier=4.0),),
            epsilon=8.0,
            delta=1e-5,
            requests=(),
        )
    chain = Chain()
    with closing(sqlite3.connect(path)) as database, database:
        database.text_factory = bytes
        for _ in replay(database.execute("SELECT sequence, body, hash FROM entries ORDER BY sequence"), chain):
            pass
        for i in range(requests):
            for kind, more in (("begin", {}), ("commit", {"digest": f"{i:064x}"})):
                fields = {"run": "run-1", "request": f"r-{i}", "time": "2026-01-01T00:00:00Z", **more}
                entry = chain.draft(kind, fields)
                chain.add(entry)
                database.execute("INSERT INTO entries VALUES (?, ?, ?)", (entry.sequence, entry.body, entry.hash))
    return path


FIGURES: dict[str, Prepare] = {
    "noise on 1,000,000 values": noise,
    f"1 MB of pixels searched for {MAX_IDENTIFIERS:,} identifiers": scan,
    "a ledger of 20,002 entries verified": verification,
    "noise multiplier of 300 steps found (epsilon 4, delta 1e-5, q 0.1)": calibration,
}

if __name__ == "__main__":
    main()
