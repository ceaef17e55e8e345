"""Lower bounds on epsilon from one run with canaries: what an attacker's guesses prove about a mechanism.

m canaries are put in or left out by independent fair coins. From the outputs alone each gets a score (large: "in"); the
auditor guesses on the most extreme ones and abstains on the rest. More right guesses than a claim allows refute it.

- One run, any (epsilon, delta) mechanism: Steinke, Nasr, Jagielski 2023 (arXiv:2305.08846).
- One run, a whole trade-off curve: Mahloujifar, Melis, Chaudhuri 2024 (arXiv:2410.22235). With the claimed curve it
  tests the claim directly; with the Gaussian family it gives a number, valid for mechanisms of that family.
- Independent canaries: Clopper-Pearson intervals on both error rates; and the Gaussian family on the same intervals
  (Nasr et al. 2023, arXiv:2302.07956). Canary scores are independent where each has a coordinate of its own.

Every bound holds by itself with probability 1 - significance. Which guesses are looked at is fixed beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, betaincinv, expit, log_ndtr, ndtr, ndtri

GUESSED_SHARES = (0.05, 0.2)
"""Shares of the canaries that are guessed on, half "in", half "out"; the significance is split over them."""

RANKS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98)
"""Where error rates are taken: at these quantiles of the first quarter's scores, on the other canaries."""

_EPSILON_MAX = 60.0
_MU_MAX = 64.0

Tradeoff = Callable[[float], float]
"""x -> the least probability, in one world, of an event that has probability x in the other world."""


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """The outcome of an attack: of `canaries`, `guessed` were guessed on and `correct` of these rightly."""

    canaries: int
    guessed: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guessed <= self.canaries or self.canaries < 1:
            raise ValueError(f"{self} is impossible; it must be 0 <= correct <= guessed <= canaries, canaries >= 1")


@dataclass(frozen=True, kw_only=True)
class LowerBounds:
    """Lower bounds on epsilon at one delta, and whether the claimed trade-off curve is refuted."""

    one_run: float  # any mechanism, one run
    f_dp: float  # one run, within the Gaussian family
    clopper_pearson: float  # independent canaries, any mechanism
    gdp: float  # independent canaries, within the Gaussian family
    claim_refuted: bool  # one run, by the claimed curve itself


def lower_bounds(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    *,
    delta: float,
    claimed: Tradeoff,
    significance: float = 0.05,
) -> LowerBounds:
    """All bounds from one run's scores.

    Args:
        scores: (m,), log-likelihood ratios of "in" against "out", or any scores on that scale.
        included: (m,), the coins.
        delta: at which epsilon is bounded; 2 m delta should be far below the significance.
        claimed: trade-off curve of the claim.
        significance: chance that one bound is above the truth.
    """
    attacks = [guess(scores, included, share) for share in GUESSED_SHARES]
    each = significance / len(attacks)
    clopper_pearson, gdp = independent_bounds(scores, included, delta=delta, significance=significance)
    return LowerBounds(
        one_run=max(one_run_epsilon(attack, delta=delta, significance=each) for attack in attacks),
        f_dp=gdp_epsilon(max(one_run_mu(attack, significance=each) for attack in attacks), delta),
        clopper_pearson=clopper_pearson,
        gdp=gdp,
        claim_refuted=any(refutes(attack, claimed, significance=each) for attack in attacks),
    )


def guess(scores: NDArray[np.float64], included: NDArray[np.bool_], share: float) -> Guesses:
    """Guesses "in" for the highest scores, "out" for as many of the lowest; `share` of the canaries in all."""
    count = max(1, round(share * len(scores) / 2))
    order = np.argsort(scores, kind="stable")
    correct = int(included[order[-count:]].sum() + (~included[order[:count]]).sum())
    return Guesses(canaries=len(scores), guessed=2 * count, correct=correct)


def one_run_p_value(attack: Guesses, *, epsilon: float, delta: float) -> float:
    """Bound on the probability of at least this many right guesses, for any (epsilon, delta) mechanism and attacker.

    With p = e^epsilon / (1 + e^epsilon), r guesses and v of them right, beta = P[Bin(r, p) >= v]:
    beta + 2 m delta max_{1 <= i <= v} P[v - i <= Bin(r, p) < v] / i.
    """
    r, v, p = attack.guessed, attack.correct, float(expit(epsilon))
    if v == 0:
        return 1.0
    at_least = 1 - bdtr(np.arange(v), r, p)  # P[Bin > k] for k = 0..v-1
    tail = _binomial_tail(v, r, p)
    if delta == 0:
        return tail
    i = np.arange(1, v + 1)
    reach = np.concatenate([at_least[: v - 1][::-1], [1.0]])  # P[Bin >= v - i] for i = 1..v
    return min(1.0, tail + 2 * attack.canaries * delta * max(0.0, float(((reach - tail) / i).max())))


def one_run_epsilon(attack: Guesses, *, delta: float, significance: float) -> float:
    """Largest epsilon that the guesses refute for every (epsilon, delta) mechanism; 0 if none."""

    def excess(epsilon: float) -> float:
        return one_run_p_value(attack, epsilon=epsilon, delta=delta) - significance

    if excess(0.0) >= 0:
        return 0.0
    return _EPSILON_MAX if excess(_EPSILON_MAX) < 0 else float(brentq(excess, 0.0, _EPSILON_MAX, xtol=1e-6))


def refutes(attack: Guesses, tradeoff: Tradeoff, *, significance: float) -> bool:
    """True if a mechanism with this curve reaches so many right guesses with probability below `significance`."""
    r, v, m = attack.guessed, attack.correct, attack.canaries
    right, wrong = significance * v / m, significance * (r - v) / m
    for i in range(v - 1, -1, -1):
        raised = max(wrong, tradeoff(right))
        if raised == wrong:
            break
        right, wrong = min(1.0, right + i / (r - i) * (raised - wrong)), raised
    return right + wrong > r / m


def one_run_mu(attack: Guesses, *, significance: float) -> float:
    """Largest mu whose Gaussian trade-off curve the guesses refute; 0 if none."""

    def refuted(mu: float) -> bool:
        return refutes(attack, gaussian_tradeoff(mu), significance=significance)

    if not refuted(1e-4):
        return 0.0
    low, high = 1e-4, 1.0
    while high < _MU_MAX and refuted(high):
        low, high = high, 2 * high
    while high - low > 1e-5 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def gaussian_tradeoff(mu: float) -> Tradeoff:
    """Trade-off curve of mu-GDP (Dong, Roth, Su 2019, arXiv:1905.02383): x -> Phi(Phi^-1(x) - mu)."""
    return lambda x: float(ndtr(ndtri(x) - mu))


def tradeoff_from_profile(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> Tradeoff:
    """Trade-off curve of a mechanism that is (epsilon, delta) for every pair given: x -> max e^-epsilon (x - delta).

    Fewer pairs, or larger deltas, give a lower curve, which is harder to refute: never a false alarm.
    """
    shrink = np.exp(-epsilons)
    return lambda x: max(0.0, float((shrink * (x - deltas)).max()))


def gdp_delta(mu: float, epsilon: float) -> float:
    """Delta of mu-GDP at epsilon (Balle and Wang 2018, arXiv:1805.06530), mu > 0."""
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))))


def gdp_epsilon(mu: float, delta: float) -> float:
    """Epsilon of mu-GDP at delta."""
    if mu <= 0 or gdp_delta(mu, 0.0) <= delta:
        return 0.0
    high = 1.0
    while gdp_delta(mu, high) > delta:
        high *= 2
    return float(brentq(lambda epsilon: gdp_delta(mu, epsilon) - delta, 0.0, high, xtol=1e-7))


def independent_bounds(
    scores: NDArray[np.float64], included: NDArray[np.bool_], *, delta: float, significance: float
) -> tuple[float, float]:
    """(epsilon of any mechanism, epsilon within the Gaussian family) from independent canaries' error rates.

    Thresholds come from the first quarter of the canaries and rates from the others, so that a threshold is fixed
    before it is used; the significance is split over thresholds and the two rates.
    """
    first, each = len(scores) // 4, significance / (2 * len(RANKS))
    judged, truth = scores[first:], included[first:]
    ins, outs = judged[truth], judged[~truth]
    epsilon = mu = 0.0
    for threshold in np.quantile(scores[:first], RANKS) if first else ():
        missed = clopper_pearson_upper(int((ins <= threshold).sum()), len(ins), each)
        alarms = clopper_pearson_upper(int((outs > threshold).sum()), len(outs), each)
        for one, other in ((missed, alarms), (alarms, missed)):
            if 1 - one - delta > other:
                epsilon = max(epsilon, math.log((1 - one - delta) / other))
        if missed < 1 and alarms < 1:
            mu = max(mu, -float(ndtri(alarms)) - float(ndtri(missed)))
    return epsilon, gdp_epsilon(mu, delta)


def clopper_pearson_upper(events: int, trials: int, significance: float) -> float:
    """Exact one-sided upper limit of a probability after `events` in `trials`; 1 where there is none below."""
    return float(betaincinv(events + 1, trials - events, 1 - significance)) if events < trials else 1.0


def _binomial_tail(v: int, r: int, p: float) -> float:
    """P[Bin(r, p) >= v], exact in the far tail where 1 - cdf is not."""
    return float(bdtr(r - v, r, 1 - p)) if v <= r else 0.0
