"""The cost of a plan as figures: epsilon, steps, noise and traffic."""

from __future__ import annotations

from ghostnet.accounting.epsilon import event_to_dict
from ghostnet.accounting.plan_cost import claim, plan_events, resolve
from ghostnet.cli.console import notice
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan

FLOAT_BYTES = 4
MASKED_BYTES = 8  # a whole number modulo 2^64


def resolved(plan: Plan) -> Plan:
    """The plan with its noise, told beforehand: many steps take up to a minute."""
    if plan.privacy.steps and not plan.privacy.noise_multiplier:
        notice(f"noise of {plan.privacy.steps:,} steps is calibrated to epsilon {plan.privacy.epsilon:g} ...")
    return resolve(plan)


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
    """The cost of a resolved plan for each patient and for each hospital."""
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
        "warm_start_noise_multiplier": plan.warm_start.noise_multiplier,
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
