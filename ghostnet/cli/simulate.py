"""`ghostnet simulate`: a whole federation on one machine, with the same two apps as in a deployment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from client.config import load_site
from ghostnet.accounting.strength import epsilon_text, strength
from ghostnet.cli.arguments import PlanFile
from ghostnet.cli.console import notice, progress_bars, result, results
from ghostnet.cli.device import Device
from ghostnet.cli.roles import require
from ghostnet.errors import DataError, Interrupted, RunFolderError, SiteError, printable
from ghostnet.plan import load_plan
from ghostnet.simulation.engine import Engine
from ghostnet.utility.verdict import utility_verdict

MAX_EXACT = 4  # lines of exact figures; a page has room for more


def simulate(
    plan_file: PlanFile,
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
    require("simulate")
    if bool(site) == bool(data):
        raise SiteError(
            "give the hospitals either as --site SITE.toml (repeated) or as --data FILE.npz, not both or neither"
        )
    check_out(out, resume=resume)
    plan = load_plan(plan_file)
    check_given(site or [], data)
    from ghostnet.cli.plan_view import resolved  # seconds to import, so after what needs no computing
    from ghostnet.simulation.run import run
    from ghostnet.training.device import find_device
    from server.checkpoint import check_free

    check_free(out, resume=resume)
    find_device(device)
    try:
        with progress_bars() as progress:
            run(
                plan_file,
                resolved(plan),
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
    except KeyboardInterrupt:
        raise Interrupted(what_next(out)) from None
    tell(out, as_json=as_json)


def check_out(out: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something where a run is to begin, and one that holds no run to go on with.

    Raises:
        RunFolderError: says which, and what to do.
    """
    begun = has_run(out)
    if resume and not begun:
        raise RunFolderError(f"{out} holds no run to go on with; leave --resume out, or give the --out of that run")
    if not begun and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunFolderError(f"{out} exists and is not an empty folder; choose another --out")


def has_run(out: Path) -> bool:
    """True if a run, finished or not, lies in the folder."""
    return (out / "server" / "run.json").exists()


def check_given(site_files: Sequence[Path], data: Path | None) -> None:
    """Reads every site.toml, or looks whether the file of images is there, before anything is computed.

    Raises:
        SiteError, DataError: names the file.
    """
    for site_file in site_files:
        load_site(site_file)
    if data is not None and not data.is_file():
        raise DataError(f"{data} does not exist; give the path of an NPZ file")


def what_next(out: Path) -> str:
    """What to do after Ctrl-C, by what is left of the run."""
    if has_run(out):
        return "stopped; what was released is spent. Go on with the same command and --resume"
    return "stopped before the first release: nothing was spent. Run the same command again to start anew"


def tell(out: Path, *, as_json: bool) -> None:
    """Prints where everything is, and the figures that matter."""
    report = json.loads((out / "report.json").read_text())
    if as_json:
        results.print_json(data={key: report[key] for key in ("privacy", "utility", "timing")})
        return
    privacy = report["privacy"]
    result(
        f"epsilon {epsilon_text(privacy['epsilon_pld'])}, {strength(privacy['epsilon_pld'])}; by RDP "
        f"{epsilon_text(privacy['epsilon_rdp'])}; delta {privacy['delta']:g}, {privacy['protects']}; "
        f"{privacy['adjacency']}, at each hospital"
    )
    if "epsilon_coalition" in privacy:
        result(
            f"pooled: epsilon {epsilon_text(privacy['epsilon_other_hospital'])} against one other hospital, "
            f"{epsilon_text(privacy['epsilon_coalition'])} against the coordinator and all other hospitals together"
        )
    for words in report["federation"].get("left_out", ()):
        result(f"LEFT OUT {printable(words)}")
    for task, figure in report["utility"].items():
        _tell_utility(task, figure)
    for label, path in (("sampler", "sampler"), ("certificate", "sampler/certificate.json"), ("report", "report.html")):
        result(f"{label}: {out / path}")


def _tell_utility(task: str, figure: dict[str, Any]) -> None:
    result(f"{task}: {utility_verdict(figure)}")
    if figure["value"] is not None:
        low, high = figure["interval"]
        result(
            f"  train on synthetic, test on real: {figure['metric']} {figure['value']:.3f} [{low:.3f}, {high:.3f}], "
            f"chance {figure['chance']:.3f}; released under DP"
        )
    exact = figure.get("simulation", {})
    for name, value in list(exact.items())[:MAX_EXACT]:
        result(f"  simulation only, exact, not private: {name} {value:.4f}")
    if len(exact) > MAX_EXACT:
        result(f"  simulation only: {len(exact) - MAX_EXACT} more exact figures are in the report")
