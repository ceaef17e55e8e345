"""One file and one line make a utility task; nothing else in the house knows one by its name."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from ghostnet.accounting.catalogue import CATALOGUE, counted_tasks
from ghostnet.errors import FederationError, PlanError
from ghostnet.plan import UtilitySpec
from ghostnet.plan.tasks import REGISTRY, TaskEntry, TaskName
from ghostnet.utility.task import Task, TaskModel, find_task, models_to_arrays, received_models, task_spec
from tests.house import PACKAGES, ROOT, copy_packages, places_that_know
from tests.plans import tiny_plan, tiny_plan_text, write_striped_npz

HERE = Path(__file__).resolve().parent
OWN = ("ghostnet/utility/classification.py", "ghostnet/plan/tasks.py")

pytestmark = pytest.mark.usefixtures("one_thread")


def names_used(root: Path) -> Iterator[str]:
    """Places outside a task's own file and the registry that name a task: a text constant, or an import of its file."""
    modules = {entry.module for entry in REGISTRY.values()}
    own = {root / f"{module.replace('.', '/')}.py" for module in modules} | {root / OWN[1]}
    return places_that_know(root, REGISTRY, modules, own)


def words_used(root: Path) -> list[str]:
    """Files where the word stands, in code or in prose. Tests and benchmarks hold a task to account by its name."""
    folders = (*PACKAGES, "examples", "deploy")
    files = [file for folder in folders for file in sorted((root / folder).rglob("*")) if file.suffix in (".py", ".md")]
    found = [str(f.relative_to(root)) for f in files if re.search(r"(?i)\bclassification\b", f.read_text("utf-8"))]
    return [name for name in found if name not in OWN]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the three packages that a test may change."""
    return copy_packages(tmp_path)


def test_no_task_is_known_by_its_name_outside_its_file_and_the_registry() -> None:
    assert list(names_used(ROOT)) == []
    assert words_used(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        'is_counted = "classification" in names',
        'figures = report["utility"]["classification"]',
        "from ghostnet.utility.classification import figures",
        "from ghostnet.utility import classification",
        "import ghostnet.utility.classification",
    ],
)
def test_a_name_used_elsewhere_is_seen(house: Path, line: str) -> None:
    (house / "client" / "planted.py").write_text(f"names = report = {{}}\n{line}\n", encoding="utf-8")
    assert list(names_used(house)) == ["client/planted.py:2"]
    assert words_used(house) == ["client/planted.py"]


def test_a_plan_takes_the_names_of_the_registry_and_no_other() -> None:
    assert get_args(TaskName) == tuple(REGISTRY)
    assert UtilitySpec().tasks == tuple(REGISTRY)[:1]
    bins = "bins = 4\ntasks = {}"
    for given, said in (
        ('["other"]', "utility.tasks"),
        ("[]", "needs at least one task"),
        ('["classification", "classification"]', "none twice"),
    ):
        with pytest.raises(PlanError, match=said):
            tiny_plan(bins=bins.format(given))


def test_a_task_that_needs_masks_is_refused_where_the_plan_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "classification", dataclasses.replace(REGISTRY["classification"], needs_masks=True))
    with pytest.raises(PlanError, match=r"'classification', which needs masks, and image.mask_channels = 0"):
        tiny_plan()
    assert tiny_plan(size="size = 28\nmask_channels = 1").utility.tasks == ("classification",)


def test_no_two_statistics_share_an_event_or_an_array_in_one_plan() -> None:
    names = [(statistic.name, statistic.mechanism) for statistic in CATALOGUE]
    arrays = [statistic.array for statistic in CATALOGUE if statistic.array]
    assert len(set(names)) == len(names)
    assert len(set(arrays)) == len(arrays)


def test_without_noise_no_task_is_counted() -> None:
    plan = tiny_plan()
    assert counted_tasks(plan) == ("classification",)
    off = dataclasses.replace(plan, utility=dataclasses.replace(plan.utility, noise_multiplier=0.0))
    assert counted_tasks(off) == ()


@pytest.mark.parametrize("name", list(REGISTRY))
@pytest.mark.parametrize("labels", [("plain", "striped"), ("a", "b", "c")])
def test_a_model_arrives_as_it_was_sent_ready_to_count(name: str, labels: tuple[str, ...]) -> None:
    plan = tiny_plan()
    image = dataclasses.replace(plan.image, labels=labels, label_prior=(1 / len(labels),) * len(labels))
    spec = task_spec(dataclasses.replace(plan, image=image))
    sent = changed(find_task(name).untrained(spec))
    (arrived,) = received_models((name,), models_to_arrays({name: sent}), spec).values()
    same = models_to_arrays({name: arrived})
    assert same.keys() == models_to_arrays({name: sent}).keys()
    assert all(np.array_equal(array, same[key]) for key, array in models_to_arrays({name: sent}).items())
    assert not any(module.training for module in arrived.network.modules())


def changed(model: TaskModel) -> TaskModel:
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.25)
    return model


WRONG: dict[str, Callable[[dict[str, np.ndarray], str], None]] = {
    "missing": lambda arrays, name: arrays.pop(name),  # type: ignore[dict-item,return-value]
    "one too many": lambda arrays, name: arrays.update({f"{name}.more": arrays[name]}),
    "shape": lambda arrays, name: arrays.update({name: np.zeros((2, *arrays[name].shape), np.float32)}),
    "float64": lambda arrays, name: arrays.update({name: arrays[name].astype(np.float64)}),
    "not finite": lambda arrays, name: arrays.update({name: np.full_like(arrays[name], np.nan)}),
}


@pytest.mark.parametrize("part", ["network", "numbers"])
@pytest.mark.parametrize("wrong", list(WRONG))
def test_a_model_of_another_form_is_refused(part: str, wrong: str) -> None:
    spec = task_spec(tiny_plan())
    arrays = models_to_arrays({"classification": find_task("classification").untrained(spec)})
    received_models(("classification",), arrays, spec)
    WRONG[wrong](arrays, next(key for key in arrays if key.startswith(f"classification.{part}.")))
    with pytest.raises(FederationError):
        received_models(("classification",), arrays, spec)


def test_the_registry_and_its_records_cannot_be_changed_in_passing() -> None:
    assert isinstance(find_task("classification"), Task)
    with pytest.raises(dataclasses.FrozenInstanceError):
        find_task("classification").model_name = ""  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskEntry(module="", event="", array="").needs_masks = True  # type: ignore[misc]


# A new task: its file, and its line.

ADDED = (HERE / "added_task.py").read_text(encoding="utf-8")
LINE = '    "added": TaskEntry(module="ghostnet.utility.added", event="added counts", array="added_counts"),\n'


def add(house: Path, text: str) -> None:
    """The file, and its line of the registry."""
    (house / "ghostnet" / "utility" / "added.py").write_text(text, encoding="utf-8")
    registry = house / "ghostnet" / "plan" / "tasks.py"
    before = registry.read_text(encoding="utf-8")
    assert before.count('\n}\n"""Name in a plan') == 1
    registry.write_text(before.replace('\n}\n"""Name in a plan', f'\n{LINE}}}\n"""Name in a plan'), encoding="utf-8")


def run(house: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False, timeout=300)


def simulate(house: Path) -> subprocess.CompletedProcess[str]:
    text = tiny_plan_text(
        epsilon="epsilon = 12.0", bins='bins = 4\nreal_reference = true\ntasks = ["classification", "added"]'
    )
    (house / "plan.toml").write_text(text, encoding="utf-8")
    data = write_striped_npz(house / "data.npz")
    return run(
        house,
        "-m",
        "ghostnet.cli",
        "simulate",
        house / "plan.toml",
        "--data",
        data,
        "--sites",
        2,
        "--out",
        house / "run",
    )


def test_a_file_and_a_line_make_a_task_that_hospitals_count_and_the_report_shows(house: Path) -> None:
    before = simulate(house)
    assert before.returncode != 0
    assert "utility.tasks" in before.stderr
    add(house, ADDED)
    done = simulate(house)
    assert done.returncode == 0, done.stderr
    report = json.loads((house / "run/report.json").read_text())
    assert list(report["utility"]) == ["classification", "added"]
    added = report["utility"]["added"]
    assert added["metric"] == "share of bright images"
    assert added["released"] == "noised counts of 2 hospitals, noise multiplier 2 each"
    assert set(added["simulation"]) == {"mean_exact", "mean_real"}
    assert {"auc_exact", "auc_real"} <= set(report["utility"]["classification"]["simulation"])
    assert {"train the report's classifier", "train the report's brightness meter"} <= {
        entry["work"] for entry in report["timing"]["server"]
    }
    told = " ".join(done.stdout.split())
    assert "train on synthetic, test on real: share of bright images" in told
    assert "added: " in told
    page = (house / "run/report.html").read_text()
    assert "A brightness meter was trained on synthetic images alone" in page
    assert "A classifier was trained on synthetic images alone" in page
    card = (house / "run/sampler/README.md").read_text()
    assert "the run's report does so for classification and added, with a verdict" in card
    certificate = json.loads((house / "run/sampler/certificate.json").read_text())
    for statement in certificate["statements"]:
        assert [event["name"] for event in statement["events"]].count("added counts") == 1
    own = json.loads(next((house / "run/sites/site-1").rglob("report.json")).read_text())
    assert own.keys() == {"stays_in_the_hospital", "classification", "added"}
    verified = run(house, "-m", "ghostnet.cli", "verify", house / "run/sampler")
    assert verified.returncode == 15, verified.stdout + verified.stderr  # unknown keys; everything else holds


def test_an_added_tasks_counts_are_charged_and_audited(house: Path) -> None:
    add(house, ADDED)
    asked = run(house, HERE / "use_added_task.py", "runs")
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    assert found["tasks"] == ["classification", "added"]
    assert found["epsilon"][1] > found["epsilon"][0] + 0.01
    assert all(found["audit"].values()), found["audit"]
    assert {"noise drawn as accounted", "one patient's part of a release", "patients apart in a release"} <= set(
        found["audit"]
    )


@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        (
            "counts = torch.zeros(cohort.patients, 2)",
            "counts = torch.zeros(len(cohort.images), 2)\n"
            "    places = (torch.arange(len(cohort.images)), _bright(model, cohort))\n"
            "    return counts.index_put_(places, torch.tensor(1.0))",
            "one patient's part of a release",
        ),
        (
            "model.numbers[THRESHOLD].double()).long()",
            "predict(model.network, cohort.images).mean()).long()",
            "patients apart in a release",
        ),
    ],
    ids=["images counted fully", "a threshold from the cohort"],
)
def test_an_added_task_that_breaks_a_patients_bound_is_caught(house: Path, right: str, wrong: str, check: str) -> None:
    assert ADDED.count(right) == 1
    add(house, ADDED.replace(right, wrong))
    asked = run(house, HERE / "use_added_task.py")
    assert asked.returncode == 0, asked.stderr
    assert json.loads(asked.stdout)["audit"][check] is False
