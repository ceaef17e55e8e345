"""The combination of the weights that hospitals return: a Flower strategy behind one set of checks.

Nothing that arrives is trusted: names, shapes, types and finiteness are checked before anything is combined, and a
hospital's weight comes from the plan, never from its reply. The formulas are in `ghostnet.exchange.combining`, which
whoever verifies a sampler runs again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from ghostnet.certificate.transcript import round_record
from ghostnet.errors import FederationError
from ghostnet.exchange.arrays import Arrays, check_arrays
from ghostnet.exchange.combining import combine
from ghostnet.exchange.flower import from_record, to_record
from ghostnet.exchange.messages import RoundAnswer, RoundRequest
from ghostnet.plan.federation import FederationSpec
from server.conversation import Conversation


@dataclass(frozen=True, kw_only=True)
class CombinedRound:
    """The answers that a round was combined from."""

    number: int  # 1-based
    answers: dict[str, Arrays]
    sent: Arrays
    moments: Arrays  # of the server's optimiser, before the round

    def recorded(self, before: Arrays, federation: FederationSpec) -> Arrays:
        """The transcript that this round leaves (`ghostnet.certificate.transcript`)."""
        return round_record(
            before,
            self.answers,
            server_round=self.number,
            sent=self.sent,
            moments=self.moments,
            federation=federation,
        )


class CheckedStrategy(FedAvg):
    """The plan's server optimiser over checked replies.

    Args:
        conversation: the run's requests and hospitals.
        public: arrays sent beside the weights, the released mean.
        rounds_done: rounds that an earlier attempt of this run finished.
        averaged: names among the weights that are no parameters (`transcript.averaged_names`).
        moments: those of the server's optimiser after the last of those rounds.

    Attributes:
        moments: those after the newest round.
        combined: the newest round; None for one that nobody answered.
    """

    def __init__(
        self,
        conversation: Conversation,
        public: Arrays,
        rounds_done: int,
        *,
        averaged: Collection[str] = (),
        moments: Arrays | None = None,
    ) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        self._conversation, self._public, self._rounds_done = conversation, public, rounds_done
        self._averaged = frozenset(averaged)
        self._sent: Arrays = {}
        self._started = 0.0
        self.moments: Arrays = dict(moments or {})
        self.combined: CombinedRound | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request to each hospital that joined, whoever else is connected."""
        number = server_round + self._rounds_done
        self._sent, self._started = from_record(arrays), time.time()
        body = RoundRequest(server_round=number, weights=self._sent, released_mean=self._public)
        return self._conversation.requests(body, self._conversation.hospitals, group_id=str(number))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combines the weights whose arrays are those that were sent, in name, shape and type, and finite.

        Raises:
            FederationError: fewer than the plan's `min_hospitals` sent such weights, or the optimiser diverged.
        """
        number = server_round + self._rounds_done
        reasons: list[str] = []
        self.combined = None
        answers = self._conversation.sort_replies(replies, RoundAnswer, self._started, reasons, number=number)
        checked = self._conversation.fitting(answers, self._sent, reasons, number=number)
        if not checked and self._conversation.spent:
            # An earlier attempt died inside this round at every hospital: it is spent, and the run goes on without it.
            log(WARNING, "round %s is spent without an answer; its generator stays as it was", number)
            return to_record(self._sent), None
        self._conversation.require(len(checked), f"answered round {number}", reasons)
        federation = self._conversation.plan.federation
        made = combine(
            checked,
            federation,
            names=self._sent,
            server_round=number,
            sent=self._sent,
            moments=self.moments,
            averaged=self._averaged,
        )
        try:
            check_arrays(made.weights, self._sent)
        except FederationError as error:
            name = federation.server_optimizer
            raise FederationError(f"{name} diverged: {error}; lower server_learning_rate or server_momentum") from None
        self.combined = CombinedRound(number=number, answers=checked, sent=self._sent, moments=self.moments)
        self.moments = made.moments
        log(INFO, "round %s: combined %s hospitals' weights", number, len(checked))
        return to_record(made.weights), None

    def summary(self) -> None:
        """Says how weights are combined, where Flower prints its strategy's settings."""
        federation = self._conversation.plan.federation
        log(INFO, "%s over %s hospitals' weights", federation.server_optimizer, len(self._conversation.hospitals))
