"""Typed events: the record of what was released, from which every epsilon is recomputed.

Each is about one unit whose influence on a noised sum is at most the norm bound, and about the add/remove adjacency.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghostnet.errors import PlanError
from ghostnet.plan.toml import read_table


@dataclass(frozen=True, kw_only=True)
class GaussianRelease:
    """Sums over all patients, each patient's part of norm <= 1 (in the clip's unit), released with Gaussian noise."""

    name: str  # what was released, for people
    noise_multiplier: float  # standard deviation over norm bound; 0 = released without noise
    count: int = 1  # releases of this kind

    def __post_init__(self) -> None:
        """Refuses values outside their range (`PlanError`)."""
        _check_event(self, self.noise_multiplier, 1.0, self.count)


@dataclass(frozen=True, kw_only=True)
class PoissonGaussianSteps:
    """Gaussian releases over a fresh sample of patients each, every patient joining independently."""

    name: str  # what was released, for people
    sampling_rate: float  # q in (0, 1]
    noise_multiplier: float  # standard deviation over norm bound; 0 = released without noise
    steps: int

    def __post_init__(self) -> None:
        """Refuses values outside their range (`PlanError`)."""
        _check_event(self, self.noise_multiplier, self.sampling_rate, self.steps)


@dataclass(frozen=True, kw_only=True)
class SharedNoiseSteps:
    """Gaussian releases over the sum of several hospitals' fresh samples; each hospital adds its share of the noise.

    Only the sum is seen, masked until it is complete (`ghostnet.exchange.secure_sum`). Whoever knows some of the shares
    sees less noise: `coalition_events` and `other_hospital_events` say how much is left.
    """

    name: str  # what was released, for people
    sampling_rate: float  # q in (0, 1]
    noise_multiplier: float  # standard deviation of the WHOLE sum's noise over norm bound; 0 = released without noise
    steps: int
    hospitals: int  # n >= 2: each adds independent noise of standard deviation noise_multiplier / sqrt(n)

    def __post_init__(self) -> None:
        """Refuses values outside their range (`PlanError`)."""
        _check_event(self, self.noise_multiplier, self.sampling_rate, self.steps)
        if isinstance(self.hospitals, bool) or not isinstance(self.hospitals, int) or not 2 <= self.hospitals <= 10**6:
            raise PlanError(f"{self}: hospitals = {self.hospitals!r} must be a whole number >= 2")


Event = GaussianRelease | PoissonGaussianSteps | SharedNoiseSteps

_KINDS: dict[str, type[GaussianRelease] | type[PoissonGaussianSteps] | type[SharedNoiseSteps]] = {
    "gaussian": GaussianRelease,
    "poisson-gaussian": PoissonGaussianSteps,
    "shared-noise-poisson-gaussian": SharedNoiseSteps,
}
EVENT_TYPES = tuple(_KINDS.values())
"""Everything that the accountants can count."""


def event_to_dict(event: Event) -> dict[str, Any]:
    """The event as JSON values, with its kind under `mechanism`."""
    kind = next(kind for kind, cls in _KINDS.items() if type(event) is cls)
    return {"mechanism": kind, **dataclasses.asdict(event)}


def event_from_dict(raw: Mapping[str, Any]) -> Event:
    """Reads what `event_to_dict` wrote.

    Raises:
        PlanError: an unknown mechanism, a missing or unknown key, a value of the wrong type or out of range.
    """
    fields = dict(raw) if isinstance(raw, Mapping) else {}
    kind = fields.pop("mechanism", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise PlanError(f"mechanism = {kind!r} is not one of {', '.join(_KINDS)}; the event is not of this version")
    absent = {field.name for field in dataclasses.fields(_KINDS[kind])} - fields.keys()
    if absent:
        raise PlanError(f"a {kind} event has no {', '.join(sorted(absent))}; every number that was spent must be there")
    return read_table(_KINDS[kind], fields, source=f"{kind} event", error=PlanError)


def repeat_for_hospitals(events: Sequence[Event], hospitals: int) -> tuple[Event, ...]:
    """The events that one patient is part of who is a patient of `hospitals` hospitals of one federation.

    Where the hospitals' sums are added up under one noise, the patient moves one release by up to `hospitals` norm
    bounds, whenever any of them draws the patient: with probability 1 - (1 - q)^hospitals. A release in which fewer
    draw the patient moves less, so that this one dominates the mixture.

    Raises:
        PlanError: hospitals < 1.
    """
    if isinstance(hospitals, bool) or hospitals < 1:
        raise PlanError(f"hospitals = {hospitals!r} is not a whole number >= 1; set [federation].hospitals_per_patient")
    return tuple(
        dataclasses.replace(event, count=event.count * hospitals)
        if isinstance(event, GaussianRelease)
        else _drawn_by_any(event, hospitals)
        if isinstance(event, SharedNoiseSteps)
        else dataclasses.replace(event, steps=event.steps * hospitals)
        for event in events
    )


def coalition_events(events: Sequence[Event], hospitals_per_patient: int = 1) -> tuple[Event, ...]:
    """The events as the coordinator sees them together with all hospitals but the patient's own.

    They subtract their sums and their noise; the shares of the patient's own hospitals are left,
    noise_multiplier * sqrt(hospitals_per_patient / hospitals), under what the patient adds at each of them.

    Raises:
        PlanError: hospitals_per_patient < 1.
    """
    return tuple(
        _with_shares(event, min(hospitals_per_patient, event.hospitals))
        if isinstance(event, SharedNoiseSteps)
        else event
        for event in (events if hospitals_per_patient == 1 else repeat_for_hospitals(events, hospitals_per_patient))
    )


def other_hospital_events(events: Sequence[Event]) -> tuple[Event, ...]:
    """The events as one other hospital of the run sees them: it knows its own share of the noise."""
    return tuple(
        _with_shares(event, event.hospitals - 1) if isinstance(event, SharedNoiseSteps) else event for event in events
    )


def _with_shares(event: SharedNoiseSteps, shares: int) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(
        name=event.name,
        sampling_rate=event.sampling_rate,
        noise_multiplier=event.noise_multiplier * math.sqrt(shares / event.hospitals),
        steps=event.steps,
    )


def _drawn_by_any(event: SharedNoiseSteps, hospitals: int) -> SharedNoiseSteps:
    rate = min(1.0, -math.expm1(hospitals * math.log1p(-event.sampling_rate)) if event.sampling_rate < 1 else 1.0)
    return dataclasses.replace(event, sampling_rate=rate, noise_multiplier=event.noise_multiplier / hospitals)


def _check_event(event: Event, noise_multiplier: float, rate: float, count: int) -> None:
    if not (isinstance(event.name, str) and event.name):
        raise PlanError(f"{event} has no name; say what was released")
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (noise_multiplier, rate, count))
    if not (numbers and isinstance(count, int) and math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise PlanError(f"{event}: noise_multiplier must be a finite number >= 0, the releases a whole number")
    if not (0 < rate <= 1 and count >= 0):
        raise PlanError(f"{event}: the sampling rate must be in (0, 1], the number of releases >= 0")
