"""`ghostnet plan`: what a plan costs, before any data is read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostnet.accounting.epsilon import event_to_dict
from ghostnet.accounting.plan_cost import claim, plan_events, resolve
from ghostnet.cli.console import results
from ghostnet.cli.lazy import new_app
from ghostnet.cli.suggest import suggest
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan, load_plan

app = new_app("Check what a plan promises and costs.")

FLOAT_BYTES = 4
MASKED_BYTES = 8  # a whole number modulo 2^64
app.command("suggest")(suggest)


@app.command("check")
def check(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.toml")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Epsilon and whom it protects, steps, noise and traffic of a plan; reads no data.

    Exit code 3 when the plan cannot be run (docs/exit-codes.md).
    """
    cost = plan_cost(resolve(load_plan(plan_file)))
    if as_json:
        results.print_json(data=cost)
        return
    for key, value in cost.items():
        if key != "events":
            shown = f"{value:.6g}" if isinstance(value, float) else value
            results.print(f"{key.replace('_', ' '):26} {shown}", highlight=False, soft_wrap=True)


def traffic(plan: Plan, generator: int, discriminator: int, embedding: int) -> dict[str, object]:
    """The traffic of a hospital, in megabytes, and the epsilon of the pooled steps against colluding parties.

    Args:
        plan: resolved.
        generator: weights and statistics of the generator.
        discriminator: weights of the discriminator.
        embedding: numbers of the warm start's release.
    """
    if plan.federation.is_pooled:
        promised = claim(plan)
        up, down = MASKED_BYTES * discriminator / 1e6, FLOAT_BYTES * discriminator / 1e6
        return {
            "hospitals": plan.federation.hospitals,
            "epsilon_other_hospital": promised.epsilon_pld_other_hospital,
            "epsilon_coalition": promised.epsilon_pld_coalition,
            "upload_MB_a_step": up,
            "download_MB_a_step": down,
            "upload_MB_per_hospital": up * plan.privacy.steps + FLOAT_BYTES * embedding / 1e6,
        }
    sent = generator + (discriminator if plan.federation.share == "gan" else 0)
    return {"upload_MB_per_hospital": FLOAT_BYTES * (sent * plan.federation.rounds + embedding) / 1e6}


def plan_cost(plan: Plan) -> dict[str, object]:
    """Prints the cost of a resolved plan for each patient and for each hospital."""
    promised = claim(plan)
    generator, discriminator = build_generator(plan.networks), build_discriminator(plan.networks)
    weights = sum(p.numel() for p in generator.parameters()) + sum(b.numel() for b in generator.buffers())
    embedding = plan.embedding.size if plan.warm_start.noise_multiplier > 0 else 0
    return {
        "name": plan.name,
        "hash": plan.hash(),
        "epsilon_pld": promised.epsilon_pld,
        "epsilon_rdp": promised.epsilon_rdp,
        "delta": promised.delta,
        "unit": promised.unit,
        "adjacency": promised.adjacency,
        "protects": promised.protects,
        "hospitals_per_patient": plan.federation.hospitals_per_patient,
        "epsilon_all_hospitals": promised.epsilon_pld_all_hospitals,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "sampling_rate": plan.privacy.sampling_rate,
        "discriminator_steps": plan.privacy.steps,
        "share": plan.federation.share,
        "rounds": plan.federation.rounds,
        "generator_parameters": sum(p.numel() for p in generator.parameters()),
        "discriminator_parameters": sum(p.numel() for p in discriminator.parameters()),
        **traffic(plan, weights, sum(p.numel() for p in discriminator.parameters()), embedding),
        "events": [event_to_dict(event) for event in plan_events(plan)],
    }
