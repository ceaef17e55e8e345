"""A discriminator's first lessons, on public images alone: the generator's own.

Before its first private step a discriminator knows nothing, and its first noisy steps go into learning what an image
is. Here it learns on images of the generator that the warm start fitted: they, with their labels, are called real; the
same images with another label, and images of the untrained generator, are called fake. No patient is read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ghostnet.losses import RowLoss
from ghostnet.models import build_generator
from ghostnet.models.wgan import clip_weights
from ghostnet.plan import Plan

Draw = Callable[[nn.Module, int], tuple[torch.Tensor, torch.Tensor]]
"""(generator, step) -> public fakes (b, planes, h, w) and their labels (b,); the same noise for every generator."""


def rehearse(discriminator: nn.Module, generator: nn.Module, draw: Draw, row_loss: RowLoss, plan: Plan) -> None:
    """Takes the plan's `discriminator_warmup_steps` with an Adam of their own.

    Args:
        discriminator: changed in place.
        generator: as the server sent it.
        draw: the public fakes of a step.
        row_loss: the discriminator's loss.
        plan: classes, learning rate, number of steps.
    """
    training, classes = plan.training, len(plan.image.labels)
    parameters = list(discriminator.parameters())
    untrained = build_generator(plan).to(parameters[0].device)
    optimizer = torch.optim.Adam(
        parameters, training.learning_rate_discriminator, betas=(training.beta1, training.beta2)
    )
    for step in range(training.discriminator_warmup_steps):
        with torch.no_grad():
            images, labels = draw(generator, step)  # (b, planes, h, w), (b,)
            worse, _ = draw(untrained, step)
        rows, row_labels, real = [images, worse], [labels, labels], [True, False]
        if classes > 1:
            further = 1 + torch.arange(len(labels), device=labels.device) % (classes - 1)
            rows, row_labels, real = [*rows, images], [*row_labels, (labels + further) % classes], [*real, False]
        flags = torch.tensor(real, device=labels.device).repeat_interleave(len(labels))
        loss = row_loss(discriminator(torch.cat(rows), torch.cat(row_labels)), flags).mean()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        if plan.model.architecture == "wgan":
            clip_weights(discriminator, training.weight_clip)
