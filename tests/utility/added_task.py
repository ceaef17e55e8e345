"""Share of bright images: the smallest task that there is. A linear layer tells them apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import mse_loss

from ghostnet.progress import Progress
from ghostnet.training.cohort import Cohort
from ghostnet.utility.classifier import predict
from ghostnet.utility.task import Figures, Shown, Task, TaskModel, TaskSpec

THRESHOLD = "threshold"


class Brightness(nn.Module):
    """One number an image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, c, h, w) -> (b, 1)."""
        return self.scale * images.flatten(1).mean(dim=1, keepdim=True)


def _train(
    images: torch.Tensor,
    labels: torch.Tensor,
    spec: TaskSpec,
    *,
    seed: int,
    device: torch.device | str,
    progress: Progress,
) -> nn.Module:
    network = Brightness().to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(spec.utility.classifier_steps):
        loss = mse_loss(network(images.to(device))[:, 0], labels.to(device).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress("brightness", step + 1, spec.utility.classifier_steps)
    return network.eval().requires_grad_(False)


def _numbers(network: nn.Module, draw: Callable[[int], torch.Tensor], spec: TaskSpec) -> dict[str, torch.Tensor]:
    return {THRESHOLD: predict(network, draw(32)).median().reshape(1)}


def _bright(model: TaskModel, cohort: Cohort) -> torch.Tensor:
    return (predict(model.network, cohort.images)[:, 0] > model.numbers[THRESHOLD].double()).long()


def _counts(model: TaskModel, cohort: Cohort, spec: TaskSpec) -> torch.Tensor:
    """Cells: dark, bright; a patient's images share one count."""
    images = torch.bincount(cohort.owners, minlength=cohort.patients).clamp(min=1)
    counts = torch.zeros(cohort.patients, 2)
    share = 1.0 / images[cohort.owners].float()
    return counts.index_put_((cohort.owners, _bright(model, cohort)), share, accumulate=True)


def _figures(counts: torch.Tensor, spec: TaskSpec, noise_std: float) -> dict[str, object]:
    dark, bright = (float(cell) for cell in counts)
    value = min(1.0, max(0.0, bright / max(1.0, dark + bright)))
    return {
        "metric": "share of bright images",
        "value": round(value, 4),
        "interval": [0.0, 1.0],
        "chance": 0.5,
        "informative": True,
        "released": f"noisy counts, 2 cells, standard deviation {noise_std:.3g} a cell",
    }


def _exact(network: nn.Module, cohort: Cohort, spec: TaskSpec) -> dict[str, float | None]:
    values = predict(network, cohort.images)
    return {"mean": float(values.mean()) if len(values) else None}


def _shown(found: Figures) -> Shown:
    return Shown(
        metric="bright",
        rows=[("bright", found["value"], found["interval"], found["chance"])],
        chart_words="share of bright images",
        simulated=list(found.get("simulation", {}).items()),
    )


TASK = Task(
    model_name="brightness meter",
    untrained=lambda spec: TaskModel(network=Brightness(), numbers={THRESHOLD: torch.zeros(1)}),
    train=_train,
    numbers=_numbers,
    cells=lambda spec: 2,
    counts=_counts,
    figures=_figures,
    exact=_exact,
    exact_names=lambda spec: [("mean", "mean_{}")],
    shown=_shown,
)
