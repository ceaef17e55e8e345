"""Known ways to keep a ledger wrong: each is caught by a named check, and the clean twin passes it."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.policy import PolicySpec, check_plan
from ghostnet.accounting.epsilon import Event
from ghostnet.errors import BudgetError, LedgerError, PolicyError
from ghostnet.evidence import ledger as ledger_module
from ghostnet.evidence import storage
from ghostnet.evidence.ledger import Ledger, Spent, State, verify_ledger
from tests.evidence.ledger_site import check, fork, hospital
from tests.evidence.ledgers import DELTA, PLAN, WARM, digest, forge, reserve
from tests.plans import tiny_plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


# A crash is refunded: what began is treated as never begun.


class RefundsACrash(Ledger):
    def state(self, run_id: str, request: str) -> State:
        state = super().state(run_id, request)
        return "new" if state == "begun" else state

    def begin(self, run_id: str, request: str) -> None:
        if super().state(run_id, request) != "begun":
            super().begin(run_id, request)


class DiesBeforeCommit(Ledger):
    def commit(self, run_id: str, request: str, digest: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("ledger_type", [Ledger, RefundsACrash])
def test_a_refund_after_a_crash_is_caught_by_counting_draws(tmp_path: Path, ledger_type: type[Ledger]) -> None:
    child = fork(lambda: hospital(tmp_path, "run-1", ledger_type=DiesBeforeCommit))
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    bodies, faults = check(tmp_path, [])
    assert faults == []
    hospital(tmp_path, "run-1", ledger_type=ledger_type)
    _, faults = check(tmp_path, bodies)
    assert faults == ([] if ledger_type is Ledger else ["run-1 warm was drawn 2 times: a double spend"])


# A replayed request gets fresh noise.


class ForgetsItsAnswers(Ledger):
    def state(self, run_id: str, request: str) -> State:
        return "new"


@pytest.mark.parametrize("ledger_type", [Ledger, ForgetsItsAnswers])
def test_a_fresh_draw_for_a_replayed_request_is_refused_by_begin(tmp_path: Path, ledger_type: type[Ledger]) -> None:
    hospital(tmp_path, "run-1")
    sent = (tmp_path / "log").read_text().count("send")
    if ledger_type is Ledger:
        hospital(tmp_path, "run-1", ledger_type=ledger_type)
        assert (tmp_path / "log").read_text().count("send") == 2 * sent
    else:
        with pytest.raises(LedgerError, match="committed: it is spent and never runs again"):
            hospital(tmp_path, "run-1", ledger_type=ledger_type)
    assert check(tmp_path, [])[1] == []


# The request reads patients before the run is charged.


class ChargesLater(Ledger):
    def reserve(self, **arguments: Any) -> Spent:  # type: ignore[override]
        self.later = arguments
        return self.spent(DELTA)

    def commit(self, run_id: str, request: str, digest: str) -> None:
        super().reserve(**self.later)
        super().commit(run_id, request, digest)


@pytest.mark.parametrize("ledger_type", [Ledger, ChargesLater])
def test_charging_after_the_read_is_refused_by_begin(tmp_path: Path, ledger_type: type[Ledger]) -> None:
    if ledger_type is Ledger:
        hospital(tmp_path, "run-1", ledger_type=ledger_type)
    else:
        with pytest.raises(LedgerError, match="run run-1 is not reserved"):
            hospital(tmp_path, "run-1", ledger_type=ledger_type)
        assert not (tmp_path / "log").exists()


# The entry is written and its order changed afterwards, by somebody who can hash.


def begin_before_reserve(entries: list[dict[str, Any]]) -> None:
    entries[1], entries[2] = entries[2], entries[1]


@pytest.mark.parametrize("change", [lambda entries: None, begin_before_reserve])
def test_a_read_before_its_charge_is_caught_in_the_chain(path: Path, change: Any) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        ledger.begin("run-1", "warm")
    forge(path, change)
    if change is begin_before_reserve:
        with pytest.raises(LedgerError, match=r"entry 2 \(begin\): run run-1 is not reserved"):
            verify_ledger(path)
    else:
        verify_ledger(path)


# The budget check that NaN passes: `if spent > limit: refuse`.


def refuses_with_greater_than(spent: float, limit: float) -> bool:
    return spent > limit


def refuses_unless_within(spent: float, limit: float) -> bool:
    return not spent <= limit


def test_a_check_that_nan_passes_is_caught_by_a_nan() -> None:
    assert not refuses_with_greater_than(math.nan, 8.0)  # the bug: NaN is let through
    assert refuses_unless_within(math.nan, 8.0)
    for plan in (
        replace(tiny_plan(), privacy=replace(tiny_plan().privacy, noise_multiplier=math.nan)),
        replace(tiny_plan(), privacy=replace(tiny_plan().privacy, epsilon=math.nan)),
    ):
        with pytest.raises(PolicyError, match="nan is not"):
            check_plan(plan, PolicySpec(max_epsilon=20.0, delta=1e-5))


@pytest.mark.parametrize("accountant", ["real", "nan"])
def test_an_accountant_that_answers_nan_charges_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, accountant: str
) -> None:
    def broken(events: Sequence[Event], delta: float) -> tuple[float, float]:
        return math.nan, math.nan

    with Ledger.open(path) as ledger:
        if accountant == "nan":
            monkeypatch.setattr(ledger_module, "compose", broken)
            with pytest.raises(BudgetError):
                reserve(ledger)
        else:
            reserve(ledger)
        assert len(ledger.entries()) == (2 if accountant == "real" else 1)


# Nothing is held against what was seen: an old copy of the database starts the budget again.


@pytest.mark.parametrize("has_witness", [True, False])
def test_a_restored_copy_is_caught_by_the_witness(
    path: Path, monkeypatch: pytest.MonkeyPatch, has_witness: bool
) -> None:
    if not has_witness:
        monkeypatch.setattr(ledger_module, "faults", lambda seen, chain, is_writer: iter(()))
    with Ledger.open(path):
        pass
    old = path.read_bytes()
    with Ledger.open(path) as ledger:
        reserve(ledger)
        known = ledger.head()
    path.write_bytes(old)
    if has_witness:
        with pytest.raises(LedgerError, match="old copy was put back"):
            Ledger.open(path)
    else:  # the bug, and the second check behind it
        with Ledger.open(path) as ledger:
            assert ledger.spent(DELTA).epsilon_pld == 0
            with pytest.raises(LedgerError, match="old copy or a fork"):
                ledger.check_not_rolled_back(known)


# The second witness is skipped: entries are written that it has not seen.


class SkipsTheWitness(Ledger):
    def _bear_witness(self) -> None:
        storage.write_head(self._path, self._chain)


class WitnessesTheFirstEntryAlone(Ledger):
    def _bear_witness(self) -> None:
        if len(self._chain) == 1:
            super()._bear_witness()
        storage.write_head(self._path, self._chain)


@pytest.mark.parametrize(
    ("ledger_type", "said"),
    [
        (Ledger, None),
        (SkipsTheWitness, "witness .* is missing"),
        (WitnessesTheFirstEntryAlone, "has 3 entries and .* has seen 1: they were written without it"),
    ],
)
def test_a_ledger_that_skips_the_second_witness_is_caught_when_it_is_opened_next(
    path: Path, ledger_type: type[Ledger], said: str | None
) -> None:
    with ledger_type.open(path) as ledger:
        reserve(ledger)
        ledger.begin("run-1", "warm")
    if said is None:
        Ledger.open(path).close()
    else:
        with pytest.raises(LedgerError, match=said):
            Ledger.open(path)


# No lock, and no second look inside the transaction: two processes reserve the same budget.


@pytest.mark.parametrize("is_careless", [False, True])
def test_two_writers_without_a_lock_are_caught_by_the_chain(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_careless: bool
) -> None:
    monkeypatch.setattr(
        ledger_module, "lock_writer", lambda path: os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)
    )
    if is_careless:
        monkeypatch.setattr(ledger_module, "insert", _insert_without_looking)
    with Ledger.open(path) as first, Ledger.open(path) as second:
        reserve(second, "run-2", events=(WARM,))
        with pytest.raises(LedgerError):
            reserve(first, "run-1", events=(WARM,))
    if is_careless:
        with pytest.raises(LedgerError, match="entry 3 .* does not follow the entry before it"):
            verify_ledger(path)
    else:
        assert len(verify_ledger(path)) == 2


def _insert_without_looking(database: Any, entry: Any, *, previous: str) -> None:
    if entry.sequence == 1:
        storage.insert(database, entry, previous=previous)
        return
    number = database.execute("SELECT max(sequence) + 1 FROM entries").fetchone()[0]
    body = entry.body.replace(f'"sequence":{entry.sequence}', f'"sequence":{number}').encode()
    database.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, body.decode(), digest(body.decode())))
    if number != entry.sequence:
        raise LedgerError("written where it did not belong")


# Requests that are not listed run as often as they are asked for under new names.


@pytest.mark.parametrize("requests", [("warm",), ()])
def test_a_renamed_request_is_refused_where_the_reservation_lists_its_requests(
    path: Path, requests: tuple[str, ...]
) -> None:
    with Ledger.open(path) as ledger:
        ledger.reserve(run_id="run-1", plan_hash=PLAN, events=(WARM,), epsilon=8.0, delta=DELTA, requests=requests)
        ledger.begin("run-1", "warm")
        if requests:
            with pytest.raises(LedgerError, match="not paid for"):
                ledger.begin("run-1", "warm-2")
        else:
            ledger.begin("run-1", "warm-2")  # what a caller that lists nothing lets happen
            assert [entry.kind for entry in verify_ledger(path)].count("begin") == 2
