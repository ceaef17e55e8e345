"""How the coordinator combines the weights that hospitals return: Flower's strategies behind one set of checks.

Nothing that arrives is trusted: names, shapes, types and finiteness are checked before anything is combined, and a
hospital's weight comes from the plan, never from its reply.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from logging import INFO, WARNING

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedTrimmedAvg

from ghostnet import protocol
from ghostnet.errors import FederationError
from ghostnet.federation import FederationSpec
from ghostnet.weights import Arrays, check_arrays
from server.conversation import Conversation, from_record, to_record

FEDADAM_BETA_2 = 0.99  # and tau = 1e-3: the values of Reddi et al. 2021, and Flower's own


class CheckedStrategy(FedAvg):
    """The plan's server optimiser over checked replies.

    Args:
        conversation: the run's requests and hospitals.
        public: arrays sent beside the weights, the released mean.
        rounds_done: rounds that an earlier attempt of this run finished.
        statistics: names among the weights that are no parameters (a BatchNorm's running variance): always averaged,
            since momentum could carry a variance below zero.
        optimizer_state: what `optimizer_state` gave after the last of those rounds.
    """

    def __init__(
        self,
        conversation: Conversation,
        public: Arrays,
        rounds_done: int,
        *,
        statistics: Iterable[str] = (),
        optimizer_state: Arrays | None = None,
    ) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
        self._conversation, self._public, self._rounds_done = conversation, public, rounds_done
        self._statistics = frozenset(statistics)
        self._optimizer = _flower_strategy(conversation.plan.federation)
        self._sent: Arrays = {}
        self._started = 0.0
        _load_state(self._optimizer, optimizer_state or {})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request to each hospital that joined, whoever else is connected."""
        number = server_round + self._rounds_done
        self._sent, self._started = from_record(arrays), time.time()
        return [
            Message(
                RecordDict(
                    {
                        protocol.ARRAYS: arrays,
                        protocol.PUBLIC: to_record(self._public),
                        protocol.CONFIG: ConfigRecord(self._conversation.config(node_id, {"server-round": number})),
                    }
                ),
                dst_node_id=node_id,
                message_type=MessageType.TRAIN,
                ttl=self._conversation.plan.federation.round_timeout_s,
                group_id=str(number),
            )
            for node_id in self._conversation.hospitals
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combines the weights whose arrays are those that were sent, in name, shape and type, and finite.

        Raises:
            FederationError: fewer than the plan's `min_hospitals` sent such weights, or the optimiser diverged.
        """
        number = server_round + self._rounds_done
        reasons: list[str] = []
        answers = self._conversation.sort_replies(replies, protocol.TRAIN, self._started, reasons, number=number)
        checked = [reply for reply in answers if self._fits(reply, reasons)]
        if not checked and self._conversation.spent:
            # An earlier attempt died inside this round at every hospital: it is spent, and the run goes on without it.
            log(WARNING, "round %s is spent without an answer; its generator stays as it was", number)
            return to_record(self._sent), None
        self._conversation.require(len(checked), f"answered round {number}", reasons)
        for reply in checked:
            self._only_weights(reply)
        means = _weighted_means(checked, sorted(self._statistics & self._sent.keys()))
        _set_current(self._optimizer, self._sent)
        combined, _ = self._optimizer.aggregate_train(number, checked)
        log(INFO, "round %s: combined %s hospitals' weights", number, len(checked))
        return to_record(self._published(combined, means)), None

    def optimizer_state(self) -> Arrays:
        """Moments of the server's optimiser, by name; nothing where it has none."""
        optimizer = self._optimizer
        if isinstance(optimizer, FedAdam) and optimizer.m_t is not None and optimizer.v_t is not None:
            moments = {"m": optimizer.m_t, "v": optimizer.v_t}
            return {f"{kind}.{name}": np.asarray(a) for kind, part in moments.items() for name, a in part.items()}
        if isinstance(optimizer, FedAvgM) and optimizer.momentum_vector is not None:
            return {f"m.{i:05d}": np.asarray(array) for i, array in enumerate(optimizer.momentum_vector)}
        return {}

    def summary(self) -> None:
        """Says how weights are combined, where Flower prints its strategy's settings."""
        federation = self._conversation.plan.federation
        log(INFO, "%s over %s hospitals' weights", federation.server_optimizer, len(self._conversation.hospitals))

    def _published(self, combined: ArrayRecord | None, means: Arrays) -> Arrays:
        """Float32 whatever NumPy promoted to, statistics averaged, all of it finite."""
        if combined is None:
            raise FederationError("Flower's strategy combined nothing; see its log")
        arrays = {name: np.asarray(a, dtype=np.float32) for name, a in {**from_record(combined), **means}.items()}
        try:
            check_arrays(arrays, self._sent)
        except FederationError as error:
            name = self._conversation.plan.federation.server_optimizer
            raise FederationError(f"{name} diverged: {error}; lower server_learning_rate or server_momentum") from None
        return arrays

    def _only_weights(self, reply: Message) -> None:
        """In the order that was sent, with the plan's weight: Flower's strategies pair arrays by their places."""
        arrays = from_record(reply.content.array_records[protocol.ARRAYS])
        weight = self._conversation.plan.federation.weight_of(
            self._conversation.hospitals[reply.metadata.src_node_id].name
        )
        reply.content = RecordDict(
            {
                protocol.ARRAYS: to_record({name: arrays[name] for name in self._sent}),
                protocol.METRICS: MetricRecord({protocol.WEIGHT: weight}),
            }
        )

    def _fits(self, reply: Message, reasons: list[str]) -> bool:
        name = self._conversation.hospitals[reply.metadata.src_node_id].name
        record = reply.content.array_records.get(protocol.ARRAYS)
        try:
            check_arrays({} if record is None else from_record(record), self._sent)
        except FederationError as error:
            log(WARNING, "the weights of %s are left out: %s", name, error)
            reasons.append(f"{name}: {error}")
            return False
        return True


def _flower_strategy(federation: FederationSpec) -> FedAvg:
    """Flower's strategy of the plan's name; it is only ever asked to combine."""
    if federation.server_optimizer == "fedavgm":
        return FedAvgM(
            weighted_by_key=protocol.WEIGHT,
            server_learning_rate=federation.server_learning_rate,
            server_momentum=federation.server_momentum,
        )
    if federation.server_optimizer == "fedadam":
        return FedAdam(
            weighted_by_key=protocol.WEIGHT,
            eta=federation.server_learning_rate,
            beta_1=federation.server_momentum,
            beta_2=FEDADAM_BETA_2,
        )
    if federation.server_optimizer == "trimmed-mean":
        return FedTrimmedAvg(weighted_by_key=protocol.WEIGHT, beta=federation.trim)
    if federation.server_optimizer == "median":
        return FedMedian(weighted_by_key=protocol.WEIGHT)
    return FedAvg(weighted_by_key=protocol.WEIGHT)


def _set_current(optimizer: FedAvg, sent: Arrays) -> None:
    """The weights that replies are compared with; Flower's own `configure_train`, which is not used, sets them."""
    if isinstance(optimizer, FedAvgM):
        optimizer.current_arrays = to_record(sent)
    elif isinstance(optimizer, FedAdam):
        optimizer.current_arrays = dict(sent)


def _load_state(optimizer: FedAvg, state: Arrays) -> None:
    if isinstance(optimizer, FedAdam) and state:
        optimizer.m_t = {name.removeprefix("m."): a for name, a in state.items() if name.startswith("m.")}
        optimizer.v_t = {name.removeprefix("v."): a for name, a in state.items() if name.startswith("v.")}
    elif isinstance(optimizer, FedAvgM) and state:
        optimizer.momentum_vector = [state[name] for name in sorted(state)]


def _weighted_means(replies: Sequence[Message], names: Iterable[str]) -> Arrays:
    """Mean of each named array over the replies, by their weights."""
    weights = np.array([reply.content.metric_records[protocol.METRICS][protocol.WEIGHT] for reply in replies])
    arrays = [reply.content.array_records[protocol.ARRAYS] for reply in replies]
    return {
        name: np.tensordot(weights / weights.sum(), np.stack([record[name].numpy() for record in arrays]), axes=1)
        for name in names
    }
