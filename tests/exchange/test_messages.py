"""What crosses the wall has one form with limits, which both sides check before anything else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from ghostnet.errors import FederationError
from ghostnet.evidence.answers import answered_words
from ghostnet.exchange import messages, protocol
from ghostnet.exchange.flower import from_records, to_records
from ghostnet.exchange.messages import (
    REQUESTS,
    Answer,
    Body,
    FinishAnswer,
    FinishRequest,
    Header,
    JoinAnswer,
    JoinRequest,
    Plain,
    RoundAnswer,
    RoundRequest,
    StepAnswer,
    StepRequest,
    WarmStartAnswer,
    WarmStartRequest,
    decode_answer,
    decode_request,
    encode,
    read_refusal,
)
from ghostnet.exchange.secure_sum import Member, Roster
from ghostnet.plan.federation import MAX_POOLED_HOSPITALS, MAX_POOLED_STEPS, MAX_ROUNDS
from tests.asked import RUN
from tests.plans import tiny_plan

HEAD, FLOATS, INTS = "ab" * 32, {"w": np.ones((2, 3), np.float32)}, {"masked_sum": np.arange(4)}
HEADER = Header(
    plan=tiny_plan(), run_id=RUN, deadline=1_800_000_000, server_key=HEAD, known_head=HEAD, head_signature=HEAD * 2
)
BODIES: list[Body] = [
    JoinRequest(known_heads={RUN: HEAD}),
    WarmStartRequest(),
    RoundRequest(server_round=2, weights=FLOATS, released_mean={"released_mean": np.ones(5, np.float32)}),
    StepRequest(step=3, roster='{"members": []}', discriminator=FLOATS),
    FinishRequest(files={"README.md": HEAD}, public_images_sha256=HEAD, generator=FLOATS, public=FLOATS),
]
ANSWERS: list[Answer] = [
    JoinAnswer(
        name="north",
        public_key=HEAD,
        ledger_head=HEAD,
        join_signature=HEAD * 2,
        mask_key=HEAD,
        mask_key_signature=HEAD * 2,
    ),
    WarmStartAnswer(ledger_head=HEAD, arrays=FLOATS),
    RoundAnswer(ledger_head=HEAD, arrays=FLOATS),
    StepAnswer(ledger_head=HEAD, arrays=INTS),
    FinishAnswer(ledger_head=HEAD, arrays=FLOATS, statement={"site": "north", "events": [1.5, None]}),
]

Decode = Callable[[Plain], object]


def of_request(body: Body) -> tuple[Plain, Decode]:
    own = encode(body)
    plain = Plain(values={**encode(HEADER).values, **own.values}, arrays=own.arrays)
    return plain, lambda plain: decode_request(body.kind, plain)


def of_answer(answer: Answer) -> tuple[Plain, Decode]:
    return encode(answer), lambda plain: decode_answer(type(answer), plain)


EVERY = [pytest.param(*of_request(body), id=f"asks {body.kind}") for body in BODIES]
EVERY += [pytest.param(*of_answer(answer), id=f"answers {answer.kind}") for answer in ANSWERS]


def refusal_of(decode: Decode, plain: Plain, values: dict | None = None, arrays: dict | None = None) -> str:
    """How a changed message is refused; "" where it is taken."""
    try:
        decode(Plain(values={**plain.values, **(values or {})}, arrays={**plain.arrays, **(arrays or {})}))
    except FederationError as error:
        return str(error)
    return ""


def same(one: Any, other: Any) -> bool:
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and all(
            same(getattr(one, spec.name), getattr(other, spec.name)) for spec in dataclasses.fields(one)
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else bool(one == other)


def over_flower(plain: Plain) -> Plain:
    """As it arrives after Flower has written it into bytes and read it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(to_records(plain), dst_node_id=2, message_type="query")
    return from_records(message_from_proto(message_to_proto(message)).content)


def test_every_request_has_an_example_here() -> None:
    assert [type(body) for body in BODIES] == list(REQUESTS.values())
    assert [answer.kind for answer in ANSWERS] == [body.kind for body in BODIES]


def test_a_message_is_read_as_it_was_written() -> None:
    for body in BODIES:
        plain, decode = of_request(body)
        assert same(decode(over_flower(plain)), messages.Request(header=HEADER, body=body))
    for answer in ANSWERS:
        plain, decode = of_answer(answer)
        assert same(decode(over_flower(plain)), answer)


@pytest.mark.parametrize(("plain", "decode"), EVERY)
def test_a_message_is_texts_whole_numbers_and_arrays_alone(plain: Plain, decode: Decode) -> None:
    assert {type(value) for value in plain.values.values()} <= {str, int}
    assert {type(array) for group in plain.arrays.values() for array in group.values()} <= {np.ndarray}


@pytest.mark.parametrize(("plain", "decode"), EVERY)
def test_a_field_too_many_is_refused(plain: Plain, decode: Decode) -> None:
    assert "holds 'note', which is not one of its fields" in refusal_of(decode, plain, values={"note": "12"})
    assert "holds 'more', which is not one of its fields" in refusal_of(decode, plain, arrays={"more": FLOATS})
    name = next(iter(plain.values))
    assert "as a value and as arrays" in refusal_of(decode, plain, arrays={name: FLOATS})


@pytest.mark.parametrize(("plain", "decode"), EVERY)
def test_a_field_that_is_missing_is_refused_or_has_a_value_that_says_so(plain: Plain, decode: Decode) -> None:
    may_lack = {"known-heads", "known-head", "head-signature", "released-mean", "public", "public-images-sha256"}
    may_lack |= {"join-signature", "mask-key", "mask-key-signature"}
    for name in [*plain.values, *plain.arrays]:
        values = {key: value for key, value in plain.values.items() if key != name}
        arrays = {key: value for key, value in plain.arrays.items() if key != name}
        refused = refusal_of(decode, Plain(values=values, arrays=arrays))
        assert refused == "" if name in may_lack else f"gives no {name};" in refused


def unlimited(plain: Plain, decode: Decode) -> list[str]:
    """Fields of a message that take a text, a number or arrays beyond any measure, or of another type."""
    found = []
    for name, value in plain.values.items():
        text: tuple[object, ...] = (value + " " * 3_000_000, value.encode(), 7) if isinstance(value, str) else ()
        number: tuple[object, ...] = (True, float(value), str(value), -1, 2**63) if isinstance(value, int) else ()
        found += [name for wrong in text + number if f" {name} " not in refusal_of(decode, plain, values={name: wrong})]
    for name, group in plain.arrays.items():
        (array,) = group.values()
        wrong_groups = (
            {"w": array.astype(np.float64)},
            {"w": array.astype(np.int32)},
            {"w": array.astype(array.dtype.newbyteorder())},
            {"w": array.astype(object)},
            {"w": array.tolist()},
            {"w" * (messages.MAX_ARRAY_NAME + 1): array},
            {str(number): array for number in range(messages.MAX_ARRAYS + 1)},
            {"w": np.broadcast_to(array.ravel()[0], messages.MAX_NUMBERS + 1)},
        )
        for wrong_group in wrong_groups:
            if f" {name} " not in refusal_of(decode, plain, arrays={name: wrong_group}):
                found.append(name)
    return found


@pytest.mark.parametrize(("plain", "decode"), EVERY)
def test_every_field_has_a_type_and_a_limit(plain: Plain, decode: Decode) -> None:
    assert unlimited(plain, decode) == []


@dataclass(frozen=True, kw_only=True)
class Careless:
    """Planted: a message whose fields are of any length and type."""

    __pydantic_config__ = messages._AGREED
    kind = "careless"

    note: str
    number: int
    arrays: Any


def test_planted_fields_without_a_limit_are_found() -> None:
    plain = Plain(values={"note": "a", "number": 1}, arrays={"arrays": FLOATS})
    assert set(unlimited(plain, lambda plain: decode_answer(Careless, plain))) == {"note", "number", "arrays"}  # type: ignore[type-var]


@pytest.mark.parametrize("head", ["", "ab", "AB" * 32, "ab" * 33, "g" * 64, "ab" * 32 + "\n", "٠" * 64])
def test_a_ledger_head_is_64_digits_and_nothing_else(head: str) -> None:
    plain, decode = of_answer(ANSWERS[2])
    assert "ledger-head" in refusal_of(decode, plain, values={"ledger-head": head})


@pytest.mark.parametrize("plan", ["", "[]", "{}", "[" * 90_000, '{"name": NaN}', "{" + " " * 100_000 + "}"])
def test_a_plan_that_is_none_is_refused(plan: str) -> None:
    plain, decode = of_request(WarmStartRequest())
    assert "gives no plan as agreed" in refusal_of(decode, plain, values={"plan": plan})


def test_the_longest_statement_and_roster_of_a_plan_are_within_their_limits() -> None:
    rounds = {f"round-{number}": HEAD for number in range(1, MAX_ROUNDS + 1)}
    steps = {f"step-{number}": "" for number in range(1, MAX_POOLED_STEPS + 1)}
    for requests in (rounds, steps):
        assert len(json.dumps(answered_words(requests))) < messages.MAX_STATEMENT_CHARACTERS / 1.5
    member = Member(site="n" * 32, public_key=HEAD, mask_key=HEAD, signature=HEAD * 2)
    roster = Roster(run_id=RUN, plan_hash=HEAD, members=(member,) * MAX_POOLED_HOSPITALS)
    assert len(roster.to_text()) < messages.MAX_ROSTER_CHARACTERS / 1.5


def test_a_refusal_is_short_printable_and_of_a_known_code() -> None:
    refused = read_refusal(protocol.SPENT, "\x1b[2J\nspoofed" * 1000)
    assert refused.code == protocol.SPENT
    assert refused.reason.isprintable()
    assert len(refused.reason) < 5 * messages.MAX_REASON_CHARACTERS
    assert read_refusal(7, "?").code == protocol.FAILED


def test_what_is_no_request_is_refused_and_its_name_commands_no_terminal() -> None:
    plain, _ = of_request(WarmStartRequest())
    with pytest.raises(FederationError, match="is no request") as refused:
        decode_request("\x1b[2Jevaluate", plain)
    assert str(refused.value).isprintable()
    assert refusal_of(lambda plain: decode_answer(RoundAnswer, plain), plain, values={"\x1b[2J": 1}).isprintable()


def test_a_record_of_another_kind_is_refused() -> None:
    content = to_records(of_answer(ANSWERS[2])[0])
    content["metrics"] = MetricRecord({"loss": 0.69})
    with pytest.raises(FederationError, match="1 records beside"):
        from_records(content)
    with pytest.raises(FederationError, match="one 'config'"):
        from_records(RecordDict())
