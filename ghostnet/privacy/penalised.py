"""Clipped per-patient gradients of a loss that holds a penalty on the discriminator's gradient at the image.

The gradient of such a loss is a second derivative, which neither book-keeping (kernels.py) nor Opacus's hooks have.
Here each row's gradient is computed by itself (torch.func: vmap of grad of grad) and kept until it is clipped: right,
and several times slower. Penalties at fakes alone do not need it (`losses.fakes_penalty`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vmap

from ghostnet.losses import InputPenalty
from ghostnet.privacy.layers import check_discriminator
from ghostnet.privacy.mechanism import RowLoss, Rows, check_step, clip_factors, whole_groups

_GRADIENT_NUMBERS = 1 << 27  # numbers of rows' gradients in memory at once: 512 MiB


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

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, *, clip_norm: float, physical_rows: int) -> dict[str, Tensor]:
        """Sum over groups of the group's mean gradient, clipped to `clip_norm` in L2 over all parameters.

        Args:
            rows: the rows of the step; none is fine, and gives zeros.
            row_loss: loss of each row, to be minimised; the penalty is added here.
            clip_norm: C > 0.
            physical_rows: at most this many rows in memory at once (fewer for large networks); changes no result. A
                single group with more rows is still computed in one piece.

        Returns:
            float64 tensors by parameter name, for every parameter that requires a gradient. SENSITIVE until noised.

        Raises:
            PlanError: the discriminator cannot be trained privately, or a number is out of range.

        Guarantee:
            Unit: patient, add/remove one with all rows. Sensitivity: clip_norm. A group whose gradient is not finite
            counts as zero. Assumes: the fakes are chosen without looking at the reals. Not covered: rounding of the
            float32 arithmetic, measured below 1e-5 of clip_norm.
        """
        check_step(self._discriminator, clip_norm=clip_norm, physical_rows=physical_rows)
        parameters = {n: p.detach() for n, p in self._discriminator.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
        most = max(1, min(physical_rows, _GRADIENT_NUMBERS // max(1, sum(p.numel() for p in parameters.values()))))
        sizes = torch.bincount(rows.groups, minlength=rows.group_count)
        for chosen, groups in whole_groups(sizes.tolist(), most):
            per_row = self._row_gradients(parameters, rows, chosen, row_loss)
            owners = rows.groups[chosen] - groups.start
            means = {
                name: g.new_zeros(groups.stop - groups.start, *g.shape[1:]).index_add_(0, owners, g)
                / sizes[groups].reshape(-1, *[1] * (g.dim() - 1))
                for name, g in per_row.items()
            }
            norms = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in means.values()]
            norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # (groups,)
            factors, finite = clip_factors(norm, clip_norm)
            for name, mean in means.items():
                mean[~finite] = 0.0  # 0 * NaN is NaN
                total[name] += (factors @ mean.flatten(1).double()).reshape(mean.shape[1:])
        return total

    def _row_gradients(
        self, parameters: dict[str, Tensor], rows: Rows, chosen: slice, row_loss: RowLoss
    ) -> dict[str, Tensor]:
        """Gradient of each row's own loss, (r, *parameter) by name."""

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor, real: Tensor) -> Tensor:
            def logit(at: Tensor) -> Tensor:
                out: Tensor = functional_call(self._discriminator, parameters, (at[None], label[None]))
                return out.reshape(())

            at_image, value = grad_and_value(logit)(image)
            own: Tensor = row_loss(value[None], real[None])[0]
            return own + self._weight * self._penalty.of(at_image.square().sum())

        batch = (rows.images[chosen].detach(), rows.labels[chosen], rows.real[chosen])
        found: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, *batch)
        return {name: gradient.detach() for name, gradient in found.items()}
