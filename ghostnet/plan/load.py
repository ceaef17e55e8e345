"""From a TOML file to a checked plan: ranges first, then what goes together."""

from __future__ import annotations

import tomllib
from functools import partial
from pathlib import Path

from ghostnet.errors import PlanError
from ghostnet.plan.compatibility import check_networks
from ghostnet.plan.federation import check_federation, read_weights
from ghostnet.plan.spec import LEAST_BANDWIDTH, MOST_BANDWIDTH, ImageSpec, Plan, PrivacySpec
from ghostnet.plan.toml import check_number, read_table


def load_plan(path: Path) -> Plan:
    """Reads and checks a plan file.

    Raises:
        PlanError: the file is missing, is not TOML, or holds an unknown, missing or out-of-range value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"plan {path} cannot be read ({error.__class__.__name__}); give the path of a plan.toml"
        ) from None
    return parse_plan(text, source=str(path))


def parse_plan(text: str, *, source: str = "plan") -> Plan:
    """Parses the TOML text of a plan; see `load_plan`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{source} is not valid TOML: {error}") from None
    return plan_from_dict(raw, source=source)


def plan_from_dict(raw: object, *, source: str = "plan") -> Plan:
    """Builds and checks a plan from plain values, as `Plan.to_dict` gives them; see `load_plan`."""
    if isinstance(raw, dict) and isinstance(table := raw.get("federation"), dict) and "weights" in table:
        raw = {**raw, "federation": {**table, "weights": read_weights(table["weights"])}}
    plan = read_table(Plan, raw, source=source, error=PlanError)
    _check_image(plan.image, source)
    _check_privacy(plan.privacy, source)
    _check_rest(plan, source)
    check_networks(plan, source)
    return plan


def _check_image(image: ImageSpec, source: str) -> None:
    check = partial(check_number, source=source, error=PlanError)
    if image.channels not in (1, 3):
        raise PlanError(f"image.channels = {image.channels} is neither 1 (grey) nor 3 (colour); change it in {source}")
    check(image.mask_channels, key="image.mask_channels", low=0, high=8)
    if len(set(image.labels)) != len(image.labels) or not image.labels:
        raise PlanError(f"image.labels = {list(image.labels)} needs at least one name and no name twice ({source})")
    if len(image.label_prior) != len(image.labels):
        raise PlanError(
            f"image.label_prior has {len(image.label_prior)} shares for {len(image.labels)} labels; "
            f"give one each in {source}"
        )
    for i, share in enumerate(image.label_prior):
        check(share, key=f"image.label_prior[{i}]", above=0, high=1)
    if abs(sum(image.label_prior) - 1) > 1e-6:
        raise PlanError(f"image.label_prior sums to {sum(image.label_prior):g}, not 1; change it in {source}")


def _check_privacy(privacy: PrivacySpec, source: str) -> None:
    check = partial(check_number, source=source, error=PlanError)
    check(privacy.epsilon, key="privacy.epsilon", above=0)
    check(privacy.delta, key="privacy.delta", above=0, below=1)
    check(privacy.clip_norm, key="privacy.clip_norm", low=1e-3, high=1e3)  # float32 norms are sound in this range
    check(privacy.sampling_rate, key="privacy.sampling_rate", above=0, high=1)
    check(privacy.steps, key="privacy.steps", low=0, high=10_000_000)
    check(privacy.noise_multiplier, key="privacy.noise_multiplier", low=0)
    check(privacy.images_per_patient, key="privacy.images_per_patient", low=1, high=1000)
    check(privacy.views, key="privacy.views", low=1, high=64)
    check(privacy.fakes, key="privacy.fakes", low=1, high=100_000)


def _check_rest(plan: Plan, source: str) -> None:
    check = partial(check_number, source=source, error=PlanError)
    warm, train, federation, utility = plan.warm_start, plan.training, plan.federation, plan.utility
    for name in ("latent", "generator_width", "discriminator_width"):
        check(getattr(plan.model, name), key=f"model.{name}", low=1, high=4096)
    check(warm.noise_multiplier, key="warm_start.noise_multiplier", low=0)
    if warm.features % 2:
        raise PlanError(f"warm_start.features = {warm.features} is odd; cosines and sines come in pairs ({source})")
    check(warm.features, key="warm_start.features", low=2, high=1_000_000)
    check(warm.feature_size, key="warm_start.feature_size", low=4, high=plan.image.size)
    for i, scale in enumerate((warm.bandwidth, *warm.more_bandwidths)):
        key = f"warm_start.more_bandwidths[{i - 1}]" if i else "warm_start.bandwidth"
        check(scale, key=key, low=LEAST_BANDWIDTH, high=MOST_BANDWIDTH)
    check(warm.mean_image_weight, key="warm_start.mean_image_weight", low=0, below=1)
    check(warm.detail_weight, key="warm_start.detail_weight", low=0)
    check(warm.steps, key="warm_start.steps", low=1, high=1_000_000)
    check(warm.batch, key="warm_start.batch", low=len(plan.image.labels), high=100_000)
    check(train.ema, key="training.ema", low=0, below=1)
    check(train.beta1, key="training.beta1", low=0, below=1)
    check(train.beta2, key="training.beta2", low=0, below=1)
    check(train.embedding_weight, key="training.embedding_weight", low=0)
    check(train.detail_weight, key="training.detail_weight", low=0)
    check(train.generator_delay, key="training.generator_delay", low=0)
    for table, name in (
        ("warm_start", "learning_rate"),
        ("training", "learning_rate_generator"),
        ("training", "learning_rate_discriminator"),
    ):
        check(getattr(getattr(plan, table), name), key=f"{table}.{name}", above=0, high=1)
    for name in ("discriminator_steps", "generator_batch", "physical_rows"):
        check(getattr(train, name), key=f"training.{name}", low=1, high=1_000_000)
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
    check(utility.noise_multiplier, key="utility.noise_multiplier", low=0)
    check(utility.bins, key="utility.bins", low=2, high=1000)
    check(utility.synthetic_images, key="utility.synthetic_images", low=len(plan.image.labels))
    check(utility.classifier_steps, key="utility.classifier_steps", low=1)
