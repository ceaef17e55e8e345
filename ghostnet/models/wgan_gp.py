"""WGAN-GP: the DCGAN pair, whose critic is kept near slope 1 by a penalty on its gradient at images.

Source: Gulrajani et al., "Improved Training of Wasserstein GANs" (2017). Their penalty is taken between a real image
and a fake. Here it is taken at fakes alone, which costs no privacy, or at each row's own image inside that row's clip
(`losses.InputPenalty`, `privacy.penalised`). As in the paper the critic has no batch normalisation.
"""

from __future__ import annotations

from ghostnet.models.dcgan import build_discriminator, build_generator

__all__ = ["build_discriminator", "build_generator"]
