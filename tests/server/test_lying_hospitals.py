"""A hospital that lies: at most it is left out, and named. The others are not charged for a run that ends in nothing.

Real hospitals answer; what one of them says is changed on its way, and signed with a key of its own where it can be.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from ghostnet.cli.site_check import key as site_key
from ghostnet.errors import FederationError
from ghostnet.evidence import keys
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays
from ghostnet.exchange.flower import from_record, to_record
from ghostnet.exchange.messages import MAX_STATEMENT_CHARACTERS, WarmStartAnswer, WarmStartRequest
from ghostnet.exchange.secure_sum import Member, make_roster, mask_key_document, sign_member
from ghostnet.progress import silent
from server.app import coordinate
from server.checkpoint import Checkpoint
from server.conversation import Conversation, Known
from tests.asked import arrays_of, values_of
from tests.plans import tiny_plan
from tests.server.direct_grid import FIRST_NODE, DirectGrid
from tests.server.federations import failed, ledger_kinds, plan_of, three_hospitals

pytestmark = pytest.mark.usefixtures("one_thread")
Lie = Callable[[Message], Message]
LIAR = FIRST_NODE  # "harbour"
KEY = Ed25519PrivateKey.generate()
RUN = "ab" * 16


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "user"))


class LyingGrid(DirectGrid):
    """The first hospital's answers to one kind of request, or several, are what `lie` makes of them."""

    def __init__(self, sites: list[Path], kind: str | tuple[str, ...], lie: Lie) -> None:
        super().__init__(sites)
        self._kinds, self._lie = (kind,) if isinstance(kind, str) else kind, lie

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        return [
            self._lie(reply)
            if reply.metadata.message_type in self._kinds and reply.metadata.src_node_id == LIAR
            else reply
            for reply in replies
        ]


def run(sites: list[Path], out: Path, kind: str | tuple[str, ...], lie: Lie) -> None:
    plan = plan_of("generator")
    checkpoint = Checkpoint.open(out, plan, resume=False)
    coordinate(LyingGrid(sites, kind, lie), plan, checkpoint, expected=len(sites), progress=silent)  # type: ignore[arg-type]


def joins_with_own_key(name: str) -> Lie:
    """Signed by a key of the liar's own, as it may."""

    def lie(reply: Message) -> Message:
        config = values_of(reply)
        document = protocol.join_document(run_id=RUN, head=str(config["ledger-head"]))
        signature = keys.sign(KEY, document)
        config.update({"name": name, "public-key": keys.public_hex(KEY), "join-signature": signature})
        return reply

    return lie


def join(sites: list[Path], lie: Lie, *, known: dict | None = None) -> Conversation:
    grid = LyingGrid(sites, protocol.JOIN, lie)
    server = Ed25519PrivateKey.generate()
    conversation = Conversation(grid, plan_of("generator"), RUN, server, known or {}, [])  # type: ignore[arg-type]
    conversation.join(len(sites))
    return conversation


@pytest.mark.parametrize(
    "name", ["", "server", "Harbour", "north/../..", "a" * 33, "n" * 1_000_000, "north\n", "<b>x</b>", "nörth"]
)
def test_a_name_that_no_certificate_could_hold_is_left_out_when_it_joins(name: str, tmp_path: Path) -> None:
    conversation = join(three_hospitals(tmp_path / "sites"), joins_with_own_key(name))
    assert sorted(hospital.name for hospital in conversation.hospitals.values()) == ["north", "south"]


def test_two_hospitals_of_one_name_are_left_out_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell which of the two lies; a stranger that takes a name must not end everybody's run."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    conversation = join(three_hospitals(tmp_path / "sites"), joins_with_own_key("north"))
    assert [hospital.name for hospital in conversation.hospitals.values()] == ["south"]
    assert "2 hospitals call themselves 'north'" in caplog.text
    assert keys.public_hex(KEY) in caplog.text


@pytest.mark.parametrize("field", ["name", "public-key", "join-signature"])
def test_a_hospital_that_leaves_a_field_out_is_left_out(field: str, tmp_path: Path) -> None:
    def lie(reply: Message) -> Message:
        del values_of(reply)[field]
        return reply

    conversation = join(three_hospitals(tmp_path / "sites"), lie)
    assert sorted(hospital.name for hospital in conversation.hospitals.values()) == ["north", "south"]


def test_one_key_under_two_names_is_one_hospital(tmp_path: Path) -> None:
    """A certificate with it would not verify, and nobody would know before everything is spent."""
    sites = three_hospitals(tmp_path / "sites")
    for site in sites:
        site_key(site)
    shutil.copy2(sites[0].parent / "site.key", sites[1].parent)
    conversation = Conversation(
        DirectGrid(sites),
        plan_of("generator"),
        RUN,
        Ed25519PrivateKey.generate(),
        {},
        [],  # type: ignore[arg-type]
    )
    reasons: list[str] = []
    conversation.require = lambda count, did, said=(): reasons.extend(said)  # type: ignore[method-assign]
    conversation.join(len(sites))
    joined = [hospital.public_key for hospital in conversation.hospitals.values()]
    assert len(joined) == len(set(joined)) < len(sites)
    assert reasons


def test_whoever_takes_the_name_of_a_hospital_that_is_known_is_left_out_and_that_one_is_not(tmp_path: Path) -> None:
    sites = three_hospitals(tmp_path / "sites")
    first = join(sites, lambda reply: reply)
    known = {h.name: Known(public_key=h.public_key, ledger_head=h.ledger_head) for h in first.hospitals.values()}
    again = join(sites, joins_with_own_key("north"), known=known)
    assert sorted(hospital.name for hospital in again.hospitals.values()) == ["north", "south"]
    assert {h.public_key for h in again.hospitals.values()} == {known["north"].public_key, known["south"].public_key}


BYTES = (
    b"",
    b"\x93NUMPY",
    b"PK\x03\x04 a zip that is none",
    b"PK\x05\x06" + bytes(18),  # an empty zip, which numpy opens
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(127) + b"\n",
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n" + bytes(8),
    b"\x93NUMPY\x01\x00v\x00" + b"(" * 117 + b"\n",
)


@pytest.mark.parametrize("data", BYTES, ids=range(len(BYTES)))
def test_bytes_that_are_no_array_leave_their_sender_out_of_the_round(data: bytes, tmp_path: Path) -> None:
    def lie(reply: Message) -> Message:
        arrays = reply.content.array_records["arrays"]
        broken = {name: Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data) for name in arrays}
        reply.content["arrays"] = ArrayRecord(broken)
        return reply

    record = ArrayRecord({"w": Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data)})
    with pytest.raises(FederationError, match="no array"):
        from_record(record)
    if data == BYTES[0]:
        sites = three_hospitals(tmp_path / "sites")
        run(sites, tmp_path / "run", "train", lie)  # the warm start's answers count; the rounds go on without it
        assert failed(tmp_path / "run") == []
        assert ledger_kinds(sites[1]).count("commit") == 4


def with_value(name: str, value: object) -> Lie:
    return lambda reply: (values_of(reply).update({name: value}), reply)[1]


def with_arrays(group: str, change: Callable[[Arrays], Arrays]) -> Lie:
    def lie(reply: Message) -> Message:
        reply.content[group] = to_record(change(arrays_of(reply)))
        return reply

    return lie


def cast(dtype: str) -> Lie:
    return with_arrays("arrays", lambda arrays: {name: array.astype(dtype) for name, array in arrays.items()})


NOT_AS_AGREED = {
    "a value too many": (with_value("patients", 29), "holds 'patients', which is not one of its fields"),
    "arrays too many": (with_arrays("gradients", dict), "holds 'gradients', which is not one of its fields"),
    "a text over its limit": (with_value("ledger-head", "ab" * 33), "gives no ledger-head as agreed"),
    "another type": (cast("float64"), "noised_sum holds float64, not an array of float32"),
    "whole numbers": (cast("int64"), "noised_sum holds int64, not an array of float32"),
    "an array too many": (
        with_arrays("arrays", lambda own: {**own, "more": own["noised_sum"]}),
        "has 2 arrays where 1",
    ),
    "another shape": (with_arrays("arrays", lambda own: {"noised_sum": own["noised_sum"][:-1]}), "have shape"),
    "too large": (
        with_arrays("arrays", lambda own: {"noised_sum": np.full_like(own["noised_sum"], -3e38)}),
        "noised_sum holds 3e+38, and no honest answer more than 1e+09",
    ),
    "not finite": (with_arrays("arrays", lambda own: {"noised_sum": own["noised_sum"] * np.inf}), "NaN or infinity"),
}


@pytest.mark.parametrize("name", NOT_AS_AGREED)
def test_an_answer_that_is_not_as_agreed_leaves_its_sender_out_and_says_why(name: str, tmp_path: Path) -> None:
    lie, says = NOT_AS_AGREED[name]
    sites, plan = three_hospitals(tmp_path / "sites"), plan_of("generator")
    grid = LyingGrid(sites, protocol.WARM_START, lie)
    conversation = Conversation(grid, plan, RUN, KEY, {}, [])  # type: ignore[arg-type]
    conversation.join(len(sites))
    reasons: list[str] = []
    replies = conversation.ask(WarmStartRequest(), WarmStartAnswer, conversation.hospitals, refused=reasons)
    expected = {protocol.NOISED_SUM: np.zeros(plan.embedding.size, dtype=np.float32)}
    assert sorted(conversation.fitting(replies, expected, reasons)) == ["north", "south"]
    assert len(reasons) == 1
    assert reasons[0].startswith("harbour: ")
    assert says in reasons[0]


@pytest.mark.parametrize("kind", [protocol.WARM_START, protocol.TRAIN, protocol.FINISH])
def test_numbers_that_overflow_what_all_answers_make_do_not_end_the_run(kind: str, tmp_path: Path) -> None:
    lie = with_arrays("arrays", lambda own: {name: np.full_like(array, 3e38) for name, array in own.items()})
    run(three_hospitals(tmp_path / "sites"), tmp_path / "run", kind, lie)
    assert failed(tmp_path / "run") == []
    assert (tmp_path / "run" / "report.json").exists()


def without_arrays_or_statement(reply: Message) -> Message:
    """Whole in form; of no use to anybody."""
    with_arrays("arrays", lambda own: {name: array[:1] for name, array in own.items()})(reply)
    return with_value("statement", "{}")(reply) if "statement" in values_of(reply) else reply


def test_a_hospital_of_which_nothing_was_used_need_not_sign(tmp_path: Path) -> None:
    kinds = (protocol.WARM_START, protocol.TRAIN, protocol.FINISH)
    run(three_hospitals(tmp_path / "sites"), tmp_path / "run", kinds, without_arrays_or_statement)
    statements = json.loads((tmp_path / "run" / "sampler" / "certificate.json").read_text())["statements"]
    assert [statement["site"] for statement in statements] == ["north", "south"]
    counts = json.loads((tmp_path / "run" / "report.json").read_text())["utility"]["classification"]["released"]
    assert counts.startswith("noised counts of 2 hospitals")


def test_a_masked_sum_of_another_type_is_no_part_of_a_step(tmp_path: Path) -> None:
    sites, plan = three_hospitals(tmp_path / "sites"), plan_of("pooled")
    checkpoint = Checkpoint.open(tmp_path / "run", plan, resume=False)
    grid = LyingGrid(sites, protocol.STEP, cast("float32"))
    with pytest.raises(FederationError, match=r"step 1: harbour did not answer \(harbour: .*masked_sum holds float32"):
        coordinate(grid, plan, checkpoint, expected=len(sites), progress=silent)  # type: ignore[arg-type]


def test_a_statement_over_its_limit_names_its_hospital(tmp_path: Path) -> None:
    sites = three_hospitals(tmp_path / "sites")
    lie = with_value("statement", '{"a": "' + "x" * MAX_STATEMENT_CHARACTERS + '"}')
    with pytest.raises(FederationError, match="^harbour took part and did not sign"):
        run(sites, tmp_path / "run", protocol.FINISH, lie)


def statement_with(**changed: object) -> Lie:
    """Signed again with the hospital's real key, as only it can."""

    def lie(reply: Message) -> Message:
        config = values_of(reply)
        statement = json.loads(str(config["statement"]))
        for name, value in changed.items():
            statement.pop(name) if value is None else statement.update({name: value})
        signed = {name: value for name, value in statement.items() if name != "signature"}
        config["statement"] = json.dumps(
            {**signed, "signature": keys.sign(keys.load_or_create_key(SITE["key"]), signed)}
        )
        return reply

    return lie


SITE: dict[str, Path] = {}
DEEP = "[" * 200_000 + "]" * 200_000


def as_text(text: str) -> Lie:
    return with_value("statement", text)


@pytest.mark.parametrize(
    "lie",
    [
        statement_with(run_id="cd" * 16),
        statement_with(run_id=None),
        statement_with(plan_hash="0" * 64),
        statement_with(files={"README.md": "0" * 64}),
        statement_with(files=None),
        statement_with(reserved=None),
        statement_with(reserved=[]),
        statement_with(reserved={"epsilon_pld": 1e300}),
        statement_with(epsilon_pld=0.01),
        statement_with(more="text"),
        as_text(DEEP),
        as_text("[]"),
        as_text('{"site": NaN}'),
    ],
    ids=[
        "run",
        "no run",
        "plan",
        "files",
        "no files",
        "no reserve",
        "list for a reserve",
        "less in a reserve",
        "low",
        "more",
        "deep",
        "list",
        "nan",
    ],
)
def test_a_statement_about_something_else_names_its_hospital_and_no_other(lie: Lie, tmp_path: Path) -> None:
    sites = three_hospitals(tmp_path / "sites")
    SITE["key"] = sites[0].parent / "site.key"
    with pytest.raises(FederationError, match="^harbour took part and did not sign"):
        run(sites, tmp_path / "run", protocol.FINISH, lie)
    assert not (tmp_path / "run" / "sampler").exists()


def test_an_endless_reason_is_cut_before_it_is_kept(tmp_path: Path) -> None:
    def lie(reply: Message) -> Message:
        request = Message(RecordDict(), dst_node_id=LIAR, message_type=protocol.JOIN)
        return Message(Error(code=protocol.REFUSED, reason="\nspoofed line " * 10_000), reply_to=request)

    sites = three_hospitals(tmp_path / "sites")[:1]
    with pytest.raises(FederationError) as refused:
        join(sites, lie)
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


def test_a_mask_key_that_no_other_hospital_could_use_is_refused_before_the_roster_is_pinned() -> None:
    signing = [Ed25519PrivateKey.generate() for _ in range(2)]
    plan = tiny_plan()
    about = {"run_id": RUN, "plan_hash": plan.hash()}
    good = sign_member(site="north", signing_key=signing[0], mask_key=X25519PrivateKey.generate(), **about)
    for mask_key in ("00" * 32, "01" + "00" * 31, "zz" * 32, "ab"):
        document = mask_key_document(site="south", mask_key=mask_key, **about)
        bad = Member(
            site="south",
            public_key=keys.public_hex(signing[1]),
            mask_key=mask_key,
            signature=keys.sign(signing[1], document),
        )
        with pytest.raises(FederationError, match="mask key of south is not an X25519 public key"):
            make_roster(hospitals=2, members=[good, bad], **about)
