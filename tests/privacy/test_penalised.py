"""Per-patient gradient penalties: right, inside the clip, and of one patient alone."""

from __future__ import annotations

import pytest
import torch

from ghostnet.audit.sensitivity import StepInput, check_sensitivity
from ghostnet.errors import PlanError
from ghostnet.models import build_discriminator
from ghostnet.privacy.mechanism import PatientGradients, join_rows
from ghostnet.privacy.penalised import InputPenalty, PenalisedGradients
from ghostnet.training.losses import discriminator_loss
from tests.networks import network_plan
from tests.privacy.networks import build_small, example_rows

pytestmark = pytest.mark.usefixtures("one_thread")

LOSS = discriminator_loss("wasserstein")
CASES = [("wgan-gp", InputPenalty.LIPSCHITZ), ("stylegan", InputPenalty.R1)]


def flat(parts) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts.values()])


@pytest.mark.parametrize(("architecture", "penalty"), CASES)
def test_one_extra_patient_moves_the_sum_by_at_most_clip_norm(architecture, penalty):
    plan = network_plan(architecture)
    gradients = PenalisedGradients(build_discriminator(plan.networks), penalty=penalty, weight=10.0)

    def step(given: StepInput, clip_norm: float) -> torch.Tensor:
        rows = join_rows(
            images=given.images,
            labels=given.labels,
            groups=given.groups,
            fakes=given.fakes[: given.fake_count],
            fake_labels=given.fake_labels[: given.fake_count],
        )
        return flat(gradients.clipped_sum(rows, LOSS, clip_norm=clip_norm, physical_rows=1000))

    shape = (1, plan.image.size, plan.image.size)
    finding = check_sensitivity(step, trials=11, shape=shape, clip_norms=(0.3,), tolerance=1e-5)
    assert finding.passed, finding.detail
    assert finding.value > 0.999, f"clipping never bound, so the test could not fail: {finding.detail}"


@pytest.mark.parametrize("penalty", list(InputPenalty))
@pytest.mark.parametrize("physical_rows", [1, 3, 100])
def test_the_sum_is_that_of_clipped_gradients_taken_patient_by_patient(penalty, physical_rows):
    network, rows, weight, clip_norm = build_small(), example_rows([2, 1, 3], 2), 4.0, 0.7
    expected = torch.zeros(sum(p.numel() for p in network.parameters()), dtype=torch.float64)
    for group in range(rows.group_count):
        own = rows.groups == group
        images = rows.images[own].clone().requires_grad_()
        logits = network(images, rows.labels[own])
        (at_image,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        squared = at_image.flatten(1).square().sum(1)
        extra = squared / 2 if penalty is InputPenalty.R1 else (squared.sqrt() - 1).square()
        loss = (LOSS(logits, rows.real[own]) + weight * extra).mean()
        found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        gradient = torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(network.parameters(), found)]  # noqa: B905
        ).double()
        expected += gradient * min(1.0, clip_norm / float(gradient.norm()))
    engine = PenalisedGradients(network, penalty=penalty, weight=weight)
    found_sum = flat(engine.clipped_sum(rows, LOSS, clip_norm=clip_norm, physical_rows=physical_rows))
    assert torch.allclose(found_sum, expected, atol=1e-5)


def test_without_weight_it_is_the_plain_clipped_sum():
    network, rows = build_small(), example_rows([2, 1], 2)
    plain = PatientGradients(network).clipped_sum(rows, LOSS, clip_norm=0.5, physical_rows=100)
    penalised = PenalisedGradients(network, penalty=InputPenalty.R1, weight=0.0)
    found = penalised.clipped_sum(rows, LOSS, clip_norm=0.5, physical_rows=100)
    assert torch.allclose(flat(found), flat(plain), atol=1e-5)
    assert found.keys() == plain.keys()


def test_a_patient_that_is_not_finite_counts_as_zero_and_no_rows_give_zeros():
    network, rows = build_small(), example_rows([1, 2], 1)
    engine = PenalisedGradients(network, penalty=InputPenalty.R1, weight=1.0)
    rows.images[1, 0, 0, 0] = float("nan")
    assert bool(flat(engine.clipped_sum(rows, LOSS, clip_norm=1.0, physical_rows=100)).isfinite().all())
    nothing = engine.clipped_sum(example_rows([], 0), LOSS, clip_norm=1.0, physical_rows=100)
    assert flat(nothing).abs().max() == 0


def test_a_network_that_couples_rows_is_refused():
    network = build_small()
    network.body[3] = torch.nn.BatchNorm2d(8)
    with pytest.raises(PlanError, match="batch normalisation"):
        PenalisedGradients(network, penalty=InputPenalty.R1, weight=1.0)
