"""Randomness that privacy rests on: coins, choices and Gaussian noise from the operating system's entropy.

Floating-point Gaussian noise leaks: the set of floats that `value + noise` can reach depends on `value` (Mironov 2012;
Jin et al., arXiv 2112.05307; Haney et al., arXiv 2207.13793). Here the value is first rounded to a public power-of-two
grid and the noise is an integer number of grid steps, so every integer is reachable from every value and all that
follows, the cast to float32 included, is post-processing.

The law of the noise, and how far it is from the Gaussian that `accounting` assumes: discrete_gaussian.py.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from ghostnet.errors import PlanError
from ghostnet.privacy.discrete_gaussian import STEPS_LOG2, Words, discrete_gaussian_from

RESERVE = 2.0**-14
"""`add_gaussian` draws std * (1 + RESERVE): half pays for rounding to the grid, half for the caller's float sums."""

GRID_LIMIT = 2.0**22
"""Largest noise_multiplier * sqrt(coordinates) for which half of RESERVE pays for the rounding; see `check_grid`."""

_RELEASE_CHUNK = 1 << 17  # values rounded, noised and scaled back at once: they stay in the processor's cache


class Entropy(Protocol):
    """A source of randomness. `SystemEntropy` is the only one that a program may use; tests bring a seeded twin."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Float64 (n,) in [0, 1): multiples of 2^-53."""
        ...

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """Int64 (n,) in [0, high), each equally likely."""
        ...

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        """Int64 (n,), discrete Gaussian with `std` in [2^37, 2^38) grid steps."""
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
    where step <= 2^-37 std. With std = noise_multiplier * D that is a factor 1 + noise_multiplier * sqrt(d) * 2^-37;
    the noise drawn has std * (1 + RESERVE), which covers it as long as `check_grid` passes. (The other half of RESERVE,
    D * 2^-15, is there for rounding in the caller's clip and sum.)

    Args:
        value: float tensor of any shape, finite; or int64 from `to_grid` at the same `std`, for sums that must be
            exact. Beyond 2^62 steps (over 2^24 std) it is clamped, which moves no two values apart.
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
    flat = value.detach().flatten().cpu()
    released = torch.empty(len(flat), dtype=torch.float32)
    for start in range(0, len(flat), _RELEASE_CHUNK):
        part = slice(start, start + _RELEASE_CHUNK)
        released[part] = from_grid(add_gaussian_steps(flat[part], std=std, entropy=entropy), std=std)
    return released.reshape(value.shape).to(value.device)


def add_gaussian_steps(value: torch.Tensor, *, std: float, entropy: Entropy) -> torch.Tensor:
    """`add_gaussian`, left in whole grid steps: what several parties add up before anyone sees it.

    Returns:
        Int64 tensor of the value's shape, on the CPU; `from_grid` gives it its unit back.
    """
    drawn_std, step = _drawn(std)
    steps = value.detach().cpu() if value.dtype == torch.int64 else to_grid(value, std=std)
    return steps + torch.from_numpy(entropy.discrete_gaussian(steps.numel(), drawn_std / step)).reshape(steps.shape)


def from_grid(steps: torch.Tensor, *, std: float) -> torch.Tensor:
    """Grid steps (int64) in the value's unit, float64; the inverse of `to_grid`."""
    return steps.double() * _drawn(std)[1]


def to_grid(value: torch.Tensor, *, std: float) -> torch.Tensor:
    """Rounds to whole steps of the grid that `add_gaussian` uses at this std.

    Integer sums of such rows are exact and do not depend on their order; where they wrap at 2^64 they wrap after the
    fact, which is post-processing.

    Args:
        value: float tensor of any shape, finite.
        std: PUBLIC standard deviation that the noise will have.

    Returns:
        Int64 tensor on the CPU, each within half a step (2^-38 std) of the value.

    Raises:
        PlanError: std is not a finite number in [1e-30, 1e30].
        ValueError: the value has a NaN or an infinity.
    """
    _, step = _drawn(std)
    scaled = value.detach().cpu().double() * (1 / step)  # exact: step is a power of two
    ends = scaled.aminmax() if scaled.numel() else (0.0, 0.0)  # NaN passes through, at a tenth of isfinite's time
    if not all(math.isfinite(end) for end in ends):
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


def _drawn(std: float) -> tuple[float, float]:
    """The std that is drawn for a promised one, and its grid step."""
    drawn_std = _checked(std) * (1 + RESERVE)
    return drawn_std, _grid_step(drawn_std)


def _grid_step(std: float) -> float:
    """The power of two of which `std` is 2^37 to 2^38."""
    return math.ldexp(1.0, math.frexp(std)[1] - STEPS_LOG2)


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
