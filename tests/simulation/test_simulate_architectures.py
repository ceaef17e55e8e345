"""Each architecture trains through `ghostnet simulate`, and its sampler verifies and draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ghostnet.cli.main import app
from ghostnet.sampler.sampler import Sampler
from tests.networks import ARCHITECTURES, SIZES, network_plan_text
from tests.plans import write_striped_npz

PARTS = {  # each part of the recipe is in one of the runs
    "dcgan": "discriminator_steps_most = 3\nperceptual_noise_multiplier = 3.0\nperceptual_weight = 10.0",
    "stylegan": 'loss = "non-saturating"',
    "wgan-gp": 'gradient_penalty = "patient"\nloss = "wasserstein"',
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_trains_and_publishes_a_sampler(architecture: str, tmp_path: Path) -> None:
    lines = {"noise_multiplier": "noise_multiplier = 3.0"}  # of every release: quick to account for
    if architecture in PARTS:
        lines["discriminator_steps"] = f"discriminator_steps = 2\n{PARTS[architecture]}"
    (tmp_path / "plan.toml").write_text(network_plan_text(architecture, **lines))
    data = write_striped_npz(tmp_path / "data.npz", patients=100, size=SIZES[architecture])
    command = ["simulate", str(tmp_path / "plan.toml"), "--data", str(data), "--sites", "1"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run")])  # in this process: imports are slow
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0 < report["privacy"]["epsilon_pld"] <= 10.0
    assert [t["round"] for t in report["timing"]["rounds"] if t["phase"] == "train"] == [1, 2]
    images = Sampler.load(tmp_path / "run" / "sampler").sample(3, label="striped", seed=1)
    assert images.shape == (3, 1, SIZES[architecture], SIZES[architecture])
    assert bool(images.isfinite().all())
