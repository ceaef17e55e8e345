"""Exact figures that only a simulation can have, because one person holds all its data.

They are not differentially private and would not exist in a deployment; the report says so beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from client.config import SiteConfig
from client.site import Site
from ghostnet.cohort import Cohort
from ghostnet.errors import PolicyError
from ghostnet.plan import Plan
from ghostnet.progress import Progress
from ghostnet.sampler import Sampler
from ghostnet.utility import classification, classifier
from ghostnet.utility.synthetic import train_on_synthetic


def exact_figures(plan: Plan, configs: Sequence[SiteConfig], sampler: Path, progress: Progress) -> dict[str, float]:
    """Train on synthetic and on real images, test on all hospitals' test patients.

    Returns:
        "<metric>_exact" of the classifier trained on synthetic images, "<metric>_real" of one trained on the real ones.

    Raises:
        PolicyError: a hospital does not allow it.
    """
    for config in configs:
        if not config.policy.allow_real_reference:
            raise PolicyError(
                f"{config.name} does not allow exact figures; set [policy].allow_real_reference in its site.toml, "
                "or [utility].real_reference = false in the plan"
            )
    cohorts = [Site(config, progress=progress).prepare(plan.image) for config in configs]
    train = _together([c.train for c in cohorts])
    test = _together([c.test for c in cohorts])
    classes = len(plan.image.labels)
    synthetic, _ = train_on_synthetic(Sampler.load(sampler).generator, plan, progress)
    real = classifier.train_classifier(
        train.images, train.labels, classes, plan.utility.classifier_steps, plan.seed, channels=plan.image.channels
    )
    figures: dict[str, float] = {}
    for name, model in (("exact", synthetic), ("real", real)):
        exact = classification.exact_figures(model, test, classes)
        for metric in ("auc", "accuracy"):
            for weighing in ("", "_by_patient"):
                value = exact.get(metric + weighing)
                if value is not None:
                    figures[f"{metric}_{name}{weighing}"] = value
    return figures


def _together(cohorts: Sequence[Cohort]) -> Cohort:
    offsets = [sum(c.patients for c in cohorts[:i]) for i in range(len(cohorts))]
    return Cohort(
        images=torch.cat([c.images for c in cohorts]),
        labels=torch.cat([c.labels for c in cohorts]),
        owners=torch.cat([c.owners + offset for c, offset in zip(cohorts, offsets, strict=True)]),
        patients=sum(c.patients for c in cohorts),
    )
