"""How the coordinator talks to hospitals: requests out, checked replies in, and what it remembers of each of them.

It sees released values only, and nothing that arrives is trusted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from logging import WARNING

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from ghostnet.errors import FederationError, PlanError, printable
from ghostnet.evidence import keys
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays, check_arrays
from ghostnet.exchange.secure_sum import Member
from ghostnet.plan import Plan
from server.known_heads import KnownHeads

NODE_WAIT_S = 120.0
_MOST_REASON = 300  # characters of a hospital's error that are kept


@dataclass
class Hospital:
    """What the coordinator knows of a hospital that joined."""

    name: str
    node_id: int
    public_key: str
    ledger_head: str
    mask_key: str = ""  # pooled: of this run, signed
    mask_key_signature: str = ""
    answered: list[str] = field(default_factory=list)
    statement: dict[str, object] | None = None

    def as_member(self) -> Member:
        """Its entry in a pooled run's roster."""
        return Member(
            site=self.name, public_key=self.public_key, mask_key=self.mask_key, signature=self.mask_key_signature
        )


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

    def to_dict(self) -> dict[str, object]:
        """As it is written into files: to a tenth of a second."""
        values = asdict(self)
        return {**values, "wall_s": tenths(self.wall_s), "slowest_client_s": tenths(self.slowest_client_s)}


def tenths(seconds: float) -> float:
    """To a tenth of a second: finer times would say how many patients were drawn."""
    return round(seconds, 1)


class Conversation:
    """One run's requests and checked replies, over any Flower `Grid`.

    Args:
        grid: Flower's grid: in-process, Ray or deployed.
        plan: the resolved plan.
        run_id: 32 hexadecimal digits.
        key: the coordinator's signing key; it countersigns every ledger head that it is shown.
        known: what an earlier attempt of this run saw of each hospital, by name.
        heads: the last ledger head of every hospital, over all runs.
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
        heads: KnownHeads | None = None,
    ) -> None:
        self.grid, self.plan, self.run_id = grid, plan, run_id
        self.hospitals: dict[int, Hospital] = {}
        self.timings = timings
        self._key, self._known = key, known
        self._heads = heads or KnownHeads()
        self.spent: list[str] = []

    def join(self, expected: int) -> None:
        """Asks every connected node to take part; keeps those that do.

        Raises:
            FederationError: fewer joined than the plan asks for, or two use one name.
        """
        node_ids = wait_for_nodes(self.grid, expected)
        refused: list[str] = []
        sent = self._heads_to_send()
        known = {"known-heads": protocol.write_known_heads(self.run_id, sent.items())}
        for reply in self.ask(protocol.JOIN, node_ids, config=known, refused=refused):
            try:
                hospital = self._joined(reply)
            except (FederationError, PlanError) as error:
                log(WARNING, "a node is left out: %s", error)
                refused.append(str(error))
                continue
            if any(hospital.name == other.name for other in self.hospitals.values()):
                raise FederationError(
                    f"two hospitals call themselves {hospital.name!r}; give each site.toml a name of its own"
                )
            if hospital.public_key not in sent:
                # Beyond what a JOIN carries: its last head goes out with the next request, and is checked then.
                hospital.ledger_head = self._heads.head(hospital.public_key) or hospital.ledger_head
            self.hospitals[hospital.node_id] = hospital
        self._heads.note({hospital.public_key: hospital.ledger_head for hospital in self.hospitals.values()})
        self.require(len(self.hospitals), "joined", refused)

    def _joined(self, reply: Message) -> Hospital:
        """Who answers a JOIN; nothing that stands in it is trusted.

        Raises:
            FederationError, PlanError: why that node takes no part.
        """
        config = {name: str(value) for name, value in reply.content.config_records[protocol.CONFIG].items()}
        hospital = Hospital(
            name=config.get("name", ""),
            node_id=reply.metadata.src_node_id,
            public_key=config.get("public-key", ""),
            ledger_head=config["ledger-head"],
            mask_key=config.get("mask-key", ""),
            mask_key_signature=config.get("mask-key-signature", ""),
        )
        name = hospital.name
        if not keys.is_name(name):
            raise FederationError("a node gives no name of 1 to 32 lower-case letters, digits and hyphens")
        if name == keys.COORDINATOR:
            raise FederationError(f"a hospital calls itself {name!r}; give its site.toml another name")
        self.plan.federation.weight_of(name)
        before = self._known.get(name)
        if before is not None and before.public_key != hospital.public_key:
            raise FederationError(f"a node calls itself {name} and has another key than before")
        if any(hospital.public_key == other.public_key for other in self.hospitals.values()):
            raise FederationError(f"{name} has the key of another hospital, as a copied state folder has")
        document = protocol.join_document(run_id=self.run_id, head=hospital.ledger_head)
        if not keys.verify(hospital.public_key, document, config.get("join-signature", "")):
            raise FederationError(f"{name} did not sign with the key that it names")
        return hospital

    def _heads_to_send(self) -> dict[str, str]:
        """Heads by public key for a JOIN: the newest of all runs, and those of an earlier attempt of this one."""
        keys_and_heads = ((known.public_key, known.ledger_head) for known in self._known.values())
        earlier = {key: self._heads.head(key) or head for key, head in keys_and_heads}
        return dict(islice({**earlier, **dict(self._heads.newest())}.items(), protocol.MAX_KNOWN_HEADS))

    def ask(
        self,
        kind: str,
        node_ids: Iterable[int],
        *,
        config: Mapping[str, str | int] | None = None,
        arrays: Mapping[str, Arrays] | None = None,
        refused: list[str] | None = None,
        countersign: bool = True,
    ) -> list[Message]:
        """Sends one request to the nodes and returns the replies that carry content.

        Error replies are logged, and their reasons appended to `refused`; they are fixed sentences by contract.
        Without `countersign` hospitals are spared a ledger entry; for requests that come by the thousand.
        """
        records = {name: to_record(values) for name, values in (arrays or {}).items()}
        messages = [
            Message(
                RecordDict({**records, protocol.CONFIG: self.config(node_id, config, countersign=countersign)}),
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
        heads: dict[str, str] = {}
        for reply in replies:
            slowest = max(slowest, reply.metadata.created_at - started)
            if reply.has_error():
                reason = printable((reply.error.reason or "")[:_MOST_REASON])
                log(WARNING, "a hospital did not answer %s: %s", kind, reason)
                if refused is not None:
                    refused.append(reason)
                if reply.error.code == protocol.SPENT:
                    self.spent.append(reason)
                continue
            hospital = self.hospitals.get(reply.metadata.src_node_id)
            head = reply.content.config_records.get(protocol.CONFIG, ConfigRecord()).get("ledger-head")
            if not isinstance(head, str) or not protocol.is_head(head):
                log(WARNING, "an answer to %s shows no ledger head; it is left out", kind)
                if refused is not None:
                    refused.append("the answer shows no ledger head")
                continue
            good.append(reply)
            if hospital:
                hospital.ledger_head = heads[hospital.public_key] = head
                name = f"{kind}-{number}" if number else kind
                if name not in hospital.answered:
                    hospital.answered.append(name)
        self._heads.note(heads)
        wall = time.time() - started
        self.timings.append(Timing(phase=kind, round=number, wall_s=wall, slowest_client_s=min(slowest, wall)))
        return good

    def config(
        self, node_id: int, extra: Mapping[str, str | int] | None = None, *, countersign: bool = True
    ) -> ConfigRecord:
        """The part that every request carries: plan, run, and the last ledger head with our signature under it."""
        hospital = self.hospitals.get(node_id)
        values = ConfigRecord(
            {
                "plan": json.dumps(self.plan.to_dict()),
                "run-id": self.run_id,
                "server-key": keys.public_hex(self._key),
                **(extra or {}),
            }
        )
        if hospital and countersign:
            document = keys.head_document(site=hospital.name, head=hospital.ledger_head)
            values["known-head"] = hospital.ledger_head
            values["head-signature"] = keys.sign(self._key, document)
        return values

    def fitting(
        self, replies: Iterable[Message], expected: Arrays, refused: list[str] | None = None
    ) -> dict[str, Arrays]:
        """The answers whose arrays are `expected`'s in name, shape and type, and finite; by hospital, in their order.

        The others are logged, and why they do not fit is appended to `refused`.
        """
        answers: dict[str, Arrays] = {}
        for reply in replies:
            name = self.hospitals[reply.metadata.src_node_id].name
            try:
                arrays = read_arrays(reply)
                check_arrays(arrays, expected)
            except FederationError as error:
                log(WARNING, "the answer of %s is left out: %s", name, error)
                if refused is not None:
                    refused.append(f"{name}: {error}")
                continue
            answers[name] = arrays
        return dict(sorted(answers.items()))

    def require(self, count: int, did: str, reasons: Iterable[str] = ()) -> None:
        """Refuses to go on with fewer hospitals than the plan asks for.

        Raises:
            FederationError: with the hospitals' own (fixed) reasons.
        """
        least = self.plan.federation.least_hospitals
        if count < least:
            said = "; ".join(reasons) or "no reply came in time"
            raise FederationError(f"{count} of at least {least} hospitals {did}: {said}")


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


def read_arrays(reply: Message) -> Arrays:
    """The values that a reply released, or nothing; the checks are the caller's.

    Raises:
        FederationError: its bytes are no arrays.
    """
    record = reply.content.array_records.get(protocol.ARRAYS)
    return {} if record is None else from_record(record)


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as Flower's record (np.save format, no pickle)."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Flower's record as named arrays; the checks are the caller's.

    Raises:
        FederationError: its bytes are no arrays.
    """
    try:
        arrays = {name: array.numpy() for name, array in record.items()}
    except Exception as error:  # what numpy's reader raises depends on the bytes
        raise FederationError(f"an answer's bytes are no array in np.save's format ({type(error).__name__})") from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise FederationError("an answer's bytes are no array in np.save's format, but an archive")
    return arrays
