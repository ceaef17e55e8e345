"""The published artefact: a generator in a folder that anyone can load and draw images from.

A sampler folder holds `config.json` (what is drawn), `model.safetensors` (the weights), `README.md` (the model card),
`samples.png`, `transcript.safetensors` (the answers that the weights were made of), and `certificate.json` once the
certificate is written. Nothing in it is pickled, and nothing in it was computed from patient data except through the
mechanisms that the certificate lists.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ghostnet.errors import DataError
from ghostnet.models import architecture
from ghostnet.plan import ImageSpec
from ghostnet.sampler.dataset import SyntheticImages
from ghostnet.sampler.folder import (
    CERTIFICATE_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    SamplerConfig,
    read_config,
    read_generator,
)
from ghostnet.training.device import AUTO, find_device

BATCH = 64  # images a forward pass; bounds memory, changes no image


class NoCertificateWarning(UserWarning):
    """A sampler without a certificate: nothing says what privacy its images have."""


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

    Without a seed each call draws fresh images. Image i of a seed is the same whatever n and the batch size are (up to
    float rounding in the convolutions).

    Args:
        generator: the network, set to evaluation mode; its device is the one that is drawn on.
        config: what it draws.
        folder: where it was loaded from, if anywhere.
    """

    def __init__(self, generator: nn.Module, config: SamplerConfig, folder: Path | None = None) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.config = config
        self._draw = architecture(config.model.architecture).draw
        self.folder = folder

    def __repr__(self) -> str:
        image = self.config.image
        certificate = "with a certificate" if self.has_certificate else "no certificate"
        masks = f" and {image.mask_channels} mask(s)" if image.mask_channels else ""
        return (
            f"Sampler({self.config.name!r}, {image.channels} x {image.size} x {image.size}{masks}, "
            f"labels: {', '.join(self.labels)}; {self.config.model.architecture} on {self.device}, {certificate})"
        )

    @classmethod
    def load(cls, path: str | Path, *, device: str = AUTO) -> Sampler:
        """Loads a sampler folder; every name, shape, type, value and the weights' hash is checked.

        Args:
            path: the folder.
            device: "auto" (a GPU where torch sees one), "cpu" or "cuda:0"; images come back on the CPU from each.

        Raises:
            VerifyError: the folder is not a sampler, or a file in it is damaged. `ghostnet verify` checks the privacy
                certificate too.
            SiteError: this machine has no such device.

        Warns:
            NoCertificateWarning: the folder has no certificate.
        """
        folder, found = Path(path), find_device(device)
        config = read_config(folder / CONFIG_FILE)
        sampler = cls(read_generator(folder / WEIGHTS_FILE, config).to(found), config, folder)
        if not sampler.has_certificate:
            warnings.warn(no_certificate(folder), NoCertificateWarning, stacklevel=2)
        return sampler

    @property
    def has_certificate(self) -> bool:
        """True where the folder has a certificate; whether that holds, `ghostnet verify` says."""
        return self.folder is not None and (self.folder / CERTIFICATE_FILE).is_file()

    @property
    def device(self) -> torch.device:
        """The device that is drawn on."""
        return next(self.generator.parameters()).device

    def to(self, device: str) -> Sampler:
        """Moves the generator; gives the sampler itself, as a network's `to` does.

        Args:
            device: as of `load`.

        Raises:
            SiteError: this machine has no such device.
        """
        self.generator.to(find_device(device))
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.config.image.labels

    def sample(self, n: int, label: str | int | None = None, seed: int | None = None) -> torch.Tensor:
        """Draws images.

        Args:
            n: how many.
            label: name or index of one class; None draws classes from the plan's public prior.
            seed: public seed, 0 <= seed < 2^63; the same seed gives the same images. None draws fresh ones.

        Returns:
            float32 (n, channels, h, w), in the plan's range.

        Raises:
            DataError: n, the label or the seed cannot be used.
        """
        return self.draw(n, label, seed).images

    def sample_with_masks(
        self, n: int, label: str | int | None = None, seed: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws images and their masks: (float32 (n,channels,h,w), uint8 0/1 (n,mask_channels,h,w)); see `sample`.

        Raises:
            DataError: as `sample`, or the plan of this sampler has no masks.
        """
        samples = self.draw(n, label, seed)
        if samples.masks is None:
            raise DataError(f"sampler {self.config.name!r} draws no masks; its plan has image.mask_channels = 0")
        return samples.images, samples.masks

    def dataset(self, n: int, label: str | int | None = None, seed: int | None = None) -> SyntheticImages:
        """Draws images as a torch data set of (image, label), with the mask third where the plan has masks.

        All n are drawn now and held in memory; see `sample`.
        """
        return SyntheticImages(self.draw(n, label, seed))

    def draw(
        self, n: int, label: str | int | None = None, seed: int | None = None, *, batch_size: int = BATCH
    ) -> Samples:
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
        self, n: int, label: str | int | None = None, seed: int | None = None, *, batch_size: int = BATCH
    ) -> Iterator[Samples]:
        """Draws the same images as `draw`, a batch at a time, for more of them than fit in memory."""
        check_count(n, "n", low=0)
        check_count(batch_size, "batch_size", low=1)
        seed = fresh_seed() if seed is None else seed
        check_count(seed, "seed", low=0)
        image, chosen = self.config.image, self.label_index(label)
        # Two streams, each read in order: the noise of image i does not depend on how many are drawn.
        noise, coins = (np.random.Generator(np.random.Philox(key=[seed, stream])) for stream in (0, 1))
        device = self.device
        thresholds = np.cumsum(image.label_prior)[:-1]
        for start in range(0, n, batch_size):
            rows = min(batch_size, n - start)
            z = torch.from_numpy(noise.standard_normal((rows, self.config.model.latent), dtype=np.float32))
            drawn = np.searchsorted(thresholds, coins.random(rows), side="right")
            labels = torch.from_numpy(drawn if chosen is None else np.full(rows, chosen)).to(torch.int64)
            with torch.no_grad():  # not inference_mode: a classifier may be trained on the result
                planes = self._draw(self.generator, z.to(device), labels.to(device)).cpu()
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


def fresh_seed() -> int:
    """A public seed that nobody has used, for images that need not be drawn again."""
    return secrets.randbelow(2**63)


def no_certificate(folder: Path) -> str:
    """The sentence about a sampler without a certificate."""
    return f"{folder} has no {CERTIFICATE_FILE}: nothing says what privacy its images have; ask whoever published it"


def check_count(value: object, name: str, *, low: int) -> None:
    """Refuses what is not a whole number from `low` to 2^63 - 1.

    Raises:
        DataError: naming the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**63:
        raise DataError(f"{name} = {value!r} is not a whole number from {low} on; give another {name}")
