"""Rows that belong together, and a parameter's gradient for every group of them: its norm, and sums over groups.

A group is a patient or a fake; its rows are summed before the norm. Norms of gradients that are sums of outer products
come from Gram matrices or from the gradient itself, whichever is cheaper.

A gradient that is summed from rows which cancel is known up to rounding of the rows only, not of itself. Two images
whose gradients are +M and -M have norm 0, and in a sum over all rows M swallows what others add meanwhile. So either
the gradient that was measured is the one that is summed (`kept`), or its squared norm gets `rounding_reserve`, which
bounds the rows as well: a group's weighted rows then have length at most 1,000 C. A discriminator may be made to harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

GRAM_ELEMENTS = 1 << 22  # entries of Gram matrices in memory at once
_GRAM_ROUNDING = 1e-6  # of float32 dot products, relative to the product of the lengths
_UNDERFLOW = 1e-32  # of a squared length: what float32 loses of the squares of 2^19 numbers, each below 1e-38


@dataclass(frozen=True, kw_only=True)
class ParameterGradient:
    """Gradients of one parameter for every group, kept or computed again when they are summed.

    Attributes:
        squared_norm: (p,), squared L2 norm of each group's gradient; never less than the true one by more than
            rounding.
        weighted_sum: factors (p,) -> sum over groups of factor times gradient, in the parameter's shape.
    """

    squared_norm: Tensor
    weighted_sum: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which rows belong together; rows of a group follow each other.

    Attributes:
        ids: int64 (r,), 0..p-1 in ascending order.
        sizes: rows of each group.
    """

    ids: Tensor
    sizes: tuple[int, ...]

    def sum(self, per_row: Tensor) -> Tensor:
        """(r, ...) -> (p, ...), summed over the rows of each group."""
        if len(self.sizes) == len(per_row):
            return per_row
        return per_row.new_zeros(len(self.sizes), *per_row.shape[1:]).index_add_(0, self.ids, per_row)

    def spans(self) -> list[slice]:
        """Rows of each group."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def blocks(self, size: int, limit: int) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Groups of one size, at most `limit` at once: (groups (m,), what takes (r, ...) to (m, size, ...))."""
        sizes = torch.tensor(self.sizes, device=self.ids.device)
        chosen = (sizes == size).nonzero().flatten()
        for start in range(0, len(chosen), limit):
            part = chosen[start : start + limit]
            first, last = int(part[0]), int(part[-1])
            if last - first + 1 == len(part):  # neighbours: a view will do
                begin = sum(self.sizes[:first])
                span = slice(begin, begin + size * len(part))
                yield part, lambda t, span=span: t[span].unflatten(0, (-1, size))  # type: ignore[misc]
            else:
                rows = (sizes.cumsum(0) - sizes)[part][:, None] + torch.arange(size, device=self.ids.device)
                yield part, lambda t, rows=rows: t[rows]  # type: ignore[misc]


def kept(gradients: Tensor) -> ParameterGradient:
    """Gradients (p, ...) small enough to keep."""
    flat = gradients.flatten(1)
    return ParameterGradient(
        squared_norm=flat.square().sum(1),
        weighted_sum=lambda factors: (factors @ flat).reshape(gradients.shape[1:]),
    )


def outer_products(x: Tensor, g: Tensor, groups: Groups) -> ParameterGradient:
    """Gradients sum over a group's rows and positions t of outer(g_t, x_t); x (r, t, in), g (r, t, out)."""
    squared = x.new_empty(len(groups.sizes))
    measured: list[tuple[Tensor, Tensor]] = []  # (groups (m,), gradients (m, out, in)), smaller than their x and g
    for size in set(groups.sizes):
        positions = size * x.shape[1]
        limit = max(1, GRAM_ELEMENTS // min(positions**2, x.shape[2] * g.shape[2]))
        for chosen, take in groups.blocks(size, limit):
            a, b = (take(t).flatten(1, 2) for t in (x, g))  # (m, size * t, in), (m, size * t, out)
            if positions * (a.shape[2] + b.shape[2]) <= a.shape[2] * b.shape[2]:
                squared[chosen] = paired(a @ a.transpose(1, 2), b @ b.transpose(1, 2))
            else:
                gradients = b.transpose(1, 2) @ a
                measured.append((chosen, gradients))
                squared[chosen] = gradients.square().sum((1, 2))
                if positions > 1:  # two batches of other sizes round what cancels in other ways
                    squared[chosen] += rounding_reserve(a.square().sum(2), b.square().sum(2))

    def weighted_sum(factors: Tensor) -> Tensor:
        total = x.new_zeros(g.shape[2], x.shape[2])
        by_rows = factors.clone()
        for chosen, gradients in measured:
            total += torch.tensordot(factors[chosen], gradients, 1)
            by_rows[chosen] = 0.0
        if sum(len(chosen) for chosen, _ in measured) < len(factors):
            total += (g * by_rows[groups.ids, None, None]).flatten(0, 1).T @ x.flatten(0, 1)
        return total

    return ParameterGradient(squared_norm=squared, weighted_sum=weighted_sum)


def rounding_reserve(squared_inputs: Tensor, squared_outputs: Tensor) -> Tensor:
    """What the squared norm of sum_t outer(g_t, x_t) is raised by, from |x_t|^2 and |g_t|^2, both (m, t) -> (m,).

    Rounding is relative to sum_t |x_t| |g_t|, whatever cancels in the sum.
    """
    x, g = squared_inputs.clamp(min=0).sqrt(), squared_outputs.clamp(min=0).sqrt()
    lost = math.sqrt(_UNDERFLOW) * (x + g).sum(1)  # tiny x beside huge g: the squares of x are 0, the gradient is not
    return _GRAM_ROUNDING * (x * g).sum(1).square() + lost.square()


def paired(gram_inputs: Tensor, gram_outputs: Tensor) -> Tensor:
    """Squared norm of sum_t outer(g_t, x_t) from the Gram matrices of x and g (m, t, t), rounding bound included.

    |sum_t outer(g_t, x_t)|^2 = sum_{t,t'} <x_t, x_t'> <g_t, g_t'>. Terms of both signs cancel, so rounding is relative
    to (sum_t |x_t| |g_t|)^2 and not to the result.
    """
    exact = (gram_inputs * gram_outputs).sum((1, 2))
    return exact.clamp(min=0) + rounding_reserve(
        gram_inputs.diagonal(dim1=1, dim2=2), gram_outputs.diagonal(dim1=1, dim2=2)
    )
