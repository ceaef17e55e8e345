"""The combination that anyone can run again: Flower's formulas to the bit, whatever the order of the answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg
from flwr.supercore.task_identity import TaskIdentity

from ghostnet.exchange import combining
from ghostnet.exchange.arrays import Arrays
from ghostnet.exchange.combining import FEDADAM_BETA_2, FEDADAM_TAU, combine
from ghostnet.plan.federation import FederationSpec, HospitalWeight

SITES = ("a-north", "b-south", "c-harbour", "d-west", "e-east")
SHAPES = {"w": (7, 5), "b": (5,), "one": (1,)}
WEIGHT = "weight"
WEIGHTS = tuple(HospitalWeight(hospital=site, weight=0.3 + 0.7 * i) for i, site in enumerate(SITES))
PLAIN = FederationSpec(patients=10)


def drawn(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def by_flower(strategy: FedAvg, number: int, sent: Arrays, answers: dict[str, Arrays], spec: FederationSpec) -> Arrays:
    """One round of Flower's own strategy over the same answers, in the order of the hospitals' names."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = record(sent)
    elif isinstance(strategy, FedAdam):
        strategy.current_arrays = dict(sent)
    replies = []
    for site in sorted(answers):
        request = Message(RecordDict(), dst_node_id=2, message_type="train")
        content = {"arrays": record(answers[site]), "metrics": MetricRecord({WEIGHT: spec.weight_of(site)})}
        replies.append(Message(RecordDict(content), reply_to=request))
    combined, _ = strategy.aggregate_train(number, replies)
    assert combined is not None
    return {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in combined.items()}


def momentum(spec: FederationSpec) -> FedAvg:
    return FedAvgM(
        weighted_by_key=WEIGHT, server_learning_rate=spec.server_learning_rate, server_momentum=spec.server_momentum
    )


def adam(spec: FederationSpec) -> FedAvg:
    return FedAdam(
        weighted_by_key=WEIGHT,
        eta=spec.server_learning_rate,
        beta_1=spec.server_momentum,
        beta_2=FEDADAM_BETA_2,
        tau=FEDADAM_TAU,
    )


CASES: list[tuple[dict[str, Any], Any]] = [
    ({}, lambda spec: FedAvg(weighted_by_key=WEIGHT)),
    ({"weights": WEIGHTS}, lambda spec: FedAvg(weighted_by_key=WEIGHT)),
    ({"server_optimizer": "fedavgm", "server_learning_rate": 0.5, "server_momentum": 0.9}, momentum),
    (
        {"server_optimizer": "fedavgm", "server_learning_rate": 1.0, "server_momentum": 0.0, "weights": WEIGHTS},
        momentum,
    ),
    ({"server_optimizer": "fedavgm", "server_learning_rate": 0.5, "server_momentum": 0.0}, momentum),
    ({"server_optimizer": "fedadam", "server_learning_rate": 0.01, "server_momentum": 0.9}, adam),
    ({"server_optimizer": "fedadam", "server_learning_rate": 0.1, "server_momentum": 0.0, "weights": WEIGHTS}, adam),
    ({"server_optimizer": "median"}, lambda spec: FedMedian(weighted_by_key=WEIGHT)),
]


def ours(spec: FederationSpec, rounds: int, sites: tuple[str, ...]) -> list[Arrays]:
    """Weights after each of some rounds."""
    sent, moments, after = drawn(0), {}, []
    for number in range(1, rounds + 1):
        answers = {site: drawn(100 * number + SITES.index(site)) for site in sites}
        made = combine(answers, spec, names=SHAPES, server_round=number, sent=sent, moments=moments)
        sent, moments = made.weights, made.moments
        after.append(sent)
    return after


@pytest.mark.parametrize("sites", [SITES[:1], SITES[:4], SITES], ids=["one", "four", "five"])
@pytest.mark.parametrize(("table", "flower"), CASES)
def test_three_rounds_are_those_of_flowers_strategy_to_the_bit(
    table: dict[str, Any], flower: Any, sites: tuple[str, ...]
) -> None:
    spec = replace(PLAIN, **table)
    strategy, sent = flower(spec), drawn(0)
    for number, combined in enumerate(ours(spec, 3, sites), 1):
        answers = {site: drawn(100 * number + SITES.index(site)) for site in sites}
        sent = by_flower(strategy, number, sent, answers, spec)
        for name in SHAPES:
            np.testing.assert_array_equal(combined[name], sent[name], err_msg=f"round {number}, {name}")


@pytest.mark.parametrize("trim", [0.2, 0.34, 0.45])
def test_a_trimmed_mean_is_flowers_but_for_the_order_of_its_sum(trim: float) -> None:
    spec = replace(PLAIN, server_optimizer="trimmed-mean", trim=trim)
    answers = {site: drawn(i) for i, site in enumerate(SITES)}
    theirs = by_flower(FedTrimmedAvg(weighted_by_key=WEIGHT, beta=trim), 1, drawn(9), answers, spec)
    made = combine(answers, spec, names=SHAPES, server_round=1, sent={}, moments={})
    for name in SHAPES:
        np.testing.assert_allclose(made.weights[name], theirs[name], rtol=1e-6, atol=1e-7)


EVERY = ("fedavg", "fedavgm", "fedadam", "trimmed-mean", "median")


def in_two_orders(optimizer: str) -> tuple[Arrays, Arrays]:
    spec = replace(PLAIN, server_optimizer=optimizer, server_learning_rate=0.1, trim=0.2)
    answers = {site: drawn(i) for i, site in enumerate(SITES)}
    arrived = dict(reversed(answers.items()))
    one, two = (
        combine(given, spec, names=SHAPES, server_round=2, sent=drawn(7), moments={}).weights
        for given in (answers, arrived)
    )
    return one, two


@pytest.mark.parametrize("optimizer", EVERY)
def test_the_order_in_which_answers_arrive_changes_no_bit(optimizer: str) -> None:
    one, two = in_two_orders(optimizer)
    for name in SHAPES:
        np.testing.assert_array_equal(one[name], two[name])


def test_planted_a_sum_in_the_order_of_arrival_changes_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combining, "sorted", list, raising=False)
    one, two = in_two_orders("fedavg")
    assert any(not np.array_equal(one[name], two[name]) for name in SHAPES)


def test_a_hospital_far_off_does_not_move_a_median_and_overflow_is_no_warning() -> None:
    spec = replace(PLAIN, server_optimizer="median")
    answers = {"a": {"w": np.float32([1])}, "b": {"w": np.float32([2])}, "c": {"w": np.float32([3e38])}}
    assert combine(answers, spec, names=["w"], server_round=1, sent={}, moments={}).weights["w"] == 2
    diverged = replace(PLAIN, server_optimizer="fedavgm", server_learning_rate=10.0)
    made = combine(answers, diverged, names=["w"], server_round=1, sent={"w": np.float32([-3e38])}, moments={})
    assert np.isinf(made.weights["w"]).all()
