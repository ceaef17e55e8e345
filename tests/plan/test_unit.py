"""The unit that is said is the unit that is protected: patient, or image where the data names no patients."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from client.config import load_site
from client.site import Site
from ghostnet.accounting.plan_cost import claim, resolve
from ghostnet.audit.ledger import audit_ledger
from ghostnet.certificate.certificate import verify_sampler
from ghostnet.cli.plan_view import plan_cost
from ghostnet.cli.site_budget import budget
from ghostnet.errors import BudgetError, LedgerError, PolicyError, VerifyError
from ghostnet.evidence import keys
from ghostnet.evidence.ledger import Ledger, verify_ledger
from ghostnet.evidence.statement import not_covered
from ghostnet.exchange.arrays import to_arrays
from ghostnet.export.images import write_images
from ghostnet.models import build_generator
from ghostnet.plan import Plan, Unit, load_plan, plan_from_dict
from ghostnet.plan.unit import UNITS, adjacency, protects, unit_facts
from ghostnet.report.html import ReportFigures, render_page
from ghostnet.sampler.model_card import model_card
from ghostnet.sampler.sampler import Sampler
from tests.certificate.sampler_changes import sign_certificate
from tests.command_line import ghostnet
from tests.evidence.ledgers import DELTA, EVENTS
from tests.plans import tiny_plan, tiny_plan_text, write_striped_npz
from tests.samplers import SITES, TRUSTED, keys_of, publication, publish, statement_of

RUN = "ab" * 16
SITE = """
name = "{name}"
[data]
kind = "npz"
path = "data.npz"
[policy]
max_epsilon = 25.0
delta = 1e-5
"""
SAYS = {"patient": "per patient, with all their images", "image": "per image: this data names no patients"}
UNIT_OF = pytest.mark.parametrize("unit", UNITS)


def plan_of(unit: str) -> Plan:
    plan = tiny_plan()
    return resolve(replace(plan, privacy=replace(plan.privacy, unit=unit)))  # type: ignore[arg-type]


def other(unit: str) -> str:
    return next(one for one in UNITS if one != unit)


def says_only(text: str, unit: str) -> None:
    """A text says whom epsilon protects, and nothing of the other unit."""
    words = " ".join(text.split())
    assert SAYS[unit] in words
    assert f"add/remove one {unit}" in words
    assert SAYS[other(unit)] not in words
    assert f"add/remove one {other(unit)}" not in words


def without_patients(path: Path) -> Path:
    columns = dict(np.load(path))
    del columns["patient"]
    np.savez(path, **columns)
    return path


def hospital(folder: Path, unit: str, name: str = "north") -> Path:
    """A site.toml over an NPZ file with the column patient, or without it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_striped_npz(folder / "data.npz")
    if unit == "image":
        without_patients(path)
    (folder / "site.toml").write_text(SITE.format(name=name))
    return folder / "site.toml"


# The plan


def test_a_plan_without_the_key_is_per_patient() -> None:
    plan = tiny_plan()
    assert plan.privacy.unit == "patient"
    assert plan_from_dict({**plan.to_dict(), "privacy": {**plan.to_dict()["privacy"], "unit": "patient"}}) == plan
    assert plan_of("image").to_dict()["privacy"]["unit"] == "image"
    assert plan_of("image").hash() != plan_of("patient").hash()
    assert plan_from_dict(plan_of("image").to_dict()) == plan_of("image")
    assert get_args(Unit) == UNITS


@UNIT_OF
def test_plan_check_and_the_claim_say_the_unit(unit: str) -> None:
    cost = plan_cost(plan_of(unit))
    assert {name: cost[name] for name in ("unit", "adjacency", "protects")} == {
        "unit": unit,
        "adjacency": f"add/remove one {unit}",
        "protects": SAYS[unit],
    }
    promised = claim(plan_of(unit))
    assert (promised.unit, promised.adjacency, promised.protects) == (unit, adjacency(promised.unit), SAYS[unit])


# What is published


@UNIT_OF
def test_certificate_statement_card_and_files_say_the_unit(unit: str, tmp_path: Path) -> None:
    folder = publish(tmp_path / "sampler", plan_of(unit), unit=unit)
    certificate = json.loads((folder / "certificate.json").read_text())
    assert {name: certificate[name] for name in ("unit", "adjacency", "protects")} == unit_facts(certificate["unit"])
    assert certificate["protects"] == SAYS[unit]
    for statement in certificate["statements"]:
        assert (statement["unit"], statement["protects"]) == (unit, SAYS[unit])
        assert statement["lifetime"]["protects"] == SAYS[unit]
    checks = verify_sampler(folder, trusted_keys=TRUSTED)
    assert [check.name for check in checks if not check.passed] == []
    says_only(next(check.detail for check in checks if check.name == "mechanism"), unit)
    says_only(next(check.detail for check in checks if check.name == "epsilon"), unit)
    says = [check.detail for check in checks if check.name.startswith("statement ") and SAYS[unit] in check.detail]
    assert len(says) == 2 * len(certificate["statements"])  # of the run, and of all runs
    says_only((folder / "README.md").read_text(), unit)
    write_images(Sampler.load(folder), 1, 0, 0, "dicom", tmp_path / "dicom")
    says_only(next((tmp_path / "dicom").glob("*.dcm")).read_bytes().decode("latin-1"), unit)


@UNIT_OF
def test_the_report_says_the_unit(unit: str) -> None:
    page = render_page({"privacy": {"epsilon": 1.0, "delta": 1e-5, **unit_facts(unit)}}, ReportFigures())  # type: ignore[arg-type]
    says_only(page, unit)
    assert f"What each {unit} is guaranteed" in page


def test_a_hospital_that_names_patients_signs_that_unit_under_a_plan_per_image(tmp_path: Path) -> None:
    folder = publish(tmp_path / "sampler", plan_of("image"), unit="patient")
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["unit"] == "image"
    assert certificate["statements"][0]["protects"] == SAYS["patient"]
    assert all(check.passed for check in verify_sampler(folder, trusted_keys=TRUSTED))


def test_nobody_signs_patients_where_there_are_images() -> None:
    with pytest.raises(VerifyError, match="weaker"):
        statement_of(plan_of("patient"), "north", {}, {}, unit="image")


def resigned(folder: Path, change: Callable[[dict[str, Any]], None]) -> list[str]:
    """The checks that fail once a hospital and the coordinator have signed a changed statement, all keys given."""
    certificate = json.loads((folder / "certificate.json").read_text())
    statement = next(s for s in certificate["statements"] if s["site"] == "north")
    del statement["signature"]
    change(statement)
    statement["signature"] = keys.sign(SITES["north"], statement)
    sign_certificate(folder, certificate)
    return [check.name for check in verify_sampler(folder, trusted_keys=TRUSTED) if not check.passed]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(unit="image"),
        lambda s: s.update(unit="image", protects=SAYS["image"]),
        lambda s: s.update(protects=SAYS["image"]),
        lambda s: s.update(protects="anonymous"),
        lambda s: s.update(unit="record"),
    ],
)
def test_a_statement_of_a_weaker_unit_or_in_other_words_does_not_verify(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    folder = publish(tmp_path / "sampler", plan_of("patient"))
    assert resigned(folder, lambda statement: None) == []  # the clean twin
    assert resigned(folder, change) == ["statement north: plan", "statement north: epsilon"]


@UNIT_OF
def test_one_person_under_several_identifiers_is_named_as_not_covered(unit: str) -> None:
    said = not_covered(plan_of(unit))
    assert any("one person under several identifiers" in line for line in said)
    assert any("all images of one person" in line for line in said) == (unit == "image")
    card = model_card(plan_of(unit), plan_of(unit).image.label_prior, "a" * 64)
    assert all(line in card for line in said)


# The hospital


@UNIT_OF
def test_a_hospital_says_its_own_unit_in_its_ledger_and_statement(
    unit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, plan = Site(load_site(hospital(tmp_path, unit))), plan_of("image")
    site.join(plan, RUN)
    opened, reserved = verify_ledger(site.config.ledger_path)
    assert (opened.fields["unit"], opened.fields["adjacency"]) == (unit, f"add/remove one {unit}")
    assert reserved.fields.get("unit", "patient") == unit
    files = publication(plan, RUN, to_arrays(build_generator(plan.networks)))
    statement = site._statement(plan, RUN, files)
    assert (statement["unit"], statement["lifetime"]["protects"]) == (unit, SAYS[unit])
    audit = audit_ledger(site.config.ledger_path)
    assert (audit.unit, audit.adjacency, audit.protects) == (unit, f"add/remove one {unit}", SAYS[unit])
    assert [run.unit for run in audit.runs] == [unit]
    budget(tmp_path / "site.toml", as_json=True)
    assert json.loads(capsys.readouterr().out)["protects"] == SAYS[unit]


@UNIT_OF
def test_a_ledger_that_a_command_starts_says_the_unit_of_the_data(unit: str, tmp_path: Path) -> None:
    made, adopted = hospital(tmp_path / "north", unit), hospital(tmp_path / "south", unit, "south")
    ghostnet("site", "key", made)
    keys.load_or_create_key(adopted.parent / "site.key")  # which tells that there was a ledger
    ghostnet("site", "ledger", adopted, "--adopt", "--reason", "the disk burnt")
    for file in (made, adopted):
        assert verify_ledger(file.parent / "ledger.sqlite")[0].fields["unit"] == unit
        says_only(ghostnet("site", "ledger", file).stdout, unit)


def test_data_that_names_no_patients_refuses_a_plan_per_patient(tmp_path: Path) -> None:
    site = Site(load_site(hospital(tmp_path, "image")))
    requests = [lambda: site.join(plan_of("patient"), RUN), lambda: site.warm_start(plan_of("patient"), RUN)]
    for request in requests:
        with pytest.raises(PolicyError, match=r"^P19: .*column patient.*unit = \"image\""):
            request()
    assert [entry.kind for entry in verify_ledger(site.config.ledger_path)] == ["open"]


@UNIT_OF
@pytest.mark.parametrize("asked", UNITS)
def test_no_row_decides_whether_a_plan_is_refused_for_its_unit(unit: str, asked: str, tmp_path: Path) -> None:
    path = hospital(tmp_path, unit).parent / "data.npz"
    columns = dict(np.load(path))
    for i, kept in enumerate((slice(None), slice(0, 1), slice(0, 0))):
        changed = {name: column[kept].copy() for name, column in columns.items()}
        if unit == "patient":
            changed["patient"][:] = ""  # not one of them is known: they are left out, each by itself
        np.savez(path, **changed)
        site = Site(load_site(tmp_path / "site.toml"))
        if (unit, asked) == ("image", "patient"):
            with pytest.raises(PolicyError, match="P19"):
                site.join(plan_of(asked), f"{i:032x}")
        else:
            site.join(plan_of(asked), RUN)


def test_a_column_that_goes_in_the_middle_of_a_run_ends_it(tmp_path: Path) -> None:
    site, plan = Site(load_site(hospital(tmp_path, "patient"))), plan_of("image")
    site.join(plan, RUN)
    without_patients(tmp_path / "data.npz")
    with pytest.raises(LedgerError, match="another plan or unit"):
        site.warm_start(plan, RUN)


def test_data_that_names_patients_is_grouped_by_them_whatever_the_plan_says(tmp_path: Path) -> None:
    site = Site(load_site(hospital(tmp_path, "patient")))
    train = site.prepare(plan_of("image").image).train
    assert train.patients < len(train.images)
    single = Site(load_site(hospital(tmp_path / "images", "image"))).prepare(plan_of("image").image).train
    assert single.patients == len(single.images) == len(torch.unique(single.owners))


# Runs of both units on one cohort


def test_the_ledger_adds_up_both_units_and_says_what_the_sum_is_about(tmp_path: Path) -> None:
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
    with Ledger.open(tmp_path / "north/ledger.sqlite", site="north") as ledger:
        for run, unit in (("a", "patient"), ("b", "image")):
            spent = ledger.reserve(
                run_id=run,
                plan_hash="d" * 64,
                events=EVENTS,
                epsilon=100.0,
                delta=DELTA,
                unit=unit,  # type: ignore[arg-type]
            )
        alone = Ledger.open(tmp_path / "south/ledger.sqlite")
        once = alone.reserve(run_id="a", plan_hash="d" * 64, events=EVENTS, epsilon=100.0, delta=DELTA)
        assert spent.epsilon_pld > once.epsilon_pld
        assert spent.protects.startswith("per image: in some runs this data named no patients")
        assert "k times" in spent.protects
        with pytest.raises(BudgetError, match="per image: this data names no patients; add/remove one image"):
            ledger.reserve(run_id="c", plan_hash="d" * 64, events=EVENTS, epsilon=1.0, delta=DELTA, unit="image")
        with pytest.raises(LedgerError, match="another plan or unit"):
            ledger.reserve(run_id="b", plan_hash="d" * 64, events=EVENTS, epsilon=100.0, delta=DELTA)
        alone.close()
    audit = audit_ledger(tmp_path / "north/ledger.sqlite")
    assert (audit.unit, audit.adjacency) == ("image", "add/remove one image")
    assert audit.protects == spent.protects
    assert [run.unit for run in audit.runs] == ["patient", "image"]


# Whole runs


def times(values: Any) -> list[float]:
    """Every number that is no count among nested dicts and lists."""
    if isinstance(values, dict):
        return times(list(values.values()))
    if isinstance(values, list):
        return [number for value in values for number in times(value)]
    return [values] if isinstance(values, float) else []


def simulate(folder: Path, plan_text: str, *more: object) -> tuple[Path, str]:
    (folder / "plan.toml").write_text(plan_text)
    done = ghostnet("simulate", folder / "plan.toml", *more, "--out", folder / "run")
    return folder / "run", done.stderr + done.stdout


def known(run: Path) -> list[str]:
    """`--key NAME=KEY` of every hospital of a run."""
    return [part for name, key in keys_of(run / "sites").items() for part in ("--key", f"{name}={key}")]


def warm_only() -> str:
    return (
        tiny_plan_text(rounds="rounds = 0", classifier_steps="classifier_steps = 2")
        .replace("steps = 4\n", "steps = 0\n")
        .replace("epsilon = 10.0", "epsilon = 15.0")
    )


@UNIT_OF
def test_a_simulation_over_a_file_runs_says_and_signs_the_unit_of_the_file(unit: str, tmp_path: Path) -> None:
    data = write_striped_npz(tmp_path / "data.npz")
    if unit == "image":
        without_patients(data)
    run, said = simulate(tmp_path, warm_only(), "--data", data, "--sites", 2)
    notice = [line for line in said.splitlines() if "privacy.unit = 'image'" in line]
    assert len(notice) == (unit == "image")
    plan = load_plan(run / "plan.toml")
    assert plan.privacy.unit == unit
    certificate = json.loads((run / "sampler" / "certificate.json").read_text())
    assert certificate["plan_hash"] == plan.hash()
    assert certificate["protects"] == SAYS[unit]
    assert {statement["unit"] for statement in certificate["statements"]} == {unit}
    report = json.loads((run / "report.json").read_text())
    assert {name: report["privacy"][name] for name in unit_facts("patient")} == unit_facts(certificate["unit"])
    assert any("several identifiers" in line for line in report["privacy"]["not_covered"])
    for text in ((run / "report.html").read_text(), (run / "sampler" / "README.md").read_text()):
        says_only(text, unit)
    says_only("\n".join(line for line in said.splitlines() if line.startswith("epsilon")), unit)
    says_only(ghostnet("verify", run / "sampler", *known(run)).stdout, unit)
    says_only(ghostnet("plan", "check", run / "plan.toml").stdout, unit)
    for site in sorted(file.parent for file in (run / "sites").glob("*/site.toml")):
        assert audit_ledger(site / "ledger.sqlite").unit == unit
        assert ("patient" in np.load(site / "data.npz")) == (unit == "patient")
        assert protects(certificate["unit"]) in (site / "site.toml").read_text()
    record = json.loads((run / "server/run.json").read_text())
    seconds = times([report["timing"], record["timings"], record["server_s"]])
    assert len(seconds) > 6
    assert max(seconds) > 0
    assert [value for value in seconds if value != round(value, 1)] == []  # finer ones would tell who was drawn


def test_one_hospital_without_patients_makes_a_simulation_per_image(tmp_path: Path) -> None:
    # In folders whose names hold a comma, before their state folders exist.
    files = [hospital(tmp_path / f"a, {name}", unit, name) for name, unit in (("north", "patient"), ("south", "image"))]
    for file in files:
        file.write_text('state = "new/state"\n' + file.read_text())
    run, said = simulate(tmp_path, warm_only(), *(part for file in files for part in ("--site", file)))
    (notice,) = [line for line in said.splitlines() if "privacy.unit = 'image'" in line]
    assert "(south)" in notice
    assert load_plan(run / "plan.toml").privacy.unit == "image"
    certificate = json.loads((run / "sampler" / "certificate.json").read_text())
    assert certificate["protects"] == SAYS["image"]
    signed = {statement["site"]: statement["unit"] for statement in certificate["statements"]}
    assert signed == {"north": "patient", "south": "image"}
    given = [part for file in files for part in ("--key", ghostnet("site", "key", file).stdout.strip())]
    assert ghostnet("verify", run / "sampler", *given).returncode == 0
