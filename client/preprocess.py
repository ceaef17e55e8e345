"""Pixels of one image to the tensor that the networks see: de-noise, window, resize.

Everything is decided from the image itself and the plan; nothing is fitted on a cohort, so that one patient's tensor
says nothing about another's. Filters run only on noise that was found, and before the resize, because averaging
spreads an impulse into its neighbours. The aspect ratio is kept: the image is centred and PADDED with black, never
cropped, because a lesion at the edge must stay with its label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.restoration import denoise_wavelet, estimate_sigma

from ghostnet.errors import DataError
from ghostnet.plan import ImageSpec

NoiseKind = Literal["none", "gaussian", "salt-and-pepper", "both"]
Floats = NDArray[np.float32]

WINDOW_PERCENTILES = (0.5, 99.5)
GAUSSIAN_SIGMA = 0.02  # less than this, of the window, is left alone: clean radiographs measure 0.002 to 0.01
IMPULSE_FRACTION = 0.002  # fewer outliers than this are detail
SMALLEST_FILTERED_SIDE = 128  # px; below it anatomy itself is as fine as noise and the two cannot be told apart
_SIGMA_TILE = 512  # px; Gaussian noise is everywhere, so the centre of a large image is enough to measure it


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What `detect_noise` found in one image. Data-dependent: it stays in the hospital."""

    kind: NoiseKind
    sigma: float  # standard deviation of the Gaussian part, for pixels in [0,1]
    impulse_fraction: float  # share of pixels that are salt or pepper


def preprocess(
    pixels: Floats, *, valid: NDArray[np.bool_] | None, image: ImageSpec, window: tuple[float, float] | None
) -> Floats:
    """Makes the training tensor of one image.

    Args:
        pixels: (h,w) or (h,w,3), any unit, larger is brighter (MONOCHROME2 sense). Pixels that are not finite count as
            not valid.
        valid: (h,w), False where the scanner padded; None if it did not. Padding is drawn black and counts nowhere.
        image: the plan's image.
        window: (low, high) in the unit of `pixels`, drawn black and white; None takes the 0.5 and 99.5 percentiles of
            this image's valid pixels (after impulses are removed).

    Returns:
        (channels,size,size), in the plan's range.

    Raises:
        DataError: the array has another shape, is empty, or is one flat value without a window.
    """
    _check_shape(pixels)
    known = _known(pixels, valid)
    scaled = _apply_window(pixels, known, window or robust_window(pixels, known))
    if image.denoise == "auto":
        noise = detect_noise(scaled)
        scaled = denoise(scaled, noise)
        if window is None and noise.impulse_fraction:
            # Salt and pepper had stretched the percentiles to the ends of the detector's scale.
            scaled = _apply_window(scaled, known, robust_window(scaled, known))
    planes = _to_channels(scaled, image.channels)
    return to_range(np.stack([_fit(plane, image.size) for plane in planes]), image)


def preprocess_mask(mask: NDArray[np.uint8], image: ImageSpec) -> Floats:
    """Makes the mask plane that belongs to `preprocess`'s image: the same geometry, the share of each pixel covered.

    Args:
        mask: (h,w), 0 outside and anything else inside.
        image: the plan's image.

    Returns:
        (1,size,size), in the plan's range; a pixel above the middle of the range is at least half inside.

    Raises:
        DataError: the mask is not a non-empty (h,w) array.
    """
    if mask.ndim != 2 or not mask.size:
        raise DataError(f"a mask needs shape (h,w), not {mask.shape}; give one plane a mask")
    return to_range(_fit((mask != 0).astype(np.float32), image.size)[None], image)


def to_range(pixels01: Floats, image: ImageSpec) -> Floats:
    """Pixels in [0,1] to the plan's range; same shape."""
    return pixels01 if image.range == "[0,1]" else (pixels01 * 2 - 1).astype(np.float32)


def robust_window(pixels: Floats, known: NDArray[np.bool_]) -> tuple[float, float]:
    """(low, high): the 0.5 and 99.5 percentiles of the known pixels, or their extremes where those coincide.

    Raises:
        DataError: no pixel is known, or all have one value.
    """
    values = pixels[known]
    if not values.size:
        raise DataError("the image has no valid pixel; leave it out")
    low, high = (float(v) for v in np.percentile(values, WINDOW_PERCENTILES))
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low == high:
        raise DataError("the image is one flat value; leave it out or give a window")
    return low, high


def detect_noise(pixels01: Floats) -> Noise:
    """Says which noise an image carries, from the image alone.

    An impulse is a pixel at either end of the scale that stands 0.1 and 5 sigma off its 3x3 median and has at most
    three such neighbours; they count only when spread over the image, which burned-in text is not. Gaussian noise is
    measured on the finest wavelet scale once impulses are gone (Donoho and Johnstone 1994, as in
    `skimage.restoration.estimate_sigma`). Images with a side under 128 px are never called noisy.

    Args:
        pixels01: (h,w) or (h,w,3), in [0,1].
    """
    if min(pixels01.shape[:2]) < SMALLEST_FILTERED_SIDE:
        return Noise(kind="none", sigma=0.0, impulse_fraction=0.0)
    planes = _planes(pixels01)
    impulses = [_impulses(plane) for plane in planes]
    fraction = max(_spread_fraction(found) for found in impulses)
    if fraction <= IMPULSE_FRACTION:
        fraction, cleaned = 0.0, planes
    else:
        cleaned = [_switching_median(plane, found) for plane, found in zip(planes, impulses, strict=True)]
    sigma = max(_sigma(plane) for plane in cleaned)
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
        planes = [
            denoise_wavelet(plane, sigma=noise.sigma, method="BayesShrink", mode="soft", rescale_sigma=True)
            for plane in planes
        ]
    cleaned = planes[0] if pixels01.ndim == 2 else np.stack(planes, axis=-1)
    return np.clip(cleaned, 0, 1).astype(np.float32)


def _check_shape(pixels: Floats) -> None:
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise DataError(f"an image needs shape (h,w) or (h,w,3), not {pixels.shape}; give one frame, grey or RGB")


def _known(pixels: Floats, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    finite: NDArray[np.bool_] = np.isfinite(pixels if pixels.ndim == 2 else pixels.sum(axis=2))
    if valid is None:
        return finite
    if valid.shape != pixels.shape[:2]:
        raise DataError(f"valid has shape {valid.shape} for pixels of {pixels.shape[:2]}; they must agree")
    return finite & valid


def _apply_window(pixels: Floats, known: NDArray[np.bool_], window: tuple[float, float]) -> Floats:
    low, high = window
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise DataError(f"window ({low:g}, {high:g}) is not two finite numbers, low first; correct it")
    scaled: Floats = np.clip((pixels - low) * np.float32(1 / (high - low)), 0, 1).astype(np.float32)
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
    """Where salt or pepper is; (h,w)."""
    # The ends of the scale are not exact after a window or a lossy codec.
    extreme = (plane <= 0.02) | (plane >= 0.98)
    difference = np.abs(plane - cv2.medianBlur(plane, 3))
    # The median of the differences, unlike their mean, does not see the impulses themselves.
    spread = 1.4826 * float(np.median(difference[~extreme])) if not extreme.all() else 0.0
    candidate: NDArray[np.bool_] = extreme & (difference > max(0.1, 5 * spread))
    neighbours = cv2.boxFilter(candidate.astype(np.float32), -1, (3, 3), normalize=False) - candidate
    alone: NDArray[np.bool_] = neighbours <= 3
    return candidate & alone


def _spread_fraction(impulses: NDArray[np.bool_]) -> float:
    """Share of impulses in the middle one of 8x8 tiles: real noise is everywhere, burned-in text is in a few tiles."""
    return float(np.median(cv2.resize(impulses.astype(np.float32), (8, 8), interpolation=cv2.INTER_AREA)))


def _switching_median(plane: Floats, impulses: NDArray[np.bool_]) -> Floats:
    """Replaces impulses by the 3x3 median, or 5x5 where they are dense; every other pixel stays as it is."""
    kernel = 3 if impulses.mean() < 0.02 else 5
    return np.where(impulses, cv2.medianBlur(plane, kernel), plane)


def _sigma(plane: Floats) -> float:
    top, left = (max(0, (side - _SIGMA_TILE) // 2) for side in plane.shape)
    sigma = float(estimate_sigma(plane[top : top + _SIGMA_TILE, left : left + _SIGMA_TILE]))
    return sigma if np.isfinite(sigma) else 0.0  # a flat image has no wavelet coefficient at all


def _fit(plane: Floats, size: int) -> Floats:
    """Scales the longer side to `size` by area averaging and pads the shorter one with 0, centred; (size,size)."""
    height, width = plane.shape
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    out = np.zeros((size, size), np.float32)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    out[top : top + inner[1], left : left + inner[0]] = cv2.resize(plane, inner, interpolation=method)
    return out
