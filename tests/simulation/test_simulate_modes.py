"""The three modes through the real command line, one of them killed half-way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ghostnet.evidence.ledger import verify_ledger
from tests.command_line import ghostnet
from tests.plans import tiny_plan_text, write_striped_npz
from tests.simulation.test_simulate import given_keys

POOLED = 'patients = 20\nshare = "pooled"\nhospitals = 2'


def write_plan(folder: Path, **lines: str) -> Path:
    write_striped_npz(folder / "data.npz", patients=40)
    (folder / "plan.toml").write_text(tiny_plan_text(**{"epsilon": "epsilon = 60.0", **lines}))
    return folder / "plan.toml"


def test_gan_runs_through_the_command_line_with_hospitals_of_different_labels(tmp_path: Path) -> None:
    lines = 'share = "gan"\nserver_optimizer = "fedadam"\nserver_learning_rate = 0.005'
    plan = write_plan(tmp_path, patients=f"patients = 20\n{lines}")
    ghostnet("simulate", plan, "--data", tmp_path / "data.npz", "--sites", 2, "--partition", "column:labels",
             "--out", tmp_path / "run")  # fmt: skip
    assert ghostnet("verify", tmp_path / "run" / "sampler", *given_keys(tmp_path / "run")).returncode == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["federation"]["share"], report["federation"]["server_optimizer"]) == ("gan", "fedadam")


def test_pooled_survives_a_kill_and_is_charged_and_drawn_once(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, patients=POOLED, steps="steps = 60")
    command = ["simulate", str(plan), "--data", str(tmp_path / "data.npz"), "--sites", "2"]
    command += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen([sys.executable, "-m", "ghostnet.cli", *command], start_new_session=True,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not len(list((tmp_path / "run" / "server" / "pooled").glob("step-*.safetensors"))) >= 8:
        assert time.monotonic() < deadline, "the run did not reach its 8th step"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ghostnet(*command, "--resume")
    assert ghostnet("verify", tmp_path / "run" / "sampler", *given_keys(tmp_path / "run")).returncode == 0
    for path in (tmp_path / "run" / "sites").glob("*/ledger.sqlite"):
        entries = verify_ledger(path)
        assert [entry.kind for entry in entries].count("reserve") == 1
        begun = [entry.fields["request"] for entry in entries if entry.kind == "begin"]
        assert len(begun) == len(set(begun)) == 62  # the ledger's own rule; 60 steps, warm start, finish
    timing = json.loads((tmp_path / "run" / "report.json").read_text())["timing"]
    print("\npooled steps:", [t for t in timing["rounds"] if t["phase"] == "pooled steps"])


def test_a_pooled_plan_for_another_number_of_hospitals_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, patients=POOLED)
    done = ghostnet("simulate", plan, "--data", tmp_path / "data.npz", "--sites", 3, "--out", tmp_path / "run",
                    check=False)  # fmt: skip
    assert done.returncode == 4
    assert "exactly 2" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", ['share = "pooled"', 'server_optimizer = "median"', "weights = {a = 0.0}"])
def test_plan_check_refuses_with_one_line(tmp_path: Path, line: str) -> None:
    plan = write_plan(tmp_path, patients=f"patients = 20\n{line}")
    done = ghostnet("plan", "check", plan, check=False)
    assert done.returncode == 3
    assert len(done.stderr.strip().splitlines()) == 1
