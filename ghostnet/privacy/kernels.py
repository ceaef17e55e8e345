"""Layers with a kernel: each one's gradients by group, from its input and the gradient at its output.

A layer that is not in the table is computed by torch.func (bookkeeping.py), which is right and slower.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghostnet.privacy.convolutions import convolution
from ghostnet.privacy.groups import Groups, ParameterGradient, kept, outer_products

Kernel = Callable[[nn.Module, Tensor, Tensor, Groups], dict[str, ParameterGradient]]
"""(layer, input, gradient at the output, groups) -> gradients by the parameter's name in the layer."""


def kernel_of(layer: nn.Module) -> Kernel | None:
    """The layer's kernel, or None."""
    if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str):
        return None
    return _KERNELS.get(type(layer))


def _normalisation(
    layer: nn.GroupNorm | nn.InstanceNorm2d, x: Tensor, g: Tensor, groups: Groups
) -> dict[str, ParameterGradient]:
    """GroupNorm and InstanceNorm2d: x, g (r, channels, ...)."""
    found = {}
    if layer.weight is not None:
        count = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
        normalised = F.group_norm(x, count, eps=layer.eps)
        found["weight"] = kept(groups.sum(normalised.mul_(g).flatten(2).sum(2)))
    if layer.bias is not None:
        found["bias"] = kept(groups.sum(g.flatten(2).sum(2)))
    return found


def _layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """Rows x and gradients at the output g, both (r, ..., *normalized_shape)."""
    shape = (len(x), -1, *layer.normalized_shape)
    found = {}
    if layer.weight is not None:
        normalised = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        found["weight"] = kept(groups.sum(normalised.mul_(g).reshape(shape).sum(1)))
    if layer.bias is not None:
        found["bias"] = kept(groups.sum(g.reshape(shape).sum(1)))
    return found


def _embedding(layer: nn.Embedding, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X int64 (r, ...), g (r, ..., d)."""
    owners = groups.ids.reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)
    pairs, place = torch.unique(owners * layer.num_embeddings + x, return_inverse=True)
    sums = g.new_zeros(len(pairs), g.shape[-1]).index_add_(0, place.flatten(), g.reshape(-1, g.shape[-1]))
    owner, label = pairs // layer.num_embeddings, pairs % layer.num_embeddings
    squared = sums.new_zeros(len(groups.sizes)).index_add_(0, owner, sums.square().sum(1))

    def weighted_sum(factors: Tensor) -> Tensor:
        return torch.zeros_like(layer.weight).index_add_(0, label, sums * factors[owner, None])

    return {"weight": ParameterGradient(squared_norm=squared, weighted_sum=weighted_sum)}


def _linear(layer: nn.Linear, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X (r, ..., in), g (r, ..., out)."""
    x, g = (t.reshape(len(t), -1, t.shape[-1]) for t in (x, g))  # (r, t, in), (r, t, out)
    found = {"weight": outer_products(x, g, groups)}
    if layer.bias is not None:
        found["bias"] = kept(groups.sum(g.sum(1)))
    return found


_KERNELS: dict[type[nn.Module], Kernel] = {
    nn.Conv2d: convolution,  # type: ignore[dict-item]
    nn.Linear: _linear,  # type: ignore[dict-item]
    nn.GroupNorm: _normalisation,  # type: ignore[dict-item]
    nn.InstanceNorm2d: _normalisation,  # type: ignore[dict-item]
    nn.LayerNorm: _layer_norm,  # type: ignore[dict-item]
    nn.Embedding: _embedding,  # type: ignore[dict-item]
}
