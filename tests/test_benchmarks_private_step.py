"""The private step's benchmark, run tiny: its columns are there, and every variant computes the sum it is timed for."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from benchmarks import private_step
from benchmarks.private_step import CLIP_NORM, REPORTED, build, example, measure, peak_memory_mib, table
from ghostnet.privacy.noise import grid_step

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 4


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process a variant takes seconds to start; one real measurement is tested by itself."""
    monkeypatch.setattr(private_step, "peak_memory_mib", lambda name, batch, threads: 1.5)


@pytest.mark.usefixtures("without_processes")
@pytest.mark.parametrize("as_json", [True, False])
def test_every_variant_is_reported_with_time_ratio_and_memory(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--batch", str(BATCH), "--repeats", "1", *(["--json"] if as_json else [])]
    monkeypatch.setattr(sys, "argv", ["private_step", *arguments])
    private_step.main()
    shown = capsys.readouterr().out
    if as_json:
        result = json.loads(shown)
        assert (result["batch"], result["threads"], result["repeats"]) == (BATCH, 1, 1)
        assert result["parameters"] == sum(p.numel() for p in private_step.network().parameters())
        assert result["noise_cpu_ms"] > 0
        assert list(result["variants"]) == list(REPORTED)
        for row in result["variants"].values():
            assert set(row) == {"cpu_ms", "ratio_to_plain", "peak_memory_mib"}
            assert row["cpu_ms"] > 0
        assert result["variants"]["plain"]["ratio_to_plain"] == 1.0
    else:
        lines = shown.splitlines()
        assert [name in lines[2] for name in ("CPU ms", "x plain", "peak MiB")] == [True] * 3
        assert [line.split("  ")[0] for line in lines[3 : 3 + len(REPORTED)]] == list(REPORTED.values())
        assert "noise alone" in lines[-1]


def test_the_variants_compute_the_same_clipped_sum() -> None:
    expected = build("ghostnet without noise", BATCH)()
    size = float(torch.cat([part.flatten() for part in expected]).norm())
    assert 0.3 * CLIP_NORM < size <= BATCH * CLIP_NORM * (1 + 1e-5)
    for name in ("opacus hooks", "opacus ghost"):
        found = build(name, BATCH)()
        assert len(found) == len(expected)
        off = torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)])
        rounded = BATCH * grid_step(CLIP_NORM) * math.sqrt(len(off))  # each row, toward zero by less than a step
        assert float(off.norm()) < 1e-4 * size + rounded, name
        assert float(off.abs().max()) < 2 * BATCH * grid_step(CLIP_NORM), name


def test_the_private_step_is_timed_with_its_noise() -> None:
    bare, noised = build("ghostnet without noise", BATCH)(), build("ghostnet", BATCH)()
    noise = torch.cat([(a.double() - b).flatten() for a, b in zip(noised, bare, strict=True)])
    assert abs(float(noise.square().mean()) - CLIP_NORM**2) < 0.01


def test_rows_in_pairs_are_half_as_many_groups() -> None:
    rows = example(BATCH, 2)
    assert rows.group_count == BATCH // 2
    assert rows.real.tolist() == [True, True, False, False]


def test_memory_is_that_of_a_fresh_process() -> None:
    assert 1 < peak_memory_mib("plain", 16, 1) < 4096


@pytest.mark.usefixtures("without_processes")
def test_a_table_is_made_of_what_was_measured() -> None:
    result = measure(BATCH, 1, 1)
    result["noise_cpu_ms"] = 12.0
    assert table(result).splitlines()[-1].endswith("12 ms")
