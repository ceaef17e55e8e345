"""Pixels of one image to the tensor that the networks see: de-noise, window, resize.

Everything is decided from the image itself and the plan; nothing is fitted on a cohort, so that one patient's tensor
says nothing about another's. Filters run only on noise that was found, and before the resize, because averaging
spreads an impulse into its neighbours. The aspect ratio is kept: the image is centred and PADDED with black, never
cropped, because a lesion at the edge must stay with its label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ghostnet.errors import DataError
from ghostnet.plan import ImageSpec

NoiseKind = Literal["none", "gaussian", "salt-and-pepper", "both"]
Floats = NDArray[np.float32]

WINDOW_PERCENTILES = (0.5, 99.5)
GAUSSIAN_SIGMA = 0.02  # less than this, of the window, is left alone: clean radiographs measure 0.002 to 0.01
IMPULSE_FRACTION = 0.002  # fewer outliers than this are detail
MIN_FILTERED_SIDE = 128  # px; below it anatomy itself is as fine as noise and the two cannot be told apart
SAMPLED_SIDE = 256  # px; noise is everywhere, so of larger images 64 patches and the centre are measured
_PATCHES = 8  # a row and a column of them
_WINDOW_SAMPLES = 1 << 16  # pixels of a regular grid that the percentiles are taken from, at most four times as many
# The high-pass filter of the wavelet db2 (Daubechies 1988), as `skimage.restoration.estimate_sigma` uses it.
_DB2_HIGH = np.array([-0.48296291314469025, 0.836516303737469, -0.22414386804185735, -0.12940952255092145])
_NORMAL_QUARTILE = 0.6744897501960817


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The findings of `detect_noise` in one image. Data-dependent: they stay in the hospital."""

    kind: NoiseKind
    sigma: float  # standard deviation of the Gaussian part, for pixels in [0,1]
    impulse_fraction: float  # share of pixels that are salt or pepper


_NO_NOISE = Noise(kind="none", sigma=0.0, impulse_fraction=0.0)


def preprocess(
    pixels: Floats,
    *,
    valid: NDArray[np.bool_] | None,
    image: ImageSpec,
    window: tuple[float, float] | None,
    spacing: tuple[float, float] | None = None,
) -> Floats:
    """Makes the training tensor of one image.

    Args:
        pixels: (h,w) or (h,w,3), any unit, larger is brighter (MONOCHROME2 sense). Pixels that are not finite count as
            not valid.
        valid: (h,w), False where the scanner padded; None if it did not. Padding is drawn black and counts nowhere.
        image: the plan's image.
        window: (low, high) in the unit of `pixels`, drawn black and white; None takes the 0.5 and 99.5 percentiles of
            this image's valid pixels (after impulses are removed).
        spacing: height and width of a pixel in any common unit; None where pixels are square. Pixels that are not
            are resampled to square ones, so that a circle stays a circle.

    Returns:
        (channels,size,size), in the plan's range.

    Raises:
        DataError: the array has another shape, is empty, or is one flat value without a window.
    """
    _check_shape(pixels)
    known = _known(pixels, valid)
    low, high = _checked(window or robust_window(pixels, known))
    noise = _window_noise(pixels, known, (low, high)) if image.denoise == "auto" else _NO_NOISE
    if noise.kind != "none":
        pixels = denoise(_apply_window(pixels, known, (low, high)), noise)
        # Salt and pepper had stretched the percentiles to the ends of the detector's scale.
        again = window is None and bool(noise.impulse_fraction)
        low, high = robust_window(pixels, known) if again else (0.0, 1.0)
    # Clipping comes before averaging, so that one hot pixel does not light up its neighbours; scaling can wait until
    # the image is small.
    clipped = np.clip(pixels, low, high)
    clipped -= np.float32(low)  # before averaging, so that black is exactly black
    if known is not None:
        clipped[~known] = 0
    planes = _to_channels(clipped, image.channels)
    fitted = np.stack([_fit(plane, image.size, spacing) for plane in planes])
    return to_range(np.clip(fitted * np.float32(1 / (high - low)), 0, 1), image)


def preprocess_mask(mask: NDArray[np.uint8], image: ImageSpec, *, spacing: tuple[float, float] | None = None) -> Floats:
    """Makes the mask plane that belongs to `preprocess`'s image: the same geometry, the share of each pixel covered.

    Args:
        mask: (h,w), 0 outside and anything else inside.
        image: the plan's image.
        spacing: of the image that it belongs to.

    Returns:
        (1,size,size), in the plan's range; a pixel above the middle of the range is at least half inside.

    Raises:
        DataError: the mask is not a non-empty (h,w) array.
    """
    if mask.ndim != 2 or not mask.size:
        raise DataError(f"a mask needs shape (h,w), not {mask.shape}; give one plane a mask")
    return to_range(_fit((mask != 0).astype(np.float32), image.size, spacing)[None], image)


def to_range(pixels01: Floats, image: ImageSpec) -> Floats:
    """Pixels in [0,1] to the plan's range; same shape."""
    return pixels01 if image.range == "[0,1]" else (pixels01 * 2 - 1).astype(np.float32)


def robust_window(pixels: Floats, known: NDArray[np.bool_] | None) -> tuple[float, float]:
    """(low, high): the 0.5 and 99.5 percentiles of the known pixels, or their extremes where those coincide.

    Large images are looked at on a regular grid of 2^16 to 2^18 pixels.

    Args:
        pixels: (h,w) or (h,w,3).
        known: (h,w), the pixels that count; None counts all.

    Raises:
        DataError: no pixel is known, or all have one value.
    """
    # Odd, so that it does not fall in step with the 8-pixel blocks of a lossy codec.
    step = int((pixels.shape[0] * pixels.shape[1] / _WINDOW_SAMPLES) ** 0.5) // 2 * 2 + 1
    for grid in (step, 1):
        values = pixels[::grid, ::grid]
        values = values.ravel() if known is None else values[known[::grid, ::grid]].ravel()
        if values.size:
            low, high = (float(v) for v in np.percentile(values, WINDOW_PERCENTILES))
            if low == high:
                low, high = float(values.min()), float(values.max())
            if low < high:
                return low, high
    if not values.size:
        raise DataError("the image has no valid pixel; leave it out")
    raise DataError("the image is one flat value; leave it out or give a window")


def detect_noise(pixels01: Floats) -> Noise:
    """Says which noise an image carries, from the image alone.

    An impulse is a pixel at either end of the scale that stands 0.1 and 5 sigma off its 3x3 median and has at most
    three such neighbours; they count only when spread over the image, which burned-in text is not. Gaussian noise is
    measured on the finest wavelet scale once impulses are gone (Donoho and Johnstone 1994, as in
    `skimage.restoration.estimate_sigma`). Of images larger than 256 px, impulses are counted in 8 x 8 patches and
    Gaussian noise is measured in the centre. Images with a side under 128 px are never called noisy.

    Args:
        pixels01: (h,w) or (h,w,3), in [0,1].
    """
    return _window_noise(pixels01, None, (0.0, 1.0))


def _window_noise(pixels: Floats, known: NDArray[np.bool_] | None, window: tuple[float, float]) -> Noise:
    """The noise of an image as it looks in a window; only the parts that are measured are ever scaled."""
    if min(pixels.shape[:2]) < MIN_FILTERED_SIDE:
        return _NO_NOISE

    def parts(cut: Callable[[NDArray[Any]], NDArray[Any]]) -> list[Floats]:
        return _planes(_apply_window(cut(pixels), None if known is None else cut(known), window))

    fraction = max(_spread_fraction(_impulses(plane)) for plane in parts(_patches))
    fraction = fraction if fraction > IMPULSE_FRACTION else 0.0
    centre = parts(_centre)
    if fraction:
        centre = [_switching_median(plane, _impulses(plane)) for plane in centre]
    sigma = max(_sigma(plane) for plane in centre)
    sigma = sigma if sigma > GAUSSIAN_SIGMA else 0.0
    kinds: dict[tuple[bool, bool], NoiseKind] = {
        (False, False): "none",
        (True, False): "gaussian",
        (False, True): "salt-and-pepper",
        (True, True): "both",
    }
    return Noise(kind=kinds[sigma > 0, fraction > 0], sigma=sigma, impulse_fraction=fraction)


def denoise(pixels01: Floats, noise: Noise) -> Floats:
    """Removes the noise that was found, and only that: impulses by a switching median, then Gaussian by wavelets.

    Args:
        pixels01: (h,w) or (h,w,3), in [0,1].
        noise: what `detect_noise` said of it. With kind "none" the very same array comes back.

    Returns:
        The same shape, in [0,1]. Wavelets are soft-thresholded by BayesShrink (Chang, Yu and Vetterli 2000).
    """
    if noise.kind == "none":
        return pixels01
    planes = _planes(pixels01)
    if noise.impulse_fraction:
        planes = [_switching_median(plane, _impulses(plane)) for plane in planes]
    if noise.sigma:
        from skimage.restoration import denoise_wavelet  # half a second of a worker's start, and most files are clean

        planes = [
            denoise_wavelet(plane, sigma=noise.sigma, method="BayesShrink", mode="soft", rescale_sigma=True)
            for plane in planes
        ]
    cleaned = planes[0] if pixels01.ndim == 2 else np.stack(planes, axis=-1)
    return np.clip(cleaned, 0, 1).astype(np.float32)


def _check_shape(pixels: Floats) -> None:
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise DataError(f"an image needs shape (h,w) or (h,w,3), not {pixels.shape}; give one frame, grey or RGB")


def _known(pixels: Floats, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """(h,w), True where a pixel counts; None where all do."""
    if valid is not None and valid.shape != pixels.shape[:2]:
        raise DataError(f"valid has shape {valid.shape} for pixels of {pixels.shape[:2]}; they must agree")
    # A sum is finite only if every term is, and costs a third of asking each.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(pixels.sum()):
            return valid
    finite = np.asarray(np.isfinite(pixels).reshape(*pixels.shape[:2], -1).all(axis=2))
    return finite if valid is None else finite & valid


def _checked(window: tuple[float, float]) -> tuple[float, float]:
    low, high = window
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise DataError(f"window ({low:g}, {high:g}) is not two finite numbers, low first; correct it")
    return low, high


def _apply_window(pixels: Floats, known: NDArray[np.bool_] | None, window: tuple[float, float]) -> Floats:
    low, high = window
    scaled: Floats = np.clip((pixels - low) * np.float32(1 / (high - low)), 0, 1).astype(np.float32)
    if known is not None:
        scaled[~known] = 0
    return scaled


def _planes(pixels: Floats) -> list[Floats]:
    if pixels.ndim == 2:
        return [pixels]
    return [np.ascontiguousarray(pixels[..., i]) for i in range(pixels.shape[2])]


def _to_channels(pixels: Floats, channels: int) -> list[Floats]:
    planes = _planes(pixels)
    if len(planes) == channels:
        return planes
    if channels == 3:
        return planes * 3
    return [cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY).astype(np.float32)]


def _impulses(plane: Floats) -> NDArray[np.bool_]:
    """A mask of salt and pepper; (h,w)."""
    # The ends of the scale are not exact after a window or a lossy codec.
    extreme = (plane <= 0.02) | (plane >= 0.98)
    difference = np.abs(plane - cv2.medianBlur(plane, 3))
    # The median of the differences, unlike their mean, does not see the impulses themselves.
    spread = 1.4826 * float(np.median(difference[~extreme])) if not extreme.all() else 0.0
    candidate: NDArray[np.bool_] = extreme & (difference > max(0.1, 5 * spread))
    neighbours = cv2.boxFilter(candidate.astype(np.float32), -1, (3, 3), normalize=False) - candidate
    alone: NDArray[np.bool_] = neighbours <= 3
    return candidate & alone


def _patches(pixels: NDArray[Any]) -> NDArray[Any]:
    """Of each of 8 x 8 fields the middle 32 x 32 px, side by side; a side of at most 256 px is taken whole."""
    for axis in (0, 1):
        length = pixels.shape[axis]
        if length > SAMPLED_SIDE:
            width = SAMPLED_SIDE // _PATCHES
            starts = [(2 * i + 1) * length // (2 * _PATCHES) - width // 2 for i in range(_PATCHES)]
            pixels = np.concatenate([pixels.take(range(at, at + width), axis) for at in starts], axis)
    return pixels


def _centre(pixels: NDArray[Any]) -> NDArray[Any]:
    top, left = (max(0, (side - SAMPLED_SIDE) // 2) for side in pixels.shape[:2])
    return pixels[top : top + SAMPLED_SIDE, left : left + SAMPLED_SIDE]


def _spread_fraction(impulses: NDArray[np.bool_]) -> float:
    """Share of impulses in the middle one of 8x8 tiles: real noise is everywhere, burned-in text is in a few tiles."""
    return float(np.median(cv2.resize(impulses.astype(np.float32), (_PATCHES, _PATCHES), interpolation=cv2.INTER_AREA)))


def _switching_median(plane: Floats, impulses: NDArray[np.bool_]) -> Floats:
    """Replaces impulses by the 3x3 median, or 5x5 where they are dense; every other pixel stays as it is."""
    kernel = 3 if impulses.mean() < 0.02 else 5
    return np.where(impulses, cv2.medianBlur(plane, kernel), plane)


def _sigma(plane: Floats) -> float:
    """Standard deviation of Gaussian noise: the median of the finest diagonal wavelet coefficients, over a normal's."""
    detail = np.abs(cv2.sepFilter2D(plane, cv2.CV_32F, _DB2_HIGH, _DB2_HIGH)[::2, ::2])
    detail = detail[detail > 0]  # where an image is saturated or padded it says nothing of noise
    return float(np.median(detail)) / _NORMAL_QUARTILE if detail.size else 0.0


def _fit(plane: Floats, size: int, spacing: tuple[float, float] | None) -> Floats:
    """Scales the longer side to `size` by area averaging and pads the shorter one with 0, centred; (size,size).

    One resize does both: unequal spacing only makes the two scales unequal.
    """
    tall, wide = spacing or (1.0, 1.0)
    height, width = plane.shape[0] * tall, plane.shape[1] * wide
    scale = size / max(height, width)
    inner = (min(size, max(1, round(width * scale))), min(size, max(1, round(height * scale))))
    shrinks = inner[0] < plane.shape[1] or inner[1] < plane.shape[0]
    out = np.zeros((size, size), np.float32)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    out[top : top + inner[1], left : left + inner[0]] = cv2.resize(plane, inner, interpolation=method)
    return out
