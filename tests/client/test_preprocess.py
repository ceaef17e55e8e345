"""Preprocessing: only noise that is there is filtered, nothing but the image itself decides, masks stay aligned."""

import numpy as np
import pytest

from client.preprocess import Noise, denoise, detect_noise, preprocess, preprocess_mask
from ghostnet.errors import DataError
from ghostnet.plan import ImageSpec
from ghostnet.training.phantom import chest

SEEDS = range(6)


def spec(size: int = 32, **changes: object) -> ImageSpec:
    return ImageSpec(size=size, labels=("normal", "lesion"), label_prior=(0.5, 0.5), **changes)  # type: ignore[arg-type]


def phantom(seed: int) -> np.ndarray:
    return (0.08 + 0.84 * chest(np.random.default_rng(seed), 256, "lesion")[0]).astype(np.float32)


def noisy(image: np.ndarray, kind: str) -> np.ndarray:
    rng = np.random.default_rng(9)
    out = image.copy()
    if kind in ("gaussian", "both"):
        out = np.clip(out + rng.normal(0, 0.08, out.shape), 0, 1)
    if kind in ("salt-and-pepper", "both"):
        coin = rng.random(out.shape)
        out[coin < 0.02], out[coin > 0.98] = 0, 1
    return out.astype(np.float32)


@pytest.mark.parametrize("kind", ["none", "gaussian", "salt-and-pepper", "both"])
def test_noise_is_called_by_its_name(kind: str):
    assert [detect_noise(noisy(phantom(s), kind)).kind for s in SEEDS] == [kind] * len(SEEDS)


@pytest.mark.parametrize("kind", ["gaussian", "salt-and-pepper", "both"])
def test_denoising_at_least_halves_the_error(kind: str):
    for seed in SEEDS:
        clean = phantom(seed)
        dirty = noisy(clean, kind)
        better = denoise(dirty, detect_noise(dirty))
        assert np.sqrt(np.mean((better - clean) ** 2)) < 0.5 * np.sqrt(np.mean((dirty - clean) ** 2))


def test_a_clean_image_is_not_touched():
    clean = phantom(0)
    assert denoise(clean, detect_noise(clean)) is clean


def test_burned_in_text_is_not_taken_for_noise():
    cv2 = pytest.importorskip("cv2")
    canvas = (phantom(1) * 255).astype(np.uint8)
    cv2.putText(canvas, "DOE^JANE 19610412", (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1)
    assert detect_noise((canvas / 255).astype(np.float32)).kind == "none"


def test_impulses_leave_the_other_pixels_as_they_were():
    dirty = noisy(phantom(2), "salt-and-pepper")
    cleaned = denoise(dirty, Noise(kind="salt-and-pepper", sigma=0.0, impulse_fraction=0.04))
    inner = (dirty > 0.03) & (dirty < 0.97)
    assert np.array_equal(cleaned[inner], dirty[inner])


@pytest.mark.parametrize(("pixel_range", "low"), [("[-1,1]", -1.0), ("[0,1]", 0.0)])
def test_tensor_fills_the_range_of_the_plan(pixel_range: str, low: float):
    out = preprocess(phantom(0) * 4000 - 1000, valid=None, image=spec(range=pixel_range), window=None)
    assert out.shape == (1, 32, 32)
    assert out.dtype == np.float32
    assert low <= out.min() < low + 0.1
    assert 0.85 < out.max() <= 1


def test_unit_and_offset_of_the_scanner_change_nothing():
    image = phantom(3)
    first = preprocess(image, valid=None, image=spec(), window=None)
    second = preprocess(image * 2000 - 1024, valid=None, image=spec(), window=None)
    assert np.allclose(first, second, atol=1e-3)


def test_padding_is_black_and_moves_no_percentile():
    image, valid = phantom(4), np.ones((256, 256), bool)
    valid[:, :64] = False
    hot = np.where(valid, image, -30000).astype(np.float32)
    cold = np.where(valid, image, np.nan).astype(np.float32)
    outs = [preprocess(x, valid=v, image=spec(), window=None) for x, v in ((hot, valid), (cold, None))]
    assert np.array_equal(*outs)
    assert (outs[0][0, :, :7] == -1).all()


def test_aspect_is_kept_by_centred_black_bars():
    out = preprocess(np.ones((64, 32), np.float32), valid=None, image=spec(), window=(0, 1))
    assert (out[0, :, :8] == -1).all()
    assert (out[0, :, -8:] == -1).all()
    assert np.allclose(out[0, :, 8:24], 1)


def test_resize_keeps_the_mean():
    image = np.random.default_rng(0).random((100, 100), dtype=np.float32)
    out = preprocess(image, valid=None, image=spec(range="[0,1]", denoise="none"), window=(0, 1))
    assert out.mean() == pytest.approx(image.mean(), abs=1e-3)


def test_mask_lies_where_the_image_lies():
    mask = np.zeros((200, 120), np.uint8)
    mask[40:90, 20:70] = 255
    drawn = preprocess((mask > 0).astype(np.float32), valid=None, image=spec(64, denoise="none"), window=(0, 1))
    assert np.allclose(preprocess_mask(mask, spec(64)), drawn, atol=1e-6)


@pytest.mark.parametrize(("given", "channels"), [((40, 40), 3), ((40, 40, 3), 1), ((40, 40, 3), 3)])
def test_grey_and_colour_become_what_the_plan_wants(given: tuple[int, ...], channels: int):
    pixels = np.random.default_rng(0).random(given, dtype=np.float32)
    assert preprocess(pixels, valid=None, image=spec(channels=channels), window=None).shape == (channels, 32, 32)


@pytest.mark.parametrize(
    ("pixels", "window"),
    [
        (np.zeros((0, 4), np.float32), None),
        (np.zeros((4, 4, 2), np.float32), None),
        (np.full((8, 8), 7, np.float32), None),
        (np.full((8, 8), np.nan, np.float32), None),
        (np.ones((8, 8), np.float32), (1.0, 1.0)),
        (np.ones((8, 8), np.float32), (0.0, float("nan"))),
    ],
)
def test_what_cannot_be_an_image_is_refused(pixels: np.ndarray, window: tuple[float, float] | None):
    with pytest.raises(DataError):
        preprocess(pixels, valid=None, image=spec(), window=window)
