"""What a coordinator can weigh: no message of a hospital is longer or shorter for one patient more.

Real hospitals, the real apps, and Flower's own serialisation of every answer and every statement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common.serde import message_to_proto

import server.conversation
from client import answering
from client.site import Site
from ghostnet.exchange import protocol
from ghostnet.exchange.flower import from_records
from ghostnet.exchange.messages import Answer, Plain, Request, encode
from ghostnet.plan import Plan
from tests.asked import values_of
from tests.plans import write_striped_npz
from tests.server.direct_grid import write_hospitals
from tests.server.federations import NAMES, plan_of, run

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENTS = (9, 10, 11)  # one digit and two; the tenth is a training patient, the eleventh a test patient
Lengths = dict[tuple[str, int, int], tuple[int, int]]
"""By kind of answer, hospital and turn: bytes of the message, and of the statement in it."""


def with_table(plan: Plan, table: str, **values: Any) -> Plan:
    return replace(plan, **{table: replace(getattr(plan, table), **values)})


def warm_alone() -> Plan:
    plan = with_table(plan_of("generator"), "federation", rounds=0)
    return with_table(plan, "privacy", steps=0)


def image_unit(plan: Plan) -> Plan:
    return with_table(plan, "privacy", unit="image")


MODES: dict[str, Callable[[], Plan]] = {
    "generator": lambda: plan_of("generator"),
    "gan": lambda: plan_of("gan"),
    "pooled": lambda: plan_of("pooled"),
    "warm start alone": warm_alone,
    "no warm start": lambda: with_table(plan_of("generator"), "warm_start", noise_multiplier=0.0),
    "perceptual": lambda: with_table(
        plan_of("generator"), "training", perceptual_noise_multiplier=2.0, perceptual_weight=1.0
    ),
    "utility with bins": lambda: with_table(plan_of("generator"), "utility", bins=12),
    "no utility": lambda: with_table(plan_of("generator"), "utility", noise_multiplier=0.0),
    "per image": lambda: image_unit(plan_of("generator")),
}


def lengths(plan: Plan, folder: Path, patients: int) -> Lengths:
    """Of every message of a whole run whose hospitals have so many patients each."""

    def write(path: Path, i: int) -> None:
        write_striped_npz(path, seed=i, patients=patients)
        if plan.privacy.unit == "image":
            columns = dict(np.load(path))
            del columns["patient"]
            np.savez(path, **columns)

    folder.mkdir()
    grid = run(plan, write_hospitals(folder, NAMES, write, epsilon=30.0, coalition=1000.0), folder / "run")
    found: Lengths = {}
    for kind, node, reply in grid.seen:
        turn = sum(key[:2] == (kind, node) for key in found)
        statement = str(values_of(reply).get("statement", ""))
        found[kind, node, turn] = len(message_to_proto(reply).SerializeToString()), len(statement)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_no_message_tells_one_patient_more_by_its_length(mode: str, tmp_path: Path) -> None:
    plan = MODES[mode]()
    first, *others = (lengths(plan, tmp_path / str(patients), patients) for patients in PATIENTS)
    asked = {kind for kind, _, _ in first}
    assert asked >= {protocol.JOIN, protocol.FINISH}
    assert (protocol.WARM_START in asked) == (plan.warm_start.noise_multiplier > 0)
    assert (protocol.STEP in asked) == plan.federation.is_pooled
    assert (protocol.TRAIN in asked) == (not plan.federation.is_pooled and plan.federation.rounds > 0)
    assert all(statement > 0 for (kind, _, _), (_, statement) in first.items() if kind == protocol.FINISH)
    for other in others:
        assert other == first


@contextmanager
def a_count_in(kind: str) -> Iterator[None]:
    """One kind of answer tells, in decimal digits, how many patients there are, to a coordinator that takes it."""
    honest, told = answering._answer, [""]

    def counting(site: Site, request: Request) -> Answer:
        made = honest(site, request)
        cohorts = site._cohorts(request.header.plan.image)
        told[0] = str(cohorts.train.patients + cohorts.test.patients)
        return made

    def leaking(answer: Answer) -> Plain:
        plain = encode(answer)
        return Plain(values={**plain.values, "note": told[0]}, arrays=plain.arrays) if answer.kind == kind else plain

    def listening(content: RecordDict) -> Plain:
        plain = from_records(content)
        return Plain(values={name: v for name, v in plain.values.items() if name != "note"}, arrays=plain.arrays)

    with (
        mock.patch.object(answering, "_answer", counting),
        mock.patch.object(answering, "encode", leaking),
        mock.patch.object(server.conversation, "from_records", listening),
    ):
        yield


KINDS = {
    protocol.JOIN: "generator",
    protocol.WARM_START: "generator",
    protocol.TRAIN: "generator",
    protocol.STEP: "pooled",
    protocol.FINISH: "generator",
}


@pytest.mark.parametrize(("kind", "mode"), KINDS.items())
def test_a_count_in_an_answer_is_seen_by_its_length(kind: str, mode: str, tmp_path: Path) -> None:
    with a_count_in(kind):
        one, other = (lengths(MODES[mode](), tmp_path / str(patients), patients) for patients in (9, 10))
    assert {key[0] for key in one if one[key] != other[key]} == {kind}
