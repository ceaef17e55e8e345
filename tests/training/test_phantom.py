"""Phantoms: the lesion is where the mask says, patients differ more than their own images, and a seed is enough."""

import numpy as np
import pytest

from ghostnet.training.phantom import Anatomy, chest, draw_anatomy, radiograph


def test_same_generator_state_draws_the_same_image():
    first, second = (chest(np.random.default_rng(7), 64, "lesion") for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("size", [32, 64, 256])
def test_image_fills_zero_to_one_and_only_lesions_have_a_mask(size: int):
    for seed in range(10):
        normal, empty = chest(np.random.default_rng(seed), size, "normal")
        _, mask = chest(np.random.default_rng(seed), size, "lesion")
        assert normal.shape == mask.shape == (size, size)
        assert normal.dtype == np.float32
        assert normal.min() >= 0
        assert normal.max() <= 1
        assert np.ptp(normal) > 0.5
        assert not empty.any()
        assert 0.002 < (mask == 255).mean() < 0.25


def test_lesion_is_brighter_than_the_same_lung_without_it():
    for seed in range(10):
        anatomy = draw_anatomy(np.random.default_rng(seed))
        lesion = radiograph(anatomy, np.random.default_rng(seed), 128, "lesion")
        normal = radiograph(anatomy, np.random.default_rng(seed), 128, "normal")
        inside = lesion.mask > 0
        assert lesion.image[inside].mean() > normal.image[inside].mean() + 0.05


def test_images_of_one_patient_resemble_each_other_more_than_another_patient():
    rng = np.random.default_rng(3)
    people: list[Anatomy] = [draw_anatomy(rng) for _ in range(12)]
    pairs = [[radiograph(a, rng, 64, "normal").image for _ in range(2)] for a in people]
    own = np.mean([np.abs(a - b).mean() for a, b in pairs])
    other = np.mean([np.abs(pairs[i][0] - pairs[i - 1][1]).mean() for i in range(12)])
    assert own < other


def test_label_can_be_learned_at_32_pixels_by_a_linear_model():
    rng = np.random.default_rng(5)
    labels = np.arange(500) % 2
    images = np.stack([chest(rng, 32, "lesion" if y else "normal")[0].ravel() for y in labels])
    images -= images[:360].mean(0)
    weights = np.linalg.solve(images[:360].T @ images[:360] + 30 * np.eye(1024), images[:360].T @ (labels[:360] - 0.5))
    scores, truth = images[360:] @ weights, labels[360:]
    auc = (scores[truth == 1][:, None] > scores[truth == 0]).mean()
    assert auc > 0.7
