"""Two linear layers against two: the smallest pair that there is."""

from __future__ import annotations

import torch
from torch import nn

from ghostnet.models.record import Architecture, NetworkSizes
from ghostnet.privacy.layers import row_independent


class Generator(nn.Module):
    """Draws images from noise and a label."""

    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        self.shape = (sizes.planes, sizes.size, sizes.size)
        self.stem = nn.Linear(sizes.latent, sizes.generator_width)
        self.label_stem = nn.Embedding(sizes.labels, sizes.generator_width)
        self.last = nn.Linear(sizes.generator_width, sizes.planes * sizes.size**2)

    def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One image a row."""
        hidden = torch.relu(self.stem(z) + self.label_stem(labels))
        return torch.tanh(self.last(hidden)).reshape(-1, *self.shape)


@row_independent
class Discriminator(nn.Module):
    """Judges each row by itself."""

    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        width = sizes.discriminator_width
        self.first = nn.Conv2d(sizes.planes, width, 4, stride=4)
        self.head = nn.Linear(width * (sizes.size // 4) ** 2, 1)
        self.label_head = nn.Embedding(sizes.labels, width * (sizes.size // 4) ** 2)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (b,)."""
        features = self.feature_maps(images)[0].flatten(1)
        return self.head(features)[:, 0] + (self.label_head(labels) * features).sum(dim=1)

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Activations of the one layer."""
        return [torch.relu(self.first(images))]


ARCHITECTURE = Architecture(
    sizes=(20,),
    norms=("none",),
    losses=("hinge",),
    feature_widths=1,
    row_milliseconds=0.1,
    build_generator=Generator,
    build_discriminator=Discriminator,
)
