"""What a coordinator averages, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord
from flwr.supercore.task_identity import TaskIdentity

from ghostnet.errors import FederationError
from ghostnet.evidence import keys
from ghostnet.exchange import protocol
from ghostnet.exchange.flower import from_record, to_record, to_records
from ghostnet.exchange.messages import Plain, RoundAnswer, encode
from server.conversation import Conversation, Hospital, Known
from server.known_heads import KnownHeads
from server.strategy import CheckedStrategy
from tests.asked import values_of
from tests.plans import tiny_plan

SENT = {"w": np.zeros((2, 3), dtype=np.float32)}


@pytest.fixture
def strategy(tmp_path) -> CheckedStrategy:  # noqa: ANN001
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    plan = tiny_plan(min_hospitals="min_hospitals = 2")
    key = keys.load_or_create_key(tmp_path / "server.key")
    conversation = Conversation(None, plan, "0" * 32, key, {}, [])  # type: ignore[arg-type]  # no message is sent here
    for node_id, name in ((2, "north"), (3, "south"), (4, "harbour")):
        conversation.hospitals[node_id] = Hospital(name=name, node_id=node_id, public_key="", ledger_head="")
    made = CheckedStrategy(conversation, {}, rounds_done=0)
    made.requests = list(made.configure_train(1, to_record(SENT), ConfigRecord(), None))  # type: ignore[attr-defined,arg-type]
    return made


def _reply(request: Message, arrays: dict[str, np.ndarray]) -> Message:
    return Message(to_records(encode(RoundAnswer(ledger_head="ab" * 32, arrays=arrays))), reply_to=request)


def _full(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), value, dtype=np.float32)}


def test_hospitals_weigh_the_same_and_an_answer_that_claims_a_weight_is_left_out(strategy: CheckedStrategy) -> None:
    replies = [_reply(r, _full(v)) for r, v in zip(strategy.requests, (1, 2, 6), strict=True)]
    averaged, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(from_record(averaged)["w"], 3.0, rtol=1e-6)
    replies[1].content["metrics"] = MetricRecord({"weight": 1e6})
    averaged, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(from_record(averaged)["w"], 3.5, rtol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        {"w": np.full((2, 3), np.nan, dtype=np.float32)},
        {"w": np.full((2, 3), np.inf, dtype=np.float32)},
        {"w": np.zeros((3, 2), dtype=np.float32)},
        {"w": np.zeros((2, 3), dtype=np.float64)},
        {"v": np.zeros((2, 3), dtype=np.float32)},
        {},
    ],
    ids=["nan", "inf", "shape", "dtype", "name", "empty"],
)
def test_an_answer_that_does_not_fit_is_left_out_of_the_average(strategy: CheckedStrategy, bad: dict) -> None:
    replies = [_reply(r, a) for r, a in zip(strategy.requests, (_full(1), bad, _full(3)), strict=True)]
    averaged, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(from_record(averaged)["w"], 2.0)


def test_too_few_good_answers_end_the_run_with_their_reasons(strategy: CheckedStrategy) -> None:
    bad = {"w": np.full((2, 3), np.nan, dtype=np.float32)}
    replies = [_reply(r, a) for r, a in zip(strategy.requests, (_full(1), bad, bad), strict=True)]
    with pytest.raises(FederationError, match=r"1 of at least 2 hospitals answered round 1: south.*harbour"):
        strategy.aggregate_train(1, replies)


@pytest.mark.parametrize("head", ["", "ab", "AB" * 32, "ab" * 33, "g" * 64, "ab" * 32 + "\n", 7])
def test_an_answer_without_a_ledger_head_is_left_out_and_not_remembered(
    strategy: CheckedStrategy, head: object
) -> None:
    key = "5e" * 32
    strategy._conversation.hospitals[3].public_key = key
    replies = [_reply(r, _full(v)) for r, v in zip(strategy.requests, (1, 2, 6), strict=True)]
    values_of(replies[1])["ledger-head"] = head
    averaged, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(from_record(averaged)["w"], 3.5)
    assert KnownHeads().head(key) == ""
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        KnownHeads().note({key: head})  # type: ignore[dict-item]


def test_every_request_is_countersigned_and_goes_to_joined_hospitals_only(strategy: CheckedStrategy) -> None:
    assert [r.metadata.dst_node_id for r in strategy.requests] == [2, 3, 4]
    config = values_of(strategy.requests[0])
    document = keys.head_document(site="north", head="")
    assert keys.verify(config["server-key"], document, config["head-signature"])


def test_only_answers_that_fit_count_and_they_come_in_the_order_of_names(strategy: CheckedStrategy) -> None:
    replies = [_reply(r, a) for r, a in zip(strategy.requests, (_full(1), {}, _full(3)), strict=True)]
    refused: list[str] = []
    answers = strategy._conversation.sort_replies(replies, RoundAnswer, 0.0, refused)
    fitting = strategy._conversation.fitting(answers, SENT, refused)
    assert [(name, float(arrays["w"][0, 0])) for name, arrays in fitting.items()] == [("harbour", 3.0), ("north", 1.0)]
    assert len(refused) == 1
    assert refused[0].startswith("south: ")


def test_a_round_that_died_at_every_hospital_is_skipped_and_does_not_end_the_run(strategy: CheckedStrategy) -> None:
    spent = [Message(Error(code=protocol.SPENT, reason="spent"), reply_to=r) for r in strategy.requests]
    averaged, _ = strategy.aggregate_train(1, spent)
    np.testing.assert_array_equal(from_record(averaged)["w"], SENT["w"])
    failed = [Message(Error(code=protocol.FAILED, reason="failed"), reply_to=r) for r in strategy.requests]
    with pytest.raises(FederationError, match="0 of at least 2"):
        strategy.aggregate_train(1, failed)


def test_a_node_with_a_known_name_and_another_key_is_left_out(tmp_path: Path) -> None:
    key = keys.load_or_create_key(tmp_path / "server.key")
    known = {"north": Known(public_key="aa" * 32, ledger_head="bb" * 32)}

    class OneNode:
        def get_node_ids(self) -> list[int]:
            return [2]

        def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
            joined = {"name": "north", "public-key": "cc" * 32, "ledger-head": "dd" * 32}
            return [Message(to_records(Plain(values=joined, arrays={})), reply_to=m) for m in messages]

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    conversation = Conversation(OneNode(), tiny_plan(), "0" * 32, key, known, [])  # type: ignore[arg-type]
    with pytest.raises(FederationError, match="0 of at least 1 hospitals joined"):
        conversation.join(1)


def _made(tmp_path: Path, federation: str, rounds_done: int = 0, **rest: object) -> CheckedStrategy:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    plan = tiny_plan(min_hospitals=f"min_hospitals = 3\n{federation}")
    conversation = Conversation(None, plan, "0" * 32, keys.load_or_create_key(tmp_path / "server.key"), {}, [])  # type: ignore[arg-type]
    for node_id, name in ((2, "north"), (3, "south"), (4, "harbour")):
        conversation.hospitals[node_id] = Hospital(name=name, node_id=node_id, public_key="", ledger_head="")
    return CheckedStrategy(conversation, {}, rounds_done, **rest)  # type: ignore[arg-type]


def _round(strategy: CheckedStrategy, number: int, sent: dict, answers: list[dict]) -> dict[str, np.ndarray]:
    """One round's combined weights, as the next round sends them."""
    requests = strategy.configure_train(number, to_record(sent), ConfigRecord(), None)  # type: ignore[arg-type]
    combined, _ = strategy.aggregate_train(number, [_reply(r, a) for r, a in zip(requests, answers, strict=True)])
    return from_record(combined)  # type: ignore[arg-type]


def _pair(weight: float, variance: float) -> dict[str, np.ndarray]:
    return {
        "w": np.full((2, 3), weight, dtype=np.float32),
        "bn.running_var": np.full(3, variance, dtype=np.float32),
    }


MOMENTUM = 'server_optimizer = "fedavgm"\nserver_learning_rate = 0.5\nserver_momentum = 0.9'
ADAM = 'server_optimizer = "fedadam"\nserver_learning_rate = 0.01\nserver_momentum = 0.9'
EVERY = [MOMENTUM, ADAM, 'server_optimizer = "trimmed-mean"\ntrim = 0.34', 'server_optimizer = "median"', ""]


def test_momentum_goes_on_from_round_to_round(tmp_path: Path) -> None:
    strategy = _made(tmp_path, MOMENTUM)
    first = _round(strategy, 1, _pair(1, 1), [_pair(2, 1)] * 3)  # velocity -1
    np.testing.assert_allclose(first["w"], 1 + 0.5 * 1)
    second = _round(strategy, 2, first, [_pair(2.5, 1)] * 3)  # velocity 0.9 * -1 - 1
    np.testing.assert_allclose(second["w"], 1.5 + 0.5 * 1.9, rtol=1e-6)


def test_adam_steps_by_about_its_rate_in_the_direction_of_the_mean(tmp_path: Path) -> None:
    moved = _round(_made(tmp_path, ADAM), 1, _pair(1, 1), [_pair(3, 1), _pair(2, 1), _pair(4, 1)])
    assert moved["w"].dtype == np.float32
    assert 0.005 < float(moved["w"].mean()) - 1 < 0.02


@pytest.mark.parametrize("federation", EVERY[2:4], ids=["trimmed", "median"])
def test_one_hospital_cannot_drag_a_robust_mean_away(tmp_path: Path, federation: str) -> None:
    combined = _round(_made(tmp_path, federation), 1, _pair(0, 1), [_pair(1, 1), _pair(1e8, 1), _pair(1.5, 1)])
    assert 1 <= float(combined["w"].max()) <= 1.5
    plain = _round(_made(tmp_path, ""), 1, _pair(0, 1), [_pair(1, 1), _pair(1e8, 1), _pair(1.5, 1)])
    assert float(plain["w"].max()) > 1e7


@pytest.mark.parametrize("federation", EVERY[:2], ids=["fedavgm", "fedadam"])
def test_running_statistics_are_averaged_and_never_pushed_below_zero(tmp_path: Path, federation: str) -> None:
    strategy = _made(tmp_path, federation, averaged=["bn.running_var", "of.another.network"])
    sent = _pair(1, 1)
    for number in range(1, 6):
        value = 1.0 / number**3
        sent = _round(strategy, number, sent, [_pair(1, value), _pair(1, value * 2), _pair(1, value * 3)])
        np.testing.assert_allclose(sent["bn.running_var"], value * 2, rtol=1e-6)


def test_planted_momentum_on_a_variance_would_push_it_below_zero(tmp_path: Path) -> None:
    careless = _made(tmp_path, MOMENTUM.replace("0.5", "2.0"))  # told of no statistics
    assert _round(careless, 1, _pair(1, 1), [_pair(1, 0.01)] * 3)["bn.running_var"].min() < 0


@pytest.mark.parametrize("federation", EVERY, ids=["fedavgm", "fedadam", "trimmed", "median", "fedavg"])
def test_a_resumed_optimiser_goes_on_as_if_it_had_never_stopped(tmp_path: Path, federation: str) -> None:
    answers = [[_pair(a + n, 1), _pair(2 * a, 1), _pair(3 * a - n, 1)] for n, a in enumerate((1.0, 0.5, 2.0, 1.5))]
    whole, sent = _made(tmp_path, federation), _pair(1, 1)
    for number, given in enumerate(answers, 1):
        sent = _round(whole, number, sent, given)
    first, halfway = _made(tmp_path, federation), _pair(1, 1)
    for number in (1, 2):
        halfway = _round(first, number, halfway, answers[number - 1])
    state = {name: array.copy() for name, array in first.moments.items()}
    second = _made(tmp_path, federation, rounds_done=2, moments=state)
    for number in (1, 2):  # Flower counts from one again
        halfway = _round(second, number, halfway, answers[number + 1])
    for name in sent:
        np.testing.assert_array_equal(halfway[name], sent[name])


def test_the_order_in_which_a_hospital_writes_its_arrays_changes_nothing(tmp_path: Path) -> None:
    answers = [_pair(2, 1), _pair(3, 2), _pair(4, 3)]
    shuffled = [dict(reversed(answer.items())) for answer in answers]
    for federation in EVERY:
        one = _round(_made(tmp_path, federation), 1, _pair(1, 1), answers)
        two = _round(_made(tmp_path, federation), 1, _pair(1, 1), shuffled)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_weights_are_the_plans(tmp_path: Path) -> None:
    strategy = _made(tmp_path, "weights = { north = 2.0, south = 1.0, harbour = 1.0 }")
    requests = strategy.configure_train(1, to_record(SENT), ConfigRecord(), None)  # type: ignore[arg-type]
    replies = [_reply(r, _full(v)) for r, v in zip(requests, (4.0, 0.0, 8.0), strict=True)]
    combined, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(from_record(combined)["w"], (2 * 4 + 0 + 8) / 4)  # type: ignore[arg-type]


def test_an_optimiser_that_diverges_ends_the_run_and_is_named(tmp_path: Path) -> None:
    strategy = _made(tmp_path, MOMENTUM.replace("0.5", "10.0"))
    huge = np.finfo(np.float32).max
    with pytest.raises(FederationError, match="fedavgm diverged"), np.errstate(over="ignore"):
        _round(strategy, 1, _pair(-huge / 4, 1), [_pair(1, 1)] * 3)


def test_a_hospital_without_a_weight_in_the_plan_is_left_out(tmp_path: Path) -> None:
    class OneNode:
        def get_node_ids(self) -> list[int]:
            return [2]

        def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
            joined = {"name": "north", "public-key": "cc" * 32, "ledger-head": "dd" * 32}
            return [Message(to_records(Plain(values=joined, arrays={})), reply_to=m) for m in messages]

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    plan = tiny_plan(min_hospitals="min_hospitals = 1\nweights = { south = 1.0 }")
    key = keys.load_or_create_key(tmp_path / "server.key")
    conversation = Conversation(OneNode(), plan, "0" * 32, key, {}, [])  # type: ignore[arg-type]
    with pytest.raises(FederationError, match="names no north"):
        conversation.join(1)
