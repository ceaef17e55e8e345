"""The hospital's ledger: what was spent of each patient's budget, durable and never given back.

A run's whole cost is reserved, and on the disk, before its first private read. A request begins, computes, commits;
one that began and did not commit (a crash) is spent and never runs again; one that committed is answered with the
stored bytes of that digest. There is no reset and no refund.

Beside `ledger.sqlite` lie `ledger.lock` (one writer at a time) and `ledger.head`, rewritten after every entry: a local
witness that notices when the database alone is restored from an old copy. Whoever restores both, or runs two copies of
the folder, is noticed by the head that the coordinator countersigned and by nothing else.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ghostnet.errors import BudgetError, LedgerError
from ghostnet.plan import Unit
from ghostnet.privacy.accounting import Event, event_to_dict
from ghostnet.privacy.chain import FORMAT, Chain, Entry
from ghostnet.privacy.composition import compose
from ghostnet.privacy.ledger_storage import (
    check_present,
    check_witness,
    connect,
    connect_to_read,
    insert,
    lock_writer,
    read_rows,
    read_witness,
    replay,
    storage_errors,
    write_witness,
)
from ghostnet.privacy.unit import adjacency, lifetime_protects, unit_line

State = Literal["new", "begun", "committed"]

_EPSILON_TOLERANCE = 2e-4  # two steps of the grid that epsilon_pld is rounded up to: another machine's last digit


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What all reserved events cost one patient (or image, as `protects` says) together, at one delta."""

    epsilon_pld: float
    epsilon_rdp: float
    events: tuple[Event, ...]
    protects: str


class Ledger:
    """The open ledger of one hospital; a context manager. Every method raises LedgerError once storage has failed.

    Guarantee:
        Unit: that of each run's reservation, add/remove one. The PLD composition of all events ever reserved here stays
        <= the limit given with each reservation, whatever crashes. Assumes: private reads happen only between `begin`
        and `commit` of a request of that reservation, and the disk keeps what it has fsynced.
        Not covered: a patient seen by two hospitals; all images of one patient together in a run whose unit was the
        image; a restored copy of ledger.sqlite together with ledger.head, until the coordinator's countersigned head is
        checked.
    """

    def __init__(self, path: Path, site: str, unit: Unit) -> None:
        """Use `Ledger.open`."""
        self._path = path
        self._process = os.getpid()
        self._thread_lock = threading.RLock()
        self._failed = ""
        self._chain = Chain()
        self._lock = lock_writer(path)
        try:
            check_present(path)
            self._database = connect(path)
            try:
                self._read(site, unit)
            except BaseException:
                self._database.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def open(cls, path: Path, *, site: str = "", unit: Unit = "patient") -> Ledger:
        """Opens the ledger at `path`, or starts one; re-checks its whole chain.

        Args:
            path: the database, `ledger.sqlite` in the hospital's state folder.
            site: the hospital's name; written into a new ledger, compared with an old one unless empty.
            unit: of the hospital's data; written into a new ledger. Each reservation names its own.

        Raises:
            LedgerError: in use by another process, damaged, rolled back, of another hospital, or not storable.
        """
        with storage_errors(path):
            return cls(path.resolve(), site, unit)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets the next writer in; nothing more can be done with this object."""
        with self._thread_lock:
            if self._failed != "closed" and self._process == os.getpid():
                self._failed = "closed"
                self._database.close()
                os.close(self._lock)

    def reserve(
        self,
        *,
        run_id: str,
        plan_hash: str,
        events: Sequence[Event],
        epsilon: float,
        delta: float,
        requests: Sequence[str] = (),
        unit: Unit = "patient",
    ) -> Spent:
        """Charges a run's whole cost; on the disk when this returns. The same reservation again charges nothing.

        Args:
            run_id: names the run; letters, digits and ._:+-, at most 128.
            plan_hash: SHA-256 of the plan, hex.
            events: everything that the run will do to the patients.
            epsilon: the hospital's limit for ALL runs together, composed by PLD.
            delta: at which epsilon is counted.
            requests: the only requests that may begin under this reservation, each once.
            unit: that the mechanism of this run protects.

        Raises:
            BudgetError: B01, all runs with this one would pass `epsilon`; nothing is charged.
            LedgerError: the run is reserved already for another plan, events, requests or unit; or storage failed.
        """
        with self._usable():
            events, requests, epsilon, delta = tuple(events), tuple(requests), _limit(epsilon), _probability(delta)
            if not events:
                raise LedgerError(f"run {run_id} reserves no event; a run that reads patients has at least one")
            known = self._chain.reservations.get(run_id)
            asked = (plan_hash, events, requests, unit)
            if known and (known.plan_hash, known.events, known.requests, known.unit) != asked:
                raise LedgerError(
                    f"run {run_id} is reserved already for another plan or unit; give the new run a new id"
                )
            before = self._chain.events
            after = self._composed(before if known else before + events, delta)
            if not after.epsilon_pld <= epsilon:
                asked_for = () if known else events
                raise _over_budget(run_id, asked_for, before, limit=epsilon, delta=delta, unit=unit)
            if known is None:
                fields = {"run": run_id, "plan_hash": plan_hash, "requests": list(requests), "epsilon": epsilon}
                fields |= {"delta": delta, "events": [event_to_dict(event) for event in events]}
                fields |= {"epsilon_pld": after.epsilon_pld, "epsilon_rdp": after.epsilon_rdp}
                fields |= {"unit": unit} if unit != "patient" else {}
                self._append("reserve", fields)
            return replace(after, protects=lifetime_protects(self._chain.units))

    def begin(self, run_id: str, request: str) -> None:
        """Marks a request as started, on the disk, before it reads a patient: from here it is spent.

        Raises:
            LedgerError: not reserved, not among the reservation's requests, or begun before (a crash is spent).
        """
        with self._usable():
            self._append("begin", {"run": run_id, "request": request})

    def commit(self, run_id: str, request: str, digest: str) -> None:
        """Records the SHA-256 of the bytes that the request released; store the bytes first, send them after.

        Raises:
            LedgerError: the request has not begun, or has committed already.
        """
        with self._usable():
            self._append("commit", {"run": run_id, "request": request, "digest": digest})

    def state(self, run_id: str, request: str) -> State:
        """Whether a request may begin ("new"), is spent without an answer ("begun"), or has one ("committed")."""
        with self._usable():
            digest = self._chain.requests.get((run_id, request))
            return "new" if digest is None else "committed" if digest else "begun"

    def digest(self, run_id: str, request: str) -> str:
        """SHA-256 of a committed request's bytes: the only bytes that may ever be sent for it.

        Raises:
            LedgerError: the request has not committed.
        """
        with self._usable():
            digest = self._chain.requests.get((run_id, request))
            if not digest:
                raise LedgerError(f"request {request} of run {run_id} has no committed release; nothing can be sent")
            return digest

    def events(self, *, besides: str = "") -> tuple[Event, ...]:
        """Every event reserved so far, but for those of run `besides`."""
        with self._usable():
            reservations = self._chain.reservations.items()
            return tuple(event for run, reserved in reservations if run != besides for event in reserved.events)

    def head(self) -> str:
        """Hash of the newest entry, 64 hex digits; it stands for the whole ledger."""
        with self._usable():
            return self._chain.head

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        with self._usable():
            with storage_errors(self._path):
                return tuple(replay(read_rows(self._database, self._path), Chain()))

    def spent(self, delta: float) -> Spent:
        """The cost of all reserved events, crashed and unfinished runs included."""
        with self._usable():
            return self._composed(self._chain.events, _probability(delta))

    def countersign(self, head: str, server_public_key: str, signature: str) -> None:
        """Keeps the coordinator's signature of one of this ledger's heads (`keys.head_document`).

        Raises:
            LedgerError: the head is not in this ledger, or the signature does not hold.
        """
        with self._usable():
            self._append("countersign", {"head": head, "server": server_public_key, "signature": signature})

    def check_not_rolled_back(self, head: str) -> None:
        """Refuses to go on when a head that the coordinator has seen is not in this ledger.

        Args:
            head: the newest head of this hospital that the coordinator knows; "" when it knows none.

        Raises:
            LedgerError: this ledger is an old copy, a fork, or a new one in place of a lost one.
        """
        with self._usable():
            if head and head not in self._chain:
                raise LedgerError(
                    f"{self._path} lacks entry {str(head)[:16]} that the coordinator has seen: it is an old copy or a "
                    "fork. Put the newest copy back; without it this cohort's budget counts as spent"
                )

    def _read(self, site: str, unit: Unit) -> None:
        for _ in replay(read_rows(self._database, self._path), self._chain):
            pass
        witness = read_witness(self._path)
        if witness is not None:
            check_witness(self._path, witness, self._chain)
        elif len(self._chain) > 1:  # a crash can leave the first entry without its witness, no other
            raise LedgerError(
                f"{self._path.stem}.head is missing beside {self._path}: put it back from the newest copy of both"
            )
        if len(self._chain) == 0:
            identity = secrets.token_hex(32)
            fields = {"format": FORMAT, "identity": identity, "site": site, "unit": unit}
            fields["adjacency"] = adjacency(unit)
            self._append("open", fields)
        elif site and site != self._chain.site:
            raise LedgerError(
                f"{self._path} belongs to site {self._chain.site!r}, not {site!r}; check [state] of site.toml"
            )
        elif witness is None or witness[0] < len(self._chain):
            write_witness(self._path, self._chain)  # a crash came between the newest entry and its witness

    def _append(self, kind: str, fields: Mapping[str, Any]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = self._chain.draft(kind, {**fields, "time": now})
        try:
            with storage_errors(self._path):
                insert(self._database, entry, previous=self._chain.head)
                self._chain.add(entry)
                write_witness(self._path, self._chain)
        except BaseException as error:
            # Whether the entry reached the disk is unknown: only a fresh read of the file may go on from here.
            self._failed = str(error) or error.__class__.__name__
            raise

    def _composed(self, events: tuple[Event, ...], delta: float) -> Spent:
        pld, rdp = compose(events, delta)
        return Spent(epsilon_pld=pld, epsilon_rdp=rdp, events=events, protects=lifetime_protects(self._chain.units))

    @contextmanager
    def _usable(self) -> Iterator[None]:
        with self._thread_lock:
            if self._process != os.getpid():
                raise LedgerError(f"{self._path} was opened by another process; open it here after that one closes it")
            if self._failed:
                raise LedgerError(f"{self._path} is no longer in use ({self._failed}); open it again")
            yield


def verify_ledger(path: Path, *, known_heads: Sequence[str] = ()) -> tuple[Entry, ...]:
    """Checks a ledger from outside: storage, chain, rules, signatures, and every epsilon recomputed from the events.

    Reads only. Works beside a running hospital.

    Args:
        path: a ledger file; its `.head` witness is compared when it lies beside it.
        known_heads: heads that a coordinator has seen; each must be in the ledger.

    Returns:
        The entries, oldest first.

    Raises:
        LedgerError: naming the first bad entry and what is wrong with it.
    """
    if not path.is_file():
        raise LedgerError(f"{path} is not a file; give the path of a ledger.sqlite")
    # The witness is read first: a hospital at work only adds entries between the two reads.
    with storage_errors(path), closing(connect_to_read(path)) as database:
        witness = read_witness(path)
        rows = read_rows(database, path)
        damage = [line for (line,) in database.execute("PRAGMA integrity_check") if line != b"ok"]
    chain = Chain()
    entries = tuple(_with_checked_epsilons(replay(rows, chain)))
    if damage:
        raise LedgerError(f"{path}: the database is damaged: {damage[0].decode('ascii', 'replace')}")
    if not entries:
        raise LedgerError(f"{path} holds no entry; a ledger starts with an open entry")
    if witness is not None:
        check_witness(path, witness, chain)
    for head in known_heads:
        if head not in chain:
            raise LedgerError(f"{path} lacks entry {head[:16]} that was seen before: it is an old copy or a fork")
    return entries


def _with_checked_epsilons(entries: Iterator[Entry]) -> Iterator[Entry]:
    chain = Chain()
    for entry in entries:
        chain.add(entry)
        if entry.kind == "reserve":
            fields = entry.fields
            recomputed = compose(chain.events, fields["delta"])
            for name, value in zip(("epsilon_pld", "epsilon_rdp"), recomputed, strict=True):
                if not abs(fields[name] - value) <= _EPSILON_TOLERANCE * (1 + value):
                    raise LedgerError(
                        f"ledger entry {entry.sequence} (reserve): {name} = {fields[name]} is written, "
                        f"the events reserved so far give {value}"
                    )
        yield entry


def _over_budget(
    run_id: str, events: tuple[Event, ...], before: tuple[Event, ...], *, limit: float, delta: float, unit: Unit
) -> BudgetError:
    spent, asked = compose(before, delta)[0], compose(events, delta)[0]
    return BudgetError(
        f"B01: run {run_id} asks for epsilon {asked:.4f} where {spent:.4f} of {limit:.4f} is spent and "
        f"{max(limit - spent, 0.0):.4f} left (delta {delta:g}, {unit_line(unit)}); "
        "ask for fewer steps or more noise"
    )


def _limit(epsilon: float) -> float:
    if isinstance(epsilon, bool) or not (math.isfinite(epsilon) and epsilon > 0):
        raise LedgerError(
            f"limit epsilon = {epsilon} is not a finite number > 0; set [policy].max_epsilon in site.toml"
        )
    return float(epsilon)


def _probability(delta: float) -> float:
    if isinstance(delta, bool) or not 0 < delta < 1:
        raise LedgerError(f"delta = {delta} is not a number > 0 and < 1; set [policy].delta in site.toml")
    return float(delta)
