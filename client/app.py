"""The hospital's Flower app: it forwards five requests to the site, and says nothing else.

GhostNet's app bundle carries no code: this module is the one that the hospital installed. (A hostile bundle could bring
a module of the same name; docs/flower.md says how a hospital pins its own.) Whatever goes wrong becomes a fixed
sentence and a correlation id; the detail is written to the hospital's own log.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.config import SiteConfig, load_site
from client.requests import Publication
from client.site import Site
from ghostnet.errors import FederationError, LedgerError, PolicyError, SiteError, SpentError
from ghostnet.exchange import protocol
from ghostnet.exchange.secure_sum import MOST_CHARACTERS
from ghostnet.plan import Plan, plan_from_dict
from ghostnet.privacy import blocks
from ghostnet.progress import Progress, silent

MAX_PLAN_CHARACTERS = 100_000
MAX_FILES_CHARACTERS = 2_000
REFUSAL_CODE = re.compile(r"[A-Z]\d\d(?=:)")  # the policy's and the ledger's numbers; they say nothing of a patient
RUN_ID = re.compile(r"[0-9a-f]{32}")

_TOLD: set[tuple[str, str]] = set()
"""(hospital's log, sentence) of what this process wrote once and does not write again."""

_SITES: dict[Path, tuple[tuple[SiteConfig, Progress], Site]] = {}

Handler = Callable[[Site, Plan, str, Message], RecordDict]


def build_app(*, sites: Sequence[Path] = (), progress: Progress = silent, keep_ledger_open: bool = False) -> ClientApp:
    """The ClientApp of a hospital.

    Args:
        sites: for simulations alone: the site.toml of each partition. A deployed node names its own in its node
            config (`site="/path/to/site.toml"`), which always wins.
        progress: told where long work is; stays on this machine.
        keep_ledger_open: between a pooled run's steps. Only where all messages of a hospital come to one long-lived
            process: Flower's SuperNode starts a new one for each, and Ray chooses among several.
    """
    app = ClientApp()

    def answer(message: Message, context: Context, handler: Handler) -> Message:
        return _answered(
            message, handler, lambda: _site(_site_of(context, sites), progress, keep_ledger_open=keep_ledger_open)
        )

    @app.query(protocol.JOIN.partition(".")[2])
    def join(message: Message, context: Context) -> Message:
        return answer(message, context, _join)

    @app.query(protocol.WARM_START.partition(".")[2])
    def warm_start(message: Message, context: Context) -> Message:
        return answer(message, context, _warm_start)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, _train)

    @app.query(protocol.STEP.partition(".")[2])
    def step(message: Message, context: Context) -> Message:
        return answer(message, context, _step)

    @app.query(protocol.FINISH.partition(".")[2])
    def finish(message: Message, context: Context) -> Message:
        return answer(message, context, _finish)

    return app


def _join(site: Site, plan: Plan, run_id: str, message: Message) -> RecordDict:
    known = protocol.read_known_heads(_text(message, "known-heads", limit=protocol.MAX_KNOWN_CHARACTERS))
    joined = site.join(plan, run_id, known_heads=known)
    said = {"name": joined.name, "public-key": joined.public_key, "ledger-head": joined.ledger_head}
    said["join-signature"] = joined.signature
    if joined.mask_key:
        said |= {"mask-key": joined.mask_key, "mask-key-signature": joined.mask_key_signature}
    return _config(said)


def _warm_start(site: Site, plan: Plan, run_id: str, message: Message) -> RecordDict:
    return _with_head(site, {protocol.ARRAYS: _record(site.warm_start(plan, run_id))})


def _train(site: Site, plan: Plan, run_id: str, message: Message) -> RecordDict:
    server_round = int(message.content.config_records[protocol.CONFIG]["server-round"])  # type: ignore[arg-type]
    weights = site.train(
        plan, run_id, server_round, _arrays(message, protocol.ARRAYS), _arrays(message, protocol.PUBLIC)
    )
    return _with_head(site, {protocol.ARRAYS: _record(weights), protocol.METRICS: MetricRecord({protocol.WEIGHT: 1.0})})


def _step(site: Site, plan: Plan, run_id: str, message: Message) -> RecordDict:
    step = int(message.content.config_records[protocol.CONFIG]["step"])  # type: ignore[arg-type]
    roster = _text(message, "roster", limit=MOST_CHARACTERS)
    masked = site.step(plan, run_id, step, _arrays(message, protocol.ARRAYS), roster)
    return _with_head(site, {protocol.ARRAYS: _record(masked)})


def _finish(site: Site, plan: Plan, run_id: str, message: Message) -> RecordDict:
    files = json.loads(_text(message, protocol.FILES, limit=MAX_FILES_CHARACTERS))
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise FederationError("the files to sign are not a JSON object of digests by name")
    publication = Publication(files=files, public_images_sha256=_text(message, protocol.PUBLIC_IMAGES, limit=64))
    counts, statement = site.finish(
        plan, run_id, _arrays(message, protocol.ARRAYS), _arrays(message, protocol.PUBLIC), publication
    )
    return _with_head(site, {protocol.ARRAYS: _record(counts)}, statement=json.dumps(statement))


def _answered(message: Message, handler: Handler, open_site: Callable[[], Site]) -> Message:
    correlation_id = secrets.token_hex(4)
    log = logging.getLogger("client")
    try:
        site = open_site()
        log = _site_log(site.config.state / "site.log")
        plan, run_id = _plan_and_run(message)
        known_head = _text(message, "known-head", limit=64)
        if known_head:
            site.check_head(known_head)
        with _heard(log):
            content = handler(site, plan, run_id, message)
        _countersign(site, message)
        return Message(content, reply_to=message)
    except (PolicyError, LedgerError) as refusal:
        log.warning("%s refused: %s", correlation_id, refusal)
        numbered = REFUSAL_CODE.match(str(refusal))
        code = numbered.group() if numbered else refusal.__class__.__name__
        reason = f"the hospital refused the request [{code}]; its log has the reason under {correlation_id}"
        number = protocol.SPENT if isinstance(refusal, SpentError) else protocol.REFUSED
        return Message(Error(code=number, reason=reason), reply_to=message)
    except Exception:
        log.exception("%s failed", correlation_id)
        reason = f"the hospital could not answer; its log has the reason under {correlation_id}"
        return Message(Error(code=protocol.FAILED, reason=reason), reply_to=message)


def _countersign(site: Site, message: Message) -> None:
    """Stores the coordinator's signature under the head that it saw last, when the request carries one."""
    signature = _text(message, "head-signature", limit=128)
    if signature:
        site.countersign(_text(message, "known-head", limit=64), _text(message, "server-key", limit=64), signature)


def _plan_and_run(message: Message) -> tuple[Plan, str]:
    text = _text(message, "plan", limit=MAX_PLAN_CHARACTERS)
    run_id = _text(message, "run-id", limit=32)
    if not RUN_ID.fullmatch(run_id):
        raise FederationError("the run id is not 32 hexadecimal digits")
    return plan_from_dict(json.loads(text), source="the coordinator's plan"), run_id


def _site_of(context: Context, sites: Sequence[Path]) -> SiteConfig:
    node = context.node_config
    if "site" in node:
        return load_site(Path(str(node["site"])))
    if "partition-id" in node and "num-partitions" in node:  # Flower's simulation runtime
        named = [Path(part) for part in str(context.run_config.get("sites", "")).split(",") if part]
        candidates = list(sites) or named
        if int(node["partition-id"]) < len(candidates):
            return load_site(candidates[int(node["partition-id"])])
    raise SiteError("this node names no hospital; start it with --node-config 'site=\"/path/to/site.toml\"'")


def _site(config: SiteConfig, progress: Progress, *, keep_ledger_open: bool) -> Site:
    """The hospital that this process already plays, unless its site.toml has changed: its limits hold at once."""
    known = _SITES.get(config.source)
    if known is None or known[0] != (config, progress):
        if known is not None:
            known[1].close()
        site = Site(config, progress=progress, keep_ledger_open=keep_ledger_open)
        known = _SITES[config.source] = ((config, progress), site)
    return known[1]


@lru_cache(maxsize=256)
def _site_log(path: Path) -> logging.Logger:
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
def _heard(log: logging.Logger) -> Iterator[None]:
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


def _text(message: Message, key: str, *, limit: int) -> str:
    value = message.content.config_records[protocol.CONFIG].get(key, "")
    if not isinstance(value, str) or len(value) > limit:
        raise FederationError(f"{key} in the request is not a text of at most {limit} characters")
    return value


def _arrays(message: Message, name: str) -> dict[str, np.ndarray]:
    record = message.content.array_records.get(name)
    return {} if record is None else {key: value.numpy() for key, value in record.items()}


def _record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})


def _config(values: dict[str, str]) -> RecordDict:
    return RecordDict({protocol.CONFIG: ConfigRecord(dict(values))})


def _with_head(site: Site, records: dict[str, ArrayRecord | MetricRecord], **more: str) -> RecordDict:
    reply = RecordDict(dict(records))
    reply[protocol.CONFIG] = ConfigRecord({"ledger-head": site.ledger_head(), **more})
    return reply


app = build_app()
