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
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import Field

from ghostnet.models import REGISTRY, ArchitectureName, NetworkSizes, Norm, PixelRange, architecture
from ghostnet.plan.embedding import Embedding
from ghostnet.plan.federation import FederationSpec
from ghostnet.plan.keys import Number, key
from ghostnet.plan.tasks import REGISTRY as TASKS
from ghostnet.plan.tasks import TaskName

GradientPenalty = Literal["auto", "none", "fakes", "patient"]
Loss = Literal["non-saturating", "hinge", "wasserstein"]
Denoise = Literal["auto", "none"]
Unit = Literal["patient", "image"]

MIN_BANDWIDTH, MAX_BANDWIDTH = 0.01, 1000.0  # kernel scales for pixels in [0,1]; plans in use have 1 to 16

PLAN_FORMAT = 1
"""Part of every plan's hash; raised when a key changes its meaning."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The format of a training image."""

    size: Annotated[
        int,
        key(
            "Side of a training image after preprocessing, one that the architecture draws.",
            ge=1,
            le=4096,
            unit="pixels",
            example=64,
        ),
    ]
    channels: Annotated[Literal[1, 3], key("1 for grey, 3 for colour.")] = 1
    range: Annotated[PixelRange, key("Range of the pixels in training.")] = "[-1,1]"
    labels: Annotated[
        tuple[str, ...],
        key("Names of the classes, in the order of their integer labels.", example=["normal", "pneumonia"]),
    ]
    label_prior: Annotated[
        tuple[Annotated[Number, Field(gt=0, le=1)], ...],
        key("PUBLIC share of each class among the fakes; sums to 1.", example=[0.5, 0.5]),
    ]
    released_prior: Annotated[
        bool, key("After the warm start, the class shares that it releases take the prior's place.")
    ] = False
    mask_channels: Annotated[int, key("Channels that the generator draws beside the image, as masks.", ge=0, le=8)] = 0
    denoise: Annotated[Denoise, key('"auto" filters only the noise that is found; "none" filters nothing.')] = "auto"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The two networks."""

    architecture: Annotated[ArchitectureName, key("The pair of networks.")] = next(iter(REGISTRY))
    latent: Annotated[int, key("Length of the generator's noise vector.", ge=1, le=4096, unit="numbers")] = 100
    generator_width: Annotated[
        int, key("Channels of the generator's widest-resolution hidden layer.", ge=1, le=4096, unit="channels")
    ] = 64
    discriminator_width: Annotated[
        int, key("Channels of the discriminator's first layer.", ge=1, le=4096, unit="channels")
    ] = 64
    discriminator_norm: Annotated[
        Norm, key('Normalisation in the discriminator, none that couples patients; "none" where a network has none.')
    ] = "group"
    truncation: Annotated[
        Number,
        key("Styles of the sampler drawn towards their mean: 1 leaves them as they are, 0 is the mean.", ge=0, le=1),
    ] = 1.0


@dataclass(frozen=True, kw_only=True)
class PrivacySpec:
    """The promise to each patient (or image, see `unit`), and the mechanism of the discriminator's steps."""

    unit: Annotated[
        Unit, key('Who epsilon is about; "image" where the data names no patients: each image by itself.')
    ] = "patient"
    epsilon: Annotated[Number, key("Whole-run budget of one patient at one hospital.", gt=0, example=8.0)]
    delta: Annotated[
        Number,
        key(
            "Delta at which epsilon is counted; well below 1 / patients. Below 1e-12 the accounting resolves nothing.",
            ge=1e-12,
            lt=1,
            example=1e-5,
        ),
    ]
    clip_norm: Annotated[
        Number, key("C: bound on one patient's gradient. float32 norms are sound in this range.", ge=1e-3, le=1e3)
    ] = 1.0
    sampling_rate: Annotated[
        Number, key("q: probability with which each patient joins a step.", gt=0, le=1, example=0.05)
    ]
    steps: Annotated[
        int,
        key(
            "T: discriminator steps at a hospital over the whole run; 0 with rounds = 0: warm start only.",
            ge=0,
            le=10_000_000,
            example=1000,
        ),
    ]
    noise_multiplier: Annotated[
        Number, key("sigma: standard deviation of a step's noise; 0 calibrates it to epsilon.", ge=0, unit="clip_norm")
    ] = 0.0
    images_per_patient: Annotated[
        int, key("m: most of a sampled patient's images that a step takes.", ge=1, le=1000, unit="images")
    ] = 4
    views: Annotated[int, key("K: augmented views of each of them, averaged before the clip.", ge=1, le=64)] = 1
    fakes: Annotated[int, key("F: PUBLIC number of fakes in a step.", ge=1, le=100_000, unit="images")] = 32


@dataclass(frozen=True, kw_only=True)
class WarmStartSpec:
    """Round 0: one noisy sum of random-feature embeddings and mean images."""

    noise_multiplier: Annotated[
        Number, key("Noise of the released sum; 0 switches the warm start off.", ge=0, unit="sensitivities")
    ] = 2.0
    public: Annotated[
        str,
        key(
            'NPZ of PUBLIC images to start from, beside the plan; "procedural" for drawn phantoms; "" for none.',
            example="public.npz",
        ),
    ] = ""
    features: Annotated[
        int,
        key("Random Fourier features, cosines and sines together: an even number.", ge=2, le=1_000_000, multiple_of=2),
    ] = 2000
    feature_size: Annotated[
        int, key("Side at which features are taken; at most image.size.", ge=4, le=4096, unit="pixels")
    ] = 32
    bandwidth: Annotated[Number, key("Kernel scale for images in [0,1].", ge=MIN_BANDWIDTH, le=MAX_BANDWIDTH)] = 4.0
    more_bandwidths: Annotated[
        tuple[Annotated[Number, Field(ge=MIN_BANDWIDTH, le=MAX_BANDWIDTH)], ...],
        key("Further scales; the features are shared out among all of them."),
    ] = ()
    mean_image_weight: Annotated[Number, key("Share of a patient's norm that goes to the mean image.", ge=0, lt=1)] = (
        0.3
    )
    shrink_classes: Annotated[
        bool, key("Draw each class to the mean of all, as far as noise explains their distance.")
    ] = False
    detail_weight: Annotated[
        Number, key("Penalty on detail finer than feature_size, of which the release says nothing.", ge=0)
    ] = 0.05
    steps: Annotated[int, key("Generator steps that fit the released sum.", ge=1, le=1_000_000)] = 600
    batch: Annotated[
        int, key("Fakes of a fitting step; at least one of each class.", ge=1, le=100_000, unit="images")
    ] = 200
    learning_rate: Annotated[Number, key("Step size of the fit.", gt=0, le=1)] = 2e-3


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """The adversarial steps."""

    loss: Annotated[Loss, key("The adversarial loss.")] = "non-saturating"
    learning_rate_generator: Annotated[Number, key("Adam's step size for the generator.", gt=0, le=1)] = 2e-4
    learning_rate_discriminator: Annotated[Number, key("Adam's step size for the discriminator.", gt=0, le=1)] = 5e-4
    beta1: Annotated[Number, key("Adam's decay of the mean gradient, of both networks.", ge=0, lt=1)] = 0.5
    beta2: Annotated[Number, key("Adam's decay of the mean squared gradient, of both networks.", ge=0, lt=1)] = 0.999
    discriminator_steps: Annotated[
        int, key("n_D: discriminator steps to one generator step; the least, where it adapts.", ge=1, le=1_000_000)
    ] = 5
    discriminator_steps_most: Annotated[
        int,
        key("n_D adapts up to this, by the discriminator's accuracy on fakes; 0 keeps it fixed.", ge=0, le=1_000_000),
    ] = 0
    fakes_accuracy: Annotated[
        Number, key("Accuracy on fakes at which an adaptive n_D lets the generator step.", ge=0, le=1)
    ] = 0.6
    gradient_penalty: Annotated[
        GradientPenalty,
        key('At "fakes" (no privacy cost) or each "patient"; "auto" is at fakes where the architecture has a penalty.'),
    ] = "auto"
    gradient_penalty_weight: Annotated[Number, key("Weight of the gradient penalty.", gt=0, le=1e6)] = 10.0
    weight_clip: Annotated[
        Number, key("Where the critic is bounded by its weights: each stays within +- this.", gt=0, le=100)
    ] = 0.01
    generator_delay: Annotated[
        int, key("First discriminator steps of the run without a generator step.", ge=0, le=10_000_000)
    ] = 0
    generator_batch: Annotated[int, key("Fakes of a generator step.", ge=1, le=1_000_000, unit="images")] = 64
    ema: Annotated[Number, key("Decay, per generator step, of the average that is sent.", ge=0, lt=1)] = 0.95
    embedding_weight: Annotated[
        Number, key("Weight of the released embedding in the generator's loss (feature matching).", ge=0)
    ] = 300.0
    detail_weight: Annotated[
        Number, key("Penalty on detail finer than warm_start.feature_size in the generator's loss.", ge=0)
    ] = 0.0
    perceptual_weight: Annotated[
        Number, key("Weight of the released discriminator features in the generator's loss.", ge=0, le=1e9)
    ] = 0.0
    perceptual_noise_multiplier: Annotated[
        Number,
        key(
            "Noise of that release, at the start of each round but the first; 0 switches it off.",
            ge=0,
            unit="sensitivities",
        ),
    ] = 0.0
    physical_rows: Annotated[
        int, key("Rows in memory at once in a private step; changes no result.", ge=1, le=1_000_000, unit="rows")
    ] = 128


@dataclass(frozen=True, kw_only=True)
class UtilitySpec:
    """Train on synthetic, test on real: what the report may say about usefulness."""

    tasks: Annotated[
        tuple[TaskName, ...], key("What usefulness is measured at; the counts of each are charged by themselves.")
    ] = (next(iter(TASKS)),)
    noise_multiplier: Annotated[
        Number, key("Noise of the released counts of each task; 0: no utility figures.", ge=0, unit="sensitivities")
    ] = 3.0
    bins: Annotated[int, key("Score bins of the released counts.", ge=2, le=1000)] = 10
    synthetic_images: Annotated[
        int,
        key(
            "Images that the classifier is trained on; at least one of each class.", ge=1, le=10_000_000, unit="images"
        ),
    ] = 4000
    classifier_steps: Annotated[int, key("Training steps of the classifier.", ge=1, le=10_000_000)] = 600
    real_reference: Annotated[bool, key("Simulation only: also print a classifier trained on the real data.")] = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a federation agrees on. All of it is public."""

    name: Annotated[str, key("The plan's name.", example="chest")]
    seed: Annotated[
        int,
        key(
            "PUBLIC randomness only (initial weights, random features); never noise or sampling.",
            ge=-(2**53 - 1),
            le=2**53 - 1,  # exact in every language's JSON, as the plan's hash needs it
        ),
    ] = 0
    image: Annotated[ImageSpec, key("What one training image is.")]
    model: Annotated[ModelSpec, key("The two networks.")] = field(default_factory=ModelSpec)
    privacy: Annotated[PrivacySpec, key("The promise to each patient, and the mechanism of the discriminator's steps.")]
    warm_start: Annotated[
        WarmStartSpec, key("Round 0: one noisy sum of random-feature embeddings and mean images.")
    ] = field(default_factory=WarmStartSpec)
    training: Annotated[TrainingSpec, key("The adversarial steps.")] = field(default_factory=TrainingSpec)
    federation: Annotated[FederationSpec, key("How the hospitals work together.")]
    utility: Annotated[
        UtilitySpec, key("Train on synthetic, test on real: what the report may say about usefulness.")
    ] = field(default_factory=UtilitySpec)

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
        """The points of the discriminator's gradient penalty: "none", "fakes" or "patient"."""
        return architecture(self.model.architecture).penalty_place(self.training.gradient_penalty)

    @property
    def networks(self) -> NetworkSizes:
        """The numbers that both networks are built from."""
        return network_sizes(self.image, self.model, seed=self.seed)

    @property
    def embedding(self) -> Embedding:
        """The numbers that the warm start's embedding is made from."""
        warm = self.warm_start
        return Embedding(
            labels=len(self.image.labels),
            planes=self.planes,
            pixel_range=self.image.range,
            features=warm.features,
            feature_size=warm.feature_size,
            bandwidths=(warm.bandwidth, *warm.more_bandwidths),
            mean_image_weight=warm.mean_image_weight,
            seed=self.seed,
        )

    @property
    def has_transcript(self) -> bool:
        """True if a run publishes a transcript; a pooled run does not, because its answers are masked."""
        return self.warm_start.noise_multiplier > 0 or not self.federation.is_pooled

    @property
    def perceptual_releases(self) -> int:
        """The number of perceptual releases: one at the start of each round but the first."""
        return self.federation.rounds - 1 if self.training.perceptual_noise_multiplier > 0 else 0

    def round_steps(self, server_round: int) -> int:
        """Discriminator steps of one round (1-based); the rounds together make exactly `privacy.steps`."""
        done = self.privacy.steps * (server_round - 1) // self.federation.rounds
        return self.privacy.steps * server_round // self.federation.rounds - done

    def to_dict(self) -> dict[str, Any]:
        """Every key of the plan as plain dicts, lists and numbers, as in the TOML file."""
        tables: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return tables

    def hash(self) -> str:
        """SHA-256, in hex, of the canonical JSON (RFC 8785) of every key and the format's number."""
        document: dict[str, Any] = {"format": PLAN_FORMAT, "plan": self.to_dict()}
        return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


def network_sizes(image: ImageSpec, model: ModelSpec, *, seed: int = 0) -> NetworkSizes:
    """The numbers that both networks are built from; the seed is that of the initial weights."""
    return NetworkSizes(
        architecture=model.architecture,
        size=image.size,
        planes=image.channels + image.mask_channels,
        mask_planes=image.mask_channels,
        labels=len(image.labels),
        latent=model.latent,
        generator_width=model.generator_width,
        discriminator_width=model.discriminator_width,
        norm=model.discriminator_norm,
        pixel_range=image.range,
        truncation=model.truncation,
        seed=seed,
    )
