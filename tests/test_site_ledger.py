"""`ghostnet site ledger`, and what `site check` says of other state folders with the same images."""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.config import load_site
from client.prepared import FILE, KEY_FILE, prepared_elsewhere
from client.site import Site
from ghostnet.accounting.plan_cost import claim, resolve
from ghostnet.cli.main import app
from ghostnet.errors import LedgerError, SiteError
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.plan import Plan
from tests.client.intake.dicom_files import write_hospital
from tests.client.intake.dicom_files import write_site as write_dicom_site
from tests.command_line import ghostnet
from tests.plans import tiny_plan, tiny_plan_text, write_striped_npz

SITE = """
name = "north"
[data]
kind = "npz"
path = "{data}"
[policy]
max_epsilon = 12.0
delta = 1e-5
"""


@pytest.fixture(autouse=True)
def user_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "ghostnet"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(tiny_plan())


def hospital(folder: Path, data: str = "data.npz") -> Path:
    folder.mkdir()
    if data == "data.npz":
        write_striped_npz(folder / data, patients=20)
    (folder / "site.toml").write_text(SITE.format(data=data))
    return folder / "site.toml"


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    return hospital(tmp_path / "north")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["site", *map(str, arguments)])


def told(site_file: Path) -> dict[str, object]:
    return dict(json.loads(command("ledger", site_file, "--json").stdout))


# site ledger


def test_it_tells_path_entries_head_witness_runs_and_what_is_spent(site_file: Path, plan: Plan) -> None:
    assert (told(site_file)["state"], command("ledger", site_file).exit_code) == ("not started", 0)
    assert not load_site(site_file).ledger_path.exists()  # looking starts nothing
    run = secrets.token_hex(16)
    Site(load_site(site_file)).join(plan, run)
    report = told(site_file)
    entries = verify_ledger(load_site(site_file).ledger_path)
    assert report == {
        "path": str(site_file.parent / "ledger.sqlite"),
        "witness": str(site_file.parent.with_name("north.witness")),
        "state": "in order",
        "why": [],
        "entries": 2,
        "head": entries[-1].hash,
        "runs": [{"run": run, "reserved": entries[-1].fields["time"], "epsilon_pld": claim(plan).epsilon_pld}],
        "adoptions": [],
        "epsilon_spent": claim(plan).epsilon_pld,
        "epsilon_cap": 12.0,
        "delta": 1e-5,
        "protects": "per patient, with all their images",
        "adjacency": "add/remove one patient",
    }
    shown = " ".join(command("ledger", site_file).stdout.split())
    assert "in order" in shown
    assert (
        "of 12 (delta 1e-05), per patient, with all their images; add/remove one patient; by this state folder alone"
        in shown
    )


def test_a_refused_ledger_is_exit_code_8_after_the_table_and_adopted_only_with_a_reason(
    site_file: Path, plan: Plan
) -> None:
    shutil.copytree(site_file.parent, site_file.parents[1] / "backup")
    Site(load_site(site_file)).join(plan, secrets.token_hex(16))
    for name in ("ledger.sqlite", "ledger.head"):
        (site_file.parent / name).unlink()
    done = ghostnet("site", "ledger", site_file, check=False)
    assert done.returncode == 8, done.stderr
    assert "refused" in done.stdout
    assert "there was a ledger" in done.stderr
    assert "Traceback" not in done.stderr
    for wrong in (["--adopt"], ["--reason", "fire"], ["--adopt", "--reason", " "], ["--lost", "ab" * 32]):
        assert command("ledger", site_file, *wrong).exit_code == 2
    with pytest.raises(LedgerError, match="there was a ledger"):
        Site(load_site(site_file)).join(plan, secrets.token_hex(16))
    done = ghostnet("site", "ledger", site_file, "--adopt", "--reason", "the disk burnt; its backup too")
    assert "started in place of one that is lost" in " ".join(done.stdout.split())
    assert [entry.kind for entry in verify_ledger(site_file.parent / "ledger.sqlite")] == ["open", "adopt"]
    Site(load_site(site_file)).join(plan, secrets.token_hex(16))
    again = command("ledger", site_file, "--adopt", "--reason", "once more")
    assert isinstance(again.exception, LedgerError)
    assert "nothing to adopt" in str(again.exception)
    budget = json.loads(command("budget", site_file, "--json").stdout)
    assert budget["adoptions"][0]["reason"] == "the disk burnt; its backup too"


def test_a_lost_key_is_made_anew_by_an_adoption_alone(site_file: Path, plan: Plan) -> None:
    site = Site(load_site(site_file))
    site.join(plan, "ab" * 16)
    (site_file.parent / "site.key").unlink()
    for request in (lambda s: s.join(plan, "ab" * 16), lambda s: s.warm_start(plan, "ab" * 16)):
        with pytest.raises(LedgerError, match=r"site.key is gone and the ledger is not"):
            request(Site(load_site(site_file)))
    assert isinstance(command("key", site_file).exception, SiteError)
    assert told(site_file)["state"] == "refused"
    assert command("ledger", site_file, "--adopt", "--reason", "key lost").exit_code == 0
    assert verify_ledger(site_file.parent / "ledger.sqlite")[-1].fields["missing"] == ["key"]
    Site(load_site(site_file)).join(plan, "ab" * 16)


def test_a_head_that_a_coordinator_has_seen_is_given_up_with_lost(site_file: Path, plan: Plan) -> None:
    site, seen = Site(load_site(site_file)), "ab" * 32
    site.join(plan, "ab" * 16)
    with pytest.raises(LedgerError, match=f"lacks entry {seen}"):
        site.join(plan, "ab" * 16, known_head=seen)
    assert command("ledger", site_file, "--adopt", "--reason", "snapshot put back", "--lost", seen).exit_code == 0
    site.join(plan, "ab" * 16, known_head=seen)


def test_it_works_beside_a_hospital_at_work_and_shows_a_damaged_entry(site_file: Path, plan: Plan) -> None:
    site = Site(load_site(site_file))
    site.join(plan, "ab" * 16)
    with site._ledger():
        assert told(site_file)["state"] == "in order"
    with closing(sqlite3.connect(site_file.parent / "ledger.sqlite")) as database, database:
        database.execute("UPDATE entries SET body = replace(body, 'reserve', 'refund') WHERE sequence = 2")
    report = told(site_file)
    assert report["state"] == "refused"
    assert "entry 2" in str(report["why"])
    adopting = command("ledger", site_file, "--adopt", "--reason", "damaged")
    assert isinstance(adopting.exception, LedgerError)


def test_a_key_before_the_first_run_starts_the_ledger_that_it_belongs_to(site_file: Path, plan: Plan) -> None:
    assert command("key", site_file).exit_code == 0
    assert [entry.kind for entry in verify_ledger(site_file.parent / "ledger.sqlite")] == ["open"]
    Site(load_site(site_file)).join(plan, secrets.token_hex(16))


def test_a_witness_inside_the_state_folder_is_refused(site_file: Path) -> None:
    site_file.write_text(site_file.read_text() + 'witness = "witness"\n')
    with pytest.raises(SiteError, match="inside the state folder"):
        load_site(site_file)
    site_file.write_text(site_file.read_text().replace('"witness"', '"../other/north"'))
    assert load_site(site_file).witness_path == site_file.parents[1] / "other" / "north"


# site check: two state folders over the same images.


def check(site_file: Path, plan_file: Path) -> dict[str, object]:
    done = command("check", site_file, "--plan", plan_file, "--json")
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    return tmp_path / "plan.toml"


def test_images_that_another_state_folder_has_prepared_are_told(
    site_file: Path, plan_file: Path, tmp_path: Path, user_state: Path
) -> None:
    assert check(site_file, plan_file)["prepared_elsewhere"] == {}
    assert check(site_file, plan_file)["prepared_elsewhere"] == {}  # again, in the same state folder
    second = hospital(tmp_path / "second", str(site_file.parent / "data.npz"))
    larger = tmp_path / "larger.toml"
    larger.write_text(tiny_plan_text(size="size = 32", feature_size="feature_size = 16"))
    images = len({image.tobytes() for image in np.load(site_file.parent / "data.npz")["images"]})
    found = check(second, larger)  # whatever plan
    assert found["prepared_elsewhere"] == {str(site_file.parent): images}
    assert "A budget belongs to one state folder" in found["next"][0]  # type: ignore[index]
    assert str(site_file.parent) in command("check", second, "--plan", plan_file).stdout.replace("\n", "")
    write_striped_npz(tmp_path / "other.npz", patients=20, seed=5)
    third = hospital(tmp_path / "third", str(tmp_path / "other.npz"))
    assert check(third, plan_file)["prepared_elsewhere"] == {}
    shutil.rmtree(site_file.parent.with_name("second"))
    assert prepared_elsewhere(site_file.parent) == {str(tmp_path / "second"): images}
    for name in (FILE, KEY_FILE):
        assert (user_state / name).stat().st_mode & 0o077 == 0


def test_a_run_counts_as_prepared_too(site_file: Path, plan: Plan, plan_file: Path, tmp_path: Path) -> None:
    site = Site(load_site(site_file))
    site.join(plan, "ab" * 16)
    site.warm_start(plan, "ab" * 16)
    second = hospital(tmp_path / "second", str(site_file.parent / "data.npz"))
    assert str(site_file.parent) in check(second, plan_file)["prepared_elsewhere"]  # type: ignore[operator]


def test_files_are_known_by_their_content_and_forgotten_with_their_patient(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write_hospital(first, patients=3, images=2)
    trust = 'burned_in = "trust"\ntrusted_modalities = ["CR"]\nmodalities = ["CR"]'
    config = write_dicom_site(first, deidentify=trust)
    shutil.copytree(first / "images", second / "images")
    shutil.copy(first / "labels.csv", second)
    other = write_dicom_site(second, deidentify=trust)
    plan_file = tmp_path / "plan.toml"
    text = tiny_plan_text(labels='labels = ["normal", "lesion"]', epsilon="epsilon = 8.0")
    plan_file.write_text(text.replace("noise_multiplier = 0.6", "noise_multiplier = 1.5"))
    for source in (config.source, other.source):
        found = check(source, plan_file)
    assert found["prepared_elsewhere"] == {str(config.state): 6}
    for image in sorted((first / "images").rglob("*.dcm"))[:2]:
        image.unlink()
    check(config.source, plan_file)
    assert check(other.source, plan_file)["prepared_elsewhere"] == {str(config.state): 4}


def test_no_digest_can_be_looked_up_without_this_machines_key(
    site_file: Path, plan_file: Path, user_state: Path
) -> None:
    import hashlib

    check(site_file, plan_file)
    stored = (user_state / FILE).read_bytes()
    with closing(sqlite3.connect(user_state / FILE)) as database:
        digests = [digest for (digest,) in database.execute("SELECT digest FROM prepared")]
    assert digests
    for image in np.load(site_file.parent / "data.npz")["images"]:
        assert hashlib.sha256(image.tobytes()).digest()[:16] not in stored


def test_a_folder_that_cannot_be_written_is_said_and_stops_no_intake(
    site_file: Path, plan: Plan, plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a-file"))
    found = check(site_file, plan_file)
    assert "other state folders were not looked at" in found["next"][0]  # type: ignore[index]
    site = Site(load_site(site_file))
    site.join(plan, "ab" * 16)
    site.warm_start(plan, "ab" * 16)
