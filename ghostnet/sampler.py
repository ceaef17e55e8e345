"""The published artefact: a generator in a folder that anyone can load and draw images from.

A sampler folder holds `config.json` (what is drawn), `model.safetensors` (the weights), `README.md` (the model card),
`samples.png`, `transcript.safetensors` (the answers that the weights were made of), and `certificate.json` once the
certificate is written. Nothing in it is pickled, and nothing in it was
computed from patient data except through the mechanisms that the certificate lists.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import nn

from ghostnet import weights
from ghostnet.combinations import SIZES
from ghostnet.durable import sync_file, sync_folder
from ghostnet.errors import DataError, FederationError, VerifyError
from ghostnet.export.grid import labelled_grid
from ghostnet.export.whole import new_folder
from ghostnet.models import build_generator
from ghostnet.plan import ImageSpec, PixelRange, Plan
from ghostnet.sampler_files import (
    CONFIG_FILE,
    FORMAT,
    SAMPLES_FILE,
    TRANSCRIPT_FILE,
    WEIGHTS_FILE,
    SamplerConfig,
    json_object,
    sampler_config,
    sha256,
    texts,
)
from ghostnet.tables import check_number, read_table

MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHT_BYTES = 1 << 30
BATCH = 64  # images a forward pass; bounds memory, changes no image


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Synthetic images with their labels.

    Attributes:
        images: float32 (n, channels, h, w), in the plan's range.
        labels: int64 (n,), index into the plan's labels.
        masks: uint8 0/1 (n, mask_channels, h, w); None where the plan has no masks.
    """

    images: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None


class Sampler:
    """Noise in, images out.

    Image i of a seed is the same whatever n and the batch size are (up to float rounding in the convolutions).

    Args:
        generator: the network, set to evaluation mode.
        config: what it draws.
        folder: where it was loaded from, if anywhere.
    """

    def __init__(self, generator: nn.Module, config: SamplerConfig, folder: Path | None = None) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.config = config
        self.folder = folder

    @classmethod
    def load(cls, path: str | Path) -> Sampler:
        """Loads a sampler folder; every name, shape, type, value and the weights' hash is checked.

        Raises:
            VerifyError: the folder is not a sampler, or a file in it is damaged. `ghostnet verify` checks the privacy
                certificate too.
        """
        folder = Path(path)
        config = _read_config(folder / CONFIG_FILE)
        return cls(_read_generator(folder / WEIGHTS_FILE, config), config, folder)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.config.image.labels

    def sample(self, n: int, label: str | int | None = None, seed: int = 0) -> torch.Tensor:
        """Draws images.

        Args:
            n: how many.
            label: name or index of one class; None draws classes from the plan's public prior.
            seed: public seed, 0 <= seed < 2^63; the same seed gives the same images.

        Returns:
            float32 (n, channels, h, w), in the plan's range.

        Raises:
            DataError: n, the label or the seed cannot be used.
        """
        return self.draw(n, label, seed).images

    def sample_with_masks(
        self, n: int, label: str | int | None = None, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws images and their masks: (float32 (n,channels,h,w), uint8 0/1 (n,mask_channels,h,w)); see `sample`.

        Raises:
            DataError: as `sample`, or the plan of this sampler has no masks.
        """
        samples = self.draw(n, label, seed)
        if samples.masks is None:
            raise DataError(f"sampler {self.config.name!r} draws no masks; its plan has image.mask_channels = 0")
        return samples.images, samples.masks

    def draw(self, n: int, label: str | int | None = None, seed: int = 0, *, batch_size: int = BATCH) -> Samples:
        """Draws images with labels and masks; see `sample`."""
        check_count(n, "n", low=0)
        image = self.config.image
        images = torch.empty(n, image.channels, image.size, image.size)
        masks = torch.empty(n, image.mask_channels, image.size, image.size, dtype=torch.uint8)
        labels = torch.empty(n, dtype=torch.int64)
        done = 0
        for part in self.batches(n, label, seed, batch_size=batch_size):
            rows = slice(done, done + len(part.labels))
            images[rows], labels[rows] = part.images, part.labels
            if part.masks is not None:
                masks[rows] = part.masks
            done = rows.stop
        return Samples(images=images, labels=labels, masks=masks if image.mask_channels else None)

    def batches(
        self, n: int, label: str | int | None = None, seed: int = 0, *, batch_size: int = BATCH
    ) -> Iterator[Samples]:
        """Draws the same images as `draw`, a batch at a time, for more of them than fit in memory."""
        check_count(n, "n", low=0)
        check_count(batch_size, "batch_size", low=1)
        check_count(seed, "seed", low=0)
        image, chosen = self.config.image, self.label_index(label)
        # Two streams, each read in order: the noise of image i does not depend on how many are drawn.
        noise, coins = (np.random.Generator(np.random.Philox(key=[seed, stream])) for stream in (0, 1))
        thresholds = np.cumsum(image.label_prior)[:-1]
        for start in range(0, n, batch_size):
            rows = min(batch_size, n - start)
            z = torch.from_numpy(noise.standard_normal((rows, self.config.model.latent), dtype=np.float32))
            drawn = np.searchsorted(thresholds, coins.random(rows), side="right")
            labels = torch.from_numpy(drawn if chosen is None else np.full(rows, chosen)).to(torch.int64)
            with torch.no_grad():  # not inference_mode: a classifier may be trained on the result
                planes = self.generator(z, labels)
            yield self._split(planes, labels, image)

    def label_index(self, label: str | int | None) -> int | None:
        """Index of a class given by name or index; None stays None.

        Raises:
            DataError: there is no such class.
        """
        if label is None:
            return None
        if isinstance(label, str) and label in self.labels:
            return self.labels.index(label)
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.labels):
            return label
        if isinstance(label, str) and label.isascii() and label.isdigit() and int(label) < len(self.labels):
            return int(label)  # the command line gives an index as text
        names = ", ".join(self.labels)
        raise DataError(
            f"label {label!r} is not a class of this sampler; use one of: {names}, or 0 to {len(self.labels) - 1}"
        )

    @staticmethod
    def _split(planes: torch.Tensor, labels: torch.Tensor, image: ImageSpec) -> Samples:
        images, masks = planes[:, : image.channels], planes[:, image.channels :]
        if not image.mask_channels:
            return Samples(images=images, labels=labels, masks=None)
        middle = 0.0 if image.range == "[-1,1]" else 0.5
        return Samples(images=images, labels=labels, masks=(masks > middle).to(torch.uint8))


def write_sampler(
    folder: Path,
    generator: nn.Module,
    plan: Plan,
    *,
    run_id: str = "",
    label_prior: tuple[float, ...] | None = None,
    transcript: weights.Arrays | None = None,
) -> dict[str, str]:
    """Writes a sampler folder, complete or not at all; the certificate is added to it afterwards.

    Args:
        folder: the folder to make; must not exist, or be empty.
        generator: the averaged generator, all of whose weights are released values.
        plan: the plan it was trained under.
        run_id: name of the run.
        label_prior: PUBLIC share of each class that it draws; default the plan's.
        transcript: the hospitals' last answers (`ghostnet.transcript`), which are released values too.

    Returns:
        SHA-256 of every file, hex, by name: what the hospitals sign.

    Raises:
        RunFolderError: the folder holds something already, or cannot be written.
        DataError: a weight is not finite.
    """
    arrays = weights.to_arrays(generator)
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise DataError(
            f"generator weights {broken[0]} hold NaN or infinity; the training diverged, nothing was published"
        )
    content = weights.to_bytes(arrays)
    digest = sha256(content)
    copy = build_generator(plan)  # the caller's network keeps its own training mode
    weights.load_arrays(copy, arrays)
    drawn = Sampler(copy, sampler_config(plan, run_id=run_id, weights_sha256=digest, label_prior=label_prior))
    files = {
        **texts(plan, run_id=run_id, weights_sha256=digest, label_prior=label_prior),
        WEIGHTS_FILE: content,
        SAMPLES_FILE: labelled_grid(picture_samples(drawn)),
        **({TRANSCRIPT_FILE: weights.to_bytes(transcript)} if transcript else {}),
    }
    with new_folder(folder) as partial:
        for name, data in files.items():
            (partial / name).write_bytes(data)
            sync_file(partial / name)
        sync_folder(partial)
    sync_folder(folder.parent)
    return {name: sha256(data) for name, data in files.items()}


def picture_samples(sampler: Sampler, *, per_label: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """A few samples of each class for people to look at: label -> uint8 (n,h,w) or (n,h,w,3)."""
    image_range = sampler.config.image.range
    return {label: to_uint8(sampler.sample(per_label, label, seed), image_range) for label in sampler.labels}


def to_uint8(images: torch.Tensor, pixel_range: PixelRange) -> np.ndarray:
    """De-normalises: float (n,c,h,w) in the plan's range -> uint8 (n,h,w) for one channel, (n,h,w,3) for three."""
    unit = (images + 1) / 2 if pixel_range == "[-1,1]" else images
    pixels = (unit.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def median_denoise(images: torch.Tensor) -> torch.Tensor:
    """3x3 median of every channel, edges replicated: float (n,c,h,w) -> the same shape; for speckled samples."""
    n, c, h, w = images.shape
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    windows = nn.functional.unfold(padded.reshape(n * c, 1, h + 2, w + 2), 3)  # (n*c, 9, h*w)
    return windows.median(dim=1).values.reshape(n, c, h, w)


def check_count(value: object, name: str, *, low: int) -> None:
    """Refuses what is not a whole number from `low` to 2^63 - 1.

    Raises:
        DataError: naming the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**63:
        raise DataError(f"{name} = {value!r} is not a whole number from {low} on; give another {name}")


def _read_config(path: Path) -> SamplerConfig:
    raw = json_object(_read_bytes(path, MAX_CONFIG_BYTES), str(path))
    config = read_table(SamplerConfig, raw, source=str(path), error=VerifyError)
    if config.format != FORMAT:
        raise VerifyError(f"{path}: format is {config.format!r}, this version reads {FORMAT!r}; use a matching version")
    image, model = config.image, config.model
    good = (
        image.size in SIZES[model.architecture]
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


def _read_generator(path: Path, config: SamplerConfig) -> nn.Module:
    content = _read_bytes(path, MAX_WEIGHT_BYTES)
    found = hashlib.sha256(content).hexdigest()
    if found != config.weights_sha256:
        raise VerifyError(
            f"{path}: SHA-256 is {found[:16]}..., config.json says {config.weights_sha256[:16]}...; get it again"
        )
    with torch.device("meta"):  # costs no memory, whatever sizes the config claims
        promised = sum(4 * parameter.numel() for parameter in build_generator(config.plan()).parameters())
    if promised > len(content):
        raise VerifyError(
            f"{path}: has {len(content)} bytes where config.json describes {promised}; get the sampler again"
        )
    try:
        arrays = safetensors.numpy.load(content)
        generator = build_generator(config.plan())
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
