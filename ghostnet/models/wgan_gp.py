"""WGAN-GP: the DCGAN pair, whose critic is kept near slope 1 by a penalty on its gradient at images.

Source: Gulrajani et al., "Improved Training of Wasserstein GANs" (2017). Their penalty is taken between a real image
and a fake. Here it is taken at fakes alone, which costs no privacy, or at each row's own image inside that row's clip
(`privacy.penalised`). As in the paper the critic has no batch normalisation.
"""

from __future__ import annotations

from ghostnet.models import dcgan
from ghostnet.models.record import Architecture
from ghostnet.privacy.penalised import InputPenalty

ARCHITECTURE = Architecture(
    sizes=dcgan.ARCHITECTURE.sizes,
    losses=("wasserstein",),
    penalty=InputPenalty.LIPSCHITZ,
    penalised_by_default=True,
    needs_penalty=True,
    feature_widths=dcgan.ARCHITECTURE.feature_widths,
    row_milliseconds=5.1,
    build_generator=dcgan.build_generator,
    build_discriminator=dcgan.build_discriminator,
)
