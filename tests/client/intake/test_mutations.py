"""Broken and hostile files: each gets its answer, and the run goes on. The long run is a benchmark."""

from __future__ import annotations

from benchmarks.mutations import KINDS, measure, mutated
from client.intake.task import Limits


def test_mutated_files_neither_stop_nor_swell_the_run() -> None:
    minutes = Limits(memory_bytes=2 << 30, timeout_s=240.0, timeout_most_s=240.0, prepare_s=240.0)
    result = measure(150, seed=11, limits=minutes)
    assert result["answered"] == 150
    assert result["crashes_of_the_run"] == 0
    assert result["codes"].get("TIMEOUT", 0) == 0  # none goes on without end
    assert result["peak_above_idle_mb"] <= result["limit_above_idle_mb"]
    assert result["codes"]["taken"] > 10  # the mutations leave something of the files
    assert len(result["codes"]) > 6


def test_the_same_seed_gives_the_same_files() -> None:
    first, second = (list(mutated(60, seed=3)) for _ in range(2))
    assert first == second
    assert {kind for kind, _ in first} >= set(KINDS) - {"deflate bomb", "nested sequences"}
