"""Float32 as it is written: no TF32 and no bfloat16 between a row's loss and its clipped norm.

torch multiplies float32 numbers on a GPU in TF32 by default where cuDNN convolves, with a mantissa of 10 bits: clipped
sums are then off by up to 0.3 C. That rounding is in no reserve, so it is switched off where private sums are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_BACKENDS: Any = torch.backends
_SWITCHES = (
    _BACKENDS.cuda.matmul,
    _BACKENDS.cudnn.conv,
    _BACKENDS.cudnn.rnn,
    _BACKENDS.mkldnn.matmul,
    _BACKENDS.mkldnn.conv,
)


@contextmanager
def whole_float32() -> Iterator[None]:
    """Full float32 in products and convolutions, on every device, whatever the process allows elsewhere."""
    before = [switch.fp32_precision for switch in _SWITCHES]
    try:
        for switch in _SWITCHES:
            switch.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for switch, precision in zip(_SWITCHES, before, strict=True):
            switch.fp32_precision = precision
