"""The files of a published sampler: their names, and the two texts that follow from what was agreed and made.

`README.md` and `config.json` are functions of the plan, the run, the weights' digest and the label prior alone, so that
a hospital computes them itself before it signs their digests, and so does whoever verifies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
from torch import nn

from ghostnet.errors import FederationError, VerifyError
from ghostnet.exchange import arrays as weights
from ghostnet.models import NetworkSizes, architecture, build_generator
from ghostnet.models.outline import outline_generator
from ghostnet.plan import ImageSpec, ModelSpec, Plan
from ghostnet.plan.spec import network_sizes
from ghostnet.plan.toml import check_number, read_table
from ghostnet.sampler.model_card import model_card

FORMAT = "ghostnet-sampler/1"
CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, SAMPLES_FILE = "README.md", "config.json", "model.safetensors", "samples.png"
TRANSCRIPT_FILE, CERTIFICATE_FILE = "transcript.safetensors", "certificate.json"


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """The contents of config.json. All of it is public."""

    format: str
    name: str
    run_id: str
    plan_hash: str
    weights_sha256: str
    image: ImageSpec
    model: ModelSpec

    @property
    def networks(self) -> NetworkSizes:
        """The numbers that the generator is built from; its weights are read, so their seed is none of the run's."""
        return network_sizes(self.image, self.model)


def sampler_config(
    plan: Plan, *, run_id: str, weights_sha256: str, label_prior: tuple[float, ...] | None = None
) -> SamplerConfig:
    """The sampler's settings: the plan's networks and images, with the label prior that the warm start released."""
    return SamplerConfig(
        format=FORMAT,
        name=plan.name,
        run_id=run_id,
        plan_hash=plan.hash(),
        weights_sha256=weights_sha256,
        image=dataclasses.replace(plan.image, label_prior=label_prior or plan.image.label_prior),
        model=plan.model,
    )


def texts(
    plan: Plan, *, run_id: str, weights_sha256: str, label_prior: tuple[float, ...] | None = None
) -> dict[str, bytes]:
    """The bytes of config.json and README.md, by name.

    Args:
        plan: resolved.
        run_id: the run.
        weights_sha256: SHA-256 of model.safetensors, hex.
        label_prior: PUBLIC share of each class that the sampler draws; default the plan's.
    """
    config = sampler_config(plan, run_id=run_id, weights_sha256=weights_sha256, label_prior=label_prior)
    content = json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"
    card = model_card(plan, config.image.label_prior, weights_sha256)
    return {CONFIG_FILE: content.encode(), CARD_FILE: card.encode()}


def file_names(plan: Plan) -> frozenset[str]:
    """Every file of a sampler of this plan but the certificate, which is about them: no more, no fewer."""
    always = {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, SAMPLES_FILE}
    return frozenset({*always, TRANSCRIPT_FILE} if plan.has_transcript else always)


def sha256(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()


def json_object(content: bytes, source: str) -> dict[str, Any]:
    """Parses one JSON object; a repeated key, NaN or infinity is refused.

    Raises:
        VerifyError: naming the source.
    """
    try:
        raw = json.loads(content, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise VerifyError(f"{source} is not valid JSON ({error}); get the sampler again") from None
    if not isinstance(raw, dict):
        raise VerifyError(f"{source} holds a {type(raw).__name__}, not an object; get the sampler again")
    return raw


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key[:80]!r} is repeated")
        found[key] = value
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


MAX_CONFIG_BYTES = 1 << 20


MAX_WEIGHT_BYTES = 1 << 30


def read_config(path: Path) -> SamplerConfig:
    """Reads config.json and checks every value in it.

    Raises:
        VerifyError: it describes nothing that this version draws.
    """
    raw = json_object(_read_bytes(path, MAX_CONFIG_BYTES), str(path))
    config = read_table(SamplerConfig, raw, source=str(path), error=VerifyError)
    if config.format != FORMAT:
        raise VerifyError(f"{path}: format is {config.format!r}, this version reads {FORMAT!r}; use a matching version")
    image, model = config.image, config.model
    good = (
        image.size in architecture(model.architecture).sizes
        and image.channels in (1, 3)
        and 0 <= image.mask_channels <= 8
        and 0 < len(image.labels) == len(set(image.labels)) == len(image.label_prior)
        and all(0 < share <= 1 for share in image.label_prior)
        and math.isclose(sum(image.label_prior), 1, abs_tol=1e-6)
    )
    if not good:
        raise VerifyError(f"{path}: [image] does not describe images that this version draws; get the sampler again")
    for key, value in (("latent", model.latent), ("generator_width", model.generator_width)):
        check_number(value, key=f"model.{key}", source=str(path), error=VerifyError, low=1, high=4096)
    check_number(model.truncation, key="model.truncation", source=str(path), error=VerifyError, low=0, high=1)
    return config


def read_generator(path: Path, config: SamplerConfig) -> nn.Module:
    """Reads the weights into the network that `config` describes.

    Raises:
        VerifyError: their digest is another, or they do not fit.
    """
    content = _read_bytes(path, MAX_WEIGHT_BYTES)
    found = sha256(content)
    if found != config.weights_sha256:
        raise VerifyError(
            f"{path}: SHA-256 is {found[:16]}..., config.json says {config.weights_sha256[:16]}...; get it again"
        )
    promised = sum(4 * parameter.numel() for parameter in outline_generator(config.networks).parameters())
    if promised > len(content):
        raise VerifyError(
            f"{path}: has {len(content)} bytes where config.json describes {promised}; get the sampler again"
        )
    try:
        arrays = safetensors.numpy.load(content)
        generator = build_generator(config.networks)
        weights.load_arrays(generator, arrays)
    except (safetensors.SafetensorError, FederationError, KeyError, ValueError, TypeError) as error:
        raise VerifyError(f"{path}: {error}") from None
    return generator


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise VerifyError(f"{path} cannot be read ({error.strerror}); give the folder of a sampler") from None
    if len(content) > limit:
        raise VerifyError(f"{path} is larger than {limit} bytes, the most a sampler may have; this is not a sampler")
    return content
