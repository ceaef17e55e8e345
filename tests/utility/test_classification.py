"""Train on synthetic, test on real: a patient counts once, and intervals hold what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ghostnet.errors import DataError
from ghostnet.exchange.arrays import load_arrays, to_arrays
from ghostnet.training.cohort import Cohort
from ghostnet.utility import classification
from ghostnet.utility.classification import (
    cell_count,
    exact_figures,
    figures,
    patient_counts,
    rank_auc,
    score_edges,
    train_classifier,
)
from ghostnet.utility.classifier import augment, build_classifier, predict

EDGES = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Reader(nn.Module):
    """A classifier whose logits are written into the image: class i's logit is pixel (0, i)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0, : self.classes]


def cohort_of(logits: torch.Tensor, labels: torch.Tensor, owners: torch.Tensor | None = None) -> Cohort:
    images = torch.zeros(len(logits), 1, 4, 4)
    images[:, 0, 0, : logits.shape[1]] = logits
    owned = torch.arange(len(logits)) if owners is None else owners
    return Cohort(images=images, labels=labels, owners=owned, patients=int(owned.max()) + 1 if len(owned) else 0)


def scored(scores: list[float], labels: list[int], owners: list[int] | None = None) -> Cohort:
    values = torch.tensor(scores).reshape(-1, 1)
    logits = torch.cat([torch.zeros_like(values), values], dim=1)
    return cohort_of(logits, torch.tensor(labels), None if owners is None else torch.tensor(owners))


def shapes(n: int, size: int, channels: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise images; class 1 has a bright disc somewhere, class 0 a bright bar."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(n, channels, size, size, generator=rng) * 0.3
    labels = torch.arange(n) % 2
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    centres = torch.rand(n, 2, generator=rng) - 0.5
    dx, dy = x - centres[:, 0, None, None], y - centres[:, 1, None, None]
    disc, bar = (dx**2 + dy**2 < 0.12).float(), ((dx.abs() < 0.1) & (dy.abs() < 0.9)).float()
    return images + torch.where(labels[:, None, None] == 1, disc, bar)[:, None], labels


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 1)])
def test_the_classifier_learns_what_a_person_would_see(size: int, channels: int) -> None:
    images, labels = shapes(160, size, channels, seed=1)
    model = train_classifier(images, labels, 2, 40, 0)
    test_images, test_labels = shapes(100, size, channels, seed=2)
    found = exact_figures(
        model, Cohort(images=test_images, labels=test_labels, owners=torch.arange(100), patients=100), 2
    )
    assert found["auc"] is not None
    assert found["auc"] > 0.9


def test_without_a_difference_between_the_classes_it_finds_none() -> None:
    images, labels = shapes(200, 28, 1, seed=1)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    model = train_classifier(images, shuffled, 2, 30, 0)
    test_images, test_labels = shapes(200, 28, 1, seed=2)
    auc = rank_auc(classification.scores(model, test_images), test_labels)
    assert auc is not None
    assert abs(auc - 0.5) < 0.4


def test_the_same_seed_trains_the_same_classifier_and_leaves_torchs_seed_alone() -> None:
    images, labels = shapes(40, 28, 1, seed=1)
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = to_arrays(train_classifier(images, labels, 2, 3, 5))
    assert torch.equal(torch.rand(3), expected)
    second = to_arrays(train_classifier(images, labels, 2, 3, 5))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_classifier_travels_as_arrays() -> None:
    images, labels = shapes(40, 28, 1, seed=1)
    trained = train_classifier(images, labels, 2, 3, 5)
    received = build_classifier(channels=1, classes=2).eval()
    load_arrays(received, to_arrays(trained))
    assert torch.equal(predict(received, images), predict(trained, images))


def test_mask_planes_after_the_image_are_not_looked_at() -> None:
    images, labels = shapes(40, 28, 1, seed=1)
    with_masks = torch.cat([images, torch.rand(40, 1, 28, 28)], dim=1)
    model = train_classifier(with_masks, labels, 2, 2, 0, channels=1)
    assert torch.equal(predict(model, with_masks), predict(model, images))


@pytest.mark.parametrize(("n", "classes"), [(0, 2), (4, 1)])
def test_training_on_nothing_or_on_one_class_is_refused(n: int, classes: int) -> None:
    with pytest.raises(DataError):
        train_classifier(torch.zeros(n, 1, 28, 28), torch.zeros(n, dtype=torch.int64), classes, 1, 0)


def test_augmentation_keeps_shape_and_finite_values() -> None:
    images = torch.rand(8, 3, 28, 28)
    moved = augment(images)
    assert moved.shape == images.shape
    assert bool(torch.isfinite(moved).all())
    assert not torch.equal(moved, images)


@settings(max_examples=60, deadline=None)
@given(
    owners=st.lists(st.integers(0, 5), max_size=20),
    values=st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=60, max_size=60),
    classes=st.integers(2, 3),
)
def test_a_patient_moves_the_counts_by_at_most_one_whatever_the_images_hold(
    owners: list[int], values: list[float], classes: int
) -> None:
    n = len(owners)
    logits = torch.tensor(values[: n * classes]).reshape(n, classes)
    cohort = cohort_of(logits, torch.arange(n) % classes, torch.tensor(owners, dtype=torch.int64))
    counts = patient_counts(Reader(classes), cohort, classes=classes, edges=EDGES)
    assert counts.shape == (cohort.patients, cell_count(classes, 4))
    assert bool((counts >= 0).all())
    assert bool((counts.sum(dim=1) <= 1 + 1e-5).all())


def test_counts_fall_in_the_cell_of_their_class_and_score() -> None:
    counts = patient_counts(Reader(2), scored([-2, -0.5, 0.5, 2], [0, 0, 1, 1]), classes=2, edges=EDGES)
    assert counts.argmax(dim=1).tolist() == [0, 1, 4 + 2, 4 + 3]


def test_a_patients_images_share_one_unit() -> None:
    counts = patient_counts(Reader(2), scored([-2, 2, 2, 2], [0, 0, 0, 1], [0, 0, 0, 0]), classes=2, edges=EDGES)
    assert counts.tolist() == [[0.25, 0, 0, 0.5, 0, 0, 0, 0.25]]


def test_many_classes_release_the_confusion_table() -> None:
    cohort = cohort_of(torch.eye(3)[[0, 1, 1]], torch.tensor([0, 1, 2]))
    table = patient_counts(Reader(3), cohort, classes=3).sum(dim=0).reshape(3, 3)
    assert table.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_a_hospital_without_test_patients_gives_an_empty_table() -> None:
    empty = Cohort(
        images=torch.zeros(0, 1, 4, 4), labels=torch.zeros(0).long(), owners=torch.zeros(0).long(), patients=0
    )
    assert patient_counts(Reader(2), empty, classes=2, edges=EDGES).shape == (0, 8)
    assert exact_figures(Reader(2), empty, 2)["auc"] is None
    assert exact_figures(Reader(3), empty, 3)["macro_auc"] is None


def test_edges_are_public_increasing_and_hold_the_threshold() -> None:
    rng = torch.Generator().manual_seed(0)
    for values in (
        torch.randn(500, generator=rng) * 5,
        torch.full((20,), 3.0),
        -torch.rand(9, generator=rng),
        torch.zeros(0),
    ):
        cohort = scored(values.tolist(), [0] * len(values)) if len(values) else None
        images = cohort.images if cohort else torch.zeros(0, 1, 4, 4)
        for bins in (2, 3, 10, 11):
            edges = score_edges(Reader(2), images, bins)
            assert edges.shape == (bins - 1,)
            assert bool((edges.diff() > 0).all())
            assert float(edges[(bins - 1) // 2]) == 0


def test_one_bin_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2"):
        score_edges(Reader(2), torch.zeros(1, 1, 4, 4), 1)


def test_binned_auc_is_close_to_the_exact_one_even_where_the_classifier_is_overconfident_on_synthetic() -> None:
    rng = torch.Generator().manual_seed(3)
    labels = torch.arange(4000) % 2
    synthetic = torch.randn(4000, generator=rng) + torch.where(labels == 1, 6.0, -6.0)  # saturated
    real = torch.randn(4000, generator=rng) * 2 + torch.where(labels == 1, 1.0, -1.5)  # between the modes
    edges = score_edges(Reader(2), scored(synthetic.tolist(), labels.tolist()).images, 10)
    cohort = scored(real.tolist(), labels.tolist())
    binned = figures(patient_counts(Reader(2), cohort, classes=2, edges=edges).sum(0), 2, 10, 0.0)
    exact = exact_figures(Reader(2), cohort, 2)
    assert abs(binned["value"] - exact["auc"]) < 0.02  # type: ignore[operator]
    assert binned["accuracy"]["value"] == pytest.approx(exact["accuracy"], abs=1e-3)  # type: ignore[index]


def binormal_counts(patients: int, gap: float, rng: np.random.Generator) -> np.ndarray:
    """True counts (2, 10) of two normal score distributions, equal-width bins."""
    edges = np.linspace(-2, 2 + gap, 9)
    return np.stack(
        [np.bincount(np.searchsorted(edges, rng.normal(mean, 1, patients)), minlength=10) for mean in (0.0, gap)]
    ).astype(float)


def test_the_interval_covers_the_truth_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(0)
    truth = figures(torch.from_numpy(binormal_counts(400_000, 1.5, rng).ravel()), 2, 10, 0.0)["value"]
    covered = 0
    for trial in range(100):
        noisy = binormal_counts(150, 1.5, rng) + rng.normal(0, 5, (2, 10))
        low, high = figures(torch.from_numpy(noisy.ravel()), 2, 10, 5.0, seed=trial)["interval"]  # type: ignore[misc]
        covered += low <= truth <= high  # type: ignore[operator]
    # A true coverage of 0.95 gives fewer than 88 of 100 with probability 0.1 %.
    assert covered >= 88


def test_more_noise_widens_the_interval() -> None:
    counts = torch.from_numpy(binormal_counts(300, 1.5, np.random.default_rng(1)).ravel())
    widths = [np.diff(figures(counts, 2, 10, noise)["interval"])[0] for noise in (0.0, 4.0, 12.0)]  # type: ignore[call-overload]
    assert widths[0] < widths[1] < widths[2]


def test_counts_below_the_noise_give_no_figure() -> None:
    found = figures(torch.randn(20, generator=torch.Generator().manual_seed(0)) * 6, 2, 10, 6.0)
    assert found["value"] is None
    assert found["interval"] == [0.0, 1.0]
    assert found["informative"] is False


def test_a_rare_class_hides_its_own_recall_only() -> None:
    table = torch.tensor([[300.0, 10, 5], [20, 250, 8], [1, 0, 2]])
    found = figures(table.reshape(-1), 3, 10, 3.0, labels=("a", "b", "rare"))
    assert found["recall"]["rare"]["value"] is None  # type: ignore[index]
    assert found["recall"]["a"]["value"] == pytest.approx(300 / 315, abs=1e-3)  # type: ignore[index]
    assert found["value"] == pytest.approx(552 / 596, abs=1e-3)


def test_chance_of_accuracy_is_the_share_of_the_largest_class() -> None:
    table = torch.tensor([[700.0, 50, 50], [50, 50, 0], [50, 0, 50]])
    found = figures(table.reshape(-1), 3, 10, 1.0)
    assert found["chance"] == pytest.approx(0.8)


def test_totals_that_are_mostly_noise_are_no_chance_line() -> None:
    found = figures(torch.tensor([9.0, 1, 1, 0, 2, 0, 0, 0, 1]), 3, 4, 5.0)
    assert not found["informative"]
    assert found["chance"] == pytest.approx(1 / 3, abs=1e-4)


def test_hospitals_counts_add_up_to_the_pooled_figure() -> None:
    north, south = scored([-2, 2, 0.5], [0, 1, 1]), scored([-0.5, 0.5, 2], [0, 0, 1])
    pooled = scored([-2, 2, 0.5, -0.5, 0.5, 2], [0, 1, 1, 0, 0, 1])
    total = sum(patient_counts(Reader(2), part, classes=2, edges=EDGES).sum(0) for part in (north, south))
    assert torch.equal(total, patient_counts(Reader(2), pooled, classes=2, edges=EDGES).sum(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [torch.zeros(19), torch.full((20,), math.nan), torch.full((20,), math.inf)])
def test_counts_that_are_not_the_plans_are_refused(counts: torch.Tensor) -> None:
    with pytest.raises(DataError):
        figures(counts, 2, 10, 1.0)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(st.floats(-1e4, 1e4), min_size=8, max_size=8), noise=st.floats(0, 100))
def test_figures_stay_between_zero_and_one_for_any_noise(cells: list[float], noise: float) -> None:
    found = figures(torch.tensor(cells, dtype=torch.float64), 2, 4, noise)
    for figure in (found, found["accuracy"], *found["recall"].values()):  # type: ignore[attr-defined]
        low, high = figure["interval"]  # type: ignore[index]
        assert 0 <= low <= high <= 1
        assert figure["value"] is None or low <= figure["value"] <= high  # type: ignore[index]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=30))
def test_rank_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, int]]) -> None:
    low, high = ([value for value, label in rows if label == c] for c in (0, 1))
    found = rank_auc(torch.tensor([float(value) for value, _ in rows]), torch.tensor([label for _, label in rows]))
    if not low or not high:
        assert found is None
    else:
        pairs = [1.0 if b > a else 0.5 if a == b else 0.0 for a in low for b in high]
        assert found == pytest.approx(sum(pairs) / len(pairs))


def test_weighing_by_patient_counts_each_patient_once() -> None:
    cohort = scored([1, -1, -1, -1, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 2])
    found = exact_figures(Reader(2), cohort, 2)
    assert found["auc"] == pytest.approx(0.25)
    assert found["auc_by_patient"] == pytest.approx(0.5)
