"""Audit of a hospital's ledger: verified first, then told as a table of runs and what each left of the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostnet.accounting.composition import compose
from ghostnet.accounting.epsilon import Event, event_from_dict, event_to_dict
from ghostnet.evidence.chain import Entry
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.plan import Unit
from ghostnet.plan.unit import adjacency, lifetime_protects, lifetime_unit


@dataclass(frozen=True, kw_only=True)
class RunSpend:
    """One run's row: its events, its requests and epsilon by both accountants."""

    run_id: str
    plan_hash: str
    unit: Unit
    reserved: str  # time of the reservation, UTC
    events: tuple[Event, ...]
    epsilon_pld: float  # of this run alone
    epsilon_rdp: float
    epsilon_pld_after: float  # of all runs up to this one
    epsilon_rdp_after: float
    limit: float  # the hospital's max_epsilon at that time
    delta: float
    committed: tuple[str, ...]  # requests that were answered
    spent_unanswered: tuple[str, ...]  # requests that began and never committed: a crash, or one at work now


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """A person went on from this ledger although something was missing: spending before it may be missing too."""

    time: str
    reason: str
    missing: tuple[str, ...]  # codes, in words in `chain.MISSING`

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**vars(self), "missing": list(self.missing)}


@dataclass(frozen=True, kw_only=True)
class LedgerAudit:
    """The report of `ghostnet audit ledger`; `protects` names the privacy unit."""

    site: str
    head: str
    entries: int
    unit: Unit  # the weaker one, where runs have different ones
    adjacency: str
    protects: str
    runs: tuple[RunSpend, ...]
    epsilon_pld: float  # of all runs together, at the last run's delta; 0 without a run
    epsilon_rdp: float
    left: float | None  # of the last run's limit; None without a run
    countersigned: tuple[tuple[str, str], ...]  # (server's public key, head it has seen), oldest first
    adoptions: tuple[Adopted, ...]  # where there is one, epsilon may be too low: nobody knows what was lost

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts, lists and numbers, for JSON."""
        rows = []
        for run in self.runs:
            row = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(run).items()}
            rows.append({**row, "events": [event_to_dict(event) for event in run.events]})
        countersigned = [{"server": server, "head": head} for server, head in self.countersigned]
        adoptions = [adoption.to_dict() for adoption in self.adoptions]
        return {**vars(self), "runs": rows, "countersigned": countersigned, "adoptions": adoptions}


def audit_ledger(path: Path, *, known_heads: Sequence[str] = ()) -> LedgerAudit:
    """Verifies a ledger and adds up what was spent on what.

    Args:
        path: a ledger.sqlite; it is only read.
        known_heads: heads that a coordinator has seen; each must be in the ledger.

    Raises:
        LedgerError: the ledger does not hold; the message names the first bad entry.
    """
    entries = verify_ledger(path, known_heads=known_heads)
    begun, committed = _requests(entries, "begin"), _requests(entries, "commit")
    runs = tuple(_row(entry.fields, begun, committed) for entry in entries if entry.kind == "reserve")
    last = runs[-1] if runs else None
    first = entries[0].fields
    units = [run.unit for run in runs] or [first["unit"]]
    return LedgerAudit(
        site=first["site"],
        head=entries[-1].hash,
        entries=len(entries),
        unit=lifetime_unit(units),
        adjacency=adjacency(lifetime_unit(units)),
        protects=lifetime_protects(units),
        runs=runs,
        epsilon_pld=last.epsilon_pld_after if last else 0.0,
        epsilon_rdp=last.epsilon_rdp_after if last else 0.0,
        left=max(last.limit - last.epsilon_pld_after, 0.0) if last else None,
        countersigned=tuple((e.fields["server"], e.fields["head"]) for e in entries if e.kind == "countersign"),
        adoptions=tuple(
            Adopted(time=e.fields["time"], reason=e.fields["reason"], missing=tuple(e.fields["missing"]))
            for e in entries
            if e.kind == "adopt"
        ),
    )


def _requests(entries: Sequence[Entry], kind: str) -> dict[str, tuple[str, ...]]:
    requests: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        if entry.kind == kind:
            run = entry.fields["run"]
            requests[run] = (*requests.get(run, ()), str(entry.fields["request"]))
    return requests


def _row(
    fields: Mapping[str, Any], begun: Mapping[str, tuple[str, ...]], committed: Mapping[str, tuple[str, ...]]
) -> RunSpend:
    events = tuple(event_from_dict(event) for event in fields["events"])
    pld, rdp = compose(events, fields["delta"])
    answered = committed.get(fields["run"], ())
    return RunSpend(
        run_id=fields["run"],
        plan_hash=fields["plan_hash"],
        unit=fields.get("unit", "patient"),
        reserved=fields["time"],
        events=events,
        epsilon_pld=pld,
        epsilon_rdp=rdp,
        epsilon_pld_after=fields["epsilon_pld"],
        epsilon_rdp_after=fields["epsilon_rdp"],
        limit=fields["epsilon"],
        delta=fields["delta"],
        committed=answered,
        spent_unanswered=tuple(request for request in begun.get(fields["run"], ()) if request not in answered),
    )
