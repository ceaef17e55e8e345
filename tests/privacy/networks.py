"""Small discriminators that hold every layer with a per-row rule of its own, and a batch of rows for them."""

import torch
from torch import Tensor, nn

from ghostnet.privacy.mechanism import Rows, join_rows, row_independent


@row_independent
class SmallDiscriminator(nn.Module):
    """Convolutions with and without bias, strided, grouped norms, a linear head and a label embedding; 8x8 images."""

    def __init__(self, planes: int = 1, classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(planes, 4, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4, 8, 4, stride=2, padding=1, bias=False),
            nn.GroupNorm(2, 8),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.head = nn.Linear(32, 1)
        self.label_head = nn.Embedding(classes, 32)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.body(images)
        return self.head(features)[:, 0] + (self.label_head(labels) * features).sum(dim=1)


def build_small(seed: int = 0) -> SmallDiscriminator:
    """A small discriminator with repeatable weights; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SmallDiscriminator()


@row_independent
class CancellingDiscriminator(nn.Module):
    """Finite weights that are made to harm: images x and -x give the head gradients that cancel, each of any size.

    Linear without bias up to its head, which is all zero, so that every logit is 0 and no other layer has a gradient.
    The `head` is a Linear with one or several outputs, or a Conv2d; `label_head` is there as in every discriminator.
    """

    def __init__(self, head: str = "linear") -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)  # (4, 4, 4)
        self.label_head = nn.Embedding(2, 64)
        self.head = {
            "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False)),
            "wide linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 48)),
            "convolution over the image": lambda: nn.Conv2d(4, 1, 4, bias=False),
            "convolution": lambda: nn.Conv2d(4, 16, 3, padding=1),
            "dilated convolution": lambda: nn.Conv2d(4, 64, 2, dilation=2),
            "positions": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(3), nn.Linear(16, 8)),
            "group norm": lambda: nn.GroupNorm(2, 4),
        }[head]()
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.constant_(self.body.weight[:, :, 1, 1], 2.0**20)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.body(images)  # (r, 4, 4, 4)
        read = self.head(features).flatten(1)
        weights = 1 + torch.arange(read.shape[1]) % 3
        return read @ weights.to(read.dtype) + (self.label_head(labels) * features.flatten(1)).sum(dim=1)


HEADS = (
    *("linear", "wide linear", "convolution over the image", "convolution", "dilated convolution"),
    *("positions", "group norm"),
)


def example_rows(sizes: list[int], fakes: int, *, seed: int = 0, scale: float = 1.0) -> Rows:
    """Random rows: one patient of each size, then fakes of one row."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
    return join_rows(
        images=torch.randn(len(groups), 1, 8, 8, generator=generator) * scale,
        labels=torch.randint(2, (len(groups),), generator=generator),
        groups=groups,
        fakes=torch.randn(fakes, 1, 8, 8, generator=generator),
        fake_labels=torch.randint(2, (fakes,), generator=generator),
    )
