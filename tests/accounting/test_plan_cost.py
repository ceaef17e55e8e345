"""What a plan promises before any data is read."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ghostnet.accounting.epsilon import GaussianRelease, PoissonGaussianSteps, epsilon_pld
from ghostnet.accounting.plan_cost import check_accountants_agree, claim, plan_events, resolve
from ghostnet.errors import PlanError
from ghostnet.plan import Plan
from tests import plans


def tiny_plan() -> Plan:
    """The tiny plan with more noise, which is quicker to account for."""
    quiet = {"noise_multiplier": 8.0}
    privacy = {"epsilon": 2.0, "steps": 40, "noise_multiplier": 0.0}
    return changed(plans.tiny_plan(), privacy=privacy, warm_start=quiet, utility=quiet)


def changed(plan: Plan, **tables: dict[str, object]) -> Plan:
    """The plan with some values of some tables replaced: changed(plan, privacy={"steps": 0})."""
    parts = {name: dataclasses.replace(getattr(plan, name), **values) for name, values in tables.items()}
    return dataclasses.replace(plan, **parts)


def test_a_resolved_plan_costs_no_more_than_its_budget_and_hardly_less() -> None:
    plan = resolve(tiny_plan())
    made = claim(plan)
    assert 1.998 < made.epsilon_pld <= 2.0
    assert made.epsilon_pld <= made.epsilon_rdp
    assert made.delta == plan.privacy.delta


def test_resolve_changes_nothing_but_the_noise_multiplier() -> None:
    plan = tiny_plan()
    resolved = resolve(plan)
    assert resolved.privacy.noise_multiplier > 0
    assert changed(resolved, privacy={"noise_multiplier": 0.0}) == plan
    assert resolve(plan) == resolved
    assert resolve(resolved) is resolved


def test_resolve_leaves_a_plan_without_steps_alone() -> None:
    plan = changed(tiny_plan(), privacy={"steps": 0}, federation={"rounds": 0})
    assert resolve(plan) is plan
    assert [event.name for event in plan_events(plan)] == ["warm start", "utility counts"]


def test_every_release_that_is_on_is_an_event() -> None:
    plan = changed(tiny_plan(), privacy={"noise_multiplier": 9.0})
    assert plan_events(plan) == (
        GaussianRelease(name="warm start", noise_multiplier=8.0),
        GaussianRelease(name="utility counts", noise_multiplier=8.0),
        PoissonGaussianSteps(name="discriminator steps", sampling_rate=0.3, noise_multiplier=9.0, steps=40),
    )


@pytest.mark.parametrize(("table", "name"), [("warm_start", "warm start"), ("utility", "utility counts")])
def test_a_release_that_is_off_costs_nothing(table: str, name: str) -> None:
    plan = changed(tiny_plan(), privacy={"noise_multiplier": 9.0})
    without = changed(plan, **{table: {"noise_multiplier": 0.0}})
    assert name not in [event.name for event in plan_events(without)]
    assert claim(without).epsilon_pld < claim(plan).epsilon_pld


def test_a_plan_over_its_own_budget_is_refused_with_both_numbers() -> None:
    plan = changed(tiny_plan(), privacy={"noise_multiplier": 2.0})
    with pytest.raises(PlanError, match=r"costs epsilon \d+\.\d{4} .* privacy.epsilon = 2"):
        claim(plan)


def test_a_plan_without_noise_has_no_claim() -> None:
    with pytest.raises(PlanError, match="resolve"):
        claim(changed(tiny_plan(), privacy={"noise_multiplier": 0.0}))
    with pytest.raises(PlanError, match="resolve"):
        plan_events(changed(tiny_plan(), privacy={"noise_multiplier": 0.0}))


def test_a_budget_that_the_warm_start_exceeds_is_refused() -> None:
    with pytest.raises(PlanError, match="warm_start"):
        resolve(changed(tiny_plan(), privacy={"epsilon": 0.2, "noise_multiplier": 0.0}))


def test_a_patient_of_several_hospitals_pays_more_than_one_and_less_than_the_sum() -> None:
    single = changed(tiny_plan(), privacy={"noise_multiplier": 9.0})
    several = changed(single, federation={"hospitals_per_patient": 3})
    made = claim(several)
    assert made.epsilon_pld == claim(single).epsilon_pld == claim(single).epsilon_pld_all_hospitals
    assert made.epsilon_pld < made.epsilon_pld_all_hospitals < 3 * made.epsilon_pld
    assert made.epsilon_pld_all_hospitals == epsilon_pld(plan_events(single) * 3, single.privacy.delta)


def test_a_claim_names_its_unit_adjacency_and_sampling() -> None:
    made = claim(changed(tiny_plan(), privacy={"noise_multiplier": 9.0}))
    assert (made.unit, made.adjacency) == ("patient", "add/remove one patient")
    assert "Poisson" in made.sampling
    assert "0.3" in made.sampling


def test_accountants_that_contradict_each_other_are_refused() -> None:
    check_accountants_agree(4.2, 4.6)
    check_accountants_agree(math.inf, math.inf)
    for by_pld, by_rdp in ((4.8, 4.6), (math.inf, 4.0), (math.nan, 4.0), (4.0, math.nan)):
        with pytest.raises(PlanError, match="disagree"):
            check_accountants_agree(by_pld, by_rdp)
