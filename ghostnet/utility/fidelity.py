"""Fidelity of synthetic images in a classifier's features: distances, precision and recall.

The features are those of a classifier trained on the same kind of images, averaged over positions: 64 numbers an
image. No Inception network is used (its weights would have to be downloaded, and it was trained on photographs), so
these distances compare runs on one data set with each other, never with a published FID.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ghostnet.errors import DataError
from ghostnet.utility.classifier import BATCH, Classifier

NEIGHBOURS = 5
"""k of the precision and recall: an image is covered when it lies within the k-th neighbour's distance of another."""

MAX_IMAGES = 5000
"""Images of a set that are compared, the first ones: distances between all pairs are held in memory."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Distances between synthetic and real images.

    Attributes:
        frechet: squared Frechet (2-Wasserstein) distance of two Gaussians fitted to the features; 0 is best. Biased
            upwards for few images.
        kernel: unbiased squared maximum mean discrepancy, polynomial kernel of degree 3; about 0 is best.
        precision: share of synthetic images that lie among the real ones.
        recall: share of real images that lie among the synthetic ones: low where a generator draws few kinds.
        images: images of each set that were compared.
    """

    frechet: float
    kernel: float
    precision: float
    recall: float
    images: int


def compare(real: torch.Tensor, synthetic: torch.Tensor) -> Fidelity:
    """Compares features of equally many real and synthetic images.

    Args:
        real: float (n, d) features of real images. SENSITIVE, and so is the result: it is no release.
        synthetic: float (m, d); the first min(n, m, 5000) of each are compared.

    Raises:
        DataError: fewer than 10 images, other widths, or values that are not finite.
    """
    n = min(len(real), len(synthetic), MAX_IMAGES)
    if n < 2 * NEIGHBOURS or real.shape[1:] != synthetic.shape[1:]:
        raise DataError(
            f"features of shape {tuple(real.shape)} and {tuple(synthetic.shape)} cannot be compared; "
            f"give at least {2 * NEIGHBOURS} images on both sides, through the same network"
        )
    ours, theirs = (features[:n].double().numpy() for features in (real, synthetic))
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise DataError("features hold NaN or infinity; the images or the network are broken")
    return Fidelity(
        frechet=frechet_distance(ours, theirs),
        kernel=kernel_distance(ours, theirs),
        precision=coverage(theirs, within=ours),
        recall=coverage(ours, within=theirs),
        images=n,
    )


@torch.no_grad()
def image_features(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Features of images, averaged over positions: float (n, c, h, w) -> float32 (n, 64), on the CPU."""
    device = next(model.parameters()).device
    parts = [model.maps(images[i : i + BATCH].to(device)).mean(dim=(2, 3)).cpu() for i in range(0, len(images), BATCH)]
    return torch.cat(parts)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """|mean a - mean b|^2 + trace(A + B - 2 (A B)^(1/2)) of sets (n, d) and (m, d) (Heusel et al. 2017).

    >>> frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]]))
    9.0
    """
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b)]
    # trace((A B)^(1/2)) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)).sum()
    apart = float(np.square(a.mean(0) - b.mean(0)).sum())
    return max(0.0, apart + float(np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross))


def kernel_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018, "KID")."""

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        product: NDArray[np.float64] = (x @ y.T / x.shape[1] + 1) ** 3
        return product

    def within(x: NDArray[np.float64]) -> float:
        pairs = kernel(x, x)
        return float((pairs.sum() - np.trace(pairs)) / (len(x) * (len(x) - 1)))

    return within(a) + within(b) - 2 * float(kernel(a, b).mean())


def coverage(points: NDArray[np.float64], *, within: NDArray[np.float64]) -> float:
    """Share of points (n, d) inside the union of balls around `within` (m, d), each as wide as its k-th neighbour.

    Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric".
    """
    own = _distances(within, within)
    radius = np.partition(own, NEIGHBOURS, axis=1)[:, NEIGHBOURS]  # the nearest "neighbour" is the point itself
    return float((_distances(points, within) <= radius[None]).any(axis=1).mean())


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    return squares.clip(min=0)
