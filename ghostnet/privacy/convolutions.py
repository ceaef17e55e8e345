"""Per-group gradients of a convolution: a sum over positions of outer(gradient at the output, patch of the input).

Sources: Bu et al. 2022 (arXiv:2205.10683) for norms from Gram matrices of patches ("ghost norms"), here in
groups.py for those layers whose gradients are too large to be kept.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from ghostnet.privacy.groups import Groups, ParameterGradient, Scratch, kept, outer_products


def convolution(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X (r, in, h, w), g (r, out, h', w')."""
    found = {}
    if layer.bias is not None:
        found["bias"] = kept(g.sum((2, 3)), groups)
    found["weight"] = outer_products(patches(layer, x, groups.scratch), g.flatten(2), groups)
    return found


def patches(layer: nn.Conv2d, x: Tensor, scratch: Scratch) -> Tensor:
    """What each tap of the kernel sees at each position of the output: (r, in kh kw, positions).

    As `torch.nn.functional.unfold`, at half its time.
    """
    if isinstance(layer.padding, str):
        raise TypeError("a padding given by name has no kernel")  # `kernel_of` sends such layers to torch.func
    (top, left), (down, right), (dy, dx) = layer.padding, layer.stride, layer.dilation
    kh, kw = layer.kernel_size
    x = pad(x, (left, left, top, top))
    height = (x.shape[2] - dy * (kh - 1) - 1) // down + 1
    width = (x.shape[3] - dx * (kw - 1) - 1) // right + 1
    row, channel, line, pixel = x.stride()
    seen = x.as_strided(
        (len(x), x.shape[1], kh, kw, height, width),
        (row, channel, dy * line, dx * pixel, down * line, right * pixel),
    )
    return scratch.take(tuple(seen.shape), x).copy_(seen).flatten(4).flatten(1, 3)
