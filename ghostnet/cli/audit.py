"""`ghostnet audit`: checks that outsiders run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostnet.audit.ledger import audit_ledger
from ghostnet.cli.site import print_nested

app = typer.Typer(help="Audit a ledger.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `ledger` a subcommand while it is the only one."""


@app.command("ledger")
def ledger(
    file: Annotated[Path, typer.Argument(metavar="LEDGER.sqlite")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Recompute every hash and every epsilon of a ledger from its typed events.

    Exit code 8 when an entry is damaged, missing or forked; the message names the first.
    """
    print_nested(audit_ledger(file).to_dict(), as_json=as_json)
