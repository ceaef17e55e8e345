"""The run config that Flower hands over: a hospital that nobody answers for is no hospital to wait for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostnet.errors import FederationError
from server.app import hospital_count


def test_hospitals_are_counted_by_name_or_by_path(tmp_path: Path) -> None:
    paths = [tmp_path / name / "site.toml" for name in ("north", "south")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    assert hospital_count(",".join(map(str, paths))) == 2
    assert hospital_count("north,south,east") == 3
    assert hospital_count("") == 0


def test_a_path_with_a_comma_in_it_is_refused_before_anyone_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "north, old" / "site.toml"
    path.parent.mkdir()
    path.touch()
    with pytest.raises(FederationError, match="comma"):
        hospital_count(str(path))
