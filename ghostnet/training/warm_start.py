"""Round 0: random-feature embeddings that hospitals release once, and a generator fitted to them.

Each patient contributes one vector of norm at most 1; a hospital releases the noisy sum of them
(`catalogue.WARM_START`); everything after that is post-processing. The vector of one image with label y is

    one_hot(y)  (x)  [ a phi(x),  b x / sqrt(pixels),  c ]        a^2 + b^2 + c^2 = 1

with phi the random Fourier features of a Gaussian kernel, or of a mean of several widths (norm exactly 1), x the image
shrunk to the feature size and scaled to [-1,1] (so x / sqrt(pixels) has norm at most 1), and the constant c. Summed
over patients, the three parts of a class's block are its kernel mean embedding, its mean image and its mass, each times
the number of its patients.
Class shares are private. They are never assumed: the released mass of a class, noise included, divides its block.

Source: Harder, Adamczewski and Park, "DP-MERF" (2021), for the embedding; Rahimi and Recht (2007) for the features;
James and Stein (1961) for drawing rare classes to the common mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ghostnet.errors import FederationError
from ghostnet.plan import Embedding, Plan, WarmStartSpec
from ghostnet.privacy.blocks import row_by_row
from ghostnet.progress import Progress, silent
from ghostnet.training.class_release import (
    FEATURE_WEIGHT,
    MASS_WEIGHT,
    ClassMeans,
    class_masses,
    iter_patient_blocks,
    means_of,
    with_mass,
)
from ghostnet.training.cohort import Cohort
from ghostnet.training.losses import class_distance

BLOCK_NUMBERS = 1 << 23  # of vectors in memory at once, at least one patient's: 64 MiB in float64


def embed_images(images: torch.Tensor, embedding: Embedding) -> torch.Tensor:
    """The label-free part of the embedding, [a phi(x), b x / sqrt(pixels), c]; differentiable.

    Args:
        images: float (n, planes, h, w), in the embedding's range.
        embedding: decides the features.

    Returns:
        (n, width), every row of norm at most 1, in the images' type.
    """
    small = adaptive_avg_pool2d(images, embedding.feature_size).flatten(1)  # (n, pixels)
    unit = (small + 1) / 2 if embedding.pixel_range == "[-1,1]" else small  # pixels in [0,1]
    angles = unit @ _frequencies(embedding).to(unit)  # (n, features / 2)
    features = torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(angles.shape[1])  # norm 1
    pixels = (2 * unit - 1) / math.sqrt(unit.shape[1])  # norm at most 1
    mean_weight = embedding.mean_image_weight
    a, b = FEATURE_WEIGHT * math.sqrt(1 - mean_weight**2), FEATURE_WEIGHT * mean_weight
    return with_mass(torch.cat([a * features, b * pixels], dim=1))


def patient_embeddings(
    cohort: Cohort, embedding: Embedding, images_per_patient: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """One vector a patient: the mean over their first images of one_hot(label) (x) embedding.

    Args:
        cohort: SENSITIVE.
        embedding: of each image.
        images_per_patient: most of a patient's images that count, in the cohort's order.
        device: where images are embedded.

    Returns:
        float64 (patients, embedding.size), SENSITIVE. A patient without images is a zero row.

    Guarantee:
        Unit: patient. Every row has norm at most 1 (up to rounding; `noisy_sum` clips to exactly 1), and is a function
        of that patient's images and of the embedding alone, to the bit (privacy/blocks.py), whatever its scales.
        Not covered: any release; this function adds no noise.
    """
    return torch.cat([*iter_patient_embeddings(cohort, embedding, images_per_patient, device)])


@torch.no_grad()
def iter_patient_embeddings(
    cohort: Cohort, embedding: Embedding, images_per_patient: int, device: torch.device | str = "cpu"
) -> Iterator[torch.Tensor]:
    """`patient_embeddings` in blocks of at most BLOCK_NUMBERS, at least a patient, at least one block.

    For vectors that do not fit in memory: what it takes does not grow with the patients.
    """
    kept = _first_images(cohort.owners, cohort.patients, images_per_patient)  # (k,) sorted by owner
    embed = partial(_embed_in_float64, embedding=embedding, device=torch.device(device))
    yield from iter_patient_blocks(
        lambda rows: row_by_row(embed, cohort.images[kept[rows]], kind=(embedding, torch.device(device))),
        cohort.owners[kept],
        cohort.labels[kept],
        patients=cohort.patients,
        labels=embedding.labels,
        width=embedding.width,
        most_numbers=BLOCK_NUMBERS,
        dtype=torch.float64,
    )


def _embed_in_float64(images: torch.Tensor, embedding: Embedding, device: torch.device) -> torch.Tensor:
    return embed_images(images.double().to(device), embedding).to(images.device)


def class_means(released_mean: torch.Tensor, embedding: Embedding) -> ClassMeans:
    """Splits a release into per-class means and class shares (post-processing).

    Args:
        released_mean: (embedding.size,) the sum of the hospitals' noisy sums, times any positive constant.
        embedding: of the release.

    Raises:
        FederationError: wrong length, not finite, or without any mass.
    """
    if released_mean.shape != (embedding.size,) or not bool(torch.isfinite(released_mean).all()):
        raise FederationError(
            f"a warm-start release of shape {tuple(released_mean.shape)} is not {embedding.size} finite numbers; "
            "was it made from the same plan?"
        )
    found = means_of(released_mean.reshape(embedding.labels, -1))
    if found is None:
        raise FederationError(
            "the warm-start release holds no class mass above its noise; lower warm_start.noise_multiplier"
        )
    return found


def released_mean(
    sums: Mapping[str, np.ndarray], embedding: Embedding, warm: WarmStartSpec, *, patients: int
) -> np.ndarray:
    """The release: the hospitals' noisy sums together, over the nominal number of patients; classes shrunk if asked.

    Args:
        sums: (embedding.size,) float32, by hospital; added in the order of their names, so that every party that has
            the same sums gets the same bits.
        embedding: of the release.
        warm: its noise multiplier, and whether classes are shrunk.
        patients: PUBLIC nominal number of a hospital's patients.

    Raises:
        FederationError: as `class_means`, where classes are shrunk.
    """
    total = np.zeros(embedding.size, dtype=np.float64)
    for _, value in sorted(sums.items()):
        total += value
    mean = (total / (patients * len(sums))).astype(np.float32)
    if warm.shrink_classes:
        noise_std = release_noise_std(warm, hospitals=len(sums), patients=patients)
        return shrink_classes(torch.from_numpy(mean), embedding, noise_std=noise_std).numpy()
    return mean


def release_noise_std(warm: WarmStartSpec, *, hospitals: int, patients: int) -> float:
    """Standard deviation of the noise of one number of `released_mean` over that many hospitals; public."""
    return warm.noise_multiplier / (math.sqrt(hospitals) * patients)


def noise_floors(released_mean: torch.Tensor, embedding: Embedding, *, noise_std: float) -> torch.Tensor:
    """Squared distance of each class's released mean from the true one, as the noise makes it, by parts.

    Args:
        released_mean: see `class_means`.
        embedding: of the release.
        noise_std: of one of its numbers (`release_noise_std`).

    Returns:
        (parts, labels): of the features, and of the mean of each plane of the images.
    """
    mass = class_masses(released_mean.reshape(embedding.labels, -1))  # (labels,)
    return torch.tensor(_parts(embedding)).to(mass)[:, None] * (noise_std / mass).square()


def _parts(embedding: Embedding) -> list[int]:
    """How many numbers of a class's mean are features, and pixels of each plane."""
    return [embedding.features] + [embedding.feature_size**2] * embedding.planes


def shrink_classes(released_mean: torch.Tensor, embedding: Embedding, *, noise_std: float) -> torch.Tensor:
    """Draws each class's mean to the mean of all, as far as noise explains how far apart they are (post-processing).

    Positive-part James-Stein; features and mean image are shrunk each by its own. Masses stay as they are.

    Args:
        released_mean: (embedding.size,) the hospitals' noisy sums over hospitals times patients.
        embedding: of the release.
        noise_std: standard deviation of the noise of one of its numbers.

    Returns:
        (embedding.size,) a release as `class_means` takes it.

    Raises:
        FederationError: as `class_means`.
    """
    means = class_means(released_mean, embedding).means  # (labels, width - 1)
    blocks = released_mean.reshape(len(means), -1)
    mass, total = class_masses(blocks), blocks[:, -1].sum() / MASS_WEIGHT  # (labels,), scalar
    together = blocks[:, :-1].sum(0) / total
    apart = means - together
    # Noise of one number of b_c / m_c - sum(b) / M, where each b holds noise of its own.
    variance = noise_std**2 * ((1 / mass - 1 / total).square() + (len(mass) - 1) / total**2)  # (labels,)
    parts = []
    for part in apart.split((embedding.features, embedding.pixels), dim=1):
        explained = max(0, part.shape[1] - 2) * variance / part.square().sum(1)  # (labels,) share of the distance
        parts.append(part * (1 - explained).clamp(min=0)[:, None])
    shrunk = (together + torch.cat(parts, dim=1)) * mass[:, None]
    return torch.cat([shrunk, blocks[:, -1:]], dim=1).reshape(-1)


def with_released_prior(plan: Plan, released_mean: torch.Tensor | None) -> Plan:
    """The plan whose label prior is the class shares of the release, where `image.released_prior` asks for it."""
    if released_mean is None or not plan.image.released_prior:
        return plan
    prior = released_prior(released_mean, plan.embedding)
    return dataclasses.replace(plan, image=dataclasses.replace(plan.image, label_prior=prior))


def released_prior(released_mean: torch.Tensor, embedding: Embedding) -> tuple[float, ...]:
    """Class shares of a release, which sum to 1.

    A noisy histogram of the classes that costs nothing more: its masses are part of the charged release. Shares are
    rounded to a thousandth and none is below MIN_SHARE, so that every party derives the same ones.
    """
    shares = class_means(released_mean, embedding).shares.double()
    thousandths = (1000 * shares).round().clamp(min=1)
    thousandths[thousandths.argmax()] += 1000 - thousandths.sum()
    return tuple(float(share) / 1000 for share in thousandths)


def embedding_loss(
    images: torch.Tensor,
    labels: torch.Tensor,
    released_mean: torch.Tensor,
    embedding: Embedding,
    floors: torch.Tensor | None = None,
) -> torch.Tensor:
    """Feature matching to the release: squared distance of class means, unbiased (`losses.class_distance`).

    Args:
        images: float (b, planes, h, w) fakes, in the embedding's range.
        labels: int64 (b,).
        released_mean: see `class_means`.
        embedding: of the release.
        floors: (parts, labels) below which a class is not drawn closer (`noise_floors`); None for none.

    Returns:
        Scalar. Reads only public and released values.
    """
    vectors = embed_images(images, embedding)[:, :-1]  # (b, width - 1)
    means = class_means(released_mean, embedding).means.to(vectors)
    if floors is None:
        return class_distance(vectors, labels, means)
    parts = _parts(embedding)
    distances = zip(vectors.split(parts, dim=1), means.split(parts, dim=1), floors, strict=True)
    return torch.stack([class_distance(drawn, labels, mean, floor) for drawn, mean, floor in distances]).sum()


def high_frequency_residual(images: torch.Tensor, feature_size: int) -> torch.Tensor:
    """Mean square of what shrinking to the feature size takes away: the release says nothing about it.

    Left free it fills with patterns that no real image has, which a classifier then learns; the warm start draws
    smooth images instead, and leaves detail to the adversarial steps.
    """
    if feature_size == images.shape[-1]:
        return images.new_zeros(())
    small = adaptive_avg_pool2d(images, feature_size)
    smooth = interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return (images - smooth).square().mean()


def fit_generator(
    generator: nn.Module,
    released_mean: torch.Tensor,
    embedding: Embedding,
    warm: WarmStartSpec,
    *,
    latent: int,
    noise_std: float = 0.0,
    progress: Progress = silent,
) -> None:
    """Fits the generator, in place, to the release: Adam, learning rate falling to 0 along a cosine.

    Every label is drawn equally often, whatever its share: a rare class is matched as closely as a frequent one. Where
    the release is noised, no class is drawn closer to it than the noise has moved it (`noise_floors`): what is closer
    is noise, and shows as grain over every image.

    Args:
        generator: changed in place, left in training mode; its device is the one that is computed on.
        released_mean: see `class_means`.
        embedding: of the release; its seed is that of the noise too.
        warm: steps, batch, learning rate and the weight of detail.
        latent: length of the generator's noise vector.
        noise_std: of one number of the release (`release_noise_std`); 0 where it holds no noise, or where classes were
            shrunk, which takes noise out that nobody counted.
        progress: told ("warm start", steps done, steps).
    """
    public = torch.Generator().manual_seed(embedding.seed)
    device = next(generator.parameters()).device
    floors = noise_floors(released_mean.to(device), embedding, noise_std=noise_std) if noise_std > 0 else None
    labels = (torch.arange(warm.batch) % embedding.labels).to(device)
    optimizer = torch.optim.Adam(generator.parameters(), warm.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, warm.steps)
    generator.train()
    for step in range(warm.steps):
        z = torch.randn(warm.batch, latent, generator=public).to(device)
        images = generator(z, labels)  # (b, planes, h, w)
        loss = embedding_loss(images, labels, released_mean, embedding, floors)
        loss = loss + warm.detail_weight * high_frequency_residual(images, embedding.feature_size)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("warm start", step + 1, warm.steps)


@lru_cache(maxsize=4)
def _frequencies(embedding: Embedding) -> torch.Tensor:
    """Random frequencies (pixels, features / 2), the same at every party: from NumPy's PCG64 and the public seed."""
    public = np.random.Generator(np.random.PCG64(embedding.seed))
    normal = public.standard_normal((embedding.pixels, embedding.features // 2), dtype=np.float32)
    scales = np.array(embedding.bandwidths, dtype=np.float32)
    return torch.from_numpy(normal / scales[np.arange(normal.shape[1]) % len(scales)])


def _first_images(owners: torch.Tensor, patients: int, most: int) -> torch.Tensor:
    """Indices, sorted by owner, of each patient's first `most` images in the cohort's order."""
    order = torch.argsort(owners, stable=True)
    counts = torch.bincount(owners, minlength=patients)
    first = torch.cumsum(counts, 0) - counts  # (patients,) place of each patient's first image in `order`
    rank = torch.arange(len(order)) - first[owners[order]]
    return order[rank < most]
