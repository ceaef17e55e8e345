"""Per-patient gradients by book-keeping: one forward and one backward for the rows of a block.

One backward pass gives the gradient at each layer's output. With the layer's input that is enough for every group's
gradient and its norm (kernels.py). A group is a patient or a fake; its rows are summed before the norm.

Sources: Goodfellow 2015 (arXiv:1510.01799) and Bu et al. 2023 (arXiv:2210.00038, book-keeping). New here: groups of
several rows, and results that depend on no other row, to the bit (blocks.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ghostnet.errors import PlanError
from ghostnet.privacy.groups import Groups, ParameterGradient, kept
from ghostnet.privacy.kernels import kernel_of

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) -> logits."""


def group_gradients(
    discriminator: nn.Module, losses: Callable[[Forward], Tensor], groups: Groups
) -> dict[str, ParameterGradient]:
    """Gradient of each group's summed losses for every parameter that requires a gradient.

    Args:
        discriminator: passed `check_discriminator`.
        losses: runs the given forward once, and returns one loss a row (r,).
        groups: of the rows.

    Raises:
        PlanError: a parameter has no gradient of its own for each row.
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}  # no weight gradients in the backward
    with _recorded(discriminator) as calls, torch.enable_grad():
        total = losses(lambda images, labels: functional_call(discriminator, frozen, (images, labels))).sum()
        outputs = [call.output for call in calls]
        at_outputs = torch.autograd.grad(total, outputs, allow_unused=True) if outputs else ()
    found: dict[str, ParameterGradient] = {}
    with torch.no_grad():
        for call, at_output in zip(calls, at_outputs, strict=True):
            _check_call(call, at_output, len(groups.ids), repeated=sum(c.name == call.name for c in calls) > 1)
            found |= _layer_gradients(call, at_output, groups)
    for name, parameter in discriminator.named_parameters():
        if parameter.requires_grad and name not in found:
            raise PlanError(f"parameter {name!r} got no gradient of its own for each row; its layer was not used")
    return found


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One use of a layer in the forward."""

    name: str
    layer: nn.Module
    inputs: tuple[Tensor, ...]
    output: Tensor
    versions: tuple[int, ...]  # of inputs and output, to notice a change in place


@contextmanager
def _recorded(discriminator: nn.Module) -> Iterator[list[_Call]]:
    """Notes each use of a layer with trainable parameters; leaves no hook behind."""
    calls: list[_Call] = []

    def note(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            output.requires_grad_()  # the first layers: neither rows nor weights ask for a gradient
        inputs = tuple(x.detach() for x in inputs)
        versions = tuple(x._version for x in (*inputs, output))
        calls.append(_Call(name=name, layer=layer, inputs=inputs, output=output, versions=versions))

    handles = [
        layer.register_forward_hook(partial(note, name))
        for name, layer in discriminator.named_modules()
        if any(p.requires_grad for p in layer.parameters(recurse=False))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _check_call(call: _Call, at_output: Tensor | None, rows: int, *, repeated: bool) -> None:
    per_row = all(len(x) == rows for x in (*call.inputs, call.output))
    if at_output is None or repeated or not per_row:
        raise PlanError(
            f"layer {call.name!r} has no gradient of its own for each row; use it exactly once in a forward, with the "
            "rows in dimension 0"
        )
    if tuple(x._version for x in (*call.inputs, call.output)) != call.versions:
        raise PlanError(f"the input or output of layer {call.name!r} is changed in place; write a new tensor instead")


def _layer_gradients(call: _Call, at_output: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    kernel = kernel_of(call.layer)
    if kernel is None or len(call.inputs) != 1:
        logger.info("layer %s (%s) has no kernel; using torch.func", call.name, type(call.layer).__name__)
        gradients = _by_torch_func(call, at_output, groups)
    else:
        gradients = kernel(call.layer, call.inputs[0], at_output, groups)
    prefix = f"{call.name}." if call.name else ""
    trainable = {name for name, p in call.layer.named_parameters(recurse=False) if p.requires_grad}
    return {prefix + name: gradient for name, gradient in gradients.items() if name in trainable}


def _by_torch_func(call: _Call, at_output: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """Any row-independent layer: its vector-Jacobian product, one row at a time under vmap."""
    parameters = {name: p.detach() for name, p in call.layer.named_parameters(recurse=False)}

    def product(parameters: dict[str, Tensor], inputs: tuple[Tensor, ...], at_output: Tensor) -> Tensor:
        output: Tensor = functional_call(call.layer, parameters, tuple(x[None] for x in inputs))
        return (output[0] * at_output).sum()

    per_row = vmap(grad(product), in_dims=(None, 0, 0))(parameters, call.inputs, at_output)
    return {name: kept(gradient, groups) for name, gradient in per_row.items()}
