"""What a newcomer installs and what `flwr run` sends: pins, the choice of torch, the bundle, the documents."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from deploy import install_torch
from ghostnet import errors

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def wanted() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    named = [Requirement(r) for r in project["dependencies"] + extras]
    return [r for r in named if r.name != "ghostnet"]  # an extra that is made of others


def pinned_for(python: str) -> dict[str, Version]:
    environment = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    chosen = [p for p in pins() if p.marker is None or p.marker.evaluate(environment)]
    return {canonical(p.name): Version(next(iter(p.specifier)).version) for p in chosen}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_every_dependency_is_pinned_once_to_a_version_that_pyproject_allows(python: str) -> None:
    versions = pinned_for(python)
    for requirement in wanted():
        assert versions[canonical(requirement.name)] in requirement.specifier, requirement


def test_flower_is_one_exact_version_everywhere() -> None:
    flower = [r for r in wanted() if r.name == "flwr"]
    app = PROJECT["tool"]["flwr"]["app"]
    assert len({str(r.specifier) for r in flower}) == 1
    assert Version(app["flwr-version-target"]) == pinned_for("3.11")["flwr"]
    assert Version("1.43.0") not in flower[0].specifier


def test_the_installed_packages_are_the_pinned_ones() -> None:
    versions = pinned_for(f"{sys.version_info.major}.{sys.version_info.minor}")
    for requirement in wanted():
        here = Version(metadata.version(requirement.name))
        assert Version(here.public) == versions[canonical(requirement.name)], requirement.name


def test_every_library_that_the_code_imports_is_declared() -> None:
    project = PROJECT["project"]
    roles = [
        r for extra, group in project["optional-dependencies"].items() if extra not in ("test", "dev") for r in group
    ]
    declared = {canonical(Requirement(r).name) for r in project["dependencies"] + roles}
    declared.add("rapidocr")  # installed by itself, after `ocr`
    owners = metadata.packages_distributions()
    for package in ("ghostnet", "client", "server"):
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(path) - set(sys.stdlib_module_names) - {"ghostnet", "client", "server"}:
                distributions = {canonical(d) for d in owners.get(name, [name])}
                assert distributions & declared, f"{path.relative_to(ROOT)} imports {name}"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_one_opencv_only_and_it_opens_without_a_display_library() -> None:
    names = {canonical(d.metadata["Name"]) for d in metadata.distributions()}
    assert "opencv-python" not in names
    assert "opencv-python-headless" in names
    script = "import cv2; print([line for line in open('/proc/self/maps') if 'libGL' in line])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("build", "platform", "first", "last"),
    [
        ("cpu", "linux", "torch==2.13.0+cpu", "torch==2.13.0"),
        ("cuda", "linux", "torch==2.13.0,!=2.13.0+cpu", "torch==2.13.0"),
        ("cpu", "darwin", "torch==2.13.0", "torch==2.13.0"),
    ],
)
def test_torch_is_asked_for_by_exact_version_and_build(build: str, platform: str, first: str, last: str) -> None:
    attempts = install_torch.pip_arguments("2.13.0", build=build, platform=platform)
    assert attempts[0][-1] == first
    assert attempts[-1] == [last]


def test_the_cpu_index_is_asked_for_torch_alone() -> None:
    for attempt in install_torch.pip_arguments("2.13.0", build="cpu", platform="linux"):
        assert "--extra-index-url" not in attempt  # it would compete with PyPI for every name
        assert install_torch.CPU_INDEX not in attempt or "--no-deps" in attempt


def test_a_cuda_build_does_not_match_where_the_cpu_is_wanted_and_the_other_way_round() -> None:
    assert Version("2.13.0+cpu") not in SpecifierSet("==2.13.0,!=2.13.0+cpu")
    assert Version("2.13.0") in SpecifierSet("==2.13.0,!=2.13.0+cpu")
    assert Version("2.13.0") not in SpecifierSet("==2.13.0+cpu")


def test_torch_without_a_pin_is_refused() -> None:
    assert install_torch.pinned_version("numpy==2.4.6\ntorch==2.13.0\n") == "2.13.0"
    with pytest.raises(ValueError, match="pins no torch"):
        install_torch.pinned_version("numpy==2.4.6\n")


def test_the_flower_bundle_builds_and_carries_no_code(tmp_path: Path) -> None:
    app = tmp_path / "ghostnet"  # Flower wants letters, digits and hyphens here
    app.mkdir()
    for name in ("pyproject.toml", "LICENSE", "SECURITY.md", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, app)
    for package in ("ghostnet", "client", "server"):
        shutil.copytree(ROOT / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
    flwr = shutil.which("flwr", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert flwr
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "flower")}
    built = subprocess.run([flwr, "build"], cwd=app, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (bundle,) = app.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        assert set(archive.namelist()) == {"pyproject.toml", "LICENSE", "SECURITY.md", ".info/CONTENT"}


def test_every_exit_code_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    documented = {int(n) for n in re.findall(r"^## (\d+)", text, flags=re.MULTILINE)}
    kinds = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.GhostNetError)]
    codes = {kind.exit_code for kind in kinds}
    assert len(codes) == len(kinds), "two errors share an exit code"
    assert documented == codes | {0, 2, 130}
    for kind in kinds:
        assert f"`{kind.__name__}`" in text, kind.__name__


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8")))
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert not {name for name in named if f"def {name}(" not in sources}


def recipe_faults(recipes: str) -> list[str]:
    """Files named that are not there, and names in code marks that no file named beside them holds."""
    faults = []
    for item in re.split(r"\n(?=\d\. |[A-Z#]|\n)", recipes):
        marks = re.findall(r"`([^`]+)`", item)
        files = [mark for mark in marks if "/" in mark and mark.endswith((".py", ".md")) and "NAME" not in mark]
        faults += [mark for mark in files if not (ROOT / mark).is_file()]
        held = "\n".join((ROOT / mark).read_text(encoding="utf-8") for mark in files if (ROOT / mark).is_file())
        words = [mark for mark in marks if re.fullmatch(r"[A-Za-z_]+", mark) and not mark.startswith("test_")]
        faults += [word for word in words if held and word not in held]
    return faults


def test_every_file_and_name_of_the_recipes_is_in_the_tree() -> None:
    recipes = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("\n## ")[2]
    assert recipe_faults(recipes) == []
    moved = recipes.replace("client/formats.py", "client/shapes.py")
    assert recipe_faults(moved)[0] == "client/shapes.py"
    assert "_READERS" in recipe_faults(recipes.replace("`FORMATS`", "`_READERS`"))


def test_ci_runs_the_same_tests_as_everyone() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    text = script.read_text(encoding="utf-8")
    assert re.fullmatch(r"exec make test( PYTEST_ARGS='--cov[ a-z=:-]*')?", text.splitlines()[-1])
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_clean_never_touches_runs() -> None:
    listing = subprocess.run(
        ["make", "--dry-run", "clean"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    removed = re.findall(r"^rm -rf (.*)$", listing, flags=re.MULTILINE)
    assert removed
    assert all("runs" not in line for line in removed)
