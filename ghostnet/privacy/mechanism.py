"""The private step: sample patients, bound what each one can add to a sum, add noise once.

The functions are used in this order by `ghostnet.training`, which never sees a patient's gradient:

    S <- sample_patients        each patient independently with probability q
    rows <- choose_rows         at most m images of each
    g <- clipped_sum            sum_p clip(mean over p's rows of grad loss(D, row), C) + the same for each fake
    g <- noised_sum             g + N(0, (sigma C)^2), one draw

Method: Abadi et al. 2016 (arXiv:1607.00133) with the patient as the unit, as in McMahan et al. 2018 (arXiv:1710.06963).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn
from torch.func import vmap

from ghostnet.errors import PlanError
from ghostnet.privacy.bookkeeping import Forward, group_gradients
from ghostnet.privacy.groups import Groups
from ghostnet.privacy.layers import check_discriminator, row_independent
from ghostnet.privacy.noise import Entropy, add_gaussian, check_grid
from ghostnet.privacy.sampling import choose_rows, sample_patients

__all__ = [
    "GradientEngine",
    "PatientGradients",
    "RowLoss",
    "Rows",
    "check_discriminator",
    "check_step",
    "choose_rows",
    "clip_factors",
    "join_rows",
    "noised_sum",
    "row_independent",
    "sample_patients",
    "whole_groups",
]

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (r,), real (r,) bool) -> losses (r,). Called one row at a time, so it cannot couple rows."""


class GradientEngine(Enum):
    """How per-patient gradients are computed; every choice gives the same sums up to rounding."""

    KERNELS = "kernels"  # norms by book-keeping, then one weighted gradient (bookkeeping.py)
    OPACUS_HOOKS = "opacus-hooks"  # Opacus's per-sample gradients, kept in memory


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of one step: sampled patients' images and fakes, for ONE forward pass.

    A group is a patient or a fake. It is what gets clipped; its rows are averaged before. SENSITIVE.

    Attributes:
        images: (r, c, h, w).
        labels: int64 (r,).
        groups: int64 (r,), ids 0..group_count-1 in ascending order, none left out.
        real: bool (r,), the same for all rows of a group.
        group_count: number of patients and fakes.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor
    real: Tensor
    group_count: int

    def __post_init__(self) -> None:
        r = len(self.images)
        if not self.labels.shape == self.groups.shape == self.real.shape == (r,):
            raise ValueError(f"rows need {r} labels, groups and real flags, one for each image")
        steps = torch.diff(self.groups, prepend=self.groups.new_tensor([-1]))
        ascending = bool(((steps == 0) | (steps == 1)).all()) and (r == 0 or int(steps[0]) == 1)
        if not ascending or self.group_count != (int(self.groups[-1]) + 1 if r else 0):
            raise ValueError(f"groups must be 0..{self.group_count - 1} in ascending order with no id left out")
        if bool(((steps[1:] == 0) & (self.real[1:] != self.real[:-1])).any()):
            raise ValueError("a group holds real and fake rows; a patient and a fake are never averaged")


def join_rows(
    *, images: Tensor, labels: Tensor, groups: Tensor, fakes: Tensor, fake_labels: Tensor, views: int = 1
) -> Rows:
    """Puts patients' rows and fakes into the one batch of a step.

    The number of fakes must be a public constant; in particular it must not depend on the number of real rows.

    Args:
        images: (n, c, h, w), rows of the sampled patients, views beside each other.
        labels: int64 (n,).
        groups: int64 (n,), patients 0.. in ascending order, as from `choose_rows`.
        fakes: (F * views, c, h, w), views beside each other.
        fake_labels: int64 (F * views,).
        views: rows of one fake.
    """
    patients = int(groups[-1]) + 1 if len(groups) else 0
    fake_groups = patients + torch.arange(len(fakes), device=groups.device) // views
    real = torch.arange(len(images) + len(fakes), device=groups.device) < len(images)
    return Rows(
        images=torch.cat([images, fakes.detach()]),
        labels=torch.cat([labels, fake_labels]),
        groups=torch.cat([groups, fake_groups]),
        real=real,
        group_count=patients + math.ceil(len(fakes) / views),
    )


def check_step(discriminator: nn.Module, *, clip_norm: float, physical_rows: int) -> None:
    """Refuses what a clipped sum could not be computed with; before each, for a module can be changed at any time.

    Raises:
        PlanError: the discriminator cannot be trained privately (`check_discriminator`), or a number is out of range.
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise PlanError(f"clip_norm = {clip_norm} is not a finite number > 0; set [privacy].clip_norm in plan.toml")
    if physical_rows < 1:
        raise PlanError(f"physical_rows = {physical_rows} is less than 1; set it in [training] of plan.toml")
    check_discriminator(discriminator)


class PatientGradients:
    """Sums of clipped per-patient gradients of one discriminator.

    The discriminator itself is left as it was: outside `clipped_sum` it carries no hook, so the generator's steps
    through it cost nothing extra.
    """

    def __init__(self, discriminator: nn.Module, engine: GradientEngine = GradientEngine.KERNELS) -> None:
        """Checks the network; see `check_discriminator` for what is refused."""
        check_discriminator(discriminator)
        self._discriminator = discriminator
        self._engine = engine

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, *, clip_norm: float, physical_rows: int) -> dict[str, Tensor]:
        """Sum over groups of the group's mean gradient, clipped to `clip_norm` in L2 over all parameters.

        Args:
            rows: the rows of the step; none is fine, and gives zeros.
            row_loss: loss of each row, to be minimised.
            clip_norm: C > 0.
            physical_rows: at most this many rows in memory at once; changes no result. A single group with more
                rows than this is still computed in one piece.

        Returns:
            float64 tensors by parameter name, for every parameter that requires a gradient. SENSITIVE until noised.

        Raises:
            PlanError: the discriminator cannot be trained privately, or a parameter got no per-row gradient.

        Guarantee:
            Unit: patient, add/remove one with all rows. Sensitivity: clip_norm. A group whose gradient is not finite
            counts as zero. Assumes: the fakes are chosen without looking at the reals. Not covered: rounding of the
            float32 arithmetic, measured below 1e-5 of clip_norm.
        """
        check_step(self._discriminator, clip_norm=clip_norm, physical_rows=physical_rows)
        total: dict[str, Tensor] = {}
        clipped_batch = _ENGINES[self._engine]
        for batch in _physical_batches(rows, physical_rows):
            for name, part in clipped_batch(self._discriminator, batch, row_loss, clip_norm).items():
                if name in total:
                    total[name] += part
                else:
                    total[name] = part.double()
        return {
            name: total[name] if name in total else torch.zeros_like(p, dtype=torch.float64)
            for name, p in self._discriminator.named_parameters()
            if p.requires_grad
        }


def noised_sum(
    clipped_sum: dict[str, Tensor], *, clip_norm: float, noise_multiplier: float, entropy: Entropy
) -> dict[str, Tensor]:
    """Adds the noise of one step: one independent N(0, (clip_norm * noise_multiplier)^2) to every coordinate.

    Args:
        clipped_sum: from `PatientGradients.clipped_sum` with the same `clip_norm`.
        clip_norm: C.
        noise_multiplier: sigma > 0; there is no private step without noise.
        entropy: source of the noise; a fresh draw for every tensor of every step.

    Returns:
        float32 tensors by parameter name. Public from here on, once the ledger was charged.

    Raises:
        PlanError: a number is not finite and positive, or the sum is too wide for the noise's grid (`check_grid`).

    Guarantee:
        Unit: patient, add/remove one. Sensitivity: clip_norm. Gaussian mechanism with `noise_multiplier`; with
        Poisson sampling at rate q one step is the sampled Gaussian mechanism (q, noise_multiplier).
        Not covered: a patient seen by two hospitals (see certificate.py).
    """
    for name, value in (("clip_norm", clip_norm), ("noise_multiplier", noise_multiplier)):
        if not (math.isfinite(value) and value > 0):
            raise PlanError(f"{name} = {value} is not a finite number > 0; a step without noise is never released")
    check_grid(noise_multiplier, sum(value.numel() for value in clipped_sum.values()))
    std = clip_norm * noise_multiplier
    return {name: add_gaussian(value, std=std, entropy=entropy) for name, value in clipped_sum.items()}


def whole_groups(sizes: list[int], most_rows: int) -> Iterator[tuple[slice, slice]]:
    """Runs of whole groups, each of at most `most_rows` rows where its groups allow: (their rows, their ids)."""
    first_row = first_group = row = 0
    for group, size in enumerate(sizes):
        if row > first_row and row + size - first_row > most_rows:
            yield slice(first_row, row), slice(first_group, group)
            first_row, first_group = row, group
        row += size
    if row > first_row:
        yield slice(first_row, row), slice(first_group, len(sizes))


def _physical_batches(rows: Rows, physical_rows: int) -> Iterator[Rows]:
    sizes = torch.bincount(rows.groups, minlength=rows.group_count).tolist()
    for chosen, groups in whole_groups(sizes, physical_rows):
        yield Rows(
            images=rows.images[chosen],
            labels=rows.labels[chosen],
            groups=rows.groups[chosen] - groups.start,
            real=rows.real[chosen],
            group_count=groups.stop - groups.start,
        )


def _weighted_losses(forward: Forward, rows: Rows, row_loss: RowLoss) -> Tensor:
    """Loss of each row over the number of rows of its group, from one forward; (r,)."""
    logits = forward(rows.images.detach().contiguous(), rows.labels)  # (r,)
    if logits.shape != (len(rows.images),):
        shape = tuple(logits.shape)
        raise PlanError(f"the discriminator returned shape {shape} for {len(rows.images)} rows, not one logit a row")
    # Under vmap the loss sees one row at a time: a batch mean or a relativistic loss cannot be expressed.
    losses = vmap(lambda logit, real: row_loss(logit[None], real[None])[0])(logits, rows.real)  # (r,)
    return losses / torch.bincount(rows.groups, minlength=rows.group_count)[rows.groups]


def clip_factors(norm: Tensor, clip_norm: float) -> tuple[Tensor, Tensor]:
    """(factor of each group (p,), whether its norm is finite (p,)); a group that is not counts as zero."""
    finite = norm.isfinite()
    return torch.where(finite, (clip_norm / norm).clamp(max=1.0), 0.0), finite  # C/0 = inf, clamped to 1


def _clipped_by_kernels(discriminator: nn.Module, rows: Rows, row_loss: RowLoss, clip_norm: float) -> dict[str, Tensor]:
    """One physical batch by book-keeping."""
    groups = Groups(ids=rows.groups, sizes=tuple(torch.bincount(rows.groups).tolist()))
    gradients = group_gradients(discriminator, lambda forward: _weighted_losses(forward, rows, row_loss), groups)
    squared = torch.stack([gradient.squared_norm.double() for gradient in gradients.values()]).sum(0)
    factors, finite = clip_factors(squared.sqrt(), clip_norm)
    if not bool(finite.all()):  # again without them: rows do not interact, and 0 x NaN would be NaN
        kept = _without_groups(rows, ~finite)
        return _clipped_by_kernels(discriminator, kept, row_loss, clip_norm) if kept.group_count else {}
    with torch.no_grad():
        return {name: g.weighted_sum(factors.to(g.squared_norm.dtype)) for name, g in gradients.items()}


def _without_groups(rows: Rows, unwanted: Tensor) -> Rows:
    keep = ~unwanted[rows.groups]
    renumbered = (~unwanted).cumsum(0) - 1
    return Rows(
        images=rows.images[keep],
        labels=rows.labels[keep],
        groups=renumbered[rows.groups[keep]],
        real=rows.real[keep],
        group_count=int((~unwanted).sum()),
    )


def _clipped_by_opacus(discriminator: nn.Module, rows: Rows, row_loss: RowLoss, clip_norm: float) -> dict[str, Tensor]:
    """One physical batch by Opacus's per-sample gradients."""
    parameters = {name: p for name, p in discriminator.named_parameters() if p.requires_grad}
    with _opacus_hooks(discriminator), torch.enable_grad():
        losses = _weighted_losses(discriminator, rows, row_loss)
        torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
        gradients = {name: _group_gradient(name, p, rows) for name, p in parameters.items()}
    norms = [torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in gradients.values()]
    factors, finite = clip_factors(torch.linalg.vector_norm(torch.stack(norms), dim=0), clip_norm)
    summed = {}
    for name, gradient in gradients.items():
        gradient[~finite] = 0.0  # 0 * NaN is NaN
        summed[name] = (factors.to(gradient.dtype) @ gradient.flatten(1)).reshape(gradient.shape[1:])
    return summed


@contextmanager
def _opacus_hooks(discriminator: nn.Module) -> Iterator[None]:
    """Attaches Opacus's per-sample gradient hooks, and leaves nothing of them behind."""
    from opacus.grad_sample import GradSampleModule  # seconds to import, and the server never needs it

    modes = {module: module.training for module in discriminator.modules()}
    discriminator.train()  # Opacus skips modules in evaluation mode; no allowed layer behaves differently in it
    hooked = GradSampleModule(discriminator, loss_reduction="sum")
    try:
        with warnings.catch_warnings():  # rows need no gradient, which is what the hooks of the first layer expect
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooked.to_standard_module()
        for module, training in modes.items():
            module.training = training
            for leftover in ("activations", "max_batch_len"):
                if leftover in vars(module):
                    delattr(module, leftover)


def _group_gradient(name: str, parameter: nn.Parameter, rows: Rows) -> Tensor:
    """Sum of a parameter's per-row gradients in each group, (group_count, *parameter.shape)."""
    per_row = getattr(parameter, "grad_sample", None)
    if not isinstance(per_row, Tensor) or len(per_row) != len(rows.images):
        raise PlanError(
            f"parameter {name!r} got no gradient of its own for each row; its layer must be used exactly once in a "
            "forward, with the rows in dimension 0"
        )
    parameter.grad_sample = None  # type: ignore[attr-defined]  # or the next physical batch would be appended
    return per_row.new_zeros(rows.group_count, *parameter.shape).index_add_(0, rows.groups, per_row)


_ENGINES = {GradientEngine.KERNELS: _clipped_by_kernels, GradientEngine.OPACUS_HOOKS: _clipped_by_opacus}
