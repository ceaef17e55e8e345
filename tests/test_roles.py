"""Roles: each works with the packages of its own extra, the base with none, and says in one line what is missing.

The wheel is built and unpacked, and imported in processes that find only the packages which the role's extra brings: of
all others, installed here or not, Python sees nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from ghostnet.cli.roles import ROLES
from ghostnet.utility.classification import figures
from tests.plans import tiny_plan
from tests.samplers import TRUSTED, publish

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Modules that need an extra to be imported, by that extra. All other modules of ghostnet are the base's.
BY_ITSELF = {"rapidocr"}  # installed after its extra, without what it asks for (deploy/README.md)
BEYOND_BASE = {
    "simulate": (
        *("ghostnet.simulation.demo_hospitals", "ghostnet.simulation.embedded", "ghostnet.simulation.ray"),
        *("ghostnet.simulation.reference", "ghostnet.simulation.run", "ghostnet.cli.demo"),
    ),
    "site": (
        *("ghostnet.cli.site_check", "ghostnet.cli.site_review", "ghostnet.audit.canaries", "ghostnet.audit.kinds"),
        *("ghostnet.audit.contributions", "ghostnet.audit.every_release", "ghostnet.audit.mechanism"),
        *("ghostnet.audit.post_processing", "ghostnet.audit.releases"),
    ),
    "coordinator": ("ghostnet.exchange.flower", "ghostnet.training.phantom", "ghostnet.training.public_start"),
    "export": ("ghostnet.export.dicom", "ghostnet.export.nifti"),
}

ONLY = """
import json, sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
site, hidden = sys.argv[1], set(json.loads(sys.argv[2]))

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Installed]
sys.path.insert(0, site)
import ghostnet
assert ghostnet.__file__.startswith(site), ghostnet.__file__
"""

IMPORT = """
import importlib
failed = {}
for name in json.loads(sys.argv[3]):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""

COMMANDS = """
import contextlib, io
from ghostnet.cli.main import main
done = []
for sys.argv in [["ghostnet", *arguments] for arguments in json.loads(sys.argv[3])]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        except ModuleNotFoundError as error:
            code = f"traceback: {error}"
    done.append([code or 0, out.getvalue(), err.getvalue().strip()])
print(json.dumps(done))
"""


REPORT = """
from pathlib import Path
from ghostnet import Sampler
from ghostnet.report.html import draw_figures, write_report
folder, out, facts = json.loads(sys.argv[3])
figures = draw_figures(Sampler.load(folder), per_label=2)
write_report(Path(out), facts, figures)
print("null")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, as pip would lay it into site-packages."""
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(out)], cwd=ROOT, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        archive.extractall(out / "site")
    return out / "site"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(extra: str) -> set[str]:
    """Names of the distributions that `pip install ghostnet[extra]` brings, of those installed here."""
    project = [f"{r}; extra == '{e}'" for e, group in PROJECT["optional-dependencies"].items() for r in group]
    known: set[tuple[str, str]] = set()
    left = [("ghostnet", extra)]
    while left:
        name, wanted = left.pop()
        if (name, wanted) in known:
            continue
        known.add((name, wanted))
        try:
            lines = PROJECT["dependencies"] + project if name == "ghostnet" else metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        for need in map(Requirement, lines):
            if need.marker is None or need.marker.evaluate({"extra": wanted}):
                left += [(canonical(need.name), e) for e in ("", *need.extras)]
    return {name for name, _ in known}


def hidden_from(extra: str) -> str:
    """JSON list of the modules that are installed here and that an extra does not bring."""
    brought = brought_by(extra)
    owners = metadata.packages_distributions()
    return json.dumps([m for m, names in owners.items() if not brought & {canonical(n) for n in names}])


def run_only(wheel: Path, extra: str, code: str, argument: object) -> Any:
    """What code printed last, as JSON, in a process that finds what an extra brings and nothing else."""
    command = [sys.executable, "-I", "-c", ONLY + code, str(wheel), hidden_from(extra), json.dumps(argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=wheel)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def modules_of(wheel: Path, package: str) -> set[str]:
    files = (file.relative_to(wheel) for file in (wheel / package).rglob("*.py") if file.stem != "__main__")
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}


def failed_imports(wheel: Path, extra: str, modules: set[str]) -> dict[str, str]:
    found: dict[str, str] = run_only(wheel, extra, IMPORT, sorted(modules))
    return found


def test_the_base_imports_all_of_ghostnet_but_what_an_extra_is_for(wheel: Path) -> None:
    failed = failed_imports(wheel, "", modules_of(wheel, "ghostnet"))
    assert set(failed) == {name for names in BEYOND_BASE.values() for name in names}, failed


@pytest.mark.parametrize("extra", BEYOND_BASE)
def test_an_extra_brings_what_its_modules_import(wheel: Path, extra: str) -> None:
    package = {"site": "client", "coordinator": "server"}.get(extra, "")
    modules = modules_of(wheel, package) if package else set()
    assert failed_imports(wheel, extra, modules | set(BEYOND_BASE[extra])) == {}


def test_none_of_flower_ray_dicom_opencv_and_opacus_comes_with_the_base() -> None:
    heavy = {"flwr", "ray", "pydicom", "python-gdcm", "opencv-python-headless", "opacus", "onnxruntime"}
    assert not heavy & brought_by("")
    assert heavy <= brought_by("all")


def test_an_import_that_the_base_lacks_is_seen(wheel: Path, tmp_path: Path) -> None:
    changed = tmp_path / "site"
    shutil.copytree(wheel, changed)
    planted = {"ghostnet.durable": "flwr", "ghostnet.progress": "opacus", "ghostnet.user_state": "requests"}
    for name, module in planted.items():
        with (changed / f"{name.replace('.', '/')}.py").open("a") as file:
            file.write(f"import {module}\n")
    failed = failed_imports(changed, "", {*planted, "ghostnet.errors"})
    assert failed == {name: f"ModuleNotFoundError: No module named '{m}'" for name, m in planted.items()}


def test_roles_name_the_modules_of_their_extras() -> None:
    owners = metadata.packages_distributions()
    base = brought_by("")
    for extra, role in ROLES.items():
        brought = brought_by(extra) - base
        for module in set(role.modules) - BY_ITSELF:
            assert {canonical(n) for n in owners[module]} & brought, f"{extra}: {module}"
        named = {canonical(n) for module in role.modules for n in owners[module]}
        direct = {r for r in declared(extra) if r not in base}
        assert direct <= named, f"{extra}: {direct - named} is in no role of ghostnet/cli/roles.py"


def declared(extra: str) -> set[str]:
    """Distributions that an extra names itself, or by naming another extra."""
    lines = [Requirement(r) for r in PROJECT["optional-dependencies"][extra]]
    own = {canonical(r.name) for r in lines if r.name != "ghostnet"}
    return own.union(*(declared(e) for r in lines if r.name == "ghostnet" for e in r.extras))


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = tiny_plan()
    plan = replace(tiny, privacy=replace(tiny.privacy, noise_multiplier=3.0))
    return publish(tmp_path_factory.mktemp("run") / "sampler", plan)


def test_the_base_verifies_draws_and_reports(wheel: Path, sampler: Path, tmp_path: Path) -> None:
    keys = [part for name, key in TRUSTED.items() for part in ("--key", f"{name}={key}")]
    draw = ["sample", str(sampler), "-n", "3", "--format", "npz", "-o", str(tmp_path / "drawn")]
    verified, drawn = run_only(wheel, "", COMMANDS, [["verify", str(sampler), *keys], draw])
    assert verified[0] == drawn[0] == 0, (verified, drawn)
    with np.load(next((tmp_path / "drawn").glob("*.npz"))) as images:
        assert len(images["images"]) == 3
    rounds = [{"round": 1, "phase": "train", "wall_s": 30.0, "slowest_client_s": 29.0}] * 2
    facts = {"plan": tiny_plan().to_dict(), "timing": {"rounds": rounds, "total_s": 75.0}}
    facts["utility"] = {"classification": figures(torch.tensor([80.0, 40, 10, 2, 5, 12, 35, 90]), 2, 4, 4.2)}
    run_only(wheel, "", REPORT, [str(sampler), str(tmp_path), facts])
    assert json.loads((tmp_path / "report.json").read_text()).items() >= json.loads(json.dumps(facts)).items()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") + page.count("<svg") >= 3  # the samples, the chart of rounds, and that of usefulness


def test_what_the_base_lacks_is_named_with_its_extra_in_one_line(wheel: Path, sampler: Path, tmp_path: Path) -> None:
    draw = ["sample", str(sampler), "-n", "1", "-o", str(tmp_path / "drawn"), "--format"]
    lines = {
        "flwr: pip install 'ghostnet[simulate]'": (["simulate", "plan.toml", "--out", "x"], ["demo"]),
        "flwr: pip install 'ghostnet[site]'": (["site", "check", "site.toml"], ["audit", "mechanism"]),
        "pydicom: pip install 'ghostnet[export]'": ([*draw, "dicom"],),
        "nibabel: pip install 'ghostnet[export]'": ([*draw, "nifti"],),
    }
    calls = [(line, arguments) for line, many in lines.items() for arguments in many]
    for (line, arguments), (code, _, said) in zip(
        calls, run_only(wheel, "", COMMANDS, [arguments for _, arguments in calls]), strict=True
    ):
        assert (code, said) == (12, f"ghostnet: this needs {line}"), arguments
    assert not (tmp_path / "drawn").exists()
    assert run_only(wheel, "export", COMMANDS, [[*draw, "dicom"]])[0][0] == 0


def test_an_import_that_no_role_brings_is_a_defect_and_said_to_be_one(wheel: Path, tmp_path: Path) -> None:
    changed = tmp_path / "site"
    shutil.copytree(wheel, changed)
    (changed / "ghostnet" / "cli" / "plan.py").write_text("import no_such_module\n")
    (line, traceback) = run_only(changed, "", COMMANDS, [["plan", "check", "x"], ["--debug", "plan", "check", "x"]])
    assert line[0] == 1
    assert line[2].startswith("ghostnet: unforeseen ModuleNotFoundError: No module named 'no_such_module'; add --debug")
    assert traceback[0] == "traceback: No module named 'no_such_module'"


def test_doctor_says_what_each_role_lacks_and_a_base_is_no_fault(wheel: Path) -> None:
    ((code, told, _),) = run_only(wheel, "", COMMANDS, [["doctor", "--json"]])
    assert code == 0
    found = {finding["name"]: finding for finding in json.loads(told)}
    for extra, role in ROLES.items():
        then = " && pip install --no-deps rapidocr==3.8.4" if extra == "ocr" else ""
        assert not found[extra]["good"]
        line = f"lacks {', '.join(role.modules)}: pip install 'ghostnet[{extra}]'{then}"
        assert found[extra]["detail"].endswith(line)
    ((_, told, _),) = run_only(wheel, "coordinator", COMMANDS, [["doctor", "--json"]])
    assert [f["name"] for f in json.loads(told) if f["name"] in ROLES and f["good"]] == ["coordinator"]
