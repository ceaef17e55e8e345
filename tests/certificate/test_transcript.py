"""The published answers: the weights are what they make, to the bit, or the check says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ghostnet.certificate.transcript import averaged_names, check_weights
from ghostnet.errors import GhostNetError, VerifyError
from ghostnet.exchange.arrays import Arrays, arrays_sha256, to_arrays, to_bytes
from ghostnet.models import build_generator
from ghostnet.plan import Plan
from tests.plans import tiny_plan
from tests.samplers import SITES, publish, requests_of, transcript_of, with_federation

pytestmark = pytest.mark.usefixtures("one_thread")

Answered = dict[str, dict[str, str]]


def resolved(**federation: Any) -> Plan:
    plan = with_federation(tiny_plan(), **federation)
    return replace(plan, privacy=replace(plan.privacy, noise_multiplier=3.0))


def answered(plan: Plan) -> Answered:
    record, _ = transcript_of(plan)
    return {site: requests_of(plan, record, site) for site in SITES}


OPTIMIZERS: list[dict[str, Any]] = [
    {},
    {"share": "gan"},
    {"server_optimizer": "fedavgm"},
    {"server_optimizer": "fedadam", "server_learning_rate": 0.01},
    {"server_optimizer": "median", "share": "gan"},
]


@pytest.mark.parametrize("federation", OPTIMIZERS)
def test_the_weights_are_what_the_last_answers_make(federation: dict[str, Any], tmp_path: Path) -> None:
    plan = resolved(**federation)
    folder = publish(tmp_path / "sampler", plan)
    shown = check_weights(folder, plan, answered(plan))
    assert "round-2 of 2: the signed answers of north, south make these weights to the bit" in shown.words
    assert ("coordinator's word" in shown.words) == (plan.federation.server_optimizer in ("fedavgm", "fedadam"))
    names = load_file(folder / "transcript.safetensors")
    assert any(name.startswith("server/") for name in names) == ("coordinator's word" in shown.words)
    assert any("discriminator." in name for name in names) == (plan.federation.share == "gan")


def test_of_a_fit_the_released_mean_is_shown_and_the_fit_said_not_to_be(tmp_path: Path) -> None:
    plan = resolved(rounds=0)
    plan = replace(plan, privacy=replace(plan.privacy, steps=0))
    shown = check_weights(publish(tmp_path / "sampler", plan), plan, answered(plan))
    assert shown.words.endswith("signed sums of north, south; the fit of the weights to it is not replayed")
    sums = load_file(tmp_path / "sampler" / "transcript.safetensors")
    total = sum(value.astype(np.float64) for name, value in sorted(sums.items()))
    expected = (total / (2 * plan.federation.patients)).astype(np.float32)
    assert shown.released_mean is not None
    assert torch.equal(shown.released_mean, torch.from_numpy(expected))


def test_pooled_without_a_warm_start_has_no_transcript(tmp_path: Path) -> None:
    plan = resolved(share="pooled", hospitals=2, min_hospitals=2)
    assert plan.has_transcript
    plan = replace(plan, warm_start=replace(plan.warm_start, noise_multiplier=0.0))
    assert not plan.has_transcript
    folder = publish(tmp_path / "sampler", plan, known=("pinned", "pinned"))
    assert not (folder / "transcript.safetensors").exists()
    assert check_weights(folder, plan, answered(plan)).words.endswith("is not shown")


def rewritten(folder: Path, change: Callable[[Arrays], Arrays]) -> Path:
    path = folder / "transcript.safetensors"
    path.write_bytes(to_bytes(change({name: array.copy() for name, array in load_file(path).items()})))
    return folder


def without(prefix: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name: array for name, array in arrays.items() if not name.startswith(prefix)}


def moved(prefix: str, to: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name.replace(prefix, to, 1): array for name, array in arrays.items()}


def one_bit(prefix: str) -> Callable[[Arrays], Arrays]:
    def change(arrays: Arrays) -> Arrays:
        name = next(name for name in sorted(arrays) if name.startswith(prefix))
        arrays[name].view(np.uint32).flat[0] ^= 1
        return arrays

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (one_bit("north/round-2/"), "north to round-2 is not the one that it signed"),
        (one_bit("south/warm_start/"), "south to warm_start is not the one that it signed"),
        (without("north/round-2/"), "answers to round-2; the plan asks for more"),
        (without("north/warm_start/"), "sums of 1 hospitals: too few"),
        (without("north/"), "too few"),
        (moved("north/round-2", "west/round-2"), "west to round-2, of which it signed none"),
        (moved("north/round-2", "north/round-9"), "north to round-9, of which it signed none"),
        (moved("north/round-2", "north/round-1"), "north to round-1 is not the one that it signed"),
        (lambda a: {**a, "evil": np.zeros(1, np.float32)}, "'evil', which is no hospital's answer"),
        (lambda a: {**a, "north/finish/counts": np.zeros(1, np.float32)}, "is no hospital's answer"),
        (lambda a: {**a, "server/round-2/sent/x": np.zeros(1, np.float32)}, "exactly one"),
        (lambda a: {**a, "server/warm_start/x": np.zeros(1, np.float32)}, "that the plan does not have"),
        (lambda a: {**a, "north/round-2/more": np.zeros(1, np.float32)}, "is not the one that it signed"),
    ],
)
def test_a_transcript_that_is_not_what_was_signed_is_named(
    tmp_path: Path, change: Callable[[Arrays], Arrays], says: str
) -> None:
    plan = resolved(min_hospitals=2)
    folder = publish(tmp_path / "sampler", plan)
    check_weights(rewritten(folder, dict), plan, answered(plan))  # the clean twin
    with pytest.raises(VerifyError, match=says):
        check_weights(rewritten(folder, change), plan, answered(plan))


def test_one_bit_of_the_weights_or_of_what_the_server_started_from_is_named(tmp_path: Path) -> None:
    plan = resolved(server_optimizer="fedavgm", server_momentum=0.9)
    folder = publish(tmp_path / "sampler", plan)
    signed = answered(plan)
    good = load_file(folder / "model.safetensors")

    def scaled(kind: str) -> Callable[[Arrays], Arrays]:
        return lambda arrays: {n: a * np.float32(1.01) if f"/{kind}/" in n else a for n, a in arrays.items()}

    for kind in ("sent", "moments"):
        with pytest.raises(VerifyError, match="are not what the signed answers to round-2 make"):
            check_weights(rewritten(folder, scaled(kind)), plan, signed)
        publish(tmp_path / kind, plan)
        folder = tmp_path / kind
    for name in sorted(good):
        arrays = {key: array.copy() for key, array in good.items()}
        arrays[name].view(np.uint32).flat[-1] ^= 1
        (folder / "model.safetensors").write_bytes(to_bytes(arrays))
        with pytest.raises(VerifyError, match="are not what the signed answers to round-2 make"):
            check_weights(folder, plan, signed)
    (folder / "model.safetensors").write_bytes(to_bytes({**good, "more": np.zeros(1, np.float32)}))
    with pytest.raises(GhostNetError, match="other arrays"):
        check_weights(folder, plan, signed)


def test_a_hospital_whose_answer_is_not_in_the_weights_is_said(tmp_path: Path) -> None:
    plan = resolved()
    folder = publish(tmp_path / "sampler", plan)
    signed = answered(plan)
    late = {**signed, "west": {"round-2": "e" * 64}}
    assert "(without west, who answered too)" in check_weights(folder, plan, late).words
    three = with_federation(plan, rounds=3)
    later = {**signed, "west": {"round-3": "e" * 64}}
    assert "(answers to round-3 are not in them)" in check_weights(folder, three, later).words


def test_running_statistics_are_the_names_that_are_always_averaged() -> None:
    plan = resolved()
    statistics = {name for name in to_arrays(build_generator(plan.networks)) if "running_" in name}
    assert statistics
    assert averaged_names(plan.networks) & to_arrays(build_generator(plan.networks)).keys() == statistics


def test_the_digest_of_an_answer_does_not_depend_on_the_order_of_its_arrays() -> None:
    arrays = {"b": np.zeros(2, np.float32), "a": np.ones(3, np.float32)}
    assert arrays_sha256(arrays) == arrays_sha256(dict(reversed(arrays.items())))
