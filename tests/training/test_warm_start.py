"""The warm start: norm bound, no assumed class shares, an unbiased distance, and a fit that finds planted classes."""

import dataclasses

import pytest
import torch

from ghostnet.errors import FederationError
from ghostnet.models import build_generator
from ghostnet.plan import Plan
from ghostnet.training import warm_start
from ghostnet.training.cohort import Cohort
from tests.plans import tiny_plan

PLAN = tiny_plan()


def stripes(labels: torch.Tensor, size: int = 28, seed: int = 0) -> torch.Tensor:
    """Class 0 is bright on the left, class 1 on the right, with noise; in [-1,1]."""
    noise = torch.randn(len(labels), 1, size, size, generator=torch.Generator().manual_seed(seed)) * 0.1
    left = torch.where(torch.arange(size) < size // 2, 0.6, -0.6)
    return (noise + torch.where(labels[:, None, None, None] == 0, left, -left)).clamp(-1, 1)


def cohort(counts: list[int], owners: list[int] | None = None) -> Cohort:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    index = torch.tensor(owners) if owners is not None else torch.arange(len(labels))
    return Cohort(images=stripes(labels), labels=labels, owners=index, patients=int(index.max()) + 1)


def vectors_of(data: Cohort, plan: Plan) -> torch.Tensor:
    """A vector a patient, as the plan asks."""
    return warm_start.patient_embeddings(data, plan.embedding, plan.privacy.images_per_patient)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("pixel_range", ["[-1,1]", "[0,1]"])
def test_no_image_has_a_vector_longer_than_1(weight, pixel_range):
    plan = dataclasses.replace(
        PLAN,
        image=dataclasses.replace(PLAN.image, range=pixel_range),
        warm_start=dataclasses.replace(PLAN.warm_start, mean_image_weight=weight),
    )
    low = -1.0 if pixel_range == "[-1,1]" else 0.0
    some = torch.rand(1, 28, 28) * (1 - low) + low
    extremes = torch.stack([torch.full((1, 28, 28), low), torch.ones(1, 28, 28), some])
    norms = warm_start.embed_images(extremes, plan.embedding).norm(dim=1)
    assert norms.max() <= 1 + 1e-5
    assert norms[:2].min() > 1 - 1e-5  # the bound is reached, so no budget is wasted on slack


def test_every_patient_has_one_vector_of_norm_at_most_1_whatever_their_images():
    owners = [0, 0, 0, 0, 0, 1, 2, 2, 3, 5]  # patient 4 has none
    plan = dataclasses.replace(PLAN, privacy=dataclasses.replace(PLAN.privacy, images_per_patient=3))
    vectors = vectors_of(cohort([6, 4], owners), plan)
    assert vectors.shape == (6, plan.embedding.size)
    assert vectors.norm(dim=1).max() <= 1 + 1e-5
    assert vectors[4].abs().max() == 0


def test_a_patient_with_both_labels_is_split_between_their_blocks():
    plan = tiny_plan(images_per_patient="images_per_patient = 4")
    vectors = vectors_of(cohort([1, 3], [0, 0, 0, 0]), plan)
    masses = vectors.reshape(2, -1)[:, -1] / warm_start.MASS_WEIGHT
    assert torch.allclose(masses, torch.tensor([0.25, 0.75], dtype=torch.float64), atol=1e-6)


def test_only_the_first_images_of_a_patient_count_and_no_other_patient_matters():
    data = cohort([4, 4], [0, 1, 0, 0, 1, 0, 1, 0])
    both = vectors_of(data, PLAN)  # two images a patient
    alone = vectors_of(
        Cohort(images=data.images[[0, 2]], labels=data.labels[[0, 2]], owners=torch.tensor([0, 0]), patients=1), PLAN
    )
    assert torch.allclose(both[0], alone[0], atol=1e-6)


def test_blocks_of_patients_join_to_the_whole(monkeypatch):
    data = cohort([7, 6], [0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7, 7])
    whole = vectors_of(data, PLAN)
    monkeypatch.setattr(warm_start, "BLOCK_NUMBERS", 3 * PLAN.embedding.size)
    blocks = list(warm_start.iter_patient_embeddings(data, PLAN.embedding, PLAN.privacy.images_per_patient))
    assert [len(b) for b in blocks] == [3, 3, 2]
    assert torch.allclose(torch.cat(blocks), whole, atol=1e-6)


def test_a_vector_longer_than_a_block_goes_alone(monkeypatch):
    data = cohort([2, 2], [0, 1, 1, 3])
    whole = vectors_of(data, PLAN)
    monkeypatch.setattr(warm_start, "BLOCK_NUMBERS", 1)
    blocks = list(warm_start.iter_patient_embeddings(data, PLAN.embedding, PLAN.privacy.images_per_patient))
    assert [len(b) for b in blocks] == [1, 1, 1, 1]
    assert torch.allclose(torch.cat(blocks), whole, atol=1e-6)


def test_an_empty_hospital_has_no_rows():
    none = torch.zeros(0, dtype=torch.long)
    empty = Cohort(images=torch.zeros(0, 1, 28, 28), labels=none, owners=none, patients=0)
    assert vectors_of(empty, PLAN).shape == (
        0,
        PLAN.embedding.size,
    )


def test_class_shares_come_from_the_release_and_not_from_the_prior():
    data = cohort([30, 90])
    means = warm_start.class_means(
        vectors_of(data, PLAN).sum(0).float(),
        PLAN.embedding,
    )
    assert torch.allclose(means.shares, torch.tensor([0.25, 0.75]), atol=1e-5)
    inside = warm_start.embed_images(data.images, PLAN.embedding)[:, :-1]
    assert torch.allclose(means.means[0], inside[:30].mean(0), atol=1e-5)
    assert torch.allclose(means.means[1], inside[30:].mean(0), atol=1e-5)


def test_class_means_do_not_depend_on_the_scale_of_the_release():
    total = vectors_of(cohort([30, 90]), PLAN).sum(0)
    means, scaled = (warm_start.class_means(t, PLAN.embedding).means for t in (total, total / 77))
    assert torch.allclose(means, scaled, atol=1e-5)


def test_a_class_whose_noisy_mass_is_negative_stays_finite():
    total = vectors_of(cohort([0, 50]), PLAN).sum(0)
    total.reshape(2, -1)[0] -= 0.5
    means = warm_start.class_means(total, PLAN.embedding)
    assert torch.isfinite(means.means).all()
    assert means.shares.min() > 0


@pytest.mark.parametrize("spoil", [lambda r: r[:-1], lambda r: r * float("nan"), lambda r: -r])
def test_a_release_that_cannot_be_used_is_refused(spoil):
    total = vectors_of(cohort([5, 5]), PLAN).sum(0)
    with pytest.raises(FederationError):
        warm_start.class_means(spoil(total), PLAN.embedding)


def test_embedding_loss_is_unbiased_zero_for_images_of_the_same_law():
    labels = torch.arange(400) % 2
    release = vectors_of(
        Cohort(images=stripes(labels), labels=labels, owners=torch.arange(400), patients=400), PLAN
    ).sum(0)
    losses = torch.stack(
        [
            warm_start.embedding_loss(stripes(labels[:8], seed=s), labels[:8], release, PLAN.embedding)
            for s in range(1, 150)
        ]
    )
    swapped = warm_start.embedding_loss(stripes(1 - labels[:8]), labels[:8], release, PLAN.embedding)
    assert losses.mean().abs() < 4 * losses.std() / len(losses) ** 0.5 + 0.002  # the release's own 400 images
    assert (losses < 0).any()
    assert swapped > 100 * losses.mean().abs()


def test_embedding_loss_ignores_a_class_with_a_single_fake():
    release = vectors_of(cohort([20, 20]), PLAN).sum(0)
    labels = torch.tensor([0, 0, 0, 1])
    images = stripes(labels).requires_grad_()
    warm_start.embedding_loss(images, labels, release, PLAN.embedding).backward()
    assert images.grad[:3].abs().max() > 0
    assert images.grad[3].abs().max() == 0


def test_fitted_generator_draws_the_planted_classes_from_a_noisy_unbalanced_release():
    plan = tiny_plan(batch="batch = 32", features="features = 200")
    plan = dataclasses.replace(plan, warm_start=dataclasses.replace(plan.warm_start, steps=40, learning_rate=5e-3))
    vectors = vectors_of(cohort([100, 300]), plan)
    release = vectors.sum(0) + 2 * torch.randn(vectors.shape[1], generator=torch.Generator().manual_seed(5))
    torch.manual_seed(0)  # the initial weights; six seeds were tried, all pass
    generator, seen = build_generator(plan.networks), []
    warm_start.fit_generator(
        generator,
        release,
        plan.embedding,
        plan.warm_start,
        latent=plan.model.latent,
        progress=lambda *args: seen.append(args),
    )
    assert seen[-1] == ("warm start", 40, 40)
    labels = torch.arange(64) % 2
    images = generator.eval()(torch.randn(64, plan.model.latent), labels)
    contrast = images[:, :, :, :14].mean((1, 2, 3)) - images[:, :, :, 14:].mean((1, 2, 3))
    assert contrast[labels == 0].min() > 0.4
    assert contrast[labels == 1].max() < -0.4


def test_a_floor_is_how_far_the_noise_moves_a_release():
    truth = vectors_of(cohort([100, 300]), PLAN).sum(0)
    clean = warm_start.class_means(truth, PLAN.embedding).means
    generator, moved = torch.Generator().manual_seed(2), []
    for _ in range(200):
        noised = truth + 0.5 * torch.randn(truth.shape, generator=generator)
        # Masses without noise: the floor is about the features.
        noised.reshape(2, -1)[:, -1] = truth.reshape(2, -1)[:, -1]
        apart = (warm_start.class_means(noised, PLAN.embedding).means - clean).square()  # (labels, width - 1)
        moved.append(torch.stack([part.sum(1) for part in apart.split([PLAN.embedding.features, 14**2], dim=1)]))
    floors = warm_start.noise_floors(truth, PLAN.embedding, noise_std=0.5)
    assert torch.allclose(torch.stack(moved).mean(0), floors, rtol=0.05)
    assert (floors[:, 0] > 8 * floors[:, 1]).all()  # a third of the patients


def test_a_fit_stops_at_the_noise_of_its_release_and_without_a_floor_draws_it():
    plan = tiny_plan(batch="batch = 64", features="features = 200")
    plan = dataclasses.replace(plan, warm_start=dataclasses.replace(plan.warm_start, steps=150, learning_rate=5e-3))
    vectors = vectors_of(cohort([50, 50]), plan).sum(0)
    release = vectors + 2 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(5))
    floors = warm_start.noise_floors(release, plan.embedding, noise_std=2.0)
    labels, z = torch.arange(400) % 2, torch.randn(400, plan.model.latent, generator=torch.Generator().manual_seed(1))
    distance = {}
    for noise_std in (2.0, 0.0):
        torch.manual_seed(0)
        generator = build_generator(plan.networks)
        warm_start.fit_generator(
            generator, release, plan.embedding, plan.warm_start, latent=plan.model.latent, noise_std=noise_std
        )
        with torch.no_grad():
            images = generator.eval()(z, labels)
        distance[noise_std] = float(warm_start.embedding_loss(images, labels, release, plan.embedding))
    floor = float(floors.sum(0).mean())
    assert 0.9 * floor < distance[2.0] < 1.1 * floor
    assert distance[0.0] < 0.8 * floor


def test_every_party_has_the_same_random_features():
    """NumPy's PCG64 stream is part of the plan's meaning; a change would make hospitals and server disagree."""
    first = warm_start._frequencies(PLAN.embedding)
    warm_start._frequencies.cache_clear()
    again = warm_start._frequencies(PLAN.embedding)
    assert torch.equal(first, again)
    assert first.shape == (14 * 14, 16)
    other = warm_start._frequencies(dataclasses.replace(PLAN, seed=4).embedding)
    assert not torch.equal(first, other)


def test_smooth_images_hold_no_unseen_detail_and_pixel_patterns_do():
    ramp = torch.linspace(-1, 1, 28).expand(2, 1, 28, 28)
    checks = (torch.arange(28)[:, None] + torch.arange(28)) % 2 * 2.0 - 1
    assert warm_start.high_frequency_residual(ramp, PLAN.warm_start.feature_size) < 1e-3
    assert warm_start.high_frequency_residual(checks.expand(2, 1, 28, 28), PLAN.warm_start.feature_size) > 0.9
    assert warm_start.high_frequency_residual(checks.expand(2, 1, 28, 28), 28) == 0


@pytest.mark.parametrize(("hospitals", "patients"), [(1, 10), (9, 20), (9, 60)])
def test_shrinking_takes_out_what_noise_explains_whatever_the_true_number_of_patients(hospitals, patients):
    """A drowned class (3 patients a hospital) comes to the mean of all; a clear one stays where it is."""
    spec = dataclasses.replace(PLAN.warm_start, noise_multiplier=1.0)
    plan = dataclasses.replace(PLAN, warm_start=spec)
    true = torch.zeros(2, plan.embedding.size // 2)
    true[:, 0], true[:, -2], true[:, -1] = torch.tensor([0.5, -0.5]), torch.tensor([0.3, -0.3]), warm_start.MASS_WEIGHT
    noise = hospitals**0.5 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    noise[:, -1] = 0

    def distances(counts: tuple[float, float]) -> tuple[float, float]:
        summed = (hospitals * torch.tensor(counts)[:, None] * true + noise).flatten()
        released = summed / (hospitals * plan.federation.patients)
        noise_std = 1.0 / (hospitals**0.5 * plan.federation.patients)
        shrunk = warm_start.shrink_classes(released, plan.embedding, noise_std=noise_std)
        return tuple(
            float((warm_start.class_means(mean, plan.embedding).means.diff(dim=0)).norm())
            for mean in (released, shrunk)
        )

    before, after = distances((patients - 3.0, 3.0))
    assert after < 0.6 * before
    before, after = distances((1e6, 1e6))
    assert after == pytest.approx(before, rel=1e-3)


def test_shrinking_keeps_masses_and_the_mean_of_all():
    data = cohort([60, 20])
    released = vectors_of(data, PLAN).sum(0) / PLAN.federation.patients
    noise_std = PLAN.warm_start.noise_multiplier / PLAN.federation.patients
    shrunk = warm_start.shrink_classes(released, PLAN.embedding, noise_std=noise_std)
    before, after = (r.reshape(2, -1) for r in (released, shrunk))
    assert torch.equal(before[:, -1], after[:, -1])
    assert not torch.allclose(before, after)
