"""`ghostnet site init` and `site check`: what they write can be read, what they show says what to do."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from client.config import SiteConfig, load_site
from client.intake.images import SourceCounts
from client.intake.summary import IntakeTable
from client.quarantine import EXPLAINED, Code
from client.site_toml import site_text, write_site
from ghostnet.accounting.plan_cost import plan_events
from ghostnet.cli.site import app
from ghostnet.cli.site_init import kind_of
from ghostnet.cli.site_table import intake_view, next_steps
from ghostnet.cli.site_verdict import site_verdict
from ghostnet.errors import SiteError
from ghostnet.evidence import keys
from ghostnet.evidence.ledger import Ledger
from ghostnet.plan import load_plan
from ghostnet.plan.keys import keys_of
from tests.client.intake.dicom_files import write_hospital
from tests.client.intake.dicom_files import write_site as write_plain_site
from tests.command_line import ghostnet
from tests.plans import tiny_plan_text

NEEDED: dict[str, dict[str, object]] = {
    "dicom": {"data.path": "images", "data.labels": "labels.csv"},
    "images": {"data.path": "images", "data.labels": "labels.csv", "data.modality": "DX"},
    "nifti": {"data.path": "images", "data.labels": "labels.csv", "data.modality": "MR"},
    "npz": {"data.path": "images.npz"},
    "pacs": {"data.labels": "labels.csv", "pacs.protocol": "dicomweb", "pacs.url": "https://pacs.example/dicom-web"},
}


NAMED = {"site": Path("site.toml"), "plan": Path("plan.toml"), "quarantine": Path("state/quarantine.csv")}


def answers(kind: str, **more: object) -> dict[str, object]:
    least = {"name": "north", "state": "state", "data.kind": kind, "policy.max_epsilon": 4.0, "policy.delta": 1e-6}
    return least | NEEDED[kind] | more


def run(folder: Path, *arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, ["init", str(folder), *arguments], input=typed)


# --- The template ---


@pytest.mark.parametrize("kind", NEEDED)
def test_every_kind_of_site_is_written_with_every_key_and_read_back(kind: str, tmp_path: Path) -> None:
    write_site(tmp_path / "site.toml", answers(kind))
    text = (tmp_path / "site.toml").read_text()
    config = load_site(tmp_path / "site.toml")
    assert (config.name, config.data.kind, config.policy.max_epsilon) == ("north", kind, 4.0)
    assert config.state == tmp_path / "state"
    for key in keys_of(SiteConfig):
        assert re.search(rf"^(# )?{key.dotted.rpartition('.')[2]} = ", text, re.M), key.dotted
    assert [path.name for path in tmp_path.iterdir()] == ["site.toml"]


@pytest.mark.parametrize("kind", NEEDED)
def test_what_is_shown_as_left_out_is_valid_once_it_is_put_in(kind: str) -> None:
    lines = site_text(answers(kind)).splitlines()
    shown = [line.removeprefix("# ") for line in lines if re.match(r"# \w+ = ", line)]
    for line in shown:
        assert tomllib.loads(line)


def test_a_default_that_is_shown_is_the_default(tmp_path: Path) -> None:
    write_site(tmp_path / "site.toml", answers("dicom"))
    full = load_site(tmp_path / "site.toml")
    (tmp_path / "least").mkdir()
    least = (
        'name = "north"\nstate = "../state"\n[data]\nkind = "dicom"\npath = "../images"\nlabels = "../labels.csv"\n'
        "[policy]\nmax_epsilon = 4.0\ndelta = 1e-6\n"
    )
    (tmp_path / "least" / "site.toml").write_text(least)
    short = load_site(tmp_path / "least" / "site.toml")
    for part in ("state", "data", "labels", "pacs", "cohort", "deidentify", "policy"):
        assert getattr(full, part) == getattr(short, part), part


def test_any_text_survives_being_written(tmp_path: Path) -> None:
    path = 'bil"der\\süd [x] # \u2028'
    write_site(tmp_path / "site.toml", answers("dicom", **{"data.path": path, "labels.map": {'a"b': "c"}}))
    config = load_site(tmp_path / "site.toml")
    assert config.data.path == tmp_path / path
    assert config.labels.map == {'a"b': "c"}


# --- init ---


def test_a_script_can_give_every_answer(tmp_path: Path) -> None:
    write_hospital(tmp_path)
    (tmp_path / "site.toml").unlink()
    done = run(tmp_path, "--name", "south", "--max-epsilon", "8", "--delta", "1e-5", "--yes")
    assert done.exit_code == 0, done.output
    config = load_site(tmp_path / "site.toml")
    assert (config.data.kind, config.data.path) == ("dicom", tmp_path / "images")
    assert config.data.labels == tmp_path / "labels.csv"
    assert "ghostnet site check" in done.stdout.splitlines()[-1]


def test_a_person_is_asked_and_may_take_what_is_proposed(tmp_path: Path) -> None:
    write_hospital(tmp_path)
    (tmp_path / "site.toml").unlink()
    done = run(tmp_path, "--test-fraction", "0.25", typed="harbour\n\n\n\n\n\n6.5\n1e-6\n")
    assert done.exit_code == 0, done.output
    config = load_site(tmp_path / "site.toml")
    assert (config.name, config.policy.max_epsilon, config.cohort.test_fraction) == ("harbour", 6.5, 0.25)
    assert "Kind of data" in done.stderr
    assert "Share of patients" not in done.output  # what was given is not asked


def test_a_period_of_a_pacs_needs_no_label_table(tmp_path: Path) -> None:
    given = ["--name", "south", "--max-epsilon", "8", "--delta", "1e-5", "--kind", "pacs", "--yes"]
    pacs = ["--pacs-url", "https://pacs.example/dicom-web", "--pacs-study-date", "20200101-20201231"]
    files = ["--pacs-credentials", "pacs.secret", "--pacs-ca-file", "ca.pem"]
    refused = run(tmp_path, *given, *pacs, *files)
    assert "--missing-label" in str(refused.exception)  # one label for all of them, and nothing can be proposed
    done = run(tmp_path, *given, *pacs, *files, "--missing-label", "normal")
    assert done.exit_code == 0, done.output
    config = load_site(tmp_path / "site.toml")
    assert config.pacs is not None
    assert (config.data.labels, config.labels.missing, config.pacs.study_date) == (None, "normal", "20200101-20201231")
    assert (config.pacs.credentials, config.pacs.ca_file) == (tmp_path / "pacs.secret", tmp_path / "ca.pem")


def test_a_table_of_chest_x_rays_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "Data_Entry.csv").write_text("Image Index,Finding Labels,Patient ID\na.png,No Finding,1\n")
    done = run(tmp_path, "--name", "south", "--max-epsilon", "8", "--delta", "1e-5", "--modality", "DX", "--yes")
    assert done.exit_code == 0, done.output
    config = load_site(tmp_path / "site.toml")
    assert (config.data.kind, config.data.layout, config.data.modality) == ("images", "nih", "DX")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a", bytes(128) + b"DICM" + bytes(16), "dicom"),
        ("a.jpg", b"\xff\xd8\xff\xe0" + bytes(16), "images"),
        ("a.nii.gz", b"\x1f\x8b\x08" + bytes(16), "nifti"),
        ("a.npz", b"PK\x03\x04" + bytes(16), "npz"),
        ("a.txt", b"text", None),
    ],
)
def test_the_kind_is_seen_in_the_files(name: str, content: bytes, kind: str | None, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / name).write_bytes(content)
    (tmp_path / "labels.csv").write_text("image,label\n")
    assert kind_of(tmp_path) == kind


def test_a_site_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("mine")
    done = run(tmp_path, "--name", "south", "--yes")
    assert isinstance(done.exception, SiteError)
    with pytest.raises(SiteError, match="there already"):
        write_site(tmp_path / "site.toml", answers("npz"))
    assert (tmp_path / "site.toml").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--name", "South Hospital"], "name"),
        (["--name", "south", "--kind", "tape"], "data.kind"),
        (["--name", "south", "--state", "images/state"], "state lies inside"),
        (["--name", "south", "--test-fraction", "2"], "cohort.test_fraction"),
        (["--kind", "nifti"], "--modality"),
    ],
)
def test_answers_that_do_not_fit_leave_nothing_behind(arguments: list[str], said: str, tmp_path: Path) -> None:
    write_hospital(tmp_path)
    (tmp_path / "site.toml").unlink()
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, *arguments, "--max-epsilon", "8", "--delta", "1e-5", "--yes")
    assert isinstance(done.exception, SiteError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert f".{'site.toml'}." not in str(done.exception)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("folder", "values", "said"),
    [
        ("new/folder", {"name": "North"}, "it was not written"),
        ("new", {"data.path": os.fsdecode(b"caf\xe9")}, "no UTF-8 text"),
        ("file", {}, "cannot be written"),
        ("file/below", {}, "cannot be written"),
        ("x" * 300, {}, "cannot be written"),
    ],
)
def test_a_site_that_cannot_be_written_is_one_line_and_leaves_no_folder(
    folder: str, values: dict[str, object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SiteError, match=said) as caught:
        write_site(tmp_path / folder / "site.toml", answers("dicom") | values)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- check ---


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SiteConfig]:
    folder = tmp_path_factory.mktemp("checked")
    write_hospital(folder, patients=3, images=2)
    (folder / "images" / "notes.txt").write_text("no image")
    config = write_plain_site(
        folder, deidentify='burned_in = "trust"\ntrusted_modalities = ["CR"]\nmodalities = ["CR"]'
    )
    plan = tiny_plan_text(labels='labels = ["normal", "lesion"]', epsilon="epsilon = 8.0")
    (folder / "plan.toml").write_text(plan.replace("noise_multiplier = 0.6", "noise_multiplier = 1.5"))
    return folder, config


def shown(table: IntakeTable) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(intake_view(table, **NAMED))
    return console.export_text()


def test_the_table_says_what_was_taken_and_why_the_rest_was_not() -> None:
    table = IntakeTable(
        kind="dicom",
        found=20,
        taken=12,
        train_images=10,
        train_patients=5,
        held=3,
        modalities={"CR": 12},
        syntaxes={"JPEG baseline": 12},
        labels={"normal": 7, "lesion": 5},
        images_a_patient={"1": 4, "2-5": 2},
        quarantined={"HELD": 3, "NO_DECODER": 4, "TIMEOUT": 1},
        refused=(("ab" * 32, "HELD"),),
        source_counts=SourceCounts(rows_without_file=2),
    )
    text = shown(table)
    for word in ("JPEG baseline", "lesion", "2-5", "Modality", "quarantine.csv"):
        assert word in text
    for code in table.quarantined:
        assert " ".join(EXPLAINED[Code(code)].split()[:4]) in text
    for advice in ("ghostnet site review site.toml", "ghostnet doctor", "again", "2 line(s)", "site budget"):
        assert advice in " ".join(text.split())


def test_every_code_can_be_shown() -> None:
    text = shown(IntakeTable(kind="dicom", found=99, taken=0, quarantined={code.value: 1 for code in Code}))
    assert all(code.value in text for code in Code)
    assert "no image to train on" in text


def test_nothing_to_do_is_said_in_one_line() -> None:
    table = IntakeTable(kind="npz", found=3, taken=3, train_images=3)
    assert len(next_steps(table, site=Path("s.toml"), plan=Path("p.toml"), quarantine=Path("q.csv"))) == 1


def test_check_prints_json_and_the_table_of_the_same_intake(checked: tuple[Path, SiteConfig]) -> None:
    folder, config = checked
    arguments = ["check", str(folder / "site.toml"), "--plan", str(folder / "plan.toml")]
    first = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (first["taken"], first["quarantined"]) == (6, {"NOT_DICOM": 1})
    assert first["explained"] == {"NOT_DICOM": EXPLAINED[Code.NOT_DICOM]}
    assert first["quarantine"] == str(config.state / "quarantine.csv")
    assert first["next"]
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0
    assert "6" in next(line for line in again.stdout.splitlines() if "from the cache" in line)
    assert "NOT_DICOM" in again.stdout
    assert not config.ledger_path.exists()


def test_check_ends_in_a_verdict_on_images_policy_budget_and_time(checked: tuple[Path, SiteConfig]) -> None:
    folder, _ = checked
    arguments = ["check", str(folder / "site.toml"), "--plan", str(folder / "plan.toml")]
    done = CliRunner().invoke(app, arguments)
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("READY")
    assert [line.split()[0] for line in lines[-5:-1]] == ["images", "policy", "budget", "time"]
    assert "0.0000 of 8 spent" in lines[-3]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [(("epsilon = 8.0", "epsilon = 9.0"), 6, "P01"), (("batch = 16", "batch = 16\nsteps_ = 1"), 3, "steps_")],
)
def test_check_refuses_a_plan_as_join_would(
    change: tuple[str, str], code: int, said: str, checked: tuple[Path, SiteConfig], tmp_path: Path
) -> None:
    folder, _ = checked
    text = (folder / "plan.toml").read_text()
    assert change[0] in text
    (tmp_path / "plan.toml").write_text(text.replace(*change))
    done = CliRunner().invoke(app, ["check", str(folder / "site.toml"), "--plan", str(tmp_path / "plan.toml")])
    assert getattr(done.exception, "exit_code", None) == code, done.output
    assert said in str(done.exception)
    assert ("NOT READY: P01" in done.stdout) == (code == 6)


def test_check_refuses_what_the_budget_no_longer_carries(checked: tuple[Path, SiteConfig], tmp_path: Path) -> None:
    folder, config = checked
    plan = load_plan(folder / "plan.toml")
    table = IntakeTable(kind="dicom", found=9, taken=9, train_images=9, train_patients=3)
    spent = replace(config, state=tmp_path)
    fresh = site_verdict(spent, plan, table, unit="patient", seconds=1.0)
    assert not fresh.problems
    with Ledger.open(spent.ledger_path, site="north", unit="patient", witness=tmp_path / "witness") as ledger:
        ledger.reserve(run_id="a" * 32, plan_hash=plan.hash(), events=plan_events(plan), epsilon=8.0, delta=1e-5)
    over = site_verdict(spent, plan, table, unit="patient", seconds=1.0)
    assert [problem.exit_code for problem in over.problems] == [7]
    assert over.words.startswith("NOT READY: B01")
    assert config.policy.max_epsilon == 8.0


def test_the_budget_is_one_line_a_run_and_says_so_before_the_first(
    checked: tuple[Path, SiteConfig], tmp_path: Path
) -> None:
    folder, _ = checked
    text = (folder / "site.toml").read_text()
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("image,label\n")
    (tmp_path / "site.toml").write_text(text)
    config, plan = load_site(tmp_path / "site.toml"), load_plan(folder / "plan.toml")
    asked = ["budget", str(tmp_path / "site.toml")]
    before = CliRunner().invoke(app, asked)
    assert (before.exit_code, "no run yet; epsilon 0 of 8 spent, 8 left" in before.stdout) == (0, True), before.output
    assert json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["left"] == 8.0
    assert not config.ledger_path.exists()
    config.state.mkdir(exist_ok=True)
    with Ledger.open(config.ledger_path, site="north", unit="patient", witness=config.witness_path) as ledger:
        keys.load_or_create_key(config.key_path)
        ledger.reserve(run_id="a" * 32, plan_hash=plan.hash(), events=plan_events(plan), epsilon=8.0, delta=1e-5)
    after = CliRunner().invoke(app, asked)
    assert after.exit_code == 0, after.output
    assert "aaaaaaaa" in after.stdout
    assert "{" not in after.stdout  # no row of Python's own notation


def test_a_line_of_advice_can_be_pasted_whatever_the_folder_is_called() -> None:
    held = IntakeTable(kind="dicom", found=1, taken=0, quarantined={"HELD": 1})
    named = {"site": Path("our site/site.toml"), "plan": Path("plan.toml"), "quarantine": Path("q.csv")}
    (line,) = [step for step in next_steps(held, **named) if "site review" in step]
    assert line.endswith("ghostnet site review 'our site/site.toml' --plan plan.toml")


def test_a_site_with_nothing_to_train_on_is_exit_code_5_after_the_table(checked: tuple[Path, SiteConfig]) -> None:
    folder, _ = checked
    (folder / "labels.csv").write_text("image,label\nnone.dcm,normal\n")
    done = ghostnet("site", "check", folder / "site.toml", "--plan", folder / "plan.toml", check=False)
    assert done.returncode == 5, done.stderr
    assert "NO_LABEL" in done.stdout
    assert "Traceback" not in done.stderr


def test_what_a_pacs_did_not_send_is_shown_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    counts = SourceCounts(images_missing=13, studies_failed=14, studies_missing=15)
    lost = IntakeTable(kind="pacs", found=9, taken=9, train_images=9, source_counts=counts)
    steps = " ".join(next_steps(lost, **NAMED))
    assert all(text in steps for text in ("13 image(s)", "14 study(ies)", "15 study(ies)"))
    Console(width=100).print(intake_view(lost, **NAMED))
    assert re.search(r"did not send\s+13", capsys.readouterr().out)
