"""Builds with one planted bug each, for the audit of the whole step: `python -m tests.planted.audit_builds NAME`.

Each runs the hospital's own loop with one function of it replaced, or accounts it as something else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from client.audited import HOSPITAL
from ghostnet.accounting.catalogue import Statistic
from ghostnet.accounting.events import Event, GaussianRelease
from ghostnet.accounting.plan_cost import plan_events
from ghostnet.audit.every_release import Build
from ghostnet.plan import Plan
from ghostnet.privacy.mechanism import PatientGradients, RowLoss, Rows, noised_sum
from ghostnet.privacy.noise import Entropy
from ghostnet.training import loop
from tests.entropy import SeededEntropy

BATCH = 64  # what a wrong loop takes for its batch size


def loop_with(**replaced: object) -> Any:
    """The hospital's loop, line by line, with other functions under the given names wherever its module uses them.

    One under the name `noised_sum` is called with the numbers that the catalogue and the plan give.
    """
    if "noised_sum" in replaced:
        replaced["release_step"] = _with_noise_of(replaced.pop("noised_sum"))
    unknown = replaced.keys() - vars(loop).keys()
    if unknown:
        raise LookupError(f"ghostnet.training.loop has no {unknown}; the planted bug would do nothing")
    names = {**vars(loop), **replaced}
    for name, function in vars(loop).items():
        own = isinstance(function, FunctionType) and function.__module__ == loop.__name__
        if own and name not in replaced and function.__closure__ is None:
            names[name] = FunctionType(function.__code__, names, name, function.__defaults__)
            names[name].__kwdefaults__ = function.__kwdefaults__
    return names["train_round"]


def _with_noise_of(noised: Any) -> Callable[..., dict[str, Tensor]]:
    def release(statistic: Statistic, summed: dict[str, Tensor], plan: Plan, *, entropy: Entropy) -> Any:
        sizes = {"clip_norm": statistic.norm_bound(plan), "noise_multiplier": statistic.noise_multiplier(plan)}
        return noised(summed, **sizes, entropy=entropy)

    return release


def scaled_noise(factor: float) -> Callable[..., dict[str, Tensor]]:
    """Noise of another size than accounted."""

    def noised(summed: dict[str, Tensor], *, clip_norm: float, noise_multiplier: float, entropy: Entropy) -> Any:
        return noised_sum(summed, clip_norm=clip_norm, noise_multiplier=noise_multiplier * factor, entropy=entropy)

    return noised


def same_noise(
    summed: dict[str, Tensor], *, clip_norm: float, noise_multiplier: float, entropy: Entropy
) -> dict[str, Tensor]:
    """Noise from a fixed seed, each step anew."""
    del entropy
    return noised_sum(summed, clip_norm=clip_norm, noise_multiplier=noise_multiplier, entropy=SeededEntropy(1))


def one_parameter_bare(
    summed: dict[str, Tensor], *, clip_norm: float, noise_multiplier: float, entropy: Entropy
) -> dict[str, Tensor]:
    """One small tensor is left out of the noise."""
    noised = noised_sum(summed, clip_norm=clip_norm, noise_multiplier=noise_multiplier, entropy=entropy)
    small = min(summed, key=lambda name: summed[name].numel())
    return {**noised, small: summed[small].float()}


class NoClip(PatientGradients):
    """Sums patients' gradients as they are."""

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, *, clip_norm: float, **named: Any) -> dict[str, Tensor]:
        """Unbounded."""
        return super().clipped_sum(rows, row_loss, clip_norm=1e6 * clip_norm, **named)


class ImageClip(PatientGradients):
    """Clips every image by itself."""

    def clipped_sum(self, rows: Rows, row_loss: RowLoss, **named: Any) -> dict[str, Tensor]:
        """A patient with k images counts k times."""
        apart = replace(rows, groups=torch.arange(len(rows.images)), group_count=len(rows.images))
        return super().clipped_sum(apart, row_loss, **named)


class Shuffled:
    """Epochs of shuffled batches of one size."""

    def __init__(self) -> None:
        self._order = torch.zeros(0, dtype=torch.int64)
        self._patients = -1

    def __call__(self, patients: int, sampling_rate: float, entropy: Entropy) -> Tensor:
        """The next batch."""
        size = int(patients * sampling_rate)
        if patients != self._patients or len(self._order) < size:
            self._patients, self._order = patients, torch.from_numpy(entropy.uniform(patients).argsort())
        batch, self._order = self._order[:size], self._order[size:]
        return batch.sort().values


def views_by_row(entropy: Entropy) -> Any:
    """Views of reals from a public stream, so that one patient more gives all later ones other views."""
    del entropy
    public = torch.Generator().manual_seed(0)
    return lambda high, n: torch.randint(0, high, (n,), generator=public)


def accounted(**changes: Callable[[Any], Any]) -> Callable[[Plan], tuple[Event, ...]]:
    """Events with some fields wrong."""

    def events(plan: Plan) -> tuple[Event, ...]:
        return tuple(
            replace(event, **{name: change(getattr(event, name)) for name, change in changes.items()})
            for event in plan_events(plan)
            if not isinstance(event, GaussianRelease)
        )

    return events


def planted(name: str, **replaced: object) -> Build:
    """A build that runs something wrong."""
    return replace(HOSPITAL, name=name, train_round=loop_with(**replaced))


NOISE_OVER_BATCH = planted("noise / B", noised_sum=scaled_noise(1 / BATCH))
NOISE_OVER_4 = planted("noise / 4", noised_sum=scaled_noise(1 / 4))
NO_CLIP = planted("no clip", PatientGradients=NoClip)
IMAGE_CLIP = planted("image-level clip", PatientGradients=ImageClip)
SAME_NOISE = planted("same noise every step", noised_sum=same_noise)
ONE_PARAMETER_BARE = planted("one parameter without noise", noised_sum=one_parameter_bare)
SHUFFLED = planted("shuffled batches", sample_patients=Shuffled())
VIEWS_BY_ROW = planted("views by row", _private_draw=views_by_row)
HALF_RATE_CLAIMED = replace(HOSPITAL, name="q / 2 accounted", plan_events=accounted(sampling_rate=lambda q: q / 2))
QUARTER_CLAIMED = replace(HOSPITAL, name="T / 4 accounted", plan_events=accounted(steps=lambda steps: steps // 4))

BUILDS = {name: build for name, build in vars().items() if isinstance(build, Build) and build is not HOSPITAL}


def main() -> None:
    """Audits one of the builds, by the same command line that a hospital uses."""
    from ghostnet.cli.main import main as ghostnet

    names = sorted(BUILDS)
    if len(sys.argv) < 2 or sys.argv[1] not in BUILDS:
        raise SystemExit(f"give one of {', '.join(names)}")
    sys.argv = ["ghostnet", "audit", "mechanism", "--build", f"{__spec__.name}:{sys.argv[1]}", *sys.argv[2:]]
    ghostnet()


if __name__ == "__main__":
    main()
