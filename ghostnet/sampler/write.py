"""Publishing: a generator, its settings, model card and sample images in one folder, complete or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from ghostnet.durable import new_folder, sync_file, sync_folder
from ghostnet.errors import DataError
from ghostnet.exchange import arrays as weights
from ghostnet.models import build_generator
from ghostnet.plan import Plan
from ghostnet.sampler.contact_sheet import labelled_grid, outlined
from ghostnet.sampler.folder import (
    SAMPLES_FILE,
    TRANSCRIPT_FILE,
    WEIGHTS_FILE,
    sampler_config,
    sha256,
    texts,
)
from ghostnet.sampler.pixels import to_uint8
from ghostnet.sampler.sampler import Sampler, Samples


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
        transcript: the hospitals' last answers (`ghostnet.certificate.transcript`), which are released values too.

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
    copy = build_generator(plan.networks)  # the caller's network keeps its own training mode
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
    """A few samples of each class for people to look at: label -> uint8 (n,h,w) or (n,h,w,3).

    Where the plan has masks, the first is outlined on its image, in colour.
    """
    return {label: _picture(sampler.draw(per_label, label, seed), sampler) for label in sampler.labels}


def _picture(drawn: Samples, sampler: Sampler) -> np.ndarray:
    images = to_uint8(drawn.images, sampler.config.image.range)
    return images if drawn.masks is None else outlined(images, drawn.masks[:, 0].numpy())
