"""The same two apps on Flower's simulation runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ghostnet.certificate.certificate import verify_sampler
from tests.command_line import ghostnet
from tests.plans import tiny_plan_text, write_striped_npz
from tests.samplers import keys_of


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ghostnet[ray]")
def test_ray_ends_with_the_same_files_as_the_embedded_engine(tmp_path: Path) -> None:
    data = write_striped_npz(tmp_path / "data.npz")
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    for engine in ("embedded", "ray"):
        out = tmp_path / engine
        ghostnet("simulate", tmp_path / "plan.toml", "--data", data, "--sites", 2, "--engine", engine, "--out", out)
        known = keys_of(out / "sites")
        assert all(check.passed for check in verify_sampler(out / "sampler", trusted_keys=known))
    assert _files(tmp_path / "embedded") == _files(tmp_path / "ray")


def _files(out: Path) -> list[str]:
    """Every file but those named after the run's random id."""
    names = (p.relative_to(out) for p in out.rglob("*") if p.is_file())
    return sorted(str(name) for name in names if "runs" not in name.parts)
