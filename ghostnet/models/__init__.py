"""The networks, one file an architecture, each with its record of facts; `REGISTRY` is the list of them.

A new architecture is a file here that ends in an `ARCHITECTURE`, and a line below. An architecture is imported when it
is first asked for, so that naming one costs no import of torch.

A generator takes (z float (b, latent), labels int64 (b,)) to images (b, planes, size, size) in the plan's pixel range.
A discriminator takes (images, labels) to one logit a row (b,), and has `feature_maps(images)`, its layers' activations.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Literal

from ghostnet.models.record import Architecture, NetworkSizes, Norm, PixelRange

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "REGISTRY",
    "Architecture",
    "ArchitectureName",
    "NetworkSizes",
    "Norm",
    "PixelRange",
    "architecture",
    "build_discriminator",
    "build_generator",
]

REGISTRY = {
    "dcgan": "ghostnet.models.dcgan",
    "wgan": "ghostnet.models.wgan",
    "wgan-gp": "ghostnet.models.wgan_gp",
    "stylegan": "ghostnet.models.stylegan",
    "keras28": "ghostnet.models.keras28",
}
"""Name in a plan -> module that holds its `ARCHITECTURE`. The first is a plan's default."""

if TYPE_CHECKING:
    ArchitectureName = str
else:
    ArchitectureName = Literal[tuple(REGISTRY)]  # a closed list where a plan is read


def architecture(name: str) -> Architecture:
    """The record of an architecture that `REGISTRY` names."""
    record: Architecture = import_module(REGISTRY[name]).ARCHITECTURE
    return record


def build_generator(sizes: NetworkSizes) -> nn.Module:
    """The generator, with initial weights drawn from the public seed."""
    return _seeded(architecture(sizes.architecture).build_generator, sizes, sizes.seed)


def build_discriminator(sizes: NetworkSizes) -> nn.Module:
    """The discriminator, with initial weights drawn from the public seed."""
    return _seeded(architecture(sizes.architecture).build_discriminator, sizes, sizes.seed + 1)  # another stream


def _seeded(build: Callable[[NetworkSizes], nn.Module], sizes: NetworkSizes, seed: int) -> nn.Module:
    import torch  # here, because a plan reads this module for its names alone

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(sizes)
