"""Clipped per-patient gradients of a loss that holds a penalty on the discriminator's gradient at the image.

The gradient of such a loss is a second derivative, which neither book-keeping (kernels.py) nor Opacus's hooks have.
Here each row's gradient is computed by itself (torch.func: vmap of grad of grad), a block of rows at a time: right, and
several times slower. Penalties at fakes alone do not need it (`losses.fakes_penalty`).
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from ghostnet.privacy.blocks import MIN_ROWS, block_rows
from ghostnet.privacy.groups import ParameterGradient, Scratch, kept
from ghostnet.privacy.layers import check_discriminator
from ghostnet.privacy.mechanism import RowLoss, Rows, check_step, sum_clipped

_GRADIENT_NUMBERS = 1 << 26  # numbers of rows' gradients in memory at once, where blocks can be that small: 256 MiB


class PenalisedGradients:
    """Sums of clipped per-patient gradients, each row's loss with a penalty at that row's own image.

    Used in place of `mechanism.PatientGradients`. The penalty of a row reads that row's image and the weights, never
    another row: no interpolation between a patient and a fake, whose choice would have to be private too.

    Args:
        discriminator: is checked; see `check_discriminator` for what is refused.
        penalty: which one.
        weight: of the penalty in a row's loss.
    """

    def __init__(self, discriminator: nn.Module, *, penalty: InputPenalty, weight: float) -> None:
        check_discriminator(discriminator)
        self._discriminator, self._penalty, self._weight = discriminator, penalty, weight
        self._scratch = Scratch()

    def clipped_sum(
        self, rows: Rows, row_loss: RowLoss, *, clip_norm: float, physical_rows: int, grid_step: float = 0.0
    ) -> dict[str, Tensor]:
        """Sum over groups of the group's mean gradient, clipped to `clip_norm` in L2 over all parameters.

        Args:
            rows: the rows of the step; none is fine, and gives zeros.
            row_loss: loss of each row, to be minimised; the penalty is added here.
            clip_norm: C > 0.
            physical_rows: as in `PatientGradients.clipped_sum`; for large networks fewer, but never less than 8.
            grid_step: as there.

        Returns:
            As there.

        Raises:
            PlanError: the discriminator cannot be trained privately, or a number is out of range.

        Guarantee:
            As `PatientGradients.clipped_sum`.
        """
        check_step(self._discriminator, clip_norm=clip_norm, physical_rows=physical_rows)
        numbers = sum(p.numel() for p in self._discriminator.parameters() if p.requires_grad)
        most = min(physical_rows, max(MIN_ROWS, _GRADIENT_NUMBERS // max(1, numbers)))

        def gradients(discriminator: nn.Module, block: Rows, scratch: Scratch) -> dict[str, ParameterGradient]:
            return self._gradients(discriminator, block, row_loss, scratch)

        return sum_clipped(
            self._discriminator,
            rows,
            gradients,
            clip_norm=clip_norm,
            block=block_rows(most),
            grid_step=grid_step,
            kind=self._penalty,
            scratch=self._scratch,
        )

    def _gradients(
        self, discriminator: nn.Module, rows: Rows, row_loss: RowLoss, scratch: Scratch
    ) -> dict[str, ParameterGradient]:
        """Gradient of each row's own loss over the rows of its group, by group."""
        parameters = {n: p.detach() for n, p in discriminator.named_parameters() if p.requires_grad}
        groups = rows.grouped(scratch)

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor, real: Tensor, share: Tensor) -> Tensor:
            def logit(at: Tensor) -> Tensor:
                out: Tensor = functional_call(discriminator, parameters, (at[None], label[None]))
                return out.reshape(())

            at_image, value = grad_and_value(logit)(image)
            own: Tensor = row_loss(value[None], real[None])[0]
            return share * (own + self._weight * self._penalty.of(at_image.square().sum()))

        batch = (rows.images, rows.labels, rows.real, 1 / rows.sizes()[rows.groups].float())
        found: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, *batch)
        return {name: kept(gradient.detach(), groups) for name, gradient in found.items()}


class InputPenalty(Enum):
    """A penalty on the discriminator's gradient at an image, one value a row."""

    LIPSCHITZ = "lipschitz"  # (|grad| - 1)^2, Gulrajani et al. 2017 (WGAN-GP)
    R1 = "r1"  # |grad|^2 / 2, Mescheder et al. 2018

    def of(self, squared_norm: torch.Tensor) -> torch.Tensor:
        """Squared norms of gradients, any shape -> penalties, the same shape."""
        if self is InputPenalty.R1:
            return squared_norm / 2
        return ((squared_norm + 1e-12).sqrt() - 1).square()  # the root has no slope at 0
