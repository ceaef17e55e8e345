"""What a coordinator averages, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from ghostnet import protocol
from ghostnet.errors import FederationError
from ghostnet.privacy import keys
from server.strategy import Conversation, EqualAverage, Hospital, Known, from_record, sum_replies, to_record
from tests.plans import tiny_plan

SENT = {"w": np.zeros((2, 3), dtype=np.float32)}


@pytest.fixture
def strategy(tmp_path) -> EqualAverage:  # noqa: ANN001
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    plan = tiny_plan(min_hospitals="min_hospitals = 2")
    key = keys.load_or_create_key(tmp_path / "server.key")
    conversation = Conversation(None, plan, "0" * 32, key, {}, [])  # type: ignore[arg-type]  # no message is sent here
    for node_id, name in ((2, "north"), (3, "south"), (4, "harbour")):
        conversation.hospitals[node_id] = Hospital(name=name, node_id=node_id, public_key="", ledger_head="")
    made = EqualAverage(conversation, {}, rounds_done=0)
    made.requests = list(made.configure_train(1, to_record(SENT), ConfigRecord(), None))  # type: ignore[attr-defined,arg-type]
    return made


def _reply(request: Message, arrays: dict[str, np.ndarray], weight: float = 1.0) -> Message:
    records = {protocol.ARRAYS: to_record(arrays), protocol.METRICS: MetricRecord({protocol.WEIGHT: weight})}
    return Message(RecordDict({**records, protocol.CONFIG: ConfigRecord({"ledger-head": "ab"})}), reply_to=request)


def _full(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full((2, 3), value, dtype=np.float32)}


def test_hospitals_weigh_the_same_whatever_weight_they_claim(strategy: EqualAverage) -> None:
    weights = (1.0, 1e6, 3.0)
    replies = [_reply(r, _full(v), w) for r, v, w in zip(strategy.requests, (1, 2, 6), weights, strict=True)]
    averaged, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(from_record(averaged)["w"], 3.0, rtol=1e-6)


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
def test_an_answer_that_does_not_fit_is_left_out_of_the_average(strategy: EqualAverage, bad: dict) -> None:
    replies = [_reply(r, a) for r, a in zip(strategy.requests, (_full(1), bad, _full(3)), strict=True)]
    averaged, _ = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(from_record(averaged)["w"], 2.0)


def test_too_few_good_answers_end_the_run_with_their_reasons(strategy: EqualAverage) -> None:
    bad = {"w": np.full((2, 3), np.nan, dtype=np.float32)}
    replies = [_reply(r, a) for r, a in zip(strategy.requests, (_full(1), bad, bad), strict=True)]
    with pytest.raises(FederationError, match=r"1 of at least 2 hospitals answered round 1: south.*harbour"):
        strategy.aggregate_train(1, replies)


def test_every_request_is_countersigned_and_goes_to_joined_hospitals_only(strategy: EqualAverage) -> None:
    assert [r.metadata.dst_node_id for r in strategy.requests] == [2, 3, 4]
    config = strategy.requests[0].content.config_records[protocol.CONFIG]
    document = keys.head_document(site="north", head="")
    assert keys.verify(config["server-key"], document, config["head-signature"])


def test_a_sum_counts_only_the_replies_that_fit(strategy: EqualAverage) -> None:
    replies = [_reply(r, a) for r, a in zip(strategy.requests, (_full(1), {}, _full(3)), strict=True)]
    total, count = sum_replies(replies, "w", SENT)
    assert count == 2
    np.testing.assert_allclose(total, 4.0)


def test_a_round_that_died_at_every_hospital_is_skipped_and_does_not_end_the_run(strategy: EqualAverage) -> None:
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
            return [Message(RecordDict({protocol.CONFIG: ConfigRecord(joined)}), reply_to=m) for m in messages]

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    conversation = Conversation(OneNode(), tiny_plan(), "0" * 32, key, known, [])  # type: ignore[arg-type]
    with pytest.raises(FederationError, match="0 of at least 1 hospitals joined"):
        conversation.join(1)
