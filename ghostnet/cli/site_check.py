"""`ghostnet site check` and `ghostnet site key`: a dry run of intake, and the key that a hospital is known by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.cohort import check_site
from client.config import SiteConfig, load_site
from client.intake.unit import data_unit
from client.policy import check_unit
from client.prepared import prepared_elsewhere
from ghostnet.cli.console import progress_bars, results
from ghostnet.cli.site_table import intake_view, next_steps
from ghostnet.errors import DataError, SiteError
from ghostnet.evidence import keys
from ghostnet.evidence.ledger import Ledger
from ghostnet.plan import load_plan
from ghostnet.plan.unit import protects

SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def check(
    site_file: SiteFile,
    plan_file: Annotated[Path, typer.Option("--plan", help="The plan whose image size and labels to check against.")],
    as_json: AsJson = False,
) -> None:
    """Dry run of intake: what would be taken, left out and blanked. Spends nothing and sends nothing.

    Also tells when another state folder of this user has prepared the same images: a budget belongs to one state
    folder, and a second site.toml over the same images has its own.

    Exit code 0 when there are images to train on, 5 when there are none (the table is printed all the same), 4 when
    site.toml or a folder cannot be used, 6 when the plan promises patients and this data names none, 3 for the plan.
    """
    config, plan = load_site(site_file), load_plan(plan_file)
    unit = data_unit(config)
    with progress_bars() as progress:
        table = check_site(config, plan.image, progress)
    quarantine = config.state / "quarantine.csv"
    elsewhere, warnings = _elsewhere(config)
    if as_json:
        steps = [*warnings, *next_steps(table, site=site_file, quarantine=quarantine)]
        found: dict[str, object] = {"unit": unit, "protects": protects(unit), "quarantine": str(quarantine)}
        found |= {"prepared_elsewhere": elsewhere, "next": steps}
        results.print_json(data={**table.to_dict(), **found})
    else:
        results.print(f"This data is protected {protects(unit)}.", highlight=False)
        view = intake_view(table, site=site_file, quarantine=quarantine, warnings=warnings)
        results.print(view, highlight=False)
    if not table.train_images:
        raise DataError(f"no image to train on among {table.found} in [data].path; the table above says why")
    check_unit(plan, unit)


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
    results.print(f"{config.name}={public}", highlight=False, soft_wrap=True)


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
