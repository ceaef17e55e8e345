"""Adversarial losses, the penalties on a discriminator's gradient, and the distance of feature matching.

The discriminator's losses are per row, so that each patient's gradient can be clipped by itself. The generator may
never look at a real image, so it matches its features to means that were released with noise: those of the warm start
(`warm_start.embedding_loss`) and those of a discriminator (`perceptual.perceptual_loss`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import one_hot, relu, softplus

from ghostnet.plan import Loss
from ghostnet.privacy.mechanism import RowLoss
from ghostnet.privacy.penalised import InputPenalty


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


def fakes_penalty(
    discriminator: nn.Module,
    fakes: torch.Tensor,
    labels: torch.Tensor,
    *,
    penalty: InputPenalty,
    weight: float,
    norm_bound: float,
) -> list[torch.Tensor]:
    """Gradient of the weighted mean penalty at fakes, its norm limited.

    Reads public and released values only, so it is added after the noise and costs no privacy. The limit keeps it from
    drowning the patients' part, which is clipped.

    Args:
        discriminator: as it is before the step.
        fakes: float (b, planes, h, w).
        labels: int64 (b,).
        penalty: which one.
        weight: of the mean penalty.
        norm_bound: most that the gradient's norm may be; the clip norm of the patients' part.

    Returns:
        One tensor a parameter, in their order.
    """
    images = fakes.detach().requires_grad_()
    parameters = list(discriminator.parameters())
    (at_images,) = torch.autograd.grad(discriminator(images, labels).sum(), images, create_graph=True)
    penalties = penalty.of(at_images.flatten(1).square().sum(1))  # (b,)
    loss = weight * penalties.mean()
    found = torch.autograd.grad(loss, parameters, allow_unused=True)  # the last bias moves no gradient at an image
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    if not bool(norm.isfinite()):
        return [torch.zeros_like(g) for g in gradients]
    return [g * (norm_bound / norm).clamp(max=1.0) for g in gradients]


def class_distance(
    vectors: torch.Tensor, labels: torch.Tensor, means: torch.Tensor, floors: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distance of fakes' class means to released ones, averaged over the classes drawn.

    An unbiased estimate: the distance that a finite batch has from its own expectation is taken out, so that a
    generator gains nothing by drawing less varied images. It can be slightly negative for that reason.

    Args:
        vectors: float (b, d), features of fakes.
        labels: int64 (b,).
        means: (labels, d), released.
        floors: (labels,) distance that the release's noise alone explains. A class counts with what it has above its
            floor: to come closer is to draw the noise (Morozov's discrepancy principle, 1966). None: all of it counts.

    Returns:
        Scalar.
    """
    classes = one_hot(labels, len(means)).to(vectors.dtype)  # (b, labels)
    counts, sums = classes.sum(0), classes.T @ vectors  # (labels,), (labels, d)
    own = classes.T @ vectors.square().sum(1)  # (labels,) sum of squared norms
    square = (sums.square().sum(1) - own) / (counts * (counts - 1)).clamp(min=1)  # E<v, v'> over different fakes
    cross = (sums * means).sum(1) / counts.clamp(min=1)
    enough = counts > 1  # (labels,) a single fake has no pair
    distance = square - 2 * cross + means.square().sum(1)
    if floors is not None:
        distance = (distance - floors).clamp(min=0)
    return (distance * enough).sum() / enough.sum().clamp(min=1)


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
