"""The coordinator's side of the conversation: typed requests out, checked answers in, a record of each hospital.

It sees released values only, and nothing that arrives is trusted.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from logging import WARNING
from typing import Generic, TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.common.logger import log
from flwr.serverapp import Grid

from ghostnet.errors import FederationError, PlanError
from ghostnet.evidence import keys
from ghostnet.exchange import messages, protocol
from ghostnet.exchange.arrays import Arrays, check_arrays
from ghostnet.exchange.flower import add_values, from_records, to_records
from ghostnet.exchange.messages import (
    Answer,
    Body,
    Header,
    JoinAnswer,
    JoinRequest,
    ReleasedAnswer,
    decode_answer,
    encode,
    read_refusal,
)
from ghostnet.exchange.secure_sum import Member
from ghostnet.plan import Plan
from server.known_heads import KnownHeads

NODE_WAIT_S = 120.0
MAX_ANSWERED = 1e9  # of one number in an answer; weights, and sums over a hospital's patients, are far below

A = TypeVar("A", bound=Answer, covariant=True)


@dataclass
class Hospital:
    """A hospital that joined, as the coordinator knows it."""

    name: str
    node_id: int
    public_key: str
    ledger_head: str
    mask_key: str = ""  # pooled: of this run, signed
    mask_key_signature: str = ""
    answered: list[str] = field(default_factory=list)
    statement: dict[str, object] | None = None

    def note_answer(self, kind: str, number: int = 0) -> None:
        """Keeps that an answer of this hospital's was used: from then on it has to sign."""
        name = f"{kind}-{number}" if number else kind
        if name not in self.answered:
            self.answered.append(name)

    def as_member(self) -> Member:
        """Its entry in a pooled run's roster."""
        return Member(
            site=self.name, public_key=self.public_key, mask_key=self.mask_key, signature=self.mask_key_signature
        )


@dataclass(frozen=True, kw_only=True)
class Known:
    """A hospital's record between attempts: its key, and the last ledger head that it showed."""

    public_key: str
    ledger_head: str


@dataclass(frozen=True, kw_only=True)
class Reply(Generic[A]):
    """An answer, and the node that it came from."""

    node_id: int
    answer: A


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
        self.left_out: list[str] = []  # "NAME: why", for the report and the console

    def join(self, expected: int) -> None:
        """Asks every connected node to take part; keeps those that do.

        Raises:
            FederationError: fewer joined than the plan asks for.
        """
        node_ids = wait_for_nodes(self.grid, expected)
        refused: list[str] = []
        sent = self._heads_to_send()
        known = {protocol.head_tag(self.run_id, key): head for key, head in sent.items()}
        for reply in self.ask(JoinRequest(known_heads=known), JoinAnswer, node_ids, refused=refused):
            try:
                hospital = self._joined(reply)
            except (FederationError, PlanError) as error:
                self._leave_out("a hospital that did not join", error, refused)
                continue
            if hospital.public_key not in sent:
                # Beyond what a JOIN carries: its last head goes out with the next request, and is checked then.
                hospital.ledger_head = self._heads.head(hospital.public_key) or hospital.ledger_head
            self.hospitals[hospital.node_id] = hospital
        self._leave_out_namesakes(refused)
        self._heads.note({hospital.public_key: hospital.ledger_head for hospital in self.hospitals.values()})
        self.require(len(self.hospitals), "joined", refused)

    def _joined(self, reply: Reply[JoinAnswer]) -> Hospital:
        """The hospital that answered a JOIN; nothing in its answer is trusted.

        Raises:
            FederationError, PlanError: why that node takes no part.
        """
        answer = reply.answer
        hospital = Hospital(
            name=answer.name,
            node_id=reply.node_id,
            public_key=answer.public_key,
            ledger_head=answer.ledger_head,
            mask_key=answer.mask_key,
            mask_key_signature=answer.mask_key_signature,
        )
        name = hospital.name
        if name == keys.COORDINATOR:
            raise FederationError(f"a hospital calls itself {name!r}; give its site.toml another name")
        self.plan.federation.weight_of(name)
        before = self._known.get(name)
        if before is not None and before.public_key != hospital.public_key:
            raise FederationError(f"a node calls itself {name} and has another key than before")
        if any(hospital.public_key == other.public_key for other in self.hospitals.values()):
            raise FederationError(f"{name} has the key of another hospital, as a copied state folder has")
        document = protocol.join_document(run_id=self.run_id, head=hospital.ledger_head)
        if not keys.verify(hospital.public_key, document, answer.join_signature):
            raise FederationError(f"{name} did not sign with the key that it names")
        return hospital

    def _leave_out_namesakes(self, refused: list[str]) -> None:
        """Leaves out every hospital of a name that several use: nobody here can tell whose it is."""
        names = Counter(hospital.name for hospital in self.hospitals.values())
        for name in sorted(name for name, count in names.items() if count > 1):
            nodes = [node_id for node_id, hospital in self.hospitals.items() if hospital.name == name]
            public = ", ".join(self.hospitals.pop(node_id).public_key for node_id in nodes)
            problem = f"{len(nodes)} hospitals call themselves {name!r}; give each site.toml a name of its own"
            log(WARNING, "all of them are left out: %s (keys %s)", problem, public)
            self._note_left_out(name, problem)
            refused.append(problem)

    def _heads_to_send(self) -> dict[str, str]:
        """Heads by public key for a JOIN: the newest of all runs, and those of an earlier attempt of this one."""
        keys_and_heads = ((known.public_key, known.ledger_head) for known in self._known.values())
        earlier = {key: self._heads.head(key) or head for key, head in keys_and_heads}
        return dict(islice({**earlier, **dict(self._heads.newest())}.items(), messages.MAX_KNOWN_HEADS))

    def ask(
        self,
        body: Body,
        expected: type[A],
        node_ids: Iterable[int],
        *,
        refused: list[str] | None = None,
        countersign: bool = True,
    ) -> list[Reply[A]]:
        """Sends one request to the nodes and returns the answers that are as agreed.

        All others are logged, and why is appended to `refused`; a hospital's own reasons are fixed sentences by
        contract. Without `countersign` hospitals are spared a ledger entry; for requests that come by the thousand.
        """
        requests = self.requests(body, node_ids, countersign=countersign)
        started = time.time()
        replies = list(self.grid.send_and_receive(requests, timeout=self.plan.federation.round_timeout_s))
        return self.sort_replies(replies, expected, started, refused)

    def requests(
        self, body: Body, node_ids: Iterable[int], *, countersign: bool = True, group_id: str | None = None
    ) -> list[Message]:
        """One message a node; the arrays in them are written once."""
        shared = to_records(encode(body))
        return [
            Message(
                add_values(shared, encode(self.header(node_id, countersign=countersign)).values),
                dst_node_id=node_id,
                message_type=body.kind,
                ttl=self.plan.federation.round_timeout_s,
                group_id=group_id,
            )
            for node_id in node_ids
        ]

    def sort_replies(
        self,
        replies: Iterable[Message],
        expected: type[A],
        started: float,
        refused: list[str] | None = None,
        *,
        number: int = 0,
    ) -> list[Reply[A]]:
        """Splits refusals from answers, notes times, and keeps every ledger head that came with an answer."""
        good: list[Reply[A]] = []
        slowest = 0.0
        self.spent.clear()
        heads: dict[str, str] = {}
        kind = expected.kind
        for reply in replies:
            slowest = max(slowest, reply.metadata.created_at - started)
            hospital = self.hospitals.get(reply.metadata.src_node_id)
            if reply.has_error():
                refusal = read_refusal(reply.error.code, reply.error.reason or "")
                log(WARNING, "a hospital did not answer %s: %s", kind, refusal.reason)
                self._note_left_out(hospital.name if hospital else "a hospital that did not join", refusal.reason)
                if refused is not None:
                    refused.append(refusal.reason)
                if refusal.code == protocol.SPENT:
                    self.spent.append(refusal.reason)
                continue
            try:
                answer = decode_answer(expected, from_records(reply.content))
            except FederationError as error:
                self._leave_out(hospital.name if hospital else "a node", error, refused)
                continue
            good.append(Reply(node_id=reply.metadata.src_node_id, answer=answer))
            if hospital:
                hospital.ledger_head = heads[hospital.public_key] = answer.ledger_head
        self._heads.note(heads)
        wall = time.time() - started
        self.timings.append(Timing(phase=kind, round=number, wall_s=wall, slowest_client_s=min(slowest, wall)))
        return good

    def header(self, node_id: int, *, countersign: bool = True) -> Header:
        """The part that every request carries, with the last ledger head and our signature under it."""
        hospital = self.hospitals.get(node_id) if countersign else None
        head = hospital.ledger_head if hospital else ""
        return Header(
            plan=self.plan,
            run_id=self.run_id,
            deadline=math.ceil(time.time() + self.plan.federation.round_timeout_s),
            server_key=keys.public_hex(self._key),
            known_head=head,
            head_signature=keys.sign(self._key, keys.head_document(site=hospital.name, head=head)) if hospital else "",
        )

    def fitting(
        self,
        replies: Iterable[Reply[ReleasedAnswer]],
        expected: Arrays,
        refused: list[str] | None = None,
        *,
        number: int = 0,
    ) -> dict[str, Arrays]:
        """The answers whose arrays are `expected`'s in name, shape and type, and no larger than an honest answer's.

        By hospital, in the order of their names. The others are logged, and why they do not fit is appended to
        `refused`. A larger number would overflow what is computed from all answers together.
        """
        answers: dict[str, Arrays] = {}
        for reply in replies:
            hospital = self.hospitals[reply.node_id]
            try:
                check_arrays(reply.answer.arrays, expected)
                _check_sizes(reply.answer.arrays)
            except FederationError as error:
                self._leave_out(hospital.name, error, refused)
                continue
            hospital.note_answer(reply.answer.kind, number)
            answers[hospital.name] = reply.answer.arrays
        return dict(sorted(answers.items()))

    def _leave_out(self, name: str, error: FederationError | PlanError, refused: list[str] | None) -> None:
        log(WARNING, "the answer of %s is left out: %s", name, error)
        self._note_left_out(name, str(error))
        if refused is not None:
            refused.append(f"{name}: {error}")

    def _note_left_out(self, name: str, why: str) -> None:
        """Keeps why a hospital's answer was not used; a run's report says so."""
        words = f"{name}: {why}"
        if words not in self.left_out:
            self.left_out.append(words)

    def require(self, count: int, did: str, reasons: Iterable[str] = ()) -> None:
        """Refuses to go on with fewer hospitals than the plan asks for.

        Raises:
            FederationError: with the hospitals' own (fixed) reasons.
        """
        least = self.plan.federation.least_hospitals
        if count < least:
            said = "; ".join(reasons) or "no reply came in time"
            raise FederationError(f"{count} of at least {least} hospitals {did}: {said}")


def _check_sizes(arrays: Arrays) -> None:
    for name, array in arrays.items():
        largest = float(np.abs(array).max(initial=0))
        if largest > MAX_ANSWERED:
            raise FederationError(f"{name} holds {largest:g}, and no honest answer more than {MAX_ANSWERED:g}")


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
