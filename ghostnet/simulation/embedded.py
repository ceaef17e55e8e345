"""The embedded engine: Flower's Grid on one machine, without Ray.

The same two apps run as in a deployment. Each hospital lives in a worker process; messages cross to it in Flower's own
wire format, so nothing is shared but what would be sent. A worker that dies is an error reply and is started afresh.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from ghostnet.exchange import protocol
from ghostnet.progress import Progress, silent
from ghostnet.simulation.engine import quiet_flower

FIRST_NODE = 2  # Flower's SuperLink is node 1
RUN = 1

_REPLY, _PROGRESS = b"r", b"p"


@dataclass
class _Worker:
    """A process that plays some of the hospitals, one message at a time."""

    sites: dict[int, Path]
    threads: int
    progress: Progress
    process: multiprocessing.process.BaseProcess | None = None
    connection: Connection | None = None
    inbox: queue.Queue[tuple[str, Message] | None] = field(default_factory=queue.Queue)

    def start(self) -> None:
        """Starts the process; spawn, because a fork of a process with threads and torch in it can hang."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.sites, self.threads), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self, message: Message) -> Message:
        """Sends one message to the process and waits for its reply."""
        if self.process is None or self.connection is None or not self.process.is_alive():
            self.start()
        connection = self.connection
        if connection is None:
            raise RuntimeError("the worker has no connection after its start")
        try:
            connection.send_bytes(message_to_proto(message).SerializeToString())
            while (data := connection.recv_bytes())[:1] == _PROGRESS:
                self.progress(*json.loads(data[1:]))
            return _parse(data[1:])
        except (EOFError, OSError):
            self.forget()
            return Message(Error(code=protocol.FAILED, reason="the hospital's process ended"), reply_to=message)

    def kill(self) -> None:
        """Ends the process, also one that is stopped or deep in a computation; it holds nothing that is not on disk."""
        if self.process is not None:
            self.process.kill()

    def forget(self) -> None:
        """Lets go of a process that has ended, so that the next message starts another."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None


class EmbeddedGrid(Grid):
    """A Flower Grid whose nodes are worker processes on this machine.

    Args:
        sites: one site.toml a node.
        workers: processes that share the hospitals between them.
        progress: told what the hospitals' own progress is.
    """

    def __init__(self, sites: Sequence[Path], *, workers: int, progress: Progress = silent) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
        self._node_ids = [FIRST_NODE + i for i in range(len(sites))]
        workers = max(1, min(workers, len(sites)))
        threads = max(1, torch.get_num_threads() // workers)
        shares: list[dict[int, Path]] = [{} for _ in range(workers)]
        for i, (node_id, site) in enumerate(zip(self._node_ids, sites, strict=True)):
            shares[i % workers][node_id] = site.absolute()
        self._workers = [_Worker(sites=share, threads=threads, progress=progress) for share in shares]
        self._owner = {node_id: worker for worker in self._workers for node_id in worker.sites}
        self._replies: dict[str, Message] = {}
        self._arrived = threading.Condition()
        self._sent = 0
        self._threads = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in self._workers]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops the worker processes; what they were asked and did not answer is dropped."""
        for worker, thread in zip(self._workers, self._threads, strict=True):
            worker.inbox.put(None)
            worker.kill()
            thread.join()
            worker.forget()

    def set_run(self, run: object) -> None:
        """Nothing to set: the grid serves one run."""

    @property
    def run(self) -> None:  # type: ignore[override]
        """No run record exists outside Flower's SuperLink."""
        return None

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Flower's deprecated constructor of messages.

        Raises:
            TypeError: always; build a `Message`.
        """
        raise TypeError("create_message is deprecated in Flower; build a flwr.app.Message instead")

    def get_node_ids(self) -> list[int]:
        """Every hospital is online from the start."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queues messages for their hospitals' workers."""
        ids = []
        for message in messages:
            self._sent += 1
            message_id = f"m{self._sent}"
            message.metadata.__dict__["_message_id"] = message_id
            message.metadata.__dict__["_run_id"] = RUN
            self._owner[message.metadata.dst_node_id].inbox.put((message_id, message))
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that have arrived."""
        with self._arrived:
            return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Sends messages and waits until all are answered or the time is up."""
        ids = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._arrived:
            while not ids <= self._replies.keys():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._arrived.wait(left)
        return self.pull_messages(ids)

    def _work(self, worker: _Worker) -> None:
        while (task := worker.inbox.get()) is not None:
            message_id, message = task
            reply = worker.answer(message)
            with self._arrived:
                self._replies[message_id] = reply
                self._arrived.notify_all()


def run_embedded(server_app: ServerApp, grid: EmbeddedGrid) -> None:
    """Runs a ServerApp on an embedded grid, in this process."""
    quiet_flower()
    context = Context(run_id=RUN, node_id=1, node_config={}, state=RecordDict(), run_config={})
    server_app(grid, context)


def _serve(connection: Connection, sites: dict[int, Path], threads: int) -> None:
    """A worker's main: plays its hospitals until the pipe closes."""
    from client.app import build_app
    from client.config import load_site

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its workers

    torch.set_num_threads(threads)

    @cache
    def name_of(site: Path) -> str:
        return load_site(site).name  # its first progress comes when it could be read

    def tell(phase: str, done: int, total: int) -> None:
        phase = f"{name_of(sites[TaskIdentity.node_id])}: {phase}"
        connection.send_bytes(_PROGRESS + json.dumps([phase, done, total]).encode())

    app = build_app(progress=tell, keep_ledger_open=True)  # a hospital lives in one worker for the whole run
    TaskIdentity.task_id, TaskIdentity.run_id = 1, RUN
    contexts = {
        node_id: Context(
            run_id=RUN, node_id=node_id, node_config={"site": str(site)}, state=RecordDict(), run_config={}
        )
        for node_id, site in sites.items()
    }
    while True:
        try:
            message = _parse(connection.recv_bytes())
        except EOFError:
            return
        node_id = message.metadata.dst_node_id
        TaskIdentity.node_id = node_id
        reply = app(message, contexts[node_id])
        connection.send_bytes(_REPLY + message_to_proto(reply).SerializeToString())


def _parse(data: bytes) -> Message:
    proto = ProtoMessage()
    proto.ParseFromString(data)
    return message_from_proto(proto)
