"""The Keras pair for 28-pixel images: a dense stem and three 5x5 transposed convolutions against two 5x5 convolutions.

Source: the generator's head is the source project's, its tail and the discriminator are those of the common Keras
tutorial (tensorflow.org, "Deep Convolutional Generative Adversarial Network"). With width 64, latent 100 and one plane
the weights are Keras's, 2,330,944 and 212,865, beside the label's; LeakyReLU slope 0.3 and BatchNorm as Keras has them.

Two things privacy asks for: logits (as the tutorial has), and a dropout mask that comes from the row itself.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from ghostnet.models.record import Architecture, NetworkSizes, PixelRange
from ghostnet.privacy.layers import row_independent

LEAKY_SLOPE = 0.3  # Keras's default
DROPPED = 0.3
_MIX = (0x27D4EB2F165667C5, 0x165667B19E3779F9)  # odd multipliers of a 64-bit hash


class Generator(nn.Module):
    """Draws images from noise and a label.

    Args:
        planes: channels drawn, image channels and then mask channels.
        labels: number of classes; a class adds a vector of its own to the dense layer's output.
        latent: length of the noise vector; 100 in Keras.
        width: channels of the last hidden layer; 64 in Keras.
        pixel_range: "[-1,1]" ends in tanh, "[0,1]" in a sigmoid.
    """

    def __init__(self, *, planes: int, labels: int, latent: int, width: int, pixel_range: PixelRange) -> None:
        super().__init__()
        self.stem = nn.Linear(latent, 4 * width * 49, bias=False)
        self.label_stem = nn.Embedding(labels, 4 * width * 49)
        self.stem_norm = _keras_norm(nn.BatchNorm1d, 4 * width * 49)
        self.net = nn.Sequential(
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.Unflatten(1, (4 * width, 7, 7)),
            nn.ConvTranspose2d(4 * width, 2 * width, 5, padding=2, bias=False),
            _keras_norm(nn.BatchNorm2d, 2 * width),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.ConvTranspose2d(2 * width, width, 5, stride=2, padding=2, output_padding=1, bias=False),
            _keras_norm(nn.BatchNorm2d, width),
            nn.LeakyReLU(LEAKY_SLOPE),
            nn.ConvTranspose2d(width, planes, 5, stride=2, padding=2, output_padding=1, bias=False),
            nn.Tanh() if pixel_range == "[-1,1]" else nn.Sigmoid(),
        )
        self.apply(_initialise)

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Draws one image for each row: z (b, latent), labels int64 (b,) -> (b, planes, 28, 28)."""
        images: torch.Tensor = self.net(self.stem_norm(self.stem(z) + self.label_stem(labels)))
        return images

    def parameter_counts(self) -> tuple[int, int]:
        """Numbers of weights as Keras counts them, running statistics included (without label, of the label)."""
        label = self.label_stem.weight.numel()
        running = sum(b.numel() for name, b in self.named_buffers() if not name.endswith("num_batches_tracked"))
        return sum(p.numel() for p in self.parameters()) - label + running, label


@row_independent
class Discriminator(nn.Module):
    """Tells real images from fakes, given their label; every row is judged by itself. Logits, no sigmoid.

    Args:
        planes: channels of an image, image channels and then mask channels.
        labels: number of classes; the label enters by projection, as in `dcgan`.
        width: channels of the first layer; 64 in Keras.
    """

    def __init__(self, *, planes: int, labels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(planes, width, 5, stride=2, padding=2)
        self.second = nn.Conv2d(width, 2 * width, 5, stride=2, padding=2)
        self.drop = RowDropout(DROPPED)
        self.head = nn.Linear(2 * width * 49, 1)
        self.label_head = nn.Embedding(labels, 2 * width * 49)
        self.apply(_initialise)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Judges each row: (b, planes, 28, 28), int64 (b,) -> logits (b,)."""
        features = self.feature_maps(images)[-1].flatten(1)
        logits: torch.Tensor = self.head(features)[:, 0] + (self.label_head(labels) * features).sum(dim=1)
        return logits

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Activations of both layers, after dropout: (b, width, 14, 14) and (b, 2 width, 7, 7)."""
        rows = row_keys(images, cast(torch.Tensor, self.first.bias))  # torch types any convolution's as optional
        first = self.drop(F.leaky_relu(self.first(images), LEAKY_SLOPE), rows)
        second = self.drop(F.leaky_relu(self.second(first), LEAKY_SLOPE), rows)
        return [first, second]

    def parameter_counts(self) -> tuple[int, int]:
        """Numbers of weights (without label conditioning, of the label conditioning)."""
        label = self.label_head.weight.numel()
        return sum(p.numel() for p in self.parameters()) - label, label


@row_independent
class RowDropout(nn.Module):
    """Dropout whose mask is a hash of the row's own image and of the weights, not of a random number generator.

    A random mask a place in the batch would couple patients: one more patient shifts everybody's place. The hash is
    exact, so that a row has the same mask in every batch of a step, and another one once the weights have moved.
    """

    def __init__(self, dropped: float) -> None:
        super().__init__()
        self.dropped = dropped

    def forward(self, x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """X (b, ...), keys int64 (b,) from `row_keys` -> x with a share of its values zero, the others scaled up."""
        if not self.training:
            return x
        values = x[0].numel()
        mixed = _scramble(keys[:, None] + torch.arange(values, device=x.device) * _MIX[1])  # (b, values)
        uniform = (mixed & 0xFFFFFF).to(x.dtype) / 2**24  # in [0, 1)
        return x * (uniform >= self.dropped).to(x.dtype).reshape(x.shape) / (1 - self.dropped)


@torch.no_grad()
def row_keys(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A 64-bit number for each row: of its pixels' bits, (b, ...), and of the weights' (n,). int64 (b,)."""
    return _bits(images.flatten(1)) + _bits(weights[None]) * _MIX[0]


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Hash of float32 rows (b, n): int64 (b,), exact whatever the batch."""
    bits = values.detach().float().contiguous().view(torch.int32).to(torch.int64)  # (b, n)
    place = torch.arange(bits.shape[1], device=bits.device)
    return _scramble(_scramble(place * _MIX[1] + 1) * bits).sum(dim=1)


def _scramble(x: torch.Tensor) -> torch.Tensor:
    """A 64-bit mixer; integer overflow wraps."""
    x = (x ^ (x >> 32)) * _MIX[0]
    x = (x ^ (x >> 29)) * _MIX[1]
    return x ^ (x >> 32)


def build_generator(sizes: NetworkSizes) -> Generator:
    """The generator; its initial weights come from torch's global random numbers."""
    return Generator(
        planes=sizes.planes,
        labels=sizes.labels,
        latent=sizes.latent,
        width=sizes.generator_width,
        pixel_range=sizes.pixel_range,
    )


def build_discriminator(sizes: NetworkSizes) -> Discriminator:
    """The discriminator; its initial weights come from torch's global random numbers."""
    return Discriminator(planes=sizes.planes, labels=sizes.labels, width=sizes.discriminator_width)


def _keras_norm(kind: type[nn.Module], channels: int) -> nn.Module:
    return kind(channels, eps=1e-3, momentum=0.01)  # Keras writes momentum 0.99 for the share that stays


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)  # Keras's default
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)


ARCHITECTURE = Architecture(
    sizes=(28,),
    norms=("none",),
    feature_widths=3,
    row_milliseconds=5.4,
    build_generator=build_generator,
    build_discriminator=build_discriminator,
)
