"""Compatibility of a plan's parts: sizes, losses and penalties of each architecture.

What cannot work is refused when the plan is read, in one line that says what to change, and not at a hospital.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ghostnet.errors import PlanError
from ghostnet.models import REGISTRY, Architecture, architecture
from ghostnet.plan.spec import Plan


def check_networks(plan: Plan, source: str) -> None:
    """Refuses a plan whose networks and training do not go together.

    Raises:
        PlanError: the first thing that is wrong.
    """
    record = architecture(plan.model.architecture)
    for fault in (
        *_size_faults(plan, record),
        *_loss_faults(plan, record),
        *_schedule_faults(plan),
        *_release_faults(plan),
    ):
        raise PlanError(f"{fault} (in {source})")


def _size_faults(plan: Plan, record: Architecture) -> Iterator[str]:
    model, sizes = plan.model, record.sizes
    if plan.image.size not in sizes:
        several = f"{', '.join(map(str, sizes))} px" if len(sizes) > 1 else f"{sizes[0]} px alone"
        yield f"image.size = {plan.image.size} is no size of {model.architecture!r}, which draws {several}; change one"
    if model.discriminator_norm not in record.norms:
        yield (
            f"model.discriminator_norm = {model.discriminator_norm!r} is not for {model.architecture!r}; "
            f"set model.discriminator_norm = {_quoted(record.norms)}"
        )
    if model.truncation != 1 and not record.truncates:
        yield (
            f"model.truncation = {model.truncation:g} is for {_named(lambda other: other.truncates)}; "
            f"leave it out for {model.architecture!r}"
        )


def _loss_faults(plan: Plan, record: Architecture) -> Iterator[str]:
    name, training = plan.model.architecture, plan.training
    if record.losses is not None and training.loss not in record.losses:
        yield (
            f"training.loss = {training.loss!r} does not train {name!r}; set training.loss = {_quoted(record.losses)}"
        )
    if record.needs_penalty and training.gradient_penalty == "none":
        yield (
            f"{name!r} without its penalty has no bound on the critic; set training.gradient_penalty = "
            '"fakes" or "patient"'
        )
    if training.gradient_penalty in ("fakes", "patient") and record.penalty is None:
        yield (
            f"training.gradient_penalty = {training.gradient_penalty!r} is not for {name!r}; use "
            f"{_named(lambda other: other.penalty is not None)}, or leave it out"
        )


def _quoted(values: tuple[str, ...]) -> str:
    return " or ".join(f'"{value}"' for value in values)


def _named(chosen: Callable[[Architecture], bool]) -> str:
    """Names of the architectures that a plan may take instead."""
    return ", ".join(name for name in REGISTRY if chosen(architecture(name)))


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
