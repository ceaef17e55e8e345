"""The scorer of burned-in text counts what is covered, and cannot be pleased by blanking nothing or everything."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import burned_in
from benchmarks.burned_in import folder, score, synthetic
from client.deidentify.burned_in import Blanked
from client.deidentify.text_detector import Box
from tests.client.intake.dicom_files import dicom, picture, save


def scores(monkeypatch: pytest.MonkeyPatch, *boxes: Box, clean: bool = True) -> list[burned_in.Score]:
    """Of two scenes, with text and without, when blanking does just this."""
    monkeypatch.setattr(burned_in, "blank_text", lambda pixels: Blanked(pixels=pixels, boxes=boxes, clean=clean))
    return [score(scene) for scene in synthetic(1, seed=2)]


def test_blanking_nothing_covers_nothing(monkeypatch: pytest.MonkeyPatch):
    drawn, plain = scores(monkeypatch)
    assert drawn.texts > 0
    assert (drawn.half, drawn.covered, drawn.letters_gone, drawn.blanked) == (0, 0, 0, 0)
    assert (plain.texts, plain.blanked) == (0, 0)


def test_blanking_everything_shows_in_the_ground_and_in_the_image_without_text(monkeypatch: pytest.MonkeyPatch):
    drawn, plain = scores(monkeypatch, Box(x0=0, y0=0, x1=5000, y1=5000))
    assert drawn.covered == drawn.whole == drawn.letters_gone == drawn.texts
    assert drawn.ground_blanked == plain.blanked == 1


def test_a_quarantined_image_is_not_covered_by_that(monkeypatch: pytest.MonkeyPatch):
    drawn, plain = scores(monkeypatch, clean=False)
    assert drawn.quarantined
    assert drawn.covered == 0
    assert burned_in.total([drawn, plain])["quarantined_without_text"] == 1


def test_ninety_per_cent_of_a_box_is_covered_and_half_is_not():
    text = burned_in.Text(corners=(10, 10, 110, 30), ink=np.ones((20, 100), bool))
    mask = np.zeros((64, 128), bool)
    mask[10:30, 10:60] = True
    assert burned_in.inside(mask, text).mean() == 0.5


def test_a_folder_is_read_with_boxes_cut_to_the_image(tmp_path: Path):
    save(dicom(picture()), tmp_path / "001.dcm")
    boxes = [[2, 2, 20, 10], [30, 30, 99, 99], [50, 50, 60, 60], [-5, 0, 4, 4]]
    key = {"annotation": [{"key": {"text": "a", "bbox": b}, "value": {"text": "", "bbox": None}} for b in boxes]}
    (tmp_path / "001.json").write_text(json.dumps(key))
    (scene,) = folder(tmp_path)
    assert [text.corners for text in scene.texts] == [(2, 2, 20, 10), (30, 30, 40, 40), (0, 0, 4, 4)]
