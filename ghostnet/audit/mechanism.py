"""The mechanism audit: this installation's releases, held against what it accounts for.

Four kinds of evidence, all on drawn images, through the hospital's own code:

- sensitivity: noise off, neighbouring cohorts, one patient more moves the released sum by at most C;
- conformance: noise, sampling, contribution and number of steps against the accounted event;
- one run with canaries: lower bounds on epsilon beside the claim (`bounds`), and the claimed trade-off curve tested;
- every architecture, mode and release: who adds what, noise, charges and answers (`every_release`).

The first two find what is wrong with a step; the third would notice what nobody thought to test, and it must have the
power to: bounds that come out far under those of a correct step fail the audit too. The claim is low (epsilon 4),
because refuting epsilon takes canaries in proportion to e^epsilon; the code is the same at any epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ghostnet.accounting.epsilon import epsilon_pld, epsilon_rdp
from ghostnet.accounting.events import PoissonGaussianSteps
from ghostnet.audit import canaries
from ghostnet.audit.bounds import LowerBounds, lower_bounds
from ghostnet.audit.canaries import CoinsWithoutNoise, FixedFakes, NoEntropy
from ghostnet.audit.canary_checks import (
    check_bounds,
    check_contribution,
    check_noise_of_run,
    check_power,
    check_steps,
    claimed_tradeoff,
    log_likelihood_ratios,
)
from ghostnet.audit.conformance import FALSE_ALARM, check_noise_scale, check_poisson_sampling
from ghostnet.audit.every_release import Build, check_every_release
from ghostnet.audit.findings import Finding
from ghostnet.audit.sensitivity import StepInput, check_sensitivity
from ghostnet.errors import AuditError
from ghostnet.plan import Plan
from ghostnet.plan.unit import unit_facts
from ghostnet.privacy.noise import Entropy, SystemEntropy
from ghostnet.progress import Progress, silent
from ghostnet.training.cohort import Cohort

_PAIRS = 32  # of steps; 8 numbers, the smallest parameter, then give 256 values of noise
_ERRORS_OF_VARIANCE = 6.5  # without noise it would be 11; a chi-square has a longer tail than a Gaussian


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The settings of an audit. A correct step exceeds the least bounds in all but one run in a thousand."""

    canaries: int = 5000  # m of the audited run, half of them in
    patients: int = 60  # others in that run
    sampling_rate: float = 0.05
    noise_multiplier: float = 1.4531  # with the steps and delta: epsilon 4
    steps: int = 400
    delta: float = 1e-6
    watched: int = 500  # patients whose sampling is watched
    watched_steps: int = 200
    images_each: int = 2  # of each canary
    neighbours: int = 30  # pairs of cohorts for each clip norm
    least_one_run: float = 1.0
    least_f_dp: float = 1.4
    least_gdp: float = 1.9


@dataclass(frozen=True, kw_only=True)
class MechanismAudit:
    """The report of `ghostnet audit mechanism`. Lower bounds hold with 95 % each; the claim is an upper bound."""

    build: str
    passed: bool
    epsilon_pld: float  # the claim for the audited run
    epsilon_rdp: float
    delta: float
    unit: str
    adjacency: str
    protects: str
    bounds: LowerBounds
    findings: tuple[Finding, ...]
    profile: Profile

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that did not hold."""
        return tuple(finding.check for finding in self.findings if not finding.passed)

    @property
    def false_alarm(self) -> float:
        """Bound on the chance that a correct build fails the audit."""
        return math.fsum(finding.false_alarm for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON, with `verdict` and null for a number that is not finite."""
        found = asdict(self)
        findings = [
            {**f, "passed": bool(f["passed"]), "value": float(f["value"]) if math.isfinite(f["value"]) else None}
            for f in found.pop("findings")
        ]
        claim = {
            name: found.pop(name) for name in ("epsilon_pld", "epsilon_rdp", "delta", "unit", "adjacency", "protects")
        }
        claim = {name: None if value == math.inf else value for name, value in claim.items()}
        return {
            "build": found.pop("build"),
            "verdict": "pass" if found.pop("passed") else "fail",
            "failed": list(self.failed),
            "false_alarm": self.false_alarm,
            "claim": claim,
            "lower_bounds": {**found.pop("bounds"), "claim_refuted": bool(self.bounds.claim_refuted)},
            "findings": findings,
            **found,
        }


def audit_mechanism(
    build: Build,
    profile: Profile = Profile(),  # noqa: B008 (frozen)
    *,
    entropy: Entropy | None = None,
    progress: Progress = silent,
) -> MechanismAudit:
    """Audits a build: its loop (`audit_loop`), then every kind of step and every other release (`every_release`).

    A check that fails is a finding, and does not keep the others from running.

    Args:
        build: under audit.
        profile: sizes of the audit.
        entropy: of all coins and noise; by default the operating system's, and in a hospital the one it chooses itself.
        progress: told (check, done, total).

    Raises:
        AuditError: the build is not accounted as Poisson-sampled Gaussian steps, so that there is nothing to compare.
    """
    loop = audit_loop(build, profile, entropy=entropy, progress=progress)
    releases = tuple(check_every_release(build, _plan(profile), entropy, progress))
    passed = loop.passed and all(bool(finding.passed) for finding in releases)
    return replace(loop, passed=passed, findings=(*loop.findings, *releases))


def audit_loop(
    build: Build,
    profile: Profile = Profile(),  # noqa: B008 (frozen)
    *,
    entropy: Entropy | None = None,
    progress: Progress = silent,
) -> MechanismAudit:
    """The part of an audit that looks at one kind of step, as deeply as can be; arguments as `audit_mechanism`'s."""
    entropy, plan = entropy or SystemEntropy(), _plan(profile)
    event = _accounted(build, plan)
    findings = [
        _check_sensitivity(build, plan, profile, progress),
        *_check_noise(build, plan, event, entropy, progress),
        *_check_participation(build, plan, event, profile, entropy, progress),
    ]
    included = entropy.uniform(profile.canaries) < 0.5
    cohort = canaries.with_canaries(canaries.phantom_cohort(profile.patients), included, profile.images_each)
    releases = canaries.canary_releases(
        build.train_round,
        plan,
        cohort,
        canaries=profile.canaries,
        entropy=entropy,
        progress=_named(progress, "one run"),
    )
    claimed = epsilon_pld([event], profile.delta)
    bounds = lower_bounds(
        log_likelihood_ratios(releases, event), included, delta=profile.delta, claimed=claimed_tradeoff(event)
    )
    least = {"one_run": profile.least_one_run, "f_dp": profile.least_f_dp, "gdp": profile.least_gdp}
    findings += [
        check_steps(releases, event),
        *check_noise_of_run(releases[:, ~included] / event.noise_multiplier),
        check_bounds(bounds, claimed, profile.delta),
        check_power(bounds, least),
    ]
    return MechanismAudit(
        build=build.name,
        passed=all(bool(finding.passed) for finding in findings),
        epsilon_pld=claimed,
        epsilon_rdp=epsilon_rdp([event], profile.delta),
        delta=profile.delta,
        **unit_facts(plan.privacy.unit),
        bounds=bounds,
        findings=tuple(findings),
        profile=profile,
    )


def _plan(profile: Profile) -> Plan:
    return canaries.audit_plan(
        sampling_rate=profile.sampling_rate,
        noise_multiplier=profile.noise_multiplier,
        steps=profile.steps,
        patients=profile.patients + profile.canaries // 2,
    )


def _accounted(build: Build, plan: Plan) -> PoissonGaussianSteps:
    events = tuple(build.plan_events(plan))
    if len(events) != 1 or not isinstance(events[0], PoissonGaussianSteps) or events[0].noise_multiplier <= 0:
        raise AuditError(
            f"build {build.name!r} is accounted as {events}; the audit compares with Poisson-sampled Gaussian steps "
            "with noise and nothing else: give a build that accounts a plan without warm start and utility so"
        )
    return events[0]


def _named(progress: Progress, name: str) -> Progress:
    return lambda _, done, total: progress(name, done, total)


class _OneStep:
    """The loop's first step as a function of what it reads; every patient joins, with all images."""

    def __init__(self, build: Build, plan: Plan) -> None:
        self._build, self._plan = build, plan
        self._discriminator = canaries.build_networks(plan, 1)[1].network

    def released(
        self, given: StepInput, clip_norm: float, noise_multiplier: float, entropy: Entropy
    ) -> dict[str, Tensor]:
        """Released sum by parameter."""
        privacy = replace(
            self._plan.privacy,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            sampling_rate=1.0,
            images_per_patient=max(1, len(given.images)),
            fakes=given.fake_count,
        )
        patients = int(given.groups.max()) + 1 if len(given.groups) else 0
        released = canaries.released_sums(
            self._build.train_round,
            FixedFakes(given.fakes),
            self._discriminator,
            Cohort(images=given.images, labels=given.labels, owners=given.groups, patients=patients),
            replace(self._plan, privacy=privacy),
            steps=1,
            entropy=entropy,
        )
        if len(released) != 1:
            raise AuditError(f"build {self._build.name!r} released {len(released)} sums in one step; it must be one")
        return {name: clip_norm * value for name, value in released[0].items()}

    def noised(self, given: StepInput, clip_norm: float, noise_multiplier: float, entropy: Entropy) -> Tensor:
        """Released sum, flat (d,)."""
        return torch.cat([v.flatten() for v in self.released(given, clip_norm, noise_multiplier, entropy).values()])

    def bare(self, given: StepInput, clip_norm: float) -> Tensor:
        """The sum without noise, flat (d,)."""
        return self.noised(given, clip_norm, self._plan.privacy.noise_multiplier, NoEntropy())


def _check_sensitivity(build: Build, plan: Plan, profile: Profile, progress: Progress) -> Finding:
    progress("sensitivity", 0, 1)
    shape = (plan.image.channels, plan.image.size, plan.image.size)
    step = _OneStep(build, replace(plan, privacy=replace(plan.privacy, views=2)))
    found = check_sensitivity(step.bare, trials=profile.neighbours, shape=shape, classes=len(plan.image.labels))
    progress("sensitivity", 1, 1)
    return found


def _check_noise(
    build: Build, plan: Plan, event: PoissonGaussianSteps, entropy: Entropy, progress: Progress
) -> Iterator[Finding]:
    """The noise of single steps on the same input, over the whole sum and in each parameter by itself."""
    progress("noise", 0, 1)
    step, given = _OneStep(build, plan), _input_of_a_step(plan.privacy.fakes, patients=plan.training.physical_rows // 2)
    clip_norm, sigma = plan.privacy.clip_norm, event.noise_multiplier
    yield check_noise_scale(step.noised, given, clip_norm=clip_norm, noise_multiplier=sigma, entropy=entropy)
    few = _input_of_a_step(plan.privacy.fakes, patients=4)
    pairs = [[step.released(few, clip_norm, sigma, entropy) for _ in range(2)] for _ in range(_PAIRS)]
    worst, culprit = 0.0, "none"
    for name in pairs[0][0]:
        noise = torch.stack([(a[name] - b[name]).double() for a, b in pairs]) / (math.sqrt(2) * clip_norm * sigma)
        z = abs(float(noise.square().mean()) - 1) / math.sqrt(2 / noise.numel())
        if not z <= worst:
            worst, culprit = z, name
    yield Finding(
        check="noise in every parameter",
        passed=worst <= _ERRORS_OF_VARIANCE,
        value=worst,
        detail=f"the noise's variance is at most {worst:.1f} standard errors off (at most 6.5), in {culprit}",
        false_alarm=FALSE_ALARM,
    )
    progress("noise", 1, 1)


def _input_of_a_step(fakes: int, *, patients: int) -> StepInput:
    """Patients with two images each on average."""
    cohort = canaries.phantom_cohort(patients)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn((fakes, *cohort.images.shape[1:]), generator=generator)
    return StepInput(
        images=cohort.images,
        labels=cohort.labels,
        groups=cohort.owners,
        fakes=drawn,
        fake_labels=torch.zeros(fakes, dtype=torch.int64),
        fake_count=fakes,
    )


def _check_participation(
    build: Build, plan: Plan, event: PoissonGaussianSteps, profile: Profile, entropy: Entropy, progress: Progress
) -> Iterator[Finding]:
    """A run with real coins and no noise, whose release tells who took part and with how much."""
    plan = replace(plan, privacy=replace(plan.privacy, steps=profile.watched_steps))
    released = _watched(build, plan, profile, entropy, _named(progress, "participation"))
    yield check_contribution(released, profile.images_each)
    yield check_poisson_sampling(
        lambda *_: [torch.from_numpy(np.flatnonzero(step > 0.5)) for step in released],
        patients=profile.watched,
        sampling_rate=event.sampling_rate,
        steps=len(released),
        entropy=entropy,
    )


def _watched(build: Build, plan: Plan, profile: Profile, entropy: Entropy, progress: Progress) -> NDArray[np.float64]:
    """Releases without noise of a run in which everyone is a canary, (steps, watched), in units of C."""
    released = canaries.canary_releases(
        build.train_round,
        plan,
        canaries.with_canaries(canaries.phantom_cohort(0), np.ones(profile.watched, bool), profile.images_each),
        canaries=profile.watched,
        entropy=CoinsWithoutNoise(entropy),
        progress=progress,
    )
    if len(released) < 2:
        raise AuditError(f"build {build.name!r} released {len(released)} sums in {plan.privacy.steps} steps")
    return released
