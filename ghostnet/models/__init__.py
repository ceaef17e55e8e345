"""The networks, one file an architecture. `build_generator` and `build_discriminator` are all that other rooms need.

A generator takes (z float (b, latent), labels int64 (b,)) to images (b, planes, size, size) in the plan's pixel range.
A discriminator takes (images, labels) to one logit a row (b,), and has `feature_maps(images)`, its layers' activations.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import nn

from ghostnet.models import dcgan, keras28, stylegan, wgan, wgan_gp
from ghostnet.models.dcgan import Discriminator, Generator
from ghostnet.plan import Architecture, Plan

__all__ = ["Discriminator", "Generator", "build_discriminator", "build_generator"]

_FILES: dict[Architecture, ModuleType] = {
    "dcgan": dcgan,
    "wgan": wgan,
    "wgan-gp": wgan_gp,
    "stylegan": stylegan,
    "keras28": keras28,
}


def build_generator(plan: Plan) -> nn.Module:
    """The plan's generator, with initial weights drawn from the plan's public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        generator: nn.Module = _FILES[plan.model.architecture].build_generator(plan)
    return generator


def build_discriminator(plan: Plan) -> nn.Module:
    """The plan's discriminator, with initial weights drawn from the plan's public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + 1)  # another stream than the generator's
        discriminator: nn.Module = _FILES[plan.model.architecture].build_discriminator(plan)
    return discriminator
