"""Simulated hospitals get whole patients, and every row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.config import load_site
from ghostnet.errors import DataError
from ghostnet.simulation.partition import write_sites
from tests.plans import tiny_plan, write_striped_npz


def _rows(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.parent.name: dict(np.load(path)) for path in sorted(folder.glob("*/data.npz"))}


@pytest.mark.parametrize("partition", ["iid", "dirichlet:0.5"])
def test_no_patient_is_at_two_hospitals_and_no_row_is_lost(tmp_path: Path, partition: str) -> None:
    data = write_striped_npz(tmp_path / "data.npz")
    write_sites(tmp_path / "sites", data, 3, partition, tiny_plan())
    parts = _rows(tmp_path / "sites")
    owners = [set(part["patient"]) for part in parts.values()]
    assert len(parts) == 3
    assert sum(map(len, owners)) == len(set.union(*owners))
    assert sum(len(part["images"]) for part in parts.values()) == len(np.load(data)["images"])


def test_a_skewed_partition_is_skewed(tmp_path: Path) -> None:
    data = write_striped_npz(tmp_path / "data.npz", patients=300)
    write_sites(tmp_path / "sites", data, 3, "dirichlet:0.3", tiny_plan())
    shares = [part["labels"].mean() for part in _rows(tmp_path / "sites").values()]
    assert max(shares) - min(shares) > 0.4


def test_a_column_makes_one_hospital_a_value(tmp_path: Path) -> None:
    data = write_striped_npz(tmp_path / "data.npz")
    columns = dict(np.load(data))
    np.savez(data, **columns, ward=np.where(columns["patient"] < "p030", "East Wing", "West Wing"))
    files = write_sites(tmp_path / "sites", data, 9, "column:ward", tiny_plan())
    assert [load_site(file).name for file in files] == ["east-wing", "west-wing"]


@pytest.mark.parametrize("partition", ["half", "dirichlet:", "dirichlet:-1", "dirichlet:nan", "column:ward", "iid:3"])
def test_a_partition_that_means_nothing_is_refused(tmp_path: Path, partition: str) -> None:
    data = write_striped_npz(tmp_path / "data.npz")
    with pytest.raises(DataError, match="partition"):
        write_sites(tmp_path / "sites", data, 3, partition, tiny_plan())
