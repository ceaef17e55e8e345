"""The hospital's ledger: what was spent of each patient's budget, durable and never given back.

A run's whole cost is reserved, and on the disk, before its first private read. A request begins, computes, commits;
one that began and did not commit (a crash) is spent and never runs again; one that committed is answered with the
stored bytes of that digest. There is no reset and no refund.

Beside `ledger.sqlite` lie `ledger.lock` (one writer at a time) and `ledger.head`, rewritten after every entry; a second
witness lies outside the state folder. A ledger that lacks what they have seen is refused, and so is a new one where
there was one before: `ghostnet.evidence.faults` lists what each notices, and what nothing does. With a reason, a
person may go on from such a ledger by `Ledger.adopt`.

An entry is stored first, then `ledger.head`, then the second witness. A crash in between leaves an entry that is not
witnessed, which is no fault: nothing rests on an entry before all three are on the disk, and the next opening makes up
for it before anything else is written. A witness written first could name an entry that a crash has prevented.

A budget belongs to one state folder. A second site.toml over the same images has a ledger, and a budget, of its own.
"""

from __future__ import annotations

import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ghostnet.accounting.composition import compose
from ghostnet.accounting.epsilon import Event, event_to_dict
from ghostnet.errors import BudgetError, LedgerError
from ghostnet.evidence.chain import FORMAT, Chain, Entry
from ghostnet.evidence.faults import Adoption, Seen, adopt_fields, faults, head_faults, is_behind, look_around, require
from ghostnet.evidence.storage import (
    connect,
    connect_to_read,
    insert,
    is_cut_off,
    lock_writer,
    read_head,
    read_rows,
    replay,
    storage_errors,
    write_head,
)
from ghostnet.evidence.witness import UNKNOWN, Witnessed, append_witness, default_witness, file_identity
from ghostnet.plan import Unit
from ghostnet.plan.unit import adjacency, lifetime_protects, unit_line

State = Literal["new", "begun", "committed"]

_EPSILON_TOLERANCE = 2e-4  # two steps of the grid that epsilon_pld is rounded up to: another machine's last digit


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The cost of all reserved events for one patient (or image, as `protects` says) together, at one delta."""

    epsilon_pld: float
    epsilon_rdp: float
    events: tuple[Event, ...]
    protects: str
    adoptions: int  # where there is one, this may be too little: nobody knows what was lost


class Ledger:
    """The open ledger of one hospital; a context manager. Every method raises LedgerError once storage has failed.

    Guarantee:
        Unit: that of each run's reservation, add/remove one. The PLD composition of all events ever reserved here stays
        <= the limit given with each reservation, whatever crashes. Assumes: private reads happen only between `begin`
        and `commit` of a request of that reservation, and the disk keeps what it has fsynced.
        Not covered: a patient seen by two hospitals, or prepared by two state folders; all images of one patient
        together in a run whose unit was the image; what an adopted ledger has lost; a disk brought back whole, its
        witness too (a snapshot), until the coordinator's countersigned head is checked.
    """

    def __init__(self, path: Path, site: str, unit: Unit, witness: Path, adoption: Adoption | None = None) -> None:
        """Use `Ledger.open` or `Ledger.adopt`."""
        self._path = path
        self._witness_path = witness
        self._process = os.getpid()
        self._thread_lock = threading.RLock()
        self._failed = ""
        self._chain = Chain()
        self._witnessed: Witnessed | None = None
        self._lock = lock_writer(path)
        try:
            seen = self._look_around(adoption)
            self._database = connect(path)
            try:
                self._read(site, unit, seen, adoption)
            except BaseException:
                self._database.close()
                raise
        except BaseException:
            os.close(self._lock)
            raise

    @classmethod
    def open(cls, path: Path, *, site: str = "", unit: Unit = "patient", witness: Path | None = None) -> Ledger:
        """Opens the ledger at `path`, or starts one where there never was one; re-checks its whole chain.

        Args:
            path: the database, `ledger.sqlite` in the hospital's state folder.
            site: the hospital's name; written into a new ledger, compared with an old one unless empty.
            unit: of the hospital's data; written into a new ledger. Each reservation names its own.
            witness: the second witness; by default beside the state folder (`default_witness`).

        Raises:
            LedgerError: in use by another process, damaged, rolled back, restored, lost, of another hospital, or not
                storable.
        """
        path = path.resolve()
        with storage_errors(path):
            return cls(path, site, unit, witness or default_witness(path))

    @classmethod
    def adopt(
        cls, path: Path, adoption: Adoption, *, site: str, unit: Unit = "patient", witness: Path | None = None
    ) -> Ledger:
        """Goes on from the ledger at `path`, or from a new one, although something was seen that is missing.

        The first new entry gives the reason and what was missing. Spending that was lost is unknown, and not charged.

        Raises:
            LedgerError: nothing is missing; or in use, damaged, of another hospital, or not storable.
        """
        path = path.resolve()
        with storage_errors(path):
            return cls(path, site, unit, witness or default_witness(path), adoption)

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

    def publish(self, run_id: str, digest: str) -> None:
        """Settles, on the disk, which sampler a run publishes; `digest` stands for the digests of its files.

        Raises:
            LedgerError: the run is not reserved, or has settled on a sampler already.
        """
        with self._usable():
            self._append("publish", {"run": run_id, "digest": digest})

    def published(self, run_id: str) -> str:
        """The digest that `publish` settled for this run; "" before."""
        with self._usable():
            return self._chain.published.get(run_id, "")

    def requests(self, run_id: str) -> dict[str, str]:
        """The run's requests as they began, each with the digest of its answer; "" for one that is spent without."""
        with self._usable():
            return {request: digest for (run, request), digest in self._chain.requests.items() if run == run_id}

    def state(self, run_id: str, request: str) -> State:
        """The state of a request: may begin ("new"), spent without an answer ("begun"), answered ("committed")."""
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

    @property
    def is_fresh(self) -> bool:
        """True if nothing was ever asked of it: it has its opening entry and no other."""
        with self._usable():
            return len(self._chain) == 1

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
            LedgerError: this ledger is an old copy, a fork, or a new one in place of a lost one, and no adoption has
                given that head up.
        """
        with self._usable():
            if head and head not in self._chain and head not in self._chain.lost:
                raise LedgerError(
                    f"{self._path} lacks entry {str(head)[:64]} that the coordinator has seen: it is an old copy or a "
                    "fork. Put the newest copy back; without it this cohort's budget counts as spent "
                    "(ghostnet site ledger SITE.toml --adopt --lost that entry goes on)"
                )

    def _look_around(self, adoption: Adoption | None) -> Seen:
        """Before SQLite touches the file: refuses to make a new one in place of a lost one."""
        seen = look_around(self._path, self._witness_path)
        if seen.file is None:
            require(tuple(faults(seen, self._chain, is_writer=True)), adoption, seen, self._chain)
        elif seen.witness is not None and is_cut_off(self._path):
            # Undoing the transaction writes to the file; a crash meanwhile must not look like a copy put back over it.
            unknown = replace(seen.witness, modified_ns=UNKNOWN)
            seen = replace(seen, witness=unknown)
            append_witness(self._witness_path, unknown)
        self._witnessed = seen.witness
        return seen

    def _read(self, site: str, unit: Unit, seen: Seen, adoption: Adoption | None) -> None:
        for _ in replay(read_rows(self._database, self._path), self._chain):
            pass
        if site and self._chain.site and site != self._chain.site:
            raise LedgerError(
                f"{self._path} belongs to site {self._chain.site!r}, not {site!r}; check [state] of site.toml"
            )
        found = tuple(faults(seen, self._chain, is_writer=True))
        require(found, adoption, seen, self._chain)
        is_new = len(self._chain) == 0
        if is_new:
            identity = secrets.token_hex(32)
            fields = {"format": FORMAT, "identity": identity, "site": site, "unit": unit}
            fields["adjacency"] = adjacency(unit)
            self._append("open", fields, is_witnessed=adoption is None)
        if adoption is not None:
            self._append("adopt", adopt_fields(adoption, found, seen, self._chain))
        elif not is_new and is_behind(seen, self._chain):
            self._bear_witness()  # a crash came between the newest entry and its witnesses

    def _append(self, kind: str, fields: Mapping[str, Any], *, is_witnessed: bool = True) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = self._chain.draft(kind, {**fields, "time": now})
        try:
            with storage_errors(self._path):
                self._insert(entry)
                if is_witnessed:
                    self._bear_witness()
        except BaseException as error:
            # Whether the entry reached the disk is unknown: only a fresh read of the file may go on from here.
            self._failed = str(error) or error.__class__.__name__
            raise

    def _insert(self, entry: Entry) -> None:
        try:
            insert(self._database, entry, previous=self._chain.head)
        except LedgerError:  # refused before anything was written
            raise
        except BaseException:
            if self._witnessed is not None:  # SQLite has undone what it wrote, and the file is younger now
                with suppress(OSError):
                    append_witness(self._witness_path, replace(self._witnessed, modified_ns=UNKNOWN))
            raise
        self._chain.add(entry)

    def _bear_witness(self) -> None:
        write_head(self._path, self._chain)
        file = file_identity(self._path)
        witnessed = Witnessed(
            ledger=self._chain.identity,
            sequence=len(self._chain),
            head=self._chain.head,
            inode=file.inode,
            born_ns=file.born_ns,
            modified_ns=file.modified_ns,
        )
        append_witness(self._witness_path, witnessed)
        self._witnessed = witnessed

    def _composed(self, events: tuple[Event, ...], delta: float) -> Spent:
        pld, rdp = compose(events, delta)
        return Spent(
            epsilon_pld=pld,
            epsilon_rdp=rdp,
            events=events,
            protects=lifetime_protects(self._chain.units),
            adoptions=self._chain.adoptions,
        )

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
        head = read_head(path)
        rows = read_rows(database, path)
        damage = [line for (line,) in database.execute("PRAGMA integrity_check") if line != b"ok"]
    chain = Chain()
    entries = tuple(_with_checked_epsilons(replay(rows, chain)))
    if damage:
        raise LedgerError(f"{path}: the database is damaged: {damage[0].decode('ascii', 'replace')}")
    if not entries:
        raise LedgerError(f"{path} holds no entry; a ledger starts with an open entry")
    if head is not None:
        for fault in head_faults(path, chain, *head, by=path.with_suffix(".head").name):
            raise LedgerError(fault.text)
    for known in known_heads:
        if known not in chain:
            raise LedgerError(f"{path} lacks entry {known[:16]} that was seen before: it is an old copy or a fork")
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
