"""`ghostnet site budget`: what a hospital's ledger has spent, on the screen and as a page to sign."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import client
from client.config import SiteConfig, load_site
from ghostnet.audit.ledger import LedgerAudit, audit_ledger
from ghostnet.cli.arguments import AsJson, SiteFile
from ghostnet.cli.console import errors, result, results
from ghostnet.cli.ledger_view import ledger_view
from ghostnet.cli.site_ledger import IN_ORDER, NOT_STARTED, ledger_report
from ghostnet.errors import LedgerError


def budget(
    site_file: SiteFile,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE.html", help="Also write one A4 page to print, sign and file; new."),
    ] = None,
    delta_reason: Annotated[
        str, typer.Option(metavar="TEXT", help="With --record: why this delta; left out, a line to write on.")
    ] = "",
    audit_file: Annotated[
        Path | None,
        typer.Option(
            "--audit",
            metavar="AUDIT.json",
            help="With --record: what `ghostnet audit mechanism --json` printed; left out, the page says so.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what the ledger of this state folder has spent, on what, and what is left; reads only.

    The record says date, epsilon of all runs and cap, delta and its reason, each run's contribution bound, trust model,
    floating-point level and audit result, with lines for date, name and signature.

    Exit code 8 when the ledger does not hold; with --record also when something of it is missing, since the page would
    say too little. 13: the audit's file cannot be read. 11: FILE.html exists or cannot be written.
    """
    if record is None and (delta_reason or audit_file):
        raise typer.BadParameter("--delta-reason and --audit go with --record")
    config = load_site(site_file)
    limit = config.policy.max_epsilon
    if record is None and ledger_report(config)["state"] == NOT_STARTED:
        if as_json:
            results.print_json(
                data={"site": config.name, "runs": [], "epsilon_pld": 0.0, "left": limit, "limit": limit}
            )
        else:
            result(f"{config.name}: no run yet; epsilon 0 of {limit:g} spent, {limit:g} left")
        return
    report = audit_ledger(config.ledger_path)
    if record is not None:
        _write(config, report, record, delta_reason, audit_file)
    if as_json:
        results.print_json(data={**report.to_dict(), "limit": limit})
    else:
        results.print(ledger_view(report, limit=limit))


def _write(config: SiteConfig, report: LedgerAudit, path: Path, delta_reason: str, audit_file: Path | None) -> None:
    from ghostnet.audit.result import read_result
    from ghostnet.evidence.software import installed_software
    from ghostnet.report.budget_record import Limits, write_record

    state = ledger_report(config)
    if state["state"] != IN_ORDER:
        raise LedgerError(f"no record is made of a ledger of which something is missing: {state['why'][0]}")
    write_record(
        path,
        report,
        limits=Limits(
            max_epsilon=config.policy.max_epsilon,
            delta=config.policy.delta,
            max_coalition_epsilon=config.policy.max_coalition_epsilon,
        ),
        state_folder=config.state,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        software=installed_software(Path(client.__file__).parent),
        delta_reason=delta_reason.strip(),
        audit=read_result(audit_file) if audit_file is not None else None,
    )
    errors.print(f"record: {path}", soft_wrap=True)
