"""The StyleGAN2 pair, conditional on the label, for square images of 32, 64 or 128 pixels a side.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020): a mapping network, convolutions
that are modulated by styles and demodulated, noise at every pixel, skip connections to the image, style mixing, a
residual discriminator, equalised learning rates. What differs:

- No minibatch standard deviation in the discriminator: it couples patients.
- Noise, and the coins of style mixing, are functions of z, and not of a random number generator: an image is drawn by
  (z, label) alone, the same in every batch and at every party.
- The discriminator's weights are plain ones behind a fixed scale of the layer's input (the same function and gradient
  as a scaled weight), so that per-patient gradients take the fast path.
- 4x4 kernels of stride 2 where the paper has 3x3 ones beside a blur.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ghostnet.models.record import Architecture, NetworkSizes, PixelRange
from ghostnet.privacy.layers import row_independent
from ghostnet.privacy.penalised import InputPenalty

BASE = 4  # pixels a side of the smallest maps
MAX_CHANNELS = 512
LEAKY_SLOPE, GAIN = 0.2, math.sqrt(2)  # the gain keeps the scale of activations
MAPPING_LAYERS = 2
MAPPING_RATE = 0.01  # learning rate of the mapping network, relative
MIXED_SHARE = 0.5  # of training images take the styles of their finer layers from another z
STYLE_DECAY = 0.99  # of the running mean style, for truncation
HASHED = 16  # numbers of z that noise is made of


class Generator(nn.Module):
    """Draws images from noise and a label.

    Args:
        size: pixels a side, 32, 64 or 128.
        planes: channels drawn, image channels and then mask channels.
        labels: number of classes.
        latent: length of the noise vector.
        width: channels of the hidden layers nearest to the image.
        pixel_range: "[-1,1]" ends in tanh, "[0,1]" in a sigmoid.
        truncation: in evaluation, styles are drawn towards their class's mean: 1 leaves them, 0 is the mean alone.
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
        truncation: float = 1.0,
    ) -> None:
        super().__init__()
        self.truncation = truncation
        self.squash = nn.Tanh() if pixel_range == "[-1,1]" else nn.Sigmoid()
        style = min(8 * width, MAX_CHANNELS)
        self.label_code = nn.Embedding(labels, latent)
        nn.init.normal_(self.label_code.weight)
        self.mapping = nn.ModuleList(
            EqualLinear(style if i else 2 * latent, style, rate=MAPPING_RATE) for i in range(MAPPING_LAYERS)
        )
        self.mean_style: torch.Tensor
        self.register_buffer("mean_style", torch.zeros(labels, style))
        self.start = nn.Parameter(torch.randn(1, _channels(size, BASE, width), BASE, BASE))
        self.layers, self.to_image = nn.ModuleList(), nn.ModuleList()
        side, before = BASE, _channels(size, BASE, width)
        self.layers.append(StyledLayer(before, before, style, side, stream=0))
        self.to_image.append(ToImage(before, planes, style))
        while side < size:
            side *= 2
            after, place = _channels(size, side, width), len(self.layers)
            self.layers.append(StyledLayer(before, after, style, side, stream=place, doubles=True))
            self.layers.append(StyledLayer(after, after, style, side, stream=place + 1))
            self.to_image.append(ToImage(after, planes, style))
            before = after
        self.coins = PublicHash(2, stream=len(self.layers))

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Draws one image for each row: z (b, latent), labels int64 (b,) -> (b, planes, size, size)."""
        styles = self.styles(z, labels)
        x = self.start.expand(len(z), -1, -1, -1)
        image = x.new_zeros(())
        for number, layer in enumerate(self.layers):
            x = layer(x, styles[number], z)
            if number % 2 == 0:  # the last layer of a resolution
                drawn = self.to_image[number // 2](x, styles[number])  # (b, planes, side, side)
                image = drawn + (F.interpolate(image, scale_factor=2, mode="bilinear") if number else image)
        squashed: torch.Tensor = self.squash(image)
        return squashed

    def styles(self, z: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """A style (b, style) for each layer: mixed in training, truncated in evaluation."""
        own = self._map(z, labels)
        if not self.training:
            own = torch.lerp(self.mean_style[labels], own, self.truncation) if self.truncation != 1 else own
            return [own] * len(self.layers)
        self._move_mean_style(own.detach(), labels)
        other = self._map(z.roll(1, 0), labels)
        coin, where = self.coins(z).unbind(1)  # (b,), uniform in [0, 1)
        crossover = torch.where(coin < MIXED_SHARE, 1 + where * (len(self.layers) - 1), math.inf)  # (b,)
        return [torch.where((number >= crossover.floor())[:, None], other, own) for number in range(len(self.layers))]

    def _map(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = torch.cat([_normalise(z), _normalise(self.label_code(labels))], dim=1)
        for layer in self.mapping:
            x = _activate(layer(x))
        return x

    @torch.no_grad()
    def _move_mean_style(self, styles: torch.Tensor, labels: torch.Tensor) -> None:
        one_hot = F.one_hot(labels, len(self.mean_style)).to(styles.dtype)  # (b, labels)
        counts = one_hot.sum(0)[:, None]
        means = one_hot.T @ styles / counts.clamp(min=1)
        self.mean_style.lerp_(torch.where(counts > 0, means, self.mean_style), 1 - STYLE_DECAY)


class EqualLinear(nn.Module):
    """A linear layer with weights of size one, scaled when used, so that every layer learns at the same rate.

    Args:
        inputs: length of a row.
        outputs: length of a row of the result.
        bias: where the bias starts.
        rate: relative learning rate.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, inputs) -> (b, outputs)."""
        scale = self.rate / math.sqrt(self.weight.shape[1])
        return F.linear(x, self.weight * scale, self.bias * self.rate)


class StyledLayer(nn.Module):
    """A modulated and demodulated convolution, noise, bias and LeakyReLU.

    Modulating the input by s and the output by 1 / |s w| is the same as doing it to each image's weights (section 2.2
    of the paper), without a convolution of its own for each image.

    Args:
        inputs: channels.
        outputs: channels of the result.
        style: length of a style.
        side: pixels a side of the result.
        stream: public number, so that each layer has other noise.
        doubles: the result has twice the input's side.
    """

    def __init__(self, inputs: int, outputs: int, style: int, side: int, *, stream: int, doubles: bool = False) -> None:
        super().__init__()
        self.modulation = EqualLinear(style, inputs, bias=1.0)
        shape = (inputs, outputs, 4, 4) if doubles else (outputs, inputs, 3, 3)
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.noise = PublicHash(side * side, stream=stream)
        self.doubles = doubles

    def forward(self, x: torch.Tensor, style: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """X (b, inputs, h, w), style (b, style), z (b, latent) -> (b, outputs, side, side)."""
        inputs = self.weight.shape[0 if self.doubles else 1]
        taps = 4 if self.doubles else 9  # weights that one output pixel sees of an input channel
        weight = self.weight / math.sqrt(inputs * taps)
        modulation = self.modulation(style)  # (b, inputs)
        x = x * modulation[:, :, None, None]
        x = F.conv_transpose2d(x, weight, stride=2, padding=1) if self.doubles else F.conv2d(x, weight, padding=1)
        energy = weight.square().sum((2, 3)) * (taps / weight[0, 0].numel())  # (inputs, outputs) or its transpose
        energy = energy if self.doubles else energy.T
        x = x * (modulation.square() @ energy + 1e-8).rsqrt()[:, :, None, None]
        noise = GAIN * (2 * math.pi * self.noise(z)).cos()  # (b, side side), mean 0 and variance 1
        x = x + self.noise_strength * noise.reshape(len(x), 1, *x.shape[2:])
        return _activate(x + self.bias[:, None, None])


class ToImage(nn.Module):
    """A modulated 1x1 convolution to the image's channels, not demodulated."""

    def __init__(self, inputs: int, planes: int, style: int) -> None:
        super().__init__()
        self.modulation = EqualLinear(style, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(planes, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(planes))

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """X (b, inputs, h, w), style (b, style) -> (b, planes, h, w)."""
        scale = self.modulation(style)[:, :, None, None] / math.sqrt(x.shape[1])
        return F.conv2d(x * scale, self.weight, self.bias)


class PublicHash(nn.Module):
    """Numbers in [0, 1) from z: uniform, and pairwise uncorrelated over z, for they are phases of random waves.

    The waves are public constants, the same for everybody, and no part of the weights that are exchanged.

    Args:
        numbers: how many a row.
        stream: public number of this hash.
    """

    def __init__(self, numbers: int, *, stream: int) -> None:
        super().__init__()
        public = np.random.Generator(np.random.PCG64([0x57EE, stream]))
        waves = public.standard_normal((HASHED, numbers), dtype=np.float32)
        phases = public.random(numbers, dtype=np.float32)
        self.waves: torch.Tensor
        self.phases: torch.Tensor
        self.register_buffer("waves", torch.from_numpy(waves), persistent=False)
        self.register_buffer("phases", torch.from_numpy(phases), persistent=False)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Z (b, latent) -> (b, numbers)."""
        used = z.detach()[:, :HASHED]
        return (used @ self.waves[: used.shape[1]] + self.phases).remainder(1.0)


@row_independent
class Discriminator(nn.Module):
    """Tells real images from fakes, given their label; every row is judged by itself.

    Args:
        size: pixels a side, 32, 64 or 128.
        planes: channels of an image, image channels and then mask channels.
        labels: number of classes; the label enters by projection, as in `dcgan`.
        width: channels of the first layer.
    """

    def __init__(self, *, size: int, planes: int, labels: int, width: int) -> None:
        super().__init__()
        channels = [_channels(size, side, width) for side in _sides(size)]
        self.from_image = nn.Sequential(_equal_conv(planes, channels[0], 1), Activation())
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(channels, channels[1:], strict=False))
        last = channels[-1]
        self.summary = nn.Sequential(
            _equal_conv(last, last, 3),
            Activation(),
            nn.Flatten(),
            _equal_linear(last * BASE * BASE, last),
            Activation(),
        )
        self.head = _equal_linear(last, 1)
        self.label_head = nn.Embedding(labels, last)
        nn.init.normal_(self.label_head.weight)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Judges each row: (b, planes, size, size), int64 (b,) -> logits (b,)."""
        features = self.summary(self.feature_maps(images)[-1])  # (b, channels)
        by_label = (self.label_head(labels) * features).sum(dim=1) / math.sqrt(features.shape[1])
        logits: torch.Tensor = self.head(features)[:, 0] + by_label
        return logits

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Activations after each block, (b, channels, h, w) each."""
        maps = [self.from_image(images)]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]

    def parameter_counts(self) -> tuple[int, int]:
        """Numbers of weights (without label conditioning, of the label conditioning)."""
        label = self.label_head.weight.numel()
        return sum(p.numel() for p in self.parameters()) - label, label


@row_independent
class ResidualBlock(nn.Module):
    """Two convolutions, the second of which halves the side, beside a halved 1x1 path."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            _equal_conv(inputs, inputs, 3), Activation(), _equal_conv(inputs, outputs, 4, stride=2), Activation()
        )
        self.beside = nn.Sequential(nn.AvgPool2d(2), _equal_conv(inputs, outputs, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, inputs, h, w) -> (b, outputs, h / 2, w / 2)."""
        halved: torch.Tensor = (self.main(x) + self.beside(x)) / GAIN
        return halved


@row_independent
class Activation(nn.Module):
    """LeakyReLU with a gain that keeps the scale."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return _activate(x)


@row_independent
class Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return x * self.factor


def build_generator(sizes: NetworkSizes) -> Generator:
    """The generator; its initial weights come from torch's global random numbers."""
    return Generator(
        size=sizes.size,
        planes=sizes.planes,
        labels=sizes.labels,
        latent=sizes.latent,
        width=sizes.generator_width,
        pixel_range=sizes.pixel_range,
        truncation=sizes.truncation,
    )


def build_discriminator(sizes: NetworkSizes) -> Discriminator:
    """The discriminator; its initial weights come from torch's global random numbers."""
    return Discriminator(size=sizes.size, planes=sizes.planes, labels=sizes.labels, width=sizes.discriminator_width)


def _equal_conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = True) -> nn.Sequential:
    """A convolution with an equalised learning rate: weights of size one behind a scaled input."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=(kernel - 1) // 2, bias=bias)
    return _equalised(layer, inputs * kernel * kernel)


def _equal_linear(inputs: int, outputs: int) -> nn.Sequential:
    return _equalised(nn.Linear(inputs, outputs), inputs)


def _equalised(layer: nn.Conv2d | nn.Linear, fan_in: int) -> nn.Sequential:
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(Scale(1 / math.sqrt(fan_in)), layer)


def _channels(size: int, side: int, width: int) -> int:
    """Channels of maps of `side` pixels: doubled with every halving, up to eight times the width."""
    return min(width * min(size // side, 8), MAX_CHANNELS)


def _sides(size: int) -> list[int]:
    return [size >> i for i in range((size // BASE).bit_length())]


def _normalise(x: torch.Tensor) -> torch.Tensor:
    """Rows of mean square 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def _activate(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, LEAKY_SLOPE) * GAIN


ARCHITECTURE = Architecture(
    sizes=(32, 64, 128),
    norms=("none",),
    penalty=InputPenalty.R1,
    penalised_by_default=True,
    truncates=True,
    feature_widths=30,
    row_milliseconds=45.0,
    build_generator=build_generator,
    build_discriminator=build_discriminator,
)
