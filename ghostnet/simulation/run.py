"""A whole federation on one machine, as a library call: the same two apps, over an in-process grid or Ray."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from client.config import SiteConfig, load_site
from client.intake.unit import data_unit
from client.policy import check_plan
from client.site import Site
from ghostnet.errors import SiteError
from ghostnet.plan import Plan
from ghostnet.plan.unit import protects
from ghostnet.progress import Progress, named
from ghostnet.simulation import embedded, reference
from ghostnet.simulation.engine import Engine as Engine
from ghostnet.simulation.partition import write_sites
from ghostnet.training.device import AUTO, find_device
from server.app import build_app as build_server_app


def run(
    plan_file: Path,
    plan: Plan,
    out: Path,
    site_files: Sequence[Path],
    data: Path | None,
    sites: int,
    partition: str,
    engine_name: Engine,
    resume: bool,
    progress: Progress,
    say: Callable[[str], None],
    *,
    device: str = AUTO,
) -> None:
    """Prepares the hospitals, runs the two apps, and adds what only a simulation may know.

    Args:
        plan_file: what the federation agrees on.
        plan: the same, resolved.
        out: run folder to write.
        site_files: the hospitals' site.toml files; not with `data`.
        data: one NPZ file to share out among `sites` hospitals, as `partition` says.
        sites: number of hospitals, with `data`.
        partition: "iid", "dirichlet:ALPHA" or "column:NAME", with `data`.
        engine_name: what carries the messages.
        resume: go on with the unfinished run in `out`.
        progress: told about every long phase.
        say: told what the person who started it has to know.
        device: of the coordinator's part, and with `data` of the hospitals'; a site.toml says its own.
    """
    find_device(device)  # before anything is written
    created = not out.exists()
    try:
        if data is not None:
            site_files = write_sites(out / "sites", data, sites, partition, plan, resume=resume, device=device)
        configs = _load_sites(site_files)
        plan = _with_unit(plan, configs, say)
        _check_number(configs, plan)
        for config in configs:
            check_plan(plan, config.policy)
            Site(config, progress=named(config.name, progress)).prepare(plan.image)
        out.mkdir(parents=True, exist_ok=True)
        names = ",".join(config.name for config in configs)  # paths may hold commas
        run_config: dict[str, str | bool] = {
            "plan": str(plan_file),
            "out": str(out),
            "sites": names,
            "resume": resume,
            "device": device,
        }
        if engine_name is Engine.RAY:
            _run_on_ray(run_config, plan, site_files, progress)
        else:
            _run_embedded(run_config, plan, site_files, progress)
    except BaseException:
        released = [*out.glob("server/*.safetensors"), *out.glob("sites/*/ledger.sqlite")]
        if created and not released:  # nothing to resume, and no ledger to lose
            shutil.rmtree(out, ignore_errors=True)
        raise
    _collect(out, configs)
    if plan.utility.real_reference and plan.utility.noise_multiplier > 0:
        reference.add_to_report(out, plan, configs, progress, device=device)


def _load_sites(site_files: Sequence[Path]) -> list[SiteConfig]:
    configs = [load_site(path) for path in site_files]
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise SiteError(f"two hospitals call themselves {name!r}; give each site.toml a name of its own")
    return configs


def _with_unit(plan: Plan, configs: Sequence[SiteConfig], say: Callable[[str], None]) -> Plan:
    """The plan as it will run, be hashed and signed: unit "image" where the data of a hospital names no patients.

    A hospital refuses such a plan in a deployment (P19), where people agree on another. Here one person holds all data
    and is told.
    """
    unnamed = [config.name for config in configs if data_unit(config) == "image"]
    if plan.privacy.unit == "image" or not unnamed:
        return plan
    say(f"privacy.unit = 'image' for this run, {protects('image')} ({', '.join(unnamed)}); RUN/plan.toml says so")
    return dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, unit="image"))


def _check_number(configs: Sequence[SiteConfig], plan: Plan) -> None:
    wanted = plan.federation.hospitals
    if plan.federation.is_pooled and len(configs) != wanted:
        raise SiteError(
            f"{len(configs)} hospitals for a pooled plan of exactly {wanted} ([federation].hospitals); "
            "give as many with --site or --sites, or change the plan"
        )


def _run_embedded(
    run_config: dict[str, str | bool], plan: Plan, site_files: Sequence[Path], progress: Progress
) -> None:
    grid = embedded.EmbeddedGrid(site_files, workers=torch.get_num_threads(), progress=progress)
    try:
        embedded.run_embedded(build_server_app(run_config=run_config, plan=plan, progress=progress), grid)
    finally:
        grid.close()


def _run_on_ray(run_config: dict[str, str | bool], plan: Plan, site_files: Sequence[Path], progress: Progress) -> None:
    from ghostnet.simulation.ray import run_on_ray

    run_on_ray(build_server_app(run_config=run_config, plan=plan, progress=progress), site_files)


def _collect(out: Path, configs: Sequence[SiteConfig]) -> None:
    """Puts each hospital's ledger and log under RUN/sites/NAME, where its state is kept elsewhere."""
    for config in configs:
        folder = out / "sites" / config.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.resolve() == config.state.resolve():
            continue
        with (
            closing(sqlite3.connect(f"file:{config.ledger_path}?mode=ro", uri=True)) as ledger,
            closing(sqlite3.connect(folder / "ledger.sqlite")) as copy,
        ):
            ledger.backup(copy)
        if (config.state / "site.log").exists():
            shutil.copy2(config.state / "site.log", folder / "site.log")
