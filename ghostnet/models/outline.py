"""A network's layers, names and shapes alone, before any memory is spent on what a stranger's sizes ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ghostnet.models import build_generator
from ghostnet.models.record import NetworkSizes


def outline_generator(sizes: NetworkSizes) -> nn.Module:
    """The generator on torch's meta device: it takes no memory, whatever its sizes, and draws no initial values.

    Without the second a meta tensor's `normal_` would import torch's compiler, which takes longer than all the rest.
    """
    with torch.device("meta"), _NoInitialValues():
        return build_generator(sizes)


class _NoInitialValues(TorchFunctionMode):
    """Makes every function of `torch.nn.init` return its tensor as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type[Any]],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
