"""Public images that a generator may start from: the user's own file, or procedural ones drawn on the spot.

Nothing here is private: the images must be ones that anyone may see, and the certificate names them. They go through
the same embedding and the same fit as the warm start's release (warm_start.py), before it.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from ghostnet.errors import DataError
from ghostnet.models import PixelRange
from ghostnet.plan import Embedding, ImageSpec, WarmStartSpec
from ghostnet.progress import Progress, silent
from ghostnet.training import phantom, warm_start
from ghostnet.training.cohort import Cohort

PROCEDURAL = "procedural"
"""In the plan, instead of a path: chest phantoms of this package, the first label healthy, the others with lesions."""

PHANTOMS_A_LABEL = 200


@dataclass(frozen=True, kw_only=True)
class PublicImages:
    """Images that anyone may see.

    Attributes:
        images: float32 (n, planes, size, size) in the plan's range.
        labels: int64 (n,).
        source: what the certificate names: the file's own name, or "procedural".
        sha256: of the file, in hex; of the images, where they are procedural.
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: str
    sha256: str


def load_public(source: str, image: ImageSpec, beside: Path, *, seed: int) -> PublicImages:
    """The images that `[warm_start].public` names.

    Args:
        source: "procedural", or the path of an NPZ file with `images` uint8 (n,h,w) or (n,h,w,3), `labels` int (n,)
            and, where masks are drawn, `masks` uint8 (n,h,w).
        image: what they are made into.
        beside: folder that a relative path starts from: the plan file's.
        seed: PUBLIC, of procedural images.

    Raises:
        DataError: the file cannot be read, or does not fit the plan.
    """
    if source == PROCEDURAL:
        images, labels = _phantoms(image, seed)
        return PublicImages(
            images=images, labels=labels, source=PROCEDURAL, sha256=hashlib.sha256(images.numpy().tobytes()).hexdigest()
        )
    path = beside / source
    try:
        content = path.read_bytes()
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in ("images", "labels", "masks") if name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"[warm_start].public = {source!r} cannot be read ({type(error).__name__}); give an NPZ "
            f'file with images and labels, or "{PROCEDURAL}"'
        ) from None
    images, labels = _fitted(columns, image, path.name)
    return PublicImages(images=images, labels=labels, source=path.name, sha256=hashlib.sha256(content).hexdigest())


def fit_public(
    generator: nn.Module,
    public: PublicImages,
    embedding: Embedding,
    warm: WarmStartSpec,
    *,
    latent: int,
    progress: Progress = silent,
) -> None:
    """Fits the generator, in place, to the public images' embedding, as to a release without noise."""
    n = len(public.labels)
    cohort = Cohort(images=public.images, labels=public.labels, owners=torch.arange(n), patients=n)
    total = torch.zeros(embedding.size)
    for block in warm_start.iter_patient_embeddings(cohort, embedding, 1, next(generator.parameters()).device):
        total += block.sum(0)
    warm_start.fit_generator(generator, total / n, embedding, warm, latent=latent, progress=progress)


def _fitted(columns: dict[str, np.ndarray], image: ImageSpec, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels, masks = (columns.get(key) for key in ("images", "labels", "masks"))
    colours = (3,) if image.channels == 3 else ()
    if images is None or images.dtype != np.uint8 or images.shape[3:] != colours or images.ndim != 3 + len(colours):
        raise DataError(f"public images in {name} need uint8 (n,h,w{',3' if colours else ''}); write the file so")
    n = len(images)
    if labels is None or labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise DataError(f"public images in {name} need whole-number labels ({n},); add them")
    if n == 0 or labels.min() < 0 or labels.max() >= len(image.labels) or len(set(labels)) < len(image.labels):
        raise DataError(
            f"public images in {name} need at least one image of each of the plan's {len(image.labels)} labels, "
            f"numbered 0 to {len(image.labels) - 1}"
        )
    planes = [images.reshape(*images.shape[:3], -1).transpose(0, 3, 1, 2)]
    if image.mask_channels:
        if masks is None or masks.shape != images.shape[:3] or masks.dtype != np.uint8:
            raise DataError(f"public images in {name} need masks uint8 {images.shape[:3]}; the plan draws masks")
        inside = [masks != 0] if image.mask_channels == 1 else [masks == k + 1 for k in range(image.mask_channels)]
        planes += [255 * region[:, None].astype(np.uint8) for region in inside]
    unit = torch.from_numpy(np.concatenate(planes, axis=1).astype(np.float32) / 255)
    return _fitted_pixels(unit, image.size, image.range), torch.from_numpy(labels.astype(np.int64))


def _phantoms(image: ImageSpec, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Chest phantoms from a public seed."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(len(image.labels)).repeat_interleave(PHANTOMS_A_LABEL)
    drawn = [phantom.chest(rng, image.size, phantom.LABELS[int(label > 0)]) for label in labels]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in drawn]).astype(np.float32))
    masks = torch.from_numpy(np.stack([mask for _, mask in drawn]).astype(np.float32) / 255)
    planes = [images] * image.channels + [masks] * image.mask_channels
    return _fitted_pixels(torch.stack(planes, dim=1), image.size, image.range), labels


def _fitted_pixels(unit: torch.Tensor, size: int, pixel_range: PixelRange) -> torch.Tensor:
    """Pixels in [0,1] of any size to the plan's size and range."""
    if max(unit.shape[-2:]) < size:
        unit = interpolate(unit, size=(size, size), mode="bilinear", align_corners=False)
    elif unit.shape[-2:] != (size, size):
        unit = adaptive_avg_pool2d(unit, size)
    return unit * 2 - 1 if pixel_range == "[-1,1]" else unit
