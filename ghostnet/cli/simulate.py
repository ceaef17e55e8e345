"""`ghostnet simulate`: a whole federation on one machine, with the same two apps as in a deployment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ghostnet.accounting.plan_cost import resolve
from ghostnet.cli.console import notice, progress_bars, results
from ghostnet.cli.device import Device
from ghostnet.errors import SiteError
from ghostnet.plan import load_plan
from ghostnet.simulation.run import Engine, run
from server.checkpoint import check_free


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
    device: Device = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the unfinished run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's figures as JSON.")] = False,
) -> None:
    """Train one sampler across hospitals on this machine.

    Hospitals are real folders (--site, repeated) or parts of one NPZ file (--data). Writes the sampler with its
    certificate, report.html and report.json to --out; each hospital's own files stay in --out/sites/NAME. Where images
    name no patients (an NPZ without the column patient) each image is protected by itself: the run's plan then has
    [privacy] unit = "image". --device is the coordinator's and with --data the hospitals' too; with --site, each
    site.toml says its own ([compute] device). Hospitals on Ray compute on the CPU.
    """
    plan = resolve(load_plan(plan_file))
    if bool(site) == bool(data):
        raise SiteError(
            "give the hospitals either as --site SITE.toml (repeated) or as --data FILE.npz, not both or neither"
        )
    check_free(out, resume=resume)
    with progress_bars() as progress:
        run(
            plan_file,
            plan,
            out,
            site or [],
            data,
            sites,
            partition,
            engine_name,
            resume,
            progress,
            notice,
            device=device,
        )
    tell(out, as_json=as_json)


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
