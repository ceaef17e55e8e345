"""One tiny plan an architecture, real in every part."""

from __future__ import annotations

import dataclasses

import torch

from ghostnet.plan import Architecture, Plan
from ghostnet.training.cohort import Cohort
from tests.plans import tiny_plan, tiny_plan_text

ARCHITECTURES: tuple[Architecture, ...] = ("dcgan", "wgan", "wgan-gp", "stylegan", "keras28")
SIZES = {architecture: 32 if architecture == "stylegan" else 28 for architecture in ARCHITECTURES}
"""The smallest that each draws."""


def network_plan_text(architecture: str, **replacements: str) -> str:
    """The tiny plan's TOML for an architecture at its smallest size, its networks 4 channels wide."""
    norm = "none" if architecture in ("stylegan", "keras28") else "group"
    loss = "wasserstein" if architecture.startswith("wgan") else "non-saturating"
    lines = {
        "size": f"size = {SIZES[architecture]}",
        "generator_width": "generator_width = 4",
        "discriminator_width": "discriminator_width = 4",
        "latent": f'latent = 8\narchitecture = "{architecture}"\ndiscriminator_norm = "{norm}"',
        "discriminator_steps": f'discriminator_steps = 2\nloss = "{loss}"',
    }
    return tiny_plan_text(**(lines | replacements))


def network_plan(architecture: str, **tables: dict[str, object]) -> Plan:
    """The same, parsed, with values of some tables replaced: network_plan("wgan", training={"weight_clip": 0.1}).

    The replacements are not checked: a test may ask for what no plan file could.
    """
    size = SIZES[architecture]
    norm = "none" if architecture in ("stylegan", "keras28") else "group"
    loss = "wasserstein" if architecture.startswith("wgan") else "non-saturating"
    plan = tiny_plan()
    base: dict[str, dict[str, object]] = {
        "image": {"size": size},
        "model": {
            "architecture": architecture,
            "generator_width": 4,
            "discriminator_width": 4,
            "discriminator_norm": norm,
        },
        "training": {"loss": loss},
    }
    names = base.keys() | tables.keys()
    parts = {n: dataclasses.replace(getattr(plan, n), **(base.get(n, {}) | tables.get(n, {}))) for n in names}
    return dataclasses.replace(plan, **parts)


def plan_cohort(plan: Plan, *, patients: int = 20, seed: int = 0) -> Cohort:
    """Patients with two images each of the plan's size, striped in class 1."""
    public = torch.Generator().manual_seed(seed)
    owners = torch.arange(2 * patients) // 2
    labels = owners % 2
    images = torch.rand(2 * patients, plan.planes, plan.image.size, plan.image.size, generator=public) - 0.5
    images[labels == 1, :, ::2] += 0.5
    return Cohort(images=images, labels=labels, owners=owners, patients=patients)
