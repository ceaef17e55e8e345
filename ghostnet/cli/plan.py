"""`ghostnet plan`: what a plan costs, before any data is read."""

from __future__ import annotations

from typing import Any

from ghostnet.accounting.strength import epsilon_text, strength
from ghostnet.cli.arguments import AsJson, PlanFile
from ghostnet.cli.console import result, results
from ghostnet.cli.lazy import LazyGroup, new_app
from ghostnet.plan import load_plan


class PlanCommands(LazyGroup):
    """The subcommands of `ghostnet plan`."""

    table = {
        "suggest": (
            "ghostnet.cli.suggest:suggest",
            "Propose a plan and say what usefulness to expect of it, and why; reads no data.",
        ),
        "check": (
            "ghostnet.cli.plan:check",
            "Epsilon and whom it protects, steps, noise and traffic of a plan; reads no data.",
        ),
    }


app = new_app("Check what a plan promises and costs.", cls=PlanCommands)


@app.callback()
def _plan() -> None:
    """Makes a group of it, whose commands are looked up by name."""


def check(plan_file: PlanFile, as_json: AsJson = False) -> None:
    """Epsilon and whom it protects, steps, noise and traffic of a plan; reads no data.

    Exit code 3 when the plan cannot be run (docs/exit-codes.md).
    """
    plan = load_plan(plan_file)
    from ghostnet.cli.plan_view import plan_cost, resolved  # seconds to import, so after what needs no computing

    cost: dict[str, Any] = plan_cost(resolved(plan))
    if as_json:
        results.print_json(data=cost)
        return
    hidden = {"events"} if cost["discriminator_steps"] else {"events", "noise_multiplier", "sampling_rate"}
    for key, value in cost.items():
        if key not in hidden:
            result(f"{key.replace('_', ' '):28} {_shown(key, value)}")
    result(f"{'in words':28} {strength(cost['epsilon_pld'])}")


def _shown(key: str, value: object) -> str:
    if key == "discriminator_steps" and not value:
        return "0: the warm start alone"
    if isinstance(value, float):
        return epsilon_text(value) if key.startswith("epsilon") else f"{value:.6g}"
    return str(value)
