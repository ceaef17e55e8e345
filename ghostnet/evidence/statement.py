"""A hospital's signed statement about a run, and the mechanism that a plan says was applied to each patient.

A statement is about what the hospital answered, and nothing else: a round that was never asked for is not in it. It
binds every file of the sampler but the certificate itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ghostnet.accounting.catalogue import events_of
from ghostnet.accounting.epsilon import (
    EPSILON_STEP,
    Event,
    epsilon_pld,
    epsilon_rdp,
    event_to_dict,
    repeat_for_hospitals,
)
from ghostnet.accounting.events import coalition_events, other_hospital_events
from ghostnet.accounting.plan_cost import plan_events
from ghostnet.errors import VerifyError
from ghostnet.evidence import keys
from ghostnet.evidence.answers import answered_words
from ghostnet.evidence.software import Software
from ghostnet.plan import Plan, Unit
from ghostnet.plan.unit import UNITS, protects, unit_facts

MECHANISM = "Gaussian noise on sums over patients, each clipped; Poisson-sampled discriminator steps (DP-SGD)"
SAMPLING = "each patient independently with probability sampling_rate (Poisson), coins from the operating system"
NOT_COVERED = (
    "other runs on the same patients, but those on the hospital's own ledger: lifetime in its statement adds these up, "
    "without what a ledger that was adopted had lost",
    "a patient seen by more hospitals than the plan's hospitals_per_patient",
    "one person under several identifiers: each counts as a patient of their own",
    "what a hospital's software released if it was not this code, unchanged",
    "facts about a population that hold whether or not any one patient took part",
)

IMAGE_NOT_COVERED = (
    "per image: all images of one person together; for k of them epsilon is up to k times as large, and delta more",
    "per image: one image of several of a patient, at a hospital whose data names patients; there the patient with all "
    "their images is the unit, as its statement says",
)

FORMAT = "ghostnet-statement/2"
SiteStatement = dict[str, Any]  # the keys of `statement_keys`
STATEMENT_KEYS = frozenset(
    "format site run_id plan_hash files answered spent events epsilon_pld epsilon_rdp delta unit protects reserved "
    "lifetime software ledger_head public_key signature".split()
)

RELEASED = {
    "gan": ("generator weights after local training", "discriminator weights, trained on noised sums alone"),
    "pooled": ("one sum a step over all hospitals' patients, noise included; each hospital's part under masks",),
}
POOLED_NOT_COVERED = (
    "pooled: hospitals that tell the coordinator their own noise; epsilon_pld_coalition is against all of them, "
    "for a patient of one hospital (epsilon_pld_coalition_all_hospitals: of hospitals_per_patient)",
    "pooled: a coordinator that plays other hospitals itself, where a statement says keys = first use",
)


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """The cost of all runs ever reserved at a hospital, and the most that it allows."""

    epsilon_pld: float
    epsilon_rdp: float
    max_epsilon: float  # by PLD
    delta: float  # of all three
    protects: str  # whom the sum is about (`unit.lifetime_protects`)
    adoptions: int  # of its ledger, each for want of entries: where there is one, earlier runs may be missing


def statement_keys(plan: Plan) -> frozenset[str]:
    """The keys of a statement about this plan."""
    more = {"gan": {"released"}, "pooled": {"released", "masked_with"}}
    public = {"public_images_sha256"} if plan.warm_start.public else set()
    return STATEMENT_KEYS | more.get(plan.federation.share, set()) | public


def site_statement(
    *,
    site: str,
    run_id: str,
    plan: Plan,
    files: Mapping[str, str],
    requests: Mapping[str, str],
    lifetime: Lifetime,
    software: Software,
    ledger_head: str,
    key: Ed25519PrivateKey,
    unit: Unit,
    public_images_sha256: str = "",
    masked_with: dict[str, str] | None = None,
) -> SiteStatement:
    """A hospital's signed statement about its part in a run.

    Args:
        site: the hospital's name.
        run_id: the run, as in its ledger.
        plan: the resolved plan that it ran.
        files: SHA-256 of every file of the sampler but the certificate, hex, by name.
        requests: of this run, in the ledger's order, the digest of the answer to each; "" for one that began and died.
        lifetime: over all runs, from the ledger.
        software: what is installed here.
        ledger_head: the ledger's head after the run's last commit.
        key: the hospital's key.
        unit: that the hospital's mechanism protected; never weaker than the plan's.
        public_images_sha256: what the coordinator says the generator started from; "" where the plan names no images.
        masked_with: pooled: who the hospitals of the run were, and how their keys were known (`client.masking`).

    Raises:
        VerifyError: the unit is weaker than the plan's, or an epsilon is not finite.

    Guarantee:
        Unit: `unit`, add/remove one; of `lifetime` that which it says. Says what the answers of this run cost together
        at one hospital, what the run reserved, and what all runs did. Every epsilon is rounded up (`certified`).
        Not covered: see `not_covered`.
    """
    if not _at_least(unit, plan):
        raise VerifyError(f"unit {unit!r} is weaker than the plan's {plan.privacy.unit!r}; nothing is signed about it")
    words = answered_words(requests)
    events = events_of(plan, [request for request, digest in requests.items() if digest])
    pld, rdp = events_epsilons(events, plan.privacy.delta)
    statement: SiteStatement = {
        "format": FORMAT,
        "site": site,
        "run_id": run_id,
        "plan_hash": plan.hash(),
        "files": dict(files),
        **words,
        "events": [event_to_dict(event) for event in events],
        "epsilon_pld": certified(pld),
        "epsilon_rdp": certified(rdp),
        "delta": plan.privacy.delta,
        **statement_unit(unit),
        "reserved": certified_plan(plan),
        "lifetime": _certified_lifetime(lifetime),
        "software": dict(software),
        "ledger_head": ledger_head,
        "public_key": keys.public_hex(key),
        **_released(plan),
    }
    if plan.warm_start.public:
        statement["public_images_sha256"] = public_images_sha256
    if plan.federation.is_pooled:
        statement["masked_with"] = dict(masked_with or {})
    return {**statement, "signature": keys.sign(key, statement)}


def certified(epsilon: float) -> float:
    """An epsilon as it is signed: one step of EPSILON_STEP above what was computed, on the grid of that step.

    Computed values are rounded up to the grid already, and another machine's last digit can lift them by one step: the
    signed value is never below what anyone recomputes, so that a check needs no tolerance. 0 (nothing) stays 0.
    """
    steps = round(1 / EPSILON_STEP)
    return (round(epsilon * steps) + 1) / steps if epsilon else 0.0


def certified_plan(plan: Plan) -> dict[str, float]:
    """Every epsilon of `plan_epsilons`, as it is signed."""
    return {name: certified(value) for name, value in plan_epsilons(plan).items()}


def _certified_lifetime(lifetime: Lifetime) -> dict[str, Any]:
    return {
        "epsilon_pld": certified(lifetime.epsilon_pld),
        "epsilon_rdp": certified(lifetime.epsilon_rdp),
        "max_epsilon": float(lifetime.max_epsilon),
        "delta": float(lifetime.delta),
        "protects": lifetime.protects,
        "adoptions": lifetime.adoptions,
    }


def statement_unit(unit: Unit) -> dict[str, str]:
    """A statement's words about the unit; `unit_facts` without the adjacency, which follows."""
    return {"unit": unit, "protects": protects(unit)}


def signed_unit(statement: SiteStatement, plan: Plan) -> Unit:
    """The unit that a statement says.

    Raises:
        VerifyError: it is no unit, in other words than the unit's own, or weaker than the plan's.
    """
    for unit in UNITS:
        if statement_unit(unit) == {name: statement[name] for name in statement_unit(unit)} and _at_least(unit, plan):
            return unit
    raise VerifyError(f"it protects {statement['unit']!r}, which is not the plan's {plan.privacy.unit!r}")


def _at_least(unit: Unit, plan: Plan) -> bool:
    """True if a unit is the plan's or the patient, who covers more than an image."""
    return unit in ("patient", plan.privacy.unit)


def not_covered(plan: Plan) -> list[str]:
    """The limits of a plan's epsilon: what it does not cover."""
    return [
        *NOT_COVERED,
        *(IMAGE_NOT_COVERED if plan.privacy.unit == "image" else ()),
        *(POOLED_NOT_COVERED if plan.federation.is_pooled else ()),
    ]


def mechanism(plan: Plan) -> dict[str, Any]:
    """The certificate's words and numbers about what was done to each patient; they follow from the plan alone."""
    privacy = plan.privacy
    return {
        **unit_facts(privacy.unit),
        "mechanism": MECHANISM,
        "sampling": SAMPLING,
        "noise_multiplier": privacy.noise_multiplier,
        "sampling_rate": privacy.sampling_rate,
        "steps": privacy.steps,
        "clip_norm": privacy.clip_norm,
        "delta": privacy.delta,
        "events": [event_to_dict(event) for event in plan_events(plan)],
        "hospitals_per_patient": plan.federation.hospitals_per_patient,
        "composition": {
            "epsilon_pld": "a patient of one hospital; disjoint hospitals compose in parallel",
            "epsilon_pld_all_hospitals": "a patient of hospitals_per_patient hospitals; these compose in sequence",
        },
        "not_covered": not_covered(plan),
        **_federation(plan),
    }


def _federation(plan: Plan) -> dict[str, Any]:
    """The combination of a plan beyond equal averages of generators; nothing for those."""
    federation = plan.federation
    words: dict[str, Any] = {}
    if federation.share != "generator":
        words = {"share": federation.share, **_released(plan)}
    if federation.is_pooled:
        words["hospitals"] = federation.hospitals
        words["noise"] = (
            "noise_multiplier is that of the sum; each hospital adds noise_multiplier / sqrt(hospitals), discrete "
            "Gaussian on one grid (arXiv:2102.06387)"
        )
    if federation.server_optimizer != "fedavg":
        words["server_optimizer"] = federation.server_optimizer
    return words


def _released(plan: Plan) -> dict[str, Any]:
    """The values that left each hospital in the steps or rounds, where they are not the generator alone."""
    released = RELEASED.get(plan.federation.share)
    return {} if released is None else {"released": list(released)}


def _coalition(plan: Plan) -> dict[str, float]:
    if not plan.federation.is_pooled:
        return {}
    return {"epsilon_pld_coalition": events_epsilons(coalition_events(plan_events(plan)), plan.privacy.delta)[0]}


def _coalition_everywhere(plan: Plan) -> dict[str, float]:
    """The same for a patient of as many hospitals as the plan allows, where that is more than one."""
    hospitals = plan.federation.hospitals_per_patient
    if not plan.federation.is_pooled or hospitals == 1:
        return {}
    events = coalition_events(plan_events(plan), hospitals)
    return {"epsilon_pld_coalition_all_hospitals": events_epsilons(events, plan.privacy.delta)[0]}


def plan_epsilons(plan: Plan) -> dict[str, float]:
    """Epsilon of one patient, at one hospital and at hospitals_per_patient of them, by both accountants.

    Raises:
        VerifyError: it is not finite (no noise).
    """
    events, delta = tuple(plan_events(plan)), plan.privacy.delta
    everywhere = tuple(repeat_for_hospitals(events, plan.federation.hospitals_per_patient))
    pld, rdp = events_epsilons(events, delta)
    pld_everywhere, rdp_everywhere = events_epsilons(everywhere, delta)
    return {
        "epsilon_pld": pld,
        "epsilon_rdp": rdp,
        "epsilon_pld_all_hospitals": pld_everywhere,
        "epsilon_rdp_all_hospitals": rdp_everywhere,
        **_coalition(plan),
        **_coalition_everywhere(plan),
        **_other_hospital(plan),
    }


def _other_hospital(plan: Plan) -> dict[str, float]:
    if not plan.federation.is_pooled:
        return {}
    return {
        "epsilon_pld_other_hospital": events_epsilons(other_hospital_events(plan_events(plan)), plan.privacy.delta)[0]
    }


def events_epsilons(events: tuple[Event, ...], delta: float) -> tuple[float, float]:
    """Epsilon of the events by PLD and by RDP; VerifyError where it is not finite (no noise)."""
    pld, rdp = float(epsilon_pld(events, delta)), float(epsilon_rdp(events, delta))
    if not (math.isfinite(pld) and math.isfinite(rdp)):
        raise VerifyError(f"epsilon is {pld} by PLD and {rdp} by RDP; a certificate needs finite ones")
    return pld, rdp
