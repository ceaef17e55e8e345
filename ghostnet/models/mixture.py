"""Several generators published as one: each image is drawn by one of them, chosen by chance.

Checkpoints of one run forget different things; a uniform mixture of them keeps what any of them draws. Each was
released already, so the mixture costs no privacy (post-processing). Source of the idea: Neunhoeffer, Wu and Dwork,
"Private Post-GAN Boosting" (2021), here with equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class Mixture(nn.Module):
    """A uniform mixture of generators.

    The noise vector has one number more than a member's: the last one, standard normal too, chooses the member, so
    that the same noise draws the same image whatever the batch.

    Args:
        members: at least two generators of one plan.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Noise (b, latent + 1) and labels int64 (b,) -> images (b, planes, h, w)."""
        coins = (1 + torch.erf(z[:, -1] / math.sqrt(2))) / 2  # uniform in [0,1]
        chosen = (coins * len(self.members)).long().clamp(max=len(self.members) - 1)  # (b,)
        images: torch.Tensor | None = None
        for index, member in enumerate(self.members):
            rows = torch.nonzero(chosen == index).squeeze(1)
            if len(rows) == 0:
                continue
            drawn = member(z[rows, :-1], labels[rows])
            if images is None:
                images = drawn.new_empty(len(z), *drawn.shape[1:])
            images[rows] = drawn
        if images is None:  # an empty batch: any member says what its shape is
            return self.members[0](z[:, :-1], labels)
        return images
