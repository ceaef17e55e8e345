"""Burned-in text: found upright and turned, blanked until none is found, and never skipped silently."""

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rapidocr

from client.deidentify import burned_in, text_detector
from client.deidentify.burned_in import blank_text, find_text, render
from ghostnet.errors import DataError, MissingDependencyError
from ghostnet.training.phantom import chest


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return (20 + 200 * chest(np.random.default_rng(11), 256, "normal")[0]).astype(np.uint8)


def drawn(image: np.ndarray, text: str = "DOE JANE 19610412", row: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """The image with text, and where its ink is."""
    out = image.copy()
    cv2.putText(out, text, (6, row), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1, cv2.LINE_AA)
    return out, np.abs(out.astype(int) - image) > 25


def covered(ink: np.ndarray, boxes: Any) -> float:
    mask = np.zeros(ink.shape, bool)
    for box in boxes:
        mask[box.y0 : box.y1, box.x0 : box.x1] = True
    return float((ink & mask).sum() / ink.sum())


def test_nothing_is_blanked_in_a_phantom_without_text(clean: np.ndarray):
    result = blank_text(clean)
    assert result.clean
    assert result.boxes == ()
    assert np.array_equal(result.pixels, clean)


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_every_stroke_is_under_a_box_and_the_next_look_finds_none(clean: np.ndarray, turns: int):
    image, ink = (np.ascontiguousarray(np.rot90(x, turns)) for x in drawn(clean))
    result = blank_text(image)
    assert result.clean
    assert covered(ink, result.boxes) > 0.99
    assert find_text(burned_in.render(result.pixels)) == []


def test_text_is_found_in_sixteen_bit_units_and_the_input_is_left_alone(clean: np.ndarray):
    image, ink = drawn(clean)
    stored = (image.astype(np.float32) * 16 - 1024).astype(np.float32)
    before = stored.copy()
    result = blank_text(stored)
    assert covered(ink, result.boxes) > 0.99
    assert result.pixels.dtype == np.float32
    assert np.array_equal(stored, before)


def test_text_under_salt_and_pepper_is_found(clean: np.ndarray):
    image, ink = drawn(clean)
    coin = np.random.default_rng(0).random(image.shape)
    image[coin < 0.015], image[coin > 0.985] = 0, 255
    assert covered(ink, blank_text(image).boxes) > 0.95


@pytest.mark.parametrize("seed", [0, 1])
def test_text_under_gaussian_noise_is_found(clean: np.ndarray, seed: int):
    image, ink = drawn(clean)
    noise = np.random.default_rng(seed).normal(0, 0.06 * 255, image.shape)
    noisy = (image + noise).clip(0, 255).astype(np.uint8)
    assert covered(ink, blank_text(noisy).boxes) > 0.95


def test_black_letters_in_noise_that_is_nearly_black_are_found():
    image = 4 + np.abs(np.random.default_rng(3).normal(0, 5, (512, 512)))
    image[200:, 150:] = 255
    canvas = np.zeros((512, 512), np.uint8)
    cv2.putText(canvas, "RIVERA MICHAEL", (60, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2, cv2.LINE_AA)
    image[canvas > 128] = 0
    assert covered(canvas > 128, blank_text(image.astype(np.uint8)).boxes) > 0.95


def test_text_in_a_large_image_is_found_at_its_place(clean: np.ndarray):
    large = cv2.resize(clean, (1100, 600), interpolation=cv2.INTER_LINEAR)
    cv2.putText(large, "DOE JANE", (880, 570), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 1, cv2.LINE_AA)
    assert any(b.x0 > 800 and b.y0 > 500 for b in find_text(large))


def test_an_image_that_never_comes_clean_is_not_called_clean(clean: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(burned_in, "ROUNDS", 1)
    assert not blank_text(drawn(clean)[0]).clean


def test_missing_detector_is_an_error_not_a_clean_image(clean: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    real_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("rapidocr"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    text_detector._detector.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError):
        blank_text(clean)
    text_detector._detector.cache_clear()


def test_another_network_than_the_measured_one_is_refused(
    clean: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    changed = bytearray((Path(rapidocr.__file__).parent / "models" / text_detector.MODEL).read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "other.onnx").write_bytes(changed)
    for other in ("other.onnx", "missing.onnx"):
        text_detector._detector.cache_clear()
        monkeypatch.setattr(text_detector, "MODEL", tmp_path / other)
        with pytest.raises(MissingDependencyError, match="is not the network"):
            blank_text(clean)
    text_detector._detector.cache_clear()


NO_NETWORK = """
import socket, sys
def refuse(*_, **__): sys.exit("asked for a network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""
FIND = """
import cv2, numpy as np
from client.deidentify.burned_in import find_text
image = np.zeros((256, 512), np.uint8)
cv2.putText(image, "DOE JANE", (40, 100), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 2)
print(len(find_text(image)))
"""
FETCH = "import urllib.request; urllib.request.urlopen('http://localhost:9')"


def test_nothing_is_fetched_from_a_network():
    found, fetched = (
        subprocess.run([sys.executable, "-c", NO_NETWORK + code], capture_output=True, text=True, check=False)
        for code in (FIND, FETCH)
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.splitlines()[-1]) > 0
    assert "asked for a network" in fetched.stderr  # the trap has power


def test_other_arrays_are_refused(clean: np.ndarray):
    with pytest.raises(DataError):
        find_text(clean.astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(DataError):
        blank_text(np.full((8, 8), np.nan, np.float32))


def test_letters_of_another_colour_and_the_same_brightness_are_found() -> None:
    pixels = np.zeros((200, 320, 3), np.uint8)
    pixels[..., 1] = 200
    letters = np.zeros((200, 320), np.uint8)
    cv2.putText(letters, "DOE JANE 1961", (30, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    pixels[letters > 128] = (0, 0, 200)
    assert not find_text(render(pixels))  # in grey there is nothing to see
    blanked = blank_text(pixels)
    assert blanked.clean
    assert (blanked.pixels[letters > 128] == (0, 200, 0)).all()
