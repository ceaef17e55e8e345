"""Layers with a kernel: each one's gradients by group, from its input and the gradient at its output.

A layer that is not in the table is computed by torch.func (bookkeeping.py), which is right and slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ghostnet.privacy.convolutions import convolution
from ghostnet.privacy.groups import Groups, ParameterGradient, Tile, kept, outer_products, squared_norms

Kernel = Callable[[nn.Module, Tensor, Tensor, Groups], dict[str, ParameterGradient]]
"""(layer, input, gradient at the output, groups) -> gradients by the parameter's name in the layer."""


def kernel_of(layer: nn.Module) -> Kernel | None:
    """The layer's kernel, or None."""
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.groups != 1):
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
        found["weight"] = kept(normalised.mul_(g).flatten(2).sum(2), groups)
    if layer.bias is not None:
        found["bias"] = kept(g.flatten(2).sum(2), groups)
    return found


def _layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """Rows x and gradients at the output g, both (r, ..., *normalized_shape)."""
    shape = (len(x), -1, *layer.normalized_shape)
    found = {}
    if layer.weight is not None:
        normalised = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        found["weight"] = kept(normalised.mul_(g).reshape(shape).sum(1), groups)
    if layer.bias is not None:
        found["bias"] = kept(g.reshape(shape).sum(1), groups)
    return found


def _embedding(layer: nn.Embedding, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X int64 (r, ...), g (r, ..., d); a tile is what the groups say about one label."""
    rows, d = len(x), layer.embedding_dim
    x, g = x.reshape(rows, -1), g.reshape(rows, -1, d)

    def about(label: int) -> Tensor:
        said = (g * (x == label)[:, :, None]).sum(1)  # (r, d)
        return said if groups.are_rows else groups.sum(said, torch.empty_like(said))

    labels = torch.unique(x).tolist()
    squared = torch.stack([squared_norms(about(label)) for label in labels]).sum(0)

    def scaled(factors: Tensor) -> Iterator[Tile]:
        for label in labels:
            values = about(label) * factors.to(g.dtype)[:, None]
            yield Tile(rows=slice(label, label + 1), columns=slice(0, d), values=values)

    return {"weight": ParameterGradient(matrix=(layer.num_embeddings, d), squared_norm=squared, scaled=scaled)}


def _linear(layer: nn.Linear, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X (r, ..., in), g (r, ..., out)."""
    x, g = (t.reshape(len(t), -1, t.shape[-1]).transpose(1, 2) for t in (x, g))  # (r, in, t), (r, out, t)
    found = {"weight": outer_products(x, g, groups)}
    if layer.bias is not None:
        found["bias"] = kept(g.sum(2), groups)
    return found


_KERNELS: dict[type[nn.Module], Kernel] = {
    nn.Conv2d: convolution,  # type: ignore[dict-item]
    nn.Linear: _linear,  # type: ignore[dict-item]
    nn.GroupNorm: _normalisation,  # type: ignore[dict-item]
    nn.InstanceNorm2d: _normalisation,  # type: ignore[dict-item]
    nn.LayerNorm: _layer_norm,  # type: ignore[dict-item]
    nn.Embedding: _embedding,  # type: ignore[dict-item]
}
