"""Finite weights and images whose products leave float32, or cancel in it: one patient still moves a sum by at most C.

Each was an attack that worked: the norm was taken of other numbers than those that were added.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ghostnet.privacy import groups as grouping
from ghostnet.privacy.mechanism import PatientGradients, join_rows, noised_sum, row_independent
from ghostnet.privacy.noise import SystemEntropy, grid_step
from ghostnet.privacy.releases import _in_steps
from ghostnet.training.losses import discriminator_loss

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, POSITIONS = 40, 24


@row_independent
class Product(nn.Module):
    """The coordinator chooses the gradient at the output of `layer` (`reader`), the patient its input; logits are 0.

    The gradient of `layer` is half their product, that of `reader` is 0.
    """

    def __init__(self, at_output: Tensor) -> None:
        super().__init__()
        self.layer = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.reader = nn.Conv2d(WIDTH, 1, tuple(at_output.shape[1:]), bias=False)
        with torch.no_grad():
            self.layer.weight.zero_()
            self.reader.weight.copy_(at_output[None])

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.reader(self.layer(images)).flatten()


def moved(at_output: Tensor, patient: Tensor, *, rows: int = 1, noised: bool = False) -> float:
    """How far the patient moves the sum over three others and a fake, in clip norms.

    Args:
        at_output: (WIDTH, h, w), twice the gradient at the layer's output.
        patient: (WIDTH, h, w).
        rows: images of the patient, all alike.
        noised: whether the sum is released too, which refuses what is not finite.
    """
    others = torch.randn(3, *patient.shape, generator=torch.Generator().manual_seed(5)) * 1e-30
    engine, step = PatientGradients(Product(at_output)), grid_step(1.0)

    def summed(images: Tensor, groups: list[int]) -> Tensor:
        batch = join_rows(
            images=images,
            labels=torch.zeros(len(images), dtype=torch.int64),
            groups=torch.tensor(groups),
            fakes=torch.zeros(1, *patient.shape),
            fake_labels=torch.zeros(1, dtype=torch.int64),
        )
        found = engine.clipped_sum(
            batch, discriminator_loss("non-saturating"), clip_norm=1.0, physical_rows=16, grid_step=step
        )
        if noised:
            noised_sum(found, clip_norm=1.0, noise_multiplier=1.0, entropy=SystemEntropy())
        return torch.cat([part.flatten() for part in found.values()])

    with_patient = torch.cat([others, patient.expand(rows, *patient.shape)])
    return float((summed(with_patient, [0, 1, 2, *[3] * rows]) - summed(others, [0, 1, 2])).norm())


@pytest.fixture(params=["kept", "formed twice", "norms by Gram matrices"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a layer's gradients are computed; large layers take the last two."""
    monkeypatch.setattr(grouping, "KEPT_NUMBERS", 1 << 20 if request.param == "kept" else 0)
    monkeypatch.setattr(grouping, "_gram_is_cheaper", lambda *_: request.param == "norms by Gram matrices")
    return str(request.param)


def random(places: int, seed: int) -> Tensor:
    """Numbers (WIDTH, places, 1) about 1 in size."""
    return torch.randn(WIDTH, places, 1, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.usefixtures("way")
def test_factors_too_small_for_float32_never_make_a_gradient_longer_than_clip_norm(rows: int) -> None:
    """Norms of 1e45 to 1e54: with factors of few bits a patient once moved the sum by 1.7 C."""
    for tenths in range(440, 530, 2):
        scale = 10.0 ** (tenths / 20)
        assert moved(random(1, 1) * scale, random(1, tenths) * scale, rows=rows) <= 1, f"scale {scale:g}"


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("exponent", [30, 33, 35, 37])
@pytest.mark.usefixtures("way")
def test_gradients_near_the_end_of_float32_leave_the_sum_finite(exponent: int, rows: int) -> None:
    """Short products of huge and tiny numbers: scaling the huge ones alone overflowed, which stopped the step."""
    patient = random(1, 2) * 10.0 ** (1 - exponent)
    patient[0] = 0  # 0 * infinity
    assert 0.9 < moved(random(1, 1) * 10.0**exponent, patient, rows=rows, noised=True) <= 1


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("log2", [0, 12, 24])
@pytest.mark.usefixtures("way")
def test_positions_that_cancel_to_nothing_cancel_in_what_is_added_too(log2: int, rows: int) -> None:
    """Products that cancel to the bit, until a factor rounds each of them otherwise: once 2.4 C."""
    public = torch.Generator().manual_seed(3)
    for _ in range(20):
        one, other = torch.randint(1000, 4000, (2, POSITIONS // 2), generator=public).float()
        shape = (WIDTH, POSITIONS, 1)
        x, g = (torch.randint(-3, 4, (WIDTH, 1), generator=public).float() for _ in range(2))
        patient, at_output = torch.zeros(shape), torch.zeros(shape)
        patient[:, 0::2, 0], at_output[:, 0::2, 0] = x * one, g * other
        patient[:, 1::2, 0], at_output[:, 1::2, 0] = x * other, -g * one
        patient[:, -2:, 0] = torch.randn(WIDTH, 2, generator=public) / WIDTH  # what is left, about C long
        assert moved(at_output, patient * 2.0**log2, rows=rows) <= 1


def test_a_row_of_a_release_does_not_depend_on_whether_another_overflows() -> None:
    row = torch.tensor([[1e152, 1e150]], dtype=torch.float64)
    for other in (torch.tensor([[1e200, 1.0]]).double(), torch.tensor([[float("nan"), 1.0]]).double()):
        assert torch.equal(_in_steps(torch.cat([row, other]), 1.0, 2.0**-20)[:1], _in_steps(row, 1.0, 2.0**-20))
