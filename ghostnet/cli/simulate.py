"""`ghostnet simulate`: a whole federation on one machine, with the same two apps as in a deployment."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from client.config import SiteConfig, load_site
from client.intake.unit import data_unit
from client.policy import check_plan
from client.site import Site
from ghostnet.cli import engine, reference
from ghostnet.cli.console import errors, progress_bars, results
from ghostnet.cli.partition import write_sites
from ghostnet.errors import SiteError
from ghostnet.plan import Plan, load_plan
from ghostnet.privacy.claim import resolve
from ghostnet.privacy.unit import protects
from ghostnet.progress import Progress
from server.app import build_app as build_server_app
from server.checkpoint import check_free


class Engine(StrEnum):
    """What carries the messages."""

    EMBEDDED = "embedded"
    RAY = "ray"


def simulate(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.toml", help="What the federation agrees on.")],
    out: Annotated[Path, typer.Option(help="Run folder to write; must be new, or unfinished with --resume.")],
    site: Annotated[list[Path] | None, typer.Option(help="A hospital's site.toml; once for each hospital.")] = None,
    data: Annotated[Path | None, typer.Option(help="One NPZ file to share out among simulated hospitals.")] = None,
    sites: Annotated[int, typer.Option(help="With --data: number of hospitals.", min=1)] = 3,
    partition: Annotated[
        str, typer.Option(help="With --data: iid, dirichlet:ALPHA, or column:NAME of the NPZ.")
    ] = "iid",
    engine_name: Annotated[
        Engine, typer.Option("--engine", help="embedded, or Flower's simulation runtime on Ray.")
    ] = Engine.EMBEDDED,
    resume: Annotated[bool, typer.Option(help="Go on with the unfinished run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's figures as JSON.")] = False,
) -> None:
    """Train one sampler across hospitals on this machine.

    Hospitals are real folders (--site, repeated) or parts of one NPZ file (--data). Writes the sampler with its
    certificate, report.html and report.json to --out; each hospital's own files stay in --out/sites/NAME. Where images
    name no patients (an NPZ without the column patient) each image is protected by itself: the run's plan then has
    [privacy] unit = "image".
    """
    plan = resolve(load_plan(plan_file))
    if bool(site) == bool(data):
        raise SiteError(
            "give the hospitals either as --site SITE.toml (repeated) or as --data FILE.npz, not both or neither"
        )
    check_free(out, resume=resume)
    with progress_bars() as progress:
        run(plan_file, plan, out, site or [], data, sites, partition, engine_name, resume, progress)
    tell(out, as_json=as_json)


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
) -> None:
    """Prepares the hospitals, runs the two apps, and adds what only a simulation may know."""
    created = not out.exists()
    try:
        if data is not None:
            site_files = write_sites(out / "sites", data, sites, partition, plan, resume=resume)
        configs = _load_sites(site_files)
        plan = _with_unit(plan, configs)
        _check_number(configs, plan)
        for config in configs:
            check_plan(plan, config.policy)
            Site(config, progress=progress).prepare(plan.image)
        out.mkdir(parents=True, exist_ok=True)
        names = ",".join(config.name for config in configs)  # paths may hold commas
        run_config = {"plan": str(plan_file), "out": str(out), "sites": names, "resume": resume}
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
        reference.add_to_report(out, plan, configs, progress)


def tell(out: Path, *, as_json: bool) -> None:
    """Prints where everything is, and the figures that matter."""
    report = json.loads((out / "report.json").read_text())
    if as_json:
        results.print_json(data={key: report[key] for key in ("privacy", "utility", "timing")})
        return
    privacy = report["privacy"]
    results.print(
        f"epsilon {privacy['epsilon_pld']:.4g} (PLD), {privacy['epsilon_rdp']:.4g} (RDP), delta {privacy['delta']:g}, "
        f"{privacy['protects']}; {privacy['adjacency']}, at each hospital",
        highlight=False,
        soft_wrap=True,
    )
    if "epsilon_coalition" in privacy:
        results.print(
            f"pooled: epsilon {privacy['epsilon_other_hospital']:.4g} against one other hospital, "
            f"{privacy['epsilon_coalition']:.4g} against the coordinator and all other hospitals together",
            highlight=False,
            soft_wrap=True,
        )
    for task, figure in report["utility"].items():
        _tell_utility(task, figure)
    for label, path in (("sampler", "sampler"), ("certificate", "sampler/certificate.json"), ("report", "report.html")):
        results.print(f"{label}: {out / path}", highlight=False, soft_wrap=True)


def _tell_utility(task: str, figure: dict[str, Any]) -> None:
    if figure["value"] is None:
        results.print(f"{task}: too few test patients for the noise of the released counts", soft_wrap=True)
    else:
        results.print(
            f"{task}: train on synthetic, test on real: {figure['metric']} {figure['value']:.3f} "
            f"[{figure['interval'][0]:.3f}, {figure['interval'][1]:.3f}] released under DP; "
            f"chance {figure['chance']:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    for name, value in figure.get("simulation", {}).items():
        results.print(f"  simulation only, exact, not private: {name} {value:.4f}", highlight=False, soft_wrap=True)


def _load_sites(site_files: Sequence[Path]) -> list[SiteConfig]:
    configs = [load_site(path) for path in site_files]
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise SiteError(f"two hospitals call themselves {name!r}; give each site.toml a name of its own")
    return configs


def _with_unit(plan: Plan, configs: Sequence[SiteConfig]) -> Plan:
    """The plan as it will run, be hashed and signed: unit "image" where the data of a hospital names no patients.

    A hospital refuses such a plan in a deployment (P19), where people agree on another. Here one person holds all data
    and is told on stderr.
    """
    unnamed = [config.name for config in configs if data_unit(config) == "image"]
    if plan.privacy.unit == "image" or not unnamed:
        return plan
    errors.print(
        f"privacy.unit = 'image' for this run, {protects('image')} ({', '.join(unnamed)}); RUN/plan.toml says so",
        highlight=False,
        soft_wrap=True,
    )
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
    grid = engine.EmbeddedGrid(site_files, workers=torch.get_num_threads(), progress=progress)
    try:
        engine.run_embedded(build_server_app(run_config=run_config, plan=plan, progress=progress), grid)
    finally:
        grid.close()


def _run_on_ray(run_config: dict[str, str | bool], plan: Plan, site_files: Sequence[Path], progress: Progress) -> None:
    from ghostnet.cli.ray_engine import run_on_ray

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
