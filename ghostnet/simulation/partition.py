"""One NPZ file shared out among simulated hospitals, each written as a site of its own.

Patients are never split between more hospitals than the plan counts with. The shares depend on the plan's public seed
alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.intake.readers.npz import has_patients, read_columns
from client.site_toml import write_site
from ghostnet.accounting.plan_cost import claim
from ghostnet.durable import new_folder
from ghostnet.errors import DataError
from ghostnet.plan import Plan, Unit
from ghostnet.plan.unit import protects
from ghostnet.training.device import AUTO


def write_sites(
    folder: Path, data: Path, sites: int, partition: str, plan: Plan, *, resume: bool = False, device: str = AUTO
) -> list[Path]:
    """Writes one folder a hospital with its part of the file and a site.toml.

    Args:
        folder: where the hospitals' folders go.
        data: the NPZ file.
        sites: number of hospitals; ignored by `column:NAME`, which makes one for each value.
        partition: "iid", "dirichlet:ALPHA" (labels skewed) or "column:NAME".
        plan: its epsilon and delta become the simulated hospitals' own limits; its seed decides the shares.
        resume: keep folders that an earlier attempt wrote.
        device: that the simulated hospitals compute on.

    Returns:
        The site.toml files.

    Raises:
        DataError: the file or the partition cannot be used.
        RunFolderError: the folder holds something already, or cannot be written.
    """
    if resume and folder.exists():
        return sorted(folder.glob("*/site.toml"))
    columns = read_columns(data)
    unit: Unit = "patient" if has_patients(data) else "image"
    shares = _shares(columns, sites, partition, plan.federation.hospitals_per_patient, np.random.default_rng(plan.seed))
    about = f"Written by `ghostnet simulate --data`: one simulated hospital.\nIts limits are {protects(unit)}."
    limits = _limits(plan) | {"compute.device": device}
    with new_folder(folder) as partial:
        for name, rows in shares.items():
            site = partial / name
            site.mkdir(mode=0o700)
            kept = {key: values[rows] for key, values in columns.items() if key != "patient" or unit == "patient"}
            np.savez(site / "data.npz", **kept)
            write_site(site / "site.toml", limits | {"name": name}, about=about)
    return sorted(folder.glob("*/site.toml"))


def _limits(plan: Plan) -> dict[str, object]:
    """The limits of a simulated hospital: exactly what the plan asks for."""
    limits: dict[str, object] = {
        "data.kind": "npz",
        "data.path": "data.npz",
        "policy.max_epsilon": plan.privacy.epsilon,
        "policy.delta": plan.privacy.delta,
        "policy.allow_real_reference": plan.utility.real_reference,
    }
    if plan.federation.is_pooled:
        limits["policy.max_coalition_epsilon"] = claim(plan).epsilon_pld_coalition
    return limits


def _shares(
    columns: dict[str, np.ndarray], sites: int, partition: str, hospitals_per_patient: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Row numbers of each hospital, by name."""
    kind, _, argument = partition.partition(":")
    if kind == "column":
        if argument not in columns:
            raise DataError(f"--partition column:{argument}: the file has no such column; it has {', '.join(columns)}")
        values, of_row = np.unique(columns[argument], return_inverse=True)
        shares = {_name(str(value)): np.flatnonzero(of_row == i) for i, value in enumerate(values)}
        if len(shares) != len(values):
            raise DataError(f"--partition column:{argument}: two values make the same hospital's name; rename them")
        _check_spread(columns["patient"], of_row, hospitals_per_patient)
        return shares
    patients, first, of_row = np.unique(columns["patient"], return_index=True, return_inverse=True)
    if kind == "iid" and not argument:
        site_of_patient = rng.permutation(len(patients)) % sites
    elif kind == "dirichlet":
        labels = columns["labels"][first] if "labels" in columns else np.zeros(len(patients), dtype=np.int64)
        site_of_patient = _skewed(labels, sites, _alpha(argument), rng)
    else:
        raise DataError(f"--partition {partition!r} is not iid, dirichlet:ALPHA or column:NAME")
    shares = {f"site-{i + 1}": np.flatnonzero(site_of_patient[of_row] == i) for i in range(sites)}
    for name, rows in shares.items():
        if not len(rows):
            raise DataError(f"--partition {partition} leaves {name} of {sites} without a patient; use fewer hospitals")
    return shares


def _check_spread(patients: np.ndarray, site_of_row: np.ndarray, most: int) -> None:
    """Refuses patients at more hospitals than the plan's public bound, which the certificate counts with."""
    pairs = np.unique(np.stack([np.unique(patients, return_inverse=True)[1], site_of_row]), axis=1)
    spread = int(np.bincount(pairs[0]).max())
    if spread > most:
        raise DataError(
            f"a patient is at {spread} hospitals, the plan counts with {most}; raise [federation].hospitals_per_patient"
        )


def _skewed(labels: np.ndarray, sites: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Hospital of each patient; a patient's label decides by Dirichlet(alpha) shares (Hsu, Qi and Brown 2019)."""
    site_of_patient = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_label = np.flatnonzero(labels == label)
        site_of_patient[of_label] = rng.choice(sites, size=len(of_label), p=rng.dirichlet([alpha] * sites))
    return site_of_patient


def _alpha(argument: str) -> float:
    try:
        alpha = float(argument)
    except ValueError:
        alpha = float("nan")
    if not 0 < alpha < float("inf"):
        raise DataError(f"--partition dirichlet:{argument}: {argument!r} is not a number > 0; try dirichlet:0.5")
    return alpha


def _name(value: str) -> str:
    cleaned = "".join(c if c.isalnum() else "-" for c in value.lower()).strip("-")[:32]
    if not cleaned:
        raise DataError(f"--partition column: the value {value!r} cannot name a hospital; use letters and digits")
    return cleaned
