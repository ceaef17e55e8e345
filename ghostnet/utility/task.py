"""A utility task: what synthetic images are good for, trained on them and tested on real ones in the hospitals.

The coordinator trains a model on synthetic images. It travels to each hospital as named arrays; the hospital runs it on
its test patients and releases one noisy vector of counts (`catalogue.UTILITY_COUNTS`). The figures come from the sum of
the hospitals' vectors: post-processing.

Each task is a file of this room that ends in a `TASK`, and a line of `ghostnet.plan.tasks.REGISTRY`. Plan, catalogue,
site, coordinator, report and audit iterate a plan's tasks; none of them knows a task by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ghostnet.exchange.arrays import Arrays, check_arrays, load_arrays, to_arrays
from ghostnet.plan import ImageSpec, Plan, UtilitySpec
from ghostnet.plan.tasks import REGISTRY
from ghostnet.progress import Progress
from ghostnet.training.cohort import Cohort

_NETWORK, _NUMBERS = "network.", "numbers."

Figures = Mapping[str, Any]
"""A task's part of report.json; see `Task.figures`."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """The settings of a plan's tasks; all of them are public.

    Attributes:
        image: size, channels, masks and classes of the images.
        utility: how much is drawn and trained, and how finely is counted.
        seed: of drawing and training.
    """

    image: ImageSpec
    utility: UtilitySpec
    seed: int


@dataclass(frozen=True, kw_only=True)
class TaskModel:
    """A model of a task, as it travels; all of it is public.

    Attributes:
        network: trained on synthetic images.
        numbers: further numbers that counting needs (the edges of score bins), float, by name.
    """

    network: nn.Module
    numbers: Mapping[str, torch.Tensor]

    def to_arrays(self) -> Arrays:
        """Named float32 arrays; `received_models` reads them."""
        network = {f"{_NETWORK}{name}": array for name, array in to_arrays(self.network).items()}
        numbers = {f"{_NUMBERS}{name}": value.numpy().astype(np.float32) for name, value in self.numbers.items()}
        return network | numbers


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A task's figures as the page shows them.

    Attributes:
        metric: name of the headline's metric.
        rows: bars of the chart: (name, value or None, interval, chance or None), the headline's first.
        chart_words: of the chart, for those who cannot see it.
        simulated: (name, value) of exact figures, in a simulation.
    """

    metric: str
    rows: Sequence[tuple[str, float | None, Sequence[float], float | None]]
    chart_words: str
    simulated: Sequence[tuple[str, float]]


class Train(Protocol):
    """Trains a task's network on labelled images."""

    def __call__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        spec: TaskSpec,
        *,
        seed: int,
        device: torch.device | str,
        progress: Progress,
    ) -> nn.Module:
        """Trains.

        Args:
            images: float (n, planes, h, w), synthetic or, for a reference in a simulation, real; masks are the planes
                after the image channels.
            labels: int64 (n,).
            spec: the plan's part.
            seed: PUBLIC, of initial weights, batches and augmentation.
            device: where it is trained and stays.
            progress: told the steps.

        Returns:
            The network in evaluation mode.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """A utility task: the functions and facts that are particular to it.

    Attributes:
        model_name: what its model is called in words ("classifier").
        untrained: a model with initial weights and any numbers, of exactly the form that a trained one has: what
            arrives must have its names, shapes and types.
        train: on labelled images.
        numbers: (trained network, draw, spec) -> what belongs to it beside its weights; draw(n) gives n synthetic
            images (n, planes, h, w) that it was not trained on.
        cells: length of one patient's vector of counts, and of a release.
        counts: (model, test patients, spec) -> float32 (patients, cells), SENSITIVE. Each row has norm at most 1
            whatever the model holds, and is a function of that patient's images and of public numbers alone, to the
            bit (privacy/blocks.py). It adds no noise.
        figures: (noisy counts summed over the hospitals, spec, standard deviation of the noise of a cell) -> the
            task's part of report.json: at least metric, value (None where noise outnumbers the patients), interval,
            chance, informative, released.
        exact: (network, cohort, spec) -> figures without noise, by name; None where there is none. SENSITIVE: for the
            hospital's own report, and for simulations on data that is public. A figure that weighs each patient once
            ends in "by_patient".
        exact_names: (key of `exact`, its name in a simulation's report with {} for which network it is of) in the order
            of the report.
        shown: the task's part of report.json -> how the page shows it.
    """

    model_name: str
    untrained: Callable[[TaskSpec], TaskModel]
    train: Train
    numbers: Callable[[nn.Module, Callable[[int], torch.Tensor], TaskSpec], dict[str, torch.Tensor]]
    cells: Callable[[TaskSpec], int]
    counts: Callable[[TaskModel, Cohort, TaskSpec], torch.Tensor]
    figures: Callable[[torch.Tensor, TaskSpec, float], dict[str, object]]
    exact: Callable[[nn.Module, Cohort, TaskSpec], dict[str, float | None]]
    exact_names: Callable[[TaskSpec], Sequence[tuple[str, str]]]
    shown: Callable[[Figures], Shown]


def find_task(name: str) -> Task:
    """The task of a name that the registry has."""
    found: Task = import_module(REGISTRY[name].module).TASK
    return found


def task_spec(plan: Plan) -> TaskSpec:
    """The settings of the plan's tasks."""
    return TaskSpec(image=plan.image, utility=plan.utility, seed=plan.seed)


def models_to_arrays(models: Mapping[str, TaskModel]) -> Arrays:
    """Models by task as the arrays of one request."""
    return {f"{task}.{name}": array for task, model in models.items() for name, array in model.to_arrays().items()}


def received_models(names: Sequence[str], arrays: Mapping[str, np.ndarray], spec: TaskSpec) -> dict[str, TaskModel]:
    """Models that a coordinator sent, of exactly the plan's form: the size of an answer must not vary.

    Args:
        names: of the tasks.
        arrays: of the request, from `models_to_arrays`; what belongs to no such task is not looked at.
        spec: the plan's part.

    Raises:
        FederationError: a name, a shape or a type is not that of the task's model, or a value is not finite.
    """
    return {name: _received(find_task(name), _under(f"{name}.", arrays), spec) for name in names}


def _received(task: Task, arrays: Arrays, spec: TaskSpec) -> TaskModel:
    form = task.untrained(spec)
    load_arrays(form.network, _under(_NETWORK, arrays))
    form.network.eval().requires_grad_(False)  # dropout's masks come from a seed that is no secret, by a row's place
    numbers = _under(_NUMBERS, arrays)
    check_arrays(numbers, {name: np.zeros(value.shape, dtype=np.float32) for name, value in form.numbers.items()})
    return TaskModel(
        network=form.network, numbers={name: torch.from_numpy(np.array(value)) for name, value in numbers.items()}
    )


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
