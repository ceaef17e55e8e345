"""How the coordinator talks to hospitals and combines what they return.

It sees released values only. Nothing that arrives is trusted: names, shapes, types and finiteness are checked before
anything is averaged, every hospital weighs the same, and the number of hospitals comes from who answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from logging import INFO, WARNING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from ghostnet import protocol
from ghostnet.errors import FederationError
from ghostnet.plan import Plan
from ghostnet.privacy import keys
from ghostnet.weights import Arrays, check_arrays

NODE_WAIT_S = 120.0


@dataclass
class Hospital:
    """What the coordinator knows of a hospital that joined."""

    name: str
    node_id: int
    public_key: str
    ledger_head: str
    answered: list[str] = field(default_factory=list)
    statement: dict[str, object] | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is remembered of a hospital between attempts: its key, and the last ledger head that it showed."""

    public_key: str
    ledger_head: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall time of one phase, and of its slowest hospital as its reply's own clock tells."""

    phase: str
    round: int
    wall_s: float
    slowest_client_s: float


class Conversation:
    """One run's requests and checked replies, over any Flower `Grid`.

    Args:
        grid: Flower's grid: in-process, Ray or deployed.
        plan: the resolved plan.
        run_id: 32 hexadecimal digits.
        key: the coordinator's signing key; it countersigns every ledger head that it is shown.
        known: what an earlier attempt of this run saw of each hospital, by name.
        timings: every phase's times are added to it.
    """

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        run_id: str,
        key: Ed25519PrivateKey,
        known: Mapping[str, Known],
        timings: list[Timing],
    ) -> None:
        self.grid, self.plan, self.run_id = grid, plan, run_id
        self.hospitals: dict[int, Hospital] = {}
        self.timings = timings
        self._key, self._known = key, known
        self.spent: list[str] = []

    def join(self, expected: int) -> None:
        """Asks every connected node to take part; keeps those that do.

        Raises:
            FederationError: fewer than the plan's `min_hospitals` joined, or two use one name.
        """
        node_ids = wait_for_nodes(self.grid, expected)
        refused: list[str] = []
        for reply in self.ask(protocol.JOIN, node_ids, refused=refused):
            config = reply.content.config_records[protocol.CONFIG]
            hospital = Hospital(
                name=str(config["name"]),
                node_id=reply.metadata.src_node_id,
                public_key=str(config["public-key"]),
                ledger_head=str(config["ledger-head"]),
            )
            if any(hospital.name == other.name for other in self.hospitals.values()):
                raise FederationError(
                    f"two hospitals call themselves {hospital.name!r}; give each site.toml a name of its own"
                )
            before = self._known.get(hospital.name)
            if before is not None and before.public_key != hospital.public_key:
                log(WARNING, "a node calls itself %s and has another key than before; it is left out", hospital.name)
                continue
            # An earlier attempt's head goes out with the next request: the hospital checks that it still has it.
            hospital.ledger_head = before.ledger_head if before is not None else hospital.ledger_head
            self.hospitals[hospital.node_id] = hospital
        self.require(len(self.hospitals), "joined", refused)

    def ask(
        self,
        kind: str,
        node_ids: Iterable[int],
        *,
        config: Mapping[str, str | int] | None = None,
        arrays: Mapping[str, Arrays] | None = None,
        refused: list[str] | None = None,
    ) -> list[Message]:
        """Sends one request to the nodes and returns the replies that carry content.

        Error replies are logged, and their reasons appended to `refused`; they are fixed sentences by contract.
        """
        records = {name: to_record(values) for name, values in (arrays or {}).items()}
        messages = [
            Message(
                RecordDict({**records, protocol.CONFIG: ConfigRecord(self.config(node_id, config))}),
                dst_node_id=node_id,
                message_type=kind,
                ttl=self.plan.federation.round_timeout_s,
            )
            for node_id in node_ids
        ]
        started = time.time()
        replies = list(self.grid.send_and_receive(messages, timeout=self.plan.federation.round_timeout_s))
        return self.sort_replies(replies, kind, started, refused)

    def sort_replies(
        self,
        replies: Iterable[Message],
        kind: str,
        started: float,
        refused: list[str] | None = None,
        *,
        number: int = 0,
    ) -> list[Message]:
        """Splits errors from answers, notes times, and keeps every ledger head that came with an answer."""
        good: list[Message] = []
        slowest = 0.0
        self.spent.clear()
        for reply in replies:
            slowest = max(slowest, reply.metadata.created_at - started)
            if reply.has_error():
                log(WARNING, "a hospital did not answer %s: %s", kind, reply.error.reason)
                if refused is not None:
                    refused.append(reply.error.reason)
                if reply.error.code == protocol.SPENT:
                    self.spent.append(reply.error.reason)
                continue
            good.append(reply)
            hospital = self.hospitals.get(reply.metadata.src_node_id)
            head = reply.content.config_records.get(protocol.CONFIG, ConfigRecord()).get("ledger-head")
            if hospital and isinstance(head, str):
                hospital.ledger_head = head
                hospital.answered.append(f"{kind}-{number}" if number else kind)
        wall = time.time() - started
        self.timings.append(Timing(phase=kind, round=number, wall_s=wall, slowest_client_s=min(slowest, wall)))
        return good

    def config(self, node_id: int, extra: Mapping[str, str | int] | None = None) -> dict[str, str | int]:
        """The part that every request carries: plan, run, and the last ledger head with our signature under it."""
        hospital = self.hospitals.get(node_id)
        values: dict[str, str | int] = {
            "plan": json.dumps(self.plan.to_dict()),
            "run-id": self.run_id,
            "server-key": keys.public_hex(self._key),
            **(extra or {}),
        }
        if hospital:
            document = keys.head_document(site=hospital.name, head=hospital.ledger_head)
            values["known-head"] = hospital.ledger_head
            values["head-signature"] = keys.sign(self._key, document)
        return values

    def require(self, count: int, did: str, reasons: Iterable[str] = ()) -> None:
        """Refuses to go on with fewer hospitals than the plan asks for.

        Raises:
            FederationError: with the hospitals' own (fixed) reasons.
        """
        least = self.plan.federation.min_hospitals
        if count < least:
            said = "; ".join(reasons) or "no reply came in time"
            raise FederationError(f"{count} of at least {least} hospitals {did}: {said}")


class EqualAverage(FedAvg):
    """Flower's FedAvg over checked replies, each hospital with weight one.

    Args:
        conversation: the run's requests and hospitals.
        public: arrays sent beside the generator, the released mean.
        rounds_done: rounds that an earlier attempt of this run finished.
    """

    def __init__(self, conversation: Conversation, public: Arrays, rounds_done: int) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_train_nodes=1,
            min_available_nodes=1,
            weighted_by_key=protocol.WEIGHT,
        )
        self._conversation, self._public, self._rounds_done = conversation, public, rounds_done
        self._sent: Arrays = {}
        self._started = 0.0

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
        """Averages the generators whose arrays are those that were sent, in name, shape and type, and finite.

        Raises:
            FederationError: fewer than the plan's `min_hospitals` sent such a generator.
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
            # A hospital's answer weighs one, whatever it wrote there; and FedAvg wants no further records.
            reply.content = RecordDict(
                {
                    protocol.ARRAYS: reply.content.array_records[protocol.ARRAYS],
                    protocol.METRICS: MetricRecord({protocol.WEIGHT: 1.0}),
                }
            )
        averaged, _ = super().aggregate_train(server_round, checked)
        log(INFO, "round %s: averaged %s generators", number, len(checked))
        return averaged, None

    def summary(self) -> None:
        """Says what is averaged, where Flower prints its strategy's settings."""
        log(INFO, "equal average of %s hospitals' generators", len(self._conversation.hospitals))

    def _fits(self, reply: Message, reasons: list[str]) -> bool:
        name = self._conversation.hospitals[reply.metadata.src_node_id].name
        record = reply.content.array_records.get(protocol.ARRAYS)
        try:
            check_arrays({} if record is None else from_record(record), self._sent)
        except FederationError as error:
            log(WARNING, "the generator of %s is left out: %s", name, error)
            reasons.append(f"{name}: {error}")
            return False
        return True


def wait_for_nodes(grid: Grid, expected: int, *, timeout_s: float = NODE_WAIT_S) -> list[int]:
    """Node ids once `expected` are online, or those that are when the time is up.

    Raises:
        FederationError: no node at all.
    """
    deadline = time.monotonic() + timeout_s
    while len(node_ids := list(grid.get_node_ids())) < expected and time.monotonic() < deadline:
        time.sleep(0.5)
    if not node_ids:
        raise FederationError(f"no hospital is connected after {timeout_s:g} s; start their nodes, then run again")
    return node_ids


def sum_replies(replies: Iterable[Message], name: str, expected: Arrays) -> tuple[np.ndarray, int]:
    """Sum, in float64, of array `name` over the replies that carry exactly `expected`'s shape; and their number."""
    total = np.zeros(expected[name].shape, dtype=np.float64)
    count = 0
    for reply in replies:
        record = reply.content.array_records.get(protocol.ARRAYS)
        try:
            arrays = {} if record is None else from_record(record)
            check_arrays(arrays, expected)
        except FederationError as error:
            log(WARNING, "a reply is left out of the sum: %s", error)
            continue
        total += arrays[name]
        count += 1
    return total, count


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as Flower's record (np.save format, no pickle)."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Flower's record as named arrays; the checks are the caller's."""
    return {name: array.numpy() for name, array in record.items()}
