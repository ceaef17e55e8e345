"""Networks to named arrays and back: the form in which weights are sent, averaged and published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import DTypeLike
from torch import nn

from ghostnet.errors import FederationError
from ghostnet.exchange.protocol import DISCRIMINATOR

Arrays = dict[str, np.ndarray]
"""Named arrays: weights, or any other values that cross between the parties."""

FORMAT = "ghostnet-weights/1"

_NOT_EXCHANGED = "num_batches_tracked"  # a BatchNorm step counter; only matters with momentum = None, which no net uses


def to_arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """Copies of every weight and running statistic, float32, by name."""
    return {name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in _exchanged(module).items()}


def load_arrays(module: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copies arrays into a network; nothing is changed unless all of them fit.

    Args:
        module: network to fill.
        arrays: what `to_arrays` gave for a network of the same plan.

    Raises:
        FederationError: a name is missing or unknown, a shape differs, or an array is not finite float32.
    """
    tensors = _exchanged(module)
    if set(arrays) != set(tensors):
        wrong = sorted(set(arrays) ^ set(tensors))
        raise FederationError(
            f"weights have {len(arrays)} arrays where the plan's network has {len(tensors)}; "
            f"first name that does not match: {wrong[0][:80]!r}; were both made from the same plan?"
        )
    for name, tensor in tensors.items():
        _check_array(name, arrays[name], tuple(tensor.shape))
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))  # a copy: a received array may be read-only


def join_pair(generator: nn.Module, discriminator: nn.Module | None) -> Arrays:
    """The weights that a federation averages: the generator's, and the discriminator's where it is shared."""
    arrays = to_arrays(generator)
    shared = {} if discriminator is None else to_arrays(discriminator)
    return {**arrays, **{f"{DISCRIMINATOR}{name}": array for name, array in shared.items()}}


def split_pair(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
    """(generator's weights, discriminator's weights) of what `join_pair` gave."""
    shared = {name for name in arrays if name.startswith(DISCRIMINATOR)}
    generator = {name: array for name, array in arrays.items() if name not in shared}
    return generator, {name.removeprefix(DISCRIMINATOR): arrays[name] for name in sorted(shared)}


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Refuses arrays whose names, shapes or types (float32, or int64) are not those of `expected`, or not finite.

    Raises:
        FederationError: names the first that does not fit.
    """
    if set(arrays) != set(expected):
        raise FederationError(f"an answer has {len(arrays)} arrays where {len(expected)} were asked for")
    for name, wanted in expected.items():
        _check_array(name, arrays[name], wanted.shape, wanted.dtype)


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The one byte form of weights (safetensors, sorted by name): what is published, hashed and signed."""
    return safetensors.numpy.save(dict(sorted(arrays.items())), metadata={"format": FORMAT})


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256, in hex, of `to_bytes`."""
    return hashlib.sha256(to_bytes(arrays)).hexdigest()


def _exchanged(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in module.state_dict().items() if not k.endswith(_NOT_EXCHANGED)}


def _check_array(name: str, array: object, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        given = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        wanted = np.dtype(dtype).name
        raise FederationError(f"weights {name} are {given}, not a {wanted} array; send them with weights.to_arrays")
    if array.shape != shape:
        raise FederationError(f"weights {name} have shape {array.shape}, the plan's network {shape}; check the plan")
    if not np.isfinite(array).all():
        raise FederationError(f"weights {name} hold NaN or infinity; the sender's training diverged, refuse its reply")
