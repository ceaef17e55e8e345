"""A process that carries requests to a hospital, as one of two SuperNodes on one state folder would.

    python -m tests.client.asking SITE_TOML EVENTS PROCESSES PATIENCE_S LOCKED

It waits until all PROCESSES are there, and asks to join and for the warm start. In each request it notes in EVENTS that
it is inside, waits there until another is inside too or PATIENCE_S are over, goes on, and notes that it is outside.
Prints a digest of the answers, or why it was refused, one a line. LOCKED "no" plants a hospital that answers at
once.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from client import answering
from client.config import load_site
from client.site import Site
from ghostnet.accounting.plan_cost import resolve
from ghostnet.exchange.arrays import arrays_sha256
from ghostnet.exchange.messages import Body, JoinRequest, Refusal, WarmStartRequest
from ghostnet.plan import Plan
from tests.asked import request
from tests.plans import tiny_plan

INSIDE, OUTSIDE = "in", "out"


def ask(site_file: Path, plan: Plan, body: Body, *, wait_s: float = 600.0) -> str:
    """A digest of the answer, or why there is none."""
    made = answering.answer(
        body.kind, config=lambda: load_site(site_file), receive=lambda: request(plan, body, wait_s=wait_s)
    )
    if isinstance(made, Refusal):
        return f"{made.code} {made.reason}"
    return arrays_sha256(made.arrays.get("arrays", {})) + str(made.values.get("public-key", ""))


def note(events: Path, word: str) -> None:
    """Appends one line in one write."""
    descriptor = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{word}\n".encode())
    os.close(descriptor)


def most_inside(events: Path) -> int:
    """The most requests that were inside at once."""
    inside = most = 0
    for word in events.read_text().split() if events.exists() else ():
        inside += 1 if word == INSIDE else -1
        most = max(most, inside)
    return most


def lingering(events: Path, patience_s: float) -> ExitStack:
    """The real site, whose answers take time."""
    stack = ExitStack()
    for name in ("join", "warm_start"):
        real = getattr(Site, name)

        def linger(site: Site, *arguments: Any, real: Any = real, **named: Any) -> Any:
            note(events, INSIDE)
            deadline = time.monotonic() + patience_s
            while most_inside(events) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            try:
                return real(site, *arguments, **named)
            finally:
                note(events, OUTSIDE)

        stack.enter_context(mock.patch.object(Site, name, linger))
    return stack


def unlocked() -> Any:
    """Planted: a hospital that answers however many requests at once."""
    return mock.patch.object(answering, "one_request_at_a_time", return_value=nullcontext())


def main(site_file: str, events: str, processes: str, patience_s: str, locked: str) -> None:
    """As the module says."""
    torch.set_num_threads(1)
    plan, ready = resolve(tiny_plan()), Path(f"{events}.ready")
    note(ready, "ready")
    while len(ready.read_text().split()) < int(processes):
        time.sleep(0.01)
    with lingering(Path(events), float(patience_s)), nullcontext() if locked == "yes" else unlocked():
        for body in (JoinRequest(), WarmStartRequest()):
            print(ask(Path(site_file), plan, body), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
