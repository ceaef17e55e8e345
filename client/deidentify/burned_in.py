"""Text burned into pixels: find it, blank it, look again until none is found.

The header cannot be trusted to say whether there is any, and which words identify somebody cannot be told from the
words, so every text is blanked, view markers included. No text is read or kept: boxes only. There is no cheaper test
in front of the detector, because none was found that could not miss text.

One look is several views of the image: with even contrast, with either end of its scale stretched (letters at the very
end of the scale stand out there from noise that is almost as dark), turned, enlarged if it is small, in tiles if it is
large. Where noise is found, de-noised copies are looked at too. An image with text is looked at again enlarged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from client.deidentify.text_blocks import areas, linked, outermost, surroundings
from client.deidentify.text_detector import WEAK, Box, Found, detect, detect_turned
from client.preprocess import denoise, detect_noise
from ghostnet.errors import DataError

Pixel = TypeVar("Pixel", bound=np.generic)
Bytes = NDArray[np.uint8]

ROUNDS = 6  # looks, the last of which must be empty
MIN_SIDE = 512  # px; smaller images are enlarged to it: at 256 px the detector misses half of 9-px letters
SECOND = 1.5  # and looked at enlarged by this too, if that fits in a tile: each size finds letters the other misses
MAX_TILE = 1024  # px; larger images are looked at in tiles, and again at half the size for large letters
TILE_OVERLAP = 128  # px; letters up to this height are whole in at least one tile
CLOSER = (1.25, 1.5, 2.0)  # what surrounds a text is looked at once more, enlarged as far as fits in a tile
END_GAMMA = 0.15  # stretches the end of the scale: 8-bit levels 0, 1, 2 become 0, 111, 123
SMALL_LETTERS = 0.5  # stretched and enlarged views are for these, beside the usual height: organs are larger there
PATCH, SEARCH = 5, 11  # px; windows of non-local means
STRENGTH = 0.9  # of non-local means, beside the noise's standard deviation
MAX_SIGMA = 0.12  # of the range; what measures more is texture
COLOURED = 0.05  # of the image's span: less difference between its colours hides no letters
RENDER_PERCENTILES = (0.1, 99.9)  # what the detector is shown; a hot pixel must not make everything else black


@dataclass(frozen=True, kw_only=True)
class Blanked:
    """An image whose text was overwritten."""

    pixels: NDArray[Any]  # same shape and dtype as what was given
    boxes: tuple[Box, ...]  # what was overwritten; empty if no text was found
    clean: bool  # True if the last look found no text; an image that is not clean must not be used


def find_text(pixels: Bytes) -> list[Box]:
    """Finds text, upright and turned by 90 degrees, of any content.

    Args:
        pixels: (h,w) uint8, either polarity.

    Returns:
        One box a line or word, or several of one. Boxes are tight; see `blank_text` for what is overwritten.

    Raises:
        DataError: another shape or dtype.
        MissingDependencyError: the detector is not installed.
    """
    return _find(pixels, ())


def blank_text(pixels: NDArray[Pixel]) -> Blanked:
    """Overwrites every text, with a margin, and looks again until none is found or `ROUNDS` is reached.

    A box is filled with the median of the pixels just outside it, so that blanking draws no new edge for the detector
    or for a network to learn. Three and more boxes close together are a block, which is overwritten whole.

    Args:
        pixels: (h,w) or (h,w,3), any real dtype; left as it is.

    Raises:
        DataError: another shape, or no finite pixel.
        MissingDependencyError: the detector is not installed (the image was NOT checked).

    Guarantee:
        `clean` means that the detector finds nothing more, not that nothing is there. By `benchmarks.burned_in`: of
        454 annotations in 47 files of an outside set, on which it was tuned, all were covered; of 90 synthetic texts
        of 6 to 36 px drawn singly on other images, 86.
        Not covered: faint single words, letters of 6 px and less or much noise over them, handwriting.
    """
    blanked = pixels.copy()
    tight: list[Box] = []
    done: list[Box] = []
    for _ in range(ROUNDS):
        found = [box for shown in _renders(blanked) for box in _find(shown, tight)]
        if not found:
            return Blanked(pixels=blanked, boxes=outermost(done), clean=True)
        tight += found
        new = [area for area in areas(tight, pixels.shape) if area not in done]
        for area in new:
            _fill(blanked, area)
        done += new
    return Blanked(pixels=blanked, boxes=outermost(done), clean=False)


def render(pixels: NDArray[Any], *, like: NDArray[Any] | None = None) -> Bytes:
    """The detector's input: grey, 0.1 to 99.9 percentile; (h,w) uint8.

    Args:
        pixels: (h,w) or (h,w,3).
        like: an image whose percentiles are taken instead.

    Raises:
        DataError: another shape, or no finite pixel.
    """
    grey = _grey(pixels)
    known = grey if like is None else _grey(like)
    known = known[np.isfinite(known)]
    if not known.size:
        raise DataError("the image has no finite pixel; leave it out")
    low, high = (float(v) for v in np.percentile(known, RENDER_PERCENTILES))
    if low == high:
        low, high = float(known.min()), float(known.max())
    scaled = (np.where(np.isfinite(grey), grey, low) - low) * (255 / (high - low or 1.0))
    rendered: Bytes = np.clip(scaled, 0, 255).astype(np.uint8)
    return rendered


def _renders(pixels: NDArray[Any]) -> Iterator[Bytes]:
    """The planes that are searched: grey and, of colours, the direction in which they differ most at one brightness.

    Blue letters on a green of the same brightness are not there in grey, and a person reads them.
    """
    yield render(pixels)
    if pixels.ndim == 2:
        return
    colour = pixels.astype(np.float32)
    colour[~np.isfinite(colour)] = 0.0
    span = float(np.ptp(np.percentile(colour, RENDER_PERCENTILES)))
    apart = colour - colour.mean(axis=2, keepdims=True)  # (h,w,3): zero where a pixel is grey
    flat = apart.reshape(-1, 3)
    direction = np.linalg.eigh(np.cov(flat, rowvar=False))[1][:, -1]
    projected = apart @ direction  # (h,w)
    if float(np.ptp(np.percentile(projected, RENDER_PERCENTILES))) > COLOURED * span:
        yield render(projected)


def _grey(pixels: NDArray[Any]) -> NDArray[np.float32]:
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise DataError(f"an image needs shape (h,w) or (h,w,3), not {pixels.shape}; give one frame, grey or RGB")
    grey: NDArray[np.float32] = pixels.astype(np.float32)
    return grey if grey.ndim == 2 else grey.mean(axis=2)


def _find(pixels: Bytes, done: Sequence[Box]) -> list[Box]:
    """Text of one look; weak boxes count where they continue what was found before."""
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        raise DataError(f"text is looked for in (h,w) uint8, not {pixels.shape} {pixels.dtype}; render the image first")
    looks = _looks(pixels)
    found = [item for look in looks for view in _views(look) for item in view.look(pixels.shape)]
    boxes = linked(found, done)
    if boxes:
        # Enlarged, ribs look like letters too: what is seen there counts only as the continuation of other text.
        views = _closer(looks[-1], boxes)
        closer = [dataclasses.replace(item, score=WEAK) for view in views for item in view.look(pixels.shape)]
        boxes = linked([*found, *closer], done)
    return boxes


@dataclass(frozen=True, kw_only=True)
class _Look:
    """The image, or a copy of it without noise."""

    pixels: Bytes
    ends: bool  # whether its ends are looked at stretched: under noise, noise is all there is to see in them


def _looks(pixels: Bytes) -> list[_Look]:
    """The image, and again without the noise it has, if any: it hides letters from the detector and not from a person.

    Impulses go first and alone. Gaussian noise goes by non-local means, which keep the strokes of letters of 7 px;
    wavelets and blurring do not.
    """
    pixels01 = (pixels / np.float32(255)).astype(np.float32)
    noise = detect_noise(pixels01)
    looks = [_Look(pixels=pixels, ends=not noise.sigma)]
    if noise.impulse_fraction:
        pixels = np.rint(denoise(pixels01, dataclasses.replace(noise, sigma=0.0)) * 255).astype(np.uint8)
        looks.append(_Look(pixels=pixels, ends=not noise.sigma))
    if noise.sigma:
        strength = STRENGTH * 255 * min(noise.sigma, MAX_SIGMA)
        smooth = cv2.fastNlMeansDenoising(pixels, None, strength, PATCH, SEARCH).astype(np.uint8)
        looks.append(_Look(pixels=smooth, ends=False))
    return looks


@dataclass(frozen=True, kw_only=True)
class _View:
    """A part of the image at one scale, and where it lies."""

    pixels: Bytes
    ends: tuple[Bytes, ...]  # the same with an end of the scale stretched
    scale: float
    left: int
    top: int
    turned: bool = True  # whether to look for turned text
    tall: float = 1.0  # how tall letters may be, beside what is usual

    def look(self, shape: tuple[int, ...]) -> list[Found]:
        # Of tiles the shorter side counts: what is tall in one is seen again at half the size.
        side = min(min(shape[:2]) * self.scale, MAX_TILE)
        even = even_contrast(self.pixels)
        found = [*detect(even, side * self.tall), *(detect_turned(even, side * self.tall) if self.turned else ())]
        found += [item for stretched in self.ends for item in detect(stretched, side * SMALL_LETTERS)]
        return [dataclasses.replace(item, box=self._to_image(item.box, shape)) for item in found]

    def _to_image(self, box: Box, shape: tuple[int, ...]) -> Box:
        return Box(
            x0=max(0, int((box.x0 + self.left) / self.scale)),
            y0=max(0, int((box.y0 + self.top) / self.scale)),
            x1=min(shape[1], int(np.ceil((box.x1 + self.left) / self.scale))),
            y1=min(shape[0], int(np.ceil((box.y1 + self.top) / self.scale))),
        )


def _views(look: _Look) -> Iterator[_View]:
    """The image at its own size or enlarged, small ones at a second size, large ones at half sizes, cut into tiles."""
    pixels, scale = look.pixels, _first_scale(look.pixels)
    if max(pixels.shape) * scale * SECOND <= MAX_TILE:
        yield _enlarged(look, scale * SECOND)
    while True:
        level = _resize(pixels, scale)
        whole = max(level.shape) <= MAX_TILE
        # In tiles they would cost as much as all the rest.
        ends = _stretched(pixels, scale) if whole and look.ends else ()
        for top in _starts(level.shape[0]):
            for left in _starts(level.shape[1]):
                tile = level[top : top + MAX_TILE, left : left + MAX_TILE]
                yield _View(pixels=tile, ends=ends, scale=scale, left=left, top=top)
        if whole:
            return
        scale /= 2


def _enlarged(look: _Look, scale: float) -> _View:
    """All of a small image for small letters; turned ones are left to the other views, for time."""
    return _View(
        pixels=_resize(look.pixels, scale),
        ends=_stretched(look.pixels, scale) if look.ends else (),
        scale=scale,
        left=0,
        top=0,
        turned=False,
        tall=SMALL_LETTERS,
    )


def _closer(look: _Look, boxes: Sequence[Box]) -> Iterator[_View]:
    """Crops around each group of boxes, enlarged further; turned only if a box is."""
    pixels, first = look.pixels, _first_scale(look.pixels)
    turned = any(box.y1 - box.y0 > box.x1 - box.x0 for box in boxes)
    for place in surroundings(boxes, pixels.shape):
        part = pixels[place.y0 : place.y1, place.x0 : place.x1]
        scale = first * max((c for c in CLOSER if max(part.shape) * first * c <= MAX_TILE), default=0)
        if scale:
            yield _View(
                pixels=_resize(part, scale),
                ends=_stretched(part, scale) if look.ends else (),
                scale=scale,
                left=round(place.x0 * scale),
                top=round(place.y0 * scale),
                turned=turned,
                tall=SMALL_LETTERS,
            )


def _first_scale(pixels: Bytes) -> float:
    scale = float(max(1.0, MIN_SIDE / min(pixels.shape)))
    # A very long strip is not enlarged without limit.
    return min(scale, float(max(1.0, 4 * MIN_SIDE / max(pixels.shape))))


def even_contrast(view: Bytes) -> Bytes:
    """Local mean to mid-grey and local spread to a fixed one: white letters on white bone become letters again."""
    spread = min(view.shape) / 24
    level = view.astype(np.float32)
    level -= cv2.GaussianBlur(level, (0, 0), spread)
    local = np.sqrt(cv2.GaussianBlur(level * level, (0, 0), spread))
    # 6 grey levels: flatter than that is noise, and is not blown up to full contrast.
    evened: Bytes = np.clip(128 + level / np.maximum(local, 6) * 50, 0, 255).astype(np.uint8)
    return evened


def _stretched(pixels: Bytes, scale: float) -> tuple[Bytes, Bytes]:
    """Its dark end and its bright end stretched, before resizing mixes a letter with what is beside it."""
    levels = (255 * (np.arange(256) / 255) ** END_GAMMA).astype(np.uint8)
    return _resize(levels[pixels], scale), _resize(255 - levels[255 - pixels], scale)


def _starts(length: int) -> range:
    return range(0, max(1, length - TILE_OVERLAP), MAX_TILE - TILE_OVERLAP)


def _resize(pixels: Bytes, scale: float) -> Bytes:
    if scale == 1:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(pixels, size, interpolation=method).astype(np.uint8)


def _fill(pixels: NDArray[Any], box: Box) -> None:
    outer = pixels[max(0, box.y0 - 2) : box.y1 + 2, max(0, box.x0 - 2) : box.x1 + 2]
    around = np.ones(outer.shape[:2], bool)
    around[min(2, box.y0) :, min(2, box.x0) :][: box.y1 - box.y0, : box.x1 - box.x0] = False
    ring = outer[around]
    value = np.median(ring, axis=0) if len(ring) else np.zeros(pixels.shape[2:])
    pixels[box.y0 : box.y1, box.x0 : box.x1] = np.asarray(value).astype(pixels.dtype)
