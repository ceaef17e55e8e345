"""What cannot be trained together is refused when the plan is read, in one line."""

from __future__ import annotations

import re

import pytest

from ghostnet.errors import PlanError
from ghostnet.plan import parse_plan, plan_from_dict
from tests.networks import ARCHITECTURES, network_plan_text
from tests.plans import tiny_plan, tiny_plan_text

NORM = 'discriminator_norm = "none"'
STEPS = "discriminator_steps = 2"


def model(architecture: str, more: str = "", norm: str = "group") -> dict[str, str]:
    line = f'latent = 8\narchitecture = "{architecture}"\ndiscriminator_norm = "{norm}"\n{more}'
    return {"latent": line}


WASSERSTEIN = {"discriminator_steps": f'{STEPS}\nloss = "wasserstein"'}
REFUSED = [
    (model("wgan"), 'set training.loss = "wasserstein"'),
    (model("wgan-gp"), 'set training.loss = "wasserstein"'),
    (
        model("wgan-gp") | {"discriminator_steps": f'{STEPS}\nloss = "wasserstein"\ngradient_penalty = "none"'},
        'set training.gradient_penalty = "fakes"',
    ),
    (model("stylegan", norm="none"), "draws 32, 64, 128 px"),
    (model("stylegan") | {"size": "size = 32"}, 'set model.discriminator_norm = "none"'),
    (model("keras28", norm="none") | {"size": "size = 64"}, "draws 28 px alone"),
    (model("keras28"), 'set model.discriminator_norm = "none"'),
    (model("dcgan", "truncation = 0.7"), "truncation = 0.7 is for stylegan"),
    (model("dcgan", "truncation = 1.7"), "model.truncation = 1.7"),
    (
        model("keras28", norm="none") | {"discriminator_steps": f'{STEPS}\ngradient_penalty = "patient"'},
        "not for 'keras28'",
    ),
    (
        model("wgan") | {"discriminator_steps": f'{STEPS}\nloss = "wasserstein"\nweight_clip = 0.0'},
        "training.weight_clip",
    ),
    ({"discriminator_steps": f"{STEPS}\ndiscriminator_steps_most = 1"}, "is less than discriminator_steps = 2"),
    (
        {"discriminator_steps": f'{STEPS}\nloss = "wasserstein"\ndiscriminator_steps_most = 9'},
        "no level that means real or fake",
    ),
    ({"discriminator_steps": f"{STEPS}\nfakes_accuracy = nan"}, "training.fakes_accuracy"),
    ({"discriminator_steps": f"{STEPS}\nperceptual_weight = 1.0"}, "set both or neither"),
    ({"discriminator_steps": f"{STEPS}\nperceptual_noise_multiplier = 1.0"}, "set both or neither"),
    (
        {
            "discriminator_steps": f"{STEPS}\nperceptual_noise_multiplier = 1.0\nperceptual_weight = 1.0",
            "rounds": "rounds = 1",
        },
        "use 2 rounds or more",
    ),
    (model("biggan"), "'biggan' is not one of"),
]


@pytest.mark.parametrize(("lines", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_does_not_go_together_is_refused_in_one_line(lines: dict[str, str], said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)) as caught:
        tiny_plan(**lines)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_plan_that_is_taken(architecture: str) -> None:
    plan = parse_plan(network_plan_text(architecture))
    assert plan.model.architecture == architecture
    assert plan_from_dict(plan.to_dict()) == plan


def test_a_penalty_is_at_the_fakes_where_one_belongs_unless_the_plan_says_patient() -> None:
    places = {a: parse_plan(network_plan_text(a)).gradient_penalty for a in ARCHITECTURES}
    assert places == {"dcgan": "none", "wgan": "none", "wgan-gp": "fakes", "stylegan": "fakes", "keras28": "none"}
    text = network_plan_text("stylegan").replace(STEPS, f'{STEPS}\ngradient_penalty = "patient"')
    assert parse_plan(text).gradient_penalty == "patient"


def test_an_option_that_is_set_to_its_default_changes_nothing_and_any_other_value_changes_the_hash() -> None:
    plan = tiny_plan()
    said = tiny_plan_text(discriminator_steps=f"{STEPS}\nweight_clip = 0.01")
    assert parse_plan(said).hash() == plan.hash()
    for name, value in {
        "weight_clip": 0.02,
        "gradient_penalty_weight": 1.0,
        "gradient_penalty": '"fakes"',
        "discriminator_steps_most": 9,
        "fakes_accuracy": 0.7,
    }.items():
        other = parse_plan(tiny_plan_text(discriminator_steps=f"{STEPS}\n{name} = {value}"))
        assert other.hash() != plan.hash(), name
        assert plan_from_dict(other.to_dict()) == other
