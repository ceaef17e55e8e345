"""The networks: sizes, ranges, the published parameter count, and rows that do not see each other."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from ghostnet.models import REGISTRY, build_discriminator, build_generator
from ghostnet.models.dcgan import Discriminator, Generator
from ghostnet.models.outline import outline_generator
from ghostnet.plan import parse_plan
from ghostnet.privacy.layers import check_discriminator

PLAN = """
name = "tiny"
[image]
size = 32
channels = 3
labels = ["a", "b"]
label_prior = [0.5, 0.5]
mask_channels = 1
[model]
latent = 5
generator_width = 4
discriminator_width = 4
[privacy]
epsilon = 1.0
delta = 1e-5
sampling_rate = 0.1
steps = 2
[federation]
patients = 10
rounds = 1
"""


def small_generator(size=64, planes=1, labels=2, pixel_range="[-1,1]"):
    return Generator(size=size, planes=planes, labels=labels, latent=6, width=4, pixel_range=pixel_range)


def small_discriminator(size=64, planes=1, labels=2, width=8, norm="group"):
    return Discriminator(size=size, planes=planes, labels=labels, width=width, norm=norm)


def test_published_dcgan_discriminator_has_2763520_weights_without_its_label_part():
    network = small_discriminator(width=64)
    assert network.parameter_counts() == (2_763_520, 2 * 512 * 4 * 4)


def test_without_norm_only_the_affine_weights_of_the_norms_are_gone():
    assert small_discriminator(width=64, norm="none").parameter_counts()[0] == 2_763_520 - 2 * (128 + 256 + 512)


def test_convolutions_carry_no_biases():
    for network in (small_generator(), small_discriminator()):
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert layers
        assert all(layer.bias is None for layer in layers)


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("planes", [1, 4])
def test_every_size_draws_and_judges_images_with_all_their_planes(size, planes):
    labels = torch.tensor([0, 2, 1])
    images = small_generator(size, planes, labels=3)(torch.randn(3, 6), labels)
    assert images.shape == (3, planes, size, size)
    assert small_discriminator(size, planes, labels=3)(images, labels).shape == (3,)


@pytest.mark.parametrize(("pixel_range", "low"), [("[-1,1]", -1.0), ("[0,1]", 0.0)])
def test_output_stays_in_the_pixel_range_and_fills_it(pixel_range, low):
    generator = small_generator(pixel_range=pixel_range)
    for parameter in generator.net[-2].parameters():
        parameter.data *= 1000
    images = generator(torch.randn(16, 6), torch.arange(16) % 2)
    assert images.min() >= low
    assert images.max() <= 1
    assert images.min() < low + 0.01
    assert images.max() > 0.99


def test_label_changes_what_is_drawn_and_how_it_is_judged():
    torch.manual_seed(0)
    z, zeros, ones = torch.randn(8, 6), torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)
    generator, discriminator = small_generator(), small_discriminator()
    assert (generator(z, zeros) - generator(z, ones)).abs().max() > 1e-4
    images = torch.randn(8, 1, 64, 64)
    assert (discriminator(images, zeros) - discriminator(images, ones)).abs().max() > 1e-4


@pytest.mark.parametrize("norm", ["none", "group"])
def test_one_patient_cannot_move_the_logit_of_another(norm):
    torch.manual_seed(0)
    network = small_discriminator(norm=norm)
    check_discriminator(network)
    images, labels = torch.randn(4, 1, 64, 64, requires_grad=True), torch.tensor([0, 1, 0, 1])
    (gradient,) = torch.autograd.grad(network(images, labels)[0], images)
    assert gradient[0].abs().max() > 0
    assert gradient[1:].abs().max() == 0


@pytest.mark.parametrize("width", [3, 8, 24, 33, 64])
def test_any_width_of_the_plan_builds_a_group_norm(width):
    small_discriminator(width=width)(torch.randn(1, 1, 64, 64), torch.tensor([0]))


def test_logits_are_not_squashed():
    network = small_discriminator()
    network.head.weight.data *= 1e6
    assert network(torch.randn(8, 1, 64, 64), torch.zeros(8, dtype=torch.long)).abs().max() > 1


def test_building_from_a_plan_is_repeatable_and_leaves_the_global_seed_alone():
    plan = parse_plan(PLAN)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, second = build_generator(plan.networks), build_generator(plan.networks)
    discriminator = build_discriminator(plan.networks)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    labels = torch.tensor([0, 1])
    images = first(torch.randn(2, 5), labels)
    assert images.shape == (2, 4, 32, 32)
    assert discriminator(images, labels).shape == (2,)


def test_seeds_give_different_weights():
    first = build_generator(parse_plan(PLAN).networks)
    other = build_generator(parse_plan("seed = 1\n" + PLAN).networks)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", REGISTRY)
def test_an_outline_has_the_generators_names_and_shapes_and_no_numbers(name: str) -> None:
    sizes = parse_plan(PLAN).networks
    sizes = replace(sizes, architecture=name, size=28 if name == "keras28" else sizes.size, planes=1)
    generator, outline = build_generator(sizes), outline_generator(sizes)
    assert [(n, v.shape) for n, v in outline.state_dict().items()] == [
        (n, v.shape) for n, v in generator.state_dict().items()
    ]
    assert {value.device.type for value in outline.state_dict().values()} == {"meta"}


def test_an_outline_does_not_import_torchs_compiler() -> None:
    code = (
        "import sys; from ghostnet.models import NetworkSizes; from ghostnet.models.outline import outline_generator\n"
        f"outline_generator({parse_plan(PLAN).networks!r})\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def test_masks_of_a_fresh_generator_are_background_and_a_bias_keeps_them_alive() -> None:
    torch.manual_seed(0)
    masked = Generator(size=28, planes=2, mask_planes=1, labels=2, latent=6, width=4, pixel_range="[-1,1]")
    drawn = masked(torch.randn(16, 6), torch.arange(16) % 2)
    assert drawn[:, 1].max() < -0.8
    assert drawn[:, 0].mean().abs() < 0.1
    off = masked.net[-1](masked.net[-2](torch.zeros(1, 4, 14, 14)))  # where every unit is off
    assert off[0, 1].max() < -0.9
    without = Generator(size=28, planes=1, labels=2, latent=6, width=4, pixel_range="[-1,1]")
    assert not any(name.endswith("bias") for name, _ in without.net[-2].named_parameters())  # the source's network
