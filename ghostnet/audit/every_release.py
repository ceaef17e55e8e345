"""Audit of every release of every architecture and mode: who adds what to it, and its noise.

`mechanism` looks deeply at one kind of step; here every kind of step, alone and pooled, and every other release is held
against the same properties: a patient's part is the patient's own and within the clip, noise is as large as accounted
and fresh, a hospital draws no other noise than it accounts, nothing private follows the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ghostnet.audit import canaries
from ghostnet.audit.canaries import CoinsWithoutNoise, FixedFakes, NoEntropy, TrainRound, released_sums
from ghostnet.audit.canary_checks import check_contribution
from ghostnet.audit.conformance import check_poisson_sampling
from ghostnet.audit.contributions import check_block_boundaries, check_contributions, drawn_cohort
from ghostnet.audit.findings import Finding
from ghostnet.audit.fresh_noise import Noise, check_noise, check_repeats
from ghostnet.audit.hospitals import OpenHospital, Source
from ghostnet.audit.kinds import NoisedShare, StepSum, as_pooled, everyone, local_step, pooled_step, step_kinds
from ghostnet.audit.post_processing import check_after_the_noise
from ghostnet.audit.releases import (
    NoisedFeatures,
    PlanEvents,
    accounted_runs,
    check_accounted,
    check_masked_sums,
    check_release_boundaries,
    check_release_parts,
    check_repeated_answers,
    harmful_releases,
    masked_plan,
    noise_of_masked_sums,
    noise_of_one_run,
    noise_of_releases,
    release_plan,
    releases_of,
)
from ghostnet.errors import AuditError
from ghostnet.exchange import pooled
from ghostnet.models import build_discriminator
from ghostnet.plan import Plan
from ghostnet.privacy.noise import Entropy, SystemEntropy, from_grid
from ghostnet.progress import Progress, silent

STEPS = 24  # noisy ones in a row, twice, and as many pooled shares
LATER = 2  # steps done before a later round
WIDE = 96  # channels at which a tensor is longer than any chunk in which noise is drawn
_NEVER = 1_000_000  # discriminator steps to one of the generator
_FAKES = 4
WATCHED, WATCHED_STEPS = 200, 100  # patients whose sampling in pooled steps is watched, and steps


@dataclass(frozen=True, kw_only=True)
class Build:
    """The subject of an audit: everything that a hospital releases, and what it is accounted as.

    Attributes:
        name: for people.
        train_round: the loop of private steps.
        noised_share: a hospital's part of a pooled step.
        noised_features: the perceptual release.
        plan_events: what a plan is accounted as.
        open_hospital: a hospital that answers requests, for all that it composes itself.
    """

    name: str
    train_round: TrainRound
    noised_share: NoisedShare
    noised_features: NoisedFeatures
    plan_events: PlanEvents
    open_hospital: OpenHospital


def check_every_release(build: Build, base: Plan, source: Source, progress: Progress = silent) -> Iterator[Finding]:
    """All checks, one finding each over every kind of step and every release.

    Args:
        build: under audit.
        base: what the audit's plans have in common.
        source: of coins and noise; None is the operating system's, and in a hospital the one that it chooses itself.
        progress: told (check, done, total).
    """
    entropy = source or SystemEntropy()
    base = replace(
        base,
        privacy=replace(base.privacy, fakes=_FAKES),
        training=replace(base.training, discriminator_steps=_NEVER),
    )
    kinds = step_kinds(base)
    plan = release_plan(base)
    releases = releases_of(build.open_hospital, build.noised_features, plan, kinds)
    yield from check_contributions(steps_of(build, kinds), progress=progress)
    yield check_block_boundaries(steps_of(build, kinds, pooled_kinds=_by_architecture(kinds)), progress=progress)
    yield check_after_the_noise(build.train_round, kinds, entropy)
    yield from check_release_parts(releases, progress)
    harmful = harmful_releases(build.open_hospital, build.noised_features, plan, kinds)
    yield check_release_boundaries(harmful, progress)
    masked = masked_plan(plan)
    yield from check_noises(
        {
            **noise_of_kinds(build, kinds, entropy, progress),
            **noise_of_releases(releases, source),
            "one run": noise_of_one_run(build.open_hospital, plan, source),
            "masked sums": noise_of_masked_sums(build.open_hospital, masked, source),
        }
    )
    yield check_masked_sums(build.open_hospital, masked, source)
    yield from check_accounted(build.open_hospital, build.plan_events, accounted_runs(plan, kinds), entropy, progress)
    yield check_repeated_answers(build.open_hospital, plan, source)
    yield from check_pooled_sampling(build.noised_share, base, entropy)


def steps_of(
    build: Build, kinds: Mapping[str, Plan], *, pooled_kinds: Mapping[str, Plan] | None = None
) -> dict[str, tuple[StepSum, Plan]]:
    """Every kind of step as a hospital takes it alone, and as its part of a pooled one."""
    steps = {name: (local_step(build.train_round, public_fakes(plan)), plan) for name, plan in kinds.items()}
    later = {
        f"{name}, later round": (local_step(build.train_round, public_fakes(plan), first_step=LATER), plan)
        for name, plan in list(kinds.items())[:1]
    }
    together = {
        f"{name}, pooled": (pooled_step(build.noised_share), plan) for name, plan in (pooled_kinds or kinds).items()
    }
    return {**steps, **later, **together}


def public_fakes(plan: Plan) -> Tensor:
    """Fakes for a step and for a generator's batch, float (f, c, h, w) in [-1, 1]."""
    public = torch.Generator().manual_seed(9)
    count = max(plan.privacy.fakes, plan.training.generator_batch)
    return torch.rand(count, plan.planes, plan.image.size, plan.image.size, generator=public) * 2 - 1


def noise_of_kinds(
    build: Build, kinds: Mapping[str, Plan], entropy: Entropy, progress: Progress = silent
) -> dict[str, Noise]:
    """Noise of every kind of step and of its pooled share, and of one with a tensor longer than any chunk."""
    noise: dict[str, Noise] = {}
    for number, (name, plan) in enumerate(kinds.items()):
        progress("noise", number, len(kinds))
        noise[f"steps of {name}"] = noise_of_steps(build.train_round, plan, entropy)
        noise[f"pooled shares of {name}"] = noise_of_shares(build.noised_share, plan, entropy)
    first = next(iter(kinds.values()))
    wide = replace(first, model=replace(first.model, discriminator_width=WIDE))
    noise["wide steps"] = noise_of_steps(build.train_round, wide, entropy, steps=1)
    noise["wide pooled shares"] = noise_of_shares(build.noised_share, wide, entropy, steps=2)
    progress("noise", len(kinds), len(kinds))
    return noise


def noise_of_steps(train_round: TrainRound, plan: Plan, entropy: Entropy, *, steps: int = STEPS) -> Noise:
    """Noise by tensor of two runs of the loop, in units of its accounted size; everybody joins every step."""
    plan = everyone(replace(plan, training=replace(plan.training, physical_rows=4)))
    cohort = drawn_cohort(plan, (1, 2, 5, 1))

    def released(first: int, count: int, source: Entropy) -> list[dict[str, Tensor]]:
        network, generator = build_discriminator(plan.networks), FixedFakes(public_fakes(plan))
        return released_sums(
            train_round, generator, network, cohort, plan, first_step=first, steps=count, entropy=source
        )

    bare, noisy = released(0, 1, NoEntropy()), [*released(0, steps, entropy), *released(LATER, steps, entropy)]
    if len(bare) != 1 or len(noisy) != 2 * steps:
        raise AuditError(f"{len(noisy)} sums were released in 2 x {steps} steps; there must be one in each")
    sigma = plan.privacy.noise_multiplier
    return {
        name: torch.stack([(step[name] - value).double().flatten() / sigma for step in noisy]).numpy()
        for name, value in bare[0].items()
    }


def noise_of_shares(noised_share: NoisedShare, plan: Plan, entropy: Entropy, *, steps: int = STEPS) -> Noise:
    """Noise by tensor of one hospital's shares of pooled steps, in units of a share's accounted size."""
    plan = everyone(as_pooled(replace(plan, training=replace(plan.training, physical_rows=4))))
    cohort, network, std = drawn_cohort(plan, (1, 2, 5, 1)), build_discriminator(plan.networks), pooled.share_std(plan)

    def share(source: Entropy) -> Tensor:
        return from_grid(torch.as_tensor(noised_share(network, cohort, plan, entropy=source)), std=std)

    accounted = plan.privacy.clip_norm * plan.privacy.noise_multiplier / np.sqrt(plan.federation.hospitals)
    bare = share(NoEntropy())
    noise = torch.stack([(share(entropy) - bare) / accounted for _ in range(steps)])
    shapes = pooled.trained_parameters(network)
    parts = noise.split([shape.numel() for shape in shapes.values()], dim=1)
    return {name: part.numpy() for name, part in zip(shapes, parts, strict=True)}


def check_noises(noise: Mapping[str, Noise]) -> Iterator[Finding]:
    """`fresh_noise` on all of them; of each check the first that fails is told, or the last that holds."""
    found: dict[str, tuple[str, Finding]] = {}
    for name, parts in noise.items():
        for finding in check_noise(parts):
            if finding.check not in found or found[finding.check][1].passed:
                found[finding.check] = (name, finding)
    for name, finding in found.values():
        detail = f"{finding.detail}; {name}, of {len(noise)} releases"
        yield replace(finding, detail=detail, false_alarm=len(noise) * finding.false_alarm)
    yield check_repeats(noise)


def check_pooled_sampling(noised_share: NoisedShare, base: Plan, entropy: Entropy) -> Iterator[Finding]:
    """In pooled steps each patient joins each step independently with probability q, and adds C or nothing."""
    privacy = replace(base.privacy, sampling_rate=0.1, images_per_patient=4)
    plan = as_pooled(replace(base, privacy=privacy))
    network = canaries.build_networks(plan, WATCHED)[1]
    cohort = canaries.with_canaries(canaries.phantom_cohort(0), np.ones(WATCHED, bool), 2)
    place = 0
    for name, shape in pooled.trained_parameters(network).items():
        if name == "port.weight":
            break
        place += shape.numel()
    joined = []
    for _ in range(WATCHED_STEPS):
        share = torch.as_tensor(noised_share(network, cohort, plan, entropy=CoinsWithoutNoise(entropy)))
        share = from_grid(share, std=pooled.share_std(plan)) / plan.privacy.clip_norm
        joined.append(share[place : place + WATCHED])
    yield replace(check_contribution(torch.stack(joined).numpy(), 2), check="contribution to pooled steps")
    found = check_poisson_sampling(
        lambda *_: [(step > 0.5).nonzero().flatten() for step in joined],
        patients=WATCHED,
        sampling_rate=plan.privacy.sampling_rate,
        steps=len(joined),
        entropy=entropy,
    )
    yield replace(found, check="Poisson sampling of pooled steps")


def _by_architecture(kinds: Mapping[str, Plan]) -> dict[str, Plan]:
    """The first kind of each architecture: its layers run the same in all."""
    found: dict[str, tuple[str, Plan]] = {}
    for name, plan in kinds.items():
        found.setdefault(plan.model.architecture, (name, plan))
    return dict(found.values())
