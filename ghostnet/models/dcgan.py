"""The DCGAN pair, conditional on the label, for square images of 28, 32, 64 or 128 pixels a side.

Source: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional GANs" (2015), with
three changes that privacy asks for in the discriminator: GroupNorm or nothing where the paper has BatchNorm (which
couples patients), logits where it has a Sigmoid, and only layers whose per-row gradients are cheap to clip.

The 64-pixel pair is the paper's. The 32-pixel pair drops its widest layer, the 128-pixel pair has one wider one; the
28-pixel pair starts from 7x7 maps.
"""

from __future__ import annotations

import torch
from torch import nn

from ghostnet.models.record import Architecture, NetworkSizes, Norm, PixelRange
from ghostnet.privacy.layers import row_independent
from ghostnet.privacy.penalised import InputPenalty

INITIAL_STD = 0.02  # of every convolution's weights, from the paper
BACKGROUND = -2.0  # what the last layer starts a mask at, before tanh or sigmoid
LEAKY_SLOPE = 0.2
GROUP_CHANNELS = 16  # channels that one GroupNorm group spans


class Generator(nn.Module):
    """Draws images from noise and a label.

    Every hidden layer is a transposed convolution without bias, BatchNorm and ReLU. BatchNorm is harmless here: the
    generator never sees a real image. With masks the last layer has a bias that starts them as background: without one
    they are half-way where every unit is off, which no gradient leaves, and lesions stay without a mask.

    Args:
        size: pixels a side, 28, 32, 64 or 128.
        planes: channels drawn, image channels and then mask channels.
        mask_planes: how many of them are masks.
        labels: number of classes.
        latent: length of the noise vector.
        width: channels of the hidden layer nearest to the image.
        pixel_range: "[-1,1]" ends in tanh, "[0,1]" in a sigmoid.
    """

    def __init__(
        self,
        *,
        size: int,
        planes: int,
        labels: int,
        latent: int,
        width: int,
        pixel_range: PixelRange,
        mask_planes: int = 0,
    ) -> None:
        super().__init__()
        self.latent, self.labels = latent, labels
        base, doublings = _pyramid(size)
        channels = width * 2 ** (doublings - 1)
        stem = channels * 2 if size == 28 else channels
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent + labels, stem, base, bias=False),
            *_generator_norm(stem),
        ]
        if size == 28:  # the source's extra 7x7 layer, without which this pair is too shallow
            layers += [nn.ConvTranspose2d(stem, channels, 3, padding=1, bias=False), *_generator_norm(channels)]
        for _ in range(doublings - 1):
            layers += [nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False)]
            layers += _generator_norm(channels // 2)
            channels //= 2
        last = nn.ConvTranspose2d(channels, planes, 4, stride=2, padding=1, bias=mask_planes > 0)
        layers += [last, nn.Tanh() if pixel_range == "[-1,1]" else nn.Sigmoid()]
        self.net = nn.Sequential(*layers)
        self.apply(_initialise)
        if last.bias is not None:
            with torch.no_grad():
                last.bias.copy_(torch.tensor([0.0] * (planes - mask_planes) + [BACKGROUND] * mask_planes))

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Draws one image for each row.

        Args:
            z: float (b, latent), standard normal.
            labels: int64 (b,), class of each image.

        Returns:
            float (b, planes, size, size), in the pixel range.
        """
        one_hot = nn.functional.one_hot(labels, self.labels).to(z.dtype)
        images: torch.Tensor = self.net(torch.cat([z, one_hot], dim=1)[:, :, None, None])
        return images


@row_independent
class Discriminator(nn.Module):
    """Tells real images from fakes, given their label; every row is judged by itself.

    The label enters by projection (Miyato and Koyama, 2018): an embedding of the label is added to the weights of the
    last layer, so that each class has its own read-out of shared features.

    Args:
        size: pixels a side, 28, 32, 64 or 128.
        planes: channels of an image, image channels and then mask channels.
        labels: number of classes.
        width: channels of the first layer.
        norm: "group" for GroupNorm, "none" for no normalisation.
    """

    def __init__(self, *, size: int, planes: int, labels: int, width: int, norm: Norm) -> None:
        super().__init__()
        base, halvings = _pyramid(size)
        layers: list[nn.Module] = [nn.Conv2d(planes, width, 4, stride=2, padding=1, bias=False)]
        layers += [nn.LeakyReLU(LEAKY_SLOPE)]
        channels = width
        for _ in range(halvings - 1):
            layers += [nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False)]
            channels *= 2
            if norm == "group":
                layers += [nn.GroupNorm(_groups(channels), channels)]
            layers += [nn.LeakyReLU(LEAKY_SLOPE)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, 1, base, bias=False)
        self.label_head = nn.Embedding(labels, channels * base * base)
        self.apply(_initialise)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Judges each row.

        Args:
            images: float (b, planes, size, size).
            labels: int64 (b,).

        Returns:
            float (b,) logits; above 0 means "real".
        """
        features = self.features(images)  # (b, channels, base, base)
        shared = self.head(features).flatten()  # (b,)
        logits: torch.Tensor = shared + (self.label_head(labels) * features.flatten(1)).sum(dim=1)
        return logits

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Activations of every layer, (b, channels, h, w) each: what the perceptual loss compares."""
        maps = []
        for layer in self.features:
            images = layer(images)
            if isinstance(layer, nn.LeakyReLU):
                maps.append(images)
        return maps

    def parameter_counts(self) -> tuple[int, int]:
        """Numbers of weights (without label conditioning, of the label conditioning)."""
        label = self.label_head.weight.numel()
        return sum(p.numel() for p in self.parameters()) - label, label


def build_generator(sizes: NetworkSizes) -> Generator:
    """The generator; its initial weights come from torch's global random numbers."""
    return Generator(
        size=sizes.size,
        planes=sizes.planes,
        mask_planes=sizes.mask_planes,
        labels=sizes.labels,
        latent=sizes.latent,
        width=sizes.generator_width,
        pixel_range=sizes.pixel_range,
    )


def build_discriminator(sizes: NetworkSizes) -> Discriminator:
    """The discriminator; its initial weights come from torch's global random numbers."""
    return Discriminator(
        size=sizes.size,
        planes=sizes.planes,
        labels=sizes.labels,
        width=sizes.discriminator_width,
        norm=sizes.norm,
    )


def _pyramid(size: int) -> tuple[int, int]:
    """Pixels a side of the smallest maps, and how often they double up to `size`."""
    return {28: (7, 2), 32: (4, 3), 64: (4, 4), 128: (4, 5)}[size]


def _generator_norm(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _groups(channels: int) -> int:
    """The largest number of equal groups with at least GROUP_CHANNELS channels each."""
    wanted = max(1, channels // GROUP_CHANNELS)
    return next(g for g in range(wanted, 0, -1) if channels % g == 0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, INITIAL_STD)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, INITIAL_STD)
        nn.init.zeros_(module.bias)


ARCHITECTURE = Architecture(
    sizes=(28, 32, 64, 128),
    penalty=InputPenalty.R1,
    feature_widths=31,
    row_milliseconds=3.0,
    build_generator=build_generator,
    build_discriminator=build_discriminator,
)
