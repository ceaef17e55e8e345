"""One patient more moves the sum by at most the clip norm, whatever the patient's images are."""

import pytest
import torch
from torch import Tensor, nn

from ghostnet.audit.sensitivity import ClippedSumStep, StepInput, check_sensitivity, random_neighbours, worst_ratio
from ghostnet.plan import Loss
from ghostnet.privacy.groups import Groups, outer_products
from ghostnet.privacy.mechanism import GradientEngine, PatientGradients, join_rows
from ghostnet.training.losses import discriminator_loss
from tests.privacy.networks import HEADS, CancellingDiscriminator, build_small

pytestmark = pytest.mark.usefixtures("one_thread")

TRIALS = {"non-saturating": 100, "hinge": 25, "wasserstein": 25}  # for each of the three clip norms


@pytest.mark.parametrize("engine", list(GradientEngine))
@pytest.mark.parametrize("loss", ["non-saturating", "hinge", "wasserstein"])
def test_one_extra_patient_moves_the_sum_by_at_most_clip_norm(loss: Loss, engine: GradientEngine) -> None:
    finding = check_sensitivity(step_of(build_small(), loss, engine), trials=TRIALS[loss], tolerance=1e-5)
    assert finding.passed, finding.detail
    assert finding.value > 0.999, f"clipping never bound, so the test could not fail: {finding.detail}"


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("physical_rows", [1000, 5])
def test_rows_that_cancel_under_huge_weights_take_nothing_from_what_others_add(head: str, physical_rows: int) -> None:
    step = step_of(CancellingDiscriminator(head), physical_rows=physical_rows)
    finding = check_sensitivity(step, trials=16, tolerance=1e-5)
    assert finding.passed, finding.detail
    assert finding.value > 0.999, f"clipping never bound, so the test could not fail: {finding.detail}"


def test_inputs_whose_squares_underflow_are_in_the_norm() -> None:
    for size in (1, 3):  # rows of a group
        x, g = torch.full((size, 400, 4), 1e-23), torch.full((size, 400, 4), 5e17)
        groups = Groups(ids=torch.zeros(size, dtype=torch.long), sizes=(size,))
        gradient = outer_products(x, g, groups)
        first = torch.eye(size)[0]
        true = float(gradient.weighted_sum(first).norm())
        assert float(gradient.squared_norm[0].sqrt()) >= true * (1 - 1e-6) > 1e-3


def step_of(
    network: nn.Module,
    loss: Loss = "non-saturating",
    engine: GradientEngine = GradientEngine.KERNELS,
    physical_rows: int = 1000,
) -> ClippedSumStep:
    """The product's step without noise."""
    gradients = PatientGradients(network, engine)

    def step(given: StepInput, clip_norm: float) -> Tensor:
        rows = join_rows(
            images=given.images,
            labels=given.labels,
            groups=given.groups,
            fakes=given.fakes[: given.fake_count],
            fake_labels=given.fake_labels[: given.fake_count],
        )
        parts = gradients.clipped_sum(rows, discriminator_loss(loss), clip_norm=clip_norm, physical_rows=physical_rows)
        return torch.cat([part.flatten() for part in parts.values()])

    return step


def test_the_neighbours_cover_the_cases_that_have_hidden_bugs() -> None:
    """Empty cohorts, single rows, several images, first and last places, huge and non-finite pixels, aligned fakes."""
    pairs = list(random_neighbours(200, shape=(1, 8, 8), classes=2, generator=torch.Generator().manual_seed(0)))
    extra = [len(p.with_patient.images) - len(p.without.images) for p in pairs]
    assert set(extra) == {1, 2, 3, 4}
    assert any(len(p.without.images) == 0 for p in pairs)
    assert any(not bool(p.with_patient.images.isfinite().all()) for p in pairs)
    assert any(float(p.with_patient.images.nan_to_num().abs().max()) > 1000 for p in pairs)
    assert any("a fake" in p.description for p in pairs)
    assert any("its negative" in p.description for p in pairs)
    first = [len(p.without.images) > 0 and torch.equal(p.with_patient.images[-1], p.without.images[-1]) for p in pairs]
    assert any(first)
    assert not all(first)
    assert len({float(p.without.fakes.sum()) for p in pairs}) == len(pairs), "the random trials are all the same one"


def test_a_sum_that_is_not_finite_is_the_worst_ratio() -> None:
    pairs = list(random_neighbours(3, shape=(1, 8, 8), classes=2, generator=torch.Generator().manual_seed(0)))
    assert worst_ratio(lambda given, clip_norm: torch.tensor([float("nan")]), pairs, 1.0)[0] == float("inf")
