"""The numbers that fix the warm start's random-feature embedding; the plan gives them, the catalogue its length."""

from __future__ import annotations

from dataclasses import dataclass

from ghostnet.models import PixelRange


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """The embedding of an image (`ghostnet.training.warm_start`), the same at every party. All of it is public.

    Attributes:
        labels: number of classes.
        planes: channels of an image, image channels and then mask channels.
        pixel_range: of the images.
        features: random Fourier features, cosines and sines together.
        feature_size: pixels a side at which they are taken.
        bandwidths: kernel scales that the features are shared out among, at least one.
        mean_image_weight: share of the norm that goes to the mean image.
        seed: PUBLIC, of the random frequencies.
    """

    labels: int
    planes: int
    pixel_range: PixelRange
    features: int
    feature_size: int
    bandwidths: tuple[float, ...]
    mean_image_weight: float
    seed: int

    @property
    def pixels(self) -> int:
        """Numbers of an image at the feature size."""
        return self.planes * self.feature_size**2

    @property
    def width(self) -> int:
        """Numbers of one class's block: its features, its mean image and its mass."""
        return self.features + self.pixels + 1

    @property
    def size(self) -> int:
        """Numbers of a patient's vector, and of a release."""
        return self.labels * self.width
