"""Exact figures that only a simulation can have, because one person holds all its data.

They are not differentially private and would not exist in a deployment; the report says so beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from client.config import SiteConfig
from client.site import Site
from ghostnet.accounting.catalogue import counted_tasks
from ghostnet.errors import PolicyError
from ghostnet.plan import Plan
from ghostnet.progress import Progress, silent
from ghostnet.report.html import draw_figures, write_report
from ghostnet.sampler.sampler import Sampler
from ghostnet.training.cohort import Cohort
from ghostnet.training.device import AUTO
from ghostnet.utility import classifier, fidelity
from ghostnet.utility.synthetic import Synthetic, draw_labels, train_on_synthetic
from ghostnet.utility.task import Task, find_task, task_spec

FIDELITY_METHOD = (
    "exact, simulation only, not private: synthetic against real test images, as many of each class, seen through the "
    "64 averaged features of the classifier trained on the real images; not comparable with a published FID"
)

REFERENCE_SEED = 0
"""Of the first weights of what is trained on real images, whatever the plan's seed: fidelity is measured through a
classifier's features, so that runs on the same images are seen through networks that differ by the images' order alone.
"""


@dataclass(frozen=True, kw_only=True)
class ExactFigures:
    """Figures without noise, of all hospitals together.

    Attributes:
        utility: of each task, "<metric>_exact" of the model trained on synthetic images, "<metric>_real" of one trained
            on the real ones.
        fidelity: distance of synthetic from real test images, and of real training images from them ("real_..."),
            which no generator can be expected to beat.
    """

    utility: dict[str, dict[str, float]]
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
    source = Synthetic(
        generator=Sampler.load(sampler, device=device).generator,
        sizes=plan.networks,
        label_prior=plan.image.label_prior,
    )
    spec, found_device = task_spec(plan), next(source.generator.parameters()).device
    figures: dict[str, dict[str, float]] = {}
    looking: list[classifier.Classifier] = []  # on the real images; the first one measures fidelity
    for name in counted_tasks(plan):
        task = find_task(name)
        synthetic = train_on_synthetic(task, source, spec, progress).network
        real = task.train(train.images, train.labels, spec, seed=REFERENCE_SEED, device=found_device, progress=silent)
        figures[name] = _exact(task, {"exact": synthetic, "real": real}, test, plan)
        looking += [real] if isinstance(real, classifier.Classifier) else []
    network = looking[0] if looking else _real_classifier(plan, train, found_device)
    return ExactFigures(utility=figures, fidelity=_fidelity(plan, source, network, train, test))


def _exact(task: Task, networks: Mapping[str, torch.nn.Module], test: Cohort, plan: Plan) -> dict[str, float]:
    """Exact figures of each network as the report names them; where images name no patients, none by patient."""
    spec, found = task_spec(plan), {}
    for words, network in networks.items():
        exact = task.exact(network, test, spec)
        for key, shown in task.exact_names(spec):
            value = exact.get(key)
            if value is not None and (plan.privacy.unit == "patient" or not key.endswith("by_patient")):
                found[shown.format(words)] = value
    return found


def _real_classifier(plan: Plan, train: Cohort, device: torch.device) -> classifier.Classifier:
    """The network that fidelity is measured through, where no task of the plan trains it."""
    return classifier.train_classifier(
        train.images,
        train.labels,
        len(plan.image.labels),
        plan.utility.classifier_steps,
        REFERENCE_SEED,
        channels=plan.image.channels,
        device=device,
    )


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
        progress: told the steps of training on synthetic images.
        device: where all models are trained.
        again: whether they replace those of the run; it is said in the report, because what the hospitals released
            remains of the models of the run.
    """
    report = json.loads((out / "report.json").read_text())
    exact = exact_figures(plan, configs, out / "sampler", progress, device=device)
    for name, figures in exact.utility.items():
        found = report["utility"].setdefault(name, {})
        found["simulation"] = figures
        if again:
            found["simulation_again"] = True
    report["fidelity"] = {**exact.fidelity, "method": FIDELITY_METHOD}
    write_report(out, report, draw_figures(Sampler.load(out / "sampler")))


def _fidelity(
    plan: Plan, source: Synthetic, model: classifier.Classifier, train: Cohort, test: Cohort
) -> dict[str, float]:
    """Through the features of the classifier trained on real images; labels of the fakes as among the test images."""
    n = min(len(test.labels), fidelity.MAX_IMAGES)
    public = torch.Generator().manual_seed(plan.seed + 2)
    rows = torch.randperm(len(test.labels), generator=public)[:n]
    fakes = draw_labels(source, test.labels[rows], seed=plan.seed + 2)
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
