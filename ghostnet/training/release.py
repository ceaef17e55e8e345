"""The noise of every released statistic: its size is taken from the catalogue and the plan, as its charge is.

Nothing else in GhostNet adds noise to what patients contribute (`tests/accounting/test_catalogue.py` looks), so the
noise, the sensitivity and the charge of a statistic cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ghostnet.accounting.catalogue import Mechanism, Statistic, check_catalogued
from ghostnet.errors import PlanError
from ghostnet.plan import Plan
from ghostnet.privacy.mechanism import noised_sum
from ghostnet.privacy.noise import Entropy, add_gaussian_steps
from ghostnet.privacy.releases import noisy_sum


def release_vectors(
    statistic: Statistic, vectors: torch.Tensor | Iterable[torch.Tensor], plan: Plan, *, entropy: Entropy
) -> torch.Tensor:
    """One noisy sum over all patients.

    Args:
        statistic: of the catalogue.
        vectors: SENSITIVE, one row a patient, as `privacy.releases.noisy_sum` takes them.
        plan: gives norm bound and noise multiplier.
        entropy: source of the noise.

    Returns:
        Float32 (d,).

    Raises:
        PlanError: the statistic is not in the catalogue, is not one of this plan, or is no such sum.

    Guarantee:
        That of `noisy_sum`, with the statistic's sensitivity and noise multiplier.
    """
    _check(statistic, plan, Mechanism.GAUSSIAN)
    return noisy_sum(
        vectors,
        norm_bound=statistic.norm_bound(plan),
        noise_multiplier=statistic.noise_multiplier(plan),
        entropy=entropy,
    )


def release_step(
    statistic: Statistic, clipped_sum: dict[str, torch.Tensor], plan: Plan, *, entropy: Entropy
) -> dict[str, torch.Tensor]:
    """A step's clipped sum over sampled patients, with its noise, by parameter name.

    Args:
        statistic: of the catalogue.
        clipped_sum: SENSITIVE, of sensitivity `statistic.norm_bound(plan)`.
        plan: gives clip norm and noise multiplier.
        entropy: source of the noise.

    Raises:
        PlanError: as `release_vectors`.

    Guarantee:
        That of `privacy.mechanism.noised_sum`, with the statistic's sensitivity and noise multiplier.
    """
    _check(statistic, plan, Mechanism.SAMPLED)
    return noised_sum(
        clipped_sum,
        clip_norm=statistic.norm_bound(plan),
        noise_multiplier=statistic.noise_multiplier(plan),
        entropy=entropy,
    )


def release_share(statistic: Statistic, clipped_sum: torch.Tensor, plan: Plan, *, entropy: Entropy) -> torch.Tensor:
    """One hospital's clipped sum with its share of the noise, in whole steps of the grid of the share's noise.

    Args:
        statistic: of the catalogue.
        clipped_sum: SENSITIVE, float64 (d,), of sensitivity `statistic.norm_bound(plan)`.
        plan: gives clip norm, noise multiplier and the number of hospitals.
        entropy: source of the noise.

    Returns:
        int64 (d,).

    Raises:
        PlanError: as `release_vectors`.

    Guarantee:
        That of `privacy.noise.add_gaussian_steps` at `statistic.noise_std(plan)`.
        Not covered: whoever knows the other shares (`exchange.pooled`).
    """
    _check(statistic, plan, Mechanism.SHARED)
    return add_gaussian_steps(clipped_sum, std=statistic.noise_std(plan), entropy=entropy)


def _check(statistic: Statistic, plan: Plan, mechanism: Mechanism) -> None:
    check_catalogued(statistic, plan)
    if statistic.mechanism is not mechanism:
        raise PlanError(
            f"{statistic.name!r} is {statistic.mechanism.value}; it cannot be released as {mechanism.value}"
        )
