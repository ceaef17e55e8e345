"""The public values that a coordinator's requests carry, checked against the plan before anything is spent on them.

Nothing here reads a patient.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ghostnet.errors import DataError
from ghostnet.evidence import keys
from ghostnet.evidence.keys import DIGEST
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays, arrays_sha256, check_arrays
from ghostnet.plan import Plan
from ghostnet.sampler.folder import WEIGHTS_FILE, file_names, sha256, texts
from ghostnet.training import warm_start


def public_stream(name: str) -> int:
    """A public number of this hospital, so that two hospitals draw different fakes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def received_mean(plan: Plan, arrays: Mapping[str, np.ndarray]) -> torch.Tensor | None:
    """The coordinator's released mean; None where the plan has no warm start."""
    if plan.warm_start.noise_multiplier == 0:
        return None
    expected = {protocol.RELEASED_MEAN: np.zeros(plan.embedding.size, dtype=np.float32)}
    check_arrays(arrays, expected)
    mean = torch.from_numpy(np.array(arrays[protocol.RELEASED_MEAN]))
    warm_start.class_means(mean, plan.embedding)
    return mean


@dataclass(frozen=True, kw_only=True)
class Publication:
    """The coordinator's announcement of what it will publish: the hospital signs it, once in a run."""

    files: Mapping[str, str]  # SHA-256 of every file of the sampler but the certificate, hex, by name
    public_images_sha256: str = ""  # of the public images that the generator started from; "" = none

    def sha256(self) -> str:
        """One digest for all of it, for the ledger."""
        return hashlib.sha256(keys.canonical_json(dataclasses.asdict(self))).hexdigest()


def check_publication(
    publication: Publication, plan: Plan, run_id: str, generator: Arrays, released_mean: torch.Tensor | None
) -> None:
    """Refuses digests of files that are not those of this run's sampler.

    The weights must be those received; config.json and README.md exactly what plan, run, weights and released prior
    give. Of samples.png and transcript.safetensors the digest alone is known here; `ghostnet verify` checks the latter.

    Raises:
        DataError: names the file.
    """
    files, names = publication.files, file_names(plan)
    if set(files) != names or not all(DIGEST.fullmatch(digest) for digest in files.values()):
        raise DataError(f"the digests to sign are of {sorted(files)}, not one SHA-256 of each of {sorted(names)}")
    if bool(plan.warm_start.public) != bool(DIGEST.fullmatch(publication.public_images_sha256)):
        raise DataError("the public images to sign are not named by a SHA-256, where the plan has some and only there")
    if arrays_sha256(generator) != files[WEIGHTS_FILE]:
        raise DataError("the digest to sign is not that of the generator received; send matching weights")
    drawn = warm_start.with_released_prior(plan, released_mean)
    expected = texts(plan, run_id=run_id, weights_sha256=files[WEIGHTS_FILE], label_prior=drawn.image.label_prior)
    for name, content in expected.items():
        if sha256(content) != files[name]:
            raise DataError(f"the digest of {name} to sign is not that of what plan, run, weights and prior give")
