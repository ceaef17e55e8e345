"""Weights as arrays: a round trip keeps them, and nothing that does not fit is loaded."""

import numpy as np
import pytest
import torch

from ghostnet.errors import FederationError
from ghostnet.exchange.arrays import load_arrays, to_arrays
from ghostnet.models.dcgan import Generator


def network(seed: int) -> Generator:
    torch.manual_seed(seed)
    return Generator(size=28, planes=1, labels=2, latent=3, width=4, pixel_range="[-1,1]")


def test_round_trip_gives_the_same_images_running_statistics_included():
    sender, receiver = network(0), network(1)
    sender(torch.randn(32, 3), torch.arange(32) % 2)  # moves the running statistics
    load_arrays(receiver, to_arrays(sender))
    z, labels = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    assert torch.equal(sender.eval()(z, labels), receiver.eval()(z, labels))


def test_arrays_are_float32_copies_without_step_counters():
    sender = network(0)
    arrays = to_arrays(sender)
    assert {a.dtype for a in arrays.values()} == {np.dtype(np.float32)}
    assert any(name.endswith("running_mean") for name in arrays)
    assert not any(name.endswith("num_batches_tracked") for name in arrays)
    name = next(iter(arrays))
    arrays[name][:] = 7
    assert not (sender.state_dict()[name] == 7).any()


def test_read_only_arrays_load():
    arrays = to_arrays(network(0))
    for array in arrays.values():
        array.flags.writeable = False
    load_arrays(network(1), arrays)


def _drop(arrays, name):
    del arrays[name]


def _extra(arrays, name):
    arrays["sneaked"] = arrays[name]


def _shape(arrays, name):
    arrays[name] = arrays[name][:1]


def _dtype(arrays, name):
    arrays[name] = arrays[name].astype(np.float64)


def _nan(arrays, name):
    arrays[name].flat[-1] = np.nan


def _infinite(arrays, name):
    arrays[name].flat[0] = -np.inf


def _list(arrays, name):
    arrays[name] = arrays[name].tolist()


@pytest.mark.parametrize("spoil", [_drop, _extra, _shape, _dtype, _nan, _infinite, _list])
def test_arrays_that_do_not_fit_change_nothing(spoil):
    receiver = network(1)
    before = {k: v.clone() for k, v in receiver.state_dict().items()}
    arrays = to_arrays(network(0))
    spoil(arrays, list(arrays)[-1])
    with pytest.raises(FederationError):
        load_arrays(receiver, arrays)
    assert all(torch.equal(before[k], v) for k, v in receiver.state_dict().items())
