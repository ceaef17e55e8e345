"""Weights that a hostile coordinator would send: each kind makes the rounding of a sum as large as it can.

Used by `benchmarks.sensitivity_search`, on discriminators and classifiers alike. A craft changes a network in place,
knows the images of patients whom the coordinator knows, and draws the rest from the given streams.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

Features = Callable[[Tensor], object]
"""Runs the network on images (n, c, h, w), so that the input of its head can be seen."""


def head_of(network: nn.Module) -> nn.Conv2d | nn.Linear:
    """The last layer: what turns features into logits."""
    layers = [layer for layer in network.head.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    return layers[-1]


def read_features(network: nn.Module, run: Features, images: Tensor) -> Tensor:
    """What the head is given: float64 (n, numbers)."""
    seen: list[Tensor] = []
    handle = head_of(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    try:
        with torch.no_grad():
            run(images)
    finally:
        handle.remove()
    return seen[0].double()


def draw_ordinary(network: nn.Module, stream: torch.Generator) -> None:
    """Random weights of the size that keeps the scale of what passes through."""
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 1 / math.sqrt(max(1, parameter[0].numel()))
            parameter.copy_(torch.randn(parameter.shape, generator=stream) * spread)


def orthogonal_head(
    network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator
) -> None:
    """A head orthogonal to known patients' features, and huge: their logits are the rounding of one dot product."""
    head = head_of(network)
    features = read_features(network, run, known)
    some = features[: max(1, features.shape[1] // 2)]
    scale = 10.0 ** rng.uniform(3, 15)
    basis = torch.linalg.qr(some.T.nan_to_num()).Q
    with torch.no_grad():
        for row in head.weight:
            drawn = torch.randn(features.shape[1], generator=stream, dtype=torch.float64)
            drawn -= basis @ (basis.T @ drawn)
            row.copy_((drawn / drawn.norm() * scale).float().view_as(row))
        if head.bias is not None:
            head.bias.zero_()
        label_head = getattr(network, "label_head", None)
        if label_head is not None and rng.random() < 0.7:
            label_head.weight.zero_()


def cancelling_pairs(
    network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator
) -> None:
    """Channels in equal pairs, and a next layer in which each pair cancels: what comes out is rounding."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    pairs = [(a, b) for a, b in zip(layers, layers[1:], strict=False) if b.weight.shape[1] % a.weight.shape[0] == 0]
    first, second = rng.choice([pair for pair in pairs if pair[0].weight.shape[0] > 1])
    positions = second.weight.shape[1] // first.weight.shape[0]  # of a map that a linear layer reads flattened
    size = 10.0 ** rng.uniform(2, 12)
    with torch.no_grad():
        even = first.weight[0 : len(first.weight) // 2 * 2 : 2]
        first.weight[1::2] = even
        if first.bias is not None:
            first.bias.zero_()
        reading = second.weight.view(second.weight.shape[0], first.weight.shape[0], positions, -1)
        reading *= size
        reading[:, 1::2] = -reading[:, 0 : 2 * len(even) : 2]
        if second.bias is not None:
            second.bias.zero_()


def scaled_layers(
    network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator
) -> None:
    """Every parameter times a scale of its own, 1e-8 to 1e8."""
    _scale(network, lambda: 10.0 ** rng.uniform(-8, 8))


def denormals(network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator) -> None:
    """One parameter or all of them so small that float32 loses their last bits."""
    only = rng.choice([*range(len(list(network.parameters()))), None])
    _scale(network, lambda: 10.0 ** rng.uniform(-44, -32), only)


def near_overflow(
    network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator
) -> None:
    """One parameter or all of them so large that squares, sums or products pass float32's range."""
    only = rng.choice([*range(len(list(network.parameters()))), None])
    _scale(network, lambda: 10.0 ** rng.uniform(9, 37 if only is not None else 18), only)


def powers_of_two(
    network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator
) -> None:
    """Weights that are powers of two, up to 40 binary orders apart: sums swallow some of their terms."""
    reach = rng.choice((3, 10, 20))
    with torch.no_grad():
        for parameter in network.parameters():
            exponent = torch.randint(-reach, reach + 1, parameter.shape, generator=stream)
            parameter.copy_(torch.sign(parameter) * 2.0**exponent)


def swallowing_biases(
    network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator
) -> None:
    """Biases and gains so large that they take the last bits of what they are added to; the head is as large."""
    size = 10.0 ** rng.uniform(3, 12)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn(parameter.shape, generator=stream).sign() * size)
        head_of(network).weight.mul_(10.0 ** rng.uniform(0, 12))


def ordinary(network: nn.Module, run: Features, known: Tensor, rng: random.Random, stream: torch.Generator) -> None:
    """As drawn."""


def _scale(network: nn.Module, factor: Callable[[], float], only: int | None = None) -> None:
    with torch.no_grad():
        for place, parameter in enumerate(network.parameters()):
            if only is None or place == only:
                parameter.mul_(factor())


Craft = Callable[[nn.Module, Features, Tensor, random.Random, torch.Generator], None]
CRAFTS: dict[str, Craft] = {
    "orthogonal head": orthogonal_head,
    "cancelling pairs": cancelling_pairs,
    "scaled layers": scaled_layers,
    "denormals": denormals,
    "near overflow": near_overflow,
    "powers of two": powers_of_two,
    "swallowing biases": swallowing_biases,
    "ordinary": ordinary,
}
