"""site.toml: what one hospital has, where, and what it allows. Parsed once, at the edge."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from client.formats import KINDS, Kind, file_format, kinds_with
from client.modalities import HELD, MODALITIES, BurnedIn, Modality
from client.pacs_config import PacsSpec, check_pacs
from client.policy import PolicySpec
from ghostnet.errors import SiteError
from ghostnet.evidence import keys
from ghostnet.evidence.faults import KEY_NAME
from ghostnet.evidence.witness import default_witness
from ghostnet.plan.keys import SET_BY_PROGRAM, Number, field_info, key, keys_of, kinds_of
from ghostnet.plan.toml import read_file, read_table
from ghostnet.training.device import AUTO, DEVICE_NAME, check_device_name

Layout = Literal["plain", "nih", "chexpert"]

DROP = "drop"
"""In `[labels]`: the image is left out."""

_KIND_WORDS = f"Kind of data: {'; '.join(f'{json.dumps(kind)}, {words}' for kind, words in KINDS.items())}."
_TABLED = kinds_with(lambda _: True)  # a label table says what their images show
_WITH_MODALITY = kinds_with(lambda known: not known.names_modality)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Table [data]."""

    kind: Annotated[
        Kind,
        key(
            _KIND_WORDS,
            example="dicom",
        ),
    ]
    path: Annotated[
        Path,
        key(
            "The image folder, read with all its subfolders, or the NPZ file.",
            kinds=tuple(kind for kind in KINDS if kind != "pacs"),
            example="images",
        ),
    ]
    labels: Annotated[
        Path | None,
        key(
            "Label table: a CSV that says which image has which label. Columns: image, label and, as needed, patient, "
            "mask, box. Without patient (pictures, NIfTI) only plans that protect each image by itself are taken. "
            "image is a path below the image folder; of a PACS: StudyInstanceUID, or that, a slash and "
            "SOPInstanceUID.",
            kinds=_TABLED,
            example="labels.csv",
        ),
    ] = None
    layout: Annotated[
        Layout,
        key(
            'Layout of the label table: "plain" (the columns above), or for images "nih" (ChestX-ray14) or "chexpert".',
            kinds=_TABLED,
        ),
    ] = "plain"
    boxes: Annotated[
        Path | None,
        key(
            "COCO JSON or CSV that says where on an image something is; drawn as a mask where the plan has masks.",
            kinds=kinds_with(lambda known: known.takes_boxes),
            example="boxes.json",
        ),
    ] = None
    modality: Annotated[
        Modality | None,
        key("Modality of every image, which such files do not say.", kinds=_WITH_MODALITY, example="DX"),
    ] = None
    frames_per_file: Annotated[
        int,
        key(
            "How many frames or slices of a file that has several are taken, evenly spaced; 1 is the middle one.",
            ge=1,
            le=64,
            kinds=kinds_with(lambda known: known.has_frames),
        ),
    ] = 1
    validation: Annotated[
        Literal["train", "test", "drop"],
        key('What the part "val" of a MedMNIST file counts as; "drop" leaves it out.', kinds=("npz",)),
    ] = "train"


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """Table [labels] (`client.intake.labels.findings`)."""

    map: Annotated[
        dict[str, str],
        key(
            "Which finding of the table is which label of the plan. Names that are the same need no line; "
            '"drop" looks past a finding.',
            example={"Effusion": "pneumonia"},
        ),
    ] = field(default_factory=dict)
    uncertain: Annotated[
        str, key('Label of an image whose only findings are uncertain (layout "chexpert"), or "drop" to leave it out.')
    ] = DROP
    missing: Annotated[
        str, key('Label of an image without a finding that stands for a label, or "drop" to leave it out.')
    ] = DROP
    several: Annotated[
        Literal["drop", "first"],
        key('An image of several labels: "drop" leaves it out, "first" takes the first in the plan\'s order.'),
    ] = "drop"


@dataclass(frozen=True, kw_only=True)
class CohortSpec:
    """Table [cohort]."""

    test_fraction: Annotated[
        Number,
        key(
            "Share of patients never trained on, chosen by a keyed hash of the patient. A split column of an NPZ file "
            "wins.",
            ge=0,
            lt=1,
        ),
    ] = 0.2
    exclude: Annotated[
        Path | None,
        key(
            "Text file of patient identifiers, one a line: patients who have withdrawn. They are left out from the "
            "next intake on; what was released and spent before stays. Readable by the site's user alone (0600).",
            example="withdrawn.txt",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DeidentifySpec:
    """Table [deidentify]. Headers are always dropped."""

    burned_in: Annotated[
        BurnedIn,
        key(
            'Text in the pixels: "blank" blanks it until none is found, "quarantine" leaves images with text out, '
            '"trust" does not search the trusted modalities.'
        ),
    ] = "blank"
    trusted_modalities: Annotated[
        tuple[Modality, ...], key('With burned_in = "trust" only: the modalities that are not searched.')
    ] = ()
    modalities: Annotated[
        tuple[Modality, ...], key("Modalities that are taken; an image of any other is left out.")
    ] = MODALITIES
    held_modalities: Annotated[
        tuple[Modality, ...],
        key(
            "Modalities that usually carry text: their images wait until a person has looked at them "
            "(ghostnet site review)."
        ),
    ] = HELD


@dataclass(frozen=True, kw_only=True)
class ComputeSpec:
    """Table [compute]."""

    device: Annotated[
        str,
        key(
            '"auto" is a GPU where torch sees one, else the CPU; "cpu"; or one GPU by its number, "cuda:0".',
            schema={"type": "string", "pattern": f"^({DEVICE_NAME.pattern})$", "default": AUTO},
        ),
    ] = AUTO


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """One hospital's site.toml, with absolute paths; `source` is the file that it came from."""

    name: Annotated[
        str,
        key(
            "The hospital's name in the federation: 1 to 32 of a-z, 0-9 and -. It is public.",
            schema={"type": "string", "pattern": f"^{keys.NAME.pattern}$"},
            example="north",
        ),
    ]
    state: Annotated[
        Path,
        key(
            "Folder for the ledger, keys, cache, log and the hospital's own reports. It lies outside the image folder, "
            "on a disk that only the site's user can read. Back up the ledger and the keys. A budget belongs to one "
            "state folder: a second site.toml over the same images has a budget of its own."
        ),
    ] = Path(".")
    data: Annotated[DataSpec, key("Where the images are. They are read and never written to.")]
    labels: Annotated[
        LabelSpec, key("How the findings of the label table become the plan's labels.", kinds=_TABLED)
    ] = field(default_factory=LabelSpec)
    pacs: Annotated[
        PacsSpec | None, key("The archive that the images are fetched from, to state/pacs.", kinds=("pacs",))
    ] = None
    cohort: Annotated[CohortSpec, key("How patients are kept apart.")] = field(default_factory=CohortSpec)
    deidentify: Annotated[
        DeidentifySpec, key("What is done about text in the pixels. Headers are dropped in any case.")
    ] = field(default_factory=DeidentifySpec)
    policy: Annotated[
        PolicySpec,
        key("The hospital's limits: they can refuse a plan, and never widen one (docs/privacy-officer.md)."),
    ]
    compute: Annotated[ComputeSpec, key("The hardware of this machine. It changes no promise and no plan.")] = field(
        default_factory=ComputeSpec
    )
    source: Annotated[Path, SET_BY_PROGRAM] = Path()

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
    raw = read_file(path, title="site file", example="site.toml", error=SiteError)
    if "source" in raw:
        raise SiteError(f"{path}: unknown key source; remove it")
    config = read_table(SiteConfig, _fitting(raw, str(path)), source=str(path), error=SiteError)
    _check_paths(config, str(path))
    config = _absolute(config, path)
    _check(config, str(path))
    return config


def _fitting(raw: dict[str, Any], source: str) -> dict[str, Any]:
    """The file's tables, after a look at which keys belong to which kind of data."""
    data = raw.get("data")
    if not isinstance(data, dict) or data.get("kind") not in (*_TABLED, "npz"):
        return raw  # what is wrong is said where types are checked
    kind = data["kind"]
    for name in (spec.name for spec in dataclasses.fields(DataSpec)):
        kinds = kinds_of(field_info(DataSpec, name)) or (kind,)
        if name in data and kind not in kinds:
            raise SiteError(
                f"[data].{name} does not go with kind = {kind!r} (only with {', '.join(kinds)}); "
                f"remove it from {source}"
            )
    if "labels" in raw and kind == "npz":
        raise SiteError(f"[labels] does not go with kind = 'npz', whose labels are numbers; remove it from {source}")
    dated = isinstance(raw.get("pacs"), dict) and "study_date" in raw["pacs"]
    if kind in _TABLED and "labels" not in data and not (kind == "pacs" and dated):
        columns = "image,label" if file_format(kind).names_patient else "image,patient,label"
        raise SiteError(f"[data].labels is missing; kind = {kind!r} needs a CSV with the columns {columns} in {source}")
    if "modality" not in data and kind in _WITH_MODALITY:
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


def _check_paths(config: SiteConfig, source: str) -> None:
    for asked in keys_of(SiteConfig):
        value: Any = config
        for part in asked.dotted.split("."):
            value = getattr(value, part, None)
        if isinstance(value, Path) and "\0" in str(value):
            raise SiteError(
                f"{asked.dotted} = {str(value)!r:.200} has a NUL character, as no path has; change {source}"
            )


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
    if not keys.is_name(config.name):
        raise SiteError(f"name = {config.name!r} is not 1 to 32 of a-z, 0-9 and '-'; change it in {source}")
    if config.name == keys.COORDINATOR:
        raise SiteError(f"name = {config.name!r} is the coordinator's in certificates; change it in {source}")
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
    if "" in (*labels.map, *labels.map.values(), labels.uncertain, labels.missing):
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
