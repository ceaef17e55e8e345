"""Adoption: the one way on from a ledger of which something is missing; the chain says so for good."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ghostnet.audit.ledger import audit_ledger
from ghostnet.errors import LedgerError
from ghostnet.evidence.chain import MAX_REASON
from ghostnet.evidence.faults import Adoption, inspect_ledger
from ghostnet.evidence.ledger import Ledger, verify_ledger
from ghostnet.evidence.witness import default_witness
from tests.evidence.ledger_site import LineKiller, fork
from tests.evidence.ledgers import WARM, busy_ledger, forge, reserve

BECAUSE = Adoption(reason="restored after a fire")


def backed_up(tmp_path: Path) -> Path:
    """A ledger of eight entries, and a copy of its folder from when it had seven."""
    (tmp_path / "north").mkdir()
    path = busy_ledger(tmp_path / "north")
    shutil.copytree(path.parent, tmp_path / "backup")
    with Ledger.open(path) as ledger:
        reserve(ledger, "run-3", events=(WARM,))
    return path


def restore(path: Path) -> None:
    shutil.rmtree(path.parent)
    shutil.copytree(path.parents[1] / "backup", path.parent)


def delete(path: Path) -> None:
    path.unlink()
    path.with_suffix(".head").unlink()


def lose_witness(path: Path) -> None:
    default_witness(path).unlink()


def lose_head(path: Path) -> None:
    path.with_suffix(".head").unlink()


def damage_witness(path: Path) -> None:
    default_witness(path).write_bytes(b"no witness\n")


def copy_back(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.unlink()
    path.with_name("copy").rename(path)


LOSSES: dict[str, tuple[Callable[[Path], None], list[str], int]] = {
    "restored": (restore, ["entries"], 7),
    "deleted": (delete, ["ledger"], 0),
    "without witness": (lose_witness, ["witness"], 8),
    "without head": (lose_head, ["head"], 8),
    "damaged witness": (damage_witness, ["witness"], 8),
    "copied back": (copy_back, ["file"], 8),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_adopted_ledger_goes_on_and_says_what_was_missing_and_why(tmp_path: Path, name: str) -> None:
    lose, missing, kept = LOSSES[name]
    path = backed_up(tmp_path)
    before = [entry.body for entry in verify_ledger(path)]
    head = verify_ledger(path)[-1].hash
    lose(path)
    with pytest.raises(LedgerError, match="ghostnet site ledger SITE.toml"):
        Ledger.open(path)
    assert [fault.missing for fault in inspect_ledger(path)] == missing
    Ledger.adopt(path, BECAUSE, site="north").close()
    assert inspect_ledger(path) == ()
    with Ledger.open(path, site="north") as ledger:
        ledger.check_not_rolled_back(head)  # given up where it is lost, there where it is not
        reserve(ledger, "run-4", epsilon=100.0)
    entries = verify_ledger(path)
    assert [entry.body for entry in entries[:kept]] == before[:kept]
    adopted = entries[max(kept, 1)]
    assert (adopted.kind, adopted.fields["reason"], adopted.fields["missing"]) == ("adopt", BECAUSE.reason, missing)
    assert (head in adopted.fields["lost"]) == (kept < 8)
    (told,) = audit_ledger(path).adoptions
    assert (told.reason, told.missing) == (BECAUSE.reason, tuple(missing))


def test_a_head_that_a_coordinator_has_seen_is_given_up_by_name_only(tmp_path: Path) -> None:
    path = backed_up(tmp_path)
    seen, other = "ab" * 32, "cd" * 32
    with Ledger.open(path) as ledger, pytest.raises(LedgerError, match=f"lacks entry {seen}"):
        ledger.check_not_rolled_back(seen)
    Ledger.adopt(path, Adoption(reason="a snapshot was put back", lost=(seen,)), site="north").close()
    with Ledger.open(path) as ledger:
        ledger.check_not_rolled_back(seen)
        with pytest.raises(LedgerError, match="lacks entry"):
            ledger.check_not_rolled_back(other)
    assert verify_ledger(path)[-1].fields["missing"] == ["coordinator"]


def test_a_head_that_is_there_is_not_lost_and_marks_no_ledger_as_adopted(tmp_path: Path) -> None:
    path = backed_up(tmp_path)
    entries = verify_ledger(path)
    for entry in (entries[0], entries[-1]):
        with pytest.raises(LedgerError, match=f"holds entry {entry.hash}: it is not lost"):
            Ledger.adopt(path, Adoption(reason="a coordinator said so", lost=("ab" * 32, entry.hash)), site="north")
    assert verify_ledger(path) == entries


def test_a_ledger_in_order_a_damaged_one_and_anothers_are_not_adopted(tmp_path: Path) -> None:
    path = backed_up(tmp_path)
    entries = verify_ledger(path)
    with pytest.raises(LedgerError, match="in order; there is nothing to adopt"):
        Ledger.adopt(path, BECAUSE, site="north")
    restore(path)
    with pytest.raises(LedgerError, match="belongs to site 'north', not 'south'"):
        Ledger.adopt(path, BECAUSE, site="south")
    forge(path, lambda documents: documents[3].update(digest="x"))
    with pytest.raises(LedgerError, match=r"entry 4 \(commit\): digest"):
        Ledger.adopt(path, BECAUSE, site="north")
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    with pytest.raises(LedgerError, match="nothing to adopt"):
        Ledger.adopt(fresh / "ledger.sqlite", BECAUSE, site="north")
    assert list(fresh.glob("*.sqlite")) == []
    assert len(entries) == 8


@pytest.mark.parametrize("reason", ["", "a\nb", "x" * (MAX_REASON + 1), "\x1b[2J"])
def test_a_reason_is_a_line_of_text(tmp_path: Path, reason: str) -> None:
    path = backed_up(tmp_path)
    lose_witness(path)
    with pytest.raises(LedgerError, match="reason"):
        Ledger.adopt(path, Adoption(reason=reason), site="north")
    with pytest.raises(LedgerError, match=r"witness .* is missing"):
        Ledger.open(path)


@pytest.mark.parametrize("name", ["restored", "deleted", "without witness"])
def test_an_adoption_killed_at_any_line_is_made_or_the_ledger_is_refused_still(tmp_path: Path, name: str) -> None:
    """Never: a ledger in order whose chain does not say what was lost."""

    def adopt(path: Path, killer: LineKiller) -> None:
        killer.start()
        Ledger.adopt(path, BECAUSE, site="north").close()

    lose, _, _ = LOSSES[name]
    killed = refused = made = 0
    line = 1
    while True:
        folder = tmp_path / str(line)
        folder.mkdir()
        path = backed_up(folder)
        lose(path)
        status = os.waitpid(fork(partial(adopt, path, LineKiller(line))), 0)[1]
        sys.settrace(None)
        killed += os.WIFSIGNALED(status)
        try:
            Ledger.open(path, site="north").close()
        except LedgerError:
            refused += 1
            Ledger.adopt(path, BECAUSE, site="north").close()
        else:
            made += 1
        assert "adopt" in [entry.kind for entry in verify_ledger(path)], f"killed at line {line}"
        if not os.WIFSIGNALED(status):
            break
        line += 7
    assert killed > 30
    assert refused > 20
    assert made > 1
