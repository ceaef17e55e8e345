"""What a patient adds to a sum depends on that patient alone, to the bit, whatever weights or plan were received.

A small part of `python -m benchmarks.sensitivity_search`, with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.sensitivity_search import NETWORKS, RELEASES, Outcome, arithmetic, trial
from ghostnet.privacy import blocks


@pytest.fixture(autouse=True)
def fresh_self_tests() -> Iterator[None]:
    """Each test asks anew whether groups may share blocks, and leaves the number of threads as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    blocks.forget()
    yield
    blocks.forget()
    torch.set_num_threads(threads)


def trials_of(subject: str, numbers: range) -> Iterator[Outcome]:
    for number in numbers:
        torch.set_num_threads(1 + number % 2)
        yield trial(number, seed=11, subject=subject)


@pytest.mark.parametrize("subject", [*NETWORKS, *RELEASES])
def test_no_crafted_weights_or_plan_move_what_others_add(subject: str) -> None:
    outcomes = list(trials_of(subject, range(4)))
    assert [o for o in outcomes if o.is_a_miss] == []
    assert max(o.moved for o in outcomes) > 0.99, "clipping never bound"


@pytest.mark.parametrize("subject", ["stylegan 32", "keras28", "wgan-gp 28, patient penalty", *RELEASES])
def test_nor_where_each_patient_is_computed_alone(subject: str) -> None:
    with arithmetic("alone"):
        outcomes = list(trials_of(subject, range(4)))
    assert [o for o in outcomes if o.is_a_miss] == []


def test_remainders_of_a_batch_are_found_by_the_same_trials() -> None:
    """Planted: blocks that are not filled up, as before."""
    with arithmetic("unfilled"):
        outcomes = (outcome for subject in NETWORKS for outcome in trials_of(subject, range(4)))
        assert any(o.is_a_miss for o in outcomes)  # the rest is not computed
