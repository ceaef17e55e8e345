"""Adversarial losses. The discriminator's are per row, so that each patient's gradient can be clipped by itself.

Feature matching lives in `warm_start.embedding_loss`: the generator may never look at a real image, so its features
are matched to a released noisy mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import relu, softplus

from ghostnet.plan import Loss

RowLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits (r,), real (r,) bool) -> one loss a row (r,); no row's loss depends on another row."""


def discriminator_loss(kind: Loss) -> RowLoss:
    """The discriminator's loss, one value a row.

    Args:
        kind: "non-saturating" (Goodfellow et al., 2014), "hinge" (Lim and Ye, 2017) or "wasserstein" (Arjovsky et
            al., 2017; without a penalty, as the clipped steps and the plan's few of them bound the critic).
    """
    return _DISCRIMINATOR[kind]


def generator_loss(kind: Loss) -> Callable[[torch.Tensor], torch.Tensor]:
    """The generator's loss: (logits of fakes (b,)) -> scalar mean. `kind` as in `discriminator_loss`."""
    return _GENERATOR[kind]


def _sign(real: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """+1 for a real row and -1 for a fake one."""
    return real.to(logits.dtype) * 2 - 1


_DISCRIMINATOR: dict[Loss, RowLoss] = {
    "non-saturating": lambda logits, real: softplus(-_sign(real, logits) * logits),
    "hinge": lambda logits, real: relu(1 - _sign(real, logits) * logits),
    "wasserstein": lambda logits, real: -_sign(real, logits) * logits,
}

_GENERATOR: dict[Loss, Callable[[torch.Tensor], torch.Tensor]] = {
    "non-saturating": lambda logits: softplus(-logits).mean(),
    "hinge": lambda logits: -logits.mean(),
    "wasserstein": lambda logits: -logits.mean(),
}
