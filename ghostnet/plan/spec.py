"""The Plan: what a federation agrees on before anything private is read.

A plan is one TOML file. It is parsed once, into frozen dataclasses whose fields are all public; an unknown key, a
missing key or a value outside its range is a `PlanError` that names the key. Two plans with the same meaning have the
same canonical hash, whatever their comments and spacing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from ghostnet.models import REGISTRY, ArchitectureName, NetworkSizes, Norm, PixelRange, architecture
from ghostnet.plan.federation import FederationSpec

GradientPenalty = Literal["auto", "none", "fakes", "patient"]
Loss = Literal["non-saturating", "hinge", "wasserstein"]
Denoise = Literal["auto", "none"]
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

    architecture: ArchitectureName = next(iter(REGISTRY))
    latent: int = 100  # length of the generator's noise vector
    generator_width: int = 64  # channels of the generator's widest-resolution hidden layer
    discriminator_width: int = 64  # channels of the discriminator's first layer
    discriminator_norm: Norm = "group"  # never "batch": it couples patients; "none" where a network has none
    truncation: float = 1.0  # styles of the sampler drawn towards their mean, 1 = as they are, 0 = the mean


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
    weight_clip: float = 0.01  # where the critic is bounded by its weights: each stays within +- this
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
        return architecture(self.model.architecture).penalty_place(self.training.gradient_penalty)

    @property
    def networks(self) -> NetworkSizes:
        """The numbers that both networks are built from."""
        return network_sizes(self.image, self.model, seed=self.seed)

    @property
    def has_transcript(self) -> bool:
        """Whether a run gets answers that its sampler can be held against; a pooled step's are under masks."""
        return self.warm_start.noise_multiplier > 0 or not self.federation.is_pooled

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


def network_sizes(image: ImageSpec, model: ModelSpec, *, seed: int = 0) -> NetworkSizes:
    """The numbers that both networks are built from; the seed is that of the initial weights."""
    return NetworkSizes(
        architecture=model.architecture,
        size=image.size,
        planes=image.channels + image.mask_channels,
        labels=len(image.labels),
        latent=model.latent,
        generator_width=model.generator_width,
        discriminator_width=model.discriminator_width,
        norm=model.discriminator_norm,
        pixel_range=image.range,
        truncation=model.truncation,
        seed=seed,
    )
