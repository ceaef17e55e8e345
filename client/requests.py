"""What a coordinator may ask of a hospital in one run, and the public arrays that its requests carry.

Nothing here reads a patient: these are checks of what arrived, and names for the ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from ghostnet import protocol, warm_start
from ghostnet.plan import Plan
from ghostnet.utility import classifier
from ghostnet.weights import check_arrays, load_arrays


def public_stream(name: str) -> int:
    """A public number of this hospital, so that two hospitals draw different fakes."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def run_requests(plan: Plan) -> tuple[str, ...]:
    """Everything that a run of this plan may ask of the patients, each once."""
    first = ("warm_start",) if plan.warm_start.noise_multiplier > 0 else ()
    name, count = ("step", plan.privacy.steps) if plan.federation.is_pooled else ("round", plan.federation.rounds)
    return (*first, *(f"{name}-{number}" for number in range(1, count + 1)), "finish")


def received_mean(plan: Plan, arrays: Mapping[str, np.ndarray]) -> torch.Tensor | None:
    """The coordinator's released mean; None where the plan has no warm start."""
    if plan.warm_start.noise_multiplier == 0:
        return None
    expected = {protocol.RELEASED_MEAN: np.zeros(warm_start.embedding_size(plan), dtype=np.float32)}
    check_arrays(arrays, expected)
    mean = torch.from_numpy(np.array(arrays[protocol.RELEASED_MEAN]))
    warm_start.class_means(mean, plan)
    return mean


def received_classifier(plan: Plan, public: Mapping[str, np.ndarray]) -> tuple[torch.nn.Module, torch.Tensor | None]:
    """The coordinator's classifier and score edges, of exactly the plan's shape: the answer's size must not vary."""
    weights = {
        name.removeprefix(protocol.CLASSIFIER): array
        for name, array in public.items()
        if name.startswith(protocol.CLASSIFIER)
    }
    classes = len(plan.image.labels)
    model = classifier.build_classifier(channels=plan.image.channels, classes=classes)
    load_arrays(model, weights)
    if classes != 2:
        return model, None
    expected = {protocol.SCORE_EDGES: np.zeros(plan.utility.bins - 1, dtype=np.float32)}
    check_arrays({name: public[name] for name in expected if name in public}, expected)
    return model, torch.from_numpy(public[protocol.SCORE_EDGES])
