"""The layers that a discriminator may use: their output for one row depends on that row alone.

A per-patient gradient exists only where no layer mixes rows. What is not known to keep rows apart is refused, because
an unsupported layer would break the guarantee without any visible sign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ghostnet.errors import PlanError

Reason = str | None
ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])

_declared: set[type[nn.Module]] = set()


def row_independent(cls: ModuleClass) -> ModuleClass:
    """Declares that row i of a module's output depends on row i of its inputs only, at training time too.

    For the project's own containers and layers. It is a promise by whoever writes the class, so it belongs under a
    review: no statistics over the batch, no buffer that a forward changes, no randomness shared by rows. A subclass
    is another class and needs its own declaration.

    A declared layer with parameters of its own, such as weights that are scaled when used (equalised learning rates),
    needs nothing else: its gradients come from torch.func, several times slower than a kernel, and the log says so.
    The fast way to the same function is a plain layer behind a declared one that scales the input
    (`models/stylegan.py`, `_equalised`). A kernel for a new kind of layer goes into the table of kernels.py, and a
    case of it into tests/privacy/test_kernels.py.
    """
    _declared.add(cls)
    return cls


def check_discriminator(module: nn.Module) -> None:
    """Refuses a network that has no per-patient gradient.

    Raises:
        PlanError: a layer is not on the list of row-independent layers, is set up so that it mixes rows, carries a
            hook, shares a parameter with another layer, or holds parameters that no layer accounts for.
    """
    for name, layer in module.named_modules():
        reason = _why_not(layer)
        if reason is not None:
            where = f"layer {name!r}" if name else "the discriminator"
            raise PlanError(f"{where} ({type(layer).__name__}) cannot be trained under patient-level privacy: {reason}")
    uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    for name, parameter in module.named_parameters():
        if uses[id(parameter)] > 1:
            raise PlanError(f"parameter {name!r} is used by two layers; give each layer parameters of its own")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise PlanError(f"parameter {name!r} is {parameter.dtype}; norms and sums need float32 (or float64)")


def _why_not(layer: nn.Module) -> Reason:
    kind = type(layer)
    if "forward" in vars(layer):
        return "its forward was replaced on this one object; write a class and declare it with @row_independent"
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        return "it carries a hook, which may mix rows; remove the hook"
    if kind in _declared:
        return _declared_fault(layer)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return (
            "batch normalisation computes its mean and variance over the rows of a batch, so each patient changes "
            'the gradient of all others; set model.discriminator_norm = "group" or "none"'
        )
    if isinstance(layer, nn.modules.dropout._DropoutNd):
        return (
            "its mask depends on a row's place in the batch, so that one patient more changes the masks of others; "
            "use one that depends on the row itself (RowDropout in models/keras28.py)"
        )
    if kind not in _ALLOWED:
        return "it is not known to treat each row on its own; use a listed layer, or declare it with @row_independent"
    if not set(layer._parameters) <= {"weight", "bias"} or next(layer.buffers(recurse=False), None) is not None:
        return "it holds extra parameters or buffers (spectral or weight norm, running statistics); remove them"
    if getattr(layer, "inplace", False):
        return "it overwrites its input, which a gradient still needs; use inplace = False"
    check = _ALLOWED[kind]
    return check(layer) if check else None


def _declared_fault(layer: nn.Module) -> Reason:
    own = next(layer.parameters(recurse=False), None)
    if own is not None and any(p is not None for child in layer.children() for p in child.parameters()):
        return "it has parameters of its own beside layers with parameters; move its own ones into a layer"
    return None


def _conv_fault(layer: nn.Module) -> Reason:
    mode = getattr(layer, "padding_mode", "zeros")
    return None if mode == "zeros" else f"padding_mode = {mode!r} has no per-row gradient rule; use 'zeros'"


def _instance_norm_fault(layer: nn.Module) -> Reason:
    if getattr(layer, "track_running_stats", False):
        return "track_running_stats = True keeps statistics of earlier patients; set it to False"
    return None


def _embedding_fault(layer: nn.Module) -> Reason:
    if getattr(layer, "scale_grad_by_freq", False):
        return "scale_grad_by_freq = True divides by how often a label is in the batch; set it to False"
    if getattr(layer, "max_norm", None) is not None:
        return "max_norm rewrites the weights during a forward; leave it unset"
    if getattr(layer, "sparse", False) or getattr(layer, "padding_idx", None) is not None:
        return "sparse gradients and padding_idx have no per-row gradient rule; leave them unset"
    return None


def _flatten_fault(layer: nn.Module) -> Reason:
    first = getattr(layer, "start_dim", getattr(layer, "dim", 1))
    return None if isinstance(first, int) and first >= 1 else f"it reshapes dimension {first}, the rows; start at 1"


Check = Callable[[nn.Module], Reason] | None

_UNCONDITIONAL: tuple[type[nn.Module], ...] = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid),
    *(nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Upsample, nn.ZeroPad2d, nn.PixelUnshuffle),
    *(nn.Linear, nn.GroupNorm, nn.LayerNorm),
)

_ALLOWED: dict[type[nn.Module], Check] = {
    nn.Conv2d: _conv_fault,
    nn.InstanceNorm2d: _instance_norm_fault,
    nn.Embedding: _embedding_fault,
    nn.Flatten: _flatten_fault,
    nn.Unflatten: _flatten_fault,
    **dict.fromkeys(_UNCONDITIONAL),
}
