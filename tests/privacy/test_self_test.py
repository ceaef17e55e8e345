"""The self-test of blocks finds kernels that treat rows by their place, and functions that look at other rows.

Each planted function stands for a kernel: right for every row, but for one bit at some places of a block.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.sensitivity_search import network_plan
from client.answering import capture_log, site_log
from ghostnet.errors import PlanError
from ghostnet.models import build_discriminator
from ghostnet.privacy import blocks
from ghostnet.privacy.groups import Groups, Scratch
from ghostnet.privacy.mechanism import GradientEngine, PatientGradients, Rows, _by_kernels, _watched
from ghostnet.utility.classifier import build_classifier, predict

SIZES = (8, 16, 64)
LIKE = torch.zeros(0, 3, 5)


@pytest.fixture(autouse=True)
def fresh_self_tests() -> Iterator[None]:
    blocks.forget()
    yield
    blocks.forget()


def passes(results: blocks.Results, block: int, *, pairs: bool = False) -> bool:
    blocks.forget()
    return blocks.is_invariant(results, LIKE, block=block, pairs=pairs, kind="planted")


def clean(rows: Tensor) -> Tensor:
    return rows.sin().flatten(1)


def other_at(places: Iterable[int], column: int = 7) -> blocks.Results:
    """One number of a row is a bit more, at these places of a block."""

    def results(rows: Tensor, _: Tensor) -> list[Tensor]:
        found = clean(rows)
        at = list(places)
        found[at, column] = torch.nextafter(found[at, column], torch.tensor(torch.inf))
        return [found]

    return results


@pytest.mark.parametrize("block", range(8, 72, 8))
def test_every_two_places_are_linked_by_copies_that_must_agree(block: int) -> None:
    first, second = (blocks._arranged(block, shift).tolist() for shift in blocks._SHIFTS)
    for copies in (first, second):
        assert copies.count(1) == copies.count(2)
        assert all(copies[place + 1] == 2 for place in range(block) if copies[place] == 1)
    linked, reached = {0}, 0
    while len(linked) > reached:
        reached = len(linked)
        seen = {copies[place] for place in linked for copies in (first, second)} - {3}
        linked |= {place for place in range(block) if seen & {first[place], second[place]}}
    assert linked == set(range(block))


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("block", SIZES)
def test_functions_of_a_row_alone_pass(block: int, pairs: bool) -> None:
    def results(rows: Tensor, groups: Tensor) -> list[Tensor]:
        return [torch.zeros_like(clean(rows)).index_add_(0, groups, clean(rows))]

    assert passes(results, block, pairs=pairs)


@pytest.mark.parametrize("block", SIZES)
def test_one_bit_at_any_one_place_is_found(block: int) -> None:
    assert [place for place in range(block) if passes(other_at([place]), block)] == []


def test_every_division_of_a_block_into_two_kinds_of_places_is_found() -> None:
    divisions = [[p for p in range(8) if bits >> p & 1] for bits in range(1, 255)]
    assert [places for places in divisions if passes(other_at(places), 8)] == []


@pytest.mark.parametrize("block", [16, 64])
def test_divisions_of_larger_blocks_are_found(block: int) -> None:
    """Tails, every n-th place, halves; and drawn ones."""
    divisions: list[Iterable[int]] = [range(start, block) for start in range(1, block)]
    divisions += [range(start, block, n) for n in range(2, 9) for start in range(n)]
    drawn = torch.rand(200, block, generator=torch.Generator().manual_seed(0)) < 0.5
    divisions += [row.nonzero().flatten().tolist() for row in drawn]
    assert [list(places) for places in divisions if passes(other_at(places), block)] == []


def mean_of_the_batch(rows: Tensor) -> Tensor:
    return clean(rows) - clean(rows).mean(0)


def batch_norm(rows: Tensor) -> Tensor:
    return nn.BatchNorm1d(15)(clean(rows)).detach()


def scale_of_the_batch(rows: Tensor) -> Tensor:
    """As arithmetic in few bits does: whole steps of the largest number there is."""
    step = rows.abs().max() / 127
    return (rows / step).round().flatten(1) * step


def left_neighbour(rows: Tensor) -> Tensor:
    return clean(rows) + 1e-6 * clean(rows).roll(1, 0)


def how_many_are_empty(rows: Tensor) -> Tensor:
    return clean(rows) * (1 + 1e-6 * (rows.flatten(1) == 0).all(1).sum())


@pytest.mark.parametrize("block", SIZES)
@pytest.mark.parametrize(
    "function", [mean_of_the_batch, batch_norm, scale_of_the_batch, left_neighbour, how_many_are_empty]
)
def test_functions_that_look_at_other_rows_are_found(function: blocks.RowFunction, block: int) -> None:
    assert not passes(lambda rows, _: [function(rows)], block)


@pytest.mark.parametrize("block", SIZES)
def test_groups_of_two_rows_that_are_added_otherwise_at_some_places_are_found(block: int) -> None:
    """Single rows agree everywhere; a pair's sum is a bit more where it begins at an even place."""

    def results(rows: Tensor, groups: Tensor) -> list[Tensor]:
        sums = torch.zeros_like(clean(rows)).index_add_(0, groups, clean(rows))
        starts = [int((groups == group).nonzero()[0]) for group in range(int(groups[-1]) + 1)]
        sizes = torch.bincount(groups).tolist()
        for group, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            if size == 2 and start % 2 == 0:
                sums[group] = torch.nextafter(sums[group], torch.tensor(torch.inf))
        return [sums]

    assert not passes(results, block, pairs=True)


def test_a_part_that_is_missing_or_one_bit_in_the_last_part_is_found() -> None:
    def last_part(rows: Tensor, groups: Tensor) -> Iterator[Tensor]:
        yield from (clean(rows) for _ in range(5))
        yield from other_at([11])(rows, groups)

    def fewer(rows: Tensor, _: Tensor) -> Iterator[Tensor]:
        yield clean(rows)
        if rows[4].abs().sum() == 0:
            yield clean(rows)

    assert not passes(last_part, 16)
    assert not passes(fewer, 16)


def test_blocks_of_a_real_network_that_are_not_filled_up_are_found() -> None:
    """Planted: the last rows of a block run in a smaller one. Which remainders round otherwise: the processor's."""
    network = blocks.with_random_weights(build_classifier(channels=1, classes=2).eval())

    def passes_with(rest: int) -> bool:
        def unfilled(rows: Tensor, _: Tensor) -> list[Tensor]:
            return [torch.cat([network(rows[:-rest]), network(rows[-rest:])]).detach()]

        return blocks.is_invariant(unfilled, torch.zeros(0, 1, 32, 32), block=64, pairs=False, kind=rest)

    assert not all(passes_with(rest) for rest in (1, 2, 3, 5))


def test_the_gradients_of_one_patient_a_bit_off_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted in the product's own gradients: the last place of a block, in one number of one layer."""
    plan = network_plan("dcgan 28")
    original = Groups.sum

    def off(self: Groups, per_row: Tensor, out: Tensor) -> Tensor:
        found = original(self, per_row, out)
        last = int(self.ids[-1])
        found[last, -1] = torch.nextafter(found[last, -1], torch.tensor(torch.inf))
        return found

    discriminator = build_discriminator(plan.networks)
    images = torch.zeros(0, 1, 28, 28)
    of_block = watched_gradients(discriminator)
    alone = blocks.is_invariant(of_block, images, block=16, pairs=True, kind="clean")
    monkeypatch.setattr(Groups, "sum", off)
    assert not blocks.is_invariant(of_block, images, block=16, pairs=True, kind="off")
    assert alone or blocks.computed_alone()


def watched_gradients(discriminator: nn.Module) -> blocks.Results:
    def results(images: Tensor, groups: Tensor) -> Iterator[Tensor]:
        rows = Rows(
            images=images,
            labels=torch.zeros(len(images), dtype=torch.int64),
            groups=groups,
            real=torch.ones(len(images), dtype=torch.bool),
            group_count=int(groups[-1]) + 1,
        )
        return _watched(_by_kernels(discriminator, rows, Scratch(), row_loss=lambda logits, real: -logits))

    return results


def test_dropout_is_refused_and_never_taken_for_a_machine_that_rounds() -> None:
    classifier = build_classifier(channels=1, classes=2).train()
    with pytest.raises(PlanError, match="called twice with the same rows"):
        predict(classifier, torch.rand(3, 1, 32, 32))
    assert blocks.computed_alone() == ()
    assert predict(classifier.eval(), torch.rand(3, 1, 32, 32)).shape == (3, 2)


def counted(calls: list[int]) -> blocks.Results:
    def results(rows: Tensor, _: Tensor) -> list[Tensor]:
        calls.append(len(rows))
        return [clean(rows)]

    return results


def test_a_network_is_tried_once_for_each_shape_and_number_of_threads() -> None:
    calls: list[int] = []
    before = torch.get_num_threads()
    try:
        for threads, block, kind in itertools.product((1, 1, 2), (8, 16), "ab"):
            torch.set_num_threads(threads)
            blocks.is_invariant(counted(calls), LIKE, block=block, pairs=False, kind=kind)
    finally:
        torch.set_num_threads(before)
    assert calls == [8, 8] * 2 + [16, 16] * 2 + [8, 8] * 2 + [16, 16] * 2


def test_a_step_is_tried_once_for_several_hospitals_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    original = blocks._copies_agree

    def counting(results: blocks.Results, like: Tensor, *, block: int, pairs: bool) -> bool:
        tried.append(block)
        return original(results, like, block=block, pairs=pairs)

    monkeypatch.setattr(blocks, "_copies_agree", counting)
    rows = two_fakes()
    for _ in range(3):
        hospital = PatientGradients(build_discriminator(network_plan("dcgan 28").networks), GradientEngine.KERNELS)
        hospital.clipped_sum(rows, lambda logits, real: -logits, clip_norm=1.0, physical_rows=16)
    assert tried == [16]


def two_fakes() -> Rows:
    return Rows(
        images=torch.rand(2, 1, 28, 28),
        labels=torch.zeros(2, dtype=torch.int64),
        groups=torch.arange(2),
        real=torch.zeros(2, dtype=torch.bool),
        group_count=2,
    )


def test_layers_in_another_mode_are_another_network() -> None:
    network = build_classifier(channels=1, classes=2)
    assert blocks.shapes_of(network.train()) != blocks.shapes_of(network.eval())


def no(*_: object) -> bool:
    return passes(other_at([3]), 16)


def yes(*_: object) -> bool:
    return passes(lambda rows, _: [clean(rows)], 16)


@pytest.mark.parametrize(("answer", "lines"), [(no, 1), (yes, 0)])
def test_a_no_is_one_line_in_the_log_of_each_hospital_of_a_process(
    answer: Callable[[], bool], lines: int, tmp_path: Path
) -> None:
    assert answer() is (lines == 0)
    logs = [tmp_path / name / "site.log" for name in ("a", "b", "c")]
    for log in [*logs, *logs]:
        with capture_log(site_log(log)):
            logging.getLogger("ghostnet.training.loop").info("a request")
    for log in logs:
        said = log.read_text()
        assert said.count("this machine's arithmetic depends on the rows beside a row") == lines
        assert said.count("rows of 3x5 in blocks of 16") == lines
