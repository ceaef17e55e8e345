"""Exact figures that only a simulation can have, because one person holds all its data.

They are not differentially private and would not exist in a deployment; the report says so beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from client.config import SiteConfig
from client.site import Site
from ghostnet.errors import PolicyError
from ghostnet.plan import Plan
from ghostnet.progress import Progress
from ghostnet.report.html import draw_figures, write_report
from ghostnet.sampler.sampler import Sampler
from ghostnet.training.cohort import Cohort
from ghostnet.training.device import AUTO
from ghostnet.utility import classification, classifier, fidelity
from ghostnet.utility.synthetic import draw_labels, train_on_synthetic

FIDELITY_METHOD = (
    "exact, simulation only, not private: synthetic against real test images, as many of each class, seen through the "
    "64 averaged features of the classifier trained on the real images; not comparable with a published FID"
)

REFERENCE_SEED = 0
"""Of the first weights of the classifier trained on real images, whatever the plan's seed: fidelity is measured through
its features, so that runs on the same images are seen through networks that differ by the images' order alone."""


@dataclass(frozen=True, kw_only=True)
class ExactFigures:
    """Figures without noise, of all hospitals together.

    Attributes:
        classification: "<metric>_exact" of the classifier trained on synthetic images, "<metric>_real" of one trained
            on the real ones.
        fidelity: distance of synthetic from real test images, and of real training images from them ("real_..."),
            which no generator can be expected to beat.
    """

    classification: dict[str, float]
    fidelity: dict[str, float]


def exact_figures(
    plan: Plan, configs: Sequence[SiteConfig], sampler: Path, progress: Progress, *, device: str = AUTO
) -> ExactFigures:
    """Train on synthetic and on real images, test on all hospitals' test patients.

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
    generator = Sampler.load(sampler, device=device).generator
    synthetic, _ = train_on_synthetic(generator, plan, progress)
    real = classifier.train_classifier(
        train.images,
        train.labels,
        classes,
        plan.utility.classifier_steps,
        REFERENCE_SEED,
        channels=plan.image.channels,
        device=next(generator.parameters()).device,
    )
    figures: dict[str, float] = {}
    for name, model in (("exact", synthetic), ("real", real)):
        exact = classification.exact_figures(model, test, classes)
        figures |= {shown.format(name): exact[key] for key, shown in _shown(plan) if exact.get(key) is not None}
    return ExactFigures(classification=figures, fidelity=_fidelity(plan, generator, real, train, test))


def add_to_report(
    out: Path,
    plan: Plan,
    configs: Sequence[SiteConfig],
    progress: Progress,
    *,
    device: str = AUTO,
    again: bool = False,
) -> None:
    """Adds exact figures to a finished run's report.json and report.html.

    Args:
        out: the run's folder.
        plan: its plan.
        configs: its hospitals.
        progress: told the classifiers' steps.
        device: where both classifiers are trained.
        again: whether they replace those of the run; it is said in the report, because what the hospitals released
            remains of the classifier of the run.
    """
    report = json.loads((out / "report.json").read_text())
    exact = exact_figures(plan, configs, out / "sampler", progress, device=device)
    classified = report["utility"].setdefault("classification", {})
    classified["simulation"] = exact.classification
    if again:
        classified["simulation_again"] = True
    report["fidelity"] = {**exact.fidelity, "method": FIDELITY_METHOD}
    write_report(out, report, draw_figures(Sampler.load(out / "sampler")))


def _shown(plan: Plan) -> list[tuple[str, str]]:
    """(key of the exact figures, name in the report with a place for which classifier it is)."""
    labels = plan.image.labels
    named = [("auc", "auc_{}"), ("macro_auc", "macro_auc_{}")]
    if plan.privacy.unit == "patient":
        named += [("auc_by_patient", "auc_{}_by_patient")]
    named += [("accuracy", "accuracy_{}"), ("balanced_accuracy", "balanced_accuracy_{}")]
    for c, label in enumerate(labels):
        named += [(f"auc_{c}", f"auc_{{}} of {label}"), (f"recall_{c}", f"recall_{{}} of {label}")]
    return named


def _fidelity(
    plan: Plan, generator: torch.nn.Module, model: classifier.Classifier, train: Cohort, test: Cohort
) -> dict[str, float]:
    """Through the features of the classifier trained on real images; labels of the fakes as among the test images."""
    n = min(len(test.labels), fidelity.LARGEST_SET)
    public = torch.Generator().manual_seed(plan.seed + 2)
    rows = torch.randperm(len(test.labels), generator=public)[:n]
    fakes = draw_labels(generator, plan, test.labels[rows], seed=plan.seed + 2)
    others = torch.randperm(len(train.labels), generator=public)[:n]
    real, synthetic, trained = (
        fidelity.image_features(model, images) for images in (test.images[rows], fakes, train.images[others])
    )
    floor = fidelity.compare(real, trained)
    return {**asdict(fidelity.compare(real, synthetic)), "real_frechet": floor.frechet, "real_kernel": floor.kernel}


def _together(cohorts: Sequence[Cohort]) -> Cohort:
    offsets = [sum(c.patients for c in cohorts[:i]) for i in range(len(cohorts))]
    return Cohort(
        images=torch.cat([c.images for c in cohorts]),
        labels=torch.cat([c.labels for c in cohorts]),
        owners=torch.cat([c.owners + offset for c, offset in zip(cohorts, offsets, strict=True)]),
        patients=sum(c.patients for c in cohorts),
    )
