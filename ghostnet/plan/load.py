"""From a TOML file to a checked plan: ranges, which the fields have, first; then what goes together."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ghostnet.errors import PlanError
from ghostnet.plan.compatibility import check_networks
from ghostnet.plan.federation import check_federation, read_weights
from ghostnet.plan.spec import ImageSpec, Plan
from ghostnet.plan.tasks import REGISTRY as TASKS
from ghostnet.plan.toml import check_number, parse, read_file, read_table


def load_plan(path: Path) -> Plan:
    """Reads and checks a plan file.

    Raises:
        PlanError: the file is missing, is not TOML, or holds an unknown, missing or out-of-range value.
    """
    raw = read_file(path, title="plan", example="plan.toml", error=PlanError)
    return plan_from_dict(raw, source=str(path))


def parse_plan(text: str, *, source: str = "plan") -> Plan:
    """Parses the TOML text of a plan; see `load_plan`."""
    return plan_from_dict(parse(text, source=source, error=PlanError), source=source)


def plan_from_dict(raw: object, *, source: str = "plan") -> Plan:
    """Builds and checks a plan from plain values, as `Plan.to_dict` gives them; see `load_plan`."""
    if isinstance(raw, dict) and isinstance(table := raw.get("federation"), dict) and "weights" in table:
        raw = {**raw, "federation": {**table, "weights": read_weights(table["weights"], source)}}
    plan = read_table(Plan, raw, source=source, error=PlanError)
    _check_image(plan.image, source)
    _check_tasks(plan, source)
    _check_rest(plan, source)
    check_networks(plan, source)
    return plan


def _check_image(image: ImageSpec, source: str) -> None:
    if len(set(image.labels)) != len(image.labels) or not image.labels:
        raise PlanError(f"image.labels = {list(image.labels)} needs at least one name and no name twice ({source})")
    if len(image.label_prior) != len(image.labels):
        raise PlanError(
            f"image.label_prior has {len(image.label_prior)} shares for {len(image.labels)} labels; "
            f"give one each in {source}"
        )
    if abs(sum(image.label_prior) - 1) > 1e-6:
        raise PlanError(f"image.label_prior sums to {sum(image.label_prior):g}, not 1; change it in {source}")


def _check_tasks(plan: Plan, source: str) -> None:
    tasks = plan.utility.tasks
    if not tasks or len(set(tasks)) != len(tasks):
        raise PlanError(
            f"utility.tasks = {list(tasks)} needs at least one task and none twice; for no figures set "
            f"utility.noise_multiplier = 0 in {source}"
        )
    for name in tasks:
        if TASKS[name].needs_masks and plan.image.mask_channels == 0:
            raise PlanError(
                f"utility.tasks names {name!r}, which needs masks, and image.mask_channels = 0; set it, or leave the "
                f"task out of {source}"
            )


def _check_rest(plan: Plan, source: str) -> None:
    check = partial(check_number, source=source, error=PlanError)
    warm, train, federation, utility = plan.warm_start, plan.training, plan.federation, plan.utility
    check(warm.feature_size, key="warm_start.feature_size", low=4, high=plan.image.size)
    check(warm.batch, key="warm_start.batch", low=len(plan.image.labels))
    check(utility.synthetic_images, key="utility.synthetic_images", low=len(plan.image.labels))
    check_federation(
        federation,
        steps=plan.privacy.steps,
        perceptual=train.perceptual_noise_multiplier > 0,
        source=source,
    )
    if (federation.rounds == 0) != (plan.privacy.steps == 0):
        raise PlanError(
            f"federation.rounds = {federation.rounds} with privacy.steps = {plan.privacy.steps}: "
            f"either both are 0 (warm start only) or neither; change {source}"
        )
    if federation.rounds > plan.privacy.steps:
        raise PlanError(
            f"federation.rounds = {federation.rounds} is more than privacy.steps = {plan.privacy.steps} ({source})"
        )
    if warm.noise_multiplier == 0 and (plan.image.released_prior or warm.public):
        raise PlanError(
            f"image.released_prior and warm_start.public need a warm start; set warm_start.noise_multiplier in {source}"
        )
    if federation.rounds == 0 and warm.noise_multiplier == 0:
        raise PlanError(
            f"{source} trains nothing: warm_start.noise_multiplier = 0 and federation.rounds = 0; set one of them"
        )
