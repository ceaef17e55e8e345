"""`--engine ray`: the same two apps on Flower's simulation runtime (extra `ray`)."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

from flwr.serverapp import ServerApp

from ghostnet.errors import not_installed
from ghostnet.simulation.engine import quiet_flower


def run_on_ray(server_app: ServerApp, sites: Sequence[Path]) -> None:
    """Runs a ServerApp with one virtual SuperNode a hospital; they share this machine's cores, one each.

    Raises:
        MissingDependencyError: the extra is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise not_installed("ray", "ray")
    from flwr.simulation import run_simulation

    from client.app import build_app

    quiet_flower()
    absolute = [site.absolute() for site in sites]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the CLI that replaces it leaves a SuperLink running
        run_simulation(
            server_app=server_app,
            client_app=build_app(sites=absolute),
            num_supernodes=len(sites),
            backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
        )
