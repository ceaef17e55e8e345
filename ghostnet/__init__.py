"""GhostNet: hospitals train one generator of medical images together, and no image leaves any of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghostnet.sampler.sampler import Sampler

__version__ = "0.1.0"
__all__ = ["Sampler", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import ghostnet.plan` alone does not pay for torch.
    if name == "Sampler":
        from ghostnet.sampler.sampler import Sampler

        return Sampler
    raise AttributeError(f"module 'ghostnet' has no attribute {name!r}")
