"""Fast per-patient clipping by book-keeping: norms first, then one weighted gradient.

One backward pass gives the gradient at each layer's output. With the layer's input that is enough for the norm of
every group's gradient, mostly without forming the gradient ("ghost norms"), and then for the sum of the gradients
weighted by their clip factors. A group is a patient or a fake; its rows are summed before the norm.

Sources: Goodfellow 2015 (arXiv:1510.01799), Bu et al. 2022 (arXiv:2205.10683, ghost norms of convolutions) and 2023
(arXiv:2210.00038, book-keeping). New here: groups of several rows; a strided convolution's Gram matrix taken after
`pixel_unshuffle`, which needs neither unfolded inputs nor pairs of positions that no tap can pair; and a bound on the
rounding of Gram norms that is added to them, so that rounding never lets a group past the clip norm.
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
from torch.nn import functional as F

from ghostnet.errors import PlanError

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) -> logits."""

_GRAM_ROUNDING = 1e-6  # of float32 dot products, relative to the product of the lengths
_GRAM_ELEMENTS = 1 << 22  # entries of Gram matrices in memory at once
_COPY_COST = 64  # multiply-adds that writing one number of a group's gradient costs, measured


@dataclass(frozen=True, kw_only=True)
class ParameterGradient:
    """Gradients of one parameter for every group, kept or computed again when they are summed.

    Attributes:
        squared_norm: (p,), squared L2 norm of each group's gradient; never less than the true one by more than
            rounding.
        weighted_sum: factors (p,) -> sum over groups of factor times gradient, in the parameter's shape.
    """

    squared_norm: Tensor
    weighted_sum: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which rows belong together; rows of a group follow each other.

    Attributes:
        ids: int64 (r,), 0..p-1 in ascending order.
        sizes: rows of each group.
    """

    ids: Tensor
    sizes: tuple[int, ...]

    def sum(self, per_row: Tensor) -> Tensor:
        """(r, ...) -> (p, ...), summed over the rows of each group."""
        if len(self.sizes) == len(per_row):
            return per_row
        return per_row.new_zeros(len(self.sizes), *per_row.shape[1:]).index_add_(0, self.ids, per_row)

    def spans(self) -> list[slice]:
        """Rows of each group."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        return [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]

    def blocks(self, size: int, limit: int) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Groups of one size, at most `limit` at once: (groups (m,), what takes (r, ...) to (m, size, ...))."""
        sizes = torch.tensor(self.sizes, device=self.ids.device)
        chosen = (sizes == size).nonzero().flatten()
        for start in range(0, len(chosen), limit):
            part = chosen[start : start + limit]
            first, last = int(part[0]), int(part[-1])
            if last - first + 1 == len(part):  # neighbours: a view will do
                begin = sum(self.sizes[:first])
                span = slice(begin, begin + size * len(part))
                yield part, lambda t, span=span: t[span].unflatten(0, (-1, size))  # type: ignore[misc]
            else:
                rows = (sizes.cumsum(0) - sizes)[part][:, None] + torch.arange(size, device=self.ids.device)
                yield part, lambda t, rows=rows: t[rows]  # type: ignore[misc]


Kernel = Callable[[nn.Module, Tensor, Tensor, Groups], dict[str, ParameterGradient]]
"""(layer, input, gradient at the output, groups) -> gradients by the parameter's name in the layer."""


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
    kernel = _kernel(call.layer)
    if kernel is None or len(call.inputs) != 1:
        logger.info("layer %s (%s) has no kernel; using torch.func", call.name, type(call.layer).__name__)
        gradients = _by_torch_func(call, at_output, groups)
    else:
        gradients = kernel(call.layer, call.inputs[0], at_output, groups)
    prefix = f"{call.name}." if call.name else ""
    trainable = {name for name, p in call.layer.named_parameters(recurse=False) if p.requires_grad}
    return {prefix + name: gradient for name, gradient in gradients.items() if name in trainable}


def _kernel(layer: nn.Module) -> Kernel | None:
    if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str):
        return None
    return _KERNELS.get(type(layer))


def _kept(gradients: Tensor) -> ParameterGradient:
    """Gradients (p, ...) small enough to keep."""
    flat = gradients.flatten(1)
    return ParameterGradient(
        squared_norm=flat.square().sum(1),
        weighted_sum=lambda factors: (factors @ flat).reshape(gradients.shape[1:]),
    )


def _by_torch_func(call: _Call, at_output: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """Any row-independent layer: its vector-Jacobian product, one row at a time under vmap."""
    parameters = {name: p.detach() for name, p in call.layer.named_parameters(recurse=False)}

    def product(parameters: dict[str, Tensor], inputs: tuple[Tensor, ...], at_output: Tensor) -> Tensor:
        output: Tensor = functional_call(call.layer, parameters, tuple(x[None] for x in inputs))
        return (output[0] * at_output).sum()

    per_row = vmap(grad(product), in_dims=(None, 0, 0))(parameters, call.inputs, at_output)
    return {name: _kept(groups.sum(gradient)) for name, gradient in per_row.items()}


def _normalisation(
    layer: nn.GroupNorm | nn.InstanceNorm2d, x: Tensor, g: Tensor, groups: Groups
) -> dict[str, ParameterGradient]:
    """GroupNorm and InstanceNorm2d: x, g (r, channels, ...)."""
    found = {}
    if layer.weight is not None:
        count = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
        normalised = F.group_norm(x, count, eps=layer.eps)
        found["weight"] = _kept(groups.sum(normalised.mul_(g).flatten(2).sum(2)))
    if layer.bias is not None:
        found["bias"] = _kept(groups.sum(g.flatten(2).sum(2)))
    return found


def _layer_norm(layer: nn.LayerNorm, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """Rows x and gradients at the output g, both (r, ..., *normalized_shape)."""
    shape = (len(x), -1, *layer.normalized_shape)
    found = {}
    if layer.weight is not None:
        normalised = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        found["weight"] = _kept(groups.sum(normalised.mul_(g).reshape(shape).sum(1)))
    if layer.bias is not None:
        found["bias"] = _kept(groups.sum(g.reshape(shape).sum(1)))
    return found


def _embedding(layer: nn.Embedding, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X int64 (r, ...), g (r, ..., d)."""
    owners = groups.ids.reshape(-1, *[1] * (x.dim() - 1)).expand_as(x)
    pairs, place = torch.unique(owners * layer.num_embeddings + x, return_inverse=True)
    sums = g.new_zeros(len(pairs), g.shape[-1]).index_add_(0, place.flatten(), g.reshape(-1, g.shape[-1]))
    owner, label = pairs // layer.num_embeddings, pairs % layer.num_embeddings
    squared = sums.new_zeros(len(groups.sizes)).index_add_(0, owner, sums.square().sum(1))

    def weighted_sum(factors: Tensor) -> Tensor:
        return torch.zeros_like(layer.weight).index_add_(0, label, sums * factors[owner, None])

    return {"weight": ParameterGradient(squared_norm=squared, weighted_sum=weighted_sum)}


def _linear(layer: nn.Linear, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X (r, ..., in), g (r, ..., out)."""
    x, g = (t.reshape(len(t), -1, t.shape[-1]) for t in (x, g))  # (r, t, in), (r, t, out)
    found = {"weight": _outer_products(x, g, groups)}
    if layer.bias is not None:
        found["bias"] = _kept(groups.sum(g.sum(1)))
    return found


def _outer_products(x: Tensor, g: Tensor, groups: Groups) -> ParameterGradient:
    """Gradients sum over a group's rows and positions t of outer(g_t, x_t); x (r, t, in), g (r, t, out)."""
    squared = x.new_empty(len(groups.sizes))
    for size in set(groups.sizes):
        positions = size * x.shape[1]
        limit = max(1, _GRAM_ELEMENTS // min(positions**2, x.shape[2] * g.shape[2]))
        for chosen, take in groups.blocks(size, limit):
            a, b = (take(t).flatten(1, 2) for t in (x, g))  # (m, size * t, in), (m, size * t, out)
            if positions * (a.shape[2] + b.shape[2]) <= a.shape[2] * b.shape[2]:
                squared[chosen] = _paired(a @ a.transpose(1, 2), b @ b.transpose(1, 2))
            else:
                squared[chosen] = (b.transpose(1, 2) @ a).square().sum((1, 2))

    def weighted_sum(factors: Tensor) -> Tensor:
        weighted = g * factors[groups.ids, None, None]
        return weighted.flatten(0, 1).T @ x.flatten(0, 1)

    return ParameterGradient(squared_norm=squared, weighted_sum=weighted_sum)


def _paired(gram_inputs: Tensor, gram_outputs: Tensor) -> Tensor:
    """Squared norm of sum_t outer(g_t, x_t) from the Gram matrices of x and g (m, t, t), rounding bound included.

    |sum_t outer(g_t, x_t)|^2 = sum_{t,t'} <x_t, x_t'> <g_t, g_t'>. Terms of both signs cancel, so rounding is relative
    to (sum_t |x_t| |g_t|)^2 and not to the result.
    """
    exact = (gram_inputs * gram_outputs).sum((1, 2))
    lengths = (gram_inputs.diagonal(dim1=1, dim2=2) * gram_outputs.diagonal(dim1=1, dim2=2)).clamp(min=0).sqrt()
    return exact.clamp(min=0) + _GRAM_ROUNDING * lengths.sum(1).square()


def _convolution(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> dict[str, ParameterGradient]:
    """X (r, in, h, w), g (r, out, h', w')."""
    found = {}
    if layer.bias is not None:
        found["bias"] = _kept(groups.sum(g.sum((2, 3))))
    if x.shape[2:] == layer.kernel_size and g.shape[2:] == (1, 1) and layer.groups == 1:  # one tap a pixel: linear
        as_linear = _outer_products(x.flatten(1)[:, None], g.flatten(1)[:, None], groups)
        found["weight"] = ParameterGradient(
            squared_norm=as_linear.squared_norm,
            weighted_sum=lambda factors: as_linear.weighted_sum(factors).reshape(layer.weight.shape),
        )
    elif _worth_keeping(layer, x, g, groups):
        found["weight"] = _kept_convolution(layer, x, g, groups)
    else:
        found["weight"] = ParameterGradient(
            squared_norm=_convolution_norms(layer, x, g, groups),
            weighted_sum=lambda factors: _weight_gradient(layer, x, g * factors[groups.ids, None, None, None]),
        )
    return found


def _worth_keeping(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> bool:
    """Whether groups' gradients, formed once and kept, cost less than norms and a weighted gradient; within memory."""
    kept = layer.weight.numel() * len(groups.sizes)
    if kept > 2 * (x.numel() + g.numel()):
        return False
    again = len(x) * _direct_cost(layer, g, 1) / 2
    direct = sum(_direct_cost(layer, g, size) for size in groups.sizes)
    cheapest = sum(min(_direct_cost(layer, g, size), _gram_cost(layer, g, size)) for size in groups.sizes)
    return direct <= cheapest + again


def _direct_cost(layer: nn.Conv2d, g: Tensor, size: int) -> float:
    """Multiply-adds, and their worth in copying, of a group's weight gradient."""
    return float(layer.weight.numel() * (size * g.shape[2] * g.shape[3] + _COPY_COST))


def _gram_cost(layer: nn.Conv2d, g: Tensor, size: int) -> float:
    """Multiply-adds of a group's Gram matrices; infinite where they do not apply."""
    stride = layer.stride[0]
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.stride[1] != stride:
        return float("inf")
    if layer.kernel_size[0] % stride or layer.kernel_size[1] % stride:
        return float("inf")
    height, width = _unshuffled(layer, g)
    inputs = (size * height * width) ** 2 * layer.in_channels * stride**2
    return float(inputs + (size * g.shape[2] * g.shape[3]) ** 2 * layer.out_channels)


def _unshuffled(layer: nn.Conv2d, g: Tensor) -> tuple[int, int]:
    """Height and width of the input that the taps reach, in blocks of stride x stride pixels."""
    stride = layer.stride[0]
    return g.shape[-2] - 1 + layer.kernel_size[0] // stride, g.shape[-1] - 1 + layer.kernel_size[1] // stride


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    if isinstance(layer.padding, str):
        raise TypeError("a padding given by name has no kernel")  # `_kernel` sends such layers to torch.func
    return layer.padding[0], layer.padding[1]


def _weight_gradient(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Sum over rows of the weight's gradient."""
    _, weight, _ = torch.ops.aten.convolution_backward(
        *(g, x, layer.weight, None, layer.stride, _padding(layer), layer.dilation),
        *(False, [0, 0], layer.groups, [False, True, False]),
    )
    return weight  # type: ignore[no-any-return]


def _kept_convolution(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> ParameterGradient:
    gradients = [_weight_gradient(layer, x[span], g[span]) for span in groups.spans()]
    squared = torch.stack([w.flatten().dot(w.flatten()) for w in gradients])  # while it is in the cache

    def weighted_sum(factors: Tensor) -> Tensor:
        total = torch.zeros_like(layer.weight)
        for gradient, factor in zip(gradients, factors.tolist(), strict=True):
            total.add_(gradient, alpha=factor)
        return total

    return ParameterGradient(squared_norm=squared, weighted_sum=weighted_sum)


def _convolution_norms(layer: nn.Conv2d, x: Tensor, g: Tensor, groups: Groups) -> Tensor:
    squared = x.new_empty(len(groups.sizes))
    for size in set(groups.sizes):
        by_gram = _gram_cost(layer, g, size) <= _direct_cost(layer, g, size)
        positions = size * g.shape[2] * g.shape[3]
        for chosen, take in groups.blocks(size, max(1, _GRAM_ELEMENTS // positions**2) if by_gram else 1):
            if by_gram:
                squared[chosen] = _convolution_gram(layer, take(x), take(g))
            else:
                w = _weight_gradient(layer, take(x)[0], take(g)[0]).flatten()
                squared[chosen] = w.dot(w)
    return squared


def _convolution_gram(layer: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    """Squared norms (m,) of m groups of k rows; x (m, k, in, h, w), g (m, k, out, h', w').

    After `pixel_unshuffle` by the stride, the convolution has stride 1 and a kernel of (kh / s, kw / s): the Gram
    matrix of patches is a sum of shifted windows of the Gram matrix of pixels.
    """
    m, k, _, out_height, out_width = g.shape
    height, width = _unshuffled(layer, g)
    stride, (top, left) = layer.stride[0], _padding(layer)
    x = x.flatten(0, 1)
    bottom, right = height * stride - x.shape[2] - top, width * stride - x.shape[3] - left  # negative: cut off
    x = F.pixel_unshuffle(F.pad(x, (left, right, top, bottom)), stride)  # (m k, in s s, height, width)
    x = x.reshape(m, k, -1, height * width).transpose(2, 3).flatten(1, 2) if k > 1 else x.flatten(2).transpose(1, 2)
    pixels = (x @ x.transpose(1, 2)).reshape(m, k, height, width, k, height, width)
    patches = pixels.new_zeros(m, k, out_height, out_width, k, out_height, out_width)
    for i in range(layer.kernel_size[0] // stride):
        for j in range(layer.kernel_size[1] // stride):
            rows, columns = slice(i, i + out_height), slice(j, j + out_width)
            patches += pixels[:, :, rows, columns, :, rows, columns]
    positions = k * out_height * out_width
    g = g.flatten(3).transpose(2, 3).flatten(1, 2)  # (m, positions, out)
    return _paired(patches.reshape(m, positions, positions), g @ g.transpose(1, 2))


_KERNELS: dict[type[nn.Module], Kernel] = {
    nn.Conv2d: _convolution,  # type: ignore[dict-item]
    nn.Linear: _linear,  # type: ignore[dict-item]
    nn.GroupNorm: _normalisation,  # type: ignore[dict-item]
    nn.InstanceNorm2d: _normalisation,  # type: ignore[dict-item]
    nn.LayerNorm: _layer_norm,  # type: ignore[dict-item]
    nn.Embedding: _embedding,  # type: ignore[dict-item]
}
