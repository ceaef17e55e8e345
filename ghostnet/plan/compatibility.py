"""Which parts of a plan go together: sizes, losses and penalties of each architecture.

What cannot work is refused when the plan is read, in one line that says what to change, and not at a hospital.
"""

from __future__ import annotations

from collections.abc import Iterator

from ghostnet.errors import PlanError
from ghostnet.plan.spec import PENALISED, Plan
from ghostnet.plan.toml import check_number

SIZES = {
    "dcgan": (28, 32, 64, 128),
    "wgan": (28, 32, 64, 128),
    "wgan-gp": (28, 32, 64, 128),
    "stylegan": (32, 64, 128),
    "keras28": (28,),
}
ANY_SIZE = tuple(sorted({size for sizes in SIZES.values() for size in sizes}))

_CRITICS = ("wgan", "wgan-gp")  # made for the Wasserstein loss and no other
_MAY_BE_PENALISED = ("dcgan", *PENALISED)


def check_networks(plan: Plan, source: str) -> None:
    """Refuses a plan whose networks and training do not go together.

    Raises:
        PlanError: the first thing that is wrong.
    """
    _check_ranges(plan, source)
    for fault in (*_size_faults(plan), *_loss_faults(plan), *_schedule_faults(plan), *_release_faults(plan)):
        raise PlanError(f"{fault} (in {source})")


def _check_ranges(plan: Plan, source: str) -> None:
    training = plan.training
    for name, bounds in {
        "model.truncation": {"low": 0, "high": 1},
        "training.discriminator_steps_most": {"low": 0, "high": 1_000_000},
        "training.fakes_accuracy": {"low": 0, "high": 1},
        "training.gradient_penalty_weight": {"above": 0, "high": 1e6},
        "training.weight_clip": {"above": 0, "high": 100},
        "training.perceptual_weight": {"low": 0, "high": 1e9},
        "training.perceptual_noise_multiplier": {"low": 0},
    }.items():
        table, _, key = name.partition(".")
        value = getattr(plan.model if table == "model" else training, key)
        check_number(value, key=name, source=source, error=PlanError, **bounds)  # type: ignore[arg-type]


def _size_faults(plan: Plan) -> Iterator[str]:
    model, sizes = plan.model, SIZES[plan.model.architecture]
    if plan.image.size not in sizes:
        several = f"{', '.join(map(str, sizes))} px" if len(sizes) > 1 else f"{sizes[0]} px alone"
        yield f"image.size = {plan.image.size} is no size of {model.architecture!r}, which draws {several}; change one"
    if model.architecture in ("stylegan", "keras28") and model.discriminator_norm != "none":
        yield (
            f"the discriminator of {model.architecture!r} has no normalisation layers; "
            'set model.discriminator_norm = "none"'
        )
    if model.truncation != 1 and model.architecture != "stylegan":
        yield f"model.truncation = {model.truncation:g} is for stylegan; leave it out for {model.architecture!r}"


def _loss_faults(plan: Plan) -> Iterator[str]:
    architecture, training = plan.model.architecture, plan.training
    if architecture in _CRITICS and training.loss != "wasserstein":
        yield f'training.loss = {training.loss!r} does not train {architecture!r}; set training.loss = "wasserstein"'
    if architecture == "wgan-gp" and training.gradient_penalty == "none":
        yield 'wgan-gp without its penalty has no bound on the critic; set training.gradient_penalty = "fakes"'
    if training.gradient_penalty in ("fakes", "patient") and architecture not in _MAY_BE_PENALISED:
        yield (
            f"training.gradient_penalty = {training.gradient_penalty!r} is not for {architecture!r}; use "
            f"{', '.join(_MAY_BE_PENALISED)}, or leave it out"
        )


def _schedule_faults(plan: Plan) -> Iterator[str]:
    training = plan.training
    if 0 < training.discriminator_steps_most < training.discriminator_steps:
        yield (
            f"training.discriminator_steps_most = {training.discriminator_steps_most} is less than "
            f"discriminator_steps = {training.discriminator_steps}; raise it, or set 0 for a fixed number"
        )
    if training.discriminator_steps_most > 0 and training.loss == "wasserstein":
        yield (
            "training.discriminator_steps_most needs an accuracy on fakes, and a Wasserstein critic has no level that "
            "means real or fake; set it to 0"
        )


def _release_faults(plan: Plan) -> Iterator[str]:
    training, federation = plan.training, plan.federation
    if (training.perceptual_weight > 0) != (training.perceptual_noise_multiplier > 0):
        yield (
            f"training.perceptual_weight = {training.perceptual_weight:g} with perceptual_noise_multiplier = "
            f"{training.perceptual_noise_multiplier:g}: the release costs budget and is used by that weight; set both "
            "or neither"
        )
    if training.perceptual_noise_multiplier > 0 and federation.rounds < 2:
        yield (
            f"training.perceptual_noise_multiplier is on with federation.rounds = {federation.rounds}: features are "
            "released at the start of each round but the first; use 2 rounds or more"
        )
    if training.perceptual_noise_multiplier > 0 and federation.share == "pooled":
        yield 'the perceptual release is made inside a hospital\'s round, and federation.share = "pooled" has none'
