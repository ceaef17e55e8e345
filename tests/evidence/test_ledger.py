"""The ledger: charged before released, never given back, and whatever was done to its files is noticed and named."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.speed import long_ledger
from ghostnet.accounting.epsilon import GaussianRelease, epsilon_pld, epsilon_rdp
from ghostnet.audit.ledger import audit_ledger
from ghostnet.errors import BudgetError, LedgerError
from ghostnet.evidence import keys
from ghostnet.evidence.chain import Chain
from ghostnet.evidence.faults import Adoption
from ghostnet.evidence.ledger import Ledger, verify_ledger
from ghostnet.evidence.storage import replay
from ghostnet.evidence.witness import default_witness
from tests.evidence.ledgers import DELTA, EVENTS, WARM, bear_witness, busy_ledger, digest, execute, forge, reserve, rows
from tests.work import calls_of

# The children use nothing but the ledger; Python 3.12 warns about any fork beside other threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


# Charge before release.


def test_a_reservation_is_in_the_file_when_reserve_returns(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        entries = verify_ledger(path)
        assert [entry.kind for entry in entries] == ["open", "reserve"]
        assert entries[-1].hash == ledger.head()


def test_every_commit_is_synced_to_the_disk_in_full(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert ledger._database.execute("PRAGMA synchronous").fetchone() == (2,)
        assert ledger._database.execute("PRAGMA journal_mode").fetchone() == (b"truncate",)


def test_all_runs_compose_and_the_one_past_the_limit_is_refused_with_its_numbers(path: Path) -> None:
    two = epsilon_pld((*EVENTS, *EVENTS), DELTA)
    with Ledger.open(path) as ledger:
        reserve(ledger, "run-1", epsilon=two)
        reserve(ledger, "run-2", epsilon=two)
        spent = ledger.spent(DELTA)
        assert spent.epsilon_pld == two
        assert spent.epsilon_rdp == epsilon_rdp((*EVENTS, *EVENTS), DELTA)
        head = ledger.head()
        with pytest.raises(
            BudgetError,
            match=rf"B01: run run-3 asks for epsilon .* where {two:.4f} of {two:.4f} is spent and 0.0000 left",
        ):
            reserve(ledger, "run-3", epsilon=two)
        assert ledger.head() == head
        assert ledger.spent(DELTA) == spent


def test_what_was_spent_is_still_spent_after_the_ledger_is_opened_again(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        before = ledger.spent(DELTA)
    with Ledger.open(path) as ledger:
        assert ledger.spent(DELTA) == before
        with pytest.raises(BudgetError):
            reserve(ledger, "run-2", epsilon=before.epsilon_pld)


def test_the_same_reservation_again_charges_nothing(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        head = ledger.head()
        reserve(ledger)
        assert ledger.head() == head


@pytest.mark.parametrize(
    "change", [{"plan_hash": "b" * 64}, {"events": (WARM,)}, {"requests": ("warm", "round-1", "round-2")}]
)
def test_a_reserved_run_cannot_become_another_one(path: Path, change: dict[str, Any]) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        with pytest.raises(LedgerError, match="reserved already"):
            reserve(ledger, **change)


def test_a_limit_lowered_later_stops_a_run_that_is_reserved_already(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        with pytest.raises(BudgetError):
            reserve(ledger, epsilon=0.5)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf"), True])
def test_a_limit_that_is_no_number_refuses(path: Path, epsilon: float) -> None:
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="limit epsilon"):
        reserve(ledger, epsilon=epsilon)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan"), True])
def test_a_delta_that_is_no_probability_refuses(path: Path, delta: float) -> None:
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match="delta"):
        reserve(ledger, delta=delta)


def test_a_release_without_noise_fits_no_budget(path: Path) -> None:
    with Ledger.open(path) as ledger, pytest.raises(BudgetError, match="asks for epsilon inf"):
        reserve(ledger, events=(GaussianRelease(name="raw", noise_multiplier=0.0),), epsilon=1e300)


def test_an_event_of_another_type_is_not_counted_as_free(path: Path) -> None:
    @dataclass(frozen=True)
    class ImageRelease:
        name: str = "per image"
        noise_multiplier: float = 4.0
        count: int = 1

    with Ledger.open(path) as ledger:
        for events in ((ImageRelease(),), ()):
            with pytest.raises(LedgerError):
                reserve(ledger, events=events)
        assert [entry.kind for entry in ledger.entries()] == ["open"]


# One request, one release.


def test_a_request_that_began_never_begins_again(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        assert ledger.state("run-1", "warm") == "new"
        ledger.begin("run-1", "warm")
    with Ledger.open(path) as ledger:  # as after a crash
        assert ledger.state("run-1", "warm") == "begun"
        with pytest.raises(LedgerError, match="spent and never runs again"):
            ledger.begin("run-1", "warm")
        with pytest.raises(LedgerError, match="no committed release"):
            ledger.digest("run-1", "warm")


def test_a_committed_request_is_answered_by_its_digest_only(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        ledger.begin("run-1", "warm")
        ledger.commit("run-1", "warm", digest("x"))
        with pytest.raises(LedgerError, match="never runs again"):
            ledger.begin("run-1", "warm")
        with pytest.raises(LedgerError, match="not begun and open"):
            ledger.commit("run-1", "warm", digest("y"))
    with Ledger.open(path) as ledger:
        assert ledger.state("run-1", "warm") == "committed"
        assert ledger.digest("run-1", "warm") == digest("x")


def test_nothing_begins_without_a_reservation_that_pays_for_it(path: Path) -> None:
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match="not reserved"):
            ledger.begin("run-1", "warm")
        reserve(ledger)
        with pytest.raises(LedgerError, match="not paid for"):
            ledger.begin("run-1", "warm-again")
        with pytest.raises(LedgerError, match="not begun"):
            ledger.commit("run-1", "warm", digest("x"))


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "../up", "né", "a\n", 7, None])
def test_names_that_could_carry_text_are_refused(path: Path, name: Any) -> None:
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError):
            reserve(ledger, name)
        reserve(ledger, requests=())
        with pytest.raises(LedgerError):
            ledger.begin("run-1", name)


def test_a_run_settles_on_one_sampler_to_publish(path: Path) -> None:
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match="is not reserved; it has nothing to publish"):
            ledger.publish("run-1", "a" * 64)
    with Ledger.open(path) as ledger:
        reserve(ledger)
        assert ledger.published("run-1") == ""
        ledger.publish("run-1", "a" * 64)
        assert ledger.published("run-1") == "a" * 64
    with Ledger.open(path) as ledger:
        assert ledger.published("run-1") == "a" * 64
        with pytest.raises(LedgerError, match="settled already; a run publishes one"):
            ledger.publish("run-1", "b" * 64)
    assert [entry.kind for entry in verify_ledger(path)].count("publish") == 1


def test_a_runs_requests_are_told_in_order_with_the_digests_of_their_answers(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        for request in ("warm", "round-1"):
            ledger.begin("run-1", request)
        ledger.commit("run-1", "warm", "c" * 64)
        assert list(ledger.requests("run-1").items()) == [("warm", "c" * 64), ("round-1", "")]
        assert ledger.requests("run-2") == {}


def test_there_is_no_way_to_get_budget_back() -> None:
    public = {name for name in vars(Ledger) if not name.startswith("_")}
    charging = {"reserve", "begin", "commit", "publish", "countersign"}
    telling = {"is_fresh", "state", "digest", "published", "requests", "head", "entries", "events", "spent"}
    # `adopt` goes on from what is there and says so in the chain for good (test_ledger_adoption.py).
    assert public == charging | telling | {"open", "close", "check_not_rolled_back", "adopt"}


def test_entries_hold_these_fields_and_no_others(tmp_path: Path) -> None:
    frame = {"kind", "previous", "sequence", "time"}
    allowed = {
        "open": {"format", "identity", "site", "unit", "adjacency"},
        "reserve": {"run", "plan_hash", "events", "requests", "epsilon", "delta", "epsilon_pld", "epsilon_rdp"},
        "begin": {"run", "request"},
        "commit": {"run", "request", "digest"},
        "publish": {"run", "digest"},
        "countersign": {"head", "server", "signature"},
        "adopt": {"reason", "missing", "lost"},
    }
    path = busy_ledger(tmp_path)
    with Ledger.open(path) as ledger:
        ledger.publish("run-2", digest("sampler"))
    default_witness(path).unlink()
    Ledger.adopt(path, Adoption(reason="the disk of the witness is gone"), site="north").close()
    entries = verify_ledger(path)
    assert {entry.kind for entry in entries} == set(allowed)
    for entry in entries:
        assert set(entry.fields) == frame | allowed[entry.kind]


def test_the_files_are_readable_by_their_owner_only(path: Path) -> None:
    with Ledger.open(path):
        names = {file.name for file in path.parent.iterdir()}
        assert names >= {"ledger.sqlite", "ledger.head", "ledger.lock"}
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name


# One writer.


def test_a_second_writer_is_refused_at_once_and_told_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, flock = [], fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: (asked.append(how), flock(descriptor, how)))
    with Ledger.open(path) as ledger:
        reserve(ledger)
        asked.clear()
        with pytest.raises(
            LedgerError, match=rf"in use by process {os.getpid()}; .* wait until that run ends, or stop it"
        ):
            Ledger.open(path)
        assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB]  # once, without waiting
        link = path.with_name("other-name.sqlite")
        link.symlink_to(path)
        with pytest.raises(LedgerError, match="in use"):
            Ledger.open(link)
    Ledger.open(path).close()


def test_a_killed_writer_leaves_no_lock(path: Path) -> None:
    def hold() -> None:
        ledger = Ledger.open(path)
        reserve(ledger)
        ready.set()
        time.sleep(60)

    ready = FORK.Event()
    child = FORK.Process(target=hold)
    child.start()
    assert ready.wait(20)
    with pytest.raises(LedgerError, match="in use"):
        Ledger.open(path)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    with Ledger.open(path) as ledger:
        assert ledger.spent(DELTA).events == EVENTS


def test_concurrent_writers_never_pass_the_limit_together(path: Path) -> None:
    limit = epsilon_pld((WARM,) * 3, DELTA)  # three of the twelve fit

    def work(worker: int) -> None:
        for i in range(3):
            while True:
                try:
                    with Ledger.open(path) as ledger:
                        reserve(ledger, f"run-{worker}-{i}", events=(WARM,), epsilon=limit)
                except BudgetError:
                    pass
                except LedgerError:
                    time.sleep(0.002)
                    continue
                break

    children = [FORK.Process(target=work, args=(worker,)) for worker in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    report = audit_ledger(path)
    assert len(report.runs) == 3
    assert report.epsilon_pld == limit


def test_two_writers_past_a_lost_lock_file_cannot_follow_the_same_entry(path: Path) -> None:
    with Ledger.open(path) as first:
        path.with_suffix(".lock").unlink()
        with Ledger.open(path) as second:
            reserve(second)
            with pytest.raises(LedgerError, match="changed by another program"):
                reserve(first, "run-2")
            with pytest.raises(LedgerError, match="open it again"):
                first.head()
    assert [entry.kind for entry in verify_ledger(path)] == ["open", "reserve"]


def test_a_forked_child_cannot_use_its_parents_ledger(path: Path) -> None:
    def child_work() -> None:
        try:
            ledger.head()
        except LedgerError:
            os._exit(7)

    with Ledger.open(path) as ledger:
        child = FORK.Process(target=child_work)
        child.start()
        child.join()
        assert child.exitcode == 7
        reserve(ledger)


def test_a_closed_ledger_answers_nothing(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.state("run-1", "warm")


# Damage.


def test_one_flipped_bit_in_any_byte_of_any_field_is_named(tmp_path: Path) -> None:
    entries = rows(busy_ledger(tmp_path))
    chance = random.Random(1)
    noticed = 0
    for index, (sequence, body, stored) in enumerate(entries):
        for field in (body, stored):
            for place in range(len(field)):
                flipped = bytearray(field)
                flipped[place] ^= 1 << chance.randrange(8)
                changed = (sequence, bytes(flipped), stored) if field is body else (sequence, body, bytes(flipped))
                chain = Chain()
                for _ in replay(entries[:index], chain):
                    pass
                with pytest.raises(LedgerError, match=f"entry {index + 1}"):
                    list(replay([changed], chain))
                noticed += 1
    assert noticed > 1500


@pytest.mark.parametrize("column", ["sequence", "body", "hash"])
@pytest.mark.parametrize("sequence", range(1, 8))
def test_a_changed_column_is_named_by_both_readers(tmp_path: Path, sequence: int, column: str) -> None:
    path = busy_ledger(tmp_path)
    change = {
        "sequence": "sequence + 100",
        "body": "replace(body, '0', '1')",
        "hash": "replace(hash, substr(hash, 1, 1), 'g')",
    }
    execute(path, f"UPDATE entries SET {column} = {change[column]} WHERE sequence = ?", sequence)  # noqa: S608
    # The last entry, moved away, is seen as the next one that is missing.
    for reader in (verify_ledger, Ledger.open):
        with pytest.raises(LedgerError, match=f"entry {sequence}"):
            reader(path)


def test_random_bits_flipped_in_the_file_are_noticed_or_change_nothing(tmp_path: Path) -> None:
    path = busy_ledger(tmp_path)
    good, clean = path.read_bytes(), [entry.body for entry in verify_ledger(path)]
    chance = random.Random(2)
    noticed = 0
    for _ in range(400):
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            assert [entry.body for entry in verify_ledger(path)] == clean
        except LedgerError:
            noticed += 1
    assert noticed > 50  # most of the file is empty pages


@pytest.mark.parametrize("length", [0, 1, 99, 4096, 5000, 8191])
def test_a_cut_file_is_refused(tmp_path: Path, length: int) -> None:
    path = busy_ledger(tmp_path)
    assert path.stat().st_size > length
    os.truncate(path, length)
    for reader in (verify_ledger, Ledger.open):
        with pytest.raises(LedgerError):
            reader(path)


def drop(*sequences: int) -> Callable[[list[dict[str, Any]]], None]:
    def change(entries: list[dict[str, Any]]) -> None:
        entries[:] = [entry for i, entry in enumerate(entries, start=1) if i not in sequences]

    return change


def edit(sequence: int, **fields: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda entries: entries[sequence - 1].update(fields)


def weaker_noise(entries: list[dict[str, Any]]) -> None:
    entries[1]["events"][0]["noise_multiplier"] = 2.0


def fewer_steps(entries: list[dict[str, Any]]) -> None:
    entries[1]["events"][1]["steps"] = 49


def twice(entries: list[dict[str, Any]]) -> None:
    entries.insert(2, dict(entries[1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (weaker_noise, r"entry 2 \(reserve\): epsilon_pld = .* is written"),
        (fewer_steps, r"entry 2 \(reserve\): epsilon_pld = .* is written"),
        (edit(2, epsilon_pld=0.5), r"entry 2 \(reserve\): epsilon_pld = 0.5 is written"),
        (edit(2, epsilon_rdp=0.5), r"entry 2 \(reserve\): epsilon_rdp = 0.5 is written"),
        (edit(2, epsilon=0.1), r"entry 2 \(reserve\): charged past its limit"),
        (edit(2, delta=1e-3), r"entry 2 \(reserve\): epsilon_pld = .* is written"),
        (edit(2, delta=0.0), r"entry 2 \(reserve\): delta"),
        (edit(2, epsilon=True), r"entry 2 \(reserve\): epsilon = 'True'"),
        (edit(2, patients=412), r"entry 2 \(reserve\): field patients"),
        (edit(2, events=[{"mechanism": "free"}]), r"entry 2 \(reserve\): its events"),
        (edit(1, unit="image"), r"entry 1 \(open\): unit"),
        (edit(1, adjacency="replace one"), r"entry 1 \(open\): adjacency"),
        (edit(3, kind="refund"), r"entry 3 \(refund\): a ledger has no such kind"),
        (edit(4, digest="x"), r"entry 4 \(commit\): digest"),
        (edit(1, site="south"), r"entry 5 \(countersign\)"),
        (edit(5, signature="0" * 128), r"entry 5 \(countersign\): the signature"),
        (twice, r"entry 3 \(reserve\): run run-1 is reserved already"),
        (drop(1), r"entry 1 \(reserve\): a ledger starts with one open"),
        (drop(2), r"entry 2 \(begin\): run run-1 is not reserved"),
        (drop(3), r"entry 3 \(commit\): request warm of run run-1 is not begun"),
        (drop(4), r"entry 4 \(countersign\): the countersigned head"),
    ],
)
def test_an_insider_who_hashes_the_whole_chain_again_is_still_named(tmp_path: Path, change: Any, said: str) -> None:
    path = busy_ledger(tmp_path)
    forge(path, lambda entries: None)
    assert len(verify_ledger(path)) == 7  # the clean twin
    forge(path, change)
    with pytest.raises(LedgerError, match=said):
        verify_ledger(path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE other (x)",
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE sequence > 1; END",
        "CREATE INDEX i ON entries (hash)",
        "CREATE VIEW v AS SELECT 1",
    ],
)
def test_anything_else_in_the_database_is_refused(tmp_path: Path, statement: str) -> None:
    path = busy_ledger(tmp_path)
    execute(path, statement)
    for reader in (verify_ledger, Ledger.open):
        with pytest.raises(LedgerError, match="other tables, indexes or triggers"):
            reader(path)


def test_what_is_no_ledger_is_one_line(tmp_path: Path) -> None:
    text = tmp_path / "ledger.sqlite"
    for content in (b"", b"hello", b"SQLite format 3\0" + bytes(200)):
        text.write_bytes(content)
        with pytest.raises(LedgerError):
            verify_ledger(text)
    for missing in (tmp_path / "none.sqlite", tmp_path):
        with pytest.raises(LedgerError, match="is not a file"):
            verify_ledger(missing)
    with pytest.raises(LedgerError, match="No such file"):
        Ledger.open(tmp_path / "no" / "ledger.sqlite")


def test_another_hospitals_ledger_is_refused(tmp_path: Path) -> None:
    path = busy_ledger(tmp_path)
    with pytest.raises(LedgerError, match="belongs to site 'north', not 'south'"):
        Ledger.open(path, site="south")
    Ledger.open(path, site="north").close()


# Rollback.


def test_a_restored_old_database_is_noticed_by_its_witness(tmp_path: Path) -> None:
    path = busy_ledger(tmp_path)
    old = path.read_bytes()
    with Ledger.open(path) as ledger:
        reserve(ledger, "run-3", events=(WARM,))
    path.write_bytes(old)
    for reader in (verify_ledger, Ledger.open):
        with pytest.raises(LedgerError, match="ends at entry 7, but ledger.head has seen entry 8"):
            reader(path)


@pytest.mark.parametrize("name", ["ledger.sqlite", "ledger.head"])
def test_a_deleted_file_does_not_start_a_new_budget(tmp_path: Path, name: str) -> None:
    path = busy_ledger(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(LedgerError, match=f"{name}.* is missing"):
        Ledger.open(path)
    assert not (tmp_path / name).exists()


def test_a_damaged_witness_is_refused(tmp_path: Path) -> None:
    path = busy_ledger(tmp_path)
    good = path.with_suffix(".head").read_bytes()
    for bad in (b"", b"{}", b"[]", good[:-1], good.replace(b"7", b"-7"), good.replace(b"7", b"true"), good + b" "):
        path.with_suffix(".head").write_bytes(bad)
        with pytest.raises(LedgerError, match="damaged"):
            Ledger.open(path)


def test_an_old_copy_with_its_witness_is_noticed_by_the_head_that_the_server_knows(tmp_path: Path) -> None:
    (tmp_path / "now").mkdir()
    path = busy_ledger(tmp_path / "now")
    shutil.copytree(path.parent, tmp_path / "backup")
    bear_witness(tmp_path / "backup" / "ledger.sqlite")  # as if nothing on this machine remembered
    with Ledger.open(path) as ledger:
        reserve(ledger, "run-3", events=(WARM,))
        known = ledger.head()
        ledger.check_not_rolled_back(known)
        ledger.begin("run-3", "warm")
        ledger.check_not_rolled_back(known)  # going on is no rollback
    restored = tmp_path / "backup" / "ledger.sqlite"
    with Ledger.open(restored) as ledger:
        ledger.check_not_rolled_back("")  # a server that knows nothing asks for nothing
        with pytest.raises(LedgerError, match="old copy or a fork"):
            ledger.check_not_rolled_back(known)
    with pytest.raises(LedgerError, match="old copy or a fork"):
        verify_ledger(restored, known_heads=[known])
    (tmp_path / "fresh").mkdir()
    with (
        Ledger.open(tmp_path / "fresh" / "ledger.sqlite") as ledger,
        pytest.raises(LedgerError, match="old copy or a fork"),
    ):
        ledger.check_not_rolled_back(known)


def test_two_copies_that_run_on_are_noticed_as_a_fork(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    busy_ledger(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    bear_witness(tmp_path / "b" / "ledger.sqlite")  # as if nothing on this machine remembered
    heads = {}
    for name in ("a", "b"):
        with Ledger.open(tmp_path / name / "ledger.sqlite") as ledger:
            reserve(ledger, f"run-{name}", events=(WARM,))
            heads[name] = ledger.head()
    for mine, other in (("a", "b"), ("b", "a")):
        with Ledger.open(tmp_path / mine / "ledger.sqlite") as ledger:
            ledger.check_not_rolled_back(heads[mine])
            with pytest.raises(LedgerError, match="fork"):
                ledger.check_not_rolled_back(heads[other])
    shutil.copy(tmp_path / "b" / "ledger.sqlite", tmp_path / "a" / "ledger.sqlite")
    with pytest.raises(LedgerError, match="another entry 8"):
        Ledger.open(tmp_path / "a" / "ledger.sqlite")


def test_a_countersignature_is_kept_only_if_it_holds(path: Path) -> None:
    server = Ed25519PrivateKey.generate()
    public = keys.public_hex(server)
    with Ledger.open(path, site="north") as ledger:
        head = ledger.head()
        good = keys.sign(server, keys.head_document(site="north", head=head))
        other_site = keys.sign(server, keys.head_document(site="south", head=head))
        unknown = keys.sign(server, keys.head_document(site="north", head="0" * 64))
        stranger = keys.public_hex(Ed25519PrivateKey.generate())
        for arguments in (
            (head, public, other_site),
            ("0" * 64, public, unknown),
            (head, stranger, good),
            (head, public, ""),
        ):
            with pytest.raises(LedgerError):
                ledger.countersign(*arguments)
        ledger.countersign(head, public, good)
    assert audit_ledger(path).countersigned == ((public, head),)


# Storage that fails.


def in_child(work: Callable[[], None]) -> None:
    """Runs `work` in a forked child, whose limits and user may change; fails with it."""
    child = FORK.Process(target=work)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def fill(ledger: Ledger) -> None:
    for i in range(100):
        reserve(ledger, f"full-{i}", epsilon=1000.0)


def test_a_full_disk_refuses_and_what_was_stored_stays_whole(tmp_path: Path) -> None:
    path = busy_ledger(tmp_path)
    before = [entry.body for entry in verify_ledger(path)]

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = Ledger.open(path)
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        with pytest.raises(LedgerError, match="nothing more is released"):
            fill(ledger)
        for use in (ledger.head, lambda: ledger.begin("run-1", "round-1"), lambda: ledger.spent(DELTA)):
            with pytest.raises(LedgerError, match="open it again"):
                use()

    in_child(work)
    after = [entry.body for entry in verify_ledger(path)]
    assert after[: len(before)] == before
    with Ledger.open(path) as ledger:
        reserve(ledger, "after", epsilon=1000.0)


def test_a_folder_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    path = busy_ledger(tmp_path)
    for name in ("ledger.sqlite", "ledger.head", "ledger.lock"):
        (tmp_path / name).chmod(0o444)
    (tmp_path / "ledger.sqlite-journal").unlink(missing_ok=True)
    parents = [folder for folder in (tmp_path, *tmp_path.parents) if folder != Path("/")]
    modes = {folder: folder.stat().st_mode for folder in parents}

    def work() -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)  # root may write anywhere
        with pytest.raises(LedgerError, match="ermission"):
            Ledger.open(path)

    try:
        for folder in parents:
            if modes[folder] & 0o005 != 0o005 and folder.stat().st_uid == os.geteuid():
                folder.chmod(modes[folder] | 0o005)
        tmp_path.chmod(0o555)
        in_child(work)
    finally:
        for folder in parents:
            if folder.stat().st_mode != modes[folder]:
                folder.chmod(modes[folder])
    (tmp_path / "ledger.sqlite").chmod(0o600)
    assert len(verify_ledger(path)) == 7


# Reading beside, and from outside.


def test_a_reader_does_not_stop_the_writer(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
        for request in ("warm", "round-1"):
            ledger.begin("run-1", request)
            verify_ledger(path)
            ledger.commit("run-1", request, digest(request))
        assert len(ledger.entries()) == len(verify_ledger(path)) == 6


def test_the_audit_tells_what_was_spent_on_what(tmp_path: Path) -> None:
    report = audit_ledger(busy_ledger(tmp_path))
    first, second = report.runs
    assert (report.site, report.unit, report.adjacency) == ("north", "patient", "add/remove one patient")
    assert first.epsilon_pld == first.epsilon_pld_after == epsilon_pld(EVENTS, DELTA)
    assert second.epsilon_pld == epsilon_pld((WARM,), DELTA)
    assert second.epsilon_rdp_after == report.epsilon_rdp == epsilon_rdp((*EVENTS, WARM), DELTA)
    assert report.left == pytest.approx(8.0 - epsilon_pld((*EVENTS, WARM), DELTA))
    assert (first.committed, first.spent_unanswered) == (("warm",), ())
    assert (second.committed, second.spent_unanswered) == ((), ("warm",))
    assert report.to_dict()["runs"][0]["events"][0]["noise_multiplier"] == 4.0


def test_verifying_twice_as_many_entries_is_twice_the_work(tmp_path: Path) -> None:
    work = {}
    for requests in (500, 1000):
        (tmp_path / f"{requests}").mkdir()
        path = long_ledger(tmp_path / f"{requests}" / "ledger.sqlite", requests)
        assert len(verify_ledger(path)) == 2 * requests + 2
        work[requests] = calls_of(partial(verify_ledger, path))
    assert work[1000] < 2.1 * work[500]
