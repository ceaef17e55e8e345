"""`ghostnet site ledger`: the state of a hospital's ledger, in words, and how a person goes on from a faulty one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from client.config import SiteConfig, load_site
from client.intake.unit import data_unit
from ghostnet.audit.ledger import audit_ledger
from ghostnet.cli.arguments import AsJson, SiteFile
from ghostnet.cli.console import results
from ghostnet.errors import LedgerError
from ghostnet.evidence import keys
from ghostnet.evidence.chain import MISSING
from ghostnet.evidence.faults import Adoption, inspect_ledger
from ghostnet.evidence.ledger import Ledger

IN_ORDER, NOT_STARTED, REFUSED = "in order", "not started", "refused"


def ledger(
    site_file: SiteFile,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Go on from the ledger that is there, or from a new one; needs --reason.")
    ] = False,
    reason: Annotated[str, typer.Option(help="With --adopt: why, in words; it is written into the ledger.")] = "",
    lost: Annotated[
        list[str] | None,
        typer.Option(metavar="HEAD", help="With --adopt: a head that a coordinator has seen (site.log names it)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the ledger's state: entries, head, witness, runs, what is spent, and whether it is in order.

    A ledger that was restored from a copy, copied, moved or lost is refused: what it does not know was spent would be
    spent again. If the newest copy cannot be had, --adopt goes on from the present one. Its entry says for good that
    earlier spending may be missing; nobody knows how much. A budget belongs to one state folder: a second site.toml
    over the same images has a budget of its own.

    Exit code 0 when it is in order or not started, 8 when it is refused (the table is printed all the same) or there
    is nothing to adopt, 2 for --adopt without --reason.
    """
    config = load_site(site_file)
    if adopt != bool(reason.strip()) or (lost and not adopt):
        raise typer.BadParameter("--adopt and --reason go together, and --lost with them")
    if adopt:
        _adopt(config, reason.strip(), tuple(lost or ()))
    report = ledger_report(config)
    if as_json:
        results.print_json(data=report)
    else:
        results.print(_view(report))
    if report["state"] == REFUSED:
        raise LedgerError(
            f"{report['why'][0]}. To go on without: --adopt --reason, if every entry that is there is whole"
        )


def _adopt(config: SiteConfig, reason: str, lost: tuple[str, ...]) -> None:
    """Writes the adoption; a lost key is made anew, and named among what is missing."""
    config.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    is_keyless = (
        not config.key_path.exists() and _holds_entries(config) and audit_ledger(config.ledger_path).entries > 1
    )
    adoption = Adoption(reason=reason, lost=lost, missing=("key",) if is_keyless else ())
    unit = data_unit(config)
    with Ledger.adopt(config.ledger_path, adoption, site=config.name, unit=unit, witness=config.witness_path):
        keys.load_or_create_key(config.key_path)


def _holds_entries(config: SiteConfig) -> bool:
    return config.ledger_path.exists() and config.ledger_path.stat().st_size > 0


def ledger_report(config: SiteConfig) -> dict[str, Any]:
    """The state of a hospital's ledger, what is wrong with it, and what was spent; reads only."""
    report: dict[str, Any] = {
        "path": str(config.ledger_path),
        "witness": str(config.witness_path),
        "state": REFUSED,
        "why": [],
        "entries": 0,
        "head": "",
        "runs": [],
        "adoptions": [],
        "epsilon_spent": 0.0,
        "epsilon_cap": config.policy.max_epsilon,
        "delta": config.policy.delta,
        "protects": "",  # known of a ledger, not before there is one
        "adjacency": "",
    }
    try:
        report["why"] = [fault.text for fault in inspect_ledger(config.ledger_path, witness=config.witness_path)]
        if _holds_entries(config):
            report |= _account(config)
        if report["entries"] > 1 and not config.key_path.exists():
            report["why"].append(f"{config.key_path} is gone and the ledger is not; restore the key from a backup")
    except LedgerError as error:
        report["why"] = [str(error), *report["why"]]
    if not report["why"]:
        report["state"] = IN_ORDER if report["entries"] else NOT_STARTED
    return report


def _account(config: SiteConfig) -> dict[str, Any]:
    audit = audit_ledger(config.ledger_path)
    with_all_runs = [run.epsilon_pld_after for run in audit.runs]
    return {
        "entries": audit.entries,
        "head": audit.head,
        "runs": [{"run": run.run_id, "reserved": run.reserved, "epsilon_pld": run.epsilon_pld} for run in audit.runs],
        "adoptions": [adoption.to_dict() for adoption in audit.adoptions],
        "epsilon_spent": max(with_all_runs, default=0.0),
        "protects": audit.protects,
        "adjacency": audit.adjacency,
    }


def _view(report: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    spent = f"{report['epsilon_spent']:.4f} of {report['epsilon_cap']:g} (delta {report['delta']:g})"
    spent += f", {report['protects']}; {report['adjacency']}" if report["protects"] else ""
    rows: list[tuple[str, str]] = [
        ("ledger", report["path"]),
        ("witness", report["witness"]),
        ("state", report["state"]),
        *(("  why", why) for why in report["why"]),
        ("entries", str(report["entries"])),
        ("head", report["head"]),
        ("epsilon spent", f"{spent}; by this state folder alone"),
    ]
    rows += [("  run", f"{run['run']}  {run['reserved']}  epsilon {run['epsilon_pld']:.4f}") for run in report["runs"]]
    rows += [("adopted", line) for adoption in report["adoptions"] for line in _told(adoption)]
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _told(adoption: dict[str, Any]) -> Sequence[str]:
    missing = "; ".join(MISSING[code] for code in adoption["missing"])
    return (f"{adoption['time']}: {adoption['reason']}", f"missing: {missing}. Earlier spending may be missing too")
