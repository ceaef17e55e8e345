"""A Flower Grid without processes: each message is answered at once by the hospital's own app, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from client.app import build_app
from ghostnet.exchange import protocol

Fault = Callable[[Message, Path], str | None]  # "drop" a request, or "lose" the answer to it
FIRST_NODE = 2

SITE = """
name = "{name}"
[data]
kind = "npz"
path = "data.npz"
[policy]
max_epsilon = {epsilon}
delta = 1e-5
max_coalition_epsilon = {coalition}
"""


class DirectGrid:
    """Answers for hospitals; `fault` can make a message go missing on its way there or back.

    Attributes:
        seen: (kind, node, reply) of every answer, as the coordinator could see it.
    """

    def __init__(self, sites: Sequence[Path], fault: Fault = lambda message, site: None) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._sites = {FIRST_NODE + i: site for i, site in enumerate(sites)}
        self._app, self._fault = build_app(), fault
        self.seen: list[tuple[str, int, Message]] = []

    def get_node_ids(self) -> list[int]:
        return list(self._sites)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [reply for message in list(messages) if (reply := self._answer(message)) is not None]

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        site = self._sites[node]
        fault = self._fault(message, site)
        if fault == "drop":
            return Message(Error(code=protocol.FAILED, reason="the hospital's process ended"), reply_to=message)
        context = Context(run_id=1, node_id=node, node_config={"site": str(site)}, state=RecordDict(), run_config={})
        TaskIdentity.node_id = node
        reply = self._app(message_from_proto(message_to_proto(message)), context)
        TaskIdentity.node_id = 1
        if fault == "lose":
            return None
        sent = message_to_proto(reply)
        self.seen.append((message.metadata.message_type, node, message_from_proto(sent)))
        return message_from_proto(sent)  # a strategy takes its copy apart


def write_hospitals(
    folder: Path, names: Sequence[str], write: Callable[[Path, int], object], *, epsilon: float, coalition: float
) -> list[Path]:
    """One folder a hospital, with data.npz by `write(path, i)` and a site.toml."""
    files = []
    for i, name in enumerate(names):
        site = folder / name
        site.mkdir()
        write(site / "data.npz", i)
        (site / "site.toml").write_text(SITE.format(name=name, epsilon=epsilon, coalition=coalition))
        files.append(site / "site.toml")
    return files
