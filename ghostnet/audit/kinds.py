"""Every kind of private step that a plan may ask for, each as a small plan, and its sum as a function of a cohort.

The kinds are found and not listed: every architecture with every place of its gradient penalty, and every loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from ghostnet.audit.canaries import FixedFakes, TrainRound, idle_optimizers
from ghostnet.errors import AuditError, PlanError
from ghostnet.exchange import pooled
from ghostnet.models import REGISTRY, architecture
from ghostnet.plan import FederationSpec, GradientPenalty, Loss, Plan
from ghostnet.plan.compatibility import check_networks
from ghostnet.privacy.noise import Entropy, from_grid
from ghostnet.training.cohort import Cohort

WIDTH = 4  # of both networks: what is audited is the code, and layers of any width run the same
POOLED_HOSPITALS = 3
_PENALTIES: tuple[GradientPenalty, ...] = ("auto", "patient")
_ROWS_MAX = 1 << 20  # images of one patient that a step of the audit takes: all

StepSum = Callable[[Plan, nn.Module, Cohort, Entropy], Tensor]
"""(plan, discriminator, cohort, entropy) -> one step's sum, flat float64 (d,), in the clip norm's unit."""

NoisedShare = Callable[..., object]
"""`ghostnet.exchange.pooled.noised_share`: what a hospital computes of a pooled step."""


def step_kinds(base: Plan) -> dict[str, Plan]:
    """Plans by name: the first loss that fits each architecture and penalty, and every loss that fits some plan.

    Args:
        base: what they have in common; the networks' sizes are the least that each architecture draws.
    """
    kinds: dict[str, Plan] = {}
    seen: set[Loss] = set()
    for name in REGISTRY:
        for penalty in _PENALTIES:
            fitting = [loss for loss in get_args(Loss) if _fitting(base, name, penalty, loss) is not None]
            for loss in [loss for loss in fitting if loss == fitting[0] or loss not in seen]:
                plan = _fitting(base, name, penalty, loss)
                if plan is not None:
                    seen.add(loss)
                    place = architecture(name).penalty_place(penalty)
                    kinds[f"{name} {loss}" + (f" penalty at {place}" if place != "none" else "")] = plan
    return kinds


def _fitting(base: Plan, name: str, penalty: GradientPenalty, loss: Loss) -> Plan | None:
    """The plan with these networks; None where they do not go together."""
    record = architecture(name)
    for norm in record.norms:
        model = replace(
            base.model,
            architecture=name,
            discriminator_norm=norm,
            generator_width=WIDTH,
            discriminator_width=WIDTH,
        )
        training = replace(base.training, loss=loss, gradient_penalty=penalty, weight_clip=100.0)
        image = replace(base.image, size=min(record.sizes))
        plan = replace(base, image=image, model=model, training=training)
        try:
            check_networks(plan, "audit")
        except PlanError:
            continue
        return plan
    return None


def local_step(train_round: TrainRound, fakes: Tensor, *, first_step: int = 0) -> StepSum:
    """One step of a hospital's loop, every patient joining with all images; read where the noise is added.

    Args:
        train_round: the loop under audit.
        fakes: (pool, c, h, w), public; the step uses the first of them.
        first_step: steps that were done before.
    """

    def summed(plan: Plan, discriminator: nn.Module, cohort: Cohort, entropy: Entropy) -> Tensor:
        found: list[Tensor] = []

        def note(step: int, parts: dict[str, Tensor]) -> dict[str, Tensor]:
            found.append(torch.cat([part.flatten().double() for part in parts.values()]))
            return {name: torch.zeros(part.shape) for name, part in parts.items()}

        network, generator, before = copy.deepcopy(discriminator), FixedFakes(fakes), everyone(plan)
        train_round(
            generator,
            network,
            idle_optimizers(generator, network),
            cohort,
            before,
            first_step=first_step,
            steps=1,
            released_mean=None,
            entropy=entropy,
            add_noise=note,
        )
        if len(found) != 1:
            raise AuditError(f"{len(found)} sums were given their noise in one step; it must be one")
        return found[0]

    return summed


def pooled_step(noised_share: NoisedShare) -> StepSum:
    """One hospital's share of a pooled step, every patient joining with all images."""

    def released(plan: Plan, discriminator: nn.Module, cohort: Cohort, entropy: Entropy) -> Tensor:
        plan = everyone(as_pooled(plan))
        share = noised_share(discriminator, cohort, plan, entropy=entropy)
        return from_grid(torch.as_tensor(share), std=pooled.share_std(plan))

    return released


def as_pooled(plan: Plan) -> Plan:
    """The same step, taken by several hospitals together."""
    federation = FederationSpec(patients=plan.federation.patients, rounds=1, share="pooled", hospitals=POOLED_HOSPITALS)
    return replace(plan, federation=federation)


def everyone(plan: Plan) -> Plan:
    """The plan in whose steps each patient joins, with all images."""
    return replace(plan, privacy=replace(plan.privacy, sampling_rate=1.0, images_per_patient=_ROWS_MAX))


def one_patient(cohort: Cohort, patient: int) -> Cohort:
    """That patient alone."""
    return chosen(cohort, [patient])


def chosen(cohort: Cohort, patients: Sequence[int]) -> Cohort:
    """Some patients, in that order."""
    rows = [(cohort.owners == patient).nonzero().flatten() for patient in patients]
    index = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
    owners = torch.arange(len(patients)).repeat_interleave(torch.tensor([len(r) for r in rows], dtype=torch.int64))
    return Cohort(images=cohort.images[index], labels=cohort.labels[index], owners=owners, patients=len(patients))
