"""The second witness: what it notices of a ledger's file, and that a crash or a full disk is no fault."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from ghostnet.errors import LedgerError
from ghostnet.evidence import ledger as ledger_module
from ghostnet.evidence.faults import inspect_ledger
from ghostnet.evidence.ledger import Ledger, verify_ledger
from ghostnet.evidence.witness import (
    UNKNOWN,
    Witnessed,
    append_witness,
    default_witness,
    file_identity,
    read_history,
    read_witness,
)
from tests.evidence.ledger_site import fork
from tests.evidence.ledgers import busy_ledger, reserve

LINE = Witnessed(ledger="a" * 64, sequence=3, head="b" * 64, inode=7, born_ns=8, modified_ns=9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "north").mkdir()
    return tmp_path / "north" / "ledger.sqlite"


# The file.


def test_every_entry_is_a_line_outside_the_state_folder(path: Path) -> None:
    with Ledger.open(path, site="north") as ledger:
        reserve(ledger)
        ledger.begin("run-1", "warm")
    entries = verify_ledger(path)
    witness = path.parents[1] / "north.witness"
    assert [(line.sequence, line.head) for line in read_history(witness)] == [(e.sequence, e.hash) for e in entries]
    assert stat.S_IMODE(witness.stat().st_mode) == 0o600


def test_the_witness_may_be_a_file_of_the_hospitals_choice(path: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "other-disk" / "north"
    chosen.parent.mkdir()
    Ledger.open(path, witness=chosen).close()
    assert chosen.exists()
    assert not default_witness(path).exists()
    with Ledger.open(path, witness=chosen) as ledger:
        reserve(ledger)
    with pytest.raises(LedgerError, match=r"witness .* is missing"):
        Ledger.open(path)


def test_an_empty_file_that_an_administrator_made_is_no_witness_yet(path: Path) -> None:
    default_witness(path).touch(mode=0o600)
    Ledger.open(path).close()
    assert len(list(read_history(default_witness(path)))) == 1


def test_a_line_cut_off_at_any_byte_counts_as_not_written_and_the_next_append_closes_it(tmp_path: Path) -> None:
    file, newest = tmp_path / "witness", LINE
    append_witness(file, LINE)
    first = file.read_bytes()
    later = Witnessed(**{**vars(LINE), "sequence": 4})
    for cut in range(1, len(first)):
        file.write_bytes(first + first[:cut])
        assert read_witness(file) == newest
        append_witness(file, later)
        assert read_witness(file) == later
        file.write_bytes(file.read_bytes() + first[:cut])  # and once more
        append_witness(file, later)
        assert [line.sequence for line in read_history(file)] == [3, 4, 4]
        file.write_bytes(first[:cut])
        assert read_witness(file) is None


def test_a_changed_bit_in_the_newest_line_is_damage_or_seen_against_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    path = busy_ledger(tmp_path / "state")
    witness = default_witness(path)
    good = witness.read_bytes()
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1
        witness.write_bytes(changed)
        if place == len(good) - 1 or changed[place : place + 1] == b"\n":
            continue  # the line's end is gone: cut off
        text = bytes(changed[good.index(b'"modified_ns"') : good.index(b'"sequence"')])
        if text != good[good.index(b'"modified_ns"') : good.index(b'"sequence"')] and read_or_none(witness):
            continue  # a time of modification that is later than the file's says nothing
        with pytest.raises(LedgerError):
            Ledger.open(path)
    witness.write_bytes(good)
    Ledger.open(path).close()


def read_or_none(witness: Path) -> Witnessed | None:
    try:
        return read_witness(witness)
    except LedgerError:
        return None


def test_a_long_witness_is_read_from_its_end(tmp_path: Path) -> None:
    file = tmp_path / "witness"
    append_witness(file, LINE)
    file.write_bytes(file.read_bytes() * 1000)
    append_witness(file, Witnessed(**{**vars(LINE), "sequence": 1001}))
    assert read_witness(file) == Witnessed(**{**vars(LINE), "sequence": 1001})
    file.write_bytes(file.read_bytes() + b"x" * 20_000 + b"\n")
    with pytest.raises(LedgerError, match="damaged"):
        read_witness(file)


# The database file.


def test_a_copy_in_its_place_is_another_file_even_if_every_byte_is_the_same(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    before = file_identity(path)
    path.unlink()
    shutil.move(copy, path)
    assert file_identity(path).modified_ns == before.modified_ns
    with pytest.raises(LedgerError, match="is not the file that witness .* knows"):
        Ledger.open(path)


def test_a_copy_under_the_same_inode_number_is_told_by_its_time_of_birth(path: Path) -> None:
    """File systems use the number of a deleted file again at once."""
    with Ledger.open(path) as ledger:
        reserve(ledger)
    content, before = path.read_bytes(), file_identity(path)
    if not before.born_ns:
        pytest.skip("this file system keeps no time of birth")
    path.unlink()
    for _ in range(100):
        path.write_bytes(content)
        if path.stat().st_ino == before.inode:
            break
        path.rename(path.with_name(f"other-{path.stat().st_ino}"))
    os.utime(path, ns=(before.modified_ns, before.modified_ns))
    assert file_identity(path).born_ns != before.born_ns
    with pytest.raises(LedgerError, match="is not the file"):
        Ledger.open(path)


def test_a_file_that_was_overwritten_in_place_is_younger_than_its_newest_entry(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
    content = path.read_bytes()
    Ledger.open(path).close()
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="was written to after the newest entry"):
        Ledger.open(path)
    assert [fault.missing for fault in inspect_ledger(path)] == ["file"]


def test_rights_and_reading_change_nothing(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
    path.chmod(0o640)
    path.chmod(0o600)
    shutil.copy2(path, path.with_name("backup"))
    verify_ledger(path)
    Ledger.open(path).close()
    moved = path.parents[1] / "south"
    path.parent.rename(moved)  # the same files under another name are no copy
    default_witness(path).rename(default_witness(moved / "ledger.sqlite"))
    Ledger.open(moved / "ledger.sqlite").close()


# Crashes.


def leave_a_transaction_cut_off(path: Path) -> None:
    """A writer that dies after SQLite has written to the database and before the transaction is whole."""

    def die() -> None:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA journal_mode=TRUNCATE")
        database.execute("PRAGMA cache_size=1")  # pages are written while the transaction is open
        database.execute("BEGIN IMMEDIATE")
        for i in range(200):
            database.execute("INSERT INTO entries VALUES (?, ?, ?)", (1000 + i, "x" * 2000, "y" * 64))
        os.kill(os.getpid(), signal.SIGKILL)

    before = file_identity(path).modified_ns
    time.sleep(0.02)
    assert os.WIFSIGNALED(os.waitpid(fork(die), 0)[1])
    assert file_identity(path).modified_ns > before
    assert path.with_name("ledger.sqlite-journal").stat().st_size > 0


def test_a_transaction_that_a_crash_cut_off_is_undone_and_is_no_fault(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
    leave_a_transaction_cut_off(path)
    with Ledger.open(path) as ledger:
        assert len(ledger.entries()) == 2
    newest = read_witness(default_witness(path))
    assert newest is not None
    assert newest.modified_ns == file_identity(path).modified_ns
    Ledger.open(path).close()


class DiesBeforeItBearsWitness(Ledger):
    def _bear_witness(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_neither_is_a_crash_while_it_is_undone(path: Path) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
    leave_a_transaction_cut_off(path)
    assert os.WIFSIGNALED(os.waitpid(fork(lambda: DiesBeforeItBearsWitness.open(path).close()), 0)[1])
    newest = read_witness(default_witness(path))
    assert newest is not None
    assert newest.modified_ns == UNKNOWN
    with Ledger.open(path) as ledger:
        reserve(ledger, "run-2", epsilon=100.0)


def test_without_a_look_at_the_journal_that_crash_would_be_taken_for_a_copy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(path) as ledger:
        reserve(ledger)
    leave_a_transaction_cut_off(path)
    monkeypatch.setattr(ledger_module, "is_cut_off", lambda path: False)
    with pytest.raises(LedgerError, match="was written to after"):
        Ledger.open(path)


@pytest.mark.parametrize("kind", ["open", "reserve", "begin"])
def test_a_crash_between_an_entry_and_its_witnesses_is_made_up_for(path: Path, kind: str) -> None:
    class Dies(Ledger):
        def _bear_witness(self) -> None:
            if self.entries()[-1].kind == kind:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._bear_witness()

    def work() -> None:
        with Dies.open(path) as ledger:
            reserve(ledger)
            ledger.begin("run-1", "warm")

    assert os.WIFSIGNALED(os.waitpid(fork(work), 0)[1])
    with Ledger.open(path) as ledger:
        assert ledger.entries()[-1].kind == kind
        newest = read_witness(default_witness(path))
        assert newest is not None
        assert newest.head == ledger.head()


def test_a_witness_that_cannot_be_stored_stops_the_ledger_and_nothing_is_released(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "share" / "north"
    witness.parent.mkdir()
    with Ledger.open(path, witness=witness) as ledger:
        reserve(ledger)
        shutil.move(witness.parent, tmp_path / "away")
        with pytest.raises(LedgerError, match="nothing more is released"):
            ledger.begin("run-1", "warm")
        with pytest.raises(LedgerError, match="open it again"):
            ledger.head()
    with pytest.raises(LedgerError, match=r"witness .* is missing"):  # not made anew where the disk is not there
        Ledger.open(path, witness=witness)
    shutil.move(tmp_path / "away", witness.parent)
    with Ledger.open(path, witness=witness) as ledger:
        assert ledger.state("run-1", "warm") == "begun"  # spent


def test_two_ledgers_cannot_share_a_witness(path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "one"
    Ledger.open(path, witness=witness).close()
    (tmp_path / "south").mkdir()
    with pytest.raises(LedgerError, match="there was a ledger"):
        Ledger.open(tmp_path / "south" / "ledger.sqlite", witness=witness)
    Ledger.open(tmp_path / "south" / "ledger.sqlite").close()
    with pytest.raises(LedgerError, match="is of another ledger"):
        Ledger.open(tmp_path / "south" / "ledger.sqlite", witness=witness)
