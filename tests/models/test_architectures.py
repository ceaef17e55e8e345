"""Every architecture, at every size that it draws: counts, shapes, labels, rows kept apart, sampling."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.func import functional_call, grad, vmap

from ghostnet.audit.sensitivity import StepInput, check_sensitivity
from ghostnet.models import architecture as record_of
from ghostnet.models import build_discriminator, build_generator, keras28, stylegan
from ghostnet.models.dcgan import Discriminator
from ghostnet.privacy.layers import check_discriminator
from ghostnet.privacy.mechanism import PatientGradients, join_rows
from ghostnet.sampler.sampler import Sampler
from ghostnet.sampler.write import write_sampler
from ghostnet.training.losses import discriminator_loss
from tests.networks import ARCHITECTURES, SIZES, network_plan

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY_SIZE = [(architecture, size) for architecture in ARCHITECTURES for size in record_of(architecture).sizes]


def pair(architecture, **tables):
    plan = network_plan(architecture, **tables)
    return build_generator(plan.networks), build_discriminator(plan.networks), plan


def noise(rows: int, seed: int = 0):
    public = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=public), torch.arange(rows) % 2


@pytest.mark.parametrize("planes", [1, 3])
def test_the_keras_pair_has_the_weights_that_keras_counts(planes):
    generator = keras28.Generator(planes=planes, labels=2, latent=100, width=64, pixel_range="[-1,1]")
    discriminator = keras28.Discriminator(planes=planes, labels=2, width=64)
    more = planes - 1
    assert generator.parameter_counts() == (2_330_944 + more * 64 * 25, 2 * 12_544)
    assert discriminator.parameter_counts() == (212_865 + more * 64 * 25, 2 * 6_272)
    trainable = sum(p.numel() for p in generator.parameters()) - generator.parameter_counts()[1]
    assert trainable == 2_305_472 + more * 64 * 25  # Keras's "trainable params"


def test_keras_batch_norm_and_slope_are_keras_defaults():
    generator = keras28.Generator(planes=1, labels=2, latent=4, width=2, pixel_range="[-1,1]")
    norms = [m for m in generator.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert [(n.eps, n.momentum) for n in norms] == [(1e-3, 0.01)] * 3
    assert {m.negative_slope for m in generator.modules() if isinstance(m, torch.nn.LeakyReLU)} == {0.3}


def test_dcgan_of_128_pixels_is_that_of_64_with_one_wider_layer():
    small, large = (Discriminator(size=s, planes=1, labels=2, width=64, norm="none") for s in (64, 128))
    added = 512 * 1024 * 16 + (1024 - 512) * 16  # one convolution, and a wider head
    assert large.parameter_counts()[0] == small.parameter_counts()[0] + added


@pytest.mark.parametrize(("architecture", "size"), EVERY_SIZE)
def test_every_size_draws_and_judges_images_with_their_masks(architecture, size):
    generator, discriminator, _ = pair(architecture, image={"size": size, "channels": 3, "mask_channels": 1})
    z, labels = noise(3)
    images = generator(z, labels)
    assert images.shape == (3, 4, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (3,)
    assert all(maps.shape[0] == 3 and maps.dim() == 4 for maps in discriminator.feature_maps(images))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_other_pixel_range_ends_in_zero_to_one(architecture):
    generator, _, _ = pair(architecture, image={"range": "[0,1]", "size": SIZES[architecture]})
    images = generator(*noise(4))
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_label_changes_what_is_drawn_and_how_it_is_judged(architecture):
    generator, discriminator, plan = pair(architecture)
    generator.eval()
    z, _ = noise(6)
    zeros, ones = torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.long)
    drawn = generator(z, zeros)
    assert (drawn - generator(z, ones)).abs().max() > 1e-2 * drawn.std()
    images = torch.randn(6, 1, plan.image.size, plan.image.size)
    judged = discriminator(images, zeros)
    assert (judged - discriminator(images, ones)).abs().max() > 1e-2 * judged.std()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_discriminator_passes_the_check_and_no_row_moves_another(architecture):
    _, discriminator, plan = pair(architecture)
    check_discriminator(discriminator)
    images = torch.randn(3, 1, plan.image.size, plan.image.size)
    labels = torch.tensor([0, 1, 1])
    together = discriminator(images, labels)
    alone = torch.cat([discriminator(images[i : i + 1], labels[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
    images[1:] = 7.0
    assert torch.allclose(discriminator(images, labels)[0], together[0], atol=1e-5)


def example_rows(plan, *, seed=0):
    public = torch.Generator().manual_seed(seed)
    shape = (1, plan.image.size, plan.image.size)
    return join_rows(
        images=torch.randn(4, *shape, generator=public),
        labels=torch.tensor([0, 1, 1, 0]),
        groups=torch.tensor([0, 1, 1, 2]),
        fakes=torch.randn(3, *shape, generator=public),
        fake_labels=torch.tensor([0, 1, 0]),
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_per_patient_gradients_are_those_of_torch_func(architecture):
    _, discriminator, plan = pair(architecture)
    rows, row_loss = example_rows(plan), discriminator_loss(plan.training.loss)
    parameters = {name: p.detach() for name, p in discriminator.named_parameters()}

    def loss(parameters, image, label, real):
        return row_loss(functional_call(discriminator, parameters, (image[None], label[None])), real[None])[0]

    batch = (rows.images, rows.labels, rows.real)
    per_row = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, *batch)
    flat = torch.cat([g.flatten(1) for g in per_row.values()], dim=1).double()
    sizes = torch.bincount(rows.groups)
    means = torch.zeros(rows.group_count, flat.shape[1], dtype=torch.float64).index_add_(0, rows.groups, flat)
    means /= sizes[:, None]
    norms = means.norm(dim=1)
    clip_norm = float(norms.median())  # some are clipped and some are not
    expected = ((clip_norm / norms).clamp(max=1) @ means).float()
    found = PatientGradients(discriminator).clipped_sum(rows, row_loss, clip_norm=clip_norm, physical_rows=4)
    found = torch.cat([g.flatten() for g in found.values()]).float()
    assert torch.allclose(found, expected, atol=1e-5 * clip_norm)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_extra_patient_moves_the_sum_by_at_most_clip_norm(architecture):
    _, discriminator, plan = pair(architecture)
    gradients, row_loss = PatientGradients(discriminator), discriminator_loss(plan.training.loss)

    def step(given: StepInput, clip_norm: float) -> torch.Tensor:
        rows = join_rows(
            images=given.images,
            labels=given.labels,
            groups=given.groups,
            fakes=given.fakes[: given.fake_count],
            fake_labels=given.fake_labels[: given.fake_count],
        )
        parts = gradients.clipped_sum(rows, row_loss, clip_norm=clip_norm, physical_rows=1000)
        return torch.cat([part.flatten() for part in parts.values()])

    shape = (1, plan.image.size, plan.image.size)
    finding = check_sensitivity(step, trials=12, shape=shape, clip_norms=(0.01, 0.3), tolerance=1e-5)
    assert finding.passed, finding.detail
    assert finding.value > 0.999, f"clipping never bound, so the test could not fail: {finding.detail}"


def test_a_row_is_dropped_out_the_same_wherever_it_stands_and_otherwise_once_the_weights_moved():
    _, discriminator, _ = pair("keras28")
    images = torch.randn(5, 1, 28, 28)
    first = discriminator.feature_maps(images)[-1]
    swapped = discriminator.feature_maps(images.flip(0))[-1].flip(0)
    alone = discriminator.feature_maps(images[2:3])[-1]
    assert torch.equal(first == 0, swapped == 0)
    assert torch.equal(first[2:3] == 0, alone == 0)
    assert not torch.equal(first[0] == 0, first[1] == 0)
    assert 0.25 < float((first == 0).float().mean()) < 0.35
    discriminator.first.bias.data += 1e-4
    assert not torch.equal(discriminator.feature_maps(images)[-1] == 0, first == 0)
    discriminator.eval()
    assert float((discriminator.feature_maps(images)[-1] == 0).float().mean()) < 0.01


def test_stylegan_draws_an_image_from_its_z_alone_whatever_the_batch():
    generator, _, _ = pair("stylegan")
    for layer in generator.layers:
        layer.noise_strength.data.fill_(0.5)
    generator.eval()
    z, labels = noise(5)
    together = generator(z, labels)
    torch.manual_seed(9)
    alone = torch.cat([generator(z[i : i + 1], labels[i : i + 1]) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_stylegan_noise_is_standard_and_other_at_every_pixel_and_layer():
    generator, _, _ = pair("stylegan")
    z = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    waves = [stylegan.GAIN * (2 * torch.pi * generator.layers[i].noise(z)).cos()[:, :16] for i in (0, 1)]
    both = torch.cat(waves, dim=1)  # (4000, 32)
    assert both.mean(0).abs().max() < 0.08
    correlation = torch.corrcoef(both.T)
    assert (correlation - torch.eye(32)).abs().max() < 0.1
    assert (both.std(0) - 1).abs().max() < 0.05


def test_demodulation_is_that_of_each_images_own_weights():
    layer = stylegan.StyledLayer(6, 5, 7, 8, stream=0)
    x, style, z = torch.randn(3, 6, 8, 8), torch.randn(3, 7), torch.randn(3, 8)
    modulation, rows = layer.modulation(style), []
    for i in range(3):
        weight = layer.weight * modulation[i][None, :, None, None]
        weight = weight * (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
        rows.append(torch.nn.functional.conv2d(x[i : i + 1], weight, padding=1))
    expected = stylegan._activate(torch.cat(rows))
    assert torch.allclose(layer(x, style, z), expected, atol=1e-4)


def test_styles_are_mixed_in_training_alone_and_always_of_the_own_label():
    generator, _, _ = pair("stylegan")
    z = torch.randn(200, 8)
    labels = torch.arange(200) % 2
    first, last = generator.styles(z, labels)[0], generator.styles(z, labels)[-1]
    mixed = (first != last).any(dim=1)
    assert 0.35 < float(mixed.float().mean()) < 0.65
    assert torch.equal(last[mixed], generator._map(z.roll(1, 0), labels)[mixed])
    generator.eval()
    assert all(torch.equal(style, first) for style in generator.styles(z, labels))


def test_truncation_draws_the_sampler_towards_the_mean_of_each_class():
    generator, _, _ = pair("stylegan")
    z, labels = noise(64)
    for _ in range(800):
        generator.styles(z, labels)
    generator.eval()
    whole = generator.styles(z, labels)[0]
    generator.truncation = 0.5
    half = generator.styles(z, labels)[0]
    generator.truncation = 0.0
    mean = generator.styles(z, labels)[0]
    assert torch.allclose(half, (whole + mean) / 2, atol=1e-5)
    assert torch.allclose(mean[0], whole[labels == 0].mean(0), atol=0.05)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_published_sampler_draws_the_same_images_for_a_seed_and_others_for_another(architecture, tmp_path):
    generator, _, plan = pair(architecture)
    plan = dataclasses.replace(plan, model=dataclasses.replace(plan.model, truncation=1.0))
    write_sampler(tmp_path / "sampler", generator, plan)
    sampler = Sampler.load(tmp_path / "sampler")
    first = sampler.sample(5, seed=3)
    assert torch.equal(first, Sampler.load(tmp_path / "sampler").sample(5, seed=3))
    assert torch.allclose(sampler.draw(5, seed=3, batch_size=2).images, first, atol=1e-4)
    assert not torch.equal(sampler.sample(5, seed=4), first)
    direct = copy.deepcopy(generator).eval()
    assert torch.allclose(Sampler(direct, sampler.config).sample(5, seed=3), first, atol=1e-5)
