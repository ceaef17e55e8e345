"""Randomness that privacy rests on: coins, choices and Gaussian noise from the operating system's entropy.

Floating-point Gaussian noise leaks: the set of floats that `value + noise` can reach depends on `value` (Mironov 2012;
Jin et al., arXiv 2112.05307; Haney et al., arXiv 2207.13793). Here the value is first rounded to a public power-of-two
grid and the noise is an integer number of grid steps, so every integer is reachable from every value and all that
follows, the cast to float32 included, is post-processing.

The law of the noise is the discrete Gaussian (Canonne, Kamath, Steinke, arXiv 2004.00010) whose std lies in
[2^36, 2^37) steps. It is drawn as sum_l 128^l X_l of five small discrete Gaussians with std in [256, 512) (Micciancio
and Walter, ePrint 2017/259), each from an alias table of 2^14 columns held in 128-bit integers. How far that is from
the continuous Gaussian that `accounting` assumes, for one coordinate:

- table: columns hold multiples of 2^-128, the remainder goes to 0, tails are cut at 16 std: total variation < 2^-113;
- sum: each of the four convolutions is within a factor 1 +- 4 exp(-2 pi^2 (256/128)^2) = 1 +- 2^-111 of the discrete
  Gaussian (its smoothing parameter is met twice over);
- discrete against rounded continuous: log-ratio (1 + t^2) / (24 std^2) <= (1 + t^2) 2^-76 at t std from 0. A rounded
  continuous Gaussian added to an integer IS the Gaussian mechanism, post-processed.

Over 2^44 coordinates (16 million parameters, a million steps) that is < 2^-30 in epsilon and < 2^-60 in delta: below
what `accounting` rounds up by. The remaining assumption is that AES-256 in counter mode is pseudo-random.

Every draw does the same work whatever is drawn: one word, one table column, one comparison. (A tie, one word in 2^50,
costs a second word.) The value never steers a branch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from ghostnet.errors import PlanError

Words = Callable[[int], NDArray[np.uint64]]
"""Draws n independent uniform 64-bit words."""

RESERVE = 2.0**-14
"""`add_gaussian` draws std * (1 + RESERVE): half pays for rounding to the grid, half for the caller's float sums."""

GRID_LIMIT = 2.0**21
"""Largest noise_multiplier * sqrt(coordinates) for which half of RESERVE pays for the rounding; see `check_grid`."""

_STEPS_LOG2 = 37  # a std is 2^36 to 2^37 grid steps
_LEVELS, _RADIX = 5, 128
_COLUMNS_LOG2 = 14
_COLUMNS = 1 << _COLUMNS_LOG2
_COIN_LOG2 = 64 - _COLUMNS_LOG2  # bits of a word that are left beside the column
_CHUNK = 1 << 15  # words drawn at once: tables and chunk stay in the processor's cache


class Entropy(Protocol):
    """A source of randomness. `SystemEntropy` is the only one that a program may use; tests bring a seeded twin."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Float64 (n,) in [0, 1): multiples of 2^-53."""
        ...

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """Int64 (n,) in [0, high), each equally likely."""
        ...

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        """Int64 (n,), discrete Gaussian with `std` in [2^36, 2^37) grid steps."""
        ...

    def gaussian(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        """Float32 tensor of `shape`: Gaussian noise of standard deviation `std`."""
        ...


class SystemEntropy:
    """The operating system's entropy, stretched by AES-256 in counter mode.

    Each call takes a fresh 256-bit key and starting counter from `os.urandom` and forgets them when it returns. So
    there is no seed to set, nothing to save or restore, and no state that a forked process, a thread or a copy could
    share: two draws are never the same stream.
    """

    __slots__ = ()

    def uniform(self, n: int) -> NDArray[np.float64]:
        """See `Entropy.uniform`. `uniform(n) < q` is true with probability ceil(q 2^53) / 2^53."""
        return uniform_from(_fresh_stream(), n)

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """See `Entropy.integers`."""
        return integers_from(_fresh_stream(), high, n)

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        """See `Entropy.discrete_gaussian`."""
        return discrete_gaussian_from(_fresh_stream(), n, std)

    def gaussian(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        """See `Entropy.gaussian`. Alone it protects nothing: use `add_gaussian` on a private value."""
        return gaussian_from(_fresh_stream(), shape, std)


def add_gaussian(value: torch.Tensor, *, std: float, entropy: Entropy) -> torch.Tensor:
    """Rounds a value to the noise's grid, adds discrete Gaussian noise there, and returns float32.

    Neighbouring values at L2 distance D, with d coordinates in all, are at most D + step * sqrt(d) apart once rounded,
    where step <= 2^-36 std. With std = noise_multiplier * D that is a factor 1 + noise_multiplier * sqrt(d) * 2^-36;
    the noise drawn has std * (1 + RESERVE), which covers it as long as `check_grid` passes. (The other half of RESERVE,
    D * 2^-15, is there for rounding in the caller's clip and sum.)

    Args:
        value: float tensor of any shape, finite; or int64 from `to_grid` at the same `std`, for sums that must be
            exact. Beyond 2^62 steps (over 2^25 std) it is clamped, which moves no two values apart.
        std: PUBLIC standard deviation, in the value's unit.
        entropy: where the noise comes from.

    Returns:
        Float32 tensor of the value's shape, on its device.

    Raises:
        PlanError: std is not a finite number in [1e-30, 1e30].
        ValueError: the value has a NaN or an infinity; zero such rows before the sum.

    Guarantee:
        The Gaussian mechanism for L2 sensitivity D and this std, whatever unit D is measured in.
        Assumes: D bounds the caller's value, `check_grid(std / D, d)` passes, std is public.
        Not covered: how the value was clipped and sampled (mechanism.py, releases.py); reading the process's memory.
    """
    drawn_std, step = _drawn(std)
    steps = value.detach().cpu() if value.dtype == torch.int64 else to_grid(value, std=std)
    noise = torch.from_numpy(entropy.discrete_gaussian(steps.numel(), drawn_std / step)).reshape(steps.shape)
    return ((steps + noise).double() * step).float().to(value.device)


def to_grid(value: torch.Tensor, *, std: float) -> torch.Tensor:
    """Rounds to whole steps of the grid that `add_gaussian` uses at this std.

    Integer sums of such rows are exact and do not depend on their order; where they wrap at 2^64 they wrap after the
    fact, which is post-processing.

    Args:
        value: float tensor of any shape, finite.
        std: PUBLIC standard deviation that the noise will have.

    Returns:
        Int64 tensor on the CPU, each within half a step (2^-37 std) of the value.

    Raises:
        PlanError: std is not a finite number in [1e-30, 1e30].
        ValueError: the value has a NaN or an infinity.
    """
    _, step = _drawn(std)
    scaled = value.detach().cpu().double() / step  # exact: step is a power of two
    if not bool(torch.isfinite(scaled).all()):
        raise ValueError("the value to be released is not finite everywhere; zero such rows before they are summed")
    return scaled.round_().clamp_(-(2.0**62), 2.0**62).long()


def check_grid(noise_multiplier: float, coordinates: int) -> None:
    """Refuses a release so wide that rounding to the grid would use up the reserve in the noise.

    Args:
        noise_multiplier: standard deviation over L2 sensitivity, > 0.
        coordinates: numbers released together at this standard deviation, over all tensors.

    Raises:
        PlanError: noise_multiplier * sqrt(coordinates) > GRID_LIMIT.
    """
    if not noise_multiplier * math.sqrt(coordinates) <= GRID_LIMIT:
        raise PlanError(
            f"noise_multiplier = {noise_multiplier:g} on {coordinates} numbers is finer than the noise's grid: "
            f"noise_multiplier * sqrt(numbers) must be <= {GRID_LIMIT:g}; lower the noise multiplier or the width"
        )


def uniform_from(words: Words, n: int) -> NDArray[np.float64]:
    """Float64 (n,) in [0, 1) from the top 53 bits of n words."""
    return (words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers_from(words: Words, high: int, n: int) -> NDArray[np.int64]:
    """Int64 (n,) in [0, high), unbiased: words of the incomplete last block of `high` are drawn again.

    Raises:
        ValueError: high is not in 1..2^63-1.
    """
    if not 1 <= high < 2**63:
        raise ValueError(f"high = {high} is not in 1..2^63-1; there is nothing to choose from")
    drawn = words(n).copy()
    last = np.uint64((2**64 // high) * high - 1)  # largest word of a complete block
    again = np.flatnonzero(drawn > last)
    while again.size:
        drawn[again] = words(again.size)
        again = again[drawn[again] > last]
    return (drawn % np.uint64(high)).astype(np.int64)


def gaussian_from(words: Words, shape: tuple[int, ...], std: float) -> torch.Tensor:
    """Float32 tensor of `shape`, standard deviation `std`, from discrete Gaussian steps.

    Raises:
        PlanError: std is not a finite number in [1e-30, 1e30].
    """
    step = _grid_step(_checked(std))
    steps = torch.from_numpy(discrete_gaussian_from(words, math.prod(shape), std / step))
    return (steps.double() * step).float().reshape(shape)


def discrete_gaussian_from(words: Words, n: int, std: float) -> NDArray[np.int64]:
    """Int64 (n,), P(x) proportional to exp(-x^2 / (2 std^2)).

    Args:
        words: the stream to draw from; five words a value.
        n: how many.
        std: in [2^36, 2^37).

    Raises:
        ValueError: std is outside that range.
    """
    if not 2.0 ** (_STEPS_LOG2 - 1) <= std < 2.0**_STEPS_LOG2:
        raise ValueError(f"std = {std:g} grid steps is not in [2^36, 2^37); choose the grid by the std")
    table = _alias_table(std / math.sqrt(sum(_RADIX ** (2 * level) for level in range(_LEVELS))))
    drawn = np.zeros(n, dtype=np.int64)
    for start in range(0, n, _CHUNK):
        part = drawn[start : start + _CHUNK]
        for _ in range(_LEVELS):  # x = 128 x + X_l
            part *= _RADIX
            part += _draw_columns(words, table, len(part))
    drawn -= _COLUMNS // 2 * sum(_RADIX**level for level in range(_LEVELS))  # column c stands for c - columns / 2
    return drawn


@dataclass(frozen=True, kw_only=True)
class _AliasTable:
    """Walker's alias method: column c is kept with probability cut / 2^(50 + 64), else replaced by alias[c]."""

    cut_high: NDArray[np.uint64]  # (columns,), in 0..2^50
    cut_low: NDArray[np.uint64]  # (columns,), the next 64 bits
    alias: NDArray[np.int64]  # (columns,)


def _draw_columns(words: Words, table: _AliasTable, n: int) -> NDArray[np.int64]:
    word = words(n)
    column = (word >> np.uint64(_COIN_LOG2)).view(np.int64)
    coin = word & np.uint64((1 << _COIN_LOG2) - 1)
    cut = table.cut_high.take(column)
    keep = coin < cut
    ties = np.flatnonzero(coin == cut)
    if ties.size:
        keep[ties] = words(ties.size) < table.cut_low[column[ties]]
    return np.where(keep, column, table.alias.take(column))


@lru_cache(maxsize=32)  # a run has a handful of standard deviations; a table takes 10 to 20 ms and 400 KiB
def _alias_table(std: float) -> _AliasTable:
    """Vose's construction in exact integers: every column holds 2^114 units, all columns together 2^128."""
    column_units = 1 << (_COIN_LOG2 + 64)
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
    mask = (1 << 64) - 1
    return _AliasTable(
        cut_high=np.array([c >> 64 for c in cut], dtype=np.uint64),
        cut_low=np.array([c & mask for c in cut], dtype=np.uint64),
        alias=np.array(alias, dtype=np.int64),
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


def _drawn(std: float) -> tuple[float, float]:
    """The std that is drawn for a promised one, and its grid step."""
    drawn_std = _checked(std) * (1 + RESERVE)
    return drawn_std, _grid_step(drawn_std)


def _grid_step(std: float) -> float:
    """The power of two of which `std` is 2^36 to 2^37."""
    return math.ldexp(1.0, math.frexp(std)[1] - _STEPS_LOG2)


def _checked(std: float) -> float:
    if isinstance(std, bool) or not (math.isfinite(std) and 1e-30 <= std <= 1e30):
        raise PlanError(
            f"the noise's standard deviation = {std!r} is not a finite number > 0 (1e-30 to 1e30); "
            "it is noise_multiplier times clip_norm: set both in [privacy] of plan.toml"
        )
    return float(std)


def _fresh_stream() -> Words:
    encryptor = Cipher(AES(os.urandom(32)), CTR(os.urandom(16))).encryptor()
    return lambda n: np.frombuffer(encryptor.update(bytes(8 * n)), dtype="<u8")
