"""Requests to answers at one hospital, whatever carries them: Flower today, the site's own service later.

Requests of one hospital are answered one after the other. A request whose time is over is refused before anything is
spent on it. Whatever goes wrong becomes a fixed sentence and a correlation id; the detail is written to the hospital's
own log.

Clocks: a request names the coordinator's time until which it waits, and this hospital's clock decides. A hospital whose
clock is ahead refuses by that much too early. One whose clock is behind answers by that much too late, at most
MAX_CLOCK_DIFFERENCE_S: a deadline further ahead than the plan's `round_timeout_s` and this shows that the clocks
differ, and is refused too.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from client.config import SiteConfig
from client.requests import Publication
from client.site import Site
from ghostnet.errors import FederationError, LedgerError, PolicyError, SpentError
from ghostnet.exchange import protocol
from ghostnet.exchange.messages import (
    Answer,
    FinishAnswer,
    FinishRequest,
    Header,
    JoinRequest,
    Plain,
    Refusal,
    Request,
    RoundAnswer,
    RoundRequest,
    StepAnswer,
    StepRequest,
    WarmStartAnswer,
    WarmStartRequest,
    decode_request,
    encode,
)
from ghostnet.privacy import blocks
from ghostnet.progress import Progress, silent

MAX_CLOCK_DIFFERENCE_S = 60.0
LOCK_NAME = "site.lock"
_LOCK_POLL_S = 0.05
REFUSAL_CODE = re.compile(r"[A-Z]\d\d(?=:)")  # the policy's and the ledger's numbers; they say nothing of a patient

_TOLD: set[tuple[str, str]] = set()
"""(hospital's log, sentence) of what this process wrote once and does not write again."""

_SITES: dict[Path, tuple[tuple[SiteConfig, Progress], Site]] = {}


class LateError(FederationError):
    """Nobody waits for the answer any more, or the two clocks differ."""


def answer(
    kind: str,
    *,
    config: Callable[[], SiteConfig],
    receive: Callable[[], Plain],
    progress: Progress = silent,
    keep_ledger_open: bool = False,
) -> Plain | Refusal:
    """Answers one request, or refuses it; never raises what an `Exception` is.

    Args:
        kind: one of `messages.REQUESTS`.
        config: reads the hospital's site.toml; called here, so that its errors become a fixed sentence too.
        receive: reads the request from its transport; likewise.
        progress: told where long work is; stays on this machine.
        keep_ledger_open: between a pooled run's steps; only where one process answers all requests of a hospital.
    """
    correlation_id = secrets.token_hex(4)
    log = logging.getLogger("client")
    try:
        site_config = config()
        log = site_log(site_config.state / "site.log")
        request = decode_request(kind, receive())
        with one_request_at_a_time(site_config.state, lambda: check_time(request.header)):
            site = _open_site(site_config, progress, keep_ledger_open=keep_ledger_open)
            with capture_log(log):
                return encode(_answer(site, request))
    except LateError as late:
        log.warning("%s refused: %s", correlation_id, late)
        reason = f"the request's time is over by the hospital's clock; its log has the times under {correlation_id}"
        return Refusal(code=protocol.LATE, reason=reason)
    except (PolicyError, LedgerError) as refusal:
        log.warning("%s refused: %s", correlation_id, refusal)
        numbered = REFUSAL_CODE.match(str(refusal))
        code = numbered.group() if numbered else refusal.__class__.__name__
        reason = f"the hospital refused the request [{code}]; its log has the reason under {correlation_id}"
        number = protocol.SPENT if isinstance(refusal, SpentError) else protocol.REFUSED
        return Refusal(code=number, reason=reason)
    except Exception:
        log.exception("%s failed", correlation_id)
        reason = f"the hospital could not answer; its log has the reason under {correlation_id}"
        return Refusal(code=protocol.FAILED, reason=reason)


def check_time(header: Header) -> None:
    """Refuses a request that nobody waits for any more, by this machine's clock.

    Raises:
        LateError: with both times.
    """
    now = time.time()
    longest = header.plan.federation.round_timeout_s + MAX_CLOCK_DIFFERENCE_S
    if now >= header.deadline:
        raise LateError(
            f"the coordinator waits until {header.deadline} s (Unix time), and it is {now:.0f} s here; if it has just "
            "asked, this machine's clock is ahead: synchronise both clocks"
        )
    if header.deadline - now > longest:
        raise LateError(
            f"the coordinator waits until {header.deadline} s (Unix time), which is more than {longest:g} s from "
            f"{now:.0f} s, the time here; this machine's clock is behind: synchronise both clocks"
        )


@contextmanager
def one_request_at_a_time(state: Path, check: Callable[[], None]) -> Iterator[None]:
    """Waits until no other thread or process of this machine answers from this state folder.

    The operating system ends the lock with the process that holds it. One that hangs and keeps it makes the others
    late, not wait for ever.

    Args:
        state: the hospital's state folder.
        check: called while it waits and once it has the lock; raises to give up.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _locked(descriptor):
            check()
            time.sleep(_LOCK_POLL_S)
        check()
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@lru_cache(maxsize=256)
def site_log(path: Path) -> logging.Logger:
    """The hospital's own log, readable by its user only."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = logging.getLogger(f"ghostnet.site.{path}")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    path.chmod(0o600)
    return log


@contextmanager
def capture_log(log: logging.Logger) -> Iterator[None]:
    """Writes what the training says meanwhile (a generator that diverged) to this hospital's log too.

    Networks for which the self-test of the arithmetic failed are named once in each hospital's log: hospitals that
    share a process share its answer.
    """
    training = logging.getLogger("ghostnet")
    for handler in log.handlers:
        training.addHandler(handler)
    try:
        yield
    finally:
        for handler in log.handlers:
            training.removeHandler(handler)
        for sentence in blocks.computed_alone():
            if (log.name, sentence) not in _TOLD:
                _TOLD.add((log.name, sentence))
                log.warning("%s", sentence)


def _open_site(config: SiteConfig, progress: Progress, *, keep_ledger_open: bool) -> Site:
    """The hospital that this process already plays, unless its site.toml has changed: its limits hold at once."""
    known = _SITES.get(config.source)
    if known is None or known[0] != (config, progress):
        if known is not None:
            known[1].close()
        site = Site(config, progress=progress, keep_ledger_open=keep_ledger_open)
        known = _SITES[config.source] = ((config, progress), site)
    return known[1]


def _answer(site: Site, request: Request) -> Answer:
    """Checks the head that the coordinator knows, answers, and keeps its signature under that head."""
    header = request.header
    if header.known_head:
        site.check_head(header.known_head)
    made = _asked(site, request)
    if header.head_signature:
        site.countersign(header.known_head, header.server_key, header.head_signature)
    return made


def _asked(site: Site, request: Request) -> Answer:
    plan, run_id, body = request.header.plan, request.header.run_id, request.body
    match body:
        case JoinRequest():
            return site.join(plan, run_id, known_heads=body.known_heads)
        case WarmStartRequest():
            released = site.warm_start(plan, run_id)
            return WarmStartAnswer(ledger_head=site.ledger_head(), arrays=released)
        case RoundRequest():
            released = site.train(plan, run_id, body.server_round, body.weights, body.released_mean)
            return RoundAnswer(ledger_head=site.ledger_head(), arrays=released)
        case StepRequest():
            released = site.step(plan, run_id, body.step, body.discriminator, body.roster)
            return StepAnswer(ledger_head=site.ledger_head(), arrays=released)
        case FinishRequest():
            publication = Publication(files=body.files, public_images_sha256=body.public_images_sha256)
            released, statement = site.finish(plan, run_id, body.generator, body.public, publication)
            return FinishAnswer(ledger_head=site.ledger_head(), arrays=released, statement=statement)
