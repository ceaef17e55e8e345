"""Pictures of many samples at once, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 2  # pixels between two samples
CAPTION_HEIGHT = 22
MARGIN = 10
OUTLINE = (235, 64, 52)  # of a mask, on the image that it belongs to


def png_bytes(picture: np.ndarray) -> bytes:
    """One picture as PNG: uint8 (h,w) grey or (h,w,3) colour."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def strip(images: np.ndarray, *, scale: int = 1) -> np.ndarray:
    """Samples side by side on white: uint8 (n,h,w[,3]) -> uint8 (h*scale, width[,3])."""
    tiles = [_enlarge(image, scale) for image in images]
    gap = np.full((tiles[0].shape[0], GAP * scale, *tiles[0].shape[2:]), 255, np.uint8)
    parts = [part for tile in tiles for part in (tile, gap)][:-1]
    return np.concatenate(parts, axis=1)


def outlined(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Each image in colour with the border of its mask: uint8 (n,h,w[,3]), uint8 0/1 (n,h,w) -> uint8 (n,h,w,3)."""
    coloured = np.repeat(images[..., None], 3, axis=-1) if images.ndim == 3 else images.copy()
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    inner = np.minimum.reduce([padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]])
    coloured[masks > inner] = OUTLINE
    return coloured


def labelled_grid(samples: Mapping[str, np.ndarray], *, scale: int = 2) -> bytes:
    """One captioned row for each label, as PNG.

    Args:
        samples: label -> uint8 (n,h,w) or (n,h,w,3).
        scale: whole-number enlargement.
    """
    rows = {label: Image.fromarray(strip(images, scale=scale)).convert("RGB") for label, images in samples.items()}
    width = max(row.width for row in rows.values()) + 2 * MARGIN
    height = sum(row.height + CAPTION_HEIGHT for row in rows.values()) + MARGIN
    page = Image.new("RGB", (width, height), "white")
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(size=14), 0
    for label, row in rows.items():
        draw.text((MARGIN, top + 3), label, fill=(40, 48, 60), font=font)
        page.paste(row, (MARGIN, top + CAPTION_HEIGHT))
        top += CAPTION_HEIGHT + row.height
    return png_bytes(np.asarray(page))


def _enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    if scale == 1:
        return image
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
