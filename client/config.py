"""site.toml: what one hospital has, where, and what it allows. Parsed once, at the edge."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from client.modalities import HELD, MODALITIES, BurnedIn, Modality
from client.pacs_config import PacsSpec, check_pacs
from client.policy import PolicySpec
from ghostnet.errors import SiteError
from ghostnet.evidence import keys
from ghostnet.evidence.faults import KEY_NAME
from ghostnet.evidence.witness import default_witness
from ghostnet.plan.toml import check_number, read_table
from ghostnet.training.device import AUTO, check_device_name

Kind = Literal["dicom", "images", "nifti", "npz", "pacs"]
Layout = Literal["plain", "nih", "chexpert"]

DROP = "drop"
"""In `[labels]`: the image is left out."""

_MOST_FRAMES = 64

_TABLED: tuple[Kind, ...] = ("dicom", "images", "nifti", "pacs")
_GOES_WITH: dict[str, tuple[Kind, ...]] = {
    "path": ("dicom", "images", "nifti", "npz"),
    "labels": _TABLED,
    "layout": _TABLED,
    "boxes": ("dicom", "images", "pacs"),
    "modality": ("images", "nifti"),
    "frames_per_file": ("dicom", "nifti", "pacs"),
    "validation": ("npz",),
}
"""The keys of [data] that not every kind has."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the images are."""

    kind: Kind  # a folder of DICOM, of PNG and JPEG ("images") or of NIfTI, one NPZ file, or fetched from a PACS
    path: Path  # the folder, read recursively, or the file; relative to site.toml. Of a PACS: state/pacs
    labels: Path | None = None  # CSV: which image has which label; every kind but npz
    layout: Layout = "plain"  # of the label table; "nih" and "chexpert" for images
    boxes: Path | None = None  # COCO JSON or CSV: where on an image; drawn as a mask where the plan has masks
    modality: Modality | None = None  # of every image; needed for images and nifti, which do not say it
    frames_per_file: int = 1  # of a file with several frames or slices, evenly spaced; 1 is the middle one
    validation: Literal["train", "test", "drop"] = "train"  # the part "val" of a MedMNIST file


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """How the findings of the label table become labels of the plan (`client.intake.labels.findings`)."""

    map: dict[str, str] = field(default_factory=dict)  # finding = label of the plan, or "drop" to look past it
    uncertain: str = DROP  # an image whose only findings are uncertain: "drop" or a label
    missing: str = DROP  # an image without a finding that stands for a label: "drop" or a label
    several: Literal["drop", "first"] = "drop"  # an image of several labels; "first" in the plan's order


@dataclass(frozen=True, kw_only=True)
class CohortSpec:
    """How patients are kept apart."""

    test_fraction: float = 0.2  # share of patients never trained on, by keyed hash; a "split" column wins
    exclude: Path | None = None  # patient identifiers, one a line: left out from now on (withdrawal)


@dataclass(frozen=True, kw_only=True)
class DeidentifySpec:
    """What is done about identifiers in the pixels. Headers are always dropped."""

    burned_in: BurnedIn = "blank"  # "blank" text until none is found, "quarantine" any, or "trust" (no search)
    trusted_modalities: tuple[Modality, ...] = ()  # with "trust": the modalities that are not searched
    modalities: tuple[Modality, ...] = MODALITIES  # taken at all; others are quarantined
    held_modalities: tuple[Modality, ...] = HELD  # not taken before a person has looked (`ghostnet site review`)


@dataclass(frozen=True, kw_only=True)
class ComputeSpec:
    """What this hospital computes on. A plan means the same on every device."""

    device: str = AUTO  # "auto": a GPU where torch sees one; "cpu"; or "cuda:0", "cuda:1", ...


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """One hospital's site.toml, with absolute paths.

    Attributes:
        name: the hospital's name in the federation; public.
        state: folder for the ledger, keys, cache, logs and the hospital's own reports.
        data: where the images are.
        labels: how findings become labels.
        pacs: where the images are fetched from; None for every other kind.
        cohort: how test patients are split off.
        deidentify: what is done about text in the pixels.
        policy: the hospital's limits on any plan.
        compute: the device of training, fits and classifiers.
        source: the file this came from.
    """

    name: str
    state: Path = Path(".")
    data: DataSpec
    labels: LabelSpec = field(default_factory=LabelSpec)
    pacs: PacsSpec | None = None
    cohort: CohortSpec = field(default_factory=CohortSpec)
    deidentify: DeidentifySpec = field(default_factory=DeidentifySpec)
    policy: PolicySpec
    compute: ComputeSpec = field(default_factory=ComputeSpec)
    source: Path = Path()

    @property
    def ledger_path(self) -> Path:
        """The hospital's privacy ledger."""
        return self.state / "ledger.sqlite"

    @property
    def witness_path(self) -> Path:
        """The ledger's second witness, outside the state folder."""
        return self.policy.witness or default_witness(self.ledger_path)

    @property
    def key_path(self) -> Path:
        """The private key that the hospital signs with."""
        return self.state / KEY_NAME


def load_site(path: Path) -> SiteConfig:
    """Reads and checks a site.toml.

    Returns:
        The configuration; every path in it is absolute. Whether the data exists is seen when it is read.

    Raises:
        SiteError: the file is missing, is not TOML, or holds an unknown, missing or out-of-range value, or a key that
            does not fit the kind of data.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SiteError(
            f"site file {path} cannot be read ({error.__class__.__name__}); give the path of a site.toml"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SiteError(f"{path} is not valid TOML: {error}") from None
    if "source" in raw:
        raise SiteError(f"{path}: unknown key source; remove it")
    config = _absolute(read_table(SiteConfig, _fitting(raw, str(path)), source=str(path), error=SiteError), path)
    _check(config, str(path))
    return config


def _fitting(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """The file's tables, after a look at which keys belong to which kind of data."""
    data = raw.get("data")
    if not isinstance(data, dict) or data.get("kind") not in (*_TABLED, "npz"):
        return raw  # what is wrong is said where types are checked
    kind = data["kind"]
    for key, kinds in _GOES_WITH.items():
        if key in data and kind not in kinds:
            raise SiteError(
                f"[data].{key} does not go with kind = {kind!r} (only with {', '.join(kinds)}); remove it from {source}"
            )
    if "labels" in raw and kind == "npz":
        raise SiteError(f"[labels] does not go with kind = 'npz', whose labels are numbers; remove it from {source}")
    dated = isinstance(raw.get("pacs"), dict) and "study_date" in raw["pacs"]
    if kind in _TABLED and "labels" not in data and not (kind == "pacs" and dated):
        columns = "image,patient,label" if kind in ("images", "nifti") else "image,label"
        raise SiteError(f"[data].labels is missing; kind = {kind!r} needs a CSV with the columns {columns} in {source}")
    if "modality" not in data and kind in _GOES_WITH["modality"]:
        raise SiteError(f"[data].modality is missing; kind = {kind!r} needs one of {', '.join(MODALITIES)} in {source}")
    return _with_pacs(raw, data, source)


def _with_pacs(raw: dict[str, Any], data: dict[str, Any], source: str) -> dict[str, Any]:
    if data["kind"] != "pacs":
        if "pacs" in raw:
            raise SiteError(f"[pacs] is only for kind = 'pacs'; remove it from {source}, or set [data].kind")
        return raw
    if "pacs" not in raw:
        raise SiteError(f"[pacs] is missing; kind = 'pacs' needs its protocol and address in {source}")
    state = raw.get("state", ".")
    return raw | {"data": data | {"path": f"{state}/pacs" if isinstance(state, str) else "pacs"}}


def _absolute(config: SiteConfig, source: Path) -> SiteConfig:
    beside = source.resolve().parent

    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (beside / path).resolve()

    data, cohort = config.data, config.cohort
    return dataclasses.replace(
        config,
        state=(beside / config.state).resolve(),
        data=dataclasses.replace(
            data, path=(beside / data.path).resolve(), labels=absolute(data.labels), boxes=absolute(data.boxes)
        ),
        pacs=None if config.pacs is None else config.pacs.beside(beside),
        cohort=dataclasses.replace(cohort, exclude=absolute(cohort.exclude)),
        policy=dataclasses.replace(config.policy, witness=absolute(config.policy.witness)),
        source=source.resolve(),
    )


def _check(config: SiteConfig, source: str) -> None:
    check = partial(check_number, source=source, error=SiteError)
    if not keys.is_name(config.name):
        raise SiteError(f"name = {config.name!r} is not 1 to 32 of a-z, 0-9 and '-'; change it in {source}")
    if config.name == keys.COORDINATOR:
        raise SiteError(f"name = {config.name!r} is the coordinator's in certificates; change it in {source}")
    check(config.cohort.test_fraction, key="cohort.test_fraction", low=0, below=1)
    check(config.data.frames_per_file, key="data.frames_per_file", low=1, high=_MOST_FRAMES)
    data = config.data
    folder = data.kind not in ("npz", "pacs")
    if data.kind != "pacs" and (config.state == data.path or (folder and config.state.is_relative_to(data.path))):
        raise SiteError(
            f"state lies inside [data].path, where it would be read as images; move one of them in {source}"
        )
    if config.witness_path.is_relative_to(config.state):
        raise SiteError(
            f"[policy].witness lies inside the state folder and would be restored together with it; move it in {source}"
        )
    _check_labels(config.labels, data, source)
    check_device_name(config.compute.device, key=f"[compute].device in {source}")
    if config.pacs is not None:
        check_pacs(config.pacs, source)
    _check_deidentify(config.deidentify, data, source)


def _check_labels(labels: LabelSpec, data: DataSpec, source: str) -> None:
    if data.layout != "plain" and data.kind != "images":
        raise SiteError(f"[data].layout = {data.layout!r} is only for kind = 'images'; use \"plain\" in {source}")
    texts: Mapping[str, str] = {**labels.map, "uncertain": labels.uncertain, "missing": labels.missing}
    if "" in (*texts, *texts.values()):
        raise SiteError(f'[labels] has an empty text; name a finding and a label of the plan, or "drop", in {source}')
    if data.layout != "chexpert" and labels.uncertain != DROP:
        raise SiteError(
            f"[labels].uncertain = {labels.uncertain!r} has no use with layout = {data.layout!r}, whose findings are "
            f"never uncertain; remove it from {source}"
        )


def _check_deidentify(deidentify: DeidentifySpec, data: DataSpec, source: str) -> None:
    if (deidentify.burned_in == "trust") != bool(deidentify.trusted_modalities):
        trusted = list(deidentify.trusted_modalities)
        raise SiteError(
            f"[deidentify].burned_in = {deidentify.burned_in!r} with trusted_modalities = {trusted}: "
            f'"trust" and the modalities that it is for go together; change {source}'
        )
    if not deidentify.modalities:
        raise SiteError(f"[deidentify].modalities = [] takes no image; name at least one in {source}")
    if data.modality is not None and data.modality not in deidentify.modalities:
        raise SiteError(
            f"[data].modality = {data.modality!r} is not in [deidentify].modalities, so that no image would be taken; "
            f"change one of them in {source}"
        )
