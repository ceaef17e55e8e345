"""The model card that is published with a sampler, for people who find only the folder."""

from __future__ import annotations

import json

from ghostnet.accounting.strength import epsilon_text, strength
from ghostnet.evidence.statement import not_covered
from ghostnet.plan import Plan, WarmStartSpec
from ghostnet.plan.unit import unit_line

_CARD = """\
---
pretty_name: {quoted}
library_name: ghostnet
pipeline_tag: unconditional-image-generation
tags: [synthetic, medical-images, differential-privacy, federated-learning]
license: other
---

# {name}

A generator of SYNTHETIC images, trained by several hospitals together with GhostNet. No image left a hospital.
**Not for diagnostic use.** Every image it draws is artificial.

![samples](samples.png)

| | |
|---|---|
{rows}

## Use

    from ghostnet import Sampler
    images = Sampler.load("path/of/this/folder").sample(16, label="{label}", seed=0)

or `ghostnet sample FOLDER -n 100 --format png -o samples`.

## Privacy

The plan's budget is epsilon {epsilon} at delta {delta:g} at one hospital, {unit}: {strength}.
What was really spent, by which mechanisms, and each hospital's signature are in `certificate.json`; check it offline
with `ghostnet verify FOLDER`.

Not covered:

{not_covered}

## Limits

The images show what the budget lets through: rare findings and fine detail may be missing or wrong. {trained}
Judge any use by testing on real images; the run's report does so for {tasks}, with a verdict in words.
"""


def model_card(plan: Plan, label_prior: tuple[float, ...], weights_sha256: str) -> str:
    """The card as Markdown; nothing but these arguments decides it.

    Args:
        plan: what was trained.
        label_prior: PUBLIC share of each class that the sampler draws.
        weights_sha256: of model.safetensors.
    """
    image = plan.image
    masks = f", with {image.mask_channels} mask(s)" if image.mask_channels else ""
    rows = {
        "images": f"{image.size} x {image.size} pixels, {image.channels} channel(s), range {image.range}{masks}",
        "classes": ", ".join(f"{name} ({share:.0%})" for name, share in zip(image.labels, label_prior, strict=True)),
        "network": f"{plan.model.architecture}, width {plan.model.generator_width}, latent {plan.model.latent}",
        "plan (SHA-256)": f"`{plan.hash()}`",
        "weights (SHA-256)": f"`{weights_sha256}`",
    }
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())
    return _CARD.format(
        name=_cell(plan.name),
        rows=table,
        label=_cell(image.labels[0]),
        tasks=" and ".join(plan.utility.tasks),
        epsilon=epsilon_text(plan.privacy.epsilon),
        strength=strength(plan.privacy.epsilon),
        quoted=json.dumps(_cell(plan.name)),
        trained=_trained(plan.warm_start, steps=plan.privacy.steps),
        delta=plan.privacy.delta,
        unit=unit_line(plan.privacy.unit),
        not_covered="\n".join(f"- {line}" for line in not_covered(plan)),
    )


def _trained(warm: WarmStartSpec, *, steps: int) -> str:
    """What the images come from, and how coarse it was."""
    parts = [f"one noised sum of images of {warm.feature_size} pixels a side"] if warm.noise_multiplier else []
    parts += [f"{steps} noised discriminator steps"] if steps else []
    return f"They come from {' and '.join(parts)} at each hospital." if parts else ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
