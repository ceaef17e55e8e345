"""Rows that belong together, and a parameter's gradient for every group of them: its norm, and the gradient itself.

A group is a patient or a fake; its rows are summed before the norm. All arrays here have one place a group and as many
places as rows, whatever the number of groups, so that shapes never tell how many there are (blocks.py).

Each group's gradient is written out, either kept from the norm to the sum or, where it is large, formed again piece by
piece. It costs more than one product over all rows, in which rows round each other's sums: there, numbers that cancel
within one row swallow what others add meanwhile, and a discriminator may be made to harm. What is formed again is
formed from the same numbers, and scaled only then: a norm speaks for the very numbers that are added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

KEPT_NUMBERS = 1 << 20  # of one group's gradient, at most, that is kept: 64 MiB a block
_TILE_ROWS, _TILE_NUMBERS = 256, 1 << 14  # of one group's gradient, worked on at once: all groups' fit in the cache
_SUMMED_NUMBERS = 512  # squares in one float32 sum: 512 equal ones round by 2^-19 of it, a million by 2^-13
_ROUNDING = 2.0**-24  # of float32


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a parameter, seen as a matrix, in every group's gradient."""

    rows: slice
    columns: slice
    values: Tensor  # (p, rows * columns); may be overwritten

    def add_to(self, matrix: Tensor, summed: Tensor) -> None:
        """Adds a vector (rows * columns,) to this part of the parameter's matrix."""
        part = matrix[self.rows, self.columns]
        part += summed.reshape(part.shape)


@dataclass(frozen=True, kw_only=True)
class ParameterGradient:
    """Gradients of one parameter for every group.

    Attributes:
        matrix: rows and columns that the parameter's numbers are seen as, in their order.
        squared_norm: float64 (p,), squared L2 norm of each group's gradient as it is written out, up to rounding.
        scaled: factors (p,) -> the gradients times these, one tile after the other.
    """

    matrix: tuple[int, int]
    squared_norm: Tensor
    scaled: Callable[[Tensor], Iterator[Tile]]

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Sum over groups of factor times gradient, float64 in the form of `matrix`."""
        total = torch.zeros(self.matrix, dtype=torch.float64, device=self.squared_norm.device)
        for tile in self.scaled(factors):
            tile.add_to(total, tile.values.double().sum(0))
        return total


class Scratch:
    """Memory that the blocks of a step use one after the other: fresh pages cost more than what is computed on them."""

    def __init__(self) -> None:
        self._taken: list[Tensor] = []
        self._shared: dict[str, Tensor] = {}
        self._next = 0

    def begin(self) -> None:
        """Everything that was taken is free again: a new block asks for the same, in the same order."""
        self._next = 0

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised, in the type and on the device of `like`; free again at the next `begin`."""
        numbers = math.prod(shape)
        if self._next == len(self._taken):
            self._taken.append(like.new_empty(numbers))
        if not _fits(self._taken[self._next], numbers, like):
            self._taken[self._next] = like.new_empty(numbers)
        self._next += 1
        return self._taken[self._next - 1][:numbers].view(shape)

    def borrow(self, purpose: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The same, free again as soon as it is borrowed for this purpose once more."""
        numbers = math.prod(shape)
        if purpose not in self._shared or not _fits(self._shared[purpose], numbers, like):
            self._shared[purpose] = like.new_empty(numbers)
        return self._shared[purpose][:numbers].view(shape)


def _fits(held: Tensor, numbers: int, like: Tensor) -> bool:
    return held.numel() >= numbers and held.dtype == like.dtype and held.device == like.device


@dataclass(frozen=True, kw_only=True)
class Groups:
    """A partition of rows into groups; rows of a group are contiguous.

    Attributes:
        ids: int64 (r,), 0..p-1 in ascending order.
        sizes: rows of each group, (p,).
        scratch: to compute in.
    """

    ids: Tensor
    sizes: tuple[int, ...]
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def are_rows(self) -> bool:
        """True if every group is one row."""
        return max(self.sizes, default=1) == 1

    def sum(self, per_row: Tensor, out: Tensor) -> Tensor:
        """(r, ...) -> (r, ...): the sum over the rows of group p at place p, rows added in their order."""
        return out.zero_().index_add_(0, self.ids, per_row)


def kept(per_row: Tensor, groups: Groups) -> ParameterGradient:
    """Gradients of each row (r, ...), kept as a whole."""
    flat = per_row.reshape(len(per_row), -1)
    if not groups.are_rows:
        flat = groups.sum(flat, groups.scratch.take(tuple(flat.shape), flat))

    def scaled(factors: Tensor) -> Iterator[Tile]:
        column = factors.to(flat.dtype)[:, None]
        for columns in _runs(flat.shape[1], _TILE_NUMBERS):
            part = flat[:, columns]
            values = torch.mul(part, column, out=groups.scratch.borrow("tile", tuple(part.shape), part))
            yield Tile(rows=slice(0, 1), columns=columns, values=values)

    squared = torch.stack([squared_norms(flat[:, columns]) for columns in _runs(flat.shape[1], _TILE_NUMBERS)]).sum(0)
    return ParameterGradient(matrix=(1, flat.shape[1]), squared_norm=squared, scaled=scaled)


def outer_products(x: Tensor, g: Tensor, groups: Groups) -> ParameterGradient:
    """Gradients sum over a group's rows and positions t of outer(g_t, x_t); x (r, in, t), g (r, out, t)."""
    matrix = outputs, inputs = g.shape[1], x.shape[1]
    seen = x.transpose(1, 2)
    height = min(outputs, _TILE_ROWS)
    tiles = [(rows, some) for rows in _runs(outputs, height) for some in _runs(inputs, max(1, _TILE_NUMBERS // height))]

    def formed(g: Tensor, rows: slice, columns: slice, *, keep: bool = False) -> Tensor:
        """The tile of every group's gradient, (r, rows * columns)."""
        shape = (len(x), rows.stop - rows.start, columns.stop - columns.start)
        own = groups.scratch.take(shape, x) if keep and groups.are_rows else groups.scratch.borrow("product", shape, x)
        product = torch.bmm(g[:, rows], seen[:, :, columns], out=own).flatten(1)
        if groups.are_rows:
            return product
        place = groups.scratch.take if keep else partial(groups.scratch.borrow, "tile")
        return groups.sum(product, place(tuple(product.shape), x))

    if is_kept(outputs * inputs):
        held = [formed(g, *place, keep=True) for place in tiles]
        squared = torch.stack([squared_norms(values) for values in held]).sum(0)
    elif _gram_is_cheaper(inputs, outputs, x.shape[2]):
        squared = _squared_by_gram(x, g, groups)
    else:
        squared = torch.stack([squared_norms(formed(g, *place)) for place in tiles]).sum(0)

    def scaled(factors: Tensor) -> Iterator[Tile]:
        if is_kept(outputs * inputs):
            column = factors.to(g.dtype)[:, None]
            for (rows, columns), values in zip(tiles, held, strict=True):
                times = torch.mul(values, column, out=groups.scratch.borrow("scaled", tuple(values.shape), values))
                yield Tile(rows=rows, columns=columns, values=times)
        else:
            column = factors.to(g.dtype)[:, None]
            for rows, columns in tiles:  # the very numbers that were measured: factors on g would round, or overflow
                yield Tile(rows=rows, columns=columns, values=formed(g, rows, columns).mul_(column))

    return ParameterGradient(matrix=matrix, squared_norm=squared, scaled=scaled)


def is_kept(numbers: int) -> bool:
    """True if a gradient of so many numbers is kept from the norm to the sum; it is formed again otherwise."""
    return numbers <= KEPT_NUMBERS


def _gram_is_cheaper(inputs: int, outputs: int, positions: int) -> bool:
    """True if norms are cheaper from Gram matrices, in float64, than from the gradient; by public shapes alone."""
    return 2 * positions * (inputs + outputs) <= inputs * outputs


def _runs(length: int, most: int) -> list[slice]:
    return [slice(first, min(first + most, length)) for first in range(0, length, most)]


def squared_norms(rows: Tensor) -> Tensor:
    """Squared L2 norm of each row of (p, d), float64 (p,), from short float32 sums: they round little."""
    even = rows.shape[1] // _SUMMED_NUMBERS * _SUMMED_NUMBERS
    parts = torch.linalg.vector_norm(rows[:, :even].reshape(len(rows), -1, _SUMMED_NUMBERS), dim=2)  # (p, d / numbers)
    rest = torch.linalg.vector_norm(rows[:, even:], dim=1)
    squared: Tensor = parts.double().square().sum(1) + rest.double().square()
    return squared


def _squared_by_gram(x: Tensor, g: Tensor, groups: Groups) -> Tensor:
    """Squared norm of each group's sum_t outer(g_t, x_t), float64 (r,), without forming it.

    |sum_t outer(g_t, x_t)|^2 = sum_{t,t'} <x_t, x_t'> <g_t, g_t'>, over all pairs of positions of a group's rows. The
    products of float32 numbers are exact in float64. The float32 gradient that is formed later rounds relative to
    sum_t |x_t| |g_t|, whatever cancels in it: what it can be longer is added.
    """
    a, b = x.double().transpose(1, 2), g.double().transpose(1, 2)  # (r, t, in), (r, t, out)
    rows, largest = len(x), max(groups.sizes, default=1)
    squared = a.new_zeros(rows)
    for lag in range(largest):  # rows r and r + lag of one group
        grams = [(y[: rows - lag] @ y[lag:].transpose(1, 2)) for y in (a, b)]  # (r - lag, t, t) each
        product = (grams[0] * grams[1]).sum((1, 2))
        if lag == 0:
            lengths = (grams[0].diagonal(dim1=1, dim2=2) * grams[1].diagonal(dim1=1, dim2=2)).sqrt().sum(1)  # (r,)
            squared.index_add_(0, groups.ids, product)
        else:
            together = groups.ids[: rows - lag] == groups.ids[lag:]
            squared.index_add_(0, groups.ids[: rows - lag], 2 * product.where(together, 0.0))
    reach = a.new_zeros(rows).index_add_(0, groups.ids, lengths)  # sum_t |x_t| |g_t|
    terms = torch.tensor(groups.sizes, device=x.device) * x.shape[2] + 4  # roundings of one number of the gradient
    squared[: len(terms)].clamp_(min=0).sqrt_().add_(_ROUNDING * terms * reach[: len(terms)]).square_()
    return squared
