"""Blocks of one fixed shape, so that a row's result is a function of that row alone, to the last bit.

A dense kernel chooses its order of additions by shapes: a product of 3 rows rounds otherwise than one of 4, the last
rows of a batch otherwise than the rest. Whoever chooses the weights can amplify that last bit without limit, and then
one patient more changes what all others contribute (up to 170 clip norms, measured). Here every row runs in a block
of BLOCK_ROWS rows, the last one filled up with rows of zeros; what comes out for a row must not depend on its place
in the block or on its neighbours.

That holds where a library's kernels treat all rows of such a block alike. They do on every machine tried, and nobody
promises it; so `is_invariant` tries it in the process that is about to read patients, with random rows at other places
among other neighbours. The order of additions does not depend on values, so random values find what crafted ones would
amplify. Where the test fails each row (or patient) gets a block of its own, which is slower and right.

Guarantee:
    A row's result is a function of that row and of what the caller gives for all rows, to the bit. Assumes: a kernel
    that is called twice with one shape adds in the same order. Used by every release: the discriminator's steps
    (mechanism.py, penalised.py), the warm start, the perceptual release, the utility counts.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

BLOCK_ROWS = 16  # a multiple of 8: remainders of a vector register are where kernels change their order
LEAST_ROWS = 8
_WIDE_ROWS = 64  # where nothing but the rows' results is held
_TRIALS = 3  # blocks that the self-test compares; each watches three groups at new places among new neighbours


@dataclass(frozen=True, kw_only=True)
class Block:
    """Whole groups that run together.

    Attributes:
        rows: which rows, at most a block's; more where one group alone has more.
        groups: which groups.
    """

    rows: slice
    groups: slice


def block_rows(most: int) -> int:
    """Rows of a block where at most so many may be in memory: BLOCK_ROWS, or fewer, a multiple of 8 in any case."""
    return max(LEAST_ROWS, min(most, BLOCK_ROWS) // LEAST_ROWS * LEAST_ROWS)


def blocks_of(sizes: Sequence[int], *, block: int, shared: bool) -> Iterator[Block]:
    """Packs groups, in order, into blocks.

    Args:
        sizes: rows of each group, in order.
        block: rows of a block.
        shared: several groups to a block where they fit; else each by itself.
    """
    first_row = first_group = row = 0
    for group, size in enumerate(sizes):
        if row > first_row and (not shared or row + size - first_row > block):
            yield Block(rows=slice(first_row, row), groups=slice(first_group, group))
            first_row, first_group = row, group
        row += size
    if row > first_row:
        yield Block(rows=slice(first_row, row), groups=slice(first_group, len(sizes)))


def filled(rows: Tensor, block: int) -> Tensor:
    """Rows of zeros added behind: (r, ...) -> (block, ...), always fresh and in one memory layout.

    A full block is copied too: a view may start elsewhere in memory, and the strides of a dimension of size 1 decide
    which kernel a convolution takes.
    """
    whole = torch.zeros(block, *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    whole[: len(rows)] = rows
    return whole


RowFunction = Callable[[Tensor], Tensor]
"""(b, ...) -> (b, ...), such as a network without layers that mix rows."""


def row_by_row(function: RowFunction, rows: Tensor, *, probe: RowFunction | None = None) -> Iterator[Tensor]:
    """A function of rows, computed so that each result depends on its row alone.

    Args:
        function: of the rows.
        rows: float (n, ...). SENSITIVE.
        probe: for the self-test, the same function with weights that nobody sent (`with_random_weights`); needed where
            weights were received. By default the function itself.

    Yields:
        The results of the next rows, in order; n in all.

    Guarantee:
        As this module's.
    """
    most, block = (_WIDE_ROWS, _WIDE_ROWS) if _rows_are_invariant(probe or function, rows[:0]) else (1, LEAST_ROWS)
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        yield function(filled(part, block))[: len(part)]


def with_random_weights(network: nn.Module) -> nn.Module:
    """A copy whose every product rounds: weights that were received may hide from the self-test what patients show."""
    probe, public = copy.deepcopy(network), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            drawn = torch.randn(parameter.shape, generator=public) / math.sqrt(max(1, parameter[0].numel()))
            parameter.copy_(drawn)
    return probe


def _rows_are_invariant(function: RowFunction, like: Tensor) -> bool:
    def watched(rows: Tensor, places: Sequence[Sequence[int]]) -> list[Tensor]:
        results = function(rows)
        return [results[list(place)] for place in places]

    return is_invariant(watched, like, block=_WIDE_ROWS)


def is_invariant(
    results: Callable[[Tensor, Sequence[Sequence[int]]], list[Tensor]], like: Tensor, *, block: int
) -> bool:
    """Tries whether a group's result changes with its place in a block and with its neighbours.

    Two groups of one row and one of two rows are watched, at other places among other rows in each trial; the first
    trial leaves the rest of the block empty.

    Args:
        results: (rows (block, ...), the places of each watched group) -> one tensor a group.
        like: a tensor of the rows' shape, type and device; its values are not read.
        block: rows of a block.

    Returns:
        Whether every trial gave the same bits. A miss is logged: the caller then uses a block for each group.
    """
    public = torch.Generator().manual_seed(0)  # the test holds for any values: kernels do not look at them

    def random_rows(count: int) -> Tensor:
        drawn = torch.randn(count, *like.shape[1:], generator=public)
        return drawn.to(device=like.device, dtype=like.dtype)

    own = random_rows(4)
    expected: list[Tensor] | None = None
    for trial in range(_TRIALS):
        rows = random_rows(block) * (trial > 0)
        start = int(torch.randint(block - 1, (1,), generator=public))
        others = [place for place in range(block) if place not in (start, start + 1)]
        one, two = (others[int(i)] for i in torch.randperm(len(others), generator=public)[:2])
        places = ([one], [two], [start, start + 1])
        rows[[one, two, start, start + 1]] = own
        found = [result.clone() for result in results(rows, places)]
        if expected is not None and not all(_same_bits(a, b) for a, b in zip(expected, found, strict=True)):
            logger.warning(
                "this machine's arithmetic depends on the rows beside a row (%s threads, rows of %s); each patient is "
                "computed alone, which takes several times longer",
                torch.get_num_threads(),
                tuple(like.shape[1:]),
            )
            return False
        expected = found
    return True


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit; not-a-number equals itself."""
    return bool(torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan()))
