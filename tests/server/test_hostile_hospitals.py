"""What one hospital says costs the others nothing but its own part: it is left out and named, and they go on.

Two hospitals are real ones on the real app; the third is a real one, too, whose answers are changed on their way.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message

from client.config import load_site
from ghostnet import protocol
from ghostnet.errors import FederationError
from ghostnet.plan import Plan
from ghostnet.privacy import keys
from ghostnet.privacy.ledger import verify_ledger
from ghostnet.progress import silent
from ghostnet.secure_sum import Member, make_roster, mask_key_document
from server.app import coordinate
from server.checkpoint import Checkpoint
from server.conversation import Conversation, Known, read_arrays
from server.known_heads import KnownHeads
from tests.server.direct_grid import FIRST_NODE, DirectGrid
from tests.server.federations import NAMES, plan_of, three_hospitals

pytestmark = pytest.mark.usefixtures("one_thread", "own_memory")

Lie = Callable[[str, Message], None]  # kind of the request, and the answer to change


@pytest.fixture
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_of("generator")


class LyingGrid(DirectGrid):
    """One of the nodes lies; `first` says whether its answer arrives before the others'."""

    def __init__(self, sites: list[Path], lie: Lie, *, liar: int, first: bool) -> None:
        super().__init__(sites)
        self._lie, self._liar, self._first = lie, FIRST_NODE + liar, first

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        messages = sorted(messages, key=lambda m: (m.metadata.dst_node_id == self._liar) != self._first)
        return super().send_and_receive(messages, timeout=timeout)

    def _answer(self, message: Message) -> Message | None:
        reply = super()._answer(message)
        if reply is not None and message.metadata.dst_node_id == self._liar and not reply.has_error():
            self._lie(message.metadata.message_type, reply)
        return reply


def said(reply: Message) -> ConfigRecord:
    return reply.content.config_records[protocol.CONFIG]


def calls_itself(name: str) -> Lie:
    def lie(kind: str, reply: Message) -> None:
        if kind == protocol.JOIN:
            said(reply)["name"] = name

    return lie


def leaves_out(key: str) -> Lie:
    def lie(kind: str, reply: Message) -> None:
        if kind == protocol.JOIN:
            del said(reply)[key]

    return lie


def signs_another_run(kind: str, reply: Message) -> None:
    """As the true one, that is there too, but without its key."""
    if kind == protocol.JOIN:
        said(reply)["name"] = NAMES[1]
        said(reply)["join-signature"] = "ab" * 64


def oversized() -> bytes:
    """An array's header that claims more memory than there is."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file,
        {"descr": "<f8", "fortran_order": False, "shape": (2**45,)},  # type: ignore[arg-type]
    )
    return file.getvalue()


def sends_bytes(data: bytes, *, stype: str = "numpy.ndarray", of: str = protocol.WARM_START) -> Lie:
    def lie(kind: str, reply: Message) -> None:
        if kind == of:
            record = reply.content.array_records[protocol.ARRAYS]
            bad = Array(dtype="float32", shape=(1,), stype=stype, data=data)
            reply.content[protocol.ARRAYS] = ArrayRecord({name: bad for name in record})

    return lie


AT_JOIN: dict[str, Lie] = {
    "the coordinator": calls_itself(keys.COORDINATOR),
    "upper case": calls_itself("South"),
    "a path": calls_itself("../north"),
    "two parts of a transcript": calls_itself("north/round-1"),
    "two lines": calls_itself("south\nnorth joined"),
    "a terminal's command": calls_itself("\x1b[2J"),
    "long": calls_itself("s" * 33),
    "empty": calls_itself(""),
    "no name": leaves_out("name"),
    "no key": leaves_out("public-key"),
    "no signature": leaves_out("join-signature"),
    "another's name without its key": signs_another_run,
}
IN_ANSWERS: dict[str, Lie] = {
    "no bytes": sends_bytes(b""),
    "no array": sends_bytes(b"hello"),
    "a pickle": sends_bytes(b"\x80\x04N."),
    "a broken archive": sends_bytes(b"PK\x03\x04"),
    "an endless array": sends_bytes(oversized()),
    "another form": sends_bytes(b"", stype="pickle"),
}


@pytest.mark.parametrize("first", [True, False], ids=["before the others", "after the others"])
@pytest.mark.parametrize("lie", AT_JOIN.values(), ids=AT_JOIN)
def test_a_lie_at_the_join_leaves_one_hospital_out_and_stores_nothing_of_it(
    lie: Lie, first: bool, plan: Plan, tmp_path: Path
) -> None:
    sites = three_hospitals(tmp_path / "sites")
    server = keys.load_or_create_key(tmp_path / "server.key")
    grid = LyingGrid(sites, lie, liar=2, first=first)
    conversation = Conversation(grid, plan, "ab" * 16, server, {}, [])  # type: ignore[arg-type]
    conversation.join(3)
    assert sorted(hospital.name for hospital in conversation.hospitals.values()) == sorted(NAMES[:2])
    public = [keys.public_hex(keys.load_or_create_key(load_site(site).key_path)) for site in sites]
    assert {key for key, _ in KnownHeads().newest()} == {*public[:2]}


@pytest.mark.parametrize("first", [True, False], ids=["before the others", "after the others"])
def test_who_takes_a_known_name_with_another_key_is_left_out_in_any_order(
    first: bool, plan: Plan, tmp_path: Path
) -> None:
    """A real hospital with a key of its own, in a run that is taken up."""
    sites = three_hospitals(tmp_path / "sites")
    sites[2].write_text(sites[2].read_text().replace(f'name = "{NAMES[2]}"', f'name = "{NAMES[1]}"'))
    server = keys.load_or_create_key(tmp_path / "server.key")
    grid = LyingGrid(sites, lambda kind, reply: None, liar=2, first=first)
    fresh = Conversation(grid, plan, "ab" * 16, server, {}, [])  # type: ignore[arg-type]
    with pytest.raises(FederationError, match="two hospitals call themselves"):
        fresh.join(3)  # the first time nobody knows which of them is meant
    public = keys.public_hex(keys.load_or_create_key(load_site(sites[1]).key_path))
    known = {NAMES[1]: Known(public_key=public, ledger_head=verify_ledger(load_site(sites[1]).ledger_path)[-1].hash)}
    conversation = Conversation(grid, plan, "cd" * 16, server, known, [])  # type: ignore[arg-type]
    conversation.join(3)
    assert sorted(hospital.node_id for hospital in conversation.hospitals.values()) == [FIRST_NODE, FIRST_NODE + 1]


@pytest.mark.parametrize("lie", IN_ANSWERS.values(), ids=IN_ANSWERS)
def test_an_answer_that_is_no_array_is_left_out(lie: Lie, plan: Plan, tmp_path: Path) -> None:
    sites = three_hospitals(tmp_path / "sites")
    server = keys.load_or_create_key(tmp_path / "server.key")
    grid = LyingGrid(sites, lie, liar=0, first=True)
    conversation = Conversation(grid, plan, "ab" * 16, server, {}, [])  # type: ignore[arg-type]
    conversation.join(3)
    replies = conversation.ask(protocol.WARM_START, conversation.hospitals)
    expected = read_arrays(replies[-1])
    reasons: list[str] = []
    assert sorted(conversation.fitting(replies, expected, reasons)) == sorted(NAMES[1:])
    assert len(reasons) == 1
    assert reasons[0].startswith(f"{NAMES[0]}: its arrays cannot be read")


def test_a_statement_that_cannot_be_parsed_ends_in_words(plan: Plan, tmp_path: Path) -> None:
    def lie(kind: str, reply: Message) -> None:
        if kind == protocol.FINISH:
            said(reply)["statement"] = '{"a":' * 100_000

    grid = LyingGrid(three_hospitals(tmp_path / "sites"), lie, liar=2, first=False)
    checkpoint = Checkpoint.open(tmp_path / "run", plan, resume=False)
    with pytest.raises(FederationError, match=f"{NAMES[2]} took part and did not sign"):
        coordinate(grid, plan, checkpoint, expected=3, progress=silent)  # type: ignore[arg-type]


@pytest.mark.parametrize("mask_key", ["00" * 32, "ab", "zz" * 32, ""], ids=["small order", "short", "no hex", "empty"])
def test_a_signed_mask_key_that_is_none_never_gets_into_a_roster(mask_key: str) -> None:
    """Every hospital would refuse the stored roster, in every attempt."""
    run, plan_hash, members = "ab" * 16, "cd" * 32, []
    for site, public in (("north", "09" + "00" * 31), ("south", mask_key)):
        key = Ed25519PrivateKey.generate()
        document = mask_key_document(run_id=run, plan_hash=plan_hash, site=site, mask_key=public)
        members.append(
            Member(site=site, public_key=keys.public_hex(key), mask_key=public, signature=keys.sign(key, document))
        )
    with pytest.raises(FederationError, match="the mask key of south is not an X25519 public key"):
        make_roster(run_id=run, plan_hash=plan_hash, hospitals=2, members=members)


def test_what_a_hospital_says_went_wrong_commands_no_terminal_and_is_short(plan: Plan, tmp_path: Path) -> None:
    class Refusing(DirectGrid):
        def _answer(self, message: Message) -> Message | None:
            super()._answer(message)
            reason = "\x1b[2J" + 10_000 * "no "
            return Message(Error(code=protocol.REFUSED, reason=reason), reply_to=message)

    server = keys.load_or_create_key(tmp_path / "server.key")
    grid = Refusing(three_hospitals(tmp_path / "sites"))
    conversation = Conversation(grid, plan, "ab" * 16, server, {}, [])  # type: ignore[arg-type]
    with pytest.raises(FederationError, match=r"hospitals joined: \\x1b\[2Jno no") as caught:
        conversation.join(3)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_printable_escapes_what_is_not_and_nothing_else() -> None:
    assert protocol.printable("a\x1b[2Jb\nc\u202ed\ud800") == "a\\x1b[2Jb\\nc\\u202ed\\ud800"
    assert protocol.printable("Ärzte: epsilon 1.0") == "Ärzte: epsilon 1.0"
