"""One tiny plan an architecture, real in every part."""

from __future__ import annotations

import dataclasses

import torch

from ghostnet.models import REGISTRY, architecture
from ghostnet.plan import Plan
from ghostnet.training.cohort import Cohort
from tests.plans import tiny_plan, tiny_plan_text

ARCHITECTURES = tuple(REGISTRY)
SIZES = {name: min(architecture(name).sizes) for name in ARCHITECTURES}
"""The smallest that each draws."""


def network_plan_text(name: str, **replacements: str) -> str:
    """The tiny plan's TOML for an architecture at its smallest size, its networks 4 channels wide."""
    norm, loss = _fitting(name)
    lines = {
        "size": f"size = {SIZES[name]}",
        "generator_width": "generator_width = 4",
        "discriminator_width": "discriminator_width = 4",
        "latent": f'latent = 8\narchitecture = "{name}"\ndiscriminator_norm = "{norm}"',
        "discriminator_steps": f'discriminator_steps = 2\nloss = "{loss}"',
    }
    return tiny_plan_text(**(lines | replacements))


def network_plan(name: str, **tables: dict[str, object]) -> Plan:
    """The same, parsed, with values of some tables replaced: network_plan("wgan", training={"weight_clip": 0.1}).

    The replacements are not checked: a test may ask for what no plan file could.
    """
    size = SIZES[name]
    norm, loss = _fitting(name)
    plan = tiny_plan()
    base: dict[str, dict[str, object]] = {
        "image": {"size": size},
        "model": {
            "architecture": name,
            "generator_width": 4,
            "discriminator_width": 4,
            "discriminator_norm": norm,
        },
        "training": {"loss": loss},
    }
    names = base.keys() | tables.keys()
    parts = {n: dataclasses.replace(getattr(plan, n), **(base.get(n, {}) | tables.get(n, {}))) for n in names}
    return dataclasses.replace(plan, **parts)


def _fitting(name: str) -> tuple[str, str]:
    """The first normalisation and the first loss that fit."""
    record = architecture(name)
    return record.norms[0], (record.losses or ("non-saturating",))[0]


def plan_cohort(plan: Plan, *, patients: int = 20, seed: int = 0) -> Cohort:
    """Patients with two images each of the plan's size, striped in class 1."""
    public = torch.Generator().manual_seed(seed)
    owners = torch.arange(2 * patients) // 2
    labels = owners % 2
    images = torch.rand(2 * patients, plan.planes, plan.image.size, plan.image.size, generator=public) - 0.5
    images[labels == 1, :, ::2] += 0.5
    return Cohort(images=images, labels=labels, owners=owners, patients=patients)
