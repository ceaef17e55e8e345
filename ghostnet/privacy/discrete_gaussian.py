"""Integers with the law of a discrete Gaussian, from uniform words: exact to far below what accounting rounds up by.

The law of the noise is the discrete Gaussian (Canonne, Kamath, Steinke, arXiv 2004.00010) whose std s lies in
[2^19, 2^20) steps. It is drawn as 512 X_1 + X_0 of two small discrete Gaussians with std in [1024, 2048)
(Micciancio and Walter, ePrint 2017/259), each from an alias table of 2^16 columns held in 128-bit integers. How far
that is from the continuous Gaussian that `accounting` assumes, for one coordinate:

- table: columns hold multiples of 2^-128, the remainder goes to 0, tails are cut at 16 std: total variation < 2^-112;
- sum: the convolution is within a factor 1 +- 4 exp(-2 pi^2 (1024/512)^2) = 1 +- 2^-111 of the discrete Gaussian (its
  smoothing parameter is met twice over);
- discrete against rounded continuous: a Gaussian of variance s^2 - 1/12 rounded to integers has density phi_s times
  1 - (t^4 - 6 t^2 + 3) / (2880 s^4) + O(s^-6) at t std from 0 (Edgeworth, with the fourth cumulant -1/120 of what
  rounding adds), so the log-ratio is below 2^-71 up to t = 16, and below 2^-82 up to t = 3. A rounded continuous
  Gaussian added to an integer IS the Gaussian mechanism, post-processed; that its std is smaller by a factor
  1 - 2^-42 is paid for by the reserve (noise.py).

Over 2^44 coordinates (16 million parameters, a million steps) that is < 2^-38 in epsilon and < 2^-60 in delta: below
what `accounting` rounds up by. The remaining assumption is that AES-256 in counter mode is pseudo-random.

Every draw does the same work whatever is drawn: 32 bits, one table column, one comparison. (A tie, one draw in 2^16,
costs 96 bits more, so that a coin has the table's whole 112 bits.) The value never steers a branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Words = Callable[[int], NDArray[np.uint64]]
"""Draws n independent uniform 64-bit words."""

STEPS_LOG2 = 20  # a std is 2^19 to 2^20 grid steps
_LEVELS, _RADIX_LOG2 = 2, 9
_COLUMNS_LOG2 = 16
_COLUMNS = 1 << _COLUMNS_LOG2
_COIN_LOG2 = 32 - _COLUMNS_LOG2  # bits of a draw that are left beside the column
_TIE_LOG2 = 96  # further bits of the coin, drawn where the first ones leave it open
_CHUNK = 1 << 14  # values drawn at once: table and chunk stay in the processor's cache


def discrete_gaussian_from(words: Words, n: int, std: float) -> NDArray[np.int64]:
    """Int64 (n,), P(x) proportional to exp(-x^2 / (2 std^2)).

    Args:
        words: the stream to draw from; a word a value.
        n: how many.
        std: in [2^19, 2^20).

    Raises:
        ValueError: std is outside that range.
    """
    if not 2.0 ** (STEPS_LOG2 - 1) <= std < 2.0**STEPS_LOG2:
        raise ValueError(f"std = {std:g} grid steps is not in [2^19, 2^20); choose the grid by the std")
    table = _alias_table(std / math.sqrt(sum(4 ** (_RADIX_LOG2 * level) for level in range(_LEVELS))))
    drawn = np.empty(n, dtype=np.int64)
    centre = _COLUMNS // 2 * sum(1 << (_RADIX_LOG2 * level) for level in range(_LEVELS))  # column c is c - columns / 2
    for start in range(0, n, _CHUNK):
        part = drawn[start : start + _CHUNK]
        high, low = _draw_columns(words, table, _LEVELS * len(part)).reshape(_LEVELS, -1)
        part[:] = (high << _RADIX_LOG2) + low
        part -= centre
    return drawn


@dataclass(frozen=True, kw_only=True)
class _AliasTable:
    """Walker's alias method: column c is kept with probability cut / 2^112, else replaced by its alias.

    `cut` is split over three arrays. A column that is always kept is its own alias.
    """

    packed: NDArray[np.uint32]  # (columns,), cut's highest 16 bits, then 16 bits of alias XOR column
    cut_middle: NDArray[np.uint64]  # (columns,), the next 64 bits
    cut_low: NDArray[np.uint64]  # (columns,), the last 32


def _draw_columns(words: Words, table: _AliasTable, n: int) -> NDArray[np.int32]:
    """Int32 (n,), n even: columns by the table's law, from n / 2 words and two more for each tie."""
    halves = words(n // 2).view("<u4")
    columns = halves >> np.uint32(_COIN_LOG2)
    found = table.packed.take(columns.astype(np.intp))
    # Distance of the coin below the cut; where it is not above 0 the column is replaced, without a branch.
    below = (found >> np.uint32(16)).view(np.int32)
    halves = halves & np.uint32((1 << _COIN_LOG2) - 1)
    below -= halves.view(np.int32)
    ties = np.flatnonzero(below == 0)
    below -= 1
    below >>= 31  # all ones where the alias is taken
    found &= np.uint32(0xFFFF)
    found &= below.view(np.uint32)
    found ^= columns
    if ties.size:
        middle, low = words(2 * ties.size).reshape(2, -1)
        tied = columns[ties]
        at = table.cut_middle[tied]
        keep = (middle < at) | ((middle == at) & (low >> np.uint64(32) < table.cut_low[tied]))
        found[ties[keep]] = tied[keep]
    return found.view(np.int32)


@lru_cache(maxsize=16)  # a run has a handful of standard deviations; a table takes 50 to 100 ms and 1.3 MiB
def _alias_table(std: float) -> _AliasTable:
    """Vose's construction in exact integers: every column holds 2^112 units, all columns together 2^128."""
    column_units = 1 << (_COIN_LOG2 + _TIE_LOG2)
    left = _probabilities(std, _COLUMNS * column_units)
    cut, alias = [column_units] * _COLUMNS, list(range(_COLUMNS))
    small = [c for c in range(_COLUMNS) if left[c] < column_units]
    large = [c for c in range(_COLUMNS) if left[c] >= column_units]
    while small:
        low, high = small.pop(), large[-1]
        cut[low], alias[low] = left[low], high
        left[high] -= column_units - left[low]
        if left[high] < column_units:
            small.append(large.pop())
    packed = [
        0 if kept == column_units else (kept >> _TIE_LOG2 << 16) | (column ^ other)
        for column, (kept, other) in enumerate(zip(cut, alias, strict=True))
    ]
    return _AliasTable(
        packed=np.array(packed, dtype=np.uint32),
        cut_middle=np.array([(kept >> 32) & ((1 << 64) - 1) for kept in cut], dtype=np.uint64),
        cut_low=np.array([kept & ((1 << 32) - 1) for kept in cut], dtype=np.uint64),
    )


def _probabilities(std: float, total: int) -> list[int]:
    """Whole units, `total` in all, of the discrete Gaussian on -columns/2 .. columns/2 - 1; 0 takes the remainder."""
    bits = 320
    with localcontext() as context:
        context.prec = 120
        ratio = int((-1 / (2 * Decimal(std) ** 2)).exp() * 2**bits)  # exp(-1 / 2 std^2), fixed point
    half = _COLUMNS // 2
    square = ratio * ratio >> bits
    weights = [1 << bits]
    for _ in range(half):  # w(x+1) = w(x) * exp(-(2x+1) / 2 std^2)
        weights.append(weights[-1] * ratio >> bits)
        ratio = ratio * square >> bits
    mass = weights[0] + 2 * sum(weights[1:half]) + weights[half]
    units = [weights[abs(c - half)] * total // mass for c in range(_COLUMNS)]
    units[half] += total - sum(units)
    return units
