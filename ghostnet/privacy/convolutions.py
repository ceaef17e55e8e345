"""Per-group gradients of a convolution: a sum over positions of outer(gradient at the output, patch of the input).

Sources: Bu et al. 2022 (arXiv:2205.10683) for norms from Gram matrices of patches ("ghost norms"), here in
groups.py for those layers whose gradients are too large to be kept.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ghostnet.privacy.groups import Groups, ParameterGradient, Scratch, is_kept, kept, outer_products


def convolution(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X (r, in, h, w), g (r, out, h', w')."""
    found = {}
    if layer.bias is not None:
        found["bias"] = kept(g.sum((2, 3)), groups)
    found["weight"] = outer_products(_patches(layer, x, groups.scratch), g.flatten(2), groups)
    return found


def _patches(layer: nn.Conv2d, x: Tensor, scratch: Scratch) -> Tensor:
    """The input of each kernel tap at each position of the output: (r, in kh kw, positions).

    As `torch.nn.functional.unfold`, at half its time.
    """
    if isinstance(layer.padding, str):
        raise TypeError("a padding given by name has no kernel")  # `kernel_of` sends such layers to torch.func
    (top, left), (down, right), (dy, dx) = layer.padding, layer.stride, layer.dilation
    kh, kw = layer.kernel_size
    shape = (*x.shape[:2], x.shape[2] + 2 * top, x.shape[3] + 2 * left)
    padded = scratch.borrow("padded", shape, x).zero_()
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    x = padded
    height = (x.shape[2] - dy * (kh - 1) - 1) // down + 1
    width = (x.shape[3] - dx * (kw - 1) - 1) // right + 1
    row, channel, line, pixel = x.stride()
    seen = x.as_strided(
        (len(x), x.shape[1], kh, kw, height, width),
        (row, channel, dy * line, dx * pixel, down * line, right * pixel),
    )
    # Where the gradient is kept, nobody needs the patches after it.
    place = partial(scratch.borrow, "patches") if is_kept(layer.weight.numel()) else scratch.take
    to = place(tuple(seen.shape), x)
    return to.copy_(seen).flatten(4).flatten(1, 3)
