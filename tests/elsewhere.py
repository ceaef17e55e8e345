"""A second device on a machine that has none: numbers that live there, computed by the CPU, apart from the CPU's own.

`elsewhere()` makes torch's "meta" device hold real numbers. A tensor there meets a CPU tensor as a GPU's would: an
operation on both is an error. So code that leaves something on the wrong device fails here as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
HEAVY = ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
_BETWEEN = ("_to_copy", "copy_")  # may read one device and write another
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")  # by places that may be the CPU's


class _There(torch.Tensor):
    """A tensor of the other device; `inner` is where its numbers are."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> _There:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"There({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Computes where the arguments are; two devices in one operation are an error, but for numbers and copies."""
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    name = func._schema.name.removeprefix("aten::")
    there = [value for value in given if isinstance(value, _There)]
    here = [value for value in given if not isinstance(value, _There) and value.dim() > 0]
    if name in _INDEXED:
        here = [value for value in here if value.is_floating_point()]
    if there and here and name not in _BETWEEN:
        raise RuntimeError(f"{name}: tensors on two devices")
    target = kwargs.get("device")
    kwargs = {k: torch.device("cpu") if k == "device" and v is not None else v for k, v in kwargs.items()}
    inner_args, inner_kwargs = tree_map(lambda v: v.inner if isinstance(v, _There) else v, (args, kwargs))
    if target is not None and name == "_to_copy" and torch.device(target) != given[0].device:
        inner_args = (inner_args[0].clone(), *inner_args[1:])
    result = func(*inner_args, **inner_kwargs)
    leaves = bool(there) if target is None else torch.device(target) == DEVICE
    if name == "copy_":
        return args[0]
    if not leaves:
        return result
    known = {id(value.inner): value for value in there}

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else _There(value)  # changed in place: the tensor itself

    return tree_map(placed, result)


class _Watch(TorchDispatchMode):
    """Counts heavy operations by device."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy = {"here": 0, "there": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in HEAVY:
            there = any(isinstance(v, _There) for v in tree_flatten((args, kwargs))[0])
            self.heavy["there" if there else "here"] += 1
        return _run(func, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Numbers written in the code, which torch puts on a device before any other hook sees them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.new_tensor and isinstance(args[0], _There):
            return _There(args[0].inner.new_tensor(*args[1:], **kwargs))
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return _There(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], _There):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[dict[str, int]]:
    """Numbers of products and convolutions that ran "here", on the CPU, and "there"."""
    watch = _Watch()
    with _Literals(), watch:
        yield watch.heavy
