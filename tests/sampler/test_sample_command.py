"""`ghostnet sample`: a seed that is told, images without specks, JSON, and a warning where no certificate is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ghostnet import Sampler
from ghostnet.cli.main import app
from ghostnet.models import build_generator
from ghostnet.sampler.pixels import median_denoise, to_uint8
from ghostnet.sampler.write import write_sampler
from tests.plans import tiny_plan

pytestmark = pytest.mark.filterwarnings("ignore::ghostnet.sampler.sampler.NoCertificateWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = tiny_plan()
    write_sampler(tmp_path / "sampler", build_generator(plan.networks), plan)
    return tmp_path / "sampler"


def sample(folder: Path, out: Path, *options: str) -> Result:
    drawn = CliRunner().invoke(
        app, ["sample", str(folder), "-n", "3", "--format", "npz", "-o", str(out), "--device", "cpu", *options]
    )
    assert drawn.exit_code == 0, drawn.output
    return drawn


def images(out: Path) -> np.ndarray:
    with np.load(out / "images.npz") as arrays:
        return np.asarray(arrays["images"])


def test_without_a_seed_images_are_fresh_and_their_seed_draws_them_again(folder: Path, tmp_path: Path) -> None:
    first = json.loads(sample(folder, tmp_path / "a", "--json").stdout)
    second = json.loads(sample(folder, tmp_path / "b", "--json").stdout)
    assert first["seed"] != second["seed"]
    assert (images(tmp_path / "a") != images(tmp_path / "b")).any()
    sample(folder, tmp_path / "c", "--seed", str(first["seed"]))
    np.testing.assert_array_equal(images(tmp_path / "c"), images(tmp_path / "a"))
    assert (first["images"], first["files"], first["out"]) == (3, ["images.npz"], str(tmp_path / "a"))
    assert str(second["seed"]) in sample(folder, tmp_path / "d", "--seed", str(second["seed"])).stdout


def test_denoise_is_the_median_of_the_same_images(folder: Path, tmp_path: Path) -> None:
    sample(folder, tmp_path / "a", "--seed", "1", "--denoise")
    sampler = Sampler.load(folder)
    drawn = sampler.sample(3, seed=1)
    expected = to_uint8(median_denoise(drawn), sampler.config.image.range)
    assert (expected != to_uint8(drawn, sampler.config.image.range)).any()
    assert np.abs(images(tmp_path / "a").astype(int) - expected).max() <= 1


def test_a_sampler_without_a_certificate_is_drawn_from_with_a_warning(folder: Path, tmp_path: Path) -> None:
    said = sample(folder, tmp_path / "a", "--json")
    assert "warning: " in said.stderr
    assert "no certificate.json" in said.stderr
    assert json.loads(said.stdout)["certificate"] is False
    (folder / "certificate.json").write_text("{}")
    again = sample(folder, tmp_path / "b", "--json")
    assert "warning" not in again.stderr
    assert json.loads(again.stdout)["certificate"] is True
