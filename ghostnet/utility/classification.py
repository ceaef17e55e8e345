"""Train on synthetic, test on real: what hospitals release about a classifier, and the figures made from it.

A hospital runs the classifier on its test patients and releases one noisy vector of counts:

- two classes: cells (true class x score bin), with public bin edges chosen from synthetic scores alone;
- more classes: the confusion table, cells (true class x predicted class).

One patient's images share one unit of count, so a patient moves the vector by at most 1 (in L1, hence in L2). The
hospitals' vectors are added; everything after that is post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from ghostnet.errors import DataError
from ghostnet.progress import Progress
from ghostnet.training.cohort import Cohort
from ghostnet.utility.classifier import build_classifier, predict, train_classifier
from ghostnet.utility.task import Figures, Shown, Task, TaskModel, TaskSpec

__all__ = [
    "TASK",
    "build_classifier",
    "cell_count",
    "exact_figures",
    "figures",
    "patient_counts",
    "rank_auc",
    "score_edges",
    "train_classifier",
]

REPLICATES = 2000
COVERAGE = 0.95
EDGE_IMAGES = 1000  # held-out synthetic images that place the score bins
EDGES = "score_edges"
REACH = 0.8  # quantile of one side's synthetic scores up to which edges are laid
METHOD = (
    "each patient counts once; "
    "counts released with Gaussian noise and added over the hospitals; figures from the noisy counts as they are "
    f"(negative cells kept: cutting them would bias); {COVERAGE:.0%} basic bootstrap interval: patients redrawn from "
    f"the counts projected to be non-negative, fresh noise of the released size added, {REPLICATES} times"
)


def cell_count(classes: int, bins: int) -> int:
    """Length of one patient's vector of counts."""
    return 2 * bins if classes == 2 else classes * classes


def scores(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Log-odds of class 1 against class 0: float64 (n,); above 0 means class 1."""
    logits = predict(model, images)
    return logits[:, 1] - logits[:, 0]


def score_edges(model: nn.Module, images: torch.Tensor, bins: int) -> torch.Tensor:
    """Public bin edges from the scores of synthetic images that the classifier was not trained on.

    One edge, number (bins - 1) // 2, is exactly 0, the decision threshold. On each side of it the edges go in equal
    steps of log-odds up to the 80 % quantile of that side's synthetic scores. Quantiles alone would put every edge
    where synthetic scores crowd; a classifier is surer of synthetic images than of real ones, whose scores fall
    between the crowds.

    Args:
        model: a two-class classifier.
        images: synthetic, (n, c, h, w).
        bins: at least 2.

    Returns:
        float64 (bins - 1,), strictly increasing.

    Raises:
        DataError: fewer than 2 bins.
    """
    if bins < 2:
        raise DataError(f"utility.bins = {bins} cannot tell two classes apart; use at least 2")
    values = scores(model, images)
    values = values[torch.isfinite(values)]
    below = (bins - 1) // 2
    low = -_side_edges(-values[values < 0], below).flip(0)
    high = _side_edges(values[values > 0], bins - 2 - below)
    return torch.cat([low, torch.zeros(1, dtype=torch.float64), high])


def _side_edges(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """`count` edges > 0 for scores of these sizes on one side of the threshold."""
    steps = torch.arange(1, count + 1, dtype=torch.float64)
    if len(sizes) == 0:
        return steps  # nothing is known about this side: 1 unit of log-odds each
    reach = torch.quantile(sizes, REACH)
    return reach * steps / (count + 1) + steps * 1e-9  # strictly increasing even where all scores are 0


def patient_counts(
    model: nn.Module, cohort: Cohort, *, classes: int, edges: torch.Tensor | None = None
) -> torch.Tensor:
    """One vector of counts a patient, ready for `privacy.releases.noisy_sum`.

    Args:
        model: the public classifier.
        cohort: SENSITIVE; the hospital's test patients.
        classes: number of classes.
        edges: `score_edges` of the model, for two classes.

    Returns:
        float32 (patients, cells), SENSITIVE; each row >= 0 with sum 1, or 0 for a patient without images. Cell
        `true * bins + bin` for two classes, `true * classes + predicted` for more.

    Guarantee:
        Unit: patient. L1 norm of a row <= 1, whatever the images hold; a row is a function of that patient's images and
        of public numbers alone, to the bit, whatever classifier was received. Adds no noise: nothing may be released
        from it except through `noisy_sum` with norm_bound 1.
    """
    if classes == 2:
        if edges is None:
            raise DataError("two classes need the public score edges; pass edges=score_edges(...)")
        column = torch.bucketize(scores(model, cohort.images), edges.double(), right=True)  # (n,)
        columns = len(edges) + 1
    else:
        column, columns = predict(model, cohort.images).argmax(dim=1), classes
    images_of = torch.bincount(cohort.owners, minlength=cohort.patients).clamp(min=1)  # (p,)
    counts = torch.zeros(cohort.patients, classes * columns)
    if len(column):
        share = 1.0 / images_of[cohort.owners].float()
        counts.index_put_((cohort.owners, cohort.labels * columns + column), share, accumulate=True)
    return counts


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Counts as (true class, column): columns are score bins (two classes) or predicted classes."""

    classes: int
    columns: int

    def auc(self, counts: np.ndarray) -> np.ndarray:
        """(r, 2, bins) -> (r,): P(score of class 1 > score of class 0), ties within a bin one half."""
        low, high = counts[:, 0], counts[:, 1]
        below = np.cumsum(low, axis=1) - low / 2
        return _ratio((below * high).sum(1), low.sum(1) * high.sum(1))

    def recall(self, counts: np.ndarray) -> np.ndarray:
        """(r, classes, columns) -> (r, classes)."""
        return _ratio(self._right(counts), counts.sum(2))

    def accuracy(self, counts: np.ndarray) -> np.ndarray:
        """(r, classes, columns) -> (r,)."""
        return _ratio(self._right(counts).sum(1), counts.sum((1, 2)))

    def _right(self, counts: np.ndarray) -> np.ndarray:
        if self.classes > 2:
            diagonal: np.ndarray = np.einsum("rii->ri", counts)
            return diagonal
        threshold = (self.columns - 1) // 2 + 1  # first bin above the edge that is 0
        return np.stack([counts[:, 0, :threshold].sum(1), counts[:, 1, threshold:].sum(1)], axis=1)


def figures(
    noisy_counts: torch.Tensor,
    classes: int,
    bins: int,
    noise_std: float,
    *,
    labels: tuple[str, ...] = (),
    seed: int = 0,
) -> dict[str, object]:
    """Figures of usefulness, with intervals that include the noise, from the sum of the hospitals' releases.

    Args:
        noisy_counts: (cells,) sum over hospitals, noise included.
        classes: number of classes.
        bins: score bins, for two classes.
        noise_std: standard deviation of the noise of one cell of the SUM: sigma * sqrt(hospitals).
        labels: names of the classes; default their indices.
        seed: public seed of the bootstrap.

    Returns:
        A dict for report.json. `metric` is "auc" (two classes) or "accuracy"; `value`, `interval`, `chance`; and
        `accuracy`, `recall`, `patients`, `informative`. Where a class has too few patients for the noise, its figures
        are None and `informative` is False.

    Raises:
        DataError: wrong length, or a number that is not finite.
    """
    cells = np.asarray(noisy_counts, dtype=np.float64)
    if cells.shape != (cell_count(classes, bins),) or not np.isfinite(cells).all() or not noise_std >= 0:
        raise DataError(
            f"noisy counts of shape {cells.shape} with noise {noise_std} are not "
            f"{cell_count(classes, bins)} finite cells; "
            "do the hospitals and the report use the same plan?"
        )
    columns = bins if classes == 2 else classes
    table = _Table(classes=classes, columns=columns)
    observed = cells.reshape(1, classes, columns)
    replicate = _replicates(observed[0], noise_std, np.random.default_rng(seed))
    clean = _project_rows(observed[0])[None]
    totals = observed[0].sum(1)
    enough = totals > max(1.0, 3 * noise_std * np.sqrt(columns))  # else noise may outnumber the patients of a class
    interval = partial(_interval, observed=observed, clean=clean, replicate=replicate)
    metric = "auc" if classes == 2 else "accuracy"
    names = labels or tuple(map(str, range(classes)))
    accuracy = interval(table.accuracy) if enough.any() else _UNKNOWN
    headline = (interval(table.auc) if enough.all() else _UNKNOWN) if classes == 2 else accuracy
    recall = {
        name: interval(lambda c, i=i: table.recall(c)[:, i]) if enough[i] else _UNKNOWN for i, name in enumerate(names)
    }
    # The largest class's share, which always guessing it would reach; totals that are mostly noise do not tell it.
    majority = float(np.clip(totals.max() / max(totals.sum(), 1.0), 1 / classes, 1)) if enough.all() else 1 / classes
    return {
        "metric": metric,
        **headline,
        "chance": 0.5 if classes == 2 else round(majority, 4),
        "accuracy": {**accuracy, "chance": round(majority, 4)},
        "recall": recall,
        "recall_chance": round(1 / classes, 4),
        "patients": {name: round(float(total)) for name, total in zip(names, totals, strict=True)},
        "informative": bool(enough.all()),
        "noise_std": float(noise_std),
        "released": f"noisy counts, {len(cells)} cells, standard deviation {noise_std:.3g} a cell",
        "method": METHOD,
    }


_UNKNOWN: dict[str, object] = {"value": None, "interval": [0.0, 1.0]}


def _interval(figure: object, *, observed: np.ndarray, clean: np.ndarray, replicate: np.ndarray) -> dict[str, object]:
    """Value and basic bootstrap interval of one figure, kept inside [0, 1]."""
    value = float(figure(observed)[0])  # type: ignore[operator]
    spread = figure(replicate) - figure(clean)  # type: ignore[operator]
    tail = (1 - COVERAGE) / 2
    low, high = value - np.quantile(spread, [1 - tail, tail])
    value, low, high = (float(np.clip(v, 0, 1)) for v in (value, low, high))
    return {"value": round(value, 4), "interval": [round(min(low, value), 4), round(max(high, value), 4)]}


def _replicates(cells: np.ndarray, noise_std: float, rng: np.random.Generator) -> np.ndarray:
    """(classes, columns) -> (REPLICATES, classes, columns): patients drawn again, noise added again."""
    clean = _project_rows(cells)
    total = clean.sum()
    shares = (clean / total).ravel() if total > 0 else np.full(clean.size, 1 / clean.size)
    drawn = rng.multinomial(max(1, round(total)), shares, size=REPLICATES).astype(np.float64)
    return (drawn + rng.normal(0, noise_std, drawn.shape)).reshape(REPLICATES, *cells.shape)


def _project_rows(cells: np.ndarray) -> np.ndarray:
    """Nearest non-negative counts with each class's noisy total: what was probably there before the noise.

    Cutting negative cells at 0 alone would add patients; the same amount is taken from the other cells instead.
    """
    return np.stack([_project(row) for row in cells])


def _project(row: np.ndarray) -> np.ndarray:
    total = max(float(row.sum()), 0.0)
    order = np.sort(row)[::-1]
    excess = (np.cumsum(order) - total) / np.arange(1, len(row) + 1)
    shift = excess[np.flatnonzero(order - excess > 0)[-1]] if total > 0 else order[0]
    projected: np.ndarray = np.maximum(row - shift, 0)
    return projected


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    half = np.full(np.broadcast(part, whole).shape, 0.5)
    ratio: np.ndarray = np.divide(part, whole, out=half, where=whole > 0)
    return ratio


def exact_figures(model: nn.Module, cohort: Cohort, classes: int) -> dict[str, float | None]:
    """Figures without noise. SENSITIVE: for the hospital's own report, and for simulations on data that is public.

    Returns:
        `auc` (two classes; over images, by the rank statistic), `auc_by_patient` (each patient weighs 1), `accuracy`,
        `balanced_accuracy`, `recall_<class>`; for more classes `auc_<class>` against all others and their mean
        `macro_auc`. None where a class has no image.

    Guarantee:
        None: nothing here is noised, none of it may leave the hospital.
    """
    logits = predict(model, cohort.images)
    right = (logits.argmax(dim=1) == cohort.labels).double() if len(logits) else torch.zeros(0, dtype=torch.float64)
    recalls = [_mean(right[cohort.labels == c]) for c in range(classes)]
    known = [recall for recall in recalls if recall is not None]
    found: dict[str, float | None] = {
        "accuracy": _mean(right),
        "balanced_accuracy": sum(known) / len(known) if known else None,
    }
    if classes == 2:
        odds, labels = logits[:, 1] - logits[:, 0], cohort.labels
        by_patient = 1 / torch.bincount(cohort.owners, minlength=cohort.patients).clamp(min=1)[cohort.owners].double()
        found["auc"] = rank_auc(odds, labels)
        found["auc_by_patient"] = rank_auc(odds, labels, by_patient)
    else:
        against = {c: rank_auc(logits.log_softmax(dim=1)[:, c], (cohort.labels == c).long()) for c in range(classes)}
        areas = [area for area in against.values() if area is not None]
        found["macro_auc"] = sum(areas) / len(areas) if areas else None
        found |= {f"auc_{c}": area for c, area in against.items()}
    return found | {f"recall_{c}": recall for c, recall in enumerate(recalls)}


def rank_auc(values: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> float | None:
    """Area under the ROC curve: P(value of a 1 > value of a 0), ties one half (Mann-Whitney).

    Args:
        values: (n,) scores.
        labels: int (n,) 0 or 1.
        weights: (n,) weight of each; default 1.

    Returns:
        The area, or None where a class is missing.
    """
    weight = torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()
    _, place = torch.unique(values, return_inverse=True)
    cells = int(place.max()) + 1 if len(place) else 1
    low, high = (torch.zeros(cells, dtype=torch.float64).index_add_(0, place, weight * (labels == c)) for c in (0, 1))
    pairs = low.sum() * high.sum()
    if pairs <= 0:
        return None
    below = torch.cumsum(low, 0) - low / 2
    return float((below * high).sum() / pairs)


def _mean(values: torch.Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


# As a task: the functions above, given the plan's part.

METRIC_NAMES = {"auc": "area under the ROC curve", "accuracy": "accuracy"}
SIMULATION_NAMES = {
    "auc_exact": "exact area, each image once",
    "auc_exact_by_patient": "exact area, each patient once",
    "auc_real": "area when trained on the real images",
    "accuracy_exact": "exact accuracy, each image once",
    "accuracy_exact_by_patient": "exact accuracy, each patient once",
    "accuracy_real": "accuracy when trained on the real images",
}


def _untrained(spec: TaskSpec) -> TaskModel:
    classes = len(spec.image.labels)
    edges = np.linspace(-1.0, 1.0, spec.utility.bins - 1).astype(np.float32)  # evenly around 0
    return TaskModel(
        network=build_classifier(channels=spec.image.channels, classes=classes),
        numbers={EDGES: torch.from_numpy(edges)} if classes == 2 else {},
    )


def _train(
    images: torch.Tensor,
    labels: torch.Tensor,
    spec: TaskSpec,
    *,
    seed: int,
    device: torch.device | str,
    progress: Progress,
) -> nn.Module:
    return train_classifier(
        images,
        labels,
        len(spec.image.labels),
        spec.utility.classifier_steps,
        seed,
        channels=spec.image.channels,
        device=device,
        progress=progress,
    )


def _numbers(network: nn.Module, draw: Callable[[int], torch.Tensor], spec: TaskSpec) -> dict[str, torch.Tensor]:
    if len(spec.image.labels) != 2:
        return {}
    return {EDGES: score_edges(network, draw(EDGE_IMAGES), spec.utility.bins)}


def _exact_names(spec: TaskSpec) -> list[tuple[str, str]]:
    named = [("auc", "auc_{}"), ("macro_auc", "macro_auc_{}"), ("auc_by_patient", "auc_{}_by_patient")]
    named += [("accuracy", "accuracy_{}"), ("balanced_accuracy", "balanced_accuracy_{}")]
    for c, label in enumerate(spec.image.labels):
        named += [(f"auc_{c}", f"auc_{{}} of {label}"), (f"recall_{c}", f"recall_{{}} of {label}")]
    return named


def _shown(found: Figures) -> Shown:
    metric: str = found["metric"]
    name = METRIC_NAMES.get(metric, metric)
    rows: list[tuple[str, float | None, Sequence[float], float | None]] = []
    rows.append((name, found.get("value"), found["interval"], found.get("chance")))
    accuracy = found.get("accuracy")
    if isinstance(accuracy, Mapping) and metric != "accuracy":
        rows.append(("accuracy", accuracy.get("value"), accuracy["interval"], accuracy.get("chance")))
    for label, recall in (found.get("recall") or {}).items():
        rows.append((f"recall: {label}", recall.get("value"), recall["interval"], found.get("recall_chance")))
    exact = (found.get("simulation") or {}).items()
    return Shown(
        metric=name,
        rows=rows,
        chart_words=f"{name}, accuracy and recall of each class with intervals",
        simulated=[(SIMULATION_NAMES.get(key, key.replace("_", " ")), value) for key, value in exact],
    )


TASK = Task(
    model_name="classifier",
    untrained=_untrained,
    train=_train,
    numbers=_numbers,
    cells=lambda spec: cell_count(len(spec.image.labels), spec.utility.bins),
    counts=lambda model, cohort, spec: patient_counts(
        model.network, cohort, classes=len(spec.image.labels), edges=model.numbers.get(EDGES)
    ),
    figures=lambda counts, spec, noise_std: figures(
        counts, len(spec.image.labels), spec.utility.bins, noise_std, labels=spec.image.labels
    ),
    exact=lambda network, cohort, spec: exact_figures(network, cohort, len(spec.image.labels)),
    exact_names=_exact_names,
    shown=_shown,
)
