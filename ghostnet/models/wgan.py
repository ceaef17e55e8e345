"""WGAN: the DCGAN pair, whose critic is kept Lipschitz by clipping its weights after every step.

Source: Arjovsky, Chintala and Bottou, "Wasserstein GAN" (2017), which uses the DCGAN pair too. The clip comes after the
noise, so it is post-processing and costs no privacy. It bounds all parameters, gains and biases included, as the
paper's code does.
"""

from __future__ import annotations

import torch
from torch import nn

from ghostnet.models import dcgan
from ghostnet.models.record import Architecture


@torch.no_grad()
def clip_weights(critic: nn.Module, bound: float) -> None:
    """Puts every parameter into [-bound, bound], in place."""
    for parameter in critic.parameters():
        parameter.clamp_(-bound, bound)


ARCHITECTURE = Architecture(
    sizes=dcgan.ARCHITECTURE.sizes,
    losses=("wasserstein",),
    bound_weights=clip_weights,
    feature_widths=dcgan.ARCHITECTURE.feature_widths,
    row_milliseconds=3.0,
    build_generator=dcgan.build_generator,
    build_discriminator=dcgan.build_discriminator,
)
