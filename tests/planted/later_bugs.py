"""Wrong builds of masks, and of what follows the noise. Each is the product with one piece replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ghostnet.exchange.secure_sum import Masks
from ghostnet.plan import TrainingSpec
from ghostnet.training.cohort import Cohort
from ghostnet.training.losses import fakes_penalty
from tests.planted.audit_builds import loop_with

# One mask for all steps: the difference of two messages is that of the shares.


@contextmanager
def mask_used_twice() -> Iterator[None]:
    """The stream forgets which step it is for."""
    masked = Masks.masked
    with mock.patch.object(Masks, "masked", lambda self, values, request: masked(self, values, "step")):
        yield


# Once the sum is noised nothing may look at a patient again.


def asks_about_reals(*arguments: Any, **named: Any) -> None:
    """The generator steps once the discriminator knows the cohort's images for what they are."""
    cohort: Cohort = arguments[3]

    def is_due(
        network: nn.Module, fakes: Tensor, labels: Tensor, training: TrainingSpec, *, step: int, waited: int
    ) -> bool:
        del fakes, labels, step
        with torch.no_grad():
            accuracy = float((network(cohort.images, cohort.labels) > 0).float().mean())
        return accuracy >= training.fakes_accuracy or waited >= training.discriminator_steps_most

    loop_with(_generator_is_due=is_due)(*arguments, **named)


def penalises_at_reals(*arguments: Any, **named: Any) -> None:
    """The penalty of WGAN-GP, taken where its paper takes it, beside the noised gradient."""
    cohort: Cohort = arguments[3]

    def penalty(network: nn.Module, fakes: Tensor, labels: Tensor, **kind: Any) -> list[Tensor]:
        del fakes, labels
        return fakes_penalty(network, cohort.images[:8], cohort.labels[:8], **kind)

    loop_with(fakes_penalty=penalty)(*arguments, **named)
