"""`ghostnet site check` and `ghostnet site key`: a dry run of intake, and the key that a hospital is known by."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from client.cohort import check_site
from client.config import SiteConfig, load_site
from client.intake.unit import data_unit
from client.prepared import prepared_elsewhere
from ghostnet.cli.arguments import AsJson, SiteFile
from ghostnet.cli.console import progress_bars, result, results
from ghostnet.cli.plan_view import resolved
from ghostnet.cli.site_table import intake_view, next_steps
from ghostnet.cli.site_verdict import site_verdict
from ghostnet.errors import SiteError
from ghostnet.evidence import keys
from ghostnet.evidence.ledger import Ledger
from ghostnet.plan import load_plan
from ghostnet.plan.unit import protects


def check(
    site_file: SiteFile,
    plan_file: Annotated[Path, typer.Option("--plan", help="The plan whose image size and labels to check against.")],
    as_json: AsJson = False,
) -> None:
    """Dry run of intake: what would be taken, left out and blanked. Spends nothing and sends nothing.

    Also tells when another state folder of this user has prepared the same images: a budget belongs to one state
    folder, and a second site.toml over the same images has its own.

    Ends in a verdict: images, the hospital's limits as a coordinator's request to join would meet them, what is left
    of the budget and what this plan costs of it, and the time that reading takes.

    Exit code 0 when this hospital can take part; after the table and the verdict, 5 when there is no image to train
    on, 6 when [policy] or the unit refuses the plan, 7 when the budget is too small; 4 when site.toml or a folder
    cannot be used, 3 for the plan.
    """
    config, plan = load_site(site_file), load_plan(plan_file)
    unit = data_unit(config)
    plan = resolved(plan)
    started = time.monotonic()
    with progress_bars() as progress:
        table = check_site(config, plan.image, progress)
    verdict = site_verdict(config, plan, table, unit=unit, seconds=time.monotonic() - started)
    quarantine = config.state / "quarantine.csv"
    elsewhere, warnings = _elsewhere(config)
    if as_json:
        steps = [*warnings, *next_steps(table, site=site_file, plan=plan_file, quarantine=quarantine)]
        found: dict[str, Any] = {"unit": unit, "protects": protects(unit), "quarantine": str(quarantine)}
        found |= {"prepared_elsewhere": elsewhere, "next": steps, "verdict": verdict.to_dict()}
        results.print_json(data={**table.to_dict(), **found})
    else:
        result(f"This data is protected {protects(unit)}.")
        results.print(intake_view(table, site=site_file, plan=plan_file, quarantine=quarantine, warnings=warnings))
        result("Verdict")
        for name, words in verdict.lines:
            result(f"  {name:8} {words}")
        result(verdict.words)
    if verdict.problems:
        raise verdict.problems[0]


def key(site_file: SiteFile) -> None:
    """The hospital's public key as NAME=KEY: for the other hospitals' `peers`, and for `ghostnet verify --key`.

    Give it to them by a way of your own (telephone, paper), not through the coordinator. It is made when there is none.
    """
    config = load_site(site_file)
    config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not config.key_path.exists():  # a ledger comes before its key, which then tells that there was one
        unit, witness = data_unit(config), config.witness_path
        with Ledger.open(config.ledger_path, site=config.name, unit=unit, witness=witness) as ledger:
            if not ledger.is_fresh:
                raise SiteError(f"{config.key_path} is gone and the ledger is not; restore the key from a backup")
    public = keys.public_hex(keys.load_or_create_key(config.key_path))
    results.print(f"{config.name}={public}", soft_wrap=True)


def _elsewhere(config: SiteConfig) -> tuple[dict[str, int], list[str]]:
    """Other state folders that have prepared the same images, and what to say of them."""
    try:
        elsewhere = prepared_elsewhere(config.state)
    except SiteError as error:
        return {}, [f"other state folders were not looked at: {error}"]
    return elsewhere, [
        f"{count} of these images were prepared in {state} too{'' if Path(state).is_dir() else ' (gone now)'}. A "
        "budget belongs to one state folder: these patients have two, and neither ledger knows of the other"
        for state, count in elsewhere.items()
    ]
