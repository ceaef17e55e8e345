"""Wrong builds of the later mechanisms: pooled noise, masks, the perceptual release, and what follows the noise.

As in `hospital_bugs`, each is the product with one piece replaced, and a check takes a folder, a build or a loop.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from client.config import load_site
from client.site import Site
from ghostnet import pooled, protocol
from ghostnet.audit.canaries import TrainRound
from ghostnet.audit.findings import Finding
from ghostnet.audit.mechanism import HOSPITAL, Build
from ghostnet.cohort import Cohort
from ghostnet.local_state import LocalState
from ghostnet.losses import fakes_penalty
from ghostnet.models import build_discriminator
from ghostnet.perceptual import embed
from ghostnet.plan import Plan
from ghostnet.privacy.claim import resolve
from ghostnet.privacy.events import Event, GaussianRelease
from ghostnet.secure_sum import Masks
from ghostnet.weights import to_arrays
from tests.entropy import SeededEntropy
from tests.networks import network_plan, plan_cohort
from tests.plans import tiny_plan, write_striped_npz
from tests.planted.audit_builds import loop_with
from tests.planted.hospital_bugs import RUN, CountingEntropy
from tests.rosters import join_all
from tests.server.direct_grid import write_hospitals

HOSPITALS = 3


def pooled_plan(hospitals: int) -> Plan:
    """The tiny plan, pooled."""
    patients = f'patients = 20\nshare = "pooled"\nhospitals = {hospitals}'
    return resolve(tiny_plan(epsilon="epsilon = 20.0", patients=patients))


# Each hospital divides the noise by n where the variance is what n hospitals share.


def check_pooled_noise(folder: Path) -> Finding:
    """The shares of hospitals without patients add up to noise of the accounted size."""
    del folder
    plan = pooled_plan(HOSPITALS)
    network, none = build_discriminator(plan), plan_cohort(plan, patients=0)
    shares = [pooled.noised_share(network, none, plan, entropy=SeededEntropy(i)) for i in range(HOSPITALS)]
    total = pooled.total_gradient(np.sum(shares, axis=0), network, plan)
    noise = torch.cat([part.flatten() for part in total.values()])
    claimed = plan.privacy.clip_norm * plan.privacy.noise_multiplier
    ratio, error = float(noise.std()) / claimed, 5 / math.sqrt(2 * len(noise))
    return Finding(
        check="pooled noise",
        passed=abs(ratio - 1) <= error,
        value=ratio,
        detail=f"the noise of {HOSPITALS} shares together is {ratio:.4f} x the claimed size (1 +- {error:.4f})",
    )


@contextmanager
def noise_over_hospitals() -> Iterator[None]:
    """Standard deviation sigma C / n, so that the sum has sigma C / sqrt(n)."""
    share_std = pooled.share_std
    with mock.patch.object(pooled, "share_std", lambda plan: share_std(plan) / math.sqrt(plan.federation.hospitals)):
        yield


# One mask for all steps: the difference of two messages is that of the shares.


def check_masks_of_two_steps(folder: Path) -> Finding:
    """The difference of a hospital's messages of two steps is as good as uniform modulo 2^64."""
    plan = pooled_plan(2)
    folder.mkdir(parents=True, exist_ok=True)
    files = write_hospitals(
        folder, ("harbour", "north"), lambda path, i: write_striped_npz(path, seed=i), epsilon=20.0, coalition=200.0
    )
    sites = [Site(load_site(file)) for file in files]
    roster = join_all(sites, plan, RUN).to_text()
    weights = to_arrays(build_discriminator(plan))
    sent = [sites[0].step(plan, RUN, step, weights, roster)[protocol.MASKED_SUM] for step in (1, 2)]
    for site in sites:
        site.close()
    difference = (sent[0].view(np.uint64) - sent[1].view(np.uint64)).view(np.int64)
    mean = float(np.abs(difference / 2.0**63).mean())  # 1/2 of what is uniform
    error = 5 / math.sqrt(12 * len(difference))
    return Finding(
        check="masks of two steps",
        passed=abs(mean - 0.5) <= error,
        value=mean,
        detail=f"two messages differ by {mean:.3g} x 2^63 on average (0.5 +- {error:.2g} under two masks)",
    )


@contextmanager
def mask_used_twice() -> Iterator[None]:
    """The stream forgets which step it is for."""
    masked = Masks.masked
    with mock.patch.object(Masks, "masked", lambda self, values, request: masked(self, values, "step")):
        yield


# A release that is made and not charged.


def uncharged(plan: Plan) -> tuple[Event, ...]:
    """What an accountant knows that has never heard of the perceptual release."""
    return tuple(event for event in HOSPITAL.plan_events(plan) if event.name != "perceptual features")


PERCEPTUAL_NOT_CHARGED = dataclasses.replace(HOSPITAL, name="perceptual release not charged", plan_events=uncharged)


def check_noise_as_accounted(build: Build) -> Finding:
    """A run's rounds draw as many numbers of noise as the events for them stand for."""
    options = {"perceptual_noise_multiplier": 2.0, "perceptual_weight": 1.0}
    plan = network_plan("dcgan", training=options, privacy={"noise_multiplier": 1.0})
    state, cohort, entropy = LocalState(plan), plan_cohort(plan), CountingEntropy(1)
    for number in range(1, plan.federation.rounds + 1):
        build.train_round(
            state.generator, state.discriminator, state.optimizers, cohort, plan,
            first_step=state.step, steps=plan.round_steps(number), released_mean=None, entropy=entropy,
        )  # fmt: skip
        state.step += plan.round_steps(number)
    weights = sum(p.numel() for p in state.discriminator.parameters())
    vector = len(plan.image.labels) * embed(state.discriminator, cohort.images[:1]).shape[1]
    releases = {"warm start": 0, "utility counts": 0, "perceptual features": vector}  # the first two: not in a round
    claimed = sum(
        event.count * releases[event.name] if isinstance(event, GaussianRelease) else event.steps * weights
        for event in build.plan_events(plan)
    )
    return Finding(
        check="noise drawn as accounted",
        passed=entropy.drawn == claimed,
        value=float(entropy.drawn),
        detail=f"{entropy.drawn} numbers of noise were drawn in all rounds, {claimed} are accounted",
    )


# Once the sum is noised nothing may look at a patient again.


def check_after_the_noise(train_round: TrainRound) -> Finding:
    """With every noised sum held constant, two cohorts give the same networks, bit by bit."""
    adaptive = {"discriminator_steps": 1, "discriminator_steps_most": 4, "fakes_accuracy": 0.5}
    plan = network_plan("wgan-gp", training=adaptive, privacy={"noise_multiplier": 1.0, "sampling_rate": 1.0})
    cohort, found = plan_cohort(plan), []
    for data in (cohort, dataclasses.replace(cohort, images=0.5 - 3 * cohort.images)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            state = LocalState(plan)
        train_round(
            state.generator, state.discriminator, state.optimizers, data, plan,
            first_step=0, steps=8, released_mean=None, entropy=SeededEntropy(0),
            add_noise=lambda step, summed: {name: torch.zeros(value.shape) for name, value in summed.items()},
        )  # fmt: skip
        found.append({**to_arrays(state.generator), **to_arrays(state.discriminator)})
    other = [name for name in found[0] if not np.array_equal(found[0][name], found[1][name])]
    return Finding(
        check="nothing private after the noise",
        passed=not other,
        value=float(len(other)),
        detail=f"{len(other)} of {len(found[0])} tensors depend on patients otherwise than through the noised sum",
    )


def asks_about_reals(*arguments: Any, **named: Any) -> None:
    """The generator steps once the discriminator knows the cohort's images for what they are."""
    cohort: Cohort = arguments[3]

    def is_due(network: nn.Module, fakes: Tensor, labels: Tensor, plan: Plan, *, step: int, waited: int) -> bool:
        del fakes, labels, step
        with torch.no_grad():
            accuracy = float((network(cohort.images, cohort.labels) > 0).float().mean())
        return accuracy >= plan.training.fakes_accuracy or waited >= plan.training.discriminator_steps_most

    loop_with(_generator_is_due=is_due)(*arguments, **named)


def penalises_at_reals(*arguments: Any, **named: Any) -> None:
    """The penalty of WGAN-GP, taken where its paper takes it, beside the noised gradient."""
    cohort: Cohort = arguments[3]

    def penalty(network: nn.Module, fakes: Tensor, labels: Tensor, plan: Plan) -> list[Tensor]:
        del fakes, labels
        return fakes_penalty(network, cohort.images[:8], cohort.labels[:8], plan)

    loop_with(fakes_penalty=penalty)(*arguments, **named)
