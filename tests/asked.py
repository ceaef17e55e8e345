"""Requests as a coordinator makes them, and what stands in the answers."""

from __future__ import annotations

import math
import time

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from ghostnet.exchange.arrays import Arrays
from ghostnet.exchange.flower import VALUES, from_record, to_records
from ghostnet.exchange.messages import Body, Header, Plain, encode
from ghostnet.plan import Plan

RUN = "ab" * 16


def request(plan: Plan, body: Body, *, wait_s: float = 60.0, **changed: object) -> Plain:
    """A whole request; `changed` are values by their names on the wire, with _ for -."""
    header = Header(plan=plan, run_id=RUN, deadline=math.ceil(time.time() + wait_s), server_key="5e" * 32)
    own, common = encode(body), encode(header)
    values = {**common.values, **own.values, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return Plain(values=values, arrays=own.arrays)


def message(plan: Plan, body: Body, **changed: object) -> Message:
    """The same as Flower carries it, to node 2."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    return Message(to_records(request(plan, body, **changed)), dst_node_id=2, message_type=body.kind)  # type: ignore[arg-type]


def node(site_file: object) -> Context:
    """Of a hospital's SuperNode."""
    return Context(run_id=1, node_id=2, node_config={"site": str(site_file)}, state=RecordDict(), run_config={})


def values_of(answer: Message) -> dict[str, object]:
    """The texts and whole numbers of an answer, or of a request; they may be changed in place."""
    return answer.content.config_records[VALUES]  # type: ignore[return-value]


def arrays_of(answer: Message) -> Arrays:
    """The values that an answer releases, or nothing."""
    record = answer.content.array_records.get("arrays")
    return {} if record is None else from_record(record)
