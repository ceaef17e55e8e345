"""Planted: layers that round by a row's place or by its neighbours; the self-test finds them, and sums stay exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from ghostnet.privacy import blocks
from ghostnet.privacy.mechanism import PatientGradients, join_rows, row_independent
from ghostnet.privacy.noise import grid_step
from ghostnet.training.losses import discriminator_loss
from tests.privacy.networks import SmallDiscriminator, build_small

pytestmark = pytest.mark.usefixtures("one_thread")

LAST_BIT = 2.0**-22  # relative: what one order of additions differs from another by, a few bits of float32


@pytest.fixture(autouse=True)
def fresh_self_tests() -> Iterator[None]:
    """Each test asks anew whether groups may share blocks."""
    blocks.forget()
    yield
    blocks.forget()


@row_independent
class RoundsByPlace(nn.Module):
    """Planted: a kernel whose order of additions depends on the row's place."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + LAST_BIT * torch.arange(len(x)).reshape(-1, *[1] * (x.dim() - 1)))


@row_independent
class RoundsByNeighbours(nn.Module):
    """Planted: a kernel whose order of additions depends on how many rows there are beside the row."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + LAST_BIT * x.detach().flatten(1).any(1).sum())


class _RoundedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return RoundsByPlace()(gradient)


@row_independent
class RoundsByPlaceInTheBackward(nn.Module):
    """Planted: the forward is right, the backward is not."""

    def forward(self, x: Tensor) -> Tensor:
        return _RoundedGradient.apply(x)


PLANTED = [RoundsByPlace, RoundsByNeighbours, RoundsByPlaceInTheBackward]


def planted(layer: type[nn.Module]) -> SmallDiscriminator:
    network = build_small()
    network.body.insert(0 if layer is RoundsByNeighbours else 5, layer())  # empty rows are zero at the input alone
    return network


def summed(
    network: nn.Module, images: Tensor, sizes: list[int], *, physical_rows: int = 128, sigma: float = 1.0
) -> Tensor:
    """The product's sum over patients of these sizes and two fakes, flat."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
    fakes = torch.linspace(-1, 1, 2 * images.shape[1:].numel()).reshape(2, *images.shape[1:])
    rows = join_rows(
        images=images,
        labels=torch.zeros(len(images), dtype=torch.int64),
        groups=groups,
        fakes=fakes,
        fake_labels=torch.zeros(2, dtype=torch.int64),
    )
    parts = PatientGradients(network).clipped_sum(
        rows,
        discriminator_loss("non-saturating"),
        clip_norm=1.0,
        physical_rows=physical_rows,
        grid_step=grid_step(sigma),
    )
    return torch.cat([part.flatten() for part in parts.values()])


def one_more(sum_of: Callable[[list[int]], Tensor], patients: int, place: int) -> tuple[float, int]:
    """(how far patient `place` moves the sum, numbers of it that are not what that patient adds alone).

    The sum over no patients, which is that of the fakes, is taken off from what the patient adds alone.
    """
    everyone = list(range(patients))
    moved = sum_of(everyone) - sum_of(everyone[:place] + everyone[place + 1 :])
    alone = sum_of([place]) - sum_of([])
    return float(moved.norm()), int((moved != alone).sum())


def small_step(network: nn.Module, patients: int = 9) -> Callable[[list[int]], Tensor]:
    images = torch.randn(patients, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return lambda some: summed(network, images[some], [1] * len(some))


@pytest.mark.parametrize("layer", PLANTED)
def test_the_self_test_finds_arithmetic_that_is_not_invariant_and_sums_stay_exact(layer: type[nn.Module]) -> None:
    network = planted(layer)
    moved, changed = one_more(small_step(network), 9, place=0)
    assert any("computed alone" in said for said in blocks.computed_alone())
    assert changed == 0
    assert 0 < moved <= 1


@pytest.mark.parametrize("layer", PLANTED)
def test_without_the_self_test_the_planted_arithmetic_changes_what_others_add(
    layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_copies_agree", lambda *_, **__: True)
    assert one_more(small_step(planted(layer)), 9, place=0)[1] > 0


def test_the_self_test_answers_yes_where_arithmetic_is_invariant() -> None:
    network = build_small()
    network.body.insert(5, nn.Identity())
    assert one_more(small_step(network), 9, place=0)[1] == 0
    assert blocks._PROVEN
    assert not blocks.computed_alone()


@pytest.mark.parametrize("layer", PLANTED)
def test_received_weights_cannot_blind_the_self_test_of_a_step(layer: type[nn.Module]) -> None:
    network = planted(layer)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    small_step(network)([0, 1])
    assert blocks.computed_alone()


@pytest.mark.parametrize("sigma", [0.05, 1.0, 37.0])
@pytest.mark.parametrize("alike", [True, False])
def test_a_patient_among_256_moves_the_sum_by_that_patients_part_alone(sigma: float, alike: bool) -> None:
    """Alike: all add the same, so that each number of the sum is as large as it can get."""
    network = build_small()
    images = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(6)) * 30
    if alike:
        images = images[:1].expand_as(images)
    for place in (0, 127, 255):
        moved, changed = one_more(
            lambda some: summed(network, images[some], [1] * len(some), sigma=sigma), 256, place=place
        )
        assert changed == 0
        assert 0.9 < moved <= 1
