"""The private step: sample patients, bound what each one can add to a sum, add noise once.

The functions are used in this order by `ghostnet.training.loop`, which never sees a patient's gradient (trunc rounds
toward zero on the noise's grid, so that the sum is exact):

    S <- sample_patients        each patient independently with probability q
    rows <- choose_rows         at most m images of each
    g <- clipped_sum            sum_p trunc(clip(mean over p's rows of grad loss(D, row), C)) + the same for each fake
    g <- noised_sum             g + N(0, (sigma C)^2), one draw

Method: Abadi et al. 2016 (arXiv:1607.00133) with the patient as the unit, as in McMahan et al. 2018 (arXiv:1710.06963).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.func import vmap

from ghostnet.errors import PlanError
from ghostnet.privacy.blocks import Block, block_rows, blocks_of, filled, is_invariant, shapes_of, with_random_weights
from ghostnet.privacy.bookkeeping import Forward, group_gradients
from ghostnet.privacy.groups import Groups, ParameterGradient, Scratch, kept
from ghostnet.privacy.layers import check_discriminator, row_independent
from ghostnet.privacy.noise import Entropy, add_gaussian
from ghostnet.privacy.precision import whole_float32
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
    "sum_clipped",
]

_GRID_LOG2 = 40  # clip_norm in steps of the grid, where the noise does not give one
_LONGEST = 2.0**100  # a longer gradient counts as not finite: its factor, and sums on the way to it, leave float32
_NORM_ROUNDING = 2.0**-17  # more than a norm's float32 sums (groups.py) and the factor's product can round by

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""(logits (r,), real (r,) bool) -> losses (r,). Called one row at a time, so it cannot couple rows."""


class GradientEngine(Enum):
    """The ways of computing per-patient gradients; all give the same sums up to rounding."""

    KERNELS = "kernels"  # by book-keeping (bookkeeping.py)
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

    def sizes(self) -> Tensor:
        """Rows of each group, int64 (group_count,)."""
        return torch.bincount(self.groups, minlength=self.group_count)

    def grouped(self, scratch: Scratch) -> Groups:
        """The groups alone, with memory to compute their gradients in."""
        return Groups(ids=self.groups, sizes=tuple(self.sizes().tolist()), scratch=scratch)


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
        self._scratch = Scratch()

    def clipped_sum(
        self, rows: Rows, row_loss: RowLoss, *, clip_norm: float, physical_rows: int, grid_step: float = 0.0
    ) -> dict[str, Tensor]:
        """Sum over groups of the group's mean gradient, clipped to `clip_norm` in L2 over all parameters.

        Args:
            rows: the rows of the step; none is fine, and gives zeros.
            row_loss: loss of each row, to be minimised.
            clip_norm: C > 0.
            physical_rows: at most this many rows in memory at once, but never less than 8; changes no result.
            grid_step: each group's clipped gradient is rounded toward zero to whole multiples of it: the step of the
                noise's grid (`noise.grid_step`), a power of two. 0: about 2^-40 of clip_norm.

        Returns:
            float64 tensors by parameter name, whole multiples of the step, for every parameter that requires a
            gradient. SENSITIVE until noised.

        Raises:
            PlanError: the discriminator cannot be trained privately, or a parameter got no per-row gradient.

        Guarantee:
            Unit: patient, add/remove one with all rows. Sensitivity: clip_norm, for the arithmetic that runs: what a
            group adds is a function of its own rows and of public numbers, to the bit (blocks.py), its norm is at most
            clip_norm, and sums of whole steps are exact. So one patient more moves the sum by that patient's part and
            by nothing else, whatever the weights are. A group whose gradient is not finite, or longer than 2^100,
            counts as zero. Assumes: the fakes are chosen without looking at the reals.
        """
        check_step(self._discriminator, clip_norm=clip_norm, physical_rows=physical_rows)
        gradients = partial(_ENGINES[self._engine], row_loss=row_loss)
        return sum_clipped(
            self._discriminator,
            rows,
            gradients,
            clip_norm=clip_norm,
            block=block_rows(physical_rows),
            grid_step=grid_step,
            kind=self._engine,
            scratch=self._scratch,
        )


BlockGradients = Callable[[nn.Module, Rows, Scratch], dict[str, ParameterGradient]]
"""(discriminator, the rows of one block, memory) -> each group's gradient of every trained parameter."""


@whole_float32()
def sum_clipped(
    discriminator: nn.Module,
    rows: Rows,
    gradients: BlockGradients,
    *,
    clip_norm: float,
    block: int,
    grid_step: float,
    kind: Hashable,
    scratch: Scratch,
) -> dict[str, Tensor]:
    """Clips each group, rounds it to the grid and sums; see `PatientGradients.clipped_sum` for all that it promises.

    Args:
        discriminator: gives the parameters.
        rows: of the step.
        gradients: of one block.
        clip_norm: C.
        block: rows of a block.
        grid_step: a power of two, or 0.
        kind: tells apart what computes gradients of one network in different ways.
        scratch: memory to compute in, from step to step.
    """
    step = grid_step or 2.0 ** (math.frexp(clip_norm)[1] - 1 - _GRID_LOG2)
    if math.frexp(step)[0] != 0.5:
        raise PlanError(f"grid_step = {step} is not a power of two; use noise.grid_step")
    totals = GridSums(discriminator, most=int(2.0**24 * step / clip_norm))
    shared = rows.group_count < 2 or _is_invariant(discriminator, rows, gradients, block, kind, scratch)
    sizes = rows.sizes().tolist()
    clip = partial(_add_clipped, totals, clip_norm=clip_norm, step=step)

    def of_block(rows: Rows) -> dict[str, ParameterGradient]:
        scratch.begin()
        return gradients(discriminator, rows, scratch)

    for part in blocks_of(sizes, block=block, shared=shared):
        if sizes[part.groups.start] > block:
            clip(_of_one_large_group(rows, part, of_block, block))
        else:
            clip(of_block(_block(rows, part, block)), count=part.groups.stop - part.groups.start)
    return totals.in_units_of(step)


class GridSums:
    """Sums of vectors of whole numbers, exact: in float32 as long as no sum can pass 2^24, then in float64.

    Args:
        discriminator: gives the parameters.
        most: groups whose numbers surely add up to at most 2^24.
    """

    def __init__(self, discriminator: nn.Module, *, most: int) -> None:
        self._shapes = {name: p.shape for name, p in discriminator.named_parameters() if p.requires_grad}
        device = next(discriminator.parameters()).device
        self._whole = {n: torch.zeros(s.numel(), dtype=torch.float64, device=device) for n, s in self._shapes.items()}
        self._recent = {n: torch.zeros(s.numel(), device=device) for n, s in self._shapes.items()}
        self._most, self._held = max(1, most), 0

    def add(self, gradients: dict[str, ParameterGradient], factors: Tensor, dropped: Tensor) -> None:
        """Adds factor times each group's gradient, rounded toward zero; nothing of the groups `dropped`."""
        few = min(self._most, len(factors))  # groups that float32 may add up
        sums = self._whole if few < len(factors) else self._recent
        if sums is self._recent and self._held + len(factors) > self._most:
            self._settle()
        self._held += len(factors)
        ones = torch.ones(few, device=factors.device)
        for name, gradient in gradients.items():
            total = sums[name].view(gradient.matrix)
            for tile in gradient.scaled(factors):
                if len(dropped):
                    tile.values[dropped] = 0.0  # 0 * NaN is NaN
                for some in torch.split(tile.values.trunc_(), few):
                    tile.add_to(total, ones[: len(some)].to(some) @ some)

    def in_units_of(self, step: float) -> dict[str, Tensor]:
        """The sums times the step, float64 by parameter name; nothing may be added any more."""
        self._settle()
        return {name: total.mul_(step).reshape(self._shapes[name]) for name, total in self._whole.items()}

    def _settle(self) -> None:
        for name, recent in self._recent.items():
            self._whole[name] += recent
            recent.zero_()
        self._held = 0


def noised_sum(
    clipped_sum: dict[str, Tensor], *, clip_norm: float, noise_multiplier: float, entropy: Entropy
) -> dict[str, Tensor]:
    """Adds the noise of one step: one independent N(0, (clip_norm * noise_multiplier)^2) to every coordinate.

    Args:
        clipped_sum: from `PatientGradients.clipped_sum` with the same `clip_norm`, on this noise's grid
            (`grid_step(clip_norm * noise_multiplier)`) or a coarser one.
        clip_norm: C.
        noise_multiplier: sigma > 0; there is no private step without noise.
        entropy: source of the noise; a fresh draw for every tensor of every step.

    Returns:
        float32 tensors by parameter name. Public from here on, once the ledger was charged.

    Raises:
        PlanError: a number is not finite and positive.
        ValueError: the sum is no whole multiple of the noise's grid step.

    Guarantee:
        Unit: patient, add/remove one. Sensitivity: clip_norm. Gaussian mechanism with `noise_multiplier`; with
        Poisson sampling at rate q one step is the sampled Gaussian mechanism (q, noise_multiplier).
        Not covered: a patient seen by two hospitals (see certificate.py).
    """
    for name, value in (("clip_norm", clip_norm), ("noise_multiplier", noise_multiplier)):
        if not (math.isfinite(value) and value > 0):
            raise PlanError(f"{name} = {value} is not a finite number > 0; a step without noise is never released")
    std = clip_norm * noise_multiplier
    return {name: add_gaussian(value, std=std, entropy=entropy) for name, value in clipped_sum.items()}


def _block(rows: Rows, part: Block, block: int) -> Rows:
    """The rows of one block, filled up with rows of zeros, each a group of its own."""
    missing = block - (part.rows.stop - part.rows.start)
    count = part.groups.stop - part.groups.start
    empty = torch.arange(missing, device=rows.groups.device) + count
    return Rows(
        images=filled(rows.images[part.rows].detach(), block),
        labels=filled(rows.labels[part.rows], block),
        groups=torch.cat([rows.groups[part.rows] - part.groups.start, empty]),
        real=filled(rows.real[part.rows], block),
        group_count=count + missing,
    )


def _of_one_large_group(
    rows: Rows, part: Block, of_block: Callable[[Rows], dict[str, ParameterGradient]], block: int
) -> dict[str, ParameterGradient]:
    """Gradient of a group with more rows than a block has, summed block by block in float64."""
    sums: dict[str, Tensor] = {}
    size = part.rows.stop - part.rows.start
    for first in range(part.rows.start, part.rows.stop, block):
        some = Block(rows=slice(first, min(first + block, part.rows.stop)), groups=part.groups)
        share = (some.rows.stop - some.rows.start) / size  # a block's loss is the mean over its own rows
        for name, gradient in of_block(_block(rows, some, block)).items():
            factors = torch.zeros_like(gradient.squared_norm)
            factors[0] = share
            found = gradient.weighted_sum(factors).flatten()
            sums[name] = sums[name] + found if name in sums else found
    whole = Groups(ids=rows.groups[:1] * 0, sizes=(1,))
    return {name: kept(total[None], whole) for name, total in sums.items()}


@torch.no_grad()
def _add_clipped(
    totals: GridSums, gradients: dict[str, ParameterGradient], *, clip_norm: float, step: float, count: int = 1
) -> None:
    """Adds the first `count` groups' clipped gradients, in whole steps; rounded toward zero, no vector gets longer."""
    squared = torch.stack([gradient.squared_norm for gradient in gradients.values()]).sum(0)
    factors, finite = clip_factors(squared.sqrt(), clip_norm)
    factors[count:] = 0.0
    factors *= (1 - _NORM_ROUNDING) / step
    totals.add(gradients, factors, dropped=(~finite).nonzero().flatten())


def _is_invariant(
    discriminator: nn.Module, rows: Rows, gradients: BlockGradients, block: int, kind: Hashable, scratch: Scratch
) -> bool:
    """True if this process computes a group's part independent of its place and neighbours; tried once a network."""

    @cache
    def probe() -> nn.Module:
        return with_random_weights(discriminator)

    def results(images: Tensor, groups: Tensor) -> Iterator[Tensor]:
        scratch.begin()
        return _watched(gradients(probe(), _all_real(images, groups), scratch))

    return is_invariant(results, rows.images[:0], block=block, pairs=True, kind=(kind, shapes_of(discriminator)))


def _all_real(images: Tensor, groups: Tensor) -> Rows:
    return Rows(
        images=images,
        labels=torch.zeros(len(images), dtype=torch.int64, device=images.device),
        groups=groups,
        real=torch.ones(len(images), dtype=torch.bool, device=images.device),
        group_count=int(groups[-1]) + 1,
    )


def _watched(gradients: dict[str, ParameterGradient]) -> Iterator[Tensor]:
    """Norm and gradient of each group; the rounding of every layer shows in them."""
    for gradient in gradients.values():
        yield gradient.squared_norm
        for tile in gradient.scaled(torch.ones_like(gradient.squared_norm)):
            yield tile.values


def _weighted_losses(forward: Forward, rows: Rows, row_loss: RowLoss) -> Tensor:
    """Loss of each row over the number of rows of its group, from one forward; (r,)."""
    logits = forward(rows.images.detach().contiguous(), rows.labels)  # (r,)
    if logits.shape != (len(rows.images),):
        shape = tuple(logits.shape)
        raise PlanError(f"the discriminator returned shape {shape} for {len(rows.images)} rows, not one logit a row")
    # Under vmap the loss sees one row at a time: a batch mean or a relativistic loss cannot be expressed.
    losses = vmap(lambda logit, real: row_loss(logit[None], real[None])[0])(logits, rows.real)  # (r,)
    return losses / rows.sizes()[rows.groups]


def clip_factors(norm: Tensor, clip_norm: float) -> tuple[Tensor, Tensor]:
    """(factor of each group (p,), whether its norm is finite (p,)); a group whose norm is not counts as zero.

    Factors below 2^-126 have few bits left in float32: a norm of 1e50 once moved a sum by 1.7 clip norms.
    """
    finite = norm < _LONGEST  # false for NaN
    return torch.where(finite, (clip_norm / norm).clamp(max=1.0), 0.0), finite  # C/0 = inf, clamped to 1


def _by_kernels(
    discriminator: nn.Module, rows: Rows, scratch: Scratch, *, row_loss: RowLoss
) -> dict[str, ParameterGradient]:
    """One block by book-keeping."""
    losses = partial(_weighted_losses, rows=rows, row_loss=row_loss)
    return group_gradients(discriminator, losses, rows.grouped(scratch))


def _by_opacus(
    discriminator: nn.Module, rows: Rows, scratch: Scratch, *, row_loss: RowLoss
) -> dict[str, ParameterGradient]:
    """One block by Opacus's per-sample gradients."""
    groups = rows.grouped(scratch)
    parameters = {name: p for name, p in discriminator.named_parameters() if p.requires_grad}
    with _opacus_hooks(discriminator), torch.enable_grad():
        losses = _weighted_losses(discriminator, rows, row_loss)
        torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
        return {name: kept(_row_gradient(name, p, rows), groups) for name, p in parameters.items()}


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


def _row_gradient(name: str, parameter: nn.Parameter, rows: Rows) -> Tensor:
    """A parameter's per-row gradients, (r, *parameter.shape)."""
    per_row = getattr(parameter, "grad_sample", None)
    if not isinstance(per_row, Tensor) or len(per_row) != len(rows.images):
        raise PlanError(
            f"parameter {name!r} got no gradient of its own for each row; its layer must be used exactly once in a "
            "forward, with the rows in dimension 0"
        )
    parameter.grad_sample = None  # type: ignore[attr-defined]  # or the next block would be appended
    return per_row.detach()


_ENGINES = {GradientEngine.KERNELS: _by_kernels, GradientEngine.OPACUS_HOOKS: _by_opacus}
