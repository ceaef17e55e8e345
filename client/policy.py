"""The hospital's policy: its own limits, held against a plan before anything private is read.

The coordinator can only ask. A limit of `site.toml` can refuse a plan and can never widen one, and a plan that passes
runs exactly as it is written. Each refusal has a number (P01 to P20; P15 is no longer in use) that may leave the
hospital; its text may not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from client.masking import known_peers
from ghostnet.accounting.catalogue import CATALOGUE, Mechanism, plan_value
from ghostnet.accounting.epsilon import epsilon_pld
from ghostnet.accounting.events import Event, SharedNoiseSteps, coalition_events
from ghostnet.accounting.plan_cost import claim, plan_events
from ghostnet.errors import GhostNetError, PolicyError
from ghostnet.evidence.keys import DIGEST
from ghostnet.models import REGISTRY, architecture
from ghostnet.plan import MAX_BANDWIDTH, MIN_BANDWIDTH, Plan, Unit
from ghostnet.plan.federation import MAX_POOLED_HOSPITALS, MAX_POOLED_STEPS
from ghostnet.plan.keys import Number, key
from ghostnet.plan.tasks import REGISTRY as TASKS

ANY_PLAN = ("any",)
_MAX_IMAGES = 1000  # images and views of one patient in a step; bounds the work that a server may ask for
_MAX_VIEWS = 64
_MIN_CLIP_NORM, _MAX_CLIP_NORM = 1e-3, 1e3
_MAX_OF_REQUEST = {  # what one request may make this machine hold
    "model.generator_width": 512,
    "model.discriminator_width": 512,
    "model.latent": 4096,
    "warm_start.features": 20_000,
    "privacy.fakes": 8192,
    "training.physical_rows": 1024,
    "training.generator_batch": 4096,
    "utility.bins": 1000,
}
_RANGE_OF = {  # (least, most) of the numbers that a patient's arithmetic meets, or that decide where training goes
    "warm_start.bandwidth": (MIN_BANDWIDTH, MAX_BANDWIDTH),
    "warm_start.mean_image_weight": (0.0, 1.0),
    "training.gradient_penalty_weight": (0.0, 1e6),
    "training.weight_clip": (0.0, 100.0),
    "training.learning_rate_discriminator": (0.0, 1.0),
    "training.learning_rate_generator": (0.0, 1.0),
    "training.beta1": (0.0, 1.0),
    "training.beta2": (0.0, 1.0),
    "training.ema": (0.0, 1.0),
}
_MAX_NUMBERS = 1 << 22  # of one patient's vector; a release of it holds about as many


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """The hospital's limits: table [policy] of site.toml."""

    max_epsilon: Annotated[
        Number,
        key(
            "Most of a patient's privacy budget that all runs together may ever spend, as epsilon by PLD. People "
            "decide this.",
            gt=0,
            le=1e6,
            example=8.0,
        ),
    ]
    delta: Annotated[
        Number,
        key(
            "Delta at which max_epsilon is counted, well below 1 divided by the hospital's number of patients. A "
            "plan's own may be smaller, not below 1e-12.",
            ge=1e-12,
            lt=1,
            example=1e-5,
        ),
    ]
    min_noise_multiplier: Annotated[
        Number, key("Least noise of every mechanism that is on.", gt=0, unit="sensitivities")
    ] = 0.3
    max_rounds: Annotated[int, key("Most rounds of one run.", ge=0)] = 1000
    max_steps: Annotated[int, key("Most discriminator steps of one run.", ge=0)] = 100_000
    max_sampling_rate: Annotated[Number, key("Largest probability with which a patient joins a step.", gt=0, le=1)] = (
        0.5
    )
    max_coalition_epsilon: Annotated[
        Number,
        key(
            'Only for plans with share = "pooled": the most that all runs together may tell the coordinator and all '
            "other hospitals, who could put their parts together; 0: this hospital takes no part in pooled runs.",
            ge=0,
            le=1e6,
        ),
    ] = 0.0
    peers: Annotated[
        tuple[str, ...],
        key(
            'Only for plans with share = "pooled": "name=public key" of every other hospital; empty: as the '
            "coordinator says first."
        ),
    ] = ()
    approved_plans: Annotated[
        tuple[str, ...],
        key('The SHA-256 of each plan that a person has approved (ghostnet plan check prints it), or "any".'),
    ] = ANY_PLAN
    witness: Annotated[
        Path | None,
        key(
            "File outside the state folder in which every ledger entry is noted too, by appending a line. A ledger "
            "that was restored from an older copy, copied or lost is then refused. Left out: beside the state folder, "
            "with its name and .witness. Better: on another disk, append-only (chattr +a), or on a WORM share that "
            "takes appends. Never restore it from a backup.",
            example="/mnt/other-disk/north.witness",
        ),
    ] = None
    allow_real_reference: Annotated[
        bool,
        key("A simulation may also train a classifier on the real images, outside the budget; not for patients."),
    ] = False


def check_plan(plan: Plan, policy: PolicySpec) -> None:
    """Refuses a plan that asks for more than the hospital allows.

    Args:
        plan: the plan as it will run, its noise multiplier filled in (`ghostnet.accounting.plan_cost.resolve`).
        policy: the hospital's limits.

    Raises:
        PolicyError: every limit that is broken, each with its number.

    Guarantee:
        Unit: patient, add/remove one. A plan that passes has, for each mechanism that is on, noise of at least
        min_noise_multiplier, and by PLD costs at most its own epsilon, which is at most max_epsilon. The
        plan and the limits alone decide: neither is computed from a patient.
        Not covered: what other runs have spent (see ghostnet/evidence/ledger.py).
    """
    refusals = [
        *_budget(plan, policy),
        *_noise(plan, policy),
        *_size(plan, policy),
        *_load(plan),
        *_ranges(plan),
        *_form(plan, policy),
    ]
    refusals = refusals or list(_claim(plan))  # the accountant is only asked about numbers that make sense
    if refusals:
        raise PolicyError("; ".join(refusals))
    check_coalition(plan_events(plan), policy)


def check_unit(plan: Plan, unit: Unit) -> None:
    """Refuses a plan that says "patient" where the hospital's data names none.

    A plan with unit "image" runs on data that names patients: the mechanism groups by patient whatever the plan says,
    and the hospital signs that unit. The other way round each image would count as a patient, and the certificate say
    more than holds.

    Args:
        plan: the plan.
        unit: that this hospital's data can protect, by the form of its source alone (`client.intake.unit`).

    Raises:
        PolicyError: P19.
    """
    if plan.privacy.unit == "patient" and unit == "image":
        raise PolicyError(
            "P19: [privacy].unit = 'patient' promises more than this hospital's data can hold: it names no patients. "
            "Give its source a patient for each image (the column patient), or agree on a plan with "
            'unit = "image" in [privacy]'
        )


def _number(value: object) -> float:
    """The value as a float; NaN, which fails every comparison below, for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # a whole number beyond every float
        return math.nan


def _budget(plan: Plan, policy: PolicySpec) -> Iterator[str]:
    epsilon, delta = _number(plan.privacy.epsilon), _number(plan.privacy.delta)
    if not 0 < epsilon <= _number(policy.max_epsilon):
        yield (
            f"P01: privacy.epsilon = {plan.privacy.epsilon} is not > 0 and <= {policy.max_epsilon} "
            "([policy].max_epsilon)"
        )
    if not (0 < delta <= _number(policy.delta) and policy.delta < 1):
        yield f"P02: privacy.delta = {plan.privacy.delta} is not > 0 and <= {policy.delta} ([policy].delta)"


def _noise(plan: Plan, policy: PolicySpec) -> Iterator[str]:
    least = _number(policy.min_noise_multiplier)
    if not least > 0:
        yield f"P03: [policy].min_noise_multiplier = {policy.min_noise_multiplier} is not > 0; set it in site.toml"
    wanted = f"is not a finite number >= {policy.min_noise_multiplier} ([policy].min_noise_multiplier)"
    trains = plan.federation.rounds != 0 or plan.privacy.steps != 0
    for code, dotted, is_switch in dict.fromkeys(
        (s.policy_code, s.noise_key, s.mechanism is Mechanism.GAUSSIAN) for s in CATALOGUE
    ):
        value = plan_value(plan, dotted)
        if _number(value) >= least:
            continue
        if not is_switch and trains:
            yield f"{code}: {dotted} = {value} {wanted}"
        elif is_switch and not _number(value) == 0:  # 0 switches it off; nothing is released then
            yield f"{code}: {dotted} = {value} is neither 0 (off) nor enough: it {wanted}"


def _size(plan: Plan, policy: PolicySpec) -> Iterator[str]:
    rounds, steps = _whole(plan.federation.rounds), _whole(plan.privacy.steps)
    if not 0 <= rounds <= _number(policy.max_rounds):
        yield (
            f"P06: federation.rounds = {plan.federation.rounds} is not a whole number <= {policy.max_rounds} "
            "([policy].max_rounds)"
        )
    if not (0 <= steps <= _number(policy.max_steps) and (steps == 0) == (rounds == 0) and rounds <= steps):
        yield (
            f"P07: privacy.steps = {plan.privacy.steps} is not a whole number <= {policy.max_steps} "
            f"([policy].max_steps) that makes {plan.federation.rounds} rounds"
        )
    rate = _number(plan.privacy.sampling_rate)
    if not (0 < rate <= 1 and rate <= _number(policy.max_sampling_rate)):
        yield (
            f"P08: privacy.sampling_rate = {plan.privacy.sampling_rate} is not > 0 and <= {policy.max_sampling_rate} "
            "([policy].max_sampling_rate)"
        )
    images, views = _whole(plan.privacy.images_per_patient), _whole(plan.privacy.views)
    if not (1 <= images <= _MAX_IMAGES and 1 <= views <= _MAX_VIEWS):
        yield (
            f"P09: {plan.privacy.images_per_patient} images and {plan.privacy.views} views a patient are not "
            f"1 to {_MAX_IMAGES} and 1 to {_MAX_VIEWS}"
        )


def _load(plan: Plan) -> Iterator[str]:
    for dotted, most in _MAX_OF_REQUEST.items():
        value = plan_value(plan, dotted)
        if not 1 <= _whole(value) <= most:
            yield f"P14: {dotted} = {value} is not 1 to {most}, which is what this hospital computes for anybody"
    if len(plan.image.labels) > _MAX_IMAGES:
        yield f"P14: {len(plan.image.labels)} labels are more than {_MAX_IMAGES}"
    for what, numbers, most in _products(plan):
        if not 0 <= numbers <= most:
            yield f"P14: {what} makes {numbers:g}, and this hospital computes 0 to {most} for anybody"


def _ranges(plan: Plan) -> Iterator[str]:
    asked = {dotted: plan_value(plan, dotted) for dotted in _RANGE_OF}
    scales = {f"warm_start.more_bandwidths[{i}]": scale for i, scale in enumerate(plan.warm_start.more_bandwidths)}
    for dotted, value in (asked | scales).items():
        least, most = _RANGE_OF.get(dotted, _RANGE_OF["warm_start.bandwidth"])
        if not least <= _number(value) <= most:
            yield f"P20: {dotted} = {value} is not {least:g} to {most:g}, the range that this hospital computes in"


def _products(plan: Plan) -> Iterator[tuple[str, float, int]]:
    """Numbers that a plan makes large by several of its values together; no network is built to tell."""
    labels, warm, training = len(plan.image.labels), plan.warm_start, plan.training
    planes = _whole(plan.image.channels) + _whole(plan.image.mask_channels)
    block = _whole(warm.features) + planes * _whole(warm.feature_size) ** 2 + 1
    yield "labels x warm-start numbers", labels * block, _MAX_NUMBERS
    if _number(training.perceptual_noise_multiplier) != 0:
        known = plan.model.architecture in REGISTRY
        widths = architecture(plan.model.architecture).feature_widths if known else math.inf
        features = widths * _whole(plan.model.discriminator_width)
        yield "labels x discriminator features", labels * (features + 1), _MAX_NUMBERS


def _form(plan: Plan, policy: PolicySpec) -> Iterator[str]:
    if not _MIN_CLIP_NORM <= _number(plan.privacy.clip_norm) <= _MAX_CLIP_NORM:
        yield (
            f"P10: privacy.clip_norm = {plan.privacy.clip_norm} is not {_MIN_CLIP_NORM} to {_MAX_CLIP_NORM}, where "
            "float32 gradients are bounded as claimed"
        )
    if plan.model.architecture not in REGISTRY:
        yield f"P11: model.architecture = {plan.model.architecture!r} is not one of {', '.join(REGISTRY)}"
    elif plan.model.discriminator_norm not in (norms := architecture(plan.model.architecture).norms):
        yield (
            f"P11: model.discriminator_norm = {plan.model.discriminator_norm!r} couples patients or is not of this "
            f"network; use {' or '.join(norms)}"
        )
    if plan.federation.share not in ("generator", "gan", "pooled"):
        yield f"P11: federation.share = {plan.federation.share!r} is not something that this hospital releases"
    tasks = plan.utility.tasks
    if not isinstance(tasks, tuple) or not tasks or any(name not in tuple(TASKS) for name in tasks):
        yield f"P11: utility.tasks = {tasks!r} is not a list of {', '.join(TASKS)}"
    if plan.federation.share == "pooled":
        yield from _pooled(plan, policy)
    if not _is_approved(plan, policy.approved_plans):
        yield "P12: nobody here has approved this plan; add its hash to [policy].approved_plans once you have read it"
    if plan.utility.real_reference is not False and policy.allow_real_reference is not True:
        yield "P13: utility.real_reference asks for figures outside the budget ([policy].allow_real_reference = false)"


def _pooled(plan: Plan, policy: PolicySpec) -> Iterator[str]:
    hospitals, steps = _whole(plan.federation.hospitals), _whole(plan.privacy.steps)
    if not _number(policy.max_coalition_epsilon) > 0:
        yield (
            "P17: federation.share = 'pooled' needs leave from this hospital: it adds a part of the noise only. Set "
            "[policy].max_coalition_epsilon to what the others together may learn"
        )
    if not (2 <= hospitals <= MAX_POOLED_HOSPITALS and 1 <= steps <= MAX_POOLED_STEPS):
        yield (
            f"P17: {plan.federation.hospitals} hospitals and {plan.privacy.steps} steps are not 2 to "
            f"{MAX_POOLED_HOSPITALS} and 1 to {MAX_POOLED_STEPS}, as pooled runs go"
        )
    try:
        known_peers(policy.peers)
    except PolicyError as error:
        yield str(error)


def check_coalition(events: Sequence[Event], policy: PolicySpec) -> None:
    """Refuses what would tell the coordinator and all other hospitals together more than the hospital allows.

    Args:
        events: of all runs on these patients, the one that is asked for included.
        policy: the hospital's limits.

    Raises:
        PolicyError: P17. Without a pooled run nobody knows a part of the noise, and max_epsilon says it all.
    """
    if not any(isinstance(event, SharedNoiseSteps) for event in events):
        return
    epsilon = epsilon_pld(coalition_events(events), policy.delta)
    if not epsilon <= _number(policy.max_coalition_epsilon):
        raise PolicyError(
            f"P17: the coordinator together with all other hospitals could learn epsilon {epsilon:.4f} of a patient "
            f"over all runs (delta {policy.delta:g}), over [policy].max_coalition_epsilon = "
            f"{policy.max_coalition_epsilon}"
        )


def _is_approved(plan: Plan, approved: tuple[str, ...]) -> bool:
    """True if a plan is on the list; "any" opens the list only when it stands alone."""
    return approved == ANY_PLAN or plan.hash() in {entry for entry in approved if DIGEST.fullmatch(entry)}


def _claim(plan: Plan) -> Iterator[str]:
    try:
        claim(plan)
    except (GhostNetError, ArithmeticError, ValueError) as error:
        yield f"P01: the plan costs more than it says, or its cost cannot be computed: {error}"


def _whole(value: object) -> float:
    return _number(value) if isinstance(value, int) else math.nan
