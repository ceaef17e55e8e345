"""The perceptual release: bounded, charged, and a target that draws the generator to it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from client.policy import PolicySpec, check_plan
from ghostnet.accounting.plan_cost import claim, plan_events, resolve
from ghostnet.errors import PolicyError
from ghostnet.models import build_discriminator
from ghostnet.plan import parse_plan
from ghostnet.training import loop, perceptual
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import train_round
from ghostnet.training.losses import class_distance
from ghostnet.training.perceptual import embed, perceptual_loss, release_features
from ghostnet.training.state import LocalState
from ghostnet.training.warm_start import embed_images
from tests.entropy import SeededEntropy
from tests.networks import ARCHITECTURES, network_plan, plan_cohort
from tests.plans import tiny_plan_text

pytestmark = pytest.mark.usefixtures("one_thread")

ON = {"perceptual_noise_multiplier": 1e-3, "perceptual_weight": 50.0}


PLAN = network_plan("dcgan", training=ON)


def cohort(patients: int = 30) -> Cohort:
    return plan_cohort(PLAN, patients=patients)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_image_has_a_vector_longer_than_1_in_any_network(architecture):
    plan = network_plan(architecture)
    scales = torch.tensor([0, 1e-3, 1, 10, 1e3]).reshape(-1, 1, 1, 1)
    images = torch.randn(5, 1, plan.image.size, plan.image.size) * scales
    vectors = embed(build_discriminator(plan.networks).eval(), images)
    assert vectors.norm(dim=1).max() <= 1 + 1e-5
    assert vectors[1:].norm(dim=1).min() > 1 - 1e-3  # nothing of the budget is left unused


def test_one_patient_more_moves_the_released_sum_by_at_most_1(monkeypatch):
    plan, seen = network_plan("dcgan", training=ON), []

    def bare_sum(_statistic, vectors, *_, **__):
        seen.append(torch.cat(list(vectors)))
        return seen[-1].sum(0)

    monkeypatch.setattr(perceptual, "release_vectors", bare_sum)
    discriminator, data = build_discriminator(plan.networks), cohort()
    release_features(discriminator, data, plan, SeededEntropy(0))
    (vectors,) = seen
    assert vectors.shape[0] == data.patients
    assert vectors.norm(dim=1).max() <= 1 + 1e-5
    alone = Cohort(images=data.images[:2], labels=data.labels[:2], owners=data.owners[:2], patients=1)
    release_features(discriminator, alone, plan, SeededEntropy(0))
    assert torch.allclose(seen[1][0], vectors[0], atol=1e-5)  # a patient's vector is the patient's alone


@pytest.mark.parametrize("patients", [0, 7])
def test_vectors_come_in_blocks_whose_size_does_not_grow_with_the_patients(monkeypatch, patients):
    discriminator, some = build_discriminator(PLAN.networks).eval(), cohort(7)
    data = Cohort(images=some.images[:0], labels=some.labels[:0], owners=some.owners[:0], patients=0)
    data = some if patients else data
    asked = (discriminator, data, len(PLAN.image.labels), PLAN.privacy.images_per_patient)
    (whole,) = perceptual._patient_features(*asked, SeededEntropy(0))
    for most, sizes in ((3, [3, 3, 1]), (1, [1] * 7)):
        monkeypatch.setattr(perceptual, "BLOCK_NUMBERS", max(1, most * whole.shape[1]))
        blocks = list(perceptual._patient_features(*asked, SeededEntropy(0)))
        assert [len(block) for block in blocks] == (sizes if patients else [0])
        assert torch.allclose(torch.cat(blocks), whole, atol=1e-6)


def test_the_target_is_the_class_means_of_the_features_whatever_the_shares_of_the_classes():
    plan = network_plan("dcgan", training=ON)
    discriminator, data = build_discriminator(plan.networks), cohort(40)
    keep = (data.labels == 0) | (data.owners % 4 == 1)  # class 1 is half as frequent
    owners = torch.unique(data.owners[keep], return_inverse=True)[1]
    some = Cohort(images=data.images[keep], labels=data.labels[keep], owners=owners, patients=int(owners.max()) + 1)
    target = release_features(discriminator, some, plan, SeededEntropy(0))
    features = embed(target.snapshot, some.images)[:, :-1]
    for label in (0, 1):
        assert torch.allclose(target.means[label], features[some.labels == label].mean(0), atol=1e-3)


def test_noise_that_swallows_all_mass_gives_no_target():
    plan = network_plan("dcgan", training=ON | {"perceptual_noise_multiplier": 1e4})
    found = [release_features(build_discriminator(plan.networks), cohort(2), plan, SeededEntropy(i)) for i in range(8)]
    assert None in found


def test_every_release_is_charged_and_one_round_releases_nothing():
    lines = "discriminator_steps = 2\nperceptual_noise_multiplier = 2.0\nperceptual_weight = 1.0"
    text = tiny_plan_text(discriminator_steps=lines, steps="steps = 8", rounds="rounds = 4", epsilon="epsilon = 20.0")
    plan = resolve(parse_plan(text))
    (event,) = [event for event in plan_events(plan) if event.name == "perceptual features"]
    assert (event.noise_multiplier, event.count) == (2.0, 3)
    without = dataclasses.replace(plan, training=dataclasses.replace(plan.training, perceptual_noise_multiplier=0.0))
    assert claim(plan).epsilon_pld > claim(without).epsilon_pld


def test_a_round_releases_exactly_once_and_the_first_not_at_all(monkeypatch):
    plan = network_plan("dcgan", privacy={"noise_multiplier": 1.0}, training=ON)
    counts = []
    for first_step in (0, 2):
        calls = []
        with monkeypatch.context() as patch:
            patch.setattr(loop, "release_features", lambda *a, calls=calls: calls.append(a))
            state = LocalState(plan)
            train_round(
                state.generator, state.discriminator, state.optimizers, cohort(), plan,
                first_step=first_step, steps=2, released_mean=None, entropy=SeededEntropy(0),
            )  # fmt: skip
        counts.append(len(calls))
    assert counts == [0, plan.perceptual_releases]


def test_the_distance_is_the_warm_starts_and_falls_as_fakes_near_the_target():
    plan = network_plan("dcgan", training=ON)
    data = cohort()
    target = release_features(build_discriminator(plan.networks), data, plan, SeededEntropy(0))
    real = perceptual_loss(data.images, data.labels, target)
    other = perceptual_loss(-data.images, data.labels, target)
    swapped = perceptual_loss(data.images, 1 - data.labels, target)
    assert real < 0.2 * other
    assert real < swapped
    vectors = embed_images(data.images, plan.embedding)[:, :-1]
    means = torch.stack([vectors[data.labels == i].mean(0) for i in (0, 1)])
    assert abs(float(class_distance(vectors, data.labels, means))) < 0.05


def test_matching_features_draws_the_generator_to_the_target():
    training_options = ON | {"discriminator_steps": 1, "learning_rate_generator": 5e-3, "ema": 0.0}
    training_options |= {"learning_rate_discriminator": 1e-6}
    found = {}
    for weight in (1e-9, 1e4):
        options = training_options | {"perceptual_weight": weight}
        plan = network_plan("dcgan", privacy={"noise_multiplier": 1.0, "steps": 40}, training=options)
        state, data = LocalState(plan), cohort()
        target = release_features(state.discriminator, data, plan, SeededEntropy(5))
        train_round(
            state.generator, state.discriminator, state.optimizers, data, plan,
            first_step=20, steps=20, released_mean=None, entropy=SeededEntropy(0),
        )  # fmt: skip
        labels = torch.arange(64) % 2
        z = torch.randn(64, plan.model.latent, generator=torch.Generator().manual_seed(0))
        found[weight] = perceptual_loss(state.generator(z, labels), labels, target).item()
    assert found[1e4] < 0.7 * found[1e-9]


@pytest.mark.parametrize("sigma", [0.1, float("nan"), -1.0])
def test_a_hospital_refuses_a_release_with_too_little_noise(sigma):
    plan = network_plan(
        "dcgan", privacy={"noise_multiplier": 1.0}, training=ON | {"perceptual_noise_multiplier": sigma}
    )
    with pytest.raises(PolicyError, match="P16"):
        check_plan(plan, PolicySpec(max_epsilon=100.0, delta=1e-3))
