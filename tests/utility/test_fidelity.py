"""Distances between sets of images: zero for the same kind, larger for worse, and each failure seen by its measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ghostnet.errors import DataError
from ghostnet.utility import fidelity
from ghostnet.utility.classifier import build_classifier


def _normal(n: int, seed: int, *, shift: float = 0.0, width: float = 1.0, d: int = 8) -> torch.Tensor:
    return shift + width * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_two_samples_of_one_kind_are_close_and_cover_each_other():
    found = fidelity.compare(_normal(1000, 1), _normal(1000, 2))
    assert found.frechet < 0.1
    assert abs(found.kernel) < 0.05
    assert found.precision > 0.9
    assert found.recall > 0.9


@pytest.mark.parametrize("measure", ["frechet", "kernel"])
def test_a_larger_shift_is_further_away(measure):
    distances = [getattr(fidelity.compare(_normal(500, 1), _normal(500, 2, shift=s)), measure) for s in (0, 0.5, 1, 2)]
    assert distances == sorted(distances)
    assert distances[-1] > 10 * abs(distances[0])


def test_the_frechet_distance_of_gaussians_is_the_formula():
    a, b = (x.double().numpy() for x in (_normal(200_000, 1, d=2), _normal(200_000, 2, shift=1, width=3, d=2)))
    assert fidelity.frechet_distance(a, b) == pytest.approx(2 * 1 + 2 * (3 - 1) ** 2, rel=0.02)


def test_the_kernel_distance_is_unbiased():
    found = [
        fidelity.kernel_distance(*(_normal(20, 2 * i + j, d=4).double().numpy() for j in (0, 1))) for i in range(400)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0


def test_a_collapsed_generator_has_precision_and_no_recall():
    collapsed = 1e-3 * _normal(500, 2)
    found = fidelity.compare(_normal(500, 1), collapsed)
    assert found.precision > 0.9
    assert found.recall < 0.05


def test_noise_far_from_the_data_has_no_precision():
    assert fidelity.compare(_normal(500, 1), _normal(500, 2, width=10)).precision < 0.1


def test_features_are_64_numbers_an_image_whatever_the_batch():
    model = build_classifier(channels=1, classes=2).eval()
    images = torch.randn(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = fidelity.image_features(model, images)
    assert features.shape == (300, 64)
    torch.testing.assert_close(features[-2:], fidelity.image_features(model, images[-2:]))


@pytest.mark.parametrize(
    "pair",
    [
        (torch.zeros(3, 4), torch.zeros(30, 4)),
        (torch.zeros(30, 4), torch.zeros(30, 5)),
        (torch.full((30, 4), float("nan")), torch.zeros(30, 4)),
    ],
)
def test_what_cannot_be_compared_is_refused(pair):
    with pytest.raises(DataError):
        fidelity.compare(*pair)
