"""A plan from public numbers alone: how to spend a privacy budget on a federation of given size, and what to expect.

Everything rests on one scaling law. A mechanism with Gaussian privacy parameter mu (Dong, Roth and Su 2022: sigma = 1 /
mu for one release; q sqrt(T (exp(1 / sigma^2) - 1)) for T sampled steps) tells a generator about n patients with a
signal of n * mu over unit noise, whatever the batch size and the number of steps. So the budget is a sum of squares,
mu^2 = warm start^2 + steps^2 + figures^2, that is shared out; a federation of h hospitals divides the signal of its
noisy sums by sqrt(h), because each adds noise of its own.

No image and no private count is read: `patients` are the nominal numbers that the hospitals announce.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from scipy.optimize import brentq
from scipy.stats import norm

from ghostnet.accounting.plan_cost import resolve
from ghostnet.errors import PlanError
from ghostnet.models import architecture
from ghostnet.plan import ModelSpec, Plan, plan_from_dict

FIGURES_SHARE = 0.05  # of mu^2: the counts behind the utility figures
WARM_SHARES = (0.05, 0.6)  # of mu^2, least and most, where adversarial steps follow
PLENTY_OF_SIGNAL = 15.0  # of a class: MNIST's warm start at 12 (epsilon 1) is as good as at 89 (epsilon 10)
ENOUGH_SIGNAL = 4.0  # of a class: chest X-rays at 3.6 (epsilon 1) have the AUC, not the likeness, of 12.5 (epsilon 4)
SOME_SIGNAL = 1.5  # below it a class's mean embedding is mostly noise
STEPS_SIGNAL = 10_000.0  # n * mu of a hospital's steps: gains on MNIST at 28,000, none on chest X-rays at 1,400
ROUNDING = 0.005  # of epsilon, kept for the accountant's rounding up
RELEASES = ((16, 4000), (16, 2000), (16, 1000), (16, 500), (8, 200), (8, 100))
"""(pixels a side, random features) of a release, longest first. More pixels did worse on MNIST and on chest X-rays: the
fit fills fine detail with grain. On skin lesions the last did better than 32 pixels by far."""
MAX_SAMPLING_RATE = 0.25  # q: more of a cohort a step costs time and gains nothing

Verdict = Literal["useful", "rough", "too few patients"]


@dataclass(frozen=True, kw_only=True)
class _Release:
    """The warm-start release of each hospital."""

    mu: float  # Gaussian privacy parameter
    side: int  # pixels a side
    features: int  # random features
    class_signal: float  # signal of one class's mean embedding over the norm of its noise

    def to_table(self) -> dict[str, Any]:
        return {
            "noise_multiplier": _rounded_up(1 / self.mu),
            "features": self.features,
            "feature_size": self.side,
            # The scales that did best on chest X-rays at 16 pixels and on skin lesions at 8.
            "bandwidth": self.side / 16 if self.side > 8 else 2.0,
            "more_bandwidths": [self.side / 8] if self.side > 8 else [],
            "detail_weight": 0.2,
            "shrink_classes": self.class_signal < ENOUGH_SIGNAL,
            "steps": 800,
        }


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A plan and the reasons for it.

    Attributes:
        plan: complete and resolved; it costs at most the epsilon asked for.
        verdict: what to expect.
        reasons: one sentence each, with the numbers behind it.
        class_signal: signal of one class's mean embedding over the norm of its noise.
        steps_signal: n * mu of the adversarial steps at the smallest hospital; 0 without steps.
        warm_share: of mu^2, what the warm start takes.
        mu: Gaussian privacy parameter of the whole budget.
    """

    plan: Plan
    verdict: Verdict
    reasons: tuple[str, ...]
    class_signal: float
    steps_signal: float
    warm_share: float
    mu: float


def suggest(
    *,
    patients: Sequence[int],
    size: int,
    epsilon: float,
    delta: float | None = None,
    labels: Sequence[str] = ("normal", "abnormal"),
    channels: int = 1,
    images_per_patient: int = 1,
    minutes: float = 20.0,
) -> Suggestion:
    """Proposes sampling rate, steps, noise, steps a generator step and the warm start's share of the budget.

    Args:
        patients: PUBLIC nominal training patients of each hospital.
        size: pixels a side.
        epsilon: budget of one patient for the whole run.
        delta: default 1e-5, or a tenth of 1 / patients of the largest hospital where that is less.
        labels: names of the classes.
        channels: 1 grey, 3 colour.
        images_per_patient: at most this many images of a patient are used.
        minutes: of compute for the adversarial steps at one hospital with 2 cores.

    Raises:
        PlanError: a number is out of range, or the plan that comes of them is not valid.
    """
    if not patients or min(patients) < 1 or not 0 < epsilon < math.inf or not 0 < minutes < math.inf:
        raise PlanError(
            f"patients = {list(patients)}, epsilon = {epsilon}, minutes = {minutes}: give each hospital's number of "
            "patients (>= 1), separated by commas, an epsilon > 0 and minutes > 0"
        )
    delta = min(1e-5, 0.1 / max(patients)) if delta is None else delta
    mu = gaussian_mu(epsilon * (1 - ROUNDING), delta)
    warm_share = _warm_share(patients, len(labels), mu, RELEASES[0][1] + channels * RELEASES[0][0] ** 2)
    steps_signal = min(patients) * mu * math.sqrt(1 - FIGURES_SHARE - warm_share)
    with_steps = steps_signal >= STEPS_SIGNAL
    warm_share = warm_share if with_steps else 1 - FIGURES_SHARE
    release = _release(patients, len(labels), mu * math.sqrt(warm_share), size, channels)
    tables = {
        "name": "suggested",
        "image": {
            "size": size,
            "channels": channels,
            "labels": list(labels),
            "label_prior": [1 / len(labels)] * len(labels),
        },
        "model": {"latent": 32, "generator_width": 24, "discriminator_width": 24},
        "privacy": {
            "epsilon": epsilon,
            "delta": delta,
            "sampling_rate": MAX_SAMPLING_RATE,
            "steps": 0,
            "images_per_patient": images_per_patient,
        },
        "warm_start": {**release.to_table(), "batch": max(200, 40 * len(labels))},
        "federation": {"rounds": 0, "patients": sorted(patients)[len(patients) // 2]},
        "utility": {"noise_multiplier": _rounded_up(1 / (mu * math.sqrt(FIGURES_SHARE)))},
    }
    if with_steps:
        _add_steps(tables, min(patients), size, minutes)
    plan = resolve(plan_from_dict(tables, source="the suggested plan"))
    suggestion = Suggestion(
        plan=plan,
        verdict=_verdict(release.class_signal),
        reasons=(),
        class_signal=release.class_signal,
        steps_signal=steps_signal if with_steps else 0.0,
        warm_share=warm_share,
        mu=mu,
    )
    reasons = _reasons(suggestion, patients, epsilon, delta, release.mu, steps_signal)
    return dataclasses.replace(suggestion, reasons=reasons)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu of the Gaussian mechanism that is exactly (epsilon, delta)-DP (Balle and Wang 2018).

    >>> round(1 / gaussian_mu(1.0, 1e-5), 2)
    3.73

    Raises:
        PlanError: no such mechanism can be computed.
    """
    try:
        return float(brentq(partial(_excess_delta, epsilon=epsilon, delta=delta), 1e-6, 50.0 + epsilon))
    except (ValueError, OverflowError):
        raise PlanError(
            f"epsilon = {epsilon:g} with delta = {delta:g} is beyond what can be computed; give an epsilon of 0.001 to "
            "100 and a delta well below 1 / patients"
        ) from None


def class_signal(patients: Sequence[int], classes: int, warm_mu: float, numbers: int) -> float:
    """Length of a class's summed embedding over that of its noise: n_c mu / sqrt(h d).

    Args:
        patients: of each hospital; classes are taken as equally frequent.
        classes: number of labels.
        warm_mu: 1 / sigma of each hospital's release.
        numbers: d, length of one class's block.
    """
    return sum(patients) / classes * warm_mu / math.sqrt(len(patients) * numbers)


def _warm_share(patients: Sequence[int], classes: int, mu: float, numbers: int) -> float:
    """Of mu^2: what gives the warm start plenty of signal, within `WARM_SHARES`; the steps need the rest more."""
    wanted = PLENTY_OF_SIGNAL / class_signal(patients, classes, 1.0, numbers)
    least, most = WARM_SHARES
    return min(most, max(least, (wanted / mu) ** 2))


def _release(patients: Sequence[int], classes: int, mu: float, size: int, channels: int) -> _Release:
    """The longest release whose class signal is still enough, or the shortest."""
    for side, features in RELEASES:
        side = min(side, size)
        signal = class_signal(patients, classes, mu, features + channels * side**2)
        if signal >= ENOUGH_SIGNAL:
            break
    return _Release(mu=mu, side=side, features=features, class_signal=signal)


def _verdict(signal: float) -> Verdict:
    if signal >= ENOUGH_SIGNAL:
        return "useful"
    return "rough" if signal >= SOME_SIGNAL else "too few patients"


def _add_steps(tables: dict[str, Any], smallest: int, size: int, minutes: float) -> None:
    """Few large steps: along a budget the signal n * mu does not depend on their number, traffic and noise do."""
    milliseconds = architecture(ModelSpec().architecture).row_milliseconds * (size / 64) ** 2
    sampling_rate = min(MAX_SAMPLING_RATE, max(32, min(300, smallest // 10)) / smallest)
    fakes = max(16, round(sampling_rate * smallest))
    steps = int(minutes * 60_000 / (milliseconds * 2 * fakes))
    tables["privacy"] |= {
        "sampling_rate": round(sampling_rate, 6),
        "steps": max(60, min(2000, steps)),
        "fakes": fakes,
    }
    tables["federation"]["rounds"] = 2
    tables["training"] = {
        "learning_rate_generator": 3e-4,
        "learning_rate_discriminator": 1e-3,
        "discriminator_steps": 1,
        "generator_delay": max(30, tables["privacy"]["steps"] // 8),
        "ema": 0.95,
        "embedding_weight": 300.0,
    }


def _rounded_up(noise_multiplier: float) -> float:
    return math.ceil(noise_multiplier * 1000) / 1000


def _reasons(
    suggestion: Suggestion, patients: Sequence[int], epsilon: float, delta: float, warm_mu: float, steps_signal: float
) -> tuple[str, ...]:
    plan, classes = suggestion.plan, len(suggestion.plan.image.labels)
    numbers = plan.warm_start.features + plan.image.channels * plan.warm_start.feature_size**2
    wanted = math.ceil(ENOUGH_SIGNAL * math.sqrt(len(patients) * numbers) * classes / warm_mu)
    said = [
        f"epsilon {epsilon:g} at delta {delta:g} a patient is a Gaussian mu of {suggestion.mu:.3f}; "
        f"{suggestion.warm_share:.0%} of its square goes to the warm start "
        f"(sigma {plan.warm_start.noise_multiplier:g}), {FIGURES_SHARE:.0%} to the figures",
        f"a class's embedding of {numbers} numbers, about {sum(patients) // classes} patients from {len(patients)} "
        f"hospitals, stands {suggestion.class_signal:.1f} times over its noise ({ENOUGH_SIGNAL:g} is enough, "
        f"below {SOME_SIGNAL:g} it is mostly noise)",
    ]
    if suggestion.verdict != "useful":
        said.append(
            f"for {ENOUGH_SIGNAL:g} it would take about {wanted} patients at this epsilon, "
            f"or an epsilon of about {_epsilon_for(suggestion, delta):.2g} with these"
        )
    if suggestion.steps_signal:
        said.append(
            f"the discriminator of the smallest hospital learns with a signal of n * mu = {steps_signal:.0f} "
            f"(MNIST at epsilon 10, pooled: 112,000): steps refine strokes, the classes come from the warm start"
        )
    else:
        said.append(
            f"adversarial steps are left out: at {min(patients)} patients their signal n * mu = {steps_signal:.0f} is "
            f"below {STEPS_SIGNAL:.0f} (gains were seen at 28000, none at 1400); "
            "the whole budget goes to the warm start"
        )
    return tuple(said)


def _epsilon_for(suggestion: Suggestion, delta: float) -> float:
    """Epsilon at which the class signal would be enough: the signal is proportional to mu."""
    mu = suggestion.mu * ENOUGH_SIGNAL / suggestion.class_signal
    excess = partial(_excess_delta, mu, delta=delta)
    most = 700.0  # exp of more is no float
    return float(brentq(excess, 0.0, most)) if excess(most) < 0 else math.inf


def _excess_delta(mu: float, epsilon: float, *, delta: float) -> float:
    """The delta of the Gaussian mechanism of this mu at epsilon, less the wanted delta."""
    return float(norm.cdf(-epsilon / mu + mu / 2) - math.exp(epsilon) * norm.cdf(-epsilon / mu - mu / 2) - delta)
