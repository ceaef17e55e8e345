"""`ghostnet site init`: asks what must be known of a hospital and writes its site.toml, every key explained."""

from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from client.config import load_site
from client.intake.folder import has_signature
from client.intake.task import Format
from client.modalities import MODALITIES
from ghostnet.cli.console import results
from ghostnet.cli.site_template import ALL, site_text
from ghostnet.errors import SiteError

_MOST_LOOKED_AT = 2000  # files; the kind shows long before
_KINDS: dict[Format, str] = {"dicom": "dicom", "nifti": "nifti", "picture": "images"}


def init(
    folder: Annotated[Path, typer.Argument(help="Where site.toml goes; images are looked for here.")] = Path(),
    name: Annotated[str | None, typer.Option(help="The hospital's name in the federation: a-z, 0-9 and -.")] = None,
    kind: Annotated[str | None, typer.Option(help=f"{', '.join(ALL)}; proposed from what the folder holds.")] = None,
    path: Annotated[str | None, typer.Option(help="The image folder, or the NPZ file.")] = None,
    labels: Annotated[str | None, typer.Option(help="CSV: which image has which label.")] = None,
    layout: Annotated[str | None, typer.Option(help="Of that table: plain, nih, chexpert.")] = None,
    boxes: Annotated[str | None, typer.Option(help="COCO JSON or CSV: where on an image. Not asked for.")] = None,
    modality: Annotated[str | None, typer.Option(help="Of every image, for images and nifti.")] = None,
    state: Annotated[str | None, typer.Option(help="Folder for ledger, keys, cache and log.")] = None,
    test_fraction: Annotated[float | None, typer.Option(help="Share of patients never trained on.")] = None,
    exclude: Annotated[str | None, typer.Option(help="List of withdrawn patients. Not asked for.")] = None,
    burned_in: Annotated[str | None, typer.Option(help="Text in the pixels: blank or quarantine.")] = None,
    max_epsilon: Annotated[float | None, typer.Option(help="Most of a patient's budget, over all runs.")] = None,
    delta: Annotated[float | None, typer.Option(help="At which it is counted; well below 1 / patients.")] = None,
    pacs_protocol: Annotated[str | None, typer.Option(help="dicomweb or dimse.")] = None,
    pacs_url: Annotated[str | None, typer.Option(help="DICOMweb: root of the service.")] = None,
    pacs_host: Annotated[str | None, typer.Option(help="DIMSE: host of the archive.")] = None,
    pacs_port: Annotated[int | None, typer.Option(help="DIMSE: its port.")] = None,
    pacs_called_aet: Annotated[str | None, typer.Option(help="DIMSE: its application entity title.")] = None,
    pacs_calling_aet: Annotated[str | None, typer.Option(help="DIMSE: our title. Not asked for.")] = None,
    pacs_tls: Annotated[bool | None, typer.Option(help="DIMSE: over TLS. Not asked for.")] = None,
    pacs_credentials: Annotated[str | None, typer.Option(help="DICOMweb: file (0600). Not asked for.")] = None,
    pacs_ca_file: Annotated[str | None, typer.Option(help="PEM to trust. Not asked for.")] = None,
    pacs_client_certificate: Annotated[str | None, typer.Option(help="PEM with key (0600). Not asked for.")] = None,
    pacs_study_date: Annotated[
        str | None, typer.Option(help="Without a label table: YYYYMMDD-YYYYMMDD, whose studies are fetched.")
    ] = None,
    missing_label: Annotated[str | None, typer.Option(help="Label of images without a finding, or drop.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is proposed; fail if nothing is.")] = False,
) -> None:
    """Write a site.toml in which every key is explained; asks for what is not given as an option.

    Exit code 4 when the answers do not fit together, or when there is a site.toml already: it is never overwritten.
    """
    target = folder / "site.toml"
    _refuse_existing(target)
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
    results.print(f"wrote {shown}; every key is explained in it", highlight=False, soft_wrap=True, markup=False)
    results.print(
        f"next: ghostnet site check {shown} --plan plan.toml   (a dry run: spends nothing and sends nothing)",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def write_site(target: Path, values: dict[str, Any]) -> None:
    """Writes a site.toml, after `load_site` has read the very same text.

    Raises:
        SiteError: the values do not fit together, or there is such a file already; nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(site_text(values), encoding="utf-8")
        load_site(draft)
        os.link(draft, target)
    except SiteError as error:
        raise SiteError(str(error).replace(str(draft), str(target))) from None
    except OSError as error:
        _refuse_existing(target)
        raise SiteError(f"{target} cannot be written ({error.__class__.__name__}); give a folder that can") from None
    finally:
        draft.unlink(missing_ok=True)


class _Questions:
    """Answers so far: from options, from what is proposed, or from the keyboard."""

    def __init__(self, values: dict[str, Any], *, yes: bool) -> None:
        self.values = values
        self._yes = yes

    def ask(self, key: str, text: str, proposed: Any = None, kind: Any = str) -> Any:
        """The answer to one question; one that was given as an option is not asked."""
        if key not in self.values:
            if self._yes and proposed is None:
                option = _OPTIONS.get(key) or key.removeprefix("data.").removeprefix("policy.").removeprefix("cohort.")
                raise SiteError(f"{key} is not given, and nothing can be proposed; add --{option.translate(_DASHES)}")
            self.values[key] = proposed if self._yes else typer.prompt(text, default=proposed, type=kind, err=True)
        return self.values[key]


_OPTIONS = {"labels.missing": "missing-label"}
_DASHES = str.maketrans("._", "--")


def _ask(answers: _Questions, folder: Path) -> None:
    answers.ask("name", "The hospital's name in the federation (a-z, 0-9 and -)")
    path, kind = _propose(folder, answers.values.get("data.path"))
    kind = answers.ask("data.kind", f"Kind of data ({', '.join(ALL)})", kind)
    if kind == "pacs":
        answers.values.pop("data.path", None)
        _ask_pacs(answers)
    else:
        answers.ask("data.path", "The NPZ file" if kind == "npz" else "The image folder, from site.toml", path)
    if kind == "pacs" and "data.labels" not in answers.values and "pacs.study_date" in answers.values:
        answers.ask("labels.missing", "Label of the plan that all these studies have")
    elif kind != "npz":
        proposed = _propose_labels(folder, answers.values.get("data.path"))
        table = answers.ask("data.labels", "Label table (CSV)", proposed)
        if kind == "images":
            answers.ask("data.layout", "Its layout (plain, nih, chexpert)", _layout_of(folder / table))
    if kind in ("images", "nifti"):
        answers.ask("data.modality", f"Modality of every image ({', '.join(MODALITIES)})")
    beside = (folder / answers.values.get("data.path", "images")).resolve() == folder.resolve()
    answers.ask("state", "Folder for ledger, keys and cache", "../ghostnet-state" if beside else "state")
    answers.ask("cohort.test_fraction", "Share of patients never trained on", 0.2, float)
    answers.ask("deidentify.burned_in", "Text in the pixels (blank, quarantine)", "blank")
    answers.ask("policy.max_epsilon", "The most of a patient's privacy budget, over all runs (epsilon)", None, float)
    answers.ask("policy.delta", "Delta, well below 1 / number of patients", None, float)


def _ask_pacs(answers: _Questions) -> None:
    if answers.ask("pacs.protocol", "Protocol (dicomweb, dimse)", "dicomweb") == "dicomweb":
        answers.ask("pacs.url", "Root of the DICOMweb service")
        return
    answers.ask("pacs.host", "Host of the archive")
    answers.ask("pacs.port", "Its port", 104, int)
    answers.ask("pacs.called_aet", "Its application entity title")


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
        "dicom", "images", "nifti", "npz" or None. As many masks (PNG) as images of another kind do not win.
    """
    counts: Counter[str] = Counter()
    for file in [path] if path.is_file() else _some_files(path):
        try:
            counts[_kind_of_file(file)] += 1
        except OSError:
            continue
    most = max((*_KINDS.values(), "npz"), key=lambda kind: counts[kind])
    return most if counts[most] else None


def _some_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in sorted(names) if not name.startswith(".")]
        if len(found) >= _MOST_LOOKED_AT:
            break
    return found[:_MOST_LOOKED_AT]


def _kind_of_file(file: Path) -> str:
    for form, kind in _KINDS.items():
        if has_signature(file, form):
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


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise SiteError(f"{target} is there already; edit it, or give another folder")
