"""What belongs to a step beside the mechanism: weight clipping, penalties at fakes, n_D, the first lessons."""

from __future__ import annotations

import pytest
import torch

from ghostnet.models import architecture as record_of
from ghostnet.models import build_discriminator
from ghostnet.models.wgan import clip_weights
from ghostnet.privacy.mechanism import PatientGradients
from ghostnet.privacy.penalised import InputPenalty, PenalisedGradients
from ghostnet.training import loop
from ghostnet.training.loop import patient_gradients, step_discriminator, train_round
from ghostnet.training.losses import fakes_penalty
from ghostnet.training.state import LocalState
from tests.entropy import SeededEntropy
from tests.networks import ARCHITECTURES, network_plan, plan_cohort

pytestmark = pytest.mark.usefixtures("one_thread")


def run(plan, *, steps: int, data=None, first_step: int = 0, state=None) -> LocalState:
    state = state or LocalState(plan)
    train_round(
        state.generator, state.discriminator, state.optimizers, data or plan_cohort(plan), plan,
        first_step=first_step, steps=steps, released_mean=None, entropy=SeededEntropy(0),
    )  # fmt: skip
    return state


def private(**tables):
    return {"privacy": {"noise_multiplier": 1.0, "steps": 40} | tables.pop("privacy", {}), **tables}


def fakes(plan, rows: int = 6):
    public = torch.Generator().manual_seed(0)
    shape = (rows, 1, plan.image.size, plan.image.size)
    return torch.randn(shape, generator=public), torch.arange(rows) % 2


def zero_sums(network):
    return {name: torch.zeros_like(p) for name, p in network.named_parameters()}


def test_every_weight_of_a_wgan_critic_is_within_its_bound_after_every_private_step():
    plan = network_plan("wgan", **private(training={"loss": "wasserstein", "weight_clip": 0.005}))
    state = run(plan, steps=3)
    weights = torch.cat([p.detach().flatten() for p in state.discriminator.parameters()])
    assert weights.abs().max() <= 0.005
    assert weights.abs().max() > 0.0049
    free = run(network_plan("dcgan", **private()), steps=3)
    assert max(p.abs().max().item() for p in free.discriminator.parameters()) > 0.005


def test_clipping_leaves_weights_within_the_bound_alone():
    layer = torch.nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[0.5, -3.0]])
    clip_weights(layer, 1.0)
    assert layer.weight.tolist() == [[0.5, -1.0]]


@pytest.mark.parametrize("architecture", ["wgan-gp", "stylegan", "dcgan"])
def test_a_step_of_the_penalty_at_fakes_lowers_it(architecture):
    plan = network_plan(architecture, training={"gradient_penalty_weight": 10.0})
    network, (images, labels) = build_discriminator(plan.networks), fakes(plan)

    def penalty() -> float:
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(network(images, labels).sum(), images)
        return float(record_of(architecture).penalty.of(gradient.flatten(1).square().sum(1)).mean())

    before = penalty()
    gradients = fakes_penalty(
        network, images, labels, penalty=record_of(architecture).penalty, weight=10.0, norm_bound=1.0
    )
    scale = 1e-3 / float(torch.cat([g.flatten() for g in gradients]).norm())
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.data -= scale * gradient
    assert penalty() < before


def test_the_penalty_at_fakes_cannot_drown_the_patients_part():
    plan = network_plan("stylegan")
    network = build_discriminator(plan.networks)
    gradients = fakes_penalty(network, *fakes(plan), penalty=InputPenalty.R1, weight=1e6, norm_bound=0.25)
    assert float(torch.cat([g.flatten() for g in gradients]).norm()) == pytest.approx(0.25, rel=1e-4)


def test_the_penalty_at_fakes_is_added_after_the_noise_and_only_where_the_plan_has_it():
    moved = {}
    for place in ("none", "fakes", "patient"):
        plan = network_plan("stylegan", training={"gradient_penalty": place})
        network, (images, labels) = build_discriminator(plan.networks), fakes(plan)
        before = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        step_discriminator(network, optimizer, zero_sums(network), images, labels, plan)
        moved[place] = float((torch.cat([p.detach().flatten() for p in network.parameters()]) - before).norm())
    assert moved["none"] == moved["patient"] == 0
    assert moved["fakes"] > 0


def test_the_plan_decides_what_computes_a_patients_gradient():
    assert record_of("wgan-gp").penalty is InputPenalty.LIPSCHITZ
    assert record_of("stylegan").penalty is InputPenalty.R1
    for place, engine in (("auto", PatientGradients), ("fakes", PatientGradients), ("patient", PenalisedGradients)):
        plan = network_plan("stylegan", training={"gradient_penalty": place})
        assert isinstance(patient_gradients(build_discriminator(plan.networks), plan), engine)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_private_steps_that_move_both_networks(architecture):
    plan = network_plan(architecture, **private())
    state, fresh = run(plan, steps=2), LocalState(plan)
    for trained, untrained in ((state.discriminator, fresh.discriminator), (state.generator, fresh.generator)):
        assert all(bool(t.isfinite().all()) for t in trained.state_dict().values())
        moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), untrained.parameters(), strict=True)]
        assert all(moved), f"{moved.count(False)} weights never moved"


@pytest.mark.parametrize("architecture", ["wgan-gp", "stylegan"])
def test_the_penalty_inside_each_patients_clip_trains(architecture):
    state = run(network_plan(architecture, **private(training={"gradient_penalty": "patient"})), steps=1)
    assert all(bool(t.isfinite().all()) for t in state.discriminator.state_dict().values())


def adaptive(accuracy: float):
    options = {"discriminator_steps": 2, "discriminator_steps_most": 5, "fakes_accuracy": accuracy}
    return network_plan("dcgan", **private(training=options))


@pytest.mark.parametrize(("accuracy", "every"), [(0.0, 2), (1.0, 5)])
def test_an_adaptive_n_d_stays_between_its_least_and_its_most(monkeypatch, accuracy, every):
    plan, seen = adaptive(accuracy), []
    state = LocalState(plan)
    with torch.no_grad():  # a discriminator that calls everything real, and is never right about fakes
        for parameter in state.discriminator.parameters():
            parameter.zero_()
    monkeypatch.setattr(loop, "step_discriminator", lambda *_: None)
    moved = loop._move_average
    monkeypatch.setattr(loop, "_move_average", lambda *a: (seen.append(1), moved(*a)))
    run(plan, steps=20, state=state)
    assert len(seen) == 20 // every


def test_an_adaptive_n_d_asks_about_fakes_alone(monkeypatch):
    """With other patients and the same noised sums, the generator steps at the same time."""
    found = []
    plan = adaptive(0.6)
    for data in (plan_cohort(plan), plan_cohort(plan, patients=3, seed=5)):
        steps, seen = iter(range(100)), []
        due = loop._generator_is_due

        def watched(network, images, labels, plan, *, step, waited, due=due, seen=seen):
            result = due(network, images, labels, plan, step=step, waited=waited)
            seen.append((float(images.sum()), len(images), result))
            return result

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_generator_is_due", watched)
            state = LocalState(plan)
            train_round(
                state.generator, state.discriminator, state.optimizers, data, plan,
                first_step=0, steps=12, released_mean=None, entropy=SeededEntropy(0),
                add_noise=lambda _, summed, steps=steps: _public_sums(summed, next(steps)),
            )  # fmt: skip
        found.append(seen)
    assert found[0] == found[1]
    assert {result for *_, result in found[0]} == {True, False}


def _public_sums(summed, step: int):
    public = torch.Generator().manual_seed(step)
    return {name: torch.randn(value.shape, generator=public) for name, value in summed.items()}
