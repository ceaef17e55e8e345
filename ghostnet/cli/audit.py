"""`ghostnet audit`: checks that outsiders run."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostnet.audit.ledger import audit_ledger
from ghostnet.cli.arguments import AsJson
from ghostnet.cli.console import progress_bars, results
from ghostnet.cli.lazy import LazyGroup, new_app
from ghostnet.cli.ledger_view import ledger_view
from ghostnet.errors import AuditError

if TYPE_CHECKING:
    from ghostnet.audit.every_release import Build
    from ghostnet.audit.mechanism import MechanismAudit


class AuditCommands(LazyGroup):
    """The subcommands of `ghostnet audit`."""

    table = {
        "ledger": (
            "ghostnet.cli.audit:ledger",
            "Recompute every hash and every epsilon of a ledger from its typed events.",
        ),
        "mechanism": (
            "ghostnet.cli.audit:mechanism",
            "Audit every release of this installation: who adds what, noise, sampling, charges, lower bounds on "
            "epsilon.",
        ),
    }


app = new_app("Audit a ledger, or the private step itself.", cls=AuditCommands)


@app.callback()
def _audit() -> None:
    """Makes a group of it, whose commands are looked up by name."""


HOSPITAL = "client.audited:HOSPITAL"


def ledger(
    file: Annotated[Path, typer.Argument(metavar="LEDGER.sqlite", help="A hospital's ledger, or a copy.")],
    as_json: AsJson = False,
) -> None:
    """Recompute every hash and every epsilon of a ledger from its typed events.

    Exit code 8 when an entry is damaged, missing or forked; the message names the first.
    """
    audit = audit_ledger(file)
    if as_json:
        results.print_json(data=audit.to_dict())
    else:
        results.print(ledger_view(audit, limit=None))


def mechanism(
    build: Annotated[
        str, typer.Option("--build", metavar="MODULE:NAME", help="Another build to audit; its module is imported.")
    ] = HOSPITAL,
    as_json: AsJson = False,
) -> None:
    """Audit every release of this installation: who adds what, noise, sampling, charges, lower bounds on epsilon.

    Runs the hospital's own loop, for every architecture, alone and pooled, and a real hospital with a ledger in a
    temporary folder, on drawn images with canaries; no patient is touched. About three minutes of one core.
    Exit code 13 when the verdict is fail; the message names the checks.
    """
    import torch

    from ghostnet.audit.mechanism import audit_mechanism  # seconds to import

    chosen = _load_build(build)
    torch.set_num_threads(1)  # the networks are too small to share out
    with progress_bars() as progress:
        audit = audit_mechanism(chosen, progress=progress)
    if as_json:
        results.print_json(data=audit.to_dict())
    else:
        print_audit(audit)
    if not audit.passed:
        raise AuditError(
            f"build {audit.build!r} fails the audit: {', '.join(audit.failed)}; do not train on patients with it"
        )


def print_audit(audit: MechanismAudit) -> None:
    """The claim, the lower bounds beside it, one line a check, and the verdict."""
    bounds = audit.bounds
    lines = [
        f"claim         epsilon {audit.epsilon_pld:.2f} (PLD; {audit.epsilon_rdp:.2f} by RDP) at delta {audit.delta:g} "
        f"{audit.protects}; {audit.adjacency}",
        f"lower bounds  one run {bounds.one_run:.2f}, f-DP {bounds.f_dp:.2f}, Clopper-Pearson "
        f"{bounds.clopper_pearson:.2f}, GDP {bounds.gdp:.2f} (95 % each)",
    ]
    width = max(len(finding.check) for finding in audit.findings)
    lines += [f"{'ok' if f.passed else 'FAIL':5} {f.check:{width}} {f.detail}" for f in audit.findings]
    lines += [f"a correct build fails by chance in at most {audit.false_alarm:.2%} of audits"]
    lines += [f"verdict: {'pass' if audit.passed else 'fail'} (build {audit.build})"]
    for line in lines:
        results.print(line, soft_wrap=True)


def _load_build(name: str) -> Build:
    """The `Build` object that MODULE:NAME names."""
    from ghostnet.audit.every_release import Build

    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise AuditError(f"build {name!r} cannot be imported ({error}); give --build MODULE:NAME") from None
    if not isinstance(found, Build):
        raise AuditError(f"build {name!r} is a {type(found).__name__}, not a ghostnet.audit.every_release.Build")
    return found
