"""Notices a generator that diverges, from its fakes alone, and goes back to the last good one.

Fakes, weights and losses of the generator are public or come from releases, so watching them costs no privacy. Two
things are watched: values that are not finite, and collapse, where the fakes of a class become one image.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import torch
from torch import nn

logger = logging.getLogger(__name__)

COLLAPSED = 0.02  # spread of the fakes, relative to that of the generator that the round began with
KEEP_EVERY = 10  # generator steps between two copies of a good state
MAX_ROLLBACKS = 3  # in a round; then the generator rests until the round ends


def spread(images: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean squared distance of two fakes of one class, a pixel; 0 where no class has two.

    Args:
        images: float (b, planes, h, w).
        labels: int64 (b,).
    """
    found = [images[labels == label].flatten(1) for label in labels.unique()]
    pairs = [2 * float(rows.var(dim=0).mean()) for rows in found if len(rows) > 1]
    return sum(pairs) / len(pairs) if pairs else 0.0


@dataclass
class _Good:
    """A state to go back to."""

    generator: dict[str, torch.Tensor]
    discriminator: dict[str, torch.Tensor]
    step: int


class Watch:
    """The watch over one round.

    Args:
        generator: as it came from the server.
        discriminator: as it is at the start of the round.
        images: fakes of that generator (b, planes, h, w); their spread is what later ones are held against.
        labels: int64 (b,).
        first_step: number of the round's first step, for messages.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        first_step: int,
    ) -> None:
        self.rollbacks = 0
        self._reference = spread(images, labels)
        self._since = 0
        self._good = _copy(generator, discriminator, first_step)

    @property
    def stopped(self) -> bool:
        """True if the generator rests until the round ends."""
        return self.rollbacks > MAX_ROLLBACKS

    def diverged(self, images: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> str:
        """The fault in the fakes of a generator step, in words; "" if there is none."""
        if not (bool(images.isfinite().all()) and bool(loss.isfinite())):
            return "its images or its loss are not finite"
        if spread(images.detach(), labels) < COLLAPSED * self._reference:
            return "it draws one image a class"
        return ""

    def keep(self, average: nn.Module, discriminator: nn.Module, step: int) -> None:
        """Notes the moving average as a state to go back to, now and then."""
        self._since += 1
        if self._since % KEEP_EVERY == 0 and _finite(average) and _finite(discriminator):
            self._good = _copy(average, discriminator, step)

    def roll_back(
        self,
        generator: nn.Module,
        average: nn.Module,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        step: int,
        reason: str,
    ) -> None:
        """Puts generator and average back to the last good average, forgets the generator's moments, and says so.

        The discriminator goes back too where its weights are not finite.
        """
        generator.load_state_dict(self._good.generator)
        average.load_state_dict(self._good.generator)
        if not _finite(discriminator):
            discriminator.load_state_dict(self._good.discriminator)
        optimizer.state.clear()
        self.rollbacks += 1
        then = "it rests until the round ends" if self.stopped else "training goes on"
        logger.warning(
            "the generator diverged at step %d: %s; rolled back to its average of step %d, %s. If this repeats, lower "
            "training.learning_rate_generator or raise training.embedding_weight",
            *(step, reason, self._good.step, then),
        )

    def last_finite(self, average: nn.Module, *, step: int) -> nn.Module:
        """The average, or the last good one where a weight of it is not finite: what a round sends."""
        if not _finite(average):
            logger.warning(
                "the generator's average is not finite at step %d; that of step %d is sent instead. Lower "
                "training.learning_rate_generator",
                *(step, self._good.step),
            )
            average.load_state_dict(self._good.generator)
        return average


def _finite(network: nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


def _copy(generator: nn.Module, discriminator: nn.Module, step: int) -> _Good:
    return _Good(
        generator=copy.deepcopy(generator.state_dict()),
        discriminator=copy.deepcopy(discriminator.state_dict()),
        step=step,
    )
