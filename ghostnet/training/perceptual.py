"""Perceptual matching: the generator is held to mean features of real images under a discriminator, released once.

At the start of a round each hospital freezes a copy of its discriminator and releases, under noise, one sum over its
patients of the copy's features; it is a statistic of its own in the catalogue. From then on the generator
is drawn to those means through the same copy: post-processing, as is the copy, which learned under DP-SGD.

The vector of one image with label y is one_hot(y) (x) [a f, c] with a^2 + c^2 = 1: f are the channel means of every
layer's activations, each layer scaled to the same length and all of them together to norm 1; c is the image's mass,
which makes class shares, that are private, unnecessary: the released mass divides a class's sum.

Source: Johnson, Alahi and Fei-Fei, "Perceptual Losses" (2016), and Salimans et al. 2016 (feature matching of class
means), with the mean released as in `warm_start`.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ghostnet.accounting.catalogue import PERCEPTUAL_FEATURES
from ghostnet.plan import Plan
from ghostnet.privacy.blocks import row_by_row, shapes_of, with_random_weights
from ghostnet.privacy.mechanism import choose_rows
from ghostnet.privacy.noise import Entropy
from ghostnet.training.class_release import FEATURE_WEIGHT, iter_patient_blocks, means_of, with_mass
from ghostnet.training.cohort import Cohort
from ghostnet.training.losses import class_distance
from ghostnet.training.release import release_vectors

logger = logging.getLogger(__name__)

BLOCK_NUMBERS = 1 << 24  # of patients' vectors in memory at once, at least one patient's: 64 MiB


@dataclass(frozen=True, kw_only=True)
class PerceptualTarget:
    """Released features and the network that they were computed with. Both are public.

    Attributes:
        snapshot: a frozen discriminator.
        means: (labels, d) noisy mean features of each class.
    """

    snapshot: nn.Module
    means: torch.Tensor


def release_features(discriminator: nn.Module, cohort: Cohort, plan: Plan, entropy: Entropy) -> PerceptualTarget | None:
    """Freezes the discriminator and releases the mean features of the hospital's patients under it.

    Args:
        discriminator: as trained so far; a function of released values.
        cohort: SENSITIVE, the training patients.
        plan: `training.perceptual_noise_multiplier` > 0.
        entropy: source of the choice of images and of the noise.

    Returns:
        None where the noise swallowed all mass, so that there is nothing to match.

    Guarantee:
        Post-processing of `noised_features`.
    """
    snapshot = copy.deepcopy(discriminator).eval().requires_grad_(False)
    blocks = noised_features(snapshot, cohort, plan, entropy).reshape(len(plan.image.labels), -1)  # (labels, d + 1)
    found = means_of(blocks)
    if found is None:
        logger.warning(
            "the release of perceptual features holds no class mass above its noise and is not used this round; "
            "lower training.perceptual_noise_multiplier"
        )
        return None
    device = next(discriminator.parameters()).device
    return PerceptualTarget(snapshot=snapshot, means=found.means.to(device))


def noised_features(snapshot: nn.Module, cohort: Cohort, plan: Plan, entropy: Entropy) -> torch.Tensor:
    """The noisy sum over the hospital's patients of their mean features under a frozen discriminator.

    Args:
        snapshot: the discriminator.
        cohort: SENSITIVE, the training patients.
        plan: `training.perceptual_noise_multiplier` > 0.
        entropy: source of the choice of images and of the noise.

    Returns:
        float32 (labels (d + 1),).

    Guarantee:
        Unit: patient, add/remove one. Sensitivity: 1: a patient's vector is a mean of vectors of norm 1, and a function
        of that patient's images and of public numbers alone, to the bit (privacy/blocks.py). One Gaussian release,
        charged as `catalogue.PERCEPTUAL_FEATURES`.
        Assumes: the discriminator was released, or comes from releases, before.
    """
    vectors = _patient_features(snapshot, cohort, len(plan.image.labels), plan.privacy.images_per_patient, entropy)
    return release_vectors(PERCEPTUAL_FEATURES, vectors, plan, entropy=entropy)


def perceptual_loss(images: torch.Tensor, labels: torch.Tensor, target: PerceptualTarget) -> torch.Tensor:
    """Squared distance of fakes' class means to the released ones; images (b, planes, h, w), labels (b,) -> scalar."""
    return class_distance(embed(target.snapshot, images)[:, :-1], labels, target.means)


def embed(snapshot: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """[a f, c] of each image: (b, planes, h, w) -> (b, d + 1), every row of norm at most 1; differentiable."""
    layers = [maps.mean((2, 3)) for maps in snapshot.feature_maps(images)]  # type: ignore[operator]
    layers = [f / f.norm(dim=1, keepdim=True).clamp(min=1e-12) / math.sqrt(len(layers)) for f in layers]
    return with_mass(FEATURE_WEIGHT * torch.cat(layers, dim=1))


@torch.no_grad()
def _patient_features(
    snapshot: nn.Module, cohort: Cohort, labels: int, images_per_patient: int, entropy: Entropy
) -> Iterator[torch.Tensor]:
    """One vector a patient, each the mean over at most m images; (some patients, labels (d + 1)) at a time. SENSITIVE.

    The memory that it takes does not grow with the patients.
    """
    device, probe = next(snapshot.parameters()).device, partial(embed, with_random_weights(snapshot))
    everyone = torch.arange(cohort.patients)
    index, groups = choose_rows(cohort.owners, everyone, images_per_patient, entropy)  # (r,), (r,)
    kind = ("features", shapes_of(snapshot))
    yield from iter_patient_blocks(
        lambda rows: row_by_row(
            partial(embed, snapshot), cohort.images[index[rows]].to(device), kind=kind, probe=probe
        ),
        groups,
        cohort.labels[index],
        patients=cohort.patients,
        labels=labels,
        width=embed(snapshot, torch.zeros(1, *cohort.images.shape[1:], device=device)).shape[1],
        most_numbers=BLOCK_NUMBERS,
        dtype=torch.float32,
    )
