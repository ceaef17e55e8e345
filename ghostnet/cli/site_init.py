"""`ghostnet site init`: asks what must be known of a hospital and writes its site.toml, every key explained."""

from __future__ import annotations

import csv
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
import typer

from client.config import SiteConfig
from client.formats import FORMATS
from client.intake.folder import has_signature
from client.site_toml import refuse_existing, write_site
from ghostnet.cli.console import result
from ghostnet.errors import SiteError
from ghostnet.plan.keys import keys_of
from ghostnet.plan.template import explained

_FORMATS = sorted(FORMATS, key=lambda kind: ".png" in FORMATS[kind].suffixes)  # last: masks are PNG too
MAX_NAME = 32  # characters of a hospital's name
_MAX_FILES_SEEN = 2000  # files; the kind shows long before


_KEYS = {key.dotted: key for key in keys_of(SiteConfig)}


def _flag(dotted: str) -> str:
    """The option that gives a key."""
    if dotted == "labels.missing":
        return "--missing-label"
    key = _KEYS[dotted]
    return f"--{'pacs-' if key.table == 'pacs' else ''}{key.name}".replace("_", "-")


def _option(dotted: str) -> Any:
    key, flag = _KEYS[dotted], _flag(dotted)
    return typer.Option(f"{flag}/--no{flag[1:]}" if key.hint is bool else flag, help=explained(key, brief=True))


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where site.toml goes; images are looked for here.")
    ] = Path(),
    name: Annotated[str | None, _option("name")] = None,
    kind: Annotated[str | None, _option("data.kind")] = None,
    path: Annotated[str | None, _option("data.path")] = None,
    labels: Annotated[str | None, _option("data.labels")] = None,
    layout: Annotated[str | None, _option("data.layout")] = None,
    boxes: Annotated[str | None, _option("data.boxes")] = None,
    modality: Annotated[str | None, _option("data.modality")] = None,
    state: Annotated[str | None, _option("state")] = None,
    test_fraction: Annotated[float | None, _option("cohort.test_fraction")] = None,
    exclude: Annotated[str | None, _option("cohort.exclude")] = None,
    burned_in: Annotated[str | None, _option("deidentify.burned_in")] = None,
    max_epsilon: Annotated[float | None, _option("policy.max_epsilon")] = None,
    delta: Annotated[float | None, _option("policy.delta")] = None,
    pacs_protocol: Annotated[str | None, _option("pacs.protocol")] = None,
    pacs_url: Annotated[str | None, _option("pacs.url")] = None,
    pacs_host: Annotated[str | None, _option("pacs.host")] = None,
    pacs_port: Annotated[int | None, _option("pacs.port")] = None,
    pacs_called_aet: Annotated[str | None, _option("pacs.called_aet")] = None,
    pacs_calling_aet: Annotated[str | None, _option("pacs.calling_aet")] = None,
    pacs_tls: Annotated[bool | None, _option("pacs.tls")] = None,
    pacs_credentials: Annotated[str | None, _option("pacs.credentials")] = None,
    pacs_ca_file: Annotated[str | None, _option("pacs.ca_file")] = None,
    pacs_client_certificate: Annotated[str | None, _option("pacs.client_certificate")] = None,
    pacs_study_date: Annotated[str | None, _option("pacs.study_date")] = None,
    missing_label: Annotated[str | None, _option("labels.missing")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is proposed; fail if nothing is.")] = False,
) -> None:
    """Write a site.toml in which every key is explained; asks for what is not given as an option.

    Exit code 4 when the answers do not fit together, or when there is a site.toml already: it is never overwritten.
    """
    target = folder / "site.toml"
    refuse_existing(target)
    given = {
        "name": name,
        "state": state,
        "data.kind": kind,
        "data.path": path,
        "data.labels": labels,
        "data.layout": layout,
        "data.boxes": boxes,
        "data.modality": modality,
        "cohort.test_fraction": test_fraction,
        "cohort.exclude": exclude,
        "deidentify.burned_in": burned_in,
        "policy.max_epsilon": max_epsilon,
        "policy.delta": delta,
        "pacs.protocol": pacs_protocol,
        "pacs.url": pacs_url,
        "pacs.host": pacs_host,
        "pacs.port": pacs_port,
        "pacs.called_aet": pacs_called_aet,
        "pacs.calling_aet": pacs_calling_aet,
        "pacs.tls": pacs_tls,
        "pacs.credentials": pacs_credentials,
        "pacs.ca_file": pacs_ca_file,
        "pacs.client_certificate": pacs_client_certificate,
        "pacs.study_date": pacs_study_date,
        "labels.missing": missing_label,
    }
    answers = _Questions({key: value for key, value in given.items() if value is not None}, yes=yes)
    _ask(answers, folder)
    write_site(target, answers.values)
    shown = os.path.relpath(target)
    result(f"wrote {shown}; every key is explained in it")
    result(f"next: ghostnet site check {shlex.quote(shown)} --plan plan.toml   # a dry run: spends and sends nothing")


class _Questions:
    """Answers so far: from options, from what is proposed, or from the keyboard."""

    def __init__(self, values: dict[str, Any], *, yes: bool) -> None:
        self.values = values
        self._yes = yes
        self.missing: list[str] = []  # options of what is not given and cannot be proposed

    def ask(self, dotted: str, proposed: Any = None) -> Any:
        """The answer to the question about one key; one that was given as an option is not asked."""
        if dotted not in self.values:
            if self._yes and proposed is None:
                self.missing.append(_flag(dotted))
                return None
            self.values[dotted] = proposed if self._yes else _prompt(dotted, proposed)
        return self.values[dotted]


def _prompt(dotted: str, proposed: Any) -> Any:
    hint = _KEYS[dotted].hint
    kind = click.Choice(get_args(hint)) if get_origin(hint) is Literal else hint if hint in (int, float) else str
    return typer.prompt(explained(_KEYS[dotted], brief=True), default=proposed, type=kind, show_choices=False, err=True)


def _ask(answers: _Questions, folder: Path) -> None:
    answers.ask("name", _name_of(folder))
    path, kind = _propose(folder, answers.values.get("data.path"))
    kind = answers.ask("data.kind", kind)
    if kind is not None:  # else what it needs is not known yet
        _ask_data(answers, folder, kind, path)
    for dotted in ("cohort.test_fraction", "deidentify.burned_in"):
        answers.ask(dotted, _KEYS[dotted].default)
    answers.ask("policy.max_epsilon")
    answers.ask("policy.delta")
    if answers.missing:
        raise SiteError(f"not given, and nothing can be proposed: add {', '.join(answers.missing)}")


def _ask_data(answers: _Questions, folder: Path, kind: str, path: str | None) -> None:
    if kind == "pacs":
        answers.values.pop("data.path", None)
        _ask_pacs(answers)
    else:
        answers.ask("data.path", path)
    if kind == "pacs" and "data.labels" not in answers.values and "pacs.study_date" in answers.values:
        answers.ask("labels.missing")
    elif kind != "npz":
        table = answers.ask("data.labels", _propose_labels(folder, answers.values.get("data.path")))
        if kind == "images":
            answers.ask("data.layout", _layout_of(folder / table) if table else "plain")
    if kind in _KEYS["data.modality"].kinds:
        answers.ask("data.modality")
    beside = (folder / answers.values.get("data.path", "images")).resolve() == folder.resolve()
    answers.ask("state", "../ghostnet-state" if beside else "state")


def _name_of(folder: Path) -> str | None:
    """The folder's name as a hospital's name, if anything is left of it."""
    name = re.sub("[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:MAX_NAME].strip("-")
    return name or None


def _ask_pacs(answers: _Questions) -> None:
    if answers.ask("pacs.protocol", _KEYS["pacs.protocol"].example) == "dicomweb":
        answers.ask("pacs.url")
        return
    answers.ask("pacs.host")
    answers.ask("pacs.port", _KEYS["pacs.port"].default)
    answers.ask("pacs.called_aet")


def _propose(folder: Path, path: str | None) -> tuple[str | None, str | None]:
    """A path and a kind, from what lies in the folder; None where nothing shows."""
    candidates = [folder / path] if path else [*(folder / name for name in ("images", "data")), folder]
    for candidate in candidates:
        kind = kind_of(candidate)
        if kind:
            found = next(candidate.rglob("*.npz")) if kind == "npz" and candidate.is_dir() else candidate
            return path or os.path.relpath(found, folder), kind
    return path, None


def kind_of(path: Path) -> str | None:
    """The kind of data that most files below a path are of, by their first bytes, or NPZ's by its name.

    Args:
        path: a folder or a file. Files that cannot be read, and those of no kind, do not count.

    Returns:
        A name of `client.formats.FORMATS`, "npz" or None. As many masks (PNG) as images of another kind do not win.
    """
    counts: Counter[str] = Counter()
    for file in [path] if path.is_file() else _some_files(path):
        try:
            counts[_kind_of_file(file)] += 1
        except OSError:
            continue
    most = max((*_FORMATS, "npz"), key=lambda kind: counts[kind])
    return most if counts[most] else None


def _some_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        if len(found) >= _MAX_FILES_SEEN:
            break
    return found[:_MAX_FILES_SEEN]


def _kind_of_file(file: Path) -> str:
    for kind in _FORMATS:
        if has_signature(file, kind):
            return kind
    return "npz" if file.suffix.lower() == ".npz" else ""


def _propose_labels(folder: Path, path: str | None) -> str | None:
    places = [folder] if path is None else [folder, folder / path]
    for place in places:
        tables = sorted(place.glob("*.csv"))
        named = [table for table in tables if table.name == "labels.csv"] or tables
        if len(named) == 1:
            return os.path.relpath(named[0], folder)
    return None


def _layout_of(table: Path) -> str:
    """Told by the header line; "plain" where it cannot be read."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            columns = set(next(csv.reader(file), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return "plain"
    if {"Image Index", "Finding Labels"} <= columns:
        return "nih"
    return "chexpert" if {"Path", "Frontal/Lateral"} <= columns else "plain"
