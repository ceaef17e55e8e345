"""Checks of a run's releases at the canaries' coordinates: arrays in, findings out.

Releases are (steps, canaries), in units of the clip norm. Statistical checks allow 5 standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from dp_accounting.pld import privacy_loss_distribution
from numpy.typing import NDArray

from ghostnet.accounting.epsilon import PoissonGaussianSteps
from ghostnet.audit.bounds import LowerBounds, Tradeoff, tradeoff_from_profile
from ghostnet.audit.conformance import FALSE_ALARM
from ghostnet.audit.findings import Finding

_ERRORS = 5.0
BOUNDS_FALSE_ALARM = 1e-3  # of each check of the lower bounds, from the spread of a correct step's (docs/results.md)
_LAGS = 3  # how many steps apart noise is compared
_ROUNDING = 1e-4  # of one float32 coordinate, in units of C


def log_likelihood_ratios(releases: NDArray[np.float64], event: PoissonGaussianSteps) -> NDArray[np.float64]:
    """Log-likelihood ratio of "in" against "out" under the accounted event, (m,): the best score by Neyman-Pearson."""
    q, variance = event.sampling_rate, event.noise_multiplier**2
    known = np.nan_to_num(releases, nan=0.0, posinf=1e30, neginf=-1e30)
    scores = np.zeros(releases.shape[1])
    for step in known:
        scores += np.logaddexp(math.log1p(-q), math.log(q) + (step - 0.5) / variance)
    return scores


@lru_cache(maxsize=8)  # half a second
def claimed_tradeoff(event: PoissonGaussianSteps) -> Tradeoff:
    """The accounted event's trade-off curve; its privacy loss distribution errs towards less privacy."""
    losses = privacy_loss_distribution.from_gaussian_mechanism(
        event.noise_multiplier, sampling_prob=event.sampling_rate, value_discretization_interval=1e-3
    ).self_compose(event.steps)
    epsilons = np.linspace(-20.0, 20.0, 2001)
    return tradeoff_from_profile(epsilons, np.asarray(losses.get_delta_for_epsilon(list(epsilons))))


def check_contribution(released: NDArray[np.float64], images_each: int) -> Finding:
    """Without noise, each coordinate is 0 or exactly C, whatever the number of the canary's images."""
    most = float(np.abs(released).max(initial=0.0))
    off = float(np.minimum(np.abs(released), np.abs(released - 1)).max(initial=0.0))
    return Finding(
        check="contribution",
        passed=off <= _ROUNDING and most > 0,
        value=most,
        detail=f"a sampled patient with {images_each} images moves the sum by {most:.6g} x C (must be 1)",
    )


def check_steps(releases: NDArray[np.float64], event: PoissonGaussianSteps) -> Finding:
    """As many sums are released as accounted."""
    return Finding(
        check="step count",
        passed=len(releases) == event.steps,
        value=float(len(releases)),
        detail=f"{len(releases)} noised sums were released, {event.steps} are accounted",
    )


def check_noise_of_run(noise: NDArray[np.float64]) -> Iterator[Finding]:
    """Coordinates of canaries that are out hold noise alone, (steps, n) in units of its accounted size."""
    steps, n = noise.shape
    if steps < _LAGS + 1 or n == 0 or not np.isfinite(noise).all():
        detail = f"{steps} sums with {n} coordinates of noise, or one that is not finite: nothing to compare"
        for check in ("noise of the run", "noise freshness"):
            yield Finding(check=check, passed=False, value=math.nan, detail=detail)
        return
    size = float(np.square(noise).mean())
    z = (size - 1) / math.sqrt(2 / noise.size)
    yield Finding(
        check="noise of the run",
        passed=abs(z) <= _ERRORS,
        value=math.sqrt(size),
        detail=f"noise is {math.sqrt(size):.5f} x its accounted size, {z:+.1f} standard errors off (at most 5)",
        false_alarm=FALSE_ALARM,
    )
    scaled = noise / math.sqrt(max(size, 1e-300))
    tied = {
        "a step's coordinates": (np.square(scaled.sum(1)).mean() / n - 1) / math.sqrt(2 / steps),
        "a coordinate's steps": (np.square(scaled.sum(0)).mean() / steps - 1) / math.sqrt(2 / n),
    }
    for lag in range(1, _LAGS + 1):
        tied[f"steps {lag} apart"] = (scaled[:-lag] * scaled[lag:]).mean() * math.sqrt(scaled[lag:].size)
    name, worst = max(tied.items(), key=lambda item: abs(item[1]))
    yield Finding(
        check="noise freshness",
        passed=abs(worst) <= _ERRORS,
        value=float(worst),
        detail=f"noise in {name} is tied by {worst:+.1f} standard errors (at most {_ERRORS:g})",
        false_alarm=len(tied) * FALSE_ALARM,
    )


def check_bounds(bounds: LowerBounds, claimed: float, delta: float) -> Finding:
    """No lower bound is above the claim, and the guesses do not refute the claimed curve."""
    largest = max(bounds.one_run, bounds.f_dp, bounds.clopper_pearson, bounds.gdp)
    refuted = "refuted" if bounds.claim_refuted else "not refuted"
    return Finding(
        check="lower bounds",
        passed=largest <= claimed and not bounds.claim_refuted,
        value=largest,
        detail=f"epsilon >= {largest:.2f}, claimed <= {claimed:.2f} at delta {delta:g}; the claimed curve is {refuted}",
        false_alarm=BOUNDS_FALSE_ALARM,
    )


def check_power(bounds: LowerBounds, least: Mapping[str, float]) -> Finding:
    """A correct step is this visible; an audit that sees less has measured something else than the step.

    Args:
        bounds: as found.
        least: by name of the bound, what a correct step exceeds.
    """
    found = {name: float(getattr(bounds, name)) for name in least}
    return Finding(
        check="power",
        passed=all(found[name] >= value for name, value in least.items()),
        value=min(found[name] - value for name, value in least.items()),
        detail="; ".join(f"{name} {found[name]:.2f} (at least {value:g})" for name, value in least.items()),
        false_alarm=BOUNDS_FALSE_ALARM,
    )
