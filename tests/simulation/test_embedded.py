"""The embedded engine plays hospitals in processes of their own, and survives one that dies."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from flwr.app import Message

from ghostnet.accounting.plan_cost import resolve
from ghostnet.exchange.flower import to_records
from ghostnet.exchange.messages import JoinRequest
from ghostnet.simulation.embedded import EmbeddedGrid
from tests.asked import request
from tests.plans import tiny_plan

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def grid(tmp_path: Path):  # noqa: ANN201
    made = EmbeddedGrid([tmp_path / "a.toml", tmp_path / "b.toml", tmp_path / "c.toml"], workers=2)
    yield made
    made.close()


def _requests(grid: EmbeddedGrid) -> list[Message]:
    content = to_records(request(resolve(tiny_plan()), JoinRequest()))
    return [Message(content, dst_node_id=node, message_type=JoinRequest.kind) for node in grid.get_node_ids()]


def _unread(connection: Connection | None) -> int:
    """Bytes written to a pipe whose other end has not read them."""
    assert connection is not None
    return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def test_every_hospital_answers_and_its_files_are_opened_in_another_process(grid: EmbeddedGrid) -> None:
    requests = _requests(grid)
    replies = grid.send_and_receive(requests, timeout=60)
    assert sorted(r.metadata.src_node_id for r in replies) == grid.get_node_ids()
    assert {r.metadata.reply_to_message_id for r in replies} == {m.metadata.message_id for m in requests}
    assert all(r.has_error() for r in replies)  # their site files do not exist
    pids = {worker.process.pid for worker in grid._workers if worker.process}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_worker_that_is_killed_answers_with_an_error_and_works_again(grid: EmbeddedGrid) -> None:
    grid.send_and_receive(_requests(grid), timeout=60)
    victim = grid._workers[0].process
    assert victim is not None
    os.kill(victim.pid, signal.SIGSTOP)
    ids = grid.push_messages(_requests(grid)[:1])
    while not _unread(grid._workers[0].connection):  # the message lies before the process when it dies
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    replies: list[Message] = []
    while not replies:
        replies = grid.pull_messages(ids)
    assert replies[0].has_error()
    assert "ended" in replies[0].error.reason
    again = grid.send_and_receive(_requests(grid)[:1], timeout=60)
    assert len(again) == 1
    assert "its log" in again[0].error.reason or "could not answer" in again[0].error.reason


def test_hospitals_that_do_not_answer_in_time_are_left_out(grid: EmbeddedGrid) -> None:
    grid.send_and_receive(_requests(grid), timeout=60)
    for worker in grid._workers:
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGSTOP)
    assert grid.send_and_receive(_requests(grid), timeout=0.5) == []
    for worker in grid._workers:
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGCONT)
