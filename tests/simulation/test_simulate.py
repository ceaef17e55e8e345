"""The main job, through the real command line: hospitals in, a checked sampler and report out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ghostnet.certificate.certificate import verify_sampler
from ghostnet.evidence.ledger import Ledger, verify_ledger
from tests.command_line import ghostnet, ghostnet_process
from tests.evidence.ledgers import reserve
from tests.plans import tiny_plan_text, write_striped_npz
from tests.samplers import keys_of


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished simulation with three hospitals, shared by the tests that only look."""
    folder = tmp_path_factory.mktemp("simulate")
    data = write_striped_npz(folder / "data.npz")
    (folder / "plan.toml").write_text(tiny_plan_text(classifier_steps="classifier_steps = 8\nreal_reference = true"))
    ghostnet_process("simulate", folder / "plan.toml", "--data", data, "--sites", 3, "--out", folder / "run")
    return folder / "run"


def test_a_run_leaves_the_files_of_the_contract(run_folder: Path) -> None:
    wanted = ["plan.toml", "report.html", "report.json"]
    wanted += [
        f"sampler/{f}"
        for f in (
            "README.md",
            "config.json",
            "model.safetensors",
            "certificate.json",
            "samples.png",
            "transcript.safetensors",
        )
    ]
    wanted += [f"sites/site-{i}/ledger.sqlite" for i in (1, 2, 3)]
    assert [name for name in wanted if not (run_folder / name).is_file()] == []
    assert not list(run_folder.rglob("*.tmp"))


def given_keys(run: Path) -> list[str]:
    """`--key NAME=KEY` of every hospital, as each prints its own."""
    printed = [ghostnet("site", "key", site).stdout.strip() for site in sorted(run.glob("sites/*/site.toml"))]
    return [part for entry in printed for part in ("--key", entry)]


def test_the_sampler_of_a_run_verifies_offline_and_one_changed_byte_does_not(run_folder: Path, tmp_path: Path) -> None:
    known = given_keys(run_folder)
    good = ghostnet_process("verify", run_folder / "sampler", *known)
    assert good.stdout.startswith("pass  keys: signed by site-1, site-2, site-3, with the keys that were given")
    assert "FAIL" not in good.stdout
    assert good.stdout.splitlines()[-1].startswith("not shown: ")
    assert "every check holds" in " ".join(good.stderr.split())
    copy = tmp_path / "sampler"
    copy.mkdir()
    for file in (run_folder / "sampler").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(weights))
    for options in (known, []):
        failed = ghostnet("verify", copy, *options, check=False)
        assert failed.returncode == 9
        assert "file model.safetensors" in failed.stderr
        assert "FAIL" in failed.stdout


def test_without_keys_a_sampler_is_of_unknown_keys_and_never_holds(run_folder: Path) -> None:
    unknown = ghostnet("verify", run_folder / "sampler", check=False)
    assert unknown.returncode == 15
    assert unknown.stdout.startswith("????  keys: unknown keys: site-1 ")
    assert "unknown keys" in unknown.stderr
    assert "holds" not in unknown.stderr
    as_json = ghostnet("verify", run_folder / "sampler", "--json", check=False)
    told = json.loads(as_json.stdout)
    assert (as_json.returncode, told["verdict"], told["passed"]) == (15, "unknown keys", False)
    assert told["not_shown"]
    told = json.loads(ghostnet("verify", run_folder / "sampler", "--json", *given_keys(run_folder)).stdout)
    assert (told["verdict"], told["passed"]) == ("holds", True)


def test_only_signatures_of_the_keys_that_one_was_given_count(run_folder: Path) -> None:
    sampler = run_folder / "sampler"
    sites = [run_folder / "sites" / f"site-{i}" / "site.toml" for i in (1, 2, 3)]
    given = [ghostnet("site", "key", site).stdout.strip() for site in sites]
    given.append(f"server={json.loads((sampler / 'certificate.json').read_text())['server_public_key']}")
    options = [part for entry in given for part in ("--key", entry)]
    assert ghostnet("verify", sampler, *options).returncode == 0
    assert ghostnet("verify", sampler, *options[:-2]).returncode == 0  # the coordinator's is new in every run
    missing = ghostnet("verify", sampler, *options[2:], check=False)
    assert (missing.returncode, "signed by site-1, of whom no key is given" in missing.stdout) == (9, True)
    silent = ghostnet("verify", sampler, *options, "--key", given[0].replace("site-1", "site-4"), check=False)
    assert (silent.returncode, "not signed by site-4" in silent.stdout) == (9, True)
    swapped = ["--key", given[0].replace("site-1", "site-2"), "--key", given[1].replace("site-2", "site-1")]
    wrong = ghostnet("verify", sampler, *swapped, *options[4:], check=False)
    assert (wrong.returncode, "not the known one: site-1, site-2" in wrong.stdout) == (9, True)
    assert ghostnet("verify", sampler, "--key", "site-1", check=False).returncode == 2


def test_a_hospital_has_a_key_before_its_first_run_and_no_second_one_beside_its_ledger(
    run_folder: Path, tmp_path: Path
) -> None:
    data = (run_folder / "sites" / "site-1" / "site.toml").read_text()
    site = tmp_path / "site.toml"
    site.write_text(data.replace('name = "site-1"', 'name = "north"').replace('\nstate = "."', '\nstate = "state"'))
    shutil.copy(run_folder / "sites" / "site-1" / "data.npz", tmp_path)
    first = ghostnet_process("site", "key", site).stdout
    assert re.fullmatch(r"north=[0-9a-f]{64}\n", first)
    assert ghostnet("site", "key", site).stdout == first
    (tmp_path / "state" / "site.key").unlink()
    with Ledger.open(tmp_path / "state" / "ledger.sqlite") as ledger:  # in use: coordinators know it by that key
        reserve(ledger)
    assert "restore the key" in ghostnet("site", "key", site, check=False).stderr


def test_the_report_has_the_promised_keys_and_a_guarantee_for_every_hospital(run_folder: Path) -> None:
    report = json.loads((run_folder / "report.json").read_text())
    assert {site["name"] for site in report["privacy"]["sites"]} == {"site-1", "site-2", "site-3"}
    assert 0 < report["privacy"]["epsilon_pld"] <= 10.0
    assert report["privacy"]["unit"] == "patient"
    assert set(report["utility"]["classification"]) >= {"metric", "value", "interval", "simulation"}
    assert [t["round"] for t in report["timing"]["rounds"] if t["phase"] == "train"] == [1, 2]
    html = (run_folder / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "https://" not in html


def test_every_ledger_holds_one_reservation_and_commits_each_request_once(run_folder: Path) -> None:
    for path in (run_folder / "sites").glob("*/ledger.sqlite"):
        kinds = [entry.kind for entry in verify_ledger(path)]
        assert kinds.count("reserve") == 1
        assert kinds.count("begin") == kinds.count("commit") == 4  # warm start, two rounds, finish
        assert kinds.index("reserve") < kinds.index("begin")


def test_the_sampler_draws_the_same_images_for_the_same_seed(run_folder: Path, tmp_path: Path) -> None:
    for name, run in (("a", ghostnet), ("b", ghostnet_process)):
        run("sample", run_folder / "sampler", "-n", 5, "--seed", 3, "--format", "npz", "-o", tmp_path / name)
    first, second = (np.load(next((tmp_path / name).glob("*.npz"))) for name in ("a", "b"))
    np.testing.assert_array_equal(first["images"], second["images"])
    assert first["images"].shape == (5, 28, 28)


def test_a_finished_run_is_never_overwritten(run_folder: Path) -> None:
    before = (run_folder / "report.json").read_bytes()
    again = ghostnet(
        "simulate", run_folder / "plan.toml", "--data", run_folder.parent / "data.npz", "--out", run_folder, check=False
    )
    assert again.returncode == 11
    assert (run_folder / "report.json").read_bytes() == before


def test_a_run_killed_in_training_resumes_without_a_second_charge(tmp_path: Path) -> None:
    data = write_striped_npz(tmp_path / "data.npz")
    plan = tiny_plan_text(epsilon="epsilon = 20.0", steps="steps = 60", rounds="rounds = 6")
    (tmp_path / "plan.toml").write_text(plan)
    command = [sys.executable, "-m", "ghostnet.cli", "simulate", str(tmp_path / "plan.toml"), "--data", str(data)]
    command += ["--sites", "2", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)  # noqa: S603
    record = tmp_path / "run" / "server" / "run.json"
    deadline = time.monotonic() + 120
    while not (record.exists() and json.loads(record.read_text())["rounds_done"] >= 2):
        assert time.monotonic() < deadline, "the run did not reach round 2"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ghostnet(*command[3:], check=False).returncode == 11
    ghostnet(*command[3:], "--resume")
    known = keys_of(tmp_path / "run" / "sites")
    assert all(check.passed for check in verify_sampler(tmp_path / "run" / "sampler", trusted_keys=known))
    for path in (tmp_path / "run" / "sites").glob("*/ledger.sqlite"):
        assert [entry.kind for entry in verify_ledger(path)].count("reserve") == 1


@pytest.mark.parametrize(
    ("replaced", "code", "said"),
    [
        ({"epsilon": "epsilon = 0"}, 3, "privacy.epsilon = 0"),
        ({"epsilon": "epsilon = nan"}, 3, "privacy.epsilon = nan"),
        ({"epsilon": "epsilon = -1"}, 3, "privacy.epsilon = -1"),
        ({"steps": "stepps = 4"}, 3, "privacy.stepps"),
    ],
)
def test_a_bad_plan_is_one_line_and_nothing_is_written(tmp_path: Path, replaced: dict, code: int, said: str) -> None:
    data = write_striped_npz(tmp_path / "data.npz")
    (tmp_path / "plan.toml").write_text(tiny_plan_text(**replaced))
    done = ghostnet("simulate", tmp_path / "plan.toml", "--data", data, "--out", tmp_path / "run", check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "columns",
    [
        {"images": np.zeros((4, 28), dtype=np.uint8)},
        {"images": np.zeros((4, 28, 28, 2), dtype=np.uint8)},
        {"images": np.zeros((4, 28, 28), dtype=np.float32)},
        {"images": np.array([None, None], dtype=object)},
        {"images": np.zeros((4, 28, 28), dtype=np.uint8), "labels": np.array([0, 1, 0])},
        {"images": np.zeros((4, 28, 28), dtype=np.uint8), "labels": np.array([0, 1, 0, 9])},
    ],
    ids=["flat", "two-channels", "float", "objects", "too-few-labels", "unknown-label"],
)
def test_a_bad_npz_is_one_line_and_nothing_is_written(tmp_path: Path, columns: dict) -> None:
    np.savez(tmp_path / "data.npz", **columns)
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    done = ghostnet(
        "simulate", tmp_path / "plan.toml", "--data", tmp_path / "data.npz", "--out", tmp_path / "run", check=False
    )
    assert done.returncode == 5, done.stderr
    assert len(done.stderr.strip().splitlines()[-1:]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_hospitals_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_striped_npz(tmp_path / folder / "data.npz")
        (tmp_path / folder / "site.toml").write_text(
            'name = "north"\n[data]\nkind = "npz"\npath = "data.npz"\n[policy]\nmax_epsilon = 10.0\ndelta = 1e-5\n'
        )
    sites = [part for folder in ("a", "b") for part in ("--site", tmp_path / folder / "site.toml")]
    done = ghostnet("simulate", tmp_path / "plan.toml", *sites, "--out", tmp_path / "run", check=False)
    assert done.returncode == 4
    assert "'north'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_budget_is_the_hospitals_over_all_runs(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    write_striped_npz(tmp_path / "data.npz")
    (tmp_path / "site.toml").write_text(
        'name = "north"\n[data]\nkind = "npz"\npath = "data.npz"\n[policy]\nmax_epsilon = 10.0\ndelta = 1e-5\n'
    )
    first = ("simulate", tmp_path / "plan.toml", "--site", tmp_path / "site.toml", "--out")
    ghostnet(*first, tmp_path / "one")
    second = ghostnet(*first, tmp_path / "two", check=False)
    assert second.returncode == 10
    assert "B01" in second.stderr
    assert not (tmp_path / "two").exists()
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.spent(1e-5).epsilon_pld <= 10.0
