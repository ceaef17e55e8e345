"""site.toml: what one hospital has, where, and what it allows. Parsed once, at the edge."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from client.deidentify.headers import BurnedIn, Modality
from client.policy import PolicySpec
from ghostnet.errors import SiteError
from ghostnet.tables import check_number, read_table

Kind = Literal["dicom", "npz"]

_NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the images are."""

    kind: Kind  # "dicom": a folder, read recursively; "npz": one file
    path: Path  # relative to site.toml
    labels: Path | None = None  # dicom only: CSV with the columns image,label[,mask]


@dataclass(frozen=True, kw_only=True)
class CohortSpec:
    """How patients are kept apart."""

    test_fraction: float = 0.2  # share of patients never trained on, by keyed hash; a "split" column wins


@dataclass(frozen=True, kw_only=True)
class DeidentifySpec:
    """What is done about identifiers in the pixels. Headers are always dropped."""

    burned_in: BurnedIn = "blank"  # "blank" text until none is found, "quarantine" any, or "trust" (no search)
    trusted_modalities: tuple[Modality, ...] = ()  # with "trust": the modalities that are not searched
    modalities: tuple[Modality, ...] = ("CR", "DX", "MG", "CT", "MR")  # taken at all; others are quarantined


@dataclass(frozen=True, kw_only=True)
class SiteConfig:
    """One hospital's site.toml, with absolute paths.

    Attributes:
        name: the hospital's name in the federation; public.
        state: folder for the ledger, keys, cache, logs and the hospital's own reports.
        data: where the images are.
        cohort: how test patients are split off.
        deidentify: what is done about text in the pixels.
        policy: the hospital's limits on any plan.
        source: the file this came from.
    """

    name: str
    state: Path = Path(".")
    data: DataSpec
    cohort: CohortSpec = field(default_factory=CohortSpec)
    deidentify: DeidentifySpec = field(default_factory=DeidentifySpec)
    policy: PolicySpec
    source: Path = Path()

    @property
    def ledger_path(self) -> Path:
        """The hospital's privacy ledger."""
        return self.state / "ledger.sqlite"


def load_site(path: Path) -> SiteConfig:
    """Reads and checks a site.toml.

    Returns:
        The configuration; every path in it is absolute. Whether the data exists is seen when it is read.

    Raises:
        SiteError: the file is missing, is not TOML, or holds an unknown, missing or out-of-range value.
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
    config = _absolute(read_table(SiteConfig, raw, source=str(path), error=SiteError), path.resolve())
    _check(config, str(path))
    return config


def _absolute(config: SiteConfig, source: Path) -> SiteConfig:
    beside = source.parent
    labels = config.data.labels
    data = dataclasses.replace(
        config.data,
        path=(beside / config.data.path).resolve(),
        labels=None if labels is None else (beside / labels).resolve(),
    )
    return dataclasses.replace(config, state=(beside / config.state).resolve(), data=data, source=source)


def _check(config: SiteConfig, source: str) -> None:
    check = partial(check_number, source=source, error=SiteError)
    if not _NAME.fullmatch(config.name):
        raise SiteError(f"name = {config.name!r} is not 1 to 32 of a-z, 0-9 and '-'; change it in {source}")
    check(config.cohort.test_fraction, key="cohort.test_fraction", low=0, below=1)
    data = config.data
    if data.kind == "dicom" and data.labels is None:
        raise SiteError(f"[data].labels is missing; DICOM images need a CSV with the columns image,label in {source}")
    if data.kind == "npz" and data.labels is not None:
        raise SiteError(f"[data].labels is set for kind = 'npz', whose labels are a column; remove it from {source}")
    if config.state == data.path or (data.kind == "dicom" and config.state.is_relative_to(data.path)):
        raise SiteError(
            f"state lies inside [data].path, where it would be read as images; move one of them in {source}"
        )
    deidentify = config.deidentify
    if (deidentify.burned_in == "trust") != bool(deidentify.trusted_modalities):
        trusted = list(deidentify.trusted_modalities)
        raise SiteError(
            f"[deidentify].burned_in = {deidentify.burned_in!r} with trusted_modalities = {trusted}: "
            f'"trust" and the modalities that it is for go together; change {source}'
        )
    if not deidentify.modalities:
        raise SiteError(f"[deidentify].modalities = [] takes no image; name at least one in {source}")
