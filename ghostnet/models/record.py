"""The facts of an architecture that the rest of the house asks for, and the numbers that its networks are built from.

Each file of this room ends in one `Architecture`. The plan's compatibility check, the losses, the hospital's policy,
the sampler and the audit read it; none of them knows an architecture by its name. Nothing here imports torch, so that
a plan can name these types without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ghostnet.privacy.penalised import InputPenalty

PixelRange = Literal["[-1,1]", "[0,1]"]
Norm = Literal["none", "group"]


@dataclass(frozen=True, kw_only=True)
class NetworkSizes:
    """Numbers that fix both networks of a pair; each architecture reads those that it has a use for.

    Attributes:
        architecture: key of the registry.
        size: pixels a side.
        planes: channels of an image, image channels and then mask channels.
        mask_planes: how many of them are masks.
        labels: number of classes.
        latent: length of the generator's noise vector.
        generator_width: channels of the generator's widest-resolution hidden layer.
        discriminator_width: channels of the discriminator's first layer.
        norm: normalisation layers of the discriminator.
        pixel_range: of the images drawn.
        truncation: of the styles of a sampler; 1 leaves them.
        seed: PUBLIC, of the initial weights.
    """

    architecture: str
    size: int
    planes: int
    labels: int
    latent: int
    generator_width: int
    discriminator_width: int
    norm: Norm
    pixel_range: PixelRange
    mask_planes: int = 0
    truncation: float = 1.0
    seed: int = 0


Draw = Callable[["nn.Module", "torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(generator in evaluation mode, z float (b, latent), labels int64 (b,)) -> images (b, planes, size, size)."""


def draw_in_one_pass(generator: nn.Module, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One forward pass an image."""
    images: torch.Tensor = generator(z, labels)
    return images


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The record of an architecture: the facts that are particular to its pair of networks.

    Attributes:
        sizes: pixels a side that it draws, ascending.
        norms: what the discriminator may be normalised with; never anything that couples patients.
        losses: that train it, as the plan names them; None: all.
        penalty: kind of gradient penalty that the discriminator may have; None: it may have none.
        penalised_by_default: whether gradient_penalty = "auto" takes one, at the fakes.
        needs_penalty: whether nothing else bounds the discriminator.
        bound_weights: done to the discriminator after each of its steps with the plan's `weight_clip`; None: nothing.
        truncates: whether the sampler's styles can be drawn towards their mean.
        feature_widths: channels of all `feature_maps` together at the largest size, in discriminator widths, at most.
        row_milliseconds: of a row's private step at width 24 and 64 pixels, two cores (benchmarks/architectures.py).
        draw: how a published sampler makes images of noise and labels.
        build_generator: the generator; initial weights come from torch's global random numbers.
        build_discriminator: the discriminator; likewise.
    """

    sizes: tuple[int, ...]
    norms: tuple[Norm, ...] = ("group", "none")
    losses: tuple[str, ...] | None = None
    penalty: InputPenalty | None = None
    penalised_by_default: bool = False
    needs_penalty: bool = False
    bound_weights: Callable[[nn.Module, float], None] | None = None
    truncates: bool = False
    feature_widths: int
    row_milliseconds: float
    draw: Draw = draw_in_one_pass
    build_generator: Callable[[NetworkSizes], nn.Module]
    build_discriminator: Callable[[NetworkSizes], nn.Module]

    def penalty_place(self, wanted: str) -> str:
        """The points of the gradient penalty, "none", "fakes" or "patient"; `wanted` may be "auto"."""
        if wanted != "auto":
            return wanted
        return "fakes" if self.penalised_by_default else "none"
