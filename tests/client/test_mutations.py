"""Broken and hostile files: each gets its answer in time, and the run goes on. The long run is a benchmark."""

from __future__ import annotations

from benchmarks.mutations import KINDS, measure, mutated
from client.intake.task import Limits


def test_mutated_files_neither_stop_nor_slow_nor_swell_the_run() -> None:
    result = measure(150, seed=11, limits=Limits(memory_bytes=2 << 30))
    assert result["answered"] == 150
    assert result["crashes_of_the_run"] == 0
    assert result["slower_than_10_s"] == 0
    assert result["codes"].get("TIMEOUT", 0) == 0
    assert result["peak_above_idle_mb"] <= result["limit_above_idle_mb"]
    assert result["codes"]["taken"] > 10  # the mutations leave something of the files
    assert len(result["codes"]) > 6


def test_the_same_seed_gives_the_same_files() -> None:
    first, second = (list(mutated(60, seed=3)) for _ in range(2))
    assert first == second
    assert {kind for kind, _ in first} >= set(KINDS) - {"deflate bomb", "nested sequences"}
