"""The privacy cost of a plan: its mechanisms as events, its noise, and epsilon before any data is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ghostnet.accounting.catalogue import Mechanism, events_of
from ghostnet.accounting.epsilon import accountants_agree, calibrate_noise_multiplier, epsilon_pld, epsilon_rdp
from ghostnet.accounting.events import (
    Event,
    coalition_events,
    other_hospital_events,
    repeat_for_hospitals,
)
from ghostnet.errors import PlanError
from ghostnet.plan import Plan, Unit
from ghostnet.plan.unit import adjacency, protects


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Privacy of one unit over a whole run. Every number stands beside its unit and adjacency."""

    epsilon_pld: float  # a patient of one hospital; disjoint hospitals compose in parallel
    epsilon_rdp: float  # the same by the independent, looser accountant
    epsilon_pld_all_hospitals: float  # a patient of as many hospitals as the plan allows (hospitals_per_patient)
    epsilon_pld_coalition: float  # a patient of one hospital, against the coordinator and all others together
    epsilon_pld_other_hospital: float  # against one other hospital, which knows its own noise; other modes: the same
    hospitals_per_patient: int
    delta: float
    unit: Unit
    adjacency: str
    protects: str  # the unit in words
    sampling: str


def resolve(plan: Plan) -> Plan:
    """Fills in `privacy.noise_multiplier` where the plan leaves it 0, so that the whole run costs `privacy.epsilon`.

    Returns:
        The same plan, but for the noise multiplier; the plan itself where there is nothing to fill in. Two parties
        with the same plan get the same number.

    Raises:
        PlanError: the budget is spent by the other releases, or no noise up to 1000 is enough.
    """
    privacy = plan.privacy
    if privacy.noise_multiplier != 0 or privacy.steps == 0:
        return plan
    noise_multiplier = calibrate_noise_multiplier(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        steps=privacy.steps,
        other=events_of(plan, mechanisms=(Mechanism.GAUSSIAN,)),
    )
    return dataclasses.replace(plan, privacy=dataclasses.replace(privacy, noise_multiplier=noise_multiplier))


def plan_events(plan: Plan) -> tuple[Event, ...]:
    """Everything that a hospital releases in one run of a resolved plan, as the catalogue of statistics has it.

    Training and test patients are disjoint, so composing the utility counts with the rest states more than any one
    patient pays.

    Raises:
        PlanError: the noise multiplier of the steps is still 0.
    """
    return events_of(plan)


def claim(plan: Plan) -> Claim:
    """Epsilon of a resolved plan, by both accountants.

    Raises:
        PlanError: epsilon by PLD is above `privacy.epsilon`, the accountants contradict each other, or the plan is
            not resolved.

    Guarantee:
        Unit: privacy.unit, add/remove one. Assumes: the statistics of the catalogue, by the mechanisms of mechanism.py
        and releases.py, and nothing else, leave the hospital.
        Not covered: other runs on the same patients (ledger.py composes them); utility.real_reference, which is for
        simulations and not private.
    """
    privacy, federation = plan.privacy, plan.federation
    events = plan_events(plan)
    by_pld, by_rdp = epsilon_pld(events, privacy.delta), epsilon_rdp(events, privacy.delta)
    if not by_pld <= privacy.epsilon:
        raise PlanError(
            f"the plan costs epsilon {by_pld:.4f} (PLD, delta {privacy.delta:g}) per {privacy.unit}, over its own "
            f"privacy.epsilon = {privacy.epsilon:g}; raise noise_multiplier, or set it to 0 to have it calibrated"
        )
    check_accountants_agree(by_pld, by_rdp)
    everywhere = repeat_for_hospitals(events, federation.hospitals_per_patient)
    return Claim(
        epsilon_pld=by_pld,
        epsilon_rdp=by_rdp,
        epsilon_pld_all_hospitals=epsilon_pld(everywhere, privacy.delta),
        epsilon_pld_coalition=epsilon_pld(coalition_events(events), privacy.delta),
        epsilon_pld_other_hospital=epsilon_pld(other_hospital_events(events), privacy.delta),
        hospitals_per_patient=federation.hospitals_per_patient,
        delta=privacy.delta,
        unit=privacy.unit,
        adjacency=adjacency(privacy.unit),
        protects=protects(privacy.unit),
        sampling=f"Poisson, each patient joins each step independently with probability {privacy.sampling_rate:g}",
    )


def check_accountants_agree(by_pld: float, by_rdp: float) -> None:
    """Refuses a PLD epsilon above what RDP, a looser and independent bound, allows.

    Raises:
        PlanError: epsilon by PLD > 1.001 * epsilon by RDP + 0.05, or one of them is NaN.
    """
    if not accountants_agree(by_pld, by_rdp):
        raise PlanError(
            f"the accountants disagree: epsilon {by_pld} by PLD is over {by_rdp} by RDP, which is the looser bound; "
            "one of the two libraries is not the one GhostNet was tested with: run `ghostnet doctor`"
        )
