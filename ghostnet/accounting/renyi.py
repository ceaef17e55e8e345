"""Renyi differential privacy of the Poisson-sampled Gaussian mechanism, in numpy and scipy alone.

Source: Mironov, Talwar, Zhang, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", arXiv 1908.10530,
section 3.3; to epsilon by Balle et al., arXiv 1905.09982, theorem 21. Opacus computes the same series term by term and
the tests hold this against it; it is not called here, because whoever verifies a sampler trains nothing. The Renyi
accountant of dp-accounting gives up on orders near 1, whose series converges slowly, and with them on large epsilons.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TERMS = 1024  # of the series; doubled for the orders that need more
_MAX_TERMS = 1 << 16
_NEGLIGIBLE = -30.0  # log of a term next to which the rest is nothing: they alternate in sign and fall


def divergences(rate: float, sigma: float, orders: Floats) -> Floats:
    """Renyi divergence of one step, in either direction, for one unit added or removed.

    Args:
        rate: Poisson sampling rate, in (0, 1].
        sigma: noise over norm bound, > 0.
        orders: (k,), each > 1.

    Returns:
        (k,), >= 0; inf where it is too large for a float.
    """
    with np.errstate(over="ignore", divide="ignore"):
        if rate == 1:
            return np.asarray(orders / 2 / np.float64(sigma) / np.float64(sigma))
        moments = _log_moments(rate, sigma, orders)
    return np.where(np.isnan(moments), np.inf, np.maximum(moments, 0.0)) / (orders - 1)


def epsilon_of(total: Floats, delta: float, orders: Floats) -> float:
    """Epsilon at delta of a mechanism whose Renyi divergence at `orders` is `total`; the best order's.

    Args:
        total: (k,), summed over the steps.
        delta: in (0, 1).
        orders: (k,), each > 1.
    """
    epsilons = total - (math.log(delta) + np.log(orders)) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(epsilons.min()))


def _log_moments(rate: float, sigma: float, orders: Floats) -> Floats:
    """Logarithm of E[(sampled / unsampled)^order] over the unsampled Gaussian; nan where no float holds it."""
    terms, moments = _TERMS, np.empty(len(orders))
    left = np.arange(len(orders))
    while left.size:
        moments[left], last = _series(rate, sigma, orders[left], terms)
        left = left[last > _NEGLIGIBLE] if terms < _MAX_TERMS else left[:0]
        terms *= 2
    return moments


def _series(rate: float, sigma: float, orders: Floats, terms: int) -> tuple[Floats, Floats]:
    """The first terms of the two binomial series (below and above where the densities cross), and the last one's log.

    Below: sum over i of binom(order, i) q^i (1-q)^(order-i) exp((i^2-i) / 2 sigma^2) Phi((crossing-i) / sigma); above,
    the same with order-i in the place of i.
    """
    from scipy.special import gammaln, gammasgn, log_ndtr, logsumexp  # half a second to import

    crossing = sigma * sigma * (math.log1p(-rate) - math.log(rate)) + 0.5
    i = np.arange(terms, dtype=np.float64)  # (terms,)
    j = orders[:, None] - i  # (k, terms)
    log_binomial = gammaln(orders + 1)[:, None] - gammaln(i + 1) - gammaln(j + 1)
    none = np.isposinf(gammaln(j + 1))  # at a whole order the binomial is 0 from j = -1 on, and has no sign
    sign = np.where(none, 1.0, gammasgn(j + 1))
    with np.errstate(invalid="ignore"):  # inf - inf without noise to speak of: nan, which the caller takes as inf
        below = _lobe(i, rate, sigma) + j * math.log1p(-rate) + log_ndtr((crossing - i) / sigma)
        above = _lobe(j, rate, sigma) + i * math.log1p(-rate) + log_ndtr((j - crossing) / sigma)
        both = np.stack([below, above]) + np.where(none, -np.inf, log_binomial)
        total = logsumexp(both, b=np.stack([sign, sign]), axis=(0, 2))
    return np.asarray(total), np.asarray(both[:, :, -1].max(axis=0))


def _lobe(power: Floats, rate: float, sigma: float) -> Floats:
    return power * math.log(rate) + (power * power - power) / (2 * sigma * sigma)
