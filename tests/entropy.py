"""A seeded twin of `SystemEntropy`: the same code on a stream that a test can repeat. It never ships."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from ghostnet.privacy import noise
from ghostnet.privacy.discrete_gaussian import discrete_gaussian_from


class SeededEntropy:
    """Draws from AES-256-CTR keyed by a seed; each draw continues the stream."""

    def __init__(self, seed: int) -> None:
        key = hashlib.sha256(f"GhostNet test entropy {seed}".encode()).digest()
        self._encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()

    def words(self, n: int) -> NDArray[np.uint64]:
        """The next n words of the stream."""
        return np.frombuffer(self._encryptor.update(bytes(8 * n)), dtype="<u8")

    def uniform(self, n: int) -> NDArray[np.float64]:
        """See `noise.Entropy.uniform`."""
        return noise.uniform_from(self.words, n)

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """See `noise.Entropy.integers`."""
        return noise.integers_from(self.words, high, n)

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        """See `noise.Entropy.discrete_gaussian`."""
        return discrete_gaussian_from(self.words, n, std)

    def gaussian(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        """See `noise.Entropy.gaussian`."""
        return noise.gaussian_from(self.words, shape, std)
