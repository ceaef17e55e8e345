"""Train on synthetic: labelled images of a generator, and the models of utility tasks that have seen nothing else."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from ghostnet.models import NetworkSizes, architecture
from ghostnet.progress import Progress, silent
from ghostnet.utility.task import Task, TaskModel, TaskSpec

DRAW_BATCH = 200


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A generator, and how labelled images are drawn from it.

    Attributes:
        generator: not changed; its device is the one that is computed on.
        sizes: that it was built from.
        label_prior: PUBLIC share of each class.
    """

    generator: nn.Module
    sizes: NetworkSizes
    label_prior: tuple[float, ...]


def train_on_synthetic(task: Task, source: Synthetic, spec: TaskSpec, progress: Progress = silent) -> TaskModel:
    """Draws labelled synthetic images and trains a task's model on them.

    Args:
        task: whose model.
        source: the final generator.
        spec: number of images, steps and public seed.
        progress: told the steps.

    Returns:
        The model; its numbers come from further synthetic images. Reads no patient data: both are post-processing of
        the generator.
    """
    images, labels = draw(source, spec.utility.synthetic_images, seed=spec.seed)
    device = next(source.generator.parameters()).device
    network = task.train(images, labels, spec, seed=spec.seed, device=device, progress=progress)
    numbers = task.numbers(network, lambda n: draw(source, n, seed=spec.seed + 1)[0], spec)
    return TaskModel(network=network, numbers=numbers)


def draw(source: Synthetic, n: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Synthetic images with labels in the public shares: float32 (n, planes, h, w), int64 (n,)."""
    public = torch.Generator().manual_seed(seed)
    prior = torch.tensor(source.label_prior, dtype=torch.float64)
    labels = torch.multinomial(prior, n, replacement=True, generator=public)
    return _images(source, labels, public), labels


def draw_labels(source: Synthetic, labels: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Synthetic images of given labels: int64 (n,) -> float32 (n, planes, h, w)."""
    return _images(source, labels, torch.Generator().manual_seed(seed))


@torch.no_grad()
def _images(source: Synthetic, labels: torch.Tensor, public: torch.Generator) -> torch.Tensor:
    """Drawn on the generator's device; the images lie on the CPU."""
    network = copy.deepcopy(source.generator).eval()
    device, draw_batch = next(network.parameters()).device, architecture(source.sizes.architecture).draw
    parts = []
    for some in labels.split(DRAW_BATCH):
        z = torch.randn(len(some), source.sizes.latent, generator=public)
        parts.append(draw_batch(network, z.to(device), some.to(device)).cpu())
    return torch.cat(parts)
