"""Adversarial losses: per row, the right way round."""

from typing import get_args

import pytest
import torch
from torch.func import vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from ghostnet.plan import Loss
from ghostnet.training.losses import discriminator_loss, generator_loss

KINDS = get_args(Loss)


@pytest.mark.parametrize("kind", KINDS)
def test_discriminator_is_pushed_up_on_reals_and_down_on_fakes(kind):
    logits = torch.zeros(2, requires_grad=True)
    discriminator_loss(kind)(logits, torch.tensor([True, False])).sum().backward()
    assert logits.grad[0] < 0 < logits.grad[1]


@pytest.mark.parametrize("kind", KINDS)
def test_generator_is_pushed_to_raise_its_logits(kind):
    logits = torch.tensor([-2.0, 3.0], requires_grad=True)
    loss = generator_loss(kind)(logits)
    loss.backward()
    assert loss.shape == ()
    assert bool((logits.grad < 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_no_row_of_the_discriminator_loss_depends_on_another_row(kind):
    logits, real = torch.randn(6), torch.tensor([True, False, True, False, True, False])
    rows = discriminator_loss(kind)(logits, real)
    alone = vmap(lambda a, b: discriminator_loss(kind)(a[None], b[None])[0])(logits, real)
    assert rows.shape == (6,)
    assert torch.allclose(rows, alone)


def test_non_saturating_discriminator_loss_is_binary_cross_entropy():
    logits, real = torch.randn(50) * 5, torch.arange(50) % 3 == 0
    expected = binary_cross_entropy_with_logits(logits, real.float(), reduction="none")
    assert torch.allclose(discriminator_loss("non-saturating")(logits, real), expected, atol=1e-6)


def test_hinge_loss_forgets_rows_beyond_the_margin():
    rows = discriminator_loss("hinge")(torch.tensor([2.0, -2.0, 0.5]), torch.tensor([True, False, True]))
    assert torch.equal(rows, torch.tensor([0.0, 0.0, 0.5]))


def test_large_logits_stay_finite():
    rows = discriminator_loss("non-saturating")(torch.tensor([1e4, -1e4]), torch.tensor([False, True]))
    assert torch.isfinite(rows).all()
