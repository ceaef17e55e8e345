"""The examples run as a newcomer would run them, each in a process of its own, and give what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ghostnet.evidence.ledger import verify_ledger
from tests.samplers import keys_of

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run_example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The run of examples/federation.py, and what it printed."""
    out = tmp_path_factory.mktemp("examples") / "two"
    return out, run_example("federation", out)


def test_a_federation_of_two_hospitals_refuses_trains_and_is_verified(federation) -> None:
    out, done = federation
    assert done.returncode == 0, done.stderr
    assert "refused: " in done.stdout
    assert "max_epsilon" in done.stdout
    assert "failed checks: none" in done.stdout
    assert "drew (4, 1, 28, 28)" in done.stdout
    for name in ("north", "south"):
        assert verify_ledger(out / name / "ledger.sqlite")


def test_a_sampler_is_drawn_from_only_with_its_hospitals_keys(federation, tmp_path: Path) -> None:
    run = federation[0]
    named = [part for name, key in keys_of(run).items() for part in ("--key", f"{name}={key}")]
    given = (run / "run" / "sampler", "--images", 6, "--out")
    assert run_example("use_a_sampler", *given, tmp_path / "drawn.npz", *named).returncode == 0
    with np.load(tmp_path / "drawn.npz") as drawn:
        assert drawn["images"].shape == (6, 1, 28, 28)
        assert drawn["images"].dtype == np.uint8
        assert set(drawn["labels"]) <= {0, 1}
        assert len(np.unique(drawn["images"])) > 2
    without = run_example("use_a_sampler", *given, tmp_path / "none.npz")
    assert without.returncode == 1
    assert "FAIL keys" in without.stdout
    assert not (tmp_path / "none.npz").exists()


def test_own_arrays_become_a_sampler_of_the_plans_epsilon(tmp_path: Path) -> None:
    done = run_example("own_data", tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own" / "run" / "sampler" / "certificate.json").is_file()
    planned, spent = (float(found) for found in re.findall(r"epsilon ([0-9.]+)", done.stdout))
    assert planned == spent <= 8.0
