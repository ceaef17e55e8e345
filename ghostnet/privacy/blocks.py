"""Blocks of one fixed shape, so that a row's result is a function of that row alone, to the last bit.

A dense kernel chooses its order of additions by shapes: a product of 3 rows rounds otherwise than one of 4, the last
rows of a batch otherwise than the rest. Whoever chooses the weights can amplify that last bit without limit, and then
one patient more changes what all others contribute (up to 170 clip norms, measured). Here every row runs in a block
of BLOCK_ROWS rows, the last one filled up with rows of zeros; what comes out for a row must not depend on its place
in the block or on its neighbours.

That holds where a library's kernels treat all rows of such a block alike. They do on most machines, and nobody
promises it, so `is_invariant` tries it in the process that is about to read patients. MKL on a processor without AVX2
adds up a head of two classes otherwise in odd rows than in even ones; with AVX2 it treats the last two rows of a block
of 8 or 32 otherwise, not those of 16 or 64.

The self-test computes two blocks that hold copies of the same few rows:

- Every place of a block holds a copy, and every two places are linked by a chain of copies that must agree. So however
  a kernel divides the places into kinds (the last rows, every second row, one half for each thread), two copies stand
  at places of different kinds, and differ. No place is left to chance, and a third block could not show more.
- The rest is zeros in one block and random, larger numbers in the other; each copy also has other neighbours at other
  places. So a function that looks at other rows (batch statistics, a scale taken from the batch) gives other bits.
- Copies are compared in every number that is later summed, norms and each tile of a gradient, as bits. Random values
  find what crafted ones would amplify: the order of additions depends on shapes and places, not on values.

A network of one shape is tried once a process. Where the test fails each row (or patient) gets a block of its own,
which is slower and right; a function that gives other bits for the same block when called again is refused.

Guarantee:
    A row's result is a function of that row and of what the caller gives for all rows, to the bit. Assumes: a kernel
    that is called twice with one shape adds in the same order. Used by every release: the discriminator's steps
    (mechanism.py, penalised.py), the warm start, the perceptual release, the utility counts.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ghostnet.errors import PlanError
from ghostnet.privacy.precision import whole_float32

BLOCK_ROWS = 16  # a multiple of 8: remainders of a vector register are where kernels change their order
MIN_ROWS = 8
_WIDE_ROWS = 64  # where nothing but the rows' results is held
_COPIES = (0, 1, 2, 0, 3)  # by place: a row by itself (0), a pair of rows (1, 2), another row (3); again and again
_SHIFTS = (0, 2)  # of that order in the self-test's two blocks: together they link all places (tests/privacy)
_OTHERS_SCALE = 4.0  # so that the largest number of a block is not a copy's


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
    return max(MIN_ROWS, min(most, BLOCK_ROWS) // MIN_ROWS * MIN_ROWS)


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


def row_by_row(
    function: RowFunction, rows: Tensor, *, kind: Hashable, probe: RowFunction | None = None
) -> Iterator[Tensor]:
    """A function of rows, computed so that each result depends on its row alone.

    Args:
        function: of the rows.
        rows: float (n, ...). SENSITIVE.
        kind: tells functions apart that use other kernels, or kernels of other shapes.
        probe: for the self-test, the same function with weights that nobody sent (`with_random_weights`); needed where
            weights were received. By default the function itself.

    Yields:
        The results of the next rows, in order; n in all.

    Raises:
        PlanError: as `is_invariant`.

    Guarantee:
        As this module's.
    """
    shared = _rows_are_invariant(probe or function, rows[:0], kind)
    most, block = (_WIDE_ROWS, _WIDE_ROWS) if shared else (1, MIN_ROWS)
    for start in range(0, len(rows), most):
        part = rows[start : start + most]
        with whole_float32():
            results = function(filled(part, block))[: len(part)]
        yield results


def shapes_of(network: nn.Module) -> Hashable:
    """The facts that decide a network's kernels: its layers, their modes, its parameters' shapes and layouts."""
    parameters = tuple((p.shape, p.stride(), p.dtype) for p in network.parameters())
    return str(network), tuple(layer.training for layer in network.modules()), parameters


def with_random_weights(network: nn.Module) -> nn.Module:
    """A copy whose every product rounds: weights that were received may hide from the self-test what patients show."""
    probe, public = copy.deepcopy(network), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            drawn = torch.randn(parameter.shape, generator=public) / math.sqrt(max(1, parameter[0].numel()))
            parameter.copy_(drawn)
    return probe


def computed_alone() -> tuple[str, ...]:
    """A sentence for each network (or release) of this process whose self-test failed, for the hospital's log."""
    return tuple(dict.fromkeys(sentence for sentence in _PROVEN.values() if sentence))


def forget() -> None:
    """Everything is tried anew."""
    _PROVEN.clear()


_PROVEN: dict[Hashable, str] = {}
"""What was tried in this process: "" where rows may share blocks, else what to tell the hospital."""

Results = Callable[[Tensor, Tensor], Iterable[Tensor]]
"""(rows (block, ...), group of each row (block,)) -> parts of the results, each (groups, ...) or longer."""


@whole_float32()
def _rows_are_invariant(function: RowFunction, like: Tensor, kind: Hashable) -> bool:
    return is_invariant(lambda rows, _: [function(rows)], like, block=_WIDE_ROWS, pairs=False, kind=kind)


def is_invariant(results: Results, like: Tensor, *, block: int, pairs: bool, kind: Hashable) -> bool:
    """Tries whether a group's result changes with its place in a block and with its neighbours; once a process.

    Args:
        results: of one block; may write over what it gave before as soon as it is asked for more.
        like: a tensor of the rows' shape, type and device; its values are not read.
        block: rows of a block.
        pairs: whether a group can have several rows; else every row is a group.
        kind: with the rows' shape, type and device, the block and the number of threads: what is tried but once.

    Returns:
        Whether all copies gave the same bits. If not, `computed_alone` says so; use a block for each group.

    Raises:
        PlanError: called twice with the same block, it gives other bits: no block makes that a function of its rows.
    """
    key = (kind, like.shape[1:], like.dtype, like.device, block, pairs, torch.get_num_threads())
    if key not in _PROVEN:
        _PROVEN[key] = "" if _copies_agree(results, like, block=block, pairs=pairs) else _sentence(like, block)
    return not _PROVEN[key]


def _copies_agree(results: Results, like: Tensor, *, block: int, pairs: bool) -> bool:
    """The self-test itself; this module's text says why two blocks are enough."""
    public = torch.Generator().manual_seed(0)  # the test holds for any values: kernels do not look at them

    def random_rows(count: int) -> Tensor:
        drawn = torch.randn(count, *like.shape[1:], generator=public)
        return drawn.to(device=like.device, dtype=like.dtype)

    own, others = random_rows(3), _OTHERS_SCALE * random_rows(block)
    expected: dict[tuple[int, int], Tensor] = {}
    for shift, rest in zip(_SHIFTS, (torch.zeros_like(others), others), strict=True):
        copies = _arranged(block, shift)
        rows = rest.clone()
        for number in range(3):
            rows[copies == number] = own[number]
        groups = torch.cumsum(copies != 2, 0) - 1 if pairs else torch.arange(block)
        alike = {number: groups[copies == number].tolist() for number in range(2 if pairs else 3)}
        if not _as_expected(results(rows, groups.to(like.device)), alike, expected):
            _check_repeats(results, rows, groups.to(like.device))
            return False
    return True


def _arranged(block: int, shift: int) -> Tensor:
    """The copy at each place of a block, int64 (block,); half a pair at an end gives way to a single row."""
    copies = torch.tensor([_COPIES[(place + shift) % len(_COPIES)] for place in range(block)])
    if copies[0] == 2:
        copies[0] = 0
    if copies[-1] == 1:
        copies[-1] = 0
    return copies


def _as_expected(parts: Iterable[Tensor], alike: dict[int, list[int]], expected: dict[tuple[int, int], Tensor]) -> bool:
    """True if copies agree with each other and with those before; where there are none yet, they are written down."""
    is_first, seen = not expected, 0
    for index, part in enumerate(parts):
        for number, places in alike.items():
            for place in places:
                found = _bits(part[place])
                if is_first and (index, number) not in expected:
                    expected[index, number] = found.clone()
                if (index, number) not in expected or not torch.equal(found, expected[index, number]):
                    return False
            seen += 1
    return seen == len(expected)


def _check_repeats(results: Results, rows: Tensor, groups: Tensor) -> None:
    expected: dict[tuple[int, int], Tensor] = {}
    if not all(_as_expected(results(rows.clone(), groups), {0: [0]}, expected) for _ in range(2)):
        raise PlanError(
            "called twice with the same rows, a network gives other numbers: a layer draws at random (dropout in "
            "training mode), or this device adds in a different order each time; nothing is released from it"
        )


def _bits(numbers: Tensor) -> Tensor:
    return numbers.contiguous().view(_INTEGERS[numbers.element_size()])


_INTEGERS = {4: torch.int32, 8: torch.int64}


def _sentence(like: Tensor, block: int) -> str:
    return (
        f"this machine's arithmetic depends on the rows beside a row ({torch.get_num_threads()} threads, rows of "
        f"{'x'.join(map(str, like.shape[1:]))} in blocks of {block}); each patient is computed alone, which is right "
        "and takes several times longer"
    )
