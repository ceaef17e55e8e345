"""The Plan: what a federation agrees on before anything private is read.

A plan is one TOML file. It is parsed once, into frozen dataclasses whose fields are all public; an unknown key, a
missing key or a value outside its range is a `PlanError` that names the key. Two plans with the same meaning have the
same canonical hash, whatever their comments and spacing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ghostnet.combinations import ANY_SIZE, check_networks, penalty_place
from ghostnet.errors import PlanError
from ghostnet.federation import FederationSpec, check_federation, read_weights
from ghostnet.tables import check_number, read_table

Architecture = Literal["dcgan", "wgan", "wgan-gp", "stylegan", "keras28"]
GradientPenalty = Literal["auto", "none", "fakes", "patient"]
Loss = Literal["non-saturating", "hinge", "wasserstein"]
PixelRange = Literal["[-1,1]", "[0,1]"]
Denoise = Literal["auto", "none"]
Norm = Literal["none", "group"]
Unit = Literal["patient", "image"]

LEAST_BANDWIDTH, MOST_BANDWIDTH = 0.01, 1000.0  # kernel scales for pixels in [0,1]; plans in use have 1 to 16

LATER_OPTIONS = frozenset(
    {
        "image.released_prior",
        "model.truncation",
        "privacy.unit",
        "warm_start.more_bandwidths",
        "warm_start.public",
        "warm_start.shrink_classes",
        "training.discriminator_steps_most",
        "training.fakes_accuracy",
        "training.gradient_penalty",
        "training.gradient_penalty_weight",
        "training.weight_clip",
        "training.detail_weight",
        "training.perceptual_weight",
        "training.perceptual_noise_multiplier",
        "federation.hospitals",
        "federation.server_optimizer",
        "federation.server_learning_rate",
        "federation.server_momentum",
        "federation.trim",
        "federation.weights",
    }
)
"""Options that a plan's hash leaves out at their defaults: plans from before them keep their hashes."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What one training image is."""

    size: int  # pixels a side after preprocessing: 28, 32, 64 or 128, of those that the architecture draws
    channels: int = 1  # 1 grey, 3 colour
    range: PixelRange = "[-1,1]"  # training range of the pixels
    labels: tuple[str, ...]  # names of the classes, in the order of their integer labels
    label_prior: tuple[float, ...]  # PUBLIC share of each class among the fakes; sums to 1
    released_prior: bool = False  # after the warm start, the class shares that it releases take the prior's place
    mask_channels: int = 0  # extra channels the generator draws beside the image
    denoise: Denoise = "auto"  # "auto" filters only the noise that is found


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The two networks."""

    architecture: Architecture = "dcgan"
    latent: int = 100  # length of the generator's noise vector
    generator_width: int = 64  # channels of the generator's widest-resolution hidden layer
    discriminator_width: int = 64  # channels of the discriminator's first layer
    discriminator_norm: Norm = "group"  # never "batch": it couples patients; "none" for stylegan and keras28
    truncation: float = 1.0  # stylegan: styles of the sampler drawn towards their mean, 1 = as they are, 0 = the mean


@dataclass(frozen=True, kw_only=True)
class PrivacySpec:
    """The promise to each patient (or image, see `unit`), and the mechanism of the discriminator's steps."""

    unit: Unit = "patient"  # who epsilon is about; "image" where the data names no patients: each image by itself
    epsilon: float  # whole-run budget of one patient at one hospital
    delta: float  # > 0 and < 1
    clip_norm: float = 1.0  # C: bound on one patient's gradient
    sampling_rate: float  # q: each patient joins a step with this probability
    steps: int  # T: discriminator steps at a hospital over the whole run
    noise_multiplier: float = 0.0  # sigma; 0 = calibrate it to epsilon
    images_per_patient: int = 4  # m: at most this many of a sampled patient's images
    views: int = 1  # K: augmented views of each of them, averaged before the clip
    fakes: int = 32  # F: PUBLIC number of fakes in a step


@dataclass(frozen=True, kw_only=True)
class WarmStartSpec:
    """Round 0: one noisy sum of random-feature embeddings and mean images."""

    noise_multiplier: float = 2.0  # of the Gaussian mechanism on a sum of norm <= 1 a patient; 0 = no warm start
    public: str = ""  # NPZ of PUBLIC images to start from, beside the plan; or "procedural" phantoms; "" = none
    features: int = 2000  # random Fourier features (cosines and sines together)
    feature_size: int = 32  # pixels a side at which features are taken
    bandwidth: float = 4.0  # kernel scale for images in [0,1]
    more_bandwidths: tuple[float, ...] = ()  # further scales; the features are shared out among all of them
    mean_image_weight: float = 0.3  # share of a patient's norm that goes to the mean image, in [0,1)
    shrink_classes: bool = False  # draw each class to the mean of all, as far as noise explains their distance
    detail_weight: float = 0.05  # penalty on detail finer than feature_size, of which the release says nothing
    steps: int = 600  # generator steps that fit the released sum
    batch: int = 200  # fakes a fitting step
    learning_rate: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """The adversarial steps."""

    loss: Loss = "non-saturating"
    learning_rate_generator: float = 2e-4
    learning_rate_discriminator: float = 5e-4
    beta1: float = 0.5
    beta2: float = 0.999
    discriminator_steps: int = 5  # n_D: discriminator steps to one generator step; the least, where it adapts
    discriminator_steps_most: int = 0  # n_D adapts up to this, by the discriminator's accuracy on fakes; 0 = fixed
    fakes_accuracy: float = 0.6  # accuracy on fakes at which an adaptive n_D lets the generator step
    gradient_penalty: GradientPenalty = "auto"  # at "fakes" (no cost) or each "patient"; auto = fakes where one belongs
    gradient_penalty_weight: float = 10.0
    weight_clip: float = 0.01  # wgan: every weight of the critic stays within +- this
    generator_delay: int = 0  # first discriminator steps of the run without a generator step
    generator_batch: int = 64
    ema: float = 0.95  # decay, per generator step, of the average that is sent
    embedding_weight: float = 300.0  # weight of the released embedding in the generator's loss (feature matching)
    detail_weight: float = 0.0  # penalty on detail finer than warm_start.feature_size in the generator's loss
    perceptual_weight: float = 0.0  # weight of the released discriminator features in the generator's loss
    perceptual_noise_multiplier: float = 0.0  # of that release, at the start of each round but the first; 0 = off
    physical_rows: int = 128  # rows in memory at once in a private step; changes no result


@dataclass(frozen=True, kw_only=True)
class UtilitySpec:
    """Train on synthetic, test on real: what the report may say about usefulness."""

    noise_multiplier: float = 3.0  # of the Gaussian mechanism on one patient's counts; 0 = no utility figures
    bins: int = 10  # score bins of the released counts
    synthetic_images: int = 4000  # images the classifier is trained on
    classifier_steps: int = 600
    real_reference: bool = False  # simulation only: also print a classifier trained on the real data


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a federation agrees on. All of it is public."""

    name: str
    seed: int = 0  # public randomness only (initial weights, random features); never noise or sampling
    image: ImageSpec
    model: ModelSpec = field(default_factory=ModelSpec)
    privacy: PrivacySpec
    warm_start: WarmStartSpec = field(default_factory=WarmStartSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    federation: FederationSpec
    utility: UtilitySpec = field(default_factory=UtilitySpec)

    @property
    def public_denominator(self) -> float:
        """Rows that a step's noised sum is divided by: expected reals of the nominal hospital(s), plus the fakes."""
        summed = self.federation.hospitals if self.federation.is_pooled else 1
        return self.privacy.sampling_rate * self.federation.patients * summed + self.privacy.fakes

    @property
    def planes(self) -> int:
        """Channels that the generator draws: image channels, then mask channels."""
        return self.image.channels + self.image.mask_channels

    @property
    def gradient_penalty(self) -> str:
        """Where the discriminator's gradient penalty is taken: "none", "fakes" or "patient"."""
        return penalty_place(self.model.architecture, self.training.gradient_penalty)

    @property
    def perceptual_releases(self) -> int:
        """How often a hospital releases its discriminator's features: at the start of each round but the first."""
        return self.federation.rounds - 1 if self.training.perceptual_noise_multiplier > 0 else 0

    def round_steps(self, server_round: int) -> int:
        """Discriminator steps of one round (1-based); the rounds together make exactly `privacy.steps`."""
        done = self.privacy.steps * (server_round - 1) // self.federation.rounds
        return self.privacy.steps * server_round // self.federation.rounds - done

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, as in the TOML file; without `LATER_OPTIONS` that are at their defaults."""
        tables: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        for option in LATER_OPTIONS:
            table, _, name = option.partition(".")
            spec = getattr(self, table)
            if getattr(spec, name) == type(spec).__dataclass_fields__[name].default:
                del tables[table][name]
        return tables

    def hash(self) -> str:
        """SHA-256, in hex, of the canonical JSON form."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    if image.size not in ANY_SIZE:
        raise PlanError(f"image.size = {image.size} has no network; use one of {ANY_SIZE} in {source}")
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
