"""Once a sum is noised nothing may look at a patient again.

The loop runs with every noised sum held constant, on several cohorts: all that it leaves must be the same, bit by bit.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from ghostnet.audit.canaries import TrainRound, idle_optimizers
from ghostnet.audit.contributions import drawn_cohort
from ghostnet.audit.findings import Finding
from ghostnet.audit.kinds import chosen
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan
from ghostnet.privacy.noise import Entropy
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import Optimizers

_STEPS = 6
_SIZES = (1, 2, 1, 3, 1, 2)  # images of each patient


def check_after_the_noise(train_round: TrainRound, plans: dict[str, Plan], entropy: Entropy) -> Finding:
    """Cohorts as different as can be leave the same generator and discriminator, in every kind of step.

    Args:
        train_round: the loop under audit.
        plans: by name.
        entropy: of sampling.
    """
    other: list[str] = []
    for name, plan in plans.items():
        first, *others = [_left(train_round, plan, cohort, entropy) for cohort in _cohorts(plan)]
        changed = {key for left in others for key in first if not torch.equal(first[key], left[key])}
        other += [f"{key} of {name}" for key in sorted(changed)]
    return Finding(
        check="nothing private after the noise",
        passed=bool(plans) and not other,
        value=float(len(other)),
        detail=f"{len(other)} tensors depend on patients otherwise than through the noised sum, in {len(plans)} kinds "
        f"of step ({', '.join(other[:3]) or 'none'})",
    )


def _cohorts(plan: Plan) -> list[Cohort]:
    """Ordinary patients; the same as negatives and larger, with other labels; others, and more of them; nobody."""
    drawn = drawn_cohort(plan, _SIZES)
    more = drawn_cohort(plan, (*_SIZES, 1, 1), seed=1)
    return [
        drawn,
        replace(drawn, images=0.5 - 3 * drawn.images),
        replace(drawn, labels=1 - drawn.labels),
        more,
        chosen(drawn, []),
    ]


def _left(train_round: TrainRound, plan: Plan, cohort: Cohort, entropy: Entropy) -> dict[str, torch.Tensor]:
    """All weights after some steps."""
    adaptive = {} if plan.training.loss == "wasserstein" else {"discriminator_steps_most": 4, "fakes_accuracy": 0.5}
    plan = replace(
        plan,
        privacy=replace(plan.privacy, sampling_rate=1.0, steps=_STEPS),
        training=replace(plan.training, discriminator_steps=1, **adaptive),  # type: ignore[arg-type]
    )
    generator, discriminator = build_generator(plan.networks), build_discriminator(plan.networks)
    idle = idle_optimizers(generator, discriminator)
    for optimizer, rate in ((idle.generator, 1e-3), (idle.discriminator, 1e-2)):
        optimizer.param_groups[0]["lr"] = rate
    train_round(
        generator,
        discriminator,
        Optimizers(generator=idle.generator, discriminator=idle.discriminator),
        cohort,
        plan,
        first_step=0,
        steps=_STEPS,
        released_mean=None,
        entropy=entropy,
        add_noise=lambda step, summed: {name: torch.zeros(value.shape) for name, value in summed.items()},
    )
    named = {"generator": generator, "discriminator": discriminator}
    return {
        f"{network}.{name}": copy.deepcopy(value)
        for network, module in named.items()
        for name, value in module.state_dict().items()
    }
