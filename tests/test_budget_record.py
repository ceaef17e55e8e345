"""`ghostnet site budget --record`: the page says what the ledger says, invents nothing, and is whole or not there."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import secrets
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.audited import HOSPITAL
from client.config import load_site
from client.site import Site
from ghostnet.accounting.epsilon import epsilon_pld, epsilon_rdp
from ghostnet.accounting.events import coalition_events
from ghostnet.accounting.plan_cost import claim, plan_events, resolve
from ghostnet.audit.mechanism import audit_loop
from ghostnet.audit.result import read_result
from ghostnet.cli.main import app
from ghostnet.errors import AuditError
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.plan import Plan
from tests.command_line import ghostnet
from tests.entropy import SeededEntropy
from tests.plans import tiny_plan, write_striped_npz
from tests.planted.audit_builds import BUILDS
from tests.test_audit_mechanism import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")

SITE = """
name = "north"
[data]
kind = "npz"
path = "data.npz"
[policy]
max_epsilon = 40.0
max_coalition_epsilon = 200.0
delta = 1e-5
"""
DELTA = 1e-5


class Page(html.parser.HTMLParser):
    """The visible text of a page, its tags and every attribute."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(path.read_text())
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def lines(self) -> int:
        """Empty lines to write on."""
        return sum(name == "class" and "line" in (value or "").split() for name, value in self.attributes)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(tiny_plan())


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    folder = tmp_path / "north"
    folder.mkdir()
    write_striped_npz(folder / "data.npz", patients=20)
    (folder / "site.toml").write_text(SITE)
    return folder / "site.toml"


def join(site_file: Path, plan: Plan) -> str:
    run = secrets.token_hex(16)
    Site(load_site(site_file)).join(plan, run)
    return run


def budget(site_file: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["site", "budget", str(site_file), *map(str, arguments)])


def record(site_file: Path, *arguments: object) -> Page:
    path = site_file.parents[1] / f"record-{secrets.token_hex(4)}.html"
    done = budget(site_file, "--record", path, *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return Page(path)


@cache
def audit_json(build: str) -> str:
    """What `ghostnet audit mechanism --json` prints of a build, at a small size and of its training loop alone."""
    audit = audit_loop(BUILDS.get(build, HOSPITAL), SMALL, entropy=SeededEntropy(1))
    return json.dumps(audit.to_dict())


def audit_file(folder: Path, text: str) -> Path:
    path = folder / "audit.json"
    path.write_text(text)
    return path


def test_the_command_writes_the_page_beside_the_same_report_and_changes_nothing_else(
    site_file: Path, plan: Plan
) -> None:
    run = join(site_file, plan)
    Site(load_site(site_file)).warm_start(plan, run)
    path = site_file.parents[1] / "record.html"
    ledger = [
        site_file.with_name("ledger.sqlite"),
        site_file.with_name("ledger.head"),
        site_file.parents[1] / "north.witness",
    ]
    before = [(file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in ledger]
    done = ghostnet("site", "budget", site_file, "--record", path, "--json")
    assert "record:" in done.stderr
    assert json.loads(done.stdout)["runs"][0]["run_id"] == run
    assert [(file.read_bytes(), file.stat().st_mtime_ns, file.stat().st_ino) for file in ledger] == before
    page = Page(path)
    entries = verify_ledger(ledger[0])
    epsilon = claim(plan).epsilon_pld
    for said in (
        "Privacy budget record: north",
        f"{len(entries)} entries, newest {entries[-1].hash}",
        f"Cumulative epsilon{epsilon:.4f} of a cap of 40; {40 - epsilon:.4f} left (1 run(s)",
        f"RDP, gives {claim(plan).epsilon_rdp:.4f}",
        "per patient, with all their images; add/remove one patient",
        "Delta1e-05",
        run,
        plan.hash()[:32],
        f"{epsilon:.4f} (1e-05), 40per patient",
        "1 answered",
        "one unit adds at most, in standard deviations of the noise",
        "warm start: 1 sum over all: 1.67",
        "discriminator steps: 4 sums over samples at rate 0.3: 1",
        "utility counts: 1 sum over all: 0.5",
        "The hospital's own software adds all of the noise",
        "No audit result was given.",
    ):
        assert said in page.text, said
    assert re.search(r"Made \d{4}-\d\d-\d\d \d\d:\d\d UTC", page.text)
    assert "begun without an answer" not in page.text
    assert page.lines == 4  # the reason for delta; date, name, signature


def test_the_page_loads_nothing_and_prints_on_a4(site_file: Path, plan: Plan) -> None:
    join(site_file, plan)
    page = record(site_file)
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(page.tags)
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "onload"}
    text = "".join(page.parts)
    assert "@page { size: A4;" in text
    assert '"DejaVu Sans"' in text  # styles are not escaped: a browser would drop them
    assert not re.search(r"https?:|@import|url\(", text)


def test_the_epsilon_is_that_of_all_runs_also_of_those_that_the_table_leaves_out(site_file: Path, plan: Plan) -> None:
    runs = [join(site_file, plan) for _ in range(8)]
    page = record(site_file)
    events = plan_events(plan) * 8
    total = epsilon_pld(events, DELTA)
    assert f"Cumulative epsilon{total:.4f} of a cap of 40; {40 - total:.4f} left (8 run(s)" in page.text
    assert f"RDP, gives {epsilon_rdp(events, DELTA):.4f}" in page.text
    assert [run in page.text for run in runs] == [False] * 5 + [True] * 3
    assert "5 earlier run(s) are in the cumulative epsilon" in page.text


def test_cap_and_delta_are_those_of_site_toml_today(site_file: Path, plan: Plan) -> None:
    join(site_file, plan)
    site_file.write_text(SITE.replace("delta = 1e-5", "delta = 1e-3").replace("40.0", "17.5"))
    page = record(site_file)
    total = epsilon_pld(plan_events(plan), 1e-3)
    assert total < claim(plan).epsilon_pld
    assert f"Cumulative epsilon{total:.4f} of a cap of 17.5; {17.5 - total:.4f} left" in page.text
    assert f"{claim(plan).epsilon_pld:.4f} (1e-05), 40" in page.text  # the run, as it was charged


def test_a_pooled_run_names_what_the_others_together_could_learn(site_file: Path) -> None:
    plan = resolve(tiny_plan(patients='patients = 20\nshare = "pooled"\nhospitals = 4', epsilon="epsilon = 30.0"))
    join(site_file, plan)
    page = record(site_file)
    together = epsilon_pld(coalition_events(plan_events(plan)), DELTA)
    assert together > claim(plan).epsilon_pld
    assert f"it is {together:.4f} of a cap of 200 at delta 1e-05" in page.text
    assert "at rate 0.3: 1 (of the hospital's own share of noise: 2)" in page.text
    assert "adds all of the noise" not in page.text


def test_images_without_patients_are_said_as_such(site_file: Path) -> None:
    plan = tiny_plan(delta='delta = 1e-5\nunit = "image"')
    assert plan.privacy.unit == "image"
    write_striped_npz(site_file.with_name("data.npz"), patients=20)
    columns = dict(np.load(site_file.with_name("data.npz")))
    np.savez(site_file.with_name("data.npz"), **{name: value for name, value in columns.items() if name != "patient"})
    join(site_file, resolve(plan))
    page = record(site_file)
    assert "per image: this data names no patients; add/remove one image" in page.text
    assert "per image" in page.text


def test_a_ledger_without_a_run_has_spent_nothing(site_file: Path) -> None:
    assert CliRunner().invoke(app, ["site", "key", str(site_file)]).exit_code == 0
    page = record(site_file)
    assert "Cumulative epsilon0.0000 of a cap of 40; 40.0000 left (0 run(s)" in page.text
    assert "No run has been reserved." in page.text


def test_a_reason_is_printed_as_text_and_leaves_no_line_for_it(site_file: Path, plan: Plan) -> None:
    join(site_file, plan)
    reason = "1 / 40,000 patients <script>alert(1)</script> & board decision 7"
    page = record(site_file, "--delta-reason", reason)
    assert f"Reason for delta {reason}" in page.text
    assert "script" not in page.tags
    assert page.lines == 3


@pytest.mark.parametrize("build", ["hospital", "QUARTER_CLAIMED"])
def test_an_audit_is_told_as_its_file_says_it(build: str, site_file: Path, plan: Plan, tmp_path: Path) -> None:
    join(site_file, plan)
    found = json.loads(audit_json(build))
    page = record(site_file, "--audit", audit_file(tmp_path, audit_json(build)))
    checks, failed = len(found["findings"]), found["failed"]
    verdict = f"{'FAIL' if failed else 'pass'}: {checks - len(failed)} of {checks} checks held (build {found['build']})"
    assert (found["verdict"], bool(failed)) == (("pass", False) if build == "hospital" else ("fail", True))
    assert verdict in page.text
    assert (f"; failed: {', '.join(failed)}." in page.text) == bool(failed)
    assert f"lower bound measured with canaries {found['lower_bounds']['one_run']:g}" in page.text
    assert "From audit.json, SHA-256" in page.text
    assert "No audit result" not in page.text


def test_half_a_character_and_markup_in_an_audit_or_a_reason_are_text(
    site_file: Path, plan: Plan, tmp_path: Path
) -> None:
    join(site_file, plan)
    document = json.loads(audit_json("hospital")) | {"build": "\ud800<script>alert(1)</script>"}
    file = audit_file(tmp_path, json.dumps(document))
    page = record(site_file, "--audit", file, "--delta-reason", "\udcff<img src=x>")
    assert "\\ud800<script>alert(1)</script>" in page.text
    assert "\\udcff<img src=x>" in page.text
    assert {"script", "img"}.isdisjoint(page.tags)


def edited(change: str) -> str:
    document = json.loads(audit_json("QUARTER_CLAIMED"))
    if change == "verdict":
        document["verdict"] = "pass"
    elif change == "failed":
        document |= {"verdict": "pass", "failed": []}
    elif change == "no findings":
        document |= {"verdict": "pass", "failed": [], "findings": []}
    elif change == "bound":
        document["lower_bounds"]["one_run"] = "low"
    elif change == "claim":
        del document["claim"]
    return json.dumps(document)


@pytest.mark.parametrize(
    "text",
    [
        *(pytest.param(c, id=c) for c in ("verdict", "failed", "no findings", "bound", "claim")),
        "",
        "[]",
        "{}",
        "pass",
        "[" * 9999,
    ],
)
def test_what_is_no_audit_is_refused_and_nothing_is_written(
    text: str, site_file: Path, plan: Plan, tmp_path: Path
) -> None:
    join(site_file, plan)
    words = edited(text) if text in ("verdict", "failed", "no findings", "bound", "claim") else text
    path = audit_file(tmp_path, words)
    with pytest.raises(AuditError, match="audit mechanism --json"):
        read_result(path)
    done = budget(site_file, "--record", tmp_path / "record.html", "--audit", path)
    assert isinstance(done.exception, AuditError)
    assert not (tmp_path / "record.html").exists()


def test_no_record_is_made_of_a_ledger_of_which_something_is_missing_until_a_person_says_so(
    site_file: Path, plan: Plan
) -> None:
    path = site_file.parents[1] / "record.html"
    join(site_file, plan)
    for name in ("ledger.sqlite", "ledger.head"):
        site_file.with_name(name).unlink()
    done = ghostnet("site", "budget", site_file, "--record", path, check=False)
    assert done.returncode == 8, done.stderr
    assert not path.exists()
    adopt = ["site", "ledger", site_file, "--adopt", "--reason", "the disk <b>burned</b>"]
    ghostnet(*adopt)
    join(site_file, plan)
    ghostnet("site", "budget", site_file, "--record", path)
    page = Page(path)
    assert "This ledger was ADOPTED 1 time(s)" in page.text
    assert "the disk <b>burned</b> (missing: every entry" in page.text
    assert "b" not in page.tags


def test_a_record_of_a_restored_folder_is_refused(site_file: Path, plan: Plan) -> None:
    path, backup = site_file.parents[1] / "record.html", site_file.parents[1] / "backup"
    join(site_file, plan)
    shutil.copytree(site_file.parent, backup)
    join(site_file, plan)
    shutil.rmtree(site_file.parent)
    shutil.copytree(backup, site_file.parent)
    assert budget(site_file).exit_code == 0  # the ledger that is there holds; it is only not the newest
    done = ghostnet("site", "budget", site_file, "--record", path, check=False)
    assert (done.returncode, path.exists()) == (8, False)
    assert "something is missing" in done.stderr


def test_a_file_that_is_there_is_never_replaced_and_a_failed_write_leaves_nothing(
    site_file: Path, plan: Plan, tmp_path: Path
) -> None:
    join(site_file, plan)
    old = tmp_path / "record.html"
    old.write_text("signed")
    done = ghostnet("site", "budget", site_file, "--record", old, check=False)
    assert (done.returncode, old.read_text()) == (11, "signed")
    before = sorted(tmp_path.iterdir())
    done = ghostnet("site", "budget", site_file, "--record", tmp_path / "no" / "record.html", check=False)
    assert done.returncode == 11
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_the_record_go_with_it_and_a_reason_has_to_fit(site_file: Path, plan: Plan, tmp_path: Path) -> None:
    join(site_file, plan)
    for wrong in (["--delta-reason", "x"], ["--audit", tmp_path / "audit.json"]):
        assert budget(site_file, *wrong).exit_code == 2
    done = ghostnet(
        "site", "budget", site_file, "--record", tmp_path / "r.html", "--delta-reason", "x" * 301, check=False
    )
    assert done.returncode == 1
    assert "room for 300" in done.stderr
    assert not (tmp_path / "r.html").exists()


def test_noise_in_words_is_the_bound_over_the_noise(site_file: Path, plan: Plan) -> None:
    weak = dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, noise_multiplier=8.0))
    join(site_file, weak)
    assert "at rate 0.3: 0.125" in record(site_file).text
