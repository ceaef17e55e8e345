"""Randomness that privacy rests on: coins, choices and Gaussian noise from the operating system's entropy.

Floating-point Gaussian noise leaks: the set of floats that `value + noise` can reach depends on `value` (Mironov 2012;
Jin et al., arXiv 2112.05307; Haney et al., arXiv 2207.13793). Here each patient's part is rounded toward zero to a
public power-of-two grid, which makes no vector longer; sums of such parts are exact, whatever their order; and the
noise is an integer number of grid steps, so every integer is reachable from every value and all that follows, the cast
to float32 included, is post-processing.

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

RESERVE = 2.0**-15
"""`add_gaussian` draws std * (1 + RESERVE): it pays for the rounding of norms, which is less (mechanism.py)."""

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
        """Int64 (n,), discrete Gaussian with `std` in [2^19, 2^20) grid steps."""
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
    """Adds discrete Gaussian noise to a sum of whole grid steps, and returns float32.

    Args:
        value: int64 grid steps, or float whole multiples of `grid_step(std)`: a sum of parts that were each rounded by
            `to_grid`. Beyond 2^62 steps it is clamped, which moves no two values apart.
        std: PUBLIC standard deviation, in the value's unit.
        entropy: where the noise comes from.

    Returns:
        Float32 tensor of the value's shape, on its device.

    Raises:
        PlanError: std is not a finite number in [1e-30, 1e30].
        ValueError: the value has a NaN or an infinity, or is no multiple of the step: a sum that is rounded only now
            would move by more than the part that was added.

    Guarantee:
        The Gaussian mechanism for L2 sensitivity D and this std, whatever unit D is measured in.
        Assumes: neighbouring values are at most D (1 + RESERVE) apart, std is public.
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
    steps = value.detach().cpu() if value.dtype == torch.int64 else _whole_steps(value, std)
    return steps + torch.from_numpy(entropy.discrete_gaussian(steps.numel(), drawn_std / step)).reshape(steps.shape)


def grid_step(std: float) -> float:
    """The step of the grid that noise of this standard deviation is drawn on: a power of two, 2^-20 to 2^-19 of it."""
    return _drawn(std)[1]


def from_grid(steps: torch.Tensor, *, std: float) -> torch.Tensor:
    """Grid steps (int64) in the value's unit, float64."""
    return steps.double() * grid_step(std)


def to_grid(value: torch.Tensor, *, std: float) -> torch.Tensor:
    """Rounds one patient's part, or many patients' parts, toward zero to whole steps of the noise's grid.

    No part gets longer by it. Integer sums of such rows are exact and do not depend on their order; where they wrap at
    2^64 they wrap after the fact, which is post-processing.

    Args:
        value: float tensor of any shape, finite.
        std: PUBLIC standard deviation that the noise will have.

    Returns:
        Int64 tensor on the CPU, each less than a step (2^-19 std) nearer to zero than the value.

    Raises:
        PlanError: std is not a finite number in [1e-30, 1e30].
        ValueError: the value has a NaN or an infinity.
    """
    return _in_steps(value, std).clamp_(-(2.0**62), 2.0**62).long()  # towards zero


def _in_steps(value: torch.Tensor, std: float) -> torch.Tensor:
    """The value over the step, float64 and exact: the step is a power of two."""
    scaled = value.detach().cpu().double() * (1 / grid_step(std))
    ends = scaled.aminmax() if scaled.numel() else (0.0, 0.0)  # NaN passes through, at a tenth of isfinite's time
    if not all(math.isfinite(end) for end in ends):
        raise ValueError("the value to be released is not finite everywhere; zero such rows before they are summed")
    return scaled


def _whole_steps(value: torch.Tensor, std: float) -> torch.Tensor:
    scaled = _in_steps(value, std)
    if not torch.equal(scaled, scaled.trunc()):
        raise ValueError(
            f"the value is no whole multiple of the noise's grid step {grid_step(std):g}; round each patient's part to "
            "it (`to_grid`, or `grid_step` of `clipped_sum`) before the parts are summed"
        )
    return scaled.clamp_(-(2.0**62), 2.0**62).long()


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
    """The power of two of which `std` is 2^19 to 2^20."""
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
