"""A ledger as people read it: what is spent and left, one line a run."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ghostnet.accounting.events import Event, GaussianRelease
from ghostnet.accounting.strength import epsilon_text, strength
from ghostnet.audit.ledger import LedgerAudit, RunSpend
from ghostnet.evidence.chain import MISSING


def ledger_view(audit: LedgerAudit, *, limit: float | None) -> Group:
    """What was spent, of what, on what.

    Args:
        audit: of a ledger that holds.
        limit: the hospital's max_epsilon; None where no site.toml says it: then the last run's.
    """
    last = audit.runs[-1] if audit.runs else None
    cap = limit if limit is not None else last.limit if last else None
    spent = f"epsilon {epsilon_text(audit.epsilon_pld)}"
    if cap is not None:
        spent += f" of {cap:g}, {max(cap - audit.epsilon_pld, 0.0):.4f} left"
    if last:
        spent += f" (delta {last.delta:g}; {strength(audit.epsilon_pld)}; by RDP {epsilon_text(audit.epsilon_rdp)})"
    parts: list[RenderableType] = [
        Text(f"{audit.site}: {spent}"),
        Text(f"{audit.protects}; {audit.adjacency}; by this state folder alone"),
        _runs(audit.runs) if audit.runs else Text("no run yet"),
        Text(f"{audit.entries} entries, {len(audit.countersigned)} countersigned; head {audit.head}"),
    ]
    for adopted in audit.adoptions:
        missing = "; ".join(MISSING[code] for code in adopted.missing)
        parts.append(Text(f"ADOPTED {adopted.time}: {adopted.reason}; missing: {missing}. Spending may be missing too"))
    return Group(*parts)


def _runs(runs: tuple[RunSpend, ...]) -> Table:
    shown = Table("Run", "Reserved", box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("Epsilon", justify="right")
    shown.add_column("With all before", justify="right")
    shown.add_column("Releases")
    shown.add_column("Answered")
    for run in runs:
        answered = f"{len(run.committed)}" + (f", {len(run.spent_unanswered)} died" if run.spent_unanswered else "")
        releases = "\n".join(_release(event) for event in run.events)
        epsilons = epsilon_text(run.epsilon_pld), epsilon_text(run.epsilon_pld_after)
        shown.add_row(Text(run.run_id[:8]), run.reserved[:10], *epsilons, Text(releases), answered)
    return shown


def _release(event: Event) -> str:
    times = event.count if isinstance(event, GaussianRelease) else event.steps
    return f"{times:,} x {event.name}, noise {event.noise_multiplier:g}"
