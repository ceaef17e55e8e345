"""The classifier of train-on-synthetic-test-on-real: it has seen nothing but the generator's images."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ghostnet.models import architecture
from ghostnet.plan import Plan
from ghostnet.progress import Progress, silent
from ghostnet.utility import classification, classifier

DRAW_BATCH = 200
EDGE_IMAGES = 1000  # held-out synthetic images that place the score bins


def train_on_synthetic(
    generator: nn.Module, plan: Plan, progress: Progress = silent
) -> tuple[nn.Module, torch.Tensor | None]:
    """Draws labelled synthetic images and trains the report's classifier on them.

    Args:
        generator: the final generator; not changed. Its device is the one that is computed on.
        plan: label prior, number of images, steps and public seed.
        progress: told the classifier's steps.

    Returns:
        The classifier, and for two classes the edges of the score bins, placed by further synthetic images.
        Reads no patient data: both are post-processing of the generator.
    """
    images, labels = draw(generator, plan, plan.utility.synthetic_images, seed=plan.seed)
    classes = len(plan.image.labels)
    model = classifier.train_classifier(
        images,
        labels,
        classes,
        plan.utility.classifier_steps,
        plan.seed,
        channels=plan.image.channels,
        device=next(generator.parameters()).device,
        progress=progress,
    )
    if classes != 2:
        return model, None
    held_out, _ = draw(generator, plan, EDGE_IMAGES, seed=plan.seed + 1)
    return model, classification.score_edges(model, held_out, plan.utility.bins)


@torch.no_grad()
def draw(generator: nn.Module, plan: Plan, n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic images with labels in the plan's public shares: float32 (n, planes, h, w), int64 (n,)."""
    public = torch.Generator().manual_seed(seed)
    prior = torch.tensor(plan.image.label_prior, dtype=torch.float64)
    labels = torch.multinomial(prior, n, replacement=True, generator=public)
    return _images(generator, plan, labels, public), labels


@torch.no_grad()
def draw_labels(generator: nn.Module, plan: Plan, labels: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Synthetic images of given labels: int64 (n,) -> float32 (n, planes, h, w)."""
    return _images(generator, plan, labels, torch.Generator().manual_seed(seed))


def _images(generator: nn.Module, plan: Plan, labels: torch.Tensor, public: torch.Generator) -> torch.Tensor:
    """Drawn on the generator's device; the images lie on the CPU."""
    network, latent = copy.deepcopy(generator).eval(), plan.model.latent
    device, draw = next(network.parameters()).device, architecture(plan.model.architecture).draw
    parts = []
    for some in labels.split(DRAW_BATCH):
        z = torch.randn(len(some), latent, generator=public)
        parts.append(draw(network, z.to(device), some.to(device)).cpu())
    return torch.cat(parts)
