"""The hospital's one-page record of its privacy budget: what a privacy officer prints, fills in, signs and files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ghostnet.accounting.composition import compose
from ghostnet.accounting.epsilon import epsilon_pld
from ghostnet.accounting.events import Event, GaussianRelease, SharedNoiseSteps, coalition_events
from ghostnet.accounting.strength import epsilon_text
from ghostnet.audit.ledger import LedgerAudit, RunSpend
from ghostnet.audit.result import AuditResult
from ghostnet.durable import refuse_existing, replace_file
from ghostnet.errors import GhostNetError
from ghostnet.evidence.chain import MISSING
from ghostnet.report.record_template import RECORD, STYLE

MAX_REASON = 300  # characters of the reason for delta
_MAX_RUNS = 3  # rows of the table; a page holds no more


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The hospital's limits in site.toml on the day of the record."""

    max_epsilon: float
    delta: float
    max_coalition_epsilon: float


def write_record(
    path: Path,
    ledger: LedgerAudit,
    *,
    limits: Limits,
    state_folder: Path,
    made: str,
    software: Mapping[str, str],
    delta_reason: str = "",
    audit: AuditResult | None = None,
) -> None:
    """Writes the record as one HTML file that loads nothing, complete or not at all.

    Args:
        path: must not exist.
        ledger: the audited ledger, of which nothing is missing (`ledger_faults.inspect_ledger`).
        limits: epsilon of all runs is recomputed at their delta.
        state_folder: whose budget it is.
        made: time of the record, for people.
        software: what is installed now (`software.installed_software`).
        delta_reason: why this delta, in words; "" leaves a line to write on.
        audit: the outcome of `ghostnet audit mechanism`; None says that there was none.

    Raises:
        RunFolderError: `path` exists or cannot be written.
        GhostNetError: the reason is too long for the page.
    """
    if len(delta_reason) > MAX_REASON:
        raise GhostNetError(
            f"the reason for delta has {len(delta_reason)} characters, and the page has room for {MAX_REASON}; "
            "shorten it and name the document that says more"
        )
    refuse_existing(path)
    events = tuple(event for run in ledger.runs for event in run.events)
    pld, rdp = compose(events, limits.delta)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"epsilon": epsilon_text, "plain": _plain}
    page = environment.from_string(RECORD).render(
        style=STYLE,
        ledger=ledger,
        limits=limits,
        state_folder=state_folder,
        made=made,
        software=software,
        delta_reason=delta_reason,
        audit=audit,
        epsilon_pld=pld,
        epsilon_rdp=rdp,
        left=max(limits.max_epsilon - pld, 0.0),
        runs=[_run(run) for run in reversed(ledger.runs[-_MAX_RUNS:])],
        earlier_runs=max(0, len(ledger.runs) - _MAX_RUNS),
        adopted=_last_adoption(ledger),
        pooled=_pooled(events, limits.delta),
    )
    replace_file(path, page.encode(errors="backslashreplace"))  # JSON and file names may hold half a character


def _run(run: RunSpend) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "plan_hash": run.plan_hash,
        "reserved": run.reserved,
        "unit": run.unit,
        "bounds": list(_contribution_bounds(run.events)),
        "epsilon": run.epsilon_pld,
        "delta": run.delta,
        "limit": run.limit,
        "answered": len(run.committed),
        "died": len(run.spent_unanswered),
    }


def _contribution_bounds(events: Sequence[Event]) -> Iterator[str]:
    """One unit's largest share of each noised sum, over the noise's standard deviation; epsilon rests on it."""
    for event in events:
        sigma = event.noise_multiplier
        if isinstance(event, GaussianRelease):
            drawn = f"{event.name}: {event.count} sum{'s' if event.count > 1 else ''} over all"
        else:
            drawn = f"{event.name}: {event.steps:,} sums over samples at rate {event.sampling_rate:g}"
        if isinstance(event, SharedNoiseSteps):
            share = _share(sigma / math.sqrt(event.hospitals))
            yield f"{drawn}: {_share(sigma)} (of the hospital's own share of noise: {share})"
        else:
            yield f"{drawn}: {_share(sigma)}"


def _share(noise_multiplier: float) -> str:
    return f"{1 / noise_multiplier:.3g}" if noise_multiplier else "any multiple (no noise)"


def _pooled(events: Sequence[Event], delta: float) -> dict[str, Any] | None:
    """Epsilon against the coordinator together with all other hospitals; None where no noise was shared."""
    shared = [event.hospitals for event in events if isinstance(event, SharedNoiseSteps)]
    if not shared:
        return None
    return {"hospitals": max(shared), "epsilon": epsilon_pld(coalition_events(events), delta)}


def _last_adoption(ledger: LedgerAudit) -> dict[str, str] | None:
    if not ledger.adoptions:
        return None
    last = ledger.adoptions[-1]
    return {"time": last.time, "reason": last.reason, "missing": "; ".join(MISSING[code] for code in last.missing)}


def _plain(value: float) -> str:
    return f"{value:g}"
