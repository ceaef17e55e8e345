"""The cheap test in front of the network: every letter lies in a place, smooth ground and wires in none."""

import cv2
import numpy as np
import pytest

from client.deidentify import burned_in, text_strokes
from client.deidentify.burned_in import find_text
from client.deidentify.text_strokes import stroke_places

SMOOTH = np.tile(np.linspace(30, 220, 320).astype(np.uint8), (240, 1))


def with_text(value: int, *, turns: int = 0, scale: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image with letters, and where their ink is."""
    canvas = np.zeros(SMOOTH.shape, np.uint8)
    cv2.putText(canvas, "DOE JANE 1961", (60, 120), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    image = np.full_like(SMOOTH, 128)
    image[canvas > 100] = value
    return np.rot90(image, turns).copy(), np.rot90(canvas > 100, turns)


def outside(ink: np.ndarray, image: np.ndarray) -> int:
    """Pixels of ink that lie in no place."""
    left = ink.copy()
    for box in stroke_places(image):
        left[box.y0 : box.y1, box.x0 : box.x1] = False
    return int(left.sum())


@pytest.mark.parametrize("value", [255, 0, 128 + 24])
@pytest.mark.parametrize("turns", [0, 1])
@pytest.mark.parametrize("scale", [0.3, 0.4, 1.0])
def test_letters_bright_dark_and_faint_lie_in_a_place(value: int, turns: int, scale: float) -> None:
    image, ink = with_text(value, turns=turns, scale=scale)
    assert outside(ink, image) == 0


def test_smooth_ground_edges_and_wires_are_no_place() -> None:
    image = SMOOTH.copy()
    image[100:] //= 2  # an edge across it
    cv2.line(image, (0, 30), (319, 210), 255, 3, cv2.LINE_AA)
    assert stroke_places(image) == []


def test_a_test_that_rules_out_everything_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    image, ink = with_text(255)
    monkeypatch.setattr(text_strokes, "EDGES", 1.0)
    assert outside(ink, image) > 0


def test_smooth_ground_is_not_looked_at_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    detect = burned_in.detect
    monkeypatch.setattr(burned_in, "detect", lambda view, side: (shapes.append(view.shape), detect(view, side))[1])
    assert find_text(SMOOTH) == []
    looked_at = sum(height * width for height, width in shapes)
    shapes.clear()
    assert find_text(with_text(255)[0])
    assert looked_at < 1.3 * SMOOTH.size < sum(height * width for height, width in shapes)


def test_the_ends_of_the_scale_are_looked_at_where_the_whole_image_is_noise() -> None:
    image = np.random.default_rng(3).integers(1, 12, (256, 320)).astype(np.uint8)
    image[130:] = 255
    canvas = np.zeros(image.shape, np.uint8)
    cv2.putText(canvas, "RIVERA MICHAEL", (30, 70), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2, cv2.LINE_AA)
    image[canvas > 128] = 0
    assert find_text(image)
