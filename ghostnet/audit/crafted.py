"""Weights that a lying coordinator would send: rounding of one row, amplified until it decides what the row adds.

A row's float32 result may depend on how many rows stand beside it and at which place. Ordinary weights hide it in the
last bit; these do not. Two ways, for any network: a last layer orthogonal to what it is given, so that every logit is
the rounding of a dot product; and channels in equal pairs which the next convolution cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Crafted:
    """A network made to harm, and in words how."""

    network: nn.Module
    words: str


def crafted_weights(
    build: Callable[[], nn.Module], run: Callable[[nn.Module], object], scale: float
) -> Iterator[Crafted]:
    """Networks of one form with weights made to harm some rows.

    Args:
        build: gives a fresh network.
        run: runs a network on these rows, which the last layer is made orthogonal to.
        scale: size of the weights that amplify.
    """
    network = build()
    _without_labels_and_biases(network)
    _head_across(network, run, scale)
    yield Crafted(network=network, words=f"a last layer across, {scale:g}")
    count = len(_pairs(network))
    for place in sorted({0, 1, count - 1} & set(range(count))):
        network = build()
        _without_labels_and_biases(network)
        _cancel_pairs(*_pairs(network)[place], scale)
        yield Crafted(network=network, words=f"cancelling pairs at {place}, {scale:g}")


@torch.no_grad()
def _without_labels_and_biases(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Embedding):
            nn.init.zeros_(layer.weight)
        elif isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def _head_across(network: nn.Module, run: Callable[[nn.Module], object], scale: float) -> None:
    """The last layer that runs gets weights of norm `scale`, orthogonal to all that it is given for these rows."""
    given: list[tuple[nn.Linear | nn.Conv2d, Tensor]] = []
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(lambda own, args: given.append((own, args[0]))) for layer in layers]
    run(network)
    for hook in hooks:
        hook.remove()
    head, inputs = given[-1]
    seen = inputs.flatten(1).double()  # (n, in)
    public = torch.Generator().manual_seed(1)
    across = torch.randn(seen.shape[1], generator=public, dtype=torch.float64)
    basis = torch.linalg.qr(seen[: seen.shape[1] - 1].T)[0]
    across -= basis @ (basis.T @ across)
    signs = 1 - 2 * (torch.arange(len(head.weight)) % 2)  # a classifier's score is the difference of two outputs
    row = (across / across.norm() * scale).reshape(head.weight[:1].shape)
    head.weight.copy_(row * signs.reshape(-1, *[1] * (row.dim() - 1)))


def _pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.Conv2d]]:
    """Convolutions of which the second reads what the first writes, as far as channels tell."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    return [(a, b) for a, b in zip(layers, layers[1:], strict=False) if a.out_channels == b.in_channels]


@torch.no_grad()
def _cancel_pairs(first: nn.Conv2d, second: nn.Conv2d, scale: float) -> None:
    public = torch.Generator().manual_seed(2)
    first.weight.copy_(torch.randn(first.weight.shape, generator=public) / math.sqrt(first.weight[0].numel()))
    first.weight[1::2] = first.weight[0::2]
    second.weight.copy_(torch.randn(second.weight.shape, generator=public) * scale)
    second.weight[:, 1::2] = -second.weight[:, 0::2]
