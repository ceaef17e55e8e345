"""A plan means one thing, and nothing wrong gets through."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostnet.errors import PlanError
from ghostnet.plan import load_plan, parse_plan, plan_from_dict
from tests.plans import TINY, tiny_plan, tiny_plan_text

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*.toml"))


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "true", '"8"', "[8]"])
def test_an_epsilon_that_is_not_a_positive_number_is_refused(value: str) -> None:
    with pytest.raises(PlanError, match=r"privacy\.epsilon"):
        tiny_plan(epsilon=f"epsilon = {value}")


@pytest.mark.parametrize(
    ("key", "line", "said"),
    [
        ("delta", "delta = 1", "privacy.delta"),
        ("delta", "delta = 1e-15", "privacy.delta"),
        ("sampling_rate", "sampling_rate = 1.01", "privacy.sampling_rate"),
        ("fakes", "fakes = 0", "privacy.fakes"),
        ("steps", "steps = 1.5", "not a whole number"),
        ("size", "size = 31", "image.size"),
        ("label_prior", "label_prior = [0.5, 0.6]", "sums to 1.1"),
        ("label_prior", "label_prior = [1.0]", "2 labels"),
        ("labels", 'labels = ["a", "a"]', "no name twice"),
        ("rounds", "rounds = 0", "warm start only"),
        ("rounds", "rounds = 5", "more than privacy.steps"),
        ("patients", "", "federation.patients is missing"),
        ("latent", "latnet = 8", "unknown key model.latnet"),
    ],
)
def test_a_wrong_value_is_named(key: str, line: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        tiny_plan(**{key: line})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_comments_and_order_do_not_change_the_hash_but_any_value_does() -> None:
    assert parse_plan("# hello\n" + TINY).hash() == tiny_plan().hash()
    assert tiny_plan(seed="seed = 4").hash() != tiny_plan().hash()


def test_a_plan_survives_the_way_to_a_hospital() -> None:
    plan = tiny_plan()
    assert plan_from_dict(plan.to_dict()) == plan


@given(steps=st.integers(1, 10_000), rounds=st.integers(1, 50))
def test_the_rounds_together_make_exactly_the_steps_that_are_charged(steps: int, rounds: int) -> None:
    if rounds > steps:
        rounds = steps
    plan = tiny_plan(steps=f"steps = {steps}", rounds=f"rounds = {rounds}")
    done = [plan.round_steps(k) for k in range(1, rounds + 1)]
    assert sum(done) == steps
    assert min(done) >= 1


def test_a_file_that_is_not_toml_or_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "none.toml")
    for text, said in (
        ("epsilon == 8", "not valid TOML"),
        (f"seed = {'1' * 5000}", "not valid TOML"),
        (f"seed = 0x{'f' * 6000}", "thousands of digits"),
        (f"seed = {'[' * 5000}", "nested too deep"),
        ("[federation]\nweights = 3", "neither"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(PlanError, match=said):
            load_plan(tmp_path / "bad.toml")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_shipped_plan_parses_and_comments_every_key(path: Path) -> None:
    load_plan(path)
    bare = [
        line
        for line in path.read_text().splitlines()
        if "=" in line and not line.lstrip().startswith(("#", "[")) and "#" not in line
    ]
    assert not bare, f"keys without a comment in {path.name}: {bare}"


def test_the_tiny_plan_text_really_replaces_lines() -> None:
    assert "epsilon = nan" in tiny_plan_text(epsilon="epsilon = nan")
