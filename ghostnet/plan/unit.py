"""The unit of privacy in words: every page, card, statement and message takes them from here.

The unit is the patient with all their images. Data that names no patients (an NPZ file without the column `patient`, a
label table without it) cannot be grouped by patient: there each image is a unit of its own, the plan has to say so
(`[privacy] unit = "image"`), and everything made of it says so too.

A hospital whose data names patients may serve a plan with unit "image". Its mechanism groups by patient all the same,
so add/remove of one patient with all their images costs exactly what the plan says, and its statement names that unit.
Add/remove of one image of a patient who keeps others is not covered there: it changes the patient's clipped part, by up
to twice the bound.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

from ghostnet.plan.spec import Unit

UNITS: tuple[Unit, ...] = get_args(Unit)
_PROTECTS: dict[Unit, str] = {
    "patient": "per patient, with all their images",
    "image": "per image: this data names no patients",
}


def protects(unit: Unit) -> str:
    """The privacy unit, in words for people."""
    return _PROTECTS[unit]


def adjacency(unit: Unit) -> str:
    """The adjacency: the difference between two neighbouring data sets."""
    return f"add/remove one {unit}"


def unit_facts(unit: Unit) -> dict[str, str]:
    """The three fields that stand beside an epsilon in documents."""
    return {"unit": unit, "adjacency": adjacency(unit), "protects": protects(unit)}


def unit_line(unit: Unit) -> str:
    """The same for a sentence: "epsilon 4 at delta 1e-6, " + this."""
    return f"{protects(unit)}; {adjacency(unit)}"


def lifetime_unit(units: Collection[Unit]) -> Unit:
    """The unit that holds for several runs on one cohort together: the weaker one."""
    return "image" if "image" in units else "patient"


def lifetime_protects(units: Collection[Unit]) -> str:
    """The privacy unit of several runs on one cohort together.

    Runs of either unit compose in one sum, which is right for a person with one image. In a run per image a patient
    with k images counts k times, so the sum says nothing of all of them together.
    """
    if len(set(units)) < 2:
        return protects(lifetime_unit(units))
    return (
        "per image: in some runs this data named no patients; for all images of a patient with k of them, those runs "
        "cost up to k times as much"
    )
