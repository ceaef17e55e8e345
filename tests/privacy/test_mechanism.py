"""The private step: who is sampled, what is clipped, what is summed, what is noised."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ghostnet.errors import PlanError
from ghostnet.privacy.mechanism import (
    GradientEngine,
    PatientGradients,
    Rows,
    check_discriminator,
    choose_rows,
    join_rows,
    noised_sum,
    row_independent,
    sample_patients,
)
from ghostnet.training.losses import discriminator_loss
from tests.entropy import SeededEntropy
from tests.privacy.networks import SmallDiscriminator, build_small, example_rows

LOSS = discriminator_loss("non-saturating")
ENGINES = list(GradientEngine)


def patient_loop(discriminator: nn.Module, rows: Rows, clip_norm: float) -> dict[str, Tensor]:
    """The definition, one patient at a time with plain autograd in float64."""
    discriminator = discriminator.double()
    parameters = dict(discriminator.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for group in range(rows.group_count):
        mine = rows.groups == group
        loss = LOSS(discriminator(rows.images[mine].double(), rows.labels[mine]), rows.real[mine]).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient * min(1.0, clip_norm / norm)
    discriminator.float()
    return total


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten().double() for t in tensors.values()])


def clipped(
    discriminator: nn.Module,
    rows: Rows,
    engine: GradientEngine,
    *,
    clip_norm: float = 0.3,
    physical_rows: int = 1000,
) -> Tensor:
    gradients = PatientGradients(discriminator, engine)
    return flat(gradients.clipped_sum(rows, LOSS, clip_norm=clip_norm, physical_rows=physical_rows))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip_norm", [0.01, 0.3, 3.0, 1e6])
def test_the_sum_is_what_one_patient_at_a_time_gives(engine: GradientEngine, clip_norm: float) -> None:
    discriminator, rows = build_small(), example_rows([1, 3, 2, 4], fakes=5)
    found = clipped(discriminator, rows, engine, clip_norm=clip_norm)
    expected = flat(patient_loop(discriminator, rows, clip_norm))
    assert float((found - expected).detach().norm() / expected.detach().norm()) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_copies_of_an_image_change_nothing_because_rows_are_averaged_before_the_clip(engine: GradientEngine) -> None:
    discriminator, one = build_small(), example_rows([1], fakes=1, scale=30)
    many = join_rows(
        images=one.images[:1].repeat(4, 1, 1, 1),
        labels=one.labels[:1].repeat(4),
        groups=torch.zeros(4, dtype=torch.int64),
        fakes=one.images[1:],
        fake_labels=one.labels[1:],
    )
    for clip_norm in (0.01, 1e6):
        a, b = (clipped(discriminator, rows, engine, clip_norm=clip_norm) for rows in (one, many))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * clip_norm)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("physical_rows", [1, 3, 4, 7, 100])
def test_physical_batches_do_not_change_the_sum(engine: GradientEngine, physical_rows: int) -> None:
    discriminator, rows = build_small(), example_rows([1, 3, 2, 4, 1, 1], fakes=6)
    whole = clipped(discriminator, rows, engine)
    parts = clipped(discriminator, rows, engine, physical_rows=physical_rows)
    assert float((whole - parts).norm()) < 5e-6 * float(whole.norm())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_without_patients_is_the_fakes_alone_and_without_rows_is_zero(engine: GradientEngine) -> None:
    discriminator, rows = build_small(), example_rows([], fakes=4)
    expected = flat(patient_loop(discriminator, rows, 0.3))
    torch.testing.assert_close(clipped(discriminator, rows, engine), expected, rtol=1e-4, atol=1e-6)
    assert not clipped(discriminator, example_rows([], fakes=0), engine).any()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30, 3e38])
def test_a_patient_with_a_non_finite_gradient_counts_as_zero_and_alters_nobody_else(
    engine: GradientEngine, poison: float
) -> None:
    discriminator, rows = build_small(), example_rows([2, 3, 1], fakes=2)
    images = rows.images.clone()
    images[3, 0, 4, 4] = poison  # the second of three images of patient 1
    keep = rows.groups != 1
    without = Rows(
        images=rows.images[keep],
        labels=rows.labels[keep],
        groups=rows.groups[keep] - (rows.groups[keep] > 1).long(),
        real=rows.real[keep],
        group_count=rows.group_count - 1,
    )
    poisoned = Rows(images=images, labels=rows.labels, groups=rows.groups, real=rows.real, group_count=rows.group_count)
    found, expected = clipped(discriminator, poisoned, engine), clipped(discriminator, without, engine)
    assert found.isfinite().all()
    moved = float((found - expected).norm())
    if not math.isfinite(poison):
        assert moved < 1e-7 * float(expected.norm())
    assert moved <= 0.3 * (1 + 1e-5)  # a huge but finite image may have a finite gradient, which is clipped


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_on_the_discriminator_and_generator_steps_see_plain_gradients(engine: GradientEngine) -> None:
    discriminator, rows = build_small(), example_rows([2, 1], fakes=2)
    discriminator.eval()
    before = {name: set(vars(module)) for name, module in discriminator.named_modules()}
    gradients = PatientGradients(discriminator, engine)
    gradients.clipped_sum(rows, LOSS, clip_norm=1.0, physical_rows=2)
    assert {name: set(vars(module)) for name, module in discriminator.named_modules()} == before
    assert not any(m._forward_hooks or m._backward_hooks for m in discriminator.modules())
    assert not any(module.training for module in discriminator.modules())
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in discriminator.parameters())
    fakes = rows.images[-2:].clone().requires_grad_()
    discriminator(fakes, rows.labels[-2:]).sum().backward()
    assert fakes.grad is not None
    assert not any(hasattr(p, "grad_sample") for p in discriminator.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failing_loss_leaves_the_discriminator_clean_and_the_next_step_right(engine: GradientEngine) -> None:
    discriminator, rows = build_small(), example_rows([2, 1], fakes=2)
    expected = clipped(discriminator, rows, engine)

    def failing(logits: Tensor, real: Tensor) -> Tensor:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        PatientGradients(discriminator, engine).clipped_sum(rows, failing, clip_norm=0.3, physical_rows=9)
    assert torch.equal(clipped(discriminator, rows, engine), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parameters_are_left_out_of_sum_and_norm(engine: GradientEngine) -> None:
    discriminator, rows = build_small(), example_rows([2, 1], fakes=2)
    discriminator.label_head.requires_grad_(False)
    found = PatientGradients(discriminator, engine).clipped_sum(rows, LOSS, clip_norm=0.01, physical_rows=9)
    assert "label_head.weight" not in found
    assert float(flat(found).norm()) > 0


@row_independent
class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(64, 1), nn.Linear(64, 1)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.used(images.flatten(1))[:, 0]


@row_independent
class Folded(Unused):
    """Uses its second layer on another number of rows than it was given."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        constant = self.unused(torch.ones(1, 64))
        return self.used(images.flatten(1))[:, 0] + constant[:, 0]


@row_independent
class OneLogit(Unused):
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return (self.used(images.flatten(1)) + self.unused(images.flatten(1))).mean()[None]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", [Unused, Folded, OneLogit])
def test_a_parameter_without_one_gradient_a_row_is_refused(network: type[nn.Module], engine: GradientEngine) -> None:
    gradients = PatientGradients(network(), engine)
    with pytest.raises(PlanError, match="row"):
        gradients.clipped_sum(example_rows([2, 1], fakes=2), LOSS, clip_norm=1.0, physical_rows=9)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_compares_rows_cannot_reach_across_them(engine: GradientEngine) -> None:
    def relativistic(logits: Tensor, real: Tensor) -> Tensor:
        return nn.functional.softplus(logits.mean() - logits) + 0 * real

    def selecting(logits: Tensor, real: Tensor) -> Tensor:
        return logits - logits[real].mean()

    gradients, rows = PatientGradients(build_small(), engine), example_rows([2, 1], fakes=2)
    assert not flat(gradients.clipped_sum(rows, relativistic, clip_norm=1.0, physical_rows=9)).any()
    with pytest.raises(RuntimeError, match="vmap"):
        gradients.clipped_sum(rows, selecting, clip_norm=1.0, physical_rows=9)


class MinibatchStandardDeviation(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, images.std(0, keepdim=True).expand_as(images)], 1)


class DerivedConv(nn.Conv2d):
    """A subclass may do anything in its forward."""


def _hooked() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda module, args, output: output - output.mean(0))
    return layer


def _patched() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: x - x.mean(0)  # type: ignore[method-assign]
    return layer


def _tied() -> nn.Module:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    return nn.Sequential(a, b)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), "batch normalisation"),
    "frozen BatchNorm2d": (lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False), "batch normalisation"),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(4), "batch normalisation"),
    "InstanceNorm2d with running statistics": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        "statistics",
    ),
    "minibatch standard deviation": (MinibatchStandardDeviation, "not known"),
    "a subclass of a listed layer": (lambda: DerivedConv(1, 1, 3), "not known"),
    "a subclass of a declared module": (lambda: type("Derived", (SmallDiscriminator,), {})(), "not known"),
    "Dropout": (lambda: nn.Dropout(0.3), "mask depends"),
    "LSTM": (lambda: nn.LSTM(2, 2), "not known"),
    "circular padding": (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "padding_mode"),
    "Flatten of the rows": (lambda: nn.Flatten(0), "rows"),
    "Embedding scaled by frequency": (lambda: nn.Embedding(3, 2, scale_grad_by_freq=True), "how often"),
    "Embedding with max_norm": (lambda: nn.Embedding(3, 2, max_norm=1.0), "max_norm"),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), "not known"),
    "old weight norm": (lambda: torch.nn.utils.spectral_norm(nn.Linear(2, 2)), "hook"),
    "a forward hook": (_hooked, "hook"),
    "a replaced forward": (_patched, "replaced"),
    "an activation in place": (lambda: nn.LeakyReLU(0.2, inplace=True), "overwrites"),
    "tied weights": (_tied, "two layers"),
    "half precision": (lambda: nn.Linear(2, 2).half(), "float32"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_layer_that_couples_patients_is_refused_with_the_reason(name: str) -> None:
    build, reason = REFUSED[name]
    with pytest.raises(PlanError, match=reason):
        check_discriminator(nn.Sequential(nn.Conv2d(1, 4, 3), build()))


def test_layers_that_keep_rows_apart_are_taken() -> None:
    check_discriminator(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3, groups=1, dilation=2), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)),
            *(nn.LayerNorm(5), nn.Flatten(), nn.Linear(3, 3), nn.Embedding(3, 3), nn.LeakyReLU(), nn.AvgPool2d(2)),
        )
    )
    check_discriminator(build_small())


def test_a_layer_added_after_construction_is_refused_at_the_next_step() -> None:
    discriminator = build_small()
    gradients = PatientGradients(discriminator)
    discriminator.body.insert(1, nn.BatchNorm2d(4))
    with pytest.raises(PlanError, match="batch normalisation"):
        gradients.clipped_sum(example_rows([1], fakes=1), LOSS, clip_norm=1.0, physical_rows=9)


@pytest.mark.parametrize(
    ("groups", "real", "count"),
    [([0, 2], [1, 0], 3), ([1, 0], [1, 1], 2), ([0, 0], [1, 0], 1), ([0, 1], [1, 0], 3), ([-1, 0], [1, 0], 1)],
)
def test_rows_with_broken_groups_are_refused(groups: list[int], real: list[int], count: int) -> None:
    with pytest.raises(ValueError, match="group"):
        Rows(
            images=torch.zeros(2, 1, 8, 8),
            labels=torch.zeros(2, dtype=torch.int64),
            groups=torch.tensor(groups),
            real=torch.tensor(real, dtype=torch.bool),
            group_count=count,
        )


def test_views_of_a_fake_are_one_group() -> None:
    rows = join_rows(
        images=torch.zeros(3, 1, 8, 8),
        labels=torch.zeros(3, dtype=torch.int64),
        groups=torch.tensor([0, 0, 1]),
        fakes=torch.ones(4, 1, 8, 8),
        fake_labels=torch.ones(4, dtype=torch.int64),
        views=2,
    )
    assert rows.groups.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert rows.group_count == 4
    assert rows.real.tolist() == [True] * 3 + [False] * 4


def test_each_patient_is_drawn_with_the_sampling_rate_and_independently() -> None:
    """Counts over 2,000 draws of 50 patients; every bound is 5 standard deviations, so a false alarm is < 1e-4."""
    entropy, patients, rate, draws = SeededEntropy(1), 50, 0.1, 2000
    drawn = np.zeros((draws, patients))
    for i in range(draws):
        drawn[i, sample_patients(patients, rate, entropy).numpy()] = 1
    deviation = math.sqrt(draws * rate * (1 - rate))
    assert np.abs(drawn.sum(0) - draws * rate).max() < 5 * deviation
    sizes = drawn.sum(1)
    variance = patients * rate * (1 - rate)
    assert abs(sizes.var() / variance - 1) < 5 * math.sqrt(2.3 / draws)
    together = (drawn[:-1] * drawn[1:]).mean()
    assert abs(together - rate**2) < 5 * rate / math.sqrt(drawn[1:].size)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan, math.inf])
def test_a_sampling_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(PlanError, match="sampling_rate"):
        sample_patients(10, rate, SeededEntropy(0))


def test_everybody_and_nobody_are_possible_samples() -> None:
    assert sample_patients(5, 1.0, SeededEntropy(0)).tolist() == [0, 1, 2, 3, 4]
    assert sample_patients(0, 0.5, SeededEntropy(0)).tolist() == []


def test_rows_are_at_most_m_of_each_sampled_patient_without_repeats_and_uniform() -> None:
    owners = torch.tensor([3, 0, 1, 3, 3, 0, 2, 3])
    counts = np.zeros(8)
    for seed in range(600):
        rows, groups = choose_rows(owners, torch.tensor([0, 3, 4]), 2, SeededEntropy(seed))
        assert groups.tolist() == [0, 0, 1, 1]  # patient 4 has no image, so no group
        assert [int(o) for o in owners[rows]] == [0, 0, 3, 3]
        assert len(set(rows.tolist())) == 4
        counts[rows.numpy()] += 1
    assert np.abs(counts[[0, 3, 4, 7]] - 300).max() < 5 * math.sqrt(600 / 4)  # 5 standard deviations
    assert counts[[2, 6]].sum() == 0


def test_no_sampled_patient_gives_no_rows() -> None:
    rows, groups = choose_rows(torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), 3, SeededEntropy(0))
    assert rows.tolist() == groups.tolist() == []


def test_noise_has_the_claimed_size_and_is_fresh_at_every_step_and_tensor() -> None:
    """Standard deviation within 5 standard errors, correlations below 5; fixed seed."""
    entropy, zero = SeededEntropy(3), {"a": torch.zeros(200, 50), "b": torch.zeros(200, 50)}
    first, second = (noised_sum(zero, clip_norm=0.5, noise_multiplier=3.0, entropy=entropy) for _ in range(2))
    draws = [first["a"], first["b"], second["a"], second["b"]]
    n = draws[0].numel()
    for draw in draws:
        assert draw.dtype == torch.float32
        assert abs(float(draw.std()) / 1.5 - 1) < 5 / math.sqrt(2 * n)
    for i in range(4):
        for j in range(i):
            assert abs(float((draws[i] * draws[j]).mean())) < 5 * 1.5**2 / math.sqrt(n)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["clip_norm", "noise_multiplier"])
def test_a_step_without_finite_positive_noise_is_refused(name: str, value: float) -> None:
    arguments = {"clip_norm": 1.0, "noise_multiplier": 1.0, name: value}
    with pytest.raises(PlanError, match=name):
        noised_sum({"a": torch.zeros(3)}, entropy=SeededEntropy(0), **arguments)
