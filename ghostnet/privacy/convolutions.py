"""The kernel of Conv2d: norms of groups' weight gradients, formed and kept, formed and dropped, or from Gram matrices.

Whichever is cheaper for the layer's shape; gradients too small to be worth a call each are formed all at once.

A strided convolution's Gram matrix is taken after `pixel_unshuffle`, which needs neither unfolded inputs nor pairs of
positions that no tap can pair.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghostnet.privacy import groups as grouping
from ghostnet.privacy.groups import Groups, ParameterGradient, kept, outer_products, paired, rounding_reserve

_SMALL_COST = 250_000  # multiply-adds that a call's overhead is worth, measured
_COPY_COST = 64  # multiply-adds that writing one number of a group's gradient costs, measured


def convolution(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X (r, in, h, w), g (r, out, h', w')."""
    found = {}
    if layer.bias is not None:
        found["bias"] = kept(groups.sum(g.sum((2, 3))))
    if x.shape[2:] == layer.kernel_size and g.shape[2:] == (1, 1) and layer.groups == 1:  # one tap a pixel: linear
        as_linear = outer_products(x.flatten(1)[:, None], g.flatten(1)[:, None], groups)
        found["weight"] = ParameterGradient(
            squared_norm=as_linear.squared_norm,
            weighted_sum=lambda factors: as_linear.weighted_sum(factors).reshape(layer.weight.shape),
        )
    elif _is_small(layer, x, g):
        found["weight"] = _unfolded_convolution(layer, x, g, groups)
    elif _worth_keeping(layer, x, g, groups):
        found["weight"] = _kept_convolution(layer, x, g, groups)
    else:
        found["weight"] = ParameterGradient(
            squared_norm=_convolution_norms(layer, x, g, groups),
            weighted_sum=lambda factors: _weight_gradient(layer, x, g * factors[groups.ids, None, None, None]),
        )
    return found


def _is_small(layer: nn.Conv2d, x: Tensor, g: Tensor) -> bool:
    """Whether a row's gradient costs less than a call does, so that all rows' are formed in one; within memory."""
    numbers = layer.weight.numel() * len(x)
    return layer.groups == 1 and _direct_cost(layer, g, 1) <= _SMALL_COST and numbers <= 2 * (x.numel() + g.numel())


def _worth_keeping(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> bool:
    """Whether groups' gradients, formed once and kept, cost less than norms and a weighted gradient; within memory."""
    numbers = layer.weight.numel() * len(groups.sizes)
    if numbers > 2 * (x.numel() + g.numel()):
        return False
    again = len(x) * _direct_cost(layer, g, 1) / 2
    counts = Counter(groups.sizes)
    costs = {size: _direct_cost(layer, g, size) for size in counts}
    direct = sum(counts[size] * costs[size] for size in counts)
    cheapest = sum(counts[size] * min(costs[size], _gram_cost(layer, g, size)) for size in counts)
    return direct <= cheapest + again


def _direct_cost(layer: nn.Conv2d, g: Tensor, size: int) -> float:
    """Multiply-adds, and their worth in copying, of a group's weight gradient."""
    return float(layer.weight.numel() * (size * g.shape[2] * g.shape[3] + _COPY_COST))


def _gram_cost(layer: nn.Conv2d, g: Tensor, size: int) -> float:
    """Multiply-adds of a group's Gram matrices; infinite where they do not apply."""
    stride = layer.stride[0]
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.stride[1] != stride:
        return float("inf")
    if layer.kernel_size[0] % stride or layer.kernel_size[1] % stride:
        return float("inf")
    height, width = _unshuffled(layer, g)
    inputs = (size * height * width) ** 2 * layer.in_channels * stride**2
    return float(inputs + (size * g.shape[2] * g.shape[3]) ** 2 * layer.out_channels)


def _unshuffled(layer: nn.Conv2d, g: Tensor) -> tuple[int, int]:
    """Height and width of the input that the taps reach, in blocks of stride x stride pixels."""
    stride = layer.stride[0]
    return g.shape[-2] - 1 + layer.kernel_size[0] // stride, g.shape[-1] - 1 + layer.kernel_size[1] // stride


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if isinstance(layer.padding, str):
        raise TypeError("a padding given by name has no kernel")  # `_kernel` sends such layers to torch.func
    return layer.padding[0], layer.padding[1]


def _weight_gradient(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Sum over rows of the weight's gradient."""
    _, weight, _ = torch.ops.aten.convolution_backward(
        *(g, x, layer.weight, None, layer.stride, _padding(layer), layer.dilation),
        *(False, [0, 0], layer.groups, [False, True, False]),
    )
    return weight  # type: ignore[no-any-return]


def _unfolded_convolution(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> ParameterGradient:
    columns = F.unfold(x, layer.kernel_size, layer.dilation, _padding(layer), layer.stride)  # (r, in kh kw, positions)
    per_row = g.flatten(2) @ columns.transpose(1, 2)  # (r, out, in kh kw)
    return kept(groups.sum(per_row).reshape(-1, *layer.weight.shape))


def _kept_convolution(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> ParameterGradient:
    gradients = [_weight_gradient(layer, x[span], g[span]) for span in groups.spans()]
    squared = torch.stack([w.flatten().dot(w.flatten()) for w in gradients])  # while it is in the cache

    def weighted_sum(factors: Tensor) -> Tensor:
        total = torch.zeros_like(layer.weight)
        for gradient, factor in zip(gradients, factors.tolist(), strict=True):
            total.add_(gradient, alpha=factor)
        return total

    return ParameterGradient(squared_norm=squared, weighted_sum=weighted_sum)


def _convolution_norms(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> Tensor:
    squared = x.new_empty(len(groups.sizes))
    for size in set(groups.sizes):
        by_gram = _gram_cost(layer, g, size) <= _direct_cost(layer, g, size)
        positions = size * g.shape[2] * g.shape[3]
        for chosen, take in groups.blocks(size, max(1, grouping.GRAM_ELEMENTS // positions**2) if by_gram else 1):
            if by_gram:
                squared[chosen] = _convolution_gram(layer, take(x), take(g))
            else:
                one, at_output = take(x)[0], take(g)[0]
                w = _weight_gradient(layer, one, at_output).flatten()
                squared[chosen] = w.dot(w) + _direct_reserve(layer, one, at_output)
    return squared


def _direct_reserve(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """The rounding reserve (1,) of one group's rows: all rows are summed anew, not what was measured."""
    ones = x.new_ones(1, 1, *layer.kernel_size)
    patches = F.conv2d(x.square().sum(1, keepdim=True), ones, None, layer.stride, _padding(layer), layer.dilation)
    return rounding_reserve(patches.reshape(1, -1), g.square().sum(1).reshape(1, -1))


def _convolution_gram(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Squared norms (m,) of m groups of k rows; x (m, k, in, h, w), g (m, k, out, h', w').

    After `pixel_unshuffle` by the stride, the convolution has stride 1 and a kernel of (kh / s, kw / s): the Gram
    matrix of patches is a sum of shifted windows of the Gram matrix of pixels.
    """
    m, k, _, out_height, out_width = g.shape
    height, width = _unshuffled(layer, g)
    stride, (top, left) = layer.stride[0], _padding(layer)
    x = x.flatten(0, 1)
    bottom, right = height * stride - x.shape[2] - top, width * stride - x.shape[3] - left  # negative: cut off
    x = F.pixel_unshuffle(F.pad(x, (left, right, top, bottom)), stride)  # (m k, in s s, height, width)
    x = x.reshape(m, k, -1, height * width).transpose(2, 3).flatten(1, 2) if k > 1 else x.flatten(2).transpose(1, 2)
    pixels = (x @ x.transpose(1, 2)).reshape(m, k, height, width, k, height, width)
    patches = pixels.new_zeros(m, k, out_height, out_width, k, out_height, out_width)
    for i in range(layer.kernel_size[0] // stride):
        for j in range(layer.kernel_size[1] // stride):
            rows, columns = slice(i, i + out_height), slice(j, j + out_width)
            patches += pixels[:, :, rows, columns, :, rows, columns]
    positions = k * out_height * out_width
    g = g.flatten(3).transpose(2, 3).flatten(1, 2)  # (m, positions, out)
    return paired(patches.reshape(m, positions, positions), g @ g.transpose(1, 2))
