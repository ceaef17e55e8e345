"""The walls between the packages are the privacy boundary: they hold, and a breach in any of them is seen."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOT, copy_packages

# contract, file that breaks it, the line that does
BREACHES = [
    ("server-client", "server/publish.py", "from client import cohort"),
    ("server-client", "server/anything.py", "import client.intake"),
    ("shared", "ghostnet/plan.py", "import client.cohort"),
    ("shared", "ghostnet/accounting/epsilon.py", "from server import publish"),
    ("cli", "client/policy.py", "import ghostnet.cli.main"),
    ("cli", "ghostnet/plan.py", "from ghostnet.cli import main"),
    ("flower", "client/site.py", "import flwr"),
    ("flower", "ghostnet/training/loop.py", "from flwr.app import Message"),
    ("answering", "client/answering.py", "import flwr"),
    ("answering", "client/answering.py", "from ghostnet.exchange import flower"),
    ("answering", "client/site.py", "import client.app"),
    ("answering", "ghostnet/exchange/messages.py", "from flwr.app import RecordDict"),
    ("site", "client/answering.py", "from client.cohort import load_cohorts"),
    ("site", "client/app.py", "from client.cohort import load_cohorts"),
    ("site", "client/app.py", "import client.intake"),
    ("site", "client/app.py", "from client import preprocess"),
    ("site", "client/app.py", "from client import deidentify"),
    ("site", "client/config.py", "import client.cohort"),
]


def lint(folder: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    run = "from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", run, "--no-cache", *(f"--contract={contract}" for contract in contracts)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the three packages that a test may damage."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return copy_packages(tmp_path)


def test_the_walls_hold() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("contract", "path", "line"), BREACHES)
def test_a_breach_is_seen(house: Path, contract: str, path: str, line: str) -> None:
    file = house / path
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(f"{before}\n{line}\n", encoding="utf-8")
    result = lint(house, contract)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


def test_a_detour_through_another_module_is_seen(house: Path) -> None:
    (house / "ghostnet" / "detour.py").write_text("import client.cohort\n", encoding="utf-8")
    publish = house / "server" / "detour.py"
    publish.write_text("import ghostnet.detour\n", encoding="utf-8")
    result = lint(house, "server-client")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "server.detour -> ghostnet.detour" in result.stdout


# The plan stops at the edges.

EDGES = {
    "ghostnet/exchange/pooled.py": {"noised_share", "share_std"},
    "ghostnet/sampler/folder.py": {"sampler_config", "texts", "file_names"},
    "ghostnet/sampler/model_card.py": {"model_card"},
    "ghostnet/sampler/write.py": {"write_sampler"},
    "ghostnet/training/loop.py": {"train_round", "patient_gradients", "_input_penalty", "step_discriminator"},
    "ghostnet/training/perceptual.py": {"release_features", "noised_features"},
    "ghostnet/training/release.py": {"release_vectors", "release_step", "release_share", "_check"},
    "ghostnet/training/state.py": {"__init__"},
    "ghostnet/training/warm_start.py": {"with_released_prior"},
    "ghostnet/utility/task.py": {"task_spec"},
}
"""Functions of the rooms below that take the whole plan: the loops, the noise of a release, what is published."""

PLAIN_ROOMS = ("models", "privacy", "training", "exchange", "sampler", "utility")


def takers_of_a_plan(root: Path) -> dict[str, set[str]]:
    """Functions with a parameter that is a `Plan`, by file."""
    found: dict[str, set[str]] = {}
    for path in (file for room in PLAIN_ROOMS for file in (root / "ghostnet" / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                named = (
                    n
                    for a in ast.walk(node.args)
                    if isinstance(a, ast.arg) and a.annotation
                    for n in ast.walk(a.annotation)
                )
                if any(isinstance(n, ast.Name) and n.id == "Plan" for n in named):
                    found.setdefault(str(path.relative_to(root)), set()).add(node.name)
    return found


def test_below_the_edges_functions_take_numbers_and_small_records() -> None:
    assert takers_of_a_plan(ROOT) == EDGES


def test_a_function_that_takes_the_whole_plan_is_seen(house: Path) -> None:
    file = house / "ghostnet" / "utility" / "classifier.py"
    file.write_text(file.read_text() + "\n\ndef planted(n: int, *, plan: Plan | None = None) -> None:\n    pass\n")
    assert takers_of_a_plan(house) == {**EDGES, "ghostnet/utility/classifier.py": {"planted"}}
