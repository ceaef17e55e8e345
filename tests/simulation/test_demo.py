"""Three hospitals' DICOM folders through the real path: nothing that was planted comes out at the other end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.deidentify.survivors import survivors
from ghostnet.certificate.certificate import verify_sampler
from ghostnet.cli.demo import DEMO_PLAN
from ghostnet.plan import parse_plan
from ghostnet.simulation.demo_hospitals import planted_values, write_hospitals
from tests.command_line import ghostnet
from tests.plans import tiny_plan_text
from tests.samplers import keys_of


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    write_hospitals(folder, patients=(12, 11, 10), seed=5)
    return folder


@pytest.fixture(scope="module")
def run_folder(hospitals: Path) -> Path:
    plan = tiny_plan_text(size="size = 32", labels='labels = ["normal", "lesion"]\nmask_channels = 1')
    (hospitals / "plan.toml").write_text(plan)
    sites = [part for site in sorted(hospitals.glob("sites/*/site.toml")) for part in ("--site", site)]
    ghostnet("simulate", hospitals / "plan.toml", *sites, "--out", hospitals / "run")
    return hospitals / "run"


def test_not_one_planted_value_is_in_any_byte_outside_the_hospitals(hospitals: Path, run_folder: Path) -> None:
    values = planted_values(hospitals)
    assert len(values) > 100
    released = [p for p in run_folder.rglob("*") if p.is_file() and "sites" not in p.relative_to(run_folder).parts]
    assert len(released) >= 8
    forms = {v.encode(coding) for v in values if len(v) >= 4 for coding in ("utf-8", "utf-16-le")}
    survivors = [(path.name, form) for path in released for form in forms if form in path.read_bytes()]
    assert survivors == []


SOURCE = ("images", "masks", "labels.csv", "planted.json")  # what the hospital had before
HOLDS_PATHS = ("quarantine.csv", "site.log")  # docs/hospital-it.md says so


def test_not_one_planted_value_is_in_what_a_hospital_keeps(hospitals: Path, run_folder: Path) -> None:
    values = planted_values(hospitals)
    sites = [*(hospitals / "sites").iterdir(), *(run_folder / "sites").iterdir()]
    kept = [
        path
        for site in sites
        for path in site.rglob("*")
        if path.is_file() and path.relative_to(site).parts[0] not in SOURCE and path.name not in HOLDS_PATHS
    ]
    kept += (hospitals / "sites").glob("*.witness")
    assert sum(path.suffix == ".safetensors" for path in kept) > 30
    assert sum(path.suffix == ".witness" for path in kept) == len(_sites(hospitals))
    assert [path.name for path in kept if survivors(path.read_bytes(), values)] == []


def test_the_same_search_finds_what_a_hospital_does_hold(hospitals: Path) -> None:
    north = json.loads((hospitals / "sites" / "north" / "planted.json").read_text())["values"]
    values = [value.encode() for value in north if len(value) >= 4]
    held = b"".join(
        path.read_bytes() for path in (hospitals / "sites" / "north" / "images").rglob("*") if path.is_file()
    )
    assert sum(value in held for value in values) > 0.9 * len(values)


def test_one_bad_file_is_quarantined_and_the_rest_goes_on(hospitals: Path, run_folder: Path) -> None:
    for site in _sites(hospitals):
        table = json.loads((site / "intake.json").read_text())
        assert sum(table["quarantined"].values()) == 1
        assert table["taken"] == table["found"] - 1
    known = keys_of(hospitals / "sites")
    assert len(known) == 3
    assert all(check.passed for check in verify_sampler(run_folder / "sampler", trusted_keys=known))


def test_each_hospital_keeps_its_own_ledger_and_gets_a_copy_in_the_run(hospitals: Path, run_folder: Path) -> None:
    for site in _sites(hospitals):
        assert (site / "ledger.sqlite").is_file()
        assert (run_folder / "sites" / site.name / "ledger.sqlite").is_file()


def test_the_demo_plan_fits_the_demo_hospitals(hospitals: Path) -> None:
    plan = parse_plan(DEMO_PLAN)
    assert set(plan.image.labels) == {"normal", "lesion"}
    checked = ghostnet(
        "site", "check", hospitals / "sites" / "north" / "site.toml", "--plan", _write(hospitals), "--json"
    )
    assert json.loads(checked.stdout)["quarantined"]


def _sites(folder: Path) -> list[Path]:
    return sorted(file.parent for file in (folder / "sites").glob("*/site.toml"))


def _write(folder: Path) -> Path:
    path = folder / "demo.toml"
    path.write_text(DEMO_PLAN)
    return path


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda site: [p.unlink() for p in (site / "images").rglob("*.dcm")], 5, "image"),
        (lambda site: (site / "labels.csv").write_text("image,label\nnone.dcm,normal\n"), 5, "image"),
        (lambda site: (site / "labels.csv").unlink(), 4, "labels"),
    ],
    ids=["no images", "no labels", "no table"],
)
def test_a_hospital_that_cannot_be_used_ends_the_run_before_it_starts(
    tmp_path: Path, spoil, code: int, said: str
) -> None:  # noqa: ANN001
    (site_file,) = write_hospitals(tmp_path, hospitals=1, patients=(2,), seed=6)
    spoil(site_file.parent)
    (tmp_path / "plan.toml").write_text(DEMO_PLAN.replace("min_hospitals = 3", "min_hospitals = 1"))
    done = ghostnet("simulate", tmp_path / "plan.toml", "--site", site_file, "--out", tmp_path / "run", check=False)
    assert done.returncode in (4, 5), done.stderr
    assert done.returncode == code, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
