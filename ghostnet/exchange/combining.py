"""Combines the hospitals' answers to a round into new weights: the plan's server optimiser, array by array.

The coordinator combines with this and `ghostnet verify` recomputes with it. Sums are taken in the order of the
hospitals' names and element by element in float32, so that every machine gets the same bits. The formulas are those of
Flower's strategies; a test holds them against Flower's own.

Sources: Reddi et al. 2021 (FedAdam; its beta_2 and tau), Hsu et al. 2019 (server momentum), Yin et al. 2018 (median and
trimmed mean).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ghostnet.exchange.arrays import Arrays
from ghostnet.plan.federation import FederationSpec

FEDADAM_BETA_2 = 0.99
FEDADAM_TAU = 1e-3
WITH_MOMENTS = ("fedavgm", "fedadam")
"""Server optimisers that start from the weights that were sent, and from what earlier rounds left."""


@dataclass(frozen=True, kw_only=True)
class Combined:
    """The federation's weights after a round."""

    weights: Arrays  # float32, by name
    moments: Arrays  # of the server's optimiser, as "m.NAME" and "v.NAME"; nothing where it has none


def combine(
    answers: Mapping[str, Mapping[str, np.ndarray]],
    federation: FederationSpec,
    *,
    names: Iterable[str],
    server_round: int,
    sent: Mapping[str, np.ndarray],
    moments: Mapping[str, np.ndarray],
    averaged: Collection[str] = frozenset(),
) -> Combined:
    """Combines one round's answers; nothing is checked, and an optimiser that diverges gives infinities.

    Args:
        answers: by hospital, float32 arrays by name.
        federation: the plan's table: optimiser, rates, and each hospital's public weight.
        names: of the arrays to combine.
        server_round: 1-based.
        sent: what the hospitals started the round from; for `WITH_MOMENTS` alone.
        moments: what the round before gave; for `WITH_MOMENTS` alone.
        averaged: names that are no parameters (a BatchNorm's running variance): always averaged, since momentum could
            carry a variance below zero.

    Raises:
        PlanError: the plan gives weights, and none to one of the hospitals.
    """
    sites = sorted(answers)
    weights = [federation.weight_of(site) for site in sites]
    shares = [weight / sum(weights) for weight in weights]
    new: Arrays = {}
    left: Arrays = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name in names:
            values = [answers[site][name] for site in sites]
            if federation.server_optimizer in WITH_MOMENTS and name not in averaged:
                before = {kind: moments[f"{kind}.{name}"] for kind in ("m", "v") if f"{kind}.{name}" in moments}
                value, after = _moved(sent[name], _mean(values, shares), before, federation, server_round)
                left |= {f"{kind}.{name}": moment for kind, moment in after.items()}
            else:
                rule = "fedavg" if name in averaged else federation.server_optimizer
                value = _together(values, shares, rule, federation.trim)
            new[name] = np.asarray(value, dtype=np.float32)
    return Combined(weights=new, moments=left)


def _together(values: Sequence[np.ndarray], shares: Sequence[float], rule: str, trim: float) -> np.ndarray:
    if rule == "trimmed-mean":
        return _middle(values, int(trim * len(values)))
    if rule == "median":
        return _middle(values, (len(values) - 1) // 2)
    return _mean(values, shares)


def _mean(values: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    total = values[0] * shares[0]
    for value, share in zip(values[1:], shares[1:], strict=True):
        total = total + value * share
    return np.asarray(total)


def _middle(values: Sequence[np.ndarray], cut: int) -> np.ndarray:
    """Mean of what is left when `cut` values are dropped at each end, for every number by itself."""
    rows = np.sort(np.stack(values), axis=0, kind="stable")[cut : len(values) - cut]
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return np.asarray(total / len(rows))


def _moved(
    sent: np.ndarray, mean: np.ndarray, before: Mapping[str, np.ndarray], federation: FederationSpec, server_round: int
) -> tuple[np.ndarray, Arrays]:
    """The weights one step of the server's optimiser later, and its moments."""
    rate, momentum = federation.server_learning_rate, federation.server_momentum
    if federation.server_optimizer == "fedavgm":
        if momentum == 0:
            return (mean if rate == 1 else sent - rate * (sent - mean)), {}
        velocity = momentum * before["m"] + (sent - mean) if before else sent - mean
        return sent - rate * velocity, {"m": velocity}
    step, zero = mean - sent, np.zeros_like(mean)
    m = momentum * before.get("m", zero) + (1 - momentum) * step
    v = FEDADAM_BETA_2 * before.get("v", zero) + (1 - FEDADAM_BETA_2) * step**2
    left_m, left_v = (1 - np.power(beta, server_round + 1.0) for beta in (momentum, FEDADAM_BETA_2))
    rate = rate * np.sqrt(left_v) / left_m
    return sent + rate * m / (np.sqrt(v) + FEDADAM_TAU), {"m": m, "v": v}
