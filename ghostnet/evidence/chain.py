"""The ledger's chain: what an entry is, and which entries may follow which. No file is opened here.

An entry is one canonical JSON object. It holds its sequence number and the SHA-256 of the entry before it, so a
changed, missing, added or moved entry breaks the chain at a place that can be named. The same rules accept a new entry
and re-read an old one.

    open         first entry: a random identity, the hospital's name and its unit on that day
    reserve      a run's whole cost, charged before its first private read; "unit" where that was the image
    begin        a request of that run starts to read patient data; from here it is spent
    commit       the request's released bytes are stored, under this digest
    publish      the files of the one sampler that the run publishes, under this digest of their digests
    countersign  a coordinator has signed an earlier head
    adopt        a person goes on from this ledger although something of it was missing; earlier spending may be lost

Entries hold public values only, and the reason that a person gave for an adoption. The time is for people; no rule
reads it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ghostnet.accounting.epsilon import Event, event_from_dict, event_to_dict
from ghostnet.errors import GhostNetError, LedgerError
from ghostnet.evidence import keys
from ghostnet.evidence.keys import DIGEST
from ghostnet.plan import Unit
from ghostnet.plan.unit import UNITS, adjacency

FORMAT = 1
GENESIS = "0" * 64  # "previous" of the first entry
MAX_REASON = 500  # characters

MISSING: dict[str, str] = {
    "ledger": "every entry: this ledger was started in place of one that is lost",
    "entries": "entries that were seen after the newest one",
    "fork": "the entries that were seen: this is another history, or another ledger",
    "head": "ledger.head",
    "witness": "the second witness",
    "unwitnessed": "the witness of entries that were written without it",
    "file": "the database file that the witness knows: this one was restored, copied or overwritten",
    "key": "the signing key",
    "coordinator": "an entry that a coordinator has seen",
}
"""What an adopted ledger lacked, by the code in its entry."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}")
_SITE = re.compile(r"|[a-z0-9-]{1,32}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_REASON = re.compile(rf"[^\x00-\x1f\x7f]{{1,{MAX_REASON}}}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One accepted entry; `fields` is its parsed body, `hash` the SHA-256 of the body's bytes."""

    sequence: int
    kind: str
    fields: Mapping[str, Any]
    body: str
    hash: str


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A run's charge, and the totals over all runs after it."""

    run_id: str
    plan_hash: str
    events: tuple[Event, ...]
    requests: tuple[str, ...]  # the only requests it pays for, each once; empty = not listed
    epsilon: float  # the hospital's limit when it was charged
    delta: float
    epsilon_pld: float  # all events up to this one
    epsilon_rdp: float
    unit: Unit  # that the hospital's mechanism protects in this run


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _is(expected: object) -> Callable[[Any], bool]:
    return lambda value: type(value) is type(expected) and value == expected


def _positive(value: Any) -> bool:
    return keys.is_finite_number(value) and value > 0


def _epsilon(value: Any) -> bool:
    return keys.is_finite_number(value) and value >= 0


def _probability(value: Any) -> bool:
    return _positive(value) and value < 1


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_matches(_NAME), value)) and len(set(value)) == len(value)


def _codes(value: Any) -> bool:
    return _names(value) and len(value) > 0 and set(value) <= set(MISSING)


def _hashes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_matches(DIGEST), value)) and len(set(value)) == len(value)


def _list(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0


_COMMON: dict[str, Callable[[Any], bool]] = {"time": _matches(_TIME)}
_FIELDS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "open": {
        "format": _is(FORMAT),
        "identity": _matches(DIGEST),
        "site": _matches(_SITE),
        "unit": lambda value: value in UNITS,
        "adjacency": lambda value: value in map(adjacency, UNITS),
    },
    "reserve": {
        "run": _matches(_NAME),
        "plan_hash": _matches(DIGEST),
        "events": _list,
        "requests": _names,
        "epsilon": _positive,
        "delta": _probability,
        "epsilon_pld": _epsilon,
        "epsilon_rdp": _epsilon,
    },
    "begin": {"run": _matches(_NAME), "request": _matches(_NAME)},
    "commit": {"run": _matches(_NAME), "request": _matches(_NAME), "digest": _matches(DIGEST)},
    "publish": {"run": _matches(_NAME), "digest": _matches(DIGEST)},
    "countersign": {"head": _matches(DIGEST), "server": _matches(DIGEST), "signature": _matches(_SIGNATURE)},
    "adopt": {"reason": _matches(_REASON), "missing": _codes, "lost": _hashes},
}
_OPTIONAL: dict[str, dict[str, Callable[[Any], bool]]] = {"reserve": {"unit": _is("image")}}
"""Fields that are left out at their default: of `unit` the patient."""


class Chain:
    """Everything the entries so far say. `check` refuses an entry that may not come next; `add` takes it in."""

    def __init__(self) -> None:
        self.site = ""
        self.identity = ""
        self.adoptions = 0
        self.lost: set[str] = set()  # heads that were seen of entries that an adoption has given up
        self._opened: tuple[Unit, ...] = ()
        self.heads: list[str] = []  # hash of entry i + 1
        self.reservations: dict[str, Reservation] = {}
        self.requests: dict[tuple[str, str], str] = {}  # (run, request) -> digest, "" while begun
        self.published: dict[str, str] = {}  # run -> digest of the sampler's files
        self._sequences: dict[str, int] = {}

    @property
    def head(self) -> str:
        return self.heads[-1] if self.heads else GENESIS

    @property
    def events(self) -> tuple[Event, ...]:
        """Every event that any run has reserved."""
        return tuple(event for reservation in self.reservations.values() for event in reservation.events)

    @property
    def units(self) -> tuple[Unit, ...]:
        """Of every run that has reserved, oldest first; before the first the one that the ledger was opened for."""
        return tuple(reservation.unit for reservation in self.reservations.values()) or self._opened

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self._sequences

    def draft(self, kind: str, fields: Mapping[str, Any]) -> Entry:
        """The next entry, checked but not yet taken in.

        Raises:
            LedgerError: the rules refuse it.
        """
        document = {**fields, "kind": kind, "previous": self.head, "sequence": len(self) + 1}
        try:
            body = keys.canonical_json(document)
        except ValueError as error:
            raise LedgerError(f"ledger entry {len(self) + 1} ({kind}) cannot be written: {error}") from None
        return self.check(len(self) + 1, body, hashlib.sha256(body).hexdigest())

    def check(self, sequence: object, body: bytes, digest: str) -> Entry:
        """Reads a stored entry and refuses whatever may not stand here.

        Raises:
            LedgerError: naming the entry and what is wrong with it.
        """
        expected = len(self) + 1
        if sequence != expected:
            raise LedgerError(f"ledger entry {expected} is missing: the next one stored is number {sequence!r}")
        if hashlib.sha256(body).hexdigest() != digest:
            raise LedgerError(f"ledger entry {expected}: its bytes do not have the hash stored beside them")
        fields = _parse(expected, body)
        kind = fields.get("kind")
        where = f"ledger entry {expected} ({kind})"
        if fields.get("sequence") != expected:
            raise LedgerError(f"{where} says that it is number {fields.get('sequence')!r}: it was moved")
        if fields.get("previous") != self.head:
            raise LedgerError(f"{where} does not follow the entry before it: one of them was changed or replaced")
        _check_fields(where, kind, fields)
        self._check_meaning(where, str(kind), fields)
        return Entry(sequence=expected, kind=str(kind), fields=fields, body=body.decode("ascii"), hash=digest)

    def add(self, entry: Entry) -> None:
        """Takes in an entry that `check` or `draft` has just returned."""
        fields = entry.fields
        if entry.kind == "open":
            self.site, self.identity = fields["site"], fields["identity"]
            self._opened = (fields["unit"],)
        elif entry.kind == "reserve":
            self.reservations[fields["run"]] = _reservation(fields)
        elif entry.kind in ("begin", "commit"):
            self.requests[fields["run"], fields["request"]] = fields.get("digest", "")
        elif entry.kind == "publish":
            self.published[fields["run"]] = fields["digest"]
        elif entry.kind == "adopt":
            self.adoptions += 1
            self.lost.update(fields["lost"])
        self.heads.append(entry.hash)
        self._sequences[entry.hash] = entry.sequence

    def _check_meaning(self, where: str, kind: str, fields: Mapping[str, Any]) -> None:
        if (kind == "open") != (len(self) == 0):
            raise LedgerError(f"{where}: a ledger starts with one open entry, and holds no other")
        if kind == "open" and fields["adjacency"] != adjacency(fields["unit"]):
            raise LedgerError(f"{where}: unit {fields['unit']!r} does not go with adjacency {fields['adjacency']!r}")
        if kind == "reserve":
            self._check_reserve(where, fields)
        elif kind == "begin":
            self._check_begin(where, fields)
        elif kind == "commit" and self.requests.get((fields["run"], fields["request"])) != "":
            raise LedgerError(f"{where}: request {fields['request']} of run {fields['run']} is not begun and open")
        elif kind == "publish":
            self._check_publish(where, fields["run"])
        elif kind == "adopt" and not self._sequences.keys().isdisjoint(fields["lost"]):
            raise LedgerError(f"{where}: a head that it calls lost is in this ledger")
        elif kind == "countersign":
            if fields["head"] not in self:
                raise LedgerError(f"{where}: the countersigned head {fields['head'][:16]} is not in this ledger")
            document = keys.head_document(site=self.site, head=fields["head"])
            if not keys.verify(fields["server"], document, fields["signature"]):
                raise LedgerError(f"{where}: the signature is not that of server key {fields['server'][:16]}")

    def _check_reserve(self, where: str, fields: Mapping[str, Any]) -> None:
        if fields["run"] in self.reservations:
            raise LedgerError(f"{where}: run {fields['run']} is reserved already")
        try:
            reservation = _reservation(fields)
        except (GhostNetError, ValueError, TypeError, KeyError) as error:
            raise LedgerError(f"{where}: its events cannot be read: {error}") from None
        if [event_to_dict(event) for event in reservation.events] != fields["events"]:
            raise LedgerError(f"{where}: its events are not in their one written form")
        if not reservation.epsilon_pld <= reservation.epsilon:
            raise LedgerError(f"{where}: charged past its limit, {reservation.epsilon_pld} > {reservation.epsilon}")

    def _check_publish(self, where: str, run: str) -> None:
        if run not in self.reservations:
            raise LedgerError(f"{where}: run {run} is not reserved; it has nothing to publish")
        if run in self.published:
            raise LedgerError(f"{where}: the sampler of run {run} is settled already; a run publishes one")

    def _check_begin(self, where: str, fields: Mapping[str, Any]) -> None:
        run, request = fields["run"], fields["request"]
        reservation = self.reservations.get(run)
        if reservation is None:
            raise LedgerError(f"{where}: run {run} is not reserved; reserve its whole cost first")
        if reservation.requests and request not in reservation.requests:
            paid = ", ".join(reservation.requests)
            raise LedgerError(f"{where}: request {request} is not paid for; run {run} reserved: {paid}")
        if (run, request) in self.requests:
            state = "committed" if self.requests[run, request] else "begun and not committed"
            raise LedgerError(f"{where}: request {request} of run {run} is {state}: it is spent and never runs again")


def _parse(sequence: int, body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
        canonical = isinstance(fields, dict) and keys.canonical_json(fields) == body
    except (ValueError, RecursionError):
        canonical = False
    if not canonical:
        raise LedgerError(f"ledger entry {sequence}: not in canonical JSON form")
    return dict(fields)


def _check_fields(where: str, kind: object, fields: Mapping[str, Any]) -> None:
    rules = _FIELDS.get(kind) if isinstance(kind, str) else None
    if rules is None:
        raise LedgerError(f"{where}: a ledger has no such kind of entry")
    optional = {name: rule for name, rule in _OPTIONAL.get(str(kind), {}).items() if name in fields}
    rules = {**_COMMON, **rules, **optional}
    odd = set(fields) ^ {*rules, "kind", "previous", "sequence"}
    if odd:
        raise LedgerError(f"{where}: field {min(odd)} is missing or unknown")
    for name, good in rules.items():
        if not good(fields[name]):
            raise LedgerError(f"{where}: {name} = {str(fields[name])[:80]!r} cannot stand there")


def _reservation(fields: Mapping[str, Any]) -> Reservation:
    return Reservation(
        run_id=fields["run"],
        plan_hash=fields["plan_hash"],
        events=tuple(event_from_dict(event) for event in fields["events"]),
        requests=tuple(fields["requests"]),
        epsilon=float(fields["epsilon"]),
        delta=float(fields["delta"]),
        epsilon_pld=float(fields["epsilon_pld"]),
        epsilon_rdp=float(fields["epsilon_rdp"]),
        unit=fields.get("unit", "patient"),
    )
