"""The verdict of `ghostnet site check`: whether this hospital can take part in a plan, and what stands against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from client.config import SiteConfig
from client.intake.summary import IntakeTable
from client.policy import check_plan, check_unit
from ghostnet.accounting.composition import compose
from ghostnet.accounting.events import Event
from ghostnet.accounting.plan_cost import plan_events
from ghostnet.accounting.strength import epsilon_text
from ghostnet.audit.ledger import audit_ledger
from ghostnet.errors import BudgetError, DataError, GhostNetError
from ghostnet.plan import Plan, Unit


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Findings about one plan at one hospital, each in words.

    Attributes:
        lines: (what was looked at, finding), in the order of `join`'s own checks.
        problems: what stands against taking part; the first one's exit code is the command's.
    """

    lines: tuple[tuple[str, str], ...]
    problems: tuple[GhostNetError, ...]

    @property
    def words(self) -> str:
        """The verdict itself."""
        return f"NOT READY: {self.problems[0]}" if self.problems else "READY: this hospital can take part in this plan"

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {"ready": not self.problems, "words": self.words, **dict(self.lines)}


def site_verdict(config: SiteConfig, plan: Plan, table: IntakeTable, *, unit: Unit, seconds: float) -> Verdict:
    """Looks at images, policy and budget as a coordinator's request to join would be; charges nothing.

    Args:
        config: the hospital's site.toml.
        plan: resolved.
        table: of the intake that just ran. Its counts are SENSITIVE: for the hospital's own screen.
        unit: that the data can protect.
        seconds: that the intake took.
    """
    checks: dict[str, Callable[[], str]] = {
        "images": lambda: _images(table),
        "policy": lambda: _policy(config, plan, unit),
        "budget": lambda: _budget(config, plan),
    }
    lines, problems = [], []
    for name, check in checks.items():
        try:
            lines.append((name, check()))
        except GhostNetError as problem:
            lines.append((name, str(problem)))
            problems.append(problem)
    return Verdict(lines=(*lines, ("time", _time(table, seconds))), problems=tuple(problems))


def _images(table: IntakeTable) -> str:
    if not table.train_images:
        raise DataError(f"no image to train on among {table.found} in [data].path; the table above says why")
    return f"{table.train_images} of {table.train_patients} patients to train on, {table.test_images} to test on"


def _policy(config: SiteConfig, plan: Plan, unit: Unit) -> str:
    check_unit(plan, unit)
    check_plan(plan, config.policy)
    return "every limit of [policy] holds"


def _budget(config: SiteConfig, plan: Plan) -> str:
    limit, delta = config.policy.max_epsilon, config.policy.delta
    before: tuple[Event, ...] = ()
    if config.ledger_path.exists():
        before = tuple(event for run in audit_ledger(config.ledger_path).runs for event in run.events)
    spent, after = (compose(events, delta)[0] for events in (before, (*before, *plan_events(plan))))
    cost = f"{epsilon_text(spent)} of {limit:g} spent, {epsilon_text(after)} after this plan (delta {delta:g})"
    if not after <= limit:
        raise BudgetError(f"B01: {cost}; a smaller plan, or a larger [policy].max_epsilon by the hospital's decision")
    return cost


def _time(table: IntakeTable, seconds: float) -> str:
    fresh = table.found - table.from_cache
    read = f"reading took {seconds:.0f} s for {table.found} files or rows"
    if fresh and seconds >= 1:
        read += f" ({seconds / fresh:.2f} s for each that was not in the cache)"
    return f"{read}; a run takes from the cache what has not changed"
