"""Ledgers restored, deleted, copied and forked between two runs: none is accepted, wherever the second run writes to.

Each hospital is a real one on the real app; each run has an output folder of its own. The second coordinator is either
the same user's, or another one's that has never seen this hospital.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from client.config import load_site
from ghostnet.accounting.plan_cost import claim
from ghostnet.cli.site_check import key as site_key
from ghostnet.errors import FederationError
from ghostnet.evidence import keys
from ghostnet.evidence import ledger as ledger_module
from ghostnet.evidence.faults import Adoption
from ghostnet.evidence.ledger import Ledger, verify_ledger
from ghostnet.exchange import messages, protocol
from ghostnet.exchange.flower import to_records
from ghostnet.exchange.messages import JoinRequest, Plain, WarmStartAnswer, WarmStartRequest, decode_request, encode
from ghostnet.plan import Plan
from server.checkpoint import Checkpoint
from server.conversation import Conversation
from server.known_heads import FILE, KnownHeads
from tests.asked import request
from tests.evidence.ledgers import digest
from tests.plans import tiny_plan, write_striped_npz
from tests.server.direct_grid import DirectGrid, write_hospitals
from tests.server.federations import plan_of

pytestmark = pytest.mark.usefixtures("one_thread", "first_user")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def first_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that starts without a memory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "first-user"))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of("generator")


@pytest.fixture
def site(tmp_path: Path, plan: Plan) -> Path:
    """A hospital whose budget is enough for one run, with the backup that its IT made before that run."""
    (tmp_path / "sites").mkdir()
    (found,) = write_hospitals(
        tmp_path / "sites",
        ["north"],
        lambda path, i: write_striped_npz(path, patients=30),
        epsilon=max(plan.privacy.epsilon, 1.2 * claim(plan).epsilon_pld),
        coalition=0.0,
    )
    site_key(found)
    shutil.copytree(found.parent, tmp_path / "backup")
    shutil.copy2(witness(found), tmp_path / "backup.witness")
    return found


def witness(site: Path) -> Path:
    return load_site(site).witness_path


def spend(site: Path, plan: Plan, out: Path) -> Conversation:
    """A run as far as its first release; each has a folder and a signing key of its own."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    checkpoint = Checkpoint.open(out, plan, resume=False)
    grid = DirectGrid([site])
    conversation = Conversation(grid, plan, checkpoint.run_id, checkpoint.key, {}, [])  # type: ignore[arg-type]
    conversation.join(1)
    reasons: list[str] = []
    replies = conversation.ask(WarmStartRequest(), WarmStartAnswer, conversation.hospitals, refused=reasons)
    conversation.require(len(replies), "released the warm start's sum", reasons)
    return conversation


# What happens to the state folder between two runs. Each returns the site.toml that the second run asks.


def backup_of(site: Path) -> Path:
    return site.parents[2] / "backup"


def restore_the_database(site: Path) -> Path:
    shutil.copy2(backup_of(site) / "ledger.sqlite", site.parent)
    return site


def restore_database_and_head(site: Path) -> Path:
    shutil.copy2(backup_of(site) / "ledger.head", site.parent)
    return restore_the_database(site)


def restore_the_folder(site: Path) -> Path:
    shutil.rmtree(site.parent)
    shutil.copytree(backup_of(site), site.parent)
    return site


def restore_folder_and_witness(site: Path) -> Path:
    witness(site).unlink()
    shutil.copy2(backup_of(site).with_suffix(".witness"), witness(site))
    return restore_the_folder(site)


def restore_by_renaming(site: Path) -> Path:
    shutil.rmtree(site.parent)
    backup_of(site).rename(site.parent)
    shutil.copy2(site.parents[2] / "backup.witness", witness(site))
    return site


def overwrite_everything_in_place(site: Path) -> Path:
    for file in backup_of(site).iterdir():
        if file.is_file():
            (site.parent / file.name).write_bytes(file.read_bytes())
    witness(site).write_bytes(backup_of(site).with_suffix(".witness").read_bytes())
    shutil.rmtree(site.parent / "runs")
    return site


def delete_the_database(site: Path) -> Path:
    (site.parent / "ledger.sqlite").unlink()
    return site


def delete_database_and_head(site: Path) -> Path:
    (site.parent / "ledger.head").unlink()
    return delete_the_database(site)


def delete_the_witness(site: Path) -> Path:
    witness(site).unlink()
    return site


def delete_all_but_the_key(site: Path) -> Path:
    delete_the_witness(site)
    shutil.rmtree(site.parent / "runs")
    return delete_database_and_head(site)


def delete_all_but_the_runs(site: Path) -> Path:
    delete_the_witness(site)
    (site.parent / "site.key").unlink()
    return delete_database_and_head(site)


def delete_all_but_the_witness(site: Path) -> Path:
    (site.parent / "site.key").unlink()
    shutil.rmtree(site.parent / "runs")
    return delete_database_and_head(site)


def empty_the_database(site: Path) -> Path:
    (site.parent / "ledger.sqlite").write_bytes(b"")
    return site


def delete_the_key_and_restore_the_database(site: Path) -> Path:
    (site.parent / "site.key").unlink()
    return restore_database_and_head(site)


def copy_the_old_folder(site: Path) -> Path:
    shutil.copytree(backup_of(site), site.parent.with_name("copy"))
    return site.parent.with_name("copy") / "site.toml"


def copy_old_folder_and_witness(site: Path) -> Path:
    copied = copy_the_old_folder(site)
    shutil.copy2(backup_of(site).with_suffix(".witness"), witness(copied))
    return copied


def point_a_copy_at_the_same_witness(site: Path) -> Path:
    copied = copy_the_old_folder(site)
    copied.write_text(copied.read_text() + f'witness = "{witness(site)}"\n')
    return copied


def move_the_state_and_keep_the_chosen_witness(site: Path) -> Path:
    text = site.read_text().replace('\nname = "north"\n', '\nname = "north"\nstate = "elsewhere"\n')
    site.write_text(text + f'witness = "{witness(site)}"\n')
    return site


def link_the_database_elsewhere(site: Path) -> Path:
    other = site.parent.with_name("linked")
    shutil.copytree(backup_of(site), other, ignore=shutil.ignore_patterns("ledger.sqlite"))
    os.link(site.parent / "ledger.sqlite", other / "ledger.sqlite")
    return other / "site.toml"


def overwrite_in_place_with_its_old_times(site: Path) -> Path:
    """As cp -p or a disk's snapshot would: no file of the hospital's tells."""
    overwrite_everything_in_place(site)
    old = (backup_of(site) / "ledger.sqlite").stat()
    os.utime(site.parent / "ledger.sqlite", ns=(old.st_atime_ns, old.st_mtime_ns))
    return site


AT_THE_HOSPITAL: tuple[Callable[[Path], Path], ...] = (
    restore_the_database,
    restore_database_and_head,
    restore_the_folder,
    restore_folder_and_witness,
    restore_by_renaming,
    overwrite_everything_in_place,
    delete_the_database,
    delete_database_and_head,
    delete_the_witness,
    delete_all_but_the_key,
    delete_all_but_the_runs,
    delete_all_but_the_witness,
    empty_the_database,
    delete_the_key_and_restore_the_database,
    copy_the_old_folder,
    copy_old_folder_and_witness,
    point_a_copy_at_the_same_witness,
    move_the_state_and_keep_the_chosen_witness,
    link_the_database_elsewhere,
)


def is_accepted(site: Path, plan: Plan, out: Path) -> bool:
    """Whether a second run gets as far as a release, or as a reservation."""
    before = reserved(site)
    try:
        spend(site, plan, out)
    except FederationError as error:
        if "LedgerError" not in str(error):  # the hospital's own word, and not its budget's
            raise
        return reserved(site) > before
    return True


def reserved(site: Path) -> int:
    with suppress(Exception):
        return [entry.kind for entry in verify_ledger(load_site(site).ledger_path)].count("reserve")
    return 0


@pytest.mark.parametrize("coordinator", ["same user", "another user"])
@pytest.mark.parametrize("change", AT_THE_HOSPITAL, ids=lambda change: change.__name__)
def test_no_ledger_that_was_changed_between_two_runs_is_accepted(
    change: Callable[[Path], Path],
    coordinator: str,
    site: Path,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spend(site, plan, tmp_path / "run-1")
    asked = change(site)
    if coordinator == "another user":
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "second-user"))
    assert not is_accepted(asked, plan, tmp_path / "run-2")


def test_what_no_file_of_the_hospital_tells_is_noticed_by_its_coordinator_when_it_joins(
    site: Path, plan: Plan, tmp_path: Path
) -> None:
    spend(site, plan, tmp_path / "run-1")
    overwrite_in_place_with_its_old_times(site)
    assert not is_accepted(site, plan, tmp_path / "run-2")
    log = (site.parent / "site.log").read_text()
    assert "that the coordinator has seen" in log
    assert "--adopt --lost" in log


def test_and_by_a_coordinator_that_has_never_seen_this_hospital_it_is_not(
    site: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit, said in docs/hospital-it.md: a witness on another disk is what is left."""
    spend(site, plan, tmp_path / "run-1")
    overwrite_in_place_with_its_old_times(site)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "second-user"))
    assert is_accepted(site, plan, tmp_path / "run-2")


def test_a_ledger_that_nobody_touched_goes_on_from_run_to_run_and_from_user_to_user(
    site: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = 4 * claim(plan).epsilon_pld
    lines = [f"max_epsilon = {raised}" if "max_epsilon" in line else line for line in site.read_text().splitlines()]
    site.write_text("\n".join(lines))
    for user in ("first-user", "second-user", "first-user"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / user))
        before = reserved(site)
        assert is_accepted(site, plan, tmp_path / f"run-{before}")
        assert reserved(site) == before + 1


def test_a_copy_that_a_person_adopted_shuts_its_original_out(site: Path, plan: Plan, tmp_path: Path) -> None:
    """A fork on purpose: the coordinator that has seen one history takes no other of the same key."""
    copied = copy_the_old_folder(site)
    config = load_site(copied)
    Ledger.adopt(config.ledger_path, Adoption(reason="moved to another machine"), site="north").close()
    spend(copied, plan, tmp_path / "run-1")
    assert not is_accepted(site, plan, tmp_path / "run-2")


# Every check has power.


@pytest.mark.parametrize(
    "change",
    [restore_the_folder, restore_folder_and_witness, overwrite_everything_in_place, delete_database_and_head],
    ids=lambda change: change.__name__,
)
def test_a_hospital_that_compares_nothing_accepts_them(
    change: Callable[[Path], Path], site: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(site, plan, tmp_path / "run-1")
    change(site)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "second-user"))
    with mock.patch.object(ledger_module, "faults", return_value=()):
        assert is_accepted(site, plan, tmp_path / "run-2")


def test_a_coordinator_that_forgets_accepts_what_only_it_could_notice(
    site: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KnownHeads, "note", lambda self, heads: None)
    spend(site, plan, tmp_path / "run-1")
    overwrite_in_place_with_its_old_times(site)
    assert is_accepted(site, plan, tmp_path / "run-2")


# The coordinator's memory.


def test_every_answer_that_carries_a_head_updates_the_memory(site: Path, plan: Plan, tmp_path: Path) -> None:
    conversation = spend(site, plan, tmp_path / "run-1")
    (hospital,) = conversation.hospitals.values()
    commits = [entry for entry in verify_ledger(load_site(site).ledger_path) if entry.kind == "commit"]
    assert KnownHeads().head(hospital.public_key) == hospital.ledger_head == commits[-1].hash
    file = tmp_path / "first-user" / "ghostnet" / FILE
    assert file.stat().st_mode & 0o077 == 0
    assert file.parent.stat().st_mode & 0o077 == 0


def test_a_join_that_cannot_carry_all_heads_leaves_it_to_the_next_request(
    site: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(site, plan, tmp_path / "run-1")
    overwrite_in_place_with_its_old_times(site)
    monkeypatch.setattr(messages, "MAX_KNOWN_HEADS", 0)
    with pytest.raises(FederationError, match="0 of at least 1 hospitals released"):
        spend(site, plan, tmp_path / "run-2")
    assert "begin" not in [entry.kind for entry in verify_ledger(load_site(site).ledger_path)]  # and nothing was read


def test_the_text_of_known_heads_is_bounded_and_read_back() -> None:
    heads = [(f"{i:064x}", digest(str(i))) for i in range(messages.MAX_KNOWN_HEADS)]
    known = {protocol.head_tag("ab" * 16, key): head for key, head in heads}
    text = str(encode(JoinRequest(known_heads=known)).values["known-heads"])
    assert len(text) <= messages.MAX_KNOWN_CHARACTERS

    def read(text: str) -> dict[str, str]:
        body = decode_request(protocol.JOIN, request(tiny_plan(), JoinRequest(), known_heads=text)).body
        assert isinstance(body, JoinRequest)
        return body.known_heads

    assert read(text) == known
    assert not any(key in text for key, _ in heads)
    one_more = f'{text[:-1]}, "{"e" * 32}": "{"e" * 64}"' + "}"
    spaces = " " * messages.MAX_KNOWN_CHARACTERS
    for bad in (text + " " + text, "x", '{"ab": "cd"}', text + "0", one_more, spaces + "{}"):
        with pytest.raises(FederationError, match="known-heads"):
            read(bad)
    assert read("{}") == {}


def test_nobody_speaks_for_the_ledger_of_another_key(tmp_path: Path) -> None:
    mine, other = (keys.load_or_create_key(tmp_path / name) for name in ("mine", "other"))
    run, head = "ab" * 16, "dd" * 32
    KnownHeads().note({keys.public_hex(other): "ee" * 32})

    class OneNode:
        def __init__(self, **joined: str) -> None:
            self.joined = joined

        def get_node_ids(self) -> list[int]:
            return [2]

        def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
            return [Message(to_records(Plain(values=self.joined, arrays={})), reply_to=m) for m in messages]

    def join(run_id: str, **joined: str) -> None:
        joined = {"name": "north", "ledger-head": head, **joined}
        server = keys.load_or_create_key(tmp_path / "server")
        Conversation(OneNode(**joined), tiny_plan(), run_id, server, {}, []).join(1)  # type: ignore[arg-type]

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    signed = keys.sign(mine, protocol.join_document(run_id=run, head=head))
    refused: tuple[dict[str, str], ...] = (
        {"public-key": keys.public_hex(other), "join-signature": signed},
        {"public-key": keys.public_hex(other)},
        {"public-key": keys.public_hex(mine), "join-signature": signed, "ledger-head": "aa" * 32},
    )
    for joined in refused:
        with pytest.raises(FederationError, match="did not sign with the key that it names"):
            join(run, **joined)
    with pytest.raises(FederationError, match="did not sign"):
        join("cd" * 16, **{"public-key": keys.public_hex(mine), "join-signature": signed})  # of another run
    for name in ("", "North", "north/round-1", "../north", "n" * 33, "nörd", "north\n"):
        with pytest.raises(FederationError, match="gives no name"):
            join(run, **{"public-key": keys.public_hex(mine), "join-signature": signed, "name": name})
    assert KnownHeads().head(keys.public_hex(other)) == "ee" * 32
    join(run, **{"public-key": keys.public_hex(mine), "join-signature": signed})
    assert KnownHeads().head(keys.public_hex(mine)) == head


def test_two_nodes_with_one_key_are_one_hospital(tmp_path: Path) -> None:
    mine, run, head = keys.load_or_create_key(tmp_path / "mine"), "ab" * 16, "dd" * 32
    joined = {
        "public-key": keys.public_hex(mine),
        "ledger-head": head,
        "join-signature": keys.sign(mine, protocol.join_document(run_id=run, head=head)),
    }

    class TwoNodes:
        def get_node_ids(self) -> list[int]:
            return [2, 3]

        def send_and_receive(self, messages: list[Message], *, timeout: float) -> list[Message]:
            names = ("north", "south")
            return [
                Message(to_records(Plain(values={**joined, "name": name}, arrays={})), reply_to=m)
                for name, m in zip(names, messages, strict=True)
            ]

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    server = keys.load_or_create_key(tmp_path / "server")
    conversation = Conversation(TwoNodes(), tiny_plan(), run, server, {}, [])  # type: ignore[arg-type]
    conversation.join(2)
    assert [hospital.name for hospital in conversation.hospitals.values()] == ["north"]


NOTER = """
import sys
from server.known_heads import KnownHeads
for i in range(40):
    KnownHeads().note({f"{sys.argv[1]}{j}": f"{i:064x}" for j in range(5)})
"""


def test_several_coordinators_share_one_memory(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "shared")}
    workers = [
        subprocess.Popen([sys.executable, "-c", NOTER, name], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for name in "abc"
    ]
    for worker in workers:
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said
    heads = KnownHeads(tmp_path / "shared" / "ghostnet")
    assert dict(heads.newest()) == {f"{name}{j}": f"{39:064x}" for name in "abc" for j in range(5)}


def test_a_memory_that_cannot_be_kept_ends_the_run_before_anything_is_asked(
    site: Path, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a-file"))
    with pytest.raises(FederationError, match="XDG_STATE_HOME"):
        spend(site, plan, tmp_path / "run-1")
    assert reserved(site) == 0


def test_the_memory_is_where_the_specification_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ghostnet.user_state import user_state

    assert user_state() == tmp_path / "first-user" / "ghostnet"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_STATE_HOME", ignored)
        assert user_state() == tmp_path / "home" / ".local" / "state" / "ghostnet"
