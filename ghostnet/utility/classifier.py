"""A small classifier for synthetic images: same recipe every time, so that its score says something about the images.

No run chooses anything by its test data: the number of steps is given, the learning rate follows a fixed schedule, and
the weights used are a running average of the last steps. (How wide `augment` is was settled with a look at test rows of
public sets: docs/results.md.)
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from ghostnet.errors import DataError
from ghostnet.privacy.blocks import MIN_ROWS, filled, row_by_row, shapes_of, with_random_weights
from ghostnet.progress import Progress, silent

WIDTH = 16  # channels of the first layer; 600 steps at 64 pixels take under a minute on one core
BATCH = 64
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.05
AVERAGE_FROM = 0.5  # share of the steps after which weights are averaged


class Classifier(nn.Module):
    """A convolutional network for images of 28 to 64 pixels a side.

    Each image is standardised by its own mean and deviation first, so that the overall brightness and contrast of a
    generator, which differ a little from the real ones, do not decide. GroupNorm instead of BatchNorm for the same
    reason: no statistic of synthetic images is kept.

    Args:
        channels: image channels, 1 or 3.
        classes: number of classes, at least 2.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise DataError(f"a classifier needs at least 2 classes, not {classes}; leave its task out of the plan")
        self.channels, self.classes = channels, classes
        widths = (WIDTH, 2 * WIDTH, 3 * WIDTH, 4 * WIDTH)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 5, stride=2, padding=2), nn.GELU()]
        for before, after in zip(widths, widths[1:], strict=False):
            stride = 2 if after < widths[-1] else 1
            layers += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, after),
                nn.GELU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Float (b, c, h, w) with at least `channels` channels, any range -> (b, classes) logits.

        Planes after the image channels (masks) are not looked at.
        """
        logits: torch.Tensor = self.head(self.maps(images))
        return logits

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """The features that the last layer sees: float (b, c, h, w) -> (b, 64, 4, 4)."""
        images = images[:, : self.channels]
        centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
        standard = centred / (centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-3)
        return F.adaptive_avg_pool2d(self.features(standard), 4)  # a 4x4 map: where a finding is matters


def build_classifier(*, channels: int, classes: int, seed: int = 0) -> Classifier:
    """A classifier with initial weights from a public seed; the form that received weights are loaded into."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(channels=channels, classes=classes)
        model(torch.zeros(1, channels, 32, 32))  # fixes the size of the last layer
    return model


def train_classifier(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    steps: int,
    seed: int,
    *,
    channels: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Classifier:
    """Trains on synthetic (or, for a reference inside a hospital, real) images.

    Args:
        images: float (n, c, h, w), any range.
        labels: int64 (n,), 0..classes-1.
        classes: number of classes.
        steps: optimiser steps; fixed beforehand, never chosen by a test score.
        seed: public seed of the initial weights, batches and augmentation.
        channels: image channels; default all of c. Further planes are ignored.
        device: where it is trained and stays; the images may be elsewhere.
        progress: told about steps.

    Returns:
        The classifier with averaged weights, in evaluation mode.

    Raises:
        DataError: no images, or fewer than two classes.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise DataError(f"a classifier needs images with a label each, not {len(images)} and {len(labels)}")
    model = build_classifier(channels=channels or images.shape[1], classes=classes, seed=seed).to(device)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * _schedule(step / steps)
            rows = torch.randint(len(images), (BATCH,))
            batch = augment(images[rows, : model.channels].to(device))
            loss = F.cross_entropy(model(batch), labels[rows].to(device), label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step >= AVERAGE_FROM * steps:
                averaged.update_parameters(model)
            progress("classifier", step + 1, steps)
    model.load_state_dict(averaged.module.state_dict())
    return model.eval().requires_grad_(False)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Random place, size and proportions, a small turn, blur or noise: float (b,c,h,w) -> same shape.

    As wide as positions differ from one hospital's machines to another's: a classifier that has learned where a
    generator puts things fails on real images. Never a flip: the side of a finding, or of a digit, matters.
    """
    b, device = len(images), images.device  # drawn on the CPU: the same on every device
    angle = torch.randn(b) * 0.1  # radians
    zoom, aspect = torch.exp(torch.randn(b) * 0.17), torch.exp(torch.randn(b) * 0.08)
    shift = torch.randn(b, 2) * 0.12  # of half the image
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).reshape(b, 2, 2)
    turn = turn * torch.stack([zoom * aspect, zoom / aspect], dim=1)[:, :, None]
    theta = torch.cat([turn, shift[:, :, None]], dim=2).to(device)  # (b, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = (torch.rand(b, 1, 1, 1) * (torch.rand(b, 1, 1, 1) < 0.5)).to(device)  # half are blurred a little
    scale = images.std() * 0.1 * torch.rand(b, 1, 1, 1).to(device)
    return moved + share * (blurred - moved) + scale * torch.randn(moved.shape).to(device)


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits of all images: float (n, c, h, w) -> float64 (n, classes), computed where the model is.

    Guarantee:
        A row is a function of its image and the model alone, to the bit (privacy/blocks.py). Adds no noise.
    """
    device = next((p.device for p in model.parameters()), images.device)
    logits, probe = (partial(_logits, network, device) for network in (model, with_random_weights(model)))
    parts = list(row_by_row(logits, images, kind=(shapes_of(model), device), probe=probe))
    return torch.cat(parts or [logits(filled(images, MIN_ROWS))[:0]]).double()


def _logits(model: nn.Module, device: torch.device, images: torch.Tensor) -> torch.Tensor:
    """On the model's device, and back."""
    logits: torch.Tensor = model(images.to(device))
    return logits.to(images.device)


def _schedule(done: float) -> float:
    """Warm-up over a tenth, then a half cosine down to a tenth, which keeps the averaged steps moving."""
    if done < 0.1:
        return (done + 0.01) / 0.11
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))
