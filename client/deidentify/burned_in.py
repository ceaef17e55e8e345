"""Text burned into pixels: find it, blank it, look again until none is found.

The header cannot be trusted to say whether there is any, and which words identify somebody cannot be told from the
words, so every text is blanked, view markers included. No text is read or kept: boxes only.

One look is one view of the whole image (in tiles if it is large, and at half sizes for large letters) and several of
each place where strokes as narrow as those of letters lie close together (`text_strokes`): enlarged, turned, and with
either end of the scale stretched, where letters at its very end stand out from noise that is almost as dark. Where
noise is found, a de-noised copy is looked at too, and its strokes count. What surrounds a text is looked at once more.
After blanking, the next look is at those surroundings, or at everything if the image's greys span less than before.
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
from client.deidentify.text_strokes import stroke_places
from client.preprocess import denoise, detect_noise
from ghostnet.errors import DataError

Pixel = TypeVar("Pixel", bound=np.generic)
Bytes = NDArray[np.uint8]

ROUNDS = 6  # looks, the last of which must be empty
MIN_SIDE = 512  # px; smaller images are enlarged to it: at 256 px the detector misses half of 9-px letters
CLOSE, CLOSER = 2.0, 1.25  # places with strokes are enlarged so much, or so much more than the rest of a small image
MAX_TILE = 1024  # px; larger images are looked at in tiles, and again at half the size for large letters
TILE_OVERLAP = 128  # px; letters up to this height are whole in at least one tile
WHOLE_SIDE = 256  # px; all of the image is looked at with its shorter side at least this long
MAX_ENLARGED = 5.0  # times: letters of 6 px in an image of 128 px are 30 px then
BEST_HEIGHT = 28  # px; what surrounds a text is looked at once more, with its lines at this height
SAME_SPAN = 0.9  # of the grey values before: an image whose greys span less is searched again everywhere
TALLEST_TURNED = 500  # px; the shorter side of an image in which turned letters are no taller than strokes tell
END_GAMMA = 0.15  # stretches the end of the scale: 8-bit levels 0, 1, 2 become 0, 111, 123
END_SCALE = 1.5  # times at least: the size at which letters in near black are found
END_CONTRAST = 48  # grey levels of a stretched end, which are between levels 0 and 1, or 2 and 14
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

    @property
    def share(self) -> float:
        """Of the image's pixels, those that were overwritten."""
        over = np.zeros(self.pixels.shape[:2], bool)
        for box in self.boxes:
            over[box.y0 : box.y1, box.x0 : box.x1] = True
        return float(over.mean())


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
        `clean` means that the detector finds nothing more where it looks, not that nothing is there: in each image,
        or after blanking around what was blanked, and closely only where strokes lie close together. Measured recall
        is in docs/results.md.
        Not covered: faint single words, letters of less than 6 px or much noise over them, handwriting.
    """
    blanked = pixels.copy()
    tight: list[Box] = []
    done: list[Box] = []
    near: list[Box] | None = None
    span = _span(blanked)
    for _ in range(ROUNDS):
        found = [box for shown in _renders(blanked) for box in _find(shown, tight, near)]
        if not found:
            return Blanked(pixels=blanked, boxes=outermost(done), clean=True)
        tight += found
        new = [area for area in areas(tight, pixels.shape) if area not in done]
        for area in new:
            _fill(blanked, area)
        done += new
        # What was searched and looks as before need not be searched again; a smaller span shows fainter letters.
        narrower = _span(blanked) < SAME_SPAN * span
        near, span = (None if narrower else surroundings(found, pixels.shape)), _span(blanked)
    return Blanked(pixels=blanked, boxes=outermost(done), clean=False)


def _span(pixels: NDArray[Any]) -> float:
    known = _grey(pixels)
    known = known[np.isfinite(known)]
    return float(np.ptp(np.percentile(known, RENDER_PERCENTILES))) if known.size else 0.0


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


def _find(pixels: Bytes, done: Sequence[Box], near: Sequence[Box] | None = None) -> list[Box]:
    """Text of one look, or of the parts of it in `near`; weak boxes count where they continue what was found before."""
    if pixels.ndim != 2 or pixels.dtype != np.uint8 or not pixels.size:
        raise DataError(f"text is looked for in (h,w) uint8, not {pixels.shape} {pixels.dtype}; render the image first")
    looks = _looks(pixels)
    found = [item for look in looks for view in _views(look, near) for item in view.look(pixels.shape)]
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
    last: bool  # whether there is no copy with less noise
    ends: bool  # whether its ends are looked at stretched: under noise, noise is all there is to see in them


def _looks(pixels: Bytes) -> list[_Look]:
    """The image, and again without the noise it has, if any: it hides letters from the detector and not from a person.

    Impulses go first and alone. Gaussian noise goes by non-local means, which keep the strokes of letters of 7 px;
    wavelets and blurring do not.
    """
    pixels01 = (pixels / np.float32(255)).astype(np.float32)
    noise = detect_noise(pixels01)
    copies = [pixels]
    if noise.impulse_fraction:
        pixels = np.rint(denoise(pixels01, dataclasses.replace(noise, sigma=0.0)) * 255).astype(np.uint8)
        copies.append(pixels)
    if noise.sigma:
        strength = STRENGTH * 255 * min(noise.sigma, MAX_SIGMA)
        copies.append(cv2.fastNlMeansDenoising(pixels, None, strength, PATCH, SEARCH).astype(np.uint8))
    looks = [_Look(pixels=copy, last=copy is copies[-1], ends=not noise.sigma) for copy in copies]
    return looks


@dataclass(frozen=True, kw_only=True)
class _View:
    """A part of the image at one scale, and where it lies."""

    pixels: Bytes
    scale: float
    left: int
    top: int
    upright: bool = True
    turned: bool = False
    tall: float = 1.0  # how tall letters may be, beside what is usual

    def look(self, shape: tuple[int, ...]) -> list[Found]:
        # Of tiles the shorter side counts: what is tall in one is seen again at half the size.
        side = min(min(shape[:2]) * self.scale, MAX_TILE) * self.tall
        found = [
            *(detect(self.pixels, side) if self.upright else ()),
            *(detect_turned(self.pixels, side) if self.turned else ()),
        ]
        return [dataclasses.replace(item, box=self._to_image(item.box, shape)) for item in found]

    def _to_image(self, box: Box, shape: tuple[int, ...]) -> Box:
        return Box(
            x0=max(0, int((box.x0 + self.left) / self.scale)),
            y0=max(0, int((box.y0 + self.top) / self.scale)),
            x1=min(shape[1], int(np.ceil((box.x1 + self.left) / self.scale))),
            y1=min(shape[0], int(np.ceil((box.y1 + self.top) / self.scale))),
        )


def _views(look: _Look, near: Sequence[Box] | None) -> Iterator[_View]:
    """All of the image at its own size and at halves of it, and enlarged the places where letters may be.

    Args:
        look: the image.
        near: where to look; None is everywhere.
    """
    even = even_contrast(look.pixels)
    first, close = _first_scale(even), _close_scale(even)
    if near is None:
        yield from _whole(even)
    for place in near or ():
        yield from _part(even, place, first)
    if not look.last:  # strokes are told from noise in the copy without it
        return
    for place in _within(stroke_places(look.pixels), near):
        if close > 1:
            yield from _part(even, place, close, tall=SMALL_LETTERS)
        yield from _part(even, place, first, upright=False, turned=True)
    for plane, places in _ends(look):
        for place in _within(places, near):
            yield from _part(plane, place, max(first, END_SCALE), tall=SMALL_LETTERS)


def _ends(look: _Look) -> Iterator[tuple[Bytes, list[Box]]]:
    """Its ends stretched, each with the places where strokes stand out in it."""
    if look.ends and max(look.pixels.shape) <= MAX_TILE:  # in tiles they would cost as much as all the rest
        for stretched in _stretched(look.pixels):
            yield stretched, stroke_places(stretched, contrast=END_CONTRAST)


def _within(places: Sequence[Box], near: Sequence[Box] | None) -> list[Box]:
    """The parts of places that lie in one of `near`; all of them if that is None."""
    if near is None:
        return list(places)
    cut = [
        Box(x0=max(a.x0, b.x0), y0=max(a.y0, b.y0), x1=min(a.x1, b.x1), y1=min(a.y1, b.y1))
        for a in places
        for b in near
    ]
    return [box for box in cut if box.x0 < box.x1 and box.y0 < box.y1]


def _whole(even: Bytes) -> Iterator[_View]:
    """In tiles; halves are for letters too tall for the tile, or to be turned and tall."""
    scale = float(max(1.0, min(MAX_ENLARGED, WHOLE_SIDE / min(even.shape))))
    last = min(MAX_TILE / max(even.shape), TALLEST_TURNED / min(even.shape))
    while True:
        yield from _part(even, Box(x0=0, y0=0, x1=even.shape[1], y1=even.shape[0]), scale, turned=scale < 1)
        if scale <= last or scale * min(even.shape) < WHOLE_SIDE:
            return
        scale /= 2


def _part(
    plane: Bytes, place: Box, scale: float, *, upright: bool = True, turned: bool = False, tall: float = 1.0
) -> Iterator[_View]:
    """A rectangle of the plane at one scale, in tiles if it is large."""
    level = _resize(plane[place.y0 : place.y1, place.x0 : place.x1], scale)
    for top in _starts(level.shape[0]):
        for left in _starts(level.shape[1]):
            yield _View(
                pixels=np.ascontiguousarray(level[top : top + MAX_TILE, left : left + MAX_TILE]),
                scale=scale,
                left=round(place.x0 * scale) + left,
                top=round(place.y0 * scale) + top,
                upright=upright,
                turned=turned,
                tall=tall,
            )


def _closer(look: _Look, boxes: Sequence[Box]) -> Iterator[_View]:
    """What surrounds each group of boxes, with their letters at the size that the network sees best."""
    even = even_contrast(look.pixels)
    turned = any(box.y1 - box.y0 > box.x1 - box.x0 for box in boxes)
    ends = list(_ends(look))
    for place in surroundings(boxes, even.shape):
        inside = [box for box in boxes if place.x0 <= box.x0 < place.x1 and place.y0 <= box.y0 < place.y1]
        height = sorted(box.height for box in inside)[len(inside) // 2]
        scale = min(MAX_ENLARGED, max(1.0, BEST_HEIGHT / height))
        scale = min(scale, max(1.0, MAX_TILE / max(place.x1 - place.x0, place.y1 - place.y0)))
        yield from _part(even, place, scale, turned=turned, tall=SMALL_LETTERS)
        for plane, places in ends:
            for part in _within(places, [place]):
                yield from _part(plane, part, scale, tall=SMALL_LETTERS)


def _first_scale(pixels: Bytes) -> float:
    scale = float(max(1.0, min(MAX_ENLARGED, MIN_SIDE / min(pixels.shape))))
    # A very long strip is not enlarged without limit.
    return min(scale, float(max(1.0, 4 * MIN_SIDE / max(pixels.shape))))


def _close_scale(pixels: Bytes) -> float:
    """The scale of places where small letters may be; of a large image, its own."""
    if max(pixels.shape) > MAX_TILE:
        return 1.0
    return min(MAX_ENLARGED, max(CLOSE, CLOSER * _first_scale(pixels)))


def even_contrast(view: Bytes) -> Bytes:
    """Local mean to mid-grey and local spread to a fixed one: white letters on white bone become letters again."""
    spread = min(*view.shape, MAX_TILE) / 24
    level = view.astype(np.float32)
    level -= _blurred(level, spread)
    local = np.sqrt(np.maximum(_blurred(level * level, spread), 0))
    # 6 grey levels: flatter than that is noise, and is not blown up to full contrast.
    evened: Bytes = np.clip(128 + level / np.maximum(local, 6) * 50, 0, 255).astype(np.uint8)
    return evened


def _blurred(level: NDArray[np.float32], spread: float) -> NDArray[np.float32]:
    """Gaussian blur, of a smaller copy where that is the same to the eye and many times cheaper."""
    factor = max(1, int(spread / 4))
    if factor == 1 or min(level.shape) < 4 * factor:
        return cv2.GaussianBlur(level, (0, 0), max(spread, 0.5)).astype(np.float32)
    size = (level.shape[1] // factor, level.shape[0] // factor)
    small = cv2.GaussianBlur(cv2.resize(level, size, interpolation=cv2.INTER_AREA), (0, 0), spread / factor)
    return cv2.resize(small, level.shape[::-1], interpolation=cv2.INTER_LINEAR).astype(np.float32)


def _stretched(pixels: Bytes) -> tuple[Bytes, Bytes]:
    """The same with its dark end, and with its bright end stretched."""
    levels = (255 * (np.arange(256) / 255) ** END_GAMMA).astype(np.uint8)
    return levels[pixels], (255 - levels[255 - pixels]).astype(np.uint8)


def _starts(length: int) -> range:
    return range(0, max(1, length - TILE_OVERLAP), MAX_TILE - TILE_OVERLAP)


def _resize(pixels: Bytes, scale: float) -> Bytes:
    if scale == 1:
        return np.ascontiguousarray(pixels)
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(pixels, size, interpolation=method).astype(np.uint8)


def _fill(pixels: NDArray[Any], box: Box) -> None:
    outer = pixels[max(0, box.y0 - 2) : box.y1 + 2, max(0, box.x0 - 2) : box.x1 + 2]
    around = np.ones(outer.shape[:2], bool)
    around[min(2, box.y0) :, min(2, box.x0) :][: box.y1 - box.y0, : box.x1 - box.x0] = False
    ring = outer[around]
    value = np.median(ring, axis=0) if len(ring) else np.zeros(pixels.shape[2:])
    pixels[box.y0 : box.y1, box.x0 : box.x1] = np.asarray(value).astype(pixels.dtype)
