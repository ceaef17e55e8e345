"""The speed benchmark measures what it says; how fast that is, no test asks."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import speed


@pytest.mark.usefixtures("one_thread")
def test_every_figure_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", "--repeats", "1", "--json"])
    speed.main()
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == list(speed.FIGURES)
    assert all(milliseconds > 0 for milliseconds in figures.values())
