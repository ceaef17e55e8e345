"""Killed at any line, a hospital never spends twice, never sends what it did not commit, and can always go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINE_KILLS, TIMED_KILLS = 200, 40


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Memory where there is some: what SIGKILL leaves behind does not depend on the disk, the waiting does."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108
        yield tmp_path
        return
    memory = tempfile.TemporaryDirectory(dir="/dev/shm")  # noqa: S108
    yield Path(memory.name)
    memory.cleanup()


def test_two_hundred_kills_at_random_lines_spend_nothing_twice(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.evidence.ledger_site", str(folder), str(LINE_KILLS), str(TIMED_KILLS), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the program forks
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["faults"] == []
    assert result["failed"] == 0
    assert (result["line_kills"], result["timed_kills"]) == (LINE_KILLS, TIMED_KILLS)
    assert result["finished"] >= 10  # hospitals also get to the end between kills
