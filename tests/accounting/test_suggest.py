"""The planner: what it proposes keeps the budget, follows the scaling law and says when there are too few patients."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from ghostnet.accounting.epsilon import epsilon_pld
from ghostnet.accounting.events import GaussianRelease
from ghostnet.accounting.plan_cost import claim
from ghostnet.accounting.suggest import class_signal, gaussian_mu, suggest
from ghostnet.cli.main import app
from ghostnet.errors import PlanError
from ghostnet.plan import load_plan


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_mu_is_the_gaussian_mechanism_of_that_epsilon(epsilon):
    release = GaussianRelease(name="one", noise_multiplier=1 / gaussian_mu(epsilon, 1e-5))
    assert epsilon_pld((release,), 1e-5) == pytest.approx(epsilon, rel=2e-3)


@pytest.mark.parametrize(
    ("patients", "epsilon"), [((1200, 900, 400), 8.0), ((15_000,) * 4, 1.0), ((50,), 1.0), ((40_000, 30_000), 4.0)]
)
def test_a_suggested_plan_costs_at_most_the_budget_and_wastes_little_of_it(patients, epsilon):
    plan = suggest(patients=patients, size=64, epsilon=epsilon).plan
    assert 0.97 * epsilon <= claim(plan).epsilon_pld <= epsilon


def test_the_class_signal_follows_patients_and_hospitals():
    one = class_signal([4000], 2, 0.5, 2000)
    assert class_signal([8000], 2, 0.5, 2000) == pytest.approx(2 * one)
    assert class_signal([1000] * 4, 2, 0.5, 2000) == pytest.approx(one / 2)  # each hospital adds its own noise


def test_large_hospitals_get_adversarial_steps_and_small_ones_a_warm_start_alone():
    large, small = (suggest(patients=[n] * 3, size=28, epsilon=8) for n in (20_000, 300))
    assert large.plan.privacy.steps > 0
    assert large.steps_signal > 0
    assert small.plan.federation.rounds == 0
    assert "left out" in " ".join(small.reasons)


def test_fewer_patients_get_fewer_features():
    few, many = (suggest(patients=[n], size=64, epsilon=2).plan.warm_start.features for n in (300, 30_000))
    assert few < many


def test_a_release_has_two_kernel_scales_unless_it_is_shortest() -> None:
    warm = suggest(patients=[913] * 4, size=64, epsilon=4).plan.warm_start
    assert (warm.feature_size, warm.features, warm.bandwidth, warm.more_bandwidths) == (16, 4000, 1.0, (2.0,))
    warm = suggest(patients=[100], size=64, epsilon=1).plan.warm_start
    assert (warm.feature_size, warm.features, warm.bandwidth, warm.more_bandwidths) == (8, 100, 2.0, ())


def test_too_few_patients_are_said_with_the_number_that_it_would_take():
    suggestion = suggest(patients=[50], size=64, epsilon=1)
    assert suggestion.verdict == "too few patients"
    said = " ".join(suggestion.reasons)
    assert "it would take about" in said
    wanted = int(said.split("it would take about ")[1].split()[0])
    again = suggest(patients=[wanted], size=64, epsilon=1)
    assert again.verdict == "useful"


@pytest.mark.parametrize(("patients", "epsilon"), [([], 1.0), ([0], 1.0), ([10], 0.0), ([10], math.nan)])
def test_impossible_numbers_are_refused(patients, epsilon):
    with pytest.raises(PlanError, match="give each hospital's number"):
        suggest(patients=patients, size=64, epsilon=epsilon)


@pytest.mark.parametrize(
    "given", [{"epsilon": math.inf}, {"epsilon": 1e4}, {"delta": math.nan}, {"delta": 2.0}], ids=str
)
def test_numbers_beyond_the_mechanism_are_refused_in_one_line(given):
    with pytest.raises(PlanError, match="give "):
        suggest(**{"patients": [1000], "size": 28, "epsilon": 1.0} | given)


def test_a_plan_that_cannot_be_written_is_one_line(tmp_path):
    asked = [
        "plan",
        "suggest",
        "--patients",
        "1000",
        "--images",
        "28",
        "--epsilon",
        "8",
        "--out",
        str(tmp_path / "no/x"),
    ]
    done = CliRunner().invoke(app, asked)
    assert isinstance(done.exception, PlanError)
    assert "cannot be written" in str(done.exception)


def test_the_command_writes_a_plan_that_checks(tmp_path):
    out = tmp_path / "plan.toml"
    asked = ["--patients", "1200,900,400", "--images", "64", "--epsilon", "8", "--out", str(out), "--json"]
    answer = CliRunner().invoke(app, ["plan", "suggest", *asked])
    assert answer.exit_code == 0, answer.output
    figures = json.loads(answer.stdout)
    assert figures["plan"] == load_plan(out).to_dict()
    assert out.read_text().startswith("# Proposed by")
    again = CliRunner().invoke(app, ["plan", "suggest", *asked])
    assert isinstance(again.exception, PlanError)
    assert "exists already" in str(again.exception)
