"""The plan's [federation]: combinations that would not do what they say are refused before anything is asked."""

from __future__ import annotations

import pytest

from ghostnet.accounting.plan_cost import resolve
from ghostnet.cli.plan_view import plan_cost
from ghostnet.errors import PlanError
from ghostnet.plan import Plan, plan_from_dict
from ghostnet.plan.federation import HospitalWeight
from tests.plans import tiny_plan

POOLED = 'share = "pooled"\nhospitals = 4'


def plan_with(text: str, **lines: str) -> Plan:
    return tiny_plan(patients=f"patients = 20\n{text}", **lines)


def test_a_plan_that_uses_none_of_it_is_one_hospitals_and_weighs_all_the_same() -> None:
    plan = tiny_plan()
    assert plan.public_denominator == 0.3 * 20 + 4
    assert plan_with('weights = "equal"').hash() == plan.hash()


@pytest.mark.parametrize(
    "text",
    [POOLED, 'share = "gan"', 'server_optimizer = "fedavgm"\nserver_momentum = 0.5', "weights = {b = 1.0, a = 2.0}"],
)
def test_a_plan_survives_its_written_form_and_can_be_a_key(text: str) -> None:
    plan = plan_with(text)
    assert plan_from_dict(plan.to_dict()) == plan
    assert plan.hash() != tiny_plan().hash()
    assert {plan: 1}[plan_from_dict(plan.to_dict())] == 1


def test_the_order_of_a_weight_table_means_nothing() -> None:
    one, two = plan_with("weights = {b = 1.0, a = 2.0}"), plan_with("weights = {a = 2.0, b = 1.0}")
    assert one.hash() == two.hash()
    assert one.federation.weights[0] == HospitalWeight(hospital="a", weight=2.0)
    assert one.federation.weight_of("a") == 2.0
    assert tiny_plan().federation.weight_of("anyone") == 1.0


def test_a_pooled_step_is_divided_by_the_patients_of_all_hospitals() -> None:
    assert plan_with(POOLED).public_denominator == 0.3 * 20 * 4 + 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('share = "all"', "federation.share"),
        ('share = "pooled"', "federation.hospitals"),
        ('share = "pooled"\nhospitals = 1', "federation.hospitals"),
        ('share = "pooled"\nhospitals = 101', "federation.hospitals"),
        ("hospitals = 3", "for share = 'pooled' alone"),
        (POOLED + '\nserver_optimizer = "median"', "averages nothing"),
        (POOLED + "\nweights = {a = 1.0}", "averages nothing"),
        ('server_optimizer = "sgd"', "server_optimizer"),
        ('server_optimizer = "fedadam"', "0.001 to 0.1"),
        ('server_optimizer = "trimmed-mean"', "cuts nobody off"),
        ('server_optimizer = "trimmed-mean"\ntrim = 0.5', "federation.trim"),
        ('server_optimizer = "median"', "no more robust"),
        ("server_momentum = 1.0", "server_momentum"),
        ("server_learning_rate = nan", "server_learning_rate"),
        ("weights = {a = 0.0}", "weights.a"),
        ("weights = {a = nan}", "weights.a"),
        ('weights = {"../x" = 1.0}', "name of a hospital"),
        ('weights = "counts"', "weights"),
        ('weights = [{hospital = "b", weight = 1.0}, {hospital = "a", weight = 1.0}]', "alphabetical"),
        ("weights = {a = true}", "weights"),
    ],
)
def test_what_would_not_do_what_it_says_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        plan_with(text)


def test_robust_means_cannot_weigh() -> None:
    lines = 'weights = {a = 1.0}\nserver_optimizer = "median"'
    with pytest.raises(PlanError, match="cannot weigh"):
        plan_with(lines, min_hospitals="min_hospitals = 3")


def test_pooled_has_no_released_features() -> None:
    with pytest.raises(PlanError, match="perceptual"):
        plan_with(POOLED, generator_batch="generator_batch = 8\nperceptual_weight = 1.0\n"
                  "perceptual_noise_multiplier = 1.0")  # fmt: skip


def test_plan_check_tells_the_traffic_of_a_step_and_what_a_coalition_learns() -> None:
    cost = plan_cost(resolve(plan_with(POOLED, epsilon="epsilon = 50.0")))
    parameters = cost["discriminator_parameters"]
    assert cost["upload_MB_a_step"] == 8 * parameters / 1e6
    assert cost["download_MB_a_step"] == 4 * parameters / 1e6
    assert cost["epsilon_pld"] < cost["epsilon_other_hospital"] < cost["epsilon_coalition"]
    gan = plan_cost(resolve(plan_with('share = "gan"')))
    generator = plan_cost(resolve(tiny_plan()))
    more = gan["upload_MB_per_hospital"] - generator["upload_MB_per_hospital"]
    assert more == pytest.approx(2 * 4 * parameters / 1e6)
    assert "upload_MB_a_step" not in generator
