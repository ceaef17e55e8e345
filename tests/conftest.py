"""Settings of the whole test run: nothing calls home, examples repeat, slow and GPU tests say why they are skipped."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator

# Before anything imports Flower or Ray. The user's own memory of ledger heads and prepared images is left alone.
os.environ.update(
    XDG_STATE_HOME=tempfile.mkdtemp(prefix="ghostnet-tests-"),
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
    RAY_USAGE_STATS_ENABLED="0",
)
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["OMP_NUM_THREADS"] = "1"  # here and in processes of tests: files run side by side, on tiny networks

import pytest
import torch
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
settings.register_profile("ghostnet", deadline=None, derandomize=True)  # a loaded machine is no defect; runs repeat
settings.load_profile("ghostnet")
torch.set_num_threads(1)  # float sums alike on large and small machines; a test of several threads sets them itself


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --run-slow."""
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow (minutes each)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips, with the reason, what this machine or this call is not for."""
    slow = pytest.mark.skip(reason="takes minutes; give --run-slow to run it")
    gpu = pytest.mark.skip(reason="needs a CUDA device, and torch finds none here")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--run-slow"):
            item.add_marker(slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(gpu)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules of tiny networks, where a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
