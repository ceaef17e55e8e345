"""The hospital's Flower app: it carries requests to `client.answering` and answers back, and says nothing else.

GhostNet's app bundle carries no code: this module is the one that the hospital installed. (A hostile bundle could bring
a module of the same name; docs/flower.md says how a hospital pins its own.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client import answering
from client.config import SiteConfig, load_site
from ghostnet.errors import SiteError
from ghostnet.exchange.flower import from_records, to_records
from ghostnet.exchange.messages import REQUESTS, Refusal
from ghostnet.progress import Progress, silent


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

    def answer(message: Message, context: Context) -> Message:
        made = answering.answer(
            message.metadata.message_type,
            config=lambda: _site_config(context, sites),
            receive=lambda: from_records(message.content),
            progress=progress,
            keep_ledger_open=keep_ledger_open,
        )
        if isinstance(made, Refusal):
            return Message(Error(code=made.code, reason=made.reason), reply_to=message)
        return Message(to_records(made), reply_to=message)

    for kind in REQUESTS:
        category, _, action = kind.partition(".")
        (app.query(action) if category == "query" else app.train())(answer)
    return app


def _site_config(context: Context, sites: Sequence[Path]) -> SiteConfig:
    node = context.node_config
    if "site" in node:
        return load_site(Path(str(node["site"])))
    if "partition-id" in node and "num-partitions" in node:  # Flower's simulation runtime
        named = [Path(part) for part in str(context.run_config.get("sites", "")).split(",") if part]
        candidates = list(sites) or named
        if int(node["partition-id"]) < len(candidates):
            return load_site(candidates[int(node["partition-id"])])
    raise SiteError("this node names no hospital; start it with --node-config 'site=\"/path/to/site.toml\"'")


app = build_app()
