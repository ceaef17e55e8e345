"""From a sampler's range to pixels that other software reads, and a filter for speckled samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ghostnet.models import PixelRange


def to_uint8(images: torch.Tensor, pixel_range: PixelRange) -> np.ndarray:
    """De-normalises: float (n,c,h,w) in the plan's range -> uint8 (n,h,w) for one channel, (n,h,w,3) for three."""
    unit = (images + 1) / 2 if pixel_range == "[-1,1]" else images
    pixels = (unit.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def median_denoise(images: torch.Tensor) -> torch.Tensor:
    """3x3 median of every channel, edges replicated: float (n,c,h,w) -> the same shape; for speckled samples."""
    n, c, h, w = images.shape
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    windows = nn.functional.unfold(padded.reshape(n * c, 1, h + 2, w + 2), 3)  # (n*c, 9, h*w)
    return windows.median(dim=1).values.reshape(n, c, h, w)
