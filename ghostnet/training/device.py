"""The device of the heavy arithmetic: named by a machine's own settings, never by the plan."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ghostnet.errors import SiteError

if TYPE_CHECKING:
    import torch

AUTO = "auto"
DEVICE_NAME = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


def check_device_name(name: str, *, key: str) -> None:
    """Refuses what names no device; whether this machine has it is seen when it is used.

    Raises:
        SiteError: says where to change it.
    """
    if not DEVICE_NAME.fullmatch(name):
        raise SiteError(f'{key} = {name!r} is not "auto", "cpu" or "cuda:0" (or another number); change it')


def find_device(name: str, *, key: str = "--device") -> torch.device:
    """The device of that name; "auto" is a GPU where torch sees one, and else the CPU.

    Raises:
        SiteError: it is no such name, or this machine has no such GPU.
    """
    import torch  # here, because a site.toml is read by processes that have no use for it

    check_device_name(name, key=key)
    if name == AUTO:
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise SiteError(
            f'{key} = "{name}" and torch sees {seen} GPU(s) here; use "auto" or "cpu", or install a CUDA build of torch'
        )
    return device
