"""The text of a site.toml, with every key explained: the one place that these explanations are written."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from client.config import SiteConfig
from client.modalities import MODALITIES

ALL = ("dicom", "images", "nifti", "npz", "pacs")
FILES = ("dicom", "images", "nifti", "pacs")  # everything but one file of arrays
_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One key of site.toml.

    Attributes:
        text: what it does, with its unit and its choices.
        example: what is shown, behind a "#", where the key is left out and has no default to show.
        kinds: the kinds of data that have it.
    """

    text: str
    example: object = None
    kinds: tuple[str, ...] = ALL


TABLES: dict[str, str] = {
    "": "One hospital. Every path is relative to this file. A key with a # in front is left out and has its default.",
    "data": "Where the images are. They are read and never written to.",
    "labels": "How the findings of the label table become the plan's labels.",
    "pacs": 'Only with kind = "pacs": the archive that the images are fetched from, to state/pacs.',
    "cohort": "How patients are kept apart.",
    "deidentify": "What is done about text in the pixels. Headers are dropped in any case.",
    "policy": "The hospital's limits: they can refuse a plan, and never widen one (docs/privacy-officer.md).",
    "compute": "What this machine computes on. It changes no promise and no plan.",
}

KEYS: dict[str, Explained] = {
    "name": Explained(text="The hospital's name in the federation: 1 to 32 of a-z, 0-9 and -. It is public."),
    "state": Explained(
        text="Folder for the ledger, keys, cache, log and the hospital's own reports; outside the image folder, on a "
        "disk that only the site's user can read. Back up the ledger and the keys. A budget belongs to one state "
        "folder: a second site.toml over the same images has a budget of its own."
    ),
    "data.kind": Explained(
        text='"dicom": a folder of DICOM files; "images": a folder of PNG and JPEG files; "nifti": a folder of NIfTI '
        'files; "npz": one file of arrays; "pacs": fetched from an archive.'
    ),
    "data.path": Explained(
        text="The folder, read with all its subfolders, or the NPZ file.",
        example="images",
        kinds=("dicom", "images", "nifti", "npz"),
    ),
    "data.labels": Explained(
        text="CSV that says which image has which label. Columns: image, label and, as needed, patient, mask, box. "
        "Without patient (pictures, NIfTI) only plans that protect each image by itself are taken. "
        "image is a path below the image folder (of a PACS: StudyInstanceUID, or that, a slash and SOPInstanceUID).",
        example="labels.csv",
        kinds=FILES,
    ),
    "data.layout": Explained(
        text='How that table is laid out: "plain" (above), "nih" (ChestX-ray14) or "chexpert".', kinds=FILES
    ),
    "data.boxes": Explained(
        text="COCO JSON or CSV that says where on an image something is; drawn as a mask where the plan has masks.",
        example="boxes.json",
        kinds=("dicom", "images", "pacs"),
    ),
    "data.modality": Explained(
        text=f"Modality of every image, which such files do not say: one of {', '.join(MODALITIES)}.",
        example="DX",
        kinds=("images", "nifti"),
    ),
    "data.frames_per_file": Explained(
        text="How many frames or slices of a file that has several are taken, evenly spaced; 1 is the middle one.",
        kinds=("dicom", "nifti", "pacs"),
    ),
    "data.validation": Explained(
        text='What becomes of the part "val" of a MedMNIST file: "train", "test" or "drop".', kinds=("npz",)
    ),
    "labels.map": Explained(
        text="Which finding of the table is which label of the plan. Names that are the same need no line; "
        '"drop" looks past a finding.',
        example={"Effusion": "pneumonia"},
        kinds=FILES,
    ),
    "labels.uncertain": Explained(
        text='An image whose only findings are uncertain (layout "chexpert"): "drop" leaves it out, or a label.',
        kinds=FILES,
    ),
    "labels.missing": Explained(
        text='An image without a finding that stands for a label: "drop" leaves it out, or a label.', kinds=FILES
    ),
    "labels.several": Explained(
        text='An image of several labels: "drop" leaves it out, "first" takes the first in the plan\'s order.',
        kinds=FILES,
    ),
    "pacs.protocol": Explained(
        text='"dicomweb" (QIDO-RS and WADO-RS) or "dimse" (C-FIND and C-GET or C-MOVE).', example="dicomweb"
    ),
    "pacs.url": Explained(text="DICOMweb: root of the service.", example="https://pacs.example/dicom-web"),
    "pacs.credentials": Explained(
        text="DICOMweb: file, readable by the site's user alone (0600), of one line: user:password or a bearer token.",
        example="pacs.credentials",
    ),
    "pacs.host": Explained(text="DIMSE: the archive's host name or address.", example="pacs.example"),
    "pacs.port": Explained(text="DIMSE: its port.", example=104),
    "pacs.called_aet": Explained(text="DIMSE: its application entity title.", example="PACS"),
    "pacs.calling_aet": Explained(text="DIMSE: ours, as the archive knows it.", example="GHOSTNET"),
    "pacs.retrieve": Explained(
        text='DIMSE: "get" (on our own connection) or "move" (the archive connects back to move_address:move_port).',
        example="get",
    ),
    "pacs.move_address": Explained(
        text='DIMSE with "move": IP address of this machine to listen on, only while fetching.', example="192.0.2.10"
    ),
    "pacs.move_port": Explained(text='DIMSE with "move": the port.', example=11112),
    "pacs.tls": Explained(text="DIMSE: true for TLS; the archive's certificate is then verified.", example=True),
    "pacs.ca_file": Explained(
        text="PEM file of the certificates to trust, instead of the public ones.", example="hospital-ca.pem"
    ),
    "pacs.client_certificate": Explained(
        text="PEM file (0600) with our certificate and its key, where the archive asks for one.", example="client.pem"
    ),
    "pacs.modalities": Explained(
        text="Modalities that are fetched; left out: every one that is taken in.", example=["CR", "DX"]
    ),
    "pacs.study_date": Explained(
        text="Without a label table: studies of these days, YYYYMMDD-YYYYMMDD; either end may be left out.",
        example="20200101-20201231",
    ),
    "pacs.timeout_s": Explained(text="Seconds without a byte or an answer before a request is given up.", example=30.0),
    "pacs.patience_s": Explained(text="Seconds to wait for an archive that is down.", example=300.0),
    "pacs.max_file_mib": Explained(text="MiB; larger files are left out.", example=1024),
    "pacs.max_total_gib": Explained(text="GiB on disk, of all files together.", example=200.0),
    "compute.device": Explained(
        text='"auto": a GPU where torch sees one, else the CPU; "cpu"; or one GPU by its number, "cuda:0".'
    ),
    "cohort.test_fraction": Explained(
        text="Share of patients never trained on, 0 to below 1, chosen by a keyed hash of the patient. A split column "
        "of an NPZ file wins."
    ),
    "cohort.exclude": Explained(
        text="Text file of patient identifiers, one a line: patients who have withdrawn. They are left out from the "
        "next intake on; what was released and spent before stays. Readable by the site's user alone (0600).",
        example="withdrawn.txt",
    ),
    "deidentify.burned_in": Explained(
        text='"blank": text in the pixels is blanked until none is found. "quarantine": images with text are left '
        'out. "trust": the trusted modalities are not searched.'
    ),
    "deidentify.trusted_modalities": Explained(text='With "trust" only: the modalities that are not searched.'),
    "deidentify.modalities": Explained(text="Modalities that are taken; an image of any other is left out."),
    "deidentify.held_modalities": Explained(
        text="Modalities that usually carry text: their images wait until a person has looked at them "
        "(ghostnet site review)."
    ),
    "policy.max_epsilon": Explained(
        text="The most that all runs together may spend of one patient's privacy budget, ever. People decide this."
    ),
    "policy.delta": Explained(
        text="At which max_epsilon is counted; well below 1 divided by the hospital's number of patients."
    ),
    "policy.min_noise_multiplier": Explained(text="Least noise of every mechanism, in multiples of its sensitivity."),
    "policy.max_rounds": Explained(text="Rounds of one run."),
    "policy.max_steps": Explained(text="Discriminator steps of one run."),
    "policy.max_sampling_rate": Explained(text="Largest chance of a patient to join a step."),
    "policy.max_coalition_epsilon": Explained(
        text='Only for plans with share = "pooled": the most that all runs together may tell the coordinator and all '
        "other hospitals, who could put their parts together; 0: this hospital takes no part in pooled runs."
    ),
    "policy.peers": Explained(
        text='Only for plans with share = "pooled": "name=public key" of every other hospital; empty: as '
        "the coordinator says first."
    ),
    "policy.approved_plans": Explained(
        text='The SHA-256 of each plan that a person has approved (ghostnet plan check prints it), or "any".'
    ),
    "policy.witness": Explained(
        text="File outside the state folder in which every ledger entry is noted too, by appending a line: a ledger "
        "that was restored from an older copy, copied or lost is then refused. Left out: beside the state folder, with "
        "its name and .witness. Better: on another disk, append-only (chattr +a), or on a WORM share that takes "
        "appends. Never restore it from a backup.",
        example="/mnt/other-disk/north.witness",
    ),
    "policy.allow_real_reference": Explained(
        text="true: a simulation may also train a classifier on the real images, outside the budget; not for patients."
    ),
}


@dataclass(frozen=True, kw_only=True)
class ConfigKey:
    """A key that `client.config` reads; `default` is MISSING where it has none."""

    dotted: str
    default: Any


def config_keys() -> Iterator[ConfigKey]:
    """Every key of site.toml, table by table, as `client.config` reads them."""
    yield from _keys(SiteConfig, "")


def site_text(values: Mapping[str, object]) -> str:
    """A site.toml with every key and its explanation.

    Args:
        values: by dotted key ("data.path"); paths as text. "data.kind" decides which keys are shown as left out.

    Returns:
        TOML. A key that is neither given nor has a default is behind a "#", with an example.
    """
    kind, lines, table = str(values.get("data.kind", "dicom")), [], None
    for key in config_keys():
        named = key.dotted.rpartition(".")[0]
        if named != table:
            table = named
            off = (table == "pacs" and kind != "pacs") or (table == "labels" and kind == "npz")
            lines += [*_comment(TABLES[table]), *([f"{'# ' if off else ''}[{table}]"] if table else []), ""]
        lines += [*_comment(KEYS[key.dotted].text), _line(key, values, kind), ""]
    return "\n".join(lines)


def _line(key: ConfigKey, values: Mapping[str, object], kind: str) -> str:
    name, explained = key.dotted.rpartition(".")[2], KEYS[key.dotted]
    if key.dotted in values:
        return f"{name} = {_toml(values[key.dotted])}"
    shown = explained.example if explained.example is not None else key.default
    applies = kind in explained.kinds and explained.example is None and shown is not MISSING
    return f"{'' if applies else '# '}{name} = {_toml(shown)}"


def _keys(cls: type[Any], table: str) -> Iterator[ConfigKey]:
    """Plain keys first: in TOML they cannot follow a table."""
    hints, nested = get_type_hints(cls), []
    for spec in dataclasses.fields(cls):
        dotted = f"{table}.{spec.name}" if table else spec.name
        inner = next((hint for hint in (hints[spec.name], *get_args(hints[spec.name])) if _is_table(hint)), None)
        if inner is not None:
            nested.append((inner, dotted))
        elif dotted != "source":
            default = spec.default_factory() if spec.default_factory is not MISSING else spec.default
            yield ConfigKey(dotted=dotted, default=default)
    for inner, dotted in nested:
        yield from _keys(inner, dotted)


def _is_table(hint: object) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_toml(str(key))} = {_toml(entry)}" for key, entry in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
