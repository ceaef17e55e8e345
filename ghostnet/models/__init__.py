"""The networks. `build_generator` and `build_discriminator` are all that other rooms need."""

from __future__ import annotations

import torch

from ghostnet.models.dcgan import Discriminator, Generator
from ghostnet.plan import Plan

__all__ = ["Discriminator", "Generator", "build_discriminator", "build_generator"]


def build_generator(plan: Plan) -> Generator:
    """The plan's generator, with initial weights drawn from the plan's public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return Generator(
            size=plan.image.size,
            planes=plan.planes,
            labels=len(plan.image.labels),
            latent=plan.model.latent,
            width=plan.model.generator_width,
            pixel_range=plan.image.range,
        )


def build_discriminator(plan: Plan) -> Discriminator:
    """The plan's discriminator, with initial weights drawn from the plan's public seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed + 1)  # another stream than the generator's
        return Discriminator(
            size=plan.image.size,
            planes=plan.planes,
            labels=len(plan.image.labels),
            width=plan.model.discriminator_width,
            norm=plan.model.discriminator_norm,
        )
