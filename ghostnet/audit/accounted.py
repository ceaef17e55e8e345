"""Checks that a hospital draws the noise that it accounts, number for number: exact, not statistical.

A source of entropy that takes notes is given to a hospital; a whole run is asked of it, every request that a plan has.
The numbers of noise drawn at each standard deviation must be those of the plan's events and no others. A release that
is not charged, a noise multiplier of another table, a tensor left out and noise used twice all differ here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghostnet.accounting import catalogue
from ghostnet.accounting.catalogue import Statistic
from ghostnet.accounting.events import Event, GaussianRelease, SharedNoiseSteps
from ghostnet.audit.findings import Finding
from ghostnet.errors import AuditError
from ghostnet.models import build_discriminator
from ghostnet.plan import Plan
from ghostnet.privacy.noise import RESERVE, Entropy
from ghostnet.training.perceptual import embed
from ghostnet.utility.task import find_task, task_spec

Draws = dict[float, int]
"""Fractional part, in [0.5, 1), of the standard deviation in powers of two -> numbers of noise drawn."""


class NotedEntropy:
    """Real randomness, and notes of how many numbers of noise were drawn at which standard deviation."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self.draws: Counter[float] = Counter()

    def uniform(self, n: int) -> NDArray[np.float64]:
        """See `Entropy.uniform`."""
        return self._entropy.uniform(n)

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """See `Entropy.integers`."""
        return self._entropy.integers(high, n)

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        """Notes and draws."""
        self._note(n, std)
        return self._entropy.discrete_gaussian(n, std)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Notes and draws."""
        self._note(math.prod(shape), std)
        return self._entropy.gaussian(shape, std)

    def _note(self, n: int, std: float) -> None:
        self.draws[_fraction(std)] += n


def accounted_draws(plan: Plan, events: Sequence[Event]) -> Draws:
    """Numbers of noise that one hospital draws in a run if it releases just these events.

    Raises:
        AuditError: an event is about a statistic that is not in the catalogue, or whose length the audit cannot know.
    """
    statistics = {s.name: s for s in catalogue.CATALOGUE if s.is_asked(plan)}
    draws: Counter[float] = Counter()
    for event in events:
        if event.name not in statistics:
            raise AuditError(f"event {event.name!r} is none of the catalogue's: {', '.join(statistics)}")
        statistic = statistics[event.name]
        std = event.noise_multiplier * statistic.norm_bound(plan)
        if isinstance(event, SharedNoiseSteps):
            std /= math.sqrt(event.hospitals)
        times = event.count if isinstance(event, GaussianRelease) else event.steps
        draws[_fraction(std * (1 + RESERVE))] += times * release_length(statistic, plan)
    return dict(draws)


def check_draws(drawn: Mapping[str, tuple[Draws, Draws]]) -> Finding:
    """Drawn and accounted numbers of noise are the same at each standard deviation.

    Args:
        drawn: by name of a run, (drawn, accounted).
    """
    wrong = [name for name, (found, accounted) in drawn.items() if found != accounted]
    numbers = sum(sum(found.values()) for found, _ in drawn.values())
    return Finding(
        check="noise drawn as accounted",
        passed=bool(drawn) and not wrong,
        value=float(len(wrong)),
        detail=f"{numbers} numbers of noise in {len(drawn)} whole runs; other numbers, or at another size, than "
        f"accounted in: {', '.join(wrong) or 'none'}",
    )


def release_length(statistic: Statistic, plan: Plan) -> int:
    """Numbers in one release.

    Raises:
        AuditError: neither the catalogue nor the audit knows it.
    """
    if statistic.length is not None:
        return statistic.length(plan)
    for name, counts in catalogue.UTILITY_COUNTS.items():
        if statistic == counts:
            return find_task(name).cells(task_spec(plan))
    discriminator = build_discriminator(plan.networks)
    if statistic in (catalogue.DISCRIMINATOR_STEPS, catalogue.POOLED_STEPS):
        return sum(p.numel() for p in discriminator.parameters() if p.requires_grad)
    if statistic == catalogue.PERCEPTUAL_FEATURES:
        with torch.no_grad():
            image = torch.zeros(1, plan.planes, plan.image.size, plan.image.size)
            return len(plan.image.labels) * embed(discriminator, image).shape[1]
    raise AuditError(f"the audit cannot know the length of {statistic.name!r}; give it one in the catalogue")


def _fraction(std: float) -> float:
    """The mantissa of a standard deviation, without the powers of two of the grid's steps; 12 digits."""
    return round(math.frexp(std)[0], 12)
