"""A generator that diverges is noticed from its fakes alone, rolled back with a clear message, and sent sound."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from ghostnet.models import build_discriminator, build_generator
from ghostnet.training import loop
from ghostnet.training.loop import train_round
from ghostnet.training.rollback import KEEP_EVERY, MAX_ROLLBACKS, Watch, spread
from ghostnet.training.state import LocalState
from tests.entropy import SeededEntropy
from tests.networks import network_plan, plan_cohort

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = network_plan("dcgan", privacy={"steps": 12}, training={"discriminator_steps": 1, "ema": 0.5})
LABELS = torch.arange(8) % 2


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def watch() -> Watch:
    return Watch(build_generator(PLAN.networks), build_discriminator(PLAN.networks), images(), LABELS, 0)


def test_spread_is_the_mean_squared_distance_of_two_fakes_of_a_class():
    two = torch.tensor([[0.0, 0.0], [1.0, 3.0]]).reshape(2, 1, 1, 2)
    assert spread(two, torch.tensor([0, 0])) == pytest.approx((1 + 9) / 2)
    assert spread(two, torch.tensor([0, 1])) == 0.0


def test_ordinary_fakes_are_left_alone():
    assert watch().diverged(images(1), LABELS, torch.tensor(1.0)) == ""


def test_values_that_are_not_finite_are_noticed():
    broken = images(1)
    broken[3, 0, 0, 0] = float("nan")
    assert "not finite" in watch().diverged(broken, LABELS, torch.tensor(1.0))
    assert "not finite" in watch().diverged(images(1), LABELS, torch.tensor(float("inf")))


def test_one_image_a_class_is_noticed_although_the_classes_differ():
    collapsed = images(1)[:2].repeat(4, 1, 1, 1) + 1e-3 * images(2)
    assert spread(collapsed, torch.zeros(8)) > 0.1
    assert "one image" in watch().diverged(collapsed, LABELS, torch.tensor(1.0))


def train(monkeypatch, spoil, *, steps: int) -> LocalState:
    """Trains while `spoil(state, average, number)` is called after each move of the average."""
    state, done = LocalState(PLAN), []
    moved = loop._move_average

    def watched(average, current, decay):
        moved(average, current, decay)
        done.append(1)
        spoil(state, average, len(done))

    monkeypatch.setattr(loop, "_move_average", watched)
    train_round(
        state.generator, state.discriminator, state.optimizers, plan_cohort(PLAN), PLAN,
        first_step=0, steps=steps, released_mean=None, entropy=SeededEntropy(0),
    )  # fmt: skip
    return state


def test_a_generator_that_turns_to_nan_goes_back_to_the_last_good_average_and_goes_on(monkeypatch, caplog):
    def spoil(state, average, number):
        if number == KEEP_EVERY + 1:
            next(state.generator.parameters()).data.fill_(float("nan"))

    with caplog.at_level(logging.WARNING, "ghostnet.training.rollback"):
        state = train(monkeypatch, spoil, steps=KEEP_EVERY + 4)
    assert all(bool(t.isfinite().all()) for t in state.generator.state_dict().values())
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"step {KEEP_EVERY + 1}" in message
    assert f"average of step {KEEP_EVERY - 1}" in message
    assert "lower" in message
    fresh = LocalState(PLAN).generator
    assert not torch.equal(next(state.generator.parameters()), next(fresh.parameters()))


def test_an_average_that_breaks_in_the_last_step_is_not_sent(monkeypatch, caplog):
    def spoil(state, average, number):
        if number == 3:
            next(average.parameters()).data.fill_(float("nan"))

    with caplog.at_level(logging.WARNING, "ghostnet.training.rollback"):
        state = train(monkeypatch, spoil, steps=3)
    assert "is sent instead" in caplog.text
    received = LocalState(PLAN).generator.state_dict()
    assert all(torch.equal(received[name], tensor) for name, tensor in state.generator.state_dict().items())


def test_after_too_many_rollbacks_the_generator_rests_until_the_round_ends(monkeypatch, caplog):
    def spoil(state, average, number):
        next(state.generator.parameters()).data.fill_(float("nan"))

    with caplog.at_level(logging.WARNING, "ghostnet.training.rollback"):
        state = train(monkeypatch, spoil, steps=4 * MAX_ROLLBACKS)
    messages = [record.getMessage() for record in caplog.records if "rolled back" in record.getMessage()]
    assert len(messages) == MAX_ROLLBACKS + 1
    assert "rests" in messages[-1]
    assert all("rests" not in message for message in messages[:-1])
    assert all(bool(t.isfinite().all()) for t in state.generator.state_dict().values())


def test_a_discriminator_that_is_not_finite_goes_back_too():
    generator, discriminator = build_generator(PLAN.networks), build_discriminator(PLAN.networks)
    seen = Watch(generator, discriminator, images(), LABELS, 0)
    good = copy.deepcopy(discriminator.state_dict())
    next(discriminator.parameters()).data.fill_(float("inf"))
    optimizer = torch.optim.Adam(generator.parameters())
    seen.roll_back(generator, copy.deepcopy(generator), discriminator, optimizer, step=1, reason="a test")
    assert all(torch.equal(good[name], tensor) for name, tensor in discriminator.state_dict().items())
