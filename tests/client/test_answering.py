"""Requests to answers without Flower: one after the other, in time, and as agreed; every error is a fixed sentence."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from client import answering
from client.config import load_site
from ghostnet.accounting.plan_cost import resolve
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.exchange import messages, protocol
from ghostnet.exchange.messages import JoinRequest, Plain, Refusal, RoundRequest, StepRequest, WarmStartRequest
from ghostnet.plan import Plan
from tests.asked import request
from tests.client.asking import ask, lingering, most_inside, unlocked
from tests.plans import tiny_plan, write_striped_npz
from tests.server.direct_grid import write_hospitals

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
LATE = f"{protocol.LATE} the request's time is over by the hospital's clock"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(tiny_plan())


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    (found,) = write_hospitals(
        tmp_path, ["north"], lambda path, i: write_striped_npz(path, patients=30), epsilon=10.0, coalition=0.0
    )
    return found


def kinds(site_file: Path) -> list[str]:
    """Of the ledger's entries; none where no request came so far."""
    ledger = site_file.parent / "ledger.sqlite"
    return [entry.kind for entry in verify_ledger(ledger)] if ledger.exists() else []


def log_of(site_file: Path) -> str:
    return (site_file.parent / "site.log").read_text()


# One after the other.


def start(
    site_file: Path, events: Path, *, processes: int, patience_s: float, locked: str = "yes"
) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.client.asking", *map(str, (site_file, events, processes, patience_s))]
    return [subprocess.Popen([*command, locked], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(processes)]


def test_requests_of_two_processes_at_once_are_answered_one_after_the_other(site_file: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    processes = start(site_file, events, processes=2, patience_s=1)
    said = [process.communicate(timeout=240)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(events.read_text().split()) == 2 * 2 * 2
    assert most_inside(events) == 1
    assert len(said[0]) == 2
    assert said[0] == said[1]  # neither was refused, and both have the same bytes
    assert [kinds(site_file).count(kind) for kind in ("reserve", "begin", "commit")] == [1, 1, 1]
    assert (site_file.parent / answering.LOCK_NAME).stat().st_mode & 0o077 == 0


def test_planted_without_the_lock_two_processes_are_inside_at_once(site_file: Path, tmp_path: Path) -> None:
    events = tmp_path / "events"
    for process in start(site_file, events, processes=2, patience_s=120, locked="no"):
        process.communicate(timeout=240)
    assert most_inside(events) == 2


def in_threads(asked: Callable[[], str], count: int) -> list[str]:
    said: list[str] = []
    threads = [threading.Thread(target=lambda: said.append(asked())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    return said


def test_requests_of_three_threads_at_once_are_answered_one_after_the_other(
    site_file: Path, plan: Plan, tmp_path: Path
) -> None:
    assert not ask(site_file, plan, JoinRequest()).startswith("1")
    events = tmp_path / "events"
    with lingering(events, 0.5):
        said = in_threads(lambda: ask(site_file, plan, WarmStartRequest()), 3)
    assert most_inside(events) == 1
    assert len(said) == 3
    assert len(set(said)) == 1
    assert not said[0].startswith(str(protocol.REFUSED))
    assert kinds(site_file).count("begin") == 1


def test_planted_without_the_lock_two_threads_are_inside_at_once(site_file: Path, plan: Plan, tmp_path: Path) -> None:
    with lingering(tmp_path / "events", 60), unlocked():
        in_threads(lambda: ask(site_file, plan, JoinRequest()), 2)
    assert most_inside(tmp_path / "events") == 2


def test_a_process_that_is_killed_while_it_answers_lets_the_next_one_in(
    site_file: Path, plan: Plan, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    (process,) = start(site_file, events, processes=1, patience_s=600)
    while most_inside(events) == 0:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert len(ask(site_file, plan, JoinRequest())) == 128


# In time.


@pytest.mark.parametrize("wait_s", [-1.0, -86_400.0])
def test_a_request_that_nobody_waits_for_is_refused_and_costs_nothing(
    site_file: Path, plan: Plan, wait_s: float
) -> None:
    assert ask(site_file, plan, JoinRequest(), wait_s=wait_s).startswith(LATE)
    assert kinds(site_file) == []
    assert "this machine's clock is ahead" in log_of(site_file)
    assert not ask(site_file, plan, JoinRequest()).startswith(LATE)
    assert kinds(site_file).count("reserve") == 1
    assert ask(site_file, plan, WarmStartRequest(), wait_s=wait_s).startswith(LATE)
    assert "begin" not in kinds(site_file)


def test_a_deadline_beyond_the_plans_round_shows_that_clocks_differ(site_file: Path, plan: Plan) -> None:
    longest = plan.federation.round_timeout_s + answering.MAX_CLOCK_DIFFERENCE_S
    assert ask(site_file, plan, JoinRequest(), wait_s=longest + 60).startswith(LATE)
    assert kinds(site_file) == []
    assert "this machine's clock is behind" in log_of(site_file)
    assert not ask(site_file, plan, JoinRequest(), wait_s=longest - 60).startswith(LATE)


def ask_in_a_queue(site_file: Path, plan: Plan) -> str:
    """Asks while another request is answered, for longer than the coordinator waits."""
    said: list[str] = []
    deadline = time.time() + 2
    with answering.one_request_at_a_time(site_file.parent, lambda: None):
        thread = threading.Thread(target=lambda: said.append(ask(site_file, plan, JoinRequest(), wait_s=0.5)))
        thread.start()
        while time.time() < deadline:
            time.sleep(0.05)
    thread.join(timeout=60)
    return said[0]


def test_a_request_whose_time_ends_while_it_waits_for_its_turn_is_refused(site_file: Path, plan: Plan) -> None:
    assert ask_in_a_queue(site_file, plan).startswith(LATE)
    assert kinds(site_file) == []


def test_a_request_gives_up_when_its_time_ends_though_the_lock_is_never_let_go(site_file: Path, plan: Plan) -> None:
    said: list[str] = []
    with answering.one_request_at_a_time(site_file.parent, lambda: None):
        thread = threading.Thread(
            target=lambda: said.append(ask(site_file, plan, JoinRequest(), wait_s=0.5)), daemon=True
        )
        thread.start()
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert said[0].startswith(LATE)
    assert kinds(site_file) == []


def test_planted_without_the_check_of_time_a_late_request_is_charged(site_file: Path, plan: Plan) -> None:
    with mock.patch.object(answering, "check_time"):
        assert not ask_in_a_queue(site_file, plan).startswith(LATE)
    assert kinds(site_file).count("reserve") == 1


# As agreed.


def changed(plain: Plain, *, values: dict | None = None, arrays: dict | None = None) -> Plain:
    return Plain(values={**plain.values, **(values or {})}, arrays={**plain.arrays, **(arrays or {})})


WEIGHTS = {"w": np.zeros(3, np.float32)}
ROUND, STEP = RoundRequest(server_round=1, weights=WEIGHTS), StepRequest(step=1, roster="", discriminator=WEIGHTS)
NOT_AS_AGREED = [
    (ROUND, {"values": {"epochs": 3}}, "holds 'epochs', which is not one of its fields"),
    (ROUND, {"arrays": {"gradients": WEIGHTS}}, "holds 'gradients', which is not one of its fields"),
    (ROUND, {"arrays": {"weights": {"w": np.zeros(3)}}}, "w holds float64, not an array of float32"),
    (STEP, {"values": {"roster": "x" * (messages.MAX_ROSTER_CHARACTERS + 1)}}, "at most 100000 characters"),
    (WarmStartRequest(), {"values": {"plan": "x" * 100_001}}, "not a text of at most 100000 characters"),
    (JoinRequest(), {"values": {"server-key": ""}}, "gives no server-key as agreed"),
]


@pytest.mark.parametrize(("body", "change", "says"), NOT_AS_AGREED, ids=range(len(NOT_AS_AGREED)))
def test_a_request_that_is_not_as_agreed_is_refused_and_only_the_log_says_why(
    site_file: Path, plan: Plan, body: messages.Body, change: dict, says: str
) -> None:
    made = answering.answer(
        body.kind, config=lambda: load_site(site_file), receive=lambda: changed(request(plan, body), **change)
    )
    assert isinstance(made, Refusal)
    assert made.code == protocol.FAILED
    identifier = made.reason.rpartition(" ")[2]
    assert made.reason == f"the hospital could not answer; its log has the reason under {identifier}"
    assert identifier in log_of(site_file)
    assert says in log_of(site_file)
    assert kinds(site_file) == []


def test_an_error_of_the_transport_or_of_site_toml_is_a_fixed_sentence_too(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "site.toml").write_text("name = 'JANE DOE'")

    def broken() -> Plain:
        raise OSError("JANE DOE 1961-02-03")

    for receive in (broken, lambda: request(plan, JoinRequest())):
        made = answering.answer(protocol.JOIN, config=lambda: load_site(tmp_path / "site.toml"), receive=receive)
        assert isinstance(made, Refusal)
        assert made.reason.startswith("the hospital could not answer; its log has the reason under ")
        assert "JANE" not in made.reason
