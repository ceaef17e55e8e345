"""A hospital in a pooled run: asked for first, masked once, answered once, and gone afterwards."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.config import load_site
from client.site import Site
from ghostnet.accounting.plan_cost import claim, resolve
from ghostnet.errors import FederationError, LedgerError, PolicyError, SpentError
from ghostnet.evidence import keys
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import arrays_sha256, to_arrays
from ghostnet.exchange.secure_sum import Roster, make_roster, mask_key_document, sum_modulo
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan
from tests.exchange.test_secure_sum import looks_uniform
from tests.plans import tiny_plan, tiny_plan_text, write_striped_npz
from tests.rosters import join_all
from tests.samplers import publication
from tests.server.direct_grid import write_hospitals

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("harbour", "north")
POOLED = {
    "epsilon": "epsilon = 20.0",
    "patients": 'patients = 20\nshare = "pooled"\nhospitals = 2',
    "classifier_steps": "classifier_steps = 8",
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(tiny_plan(**POOLED))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_hospitals(
        tmp_path, NAMES, lambda path, i: write_striped_npz(path, seed=i), epsilon=20.0, coalition=200.0
    )


@pytest.fixture
def sites(files: list[Path]) -> list[Site]:
    return [Site(load_site(file)) for file in files]


def asked(site: Site, plan: Plan, run_id: str, step: int, roster: Roster | str) -> np.ndarray:
    text = roster if isinstance(roster, str) else roster.to_text()
    return site.step(plan, run_id, step, to_arrays(build_discriminator(plan.networks)), text)[protocol.MASKED_SUM]


def test_pooled_must_be_allowed_in_so_many_words(files: list[Path], plan: Plan) -> None:
    text = files[0].read_text()
    for limit in ("", "max_coalition_epsilon = 0.0", "max_coalition_epsilon = 1.0"):
        files[0].write_text(text.replace("max_coalition_epsilon = 200.0", limit))
        site = Site(load_site(files[0]))
        with pytest.raises(PolicyError, match="P17"):
            site.join(plan, secrets.token_hex(16))
        assert "reserve" not in [entry.kind for entry in verify_ledger(site.config.ledger_path)]


def test_what_a_coalition_may_learn_is_bounded_over_all_runs(files: list[Path], plan: Plan) -> None:
    one = claim(plan).epsilon_pld_coalition
    text = files[0].read_text().replace("max_epsilon = 20.0", "max_epsilon = 100.0")
    files[0].write_text(text.replace("max_coalition_epsilon = 200.0", f"max_coalition_epsilon = {one * 1.05}"))
    site = Site(load_site(files[0]))
    run_id = secrets.token_hex(16)
    site.join(plan, run_id)
    site.join(plan, run_id)
    with pytest.raises(PolicyError, match="P17.*over all runs"):
        site.join(plan, secrets.token_hex(16))
    assert [entry.kind for entry in verify_ledger(site.config.ledger_path)].count("reserve") == 1


def test_one_hospitals_answer_is_uniform_and_the_sum_is_not(sites: list[Site], plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    parts = [asked(site, plan, run_id, 1, roster) for site in sites]
    assert all(looks_uniform(part) for part in parts)
    assert np.abs(sum_modulo(parts)).max() < 2**45  # noise and a few gradients, in steps of about 2^-37 of the noise


def test_a_repeated_step_gets_the_same_bytes_and_an_older_one_is_refused(sites: list[Site], plan: Plan) -> None:
    run_id, site = secrets.token_hex(16), sites[0]
    roster = join_all(sites, plan, run_id)
    first = asked(site, plan, run_id, 1, roster)
    np.testing.assert_array_equal(first, asked(site, plan, run_id, 1, roster))
    np.testing.assert_array_equal(first, asked(Site(site.config), plan, run_id, 1, roster))  # another process
    second = asked(site, plan, run_id, 2, roster)
    assert looks_uniform(first - second)
    with pytest.raises(LedgerError, match="cannot be drawn again"):
        asked(site, plan, run_id, 1, roster)
    kinds = [entry.kind for entry in verify_ledger(site.config.ledger_path)]
    assert (kinds.count("reserve"), kinds.count("begin"), kinds.count("commit")) == (1, 2, 2)
    assert len(list((site.config.state / "runs" / run_id).glob("step-*"))) == 1


def test_steps_that_the_plan_does_not_have_are_refused(sites: list[Site], plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    for step in (0, -1, plan.privacy.steps + 1):
        with pytest.raises(LedgerError):
            asked(sites[0], plan, run_id, step, roster)
    with pytest.raises(LedgerError):
        sites[0].train(plan, run_id, 1, to_arrays(build_generator(plan.networks)), {})
    assert "begin" not in [entry.kind for entry in verify_ledger(sites[0].config.ledger_path)]


def test_the_roster_is_pinned_with_the_first_step(sites: list[Site], plan: Plan, tmp_path: Path) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    asked(sites[0], plan, run_id, 1, roster)
    (tmp_path / "other").mkdir()
    other = write_hospitals(
        tmp_path / "other", ("north",), lambda path, i: write_striped_npz(path), epsilon=20.0, coalition=200.0
    )
    changed = join_all([sites[0], Site(load_site(other[0]))], plan, run_id)
    with pytest.raises(PolicyError, match="P18"):
        asked(sites[0], plan, run_id, 2, changed)
    asked(sites[0], plan, run_id, 2, roster)


def test_a_key_that_was_swapped_on_the_way_is_refused_before_anything_is_spent(sites: list[Site], plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    text = roster.to_text()
    north = next(member for member in roster.members if member.site == "north")
    for bad in (text.replace(north.mask_key, "11" * 32), text.replace(north.signature, "22" * 64), "", "{}"):
        with pytest.raises(FederationError):
            asked(sites[0], plan, run_id, 1, bad)
    assert "begin" not in [entry.kind for entry in verify_ledger(sites[0].config.ledger_path)]


def test_a_roster_with_this_hospital_under_a_strangers_signing_key_is_refused_before_anything_is_spent(
    sites: list[Site], plan: Plan
) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    own, other = roster.members
    stranger = Ed25519PrivateKey.generate()
    document = mask_key_document(run_id=run_id, plan_hash=plan.hash(), site=own.site, mask_key=own.mask_key)
    mine = dataclasses.replace(own, public_key=keys.public_hex(stranger), signature=keys.sign(stranger, document))
    forged = make_roster(run_id=run_id, plan_hash=plan.hash(), hospitals=2, members=[mine, other])
    assert own.site == sites[0].config.name
    with pytest.raises(FederationError, match="its own signing key"):
        asked(sites[0], plan, run_id, 1, forged)
    assert "begin" not in [entry.kind for entry in verify_ledger(sites[0].config.ledger_path)]
    asked(sites[0], plan, run_id, 1, roster)  # nothing was pinned either


def test_keys_are_pinned_in_a_statement_only_where_the_roster_was_held_against_them(
    files: list[Path], sites: list[Site], plan: Plan
) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    asked(sites[0], plan, run_id, 1, roster)
    text, north = files[0].read_text(), next(m for m in roster.members if m.site == "north")
    for key, said in (("0" * 64, "first use"), (north.public_key, "pinned")):
        files[0].write_text(text + f'peers = ["north={key}"]\n')
        statement = _finish(Site(load_site(files[0])), plan, run_id, to_arrays(build_generator(plan.networks)))
        assert statement["masked_with"]["keys"] == said


def test_peers_of_site_toml_are_the_only_ones_that_a_hospital_masks_with(files: list[Path], plan: Plan) -> None:
    text = files[0].read_text()
    run_id, north = secrets.token_hex(16), Site(load_site(files[1]))
    known = north.join(plan, run_id).public_key
    for peers, good in ((f'["north={known}"]', True), (f'["north={"0" * 64}"]', False), (f'["x={known}"]', False)):
        files[0].write_text(text + f"peers = {peers}\n")
        harbour = Site(load_site(files[0]))
        roster = join_all([harbour, north], plan, run_id)
        if good:
            asked(harbour, plan, run_id, 1, roster)
        else:
            with pytest.raises(PolicyError, match="P18"):
                asked(harbour, plan, run_id, 2, roster)
    files[0].write_text(text + 'peers = ["north"]\n')
    with pytest.raises(PolicyError, match="P18"):
        Site(load_site(files[0])).join(plan, run_id)


def test_the_statement_says_who_was_masked_with_and_the_mask_key_is_gone(sites: list[Site], plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    answer = asked(sites[0], plan, run_id, 1, roster)
    folder = sites[0].config.state / "runs" / run_id
    assert os.stat(folder / "mask.key").st_mode & 0o077 == 0
    generator = to_arrays(build_generator(plan.networks))
    for _ in range(2):  # a repeated request says the same
        statement = _finish(sites[0], plan, run_id, generator)
        assert statement["masked_with"] == {"hospitals_sha256": roster.hospitals_sha256(), "keys": "first use"}
        assert statement["reserved"]["epsilon_pld_coalition"] > statement["reserved"]["epsilon_pld"]
        assert statement["answered"][-1] == {
            "request": "steps",
            "first": 1,
            "last": 1,
            "count": 1,
            "digest": hashlib.sha256(arrays_sha256({protocol.MASKED_SUM: answer}).encode()).hexdigest(),
        }
        assert not (folder / "mask.key").exists()
    with pytest.raises(LedgerError, match="has ended here"):
        asked(sites[0], plan, run_id, 2, roster)
    assert sites[0].join(plan, run_id).mask_key == roster.members[0].mask_key


def _finish(site: Site, plan: Plan, run_id: str, generator: dict[str, np.ndarray]) -> dict:
    from tests.client.test_site import _classifier

    statement = site.finish(plan, run_id, generator, _classifier(plan), publication(plan, run_id, generator))[1]
    signed = {key: value for key, value in statement.items() if key != "signature"}
    assert keys.verify(statement["public_key"], signed, statement["signature"])
    return statement


def test_a_ledger_that_is_kept_open_is_let_go_at_the_end_and_by_a_refusal(files: list[Path], plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    sites = [Site(load_site(file), keep_ledger_open=True) for file in files]
    roster = join_all(sites, plan, run_id)
    asked(sites[0], plan, run_id, 1, roster)
    with pytest.raises(LedgerError, match="in use"):
        asked(Site(sites[0].config), plan, run_id, 1, roster)
    asked(sites[0], plan, run_id, 2, roster)
    with pytest.raises(LedgerError, match="cannot be drawn again"):
        asked(sites[0], plan, run_id, 1, roster)
    asked(Site(sites[0].config), plan, run_id, 3, roster)
    asked(sites[0], plan, run_id, 4, roster)
    _finish(sites[0], plan, run_id, to_arrays(build_generator(plan.networks)))
    Site(sites[0].config).ledger_head()


KILLED = """
import os, signal, sys
from pathlib import Path
import client.site
from client.config import load_site
from ghostnet.models import build_discriminator
from ghostnet.plan import load_plan
from ghostnet.accounting.plan_cost import resolve
from ghostnet.exchange.arrays import to_arrays
site = client.site.Site(load_site(Path(sys.argv[1])))
plan = resolve(load_plan(Path(sys.argv[2])))
client.site.write_reply = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
site.step(plan, sys.argv[3], 1, to_arrays(build_discriminator(plan.networks)), Path(sys.argv[4]).read_text())
"""


def test_a_hospital_killed_in_a_step_never_masks_that_step_again(
    files: list[Path], sites: list[Site], plan: Plan, tmp_path: Path
) -> None:
    run_id = secrets.token_hex(16)
    roster = join_all(sites, plan, run_id)
    (tmp_path / "plan.toml").write_text(tiny_plan_text(**POOLED))
    (tmp_path / "roster").write_text(roster.to_text())
    command = [sys.executable, "-c", KILLED, str(files[0]), str(tmp_path / "plan.toml"), run_id]
    done = subprocess.run([*command, str(tmp_path / "roster")], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(SpentError, match="L01"):
        asked(sites[0], plan, run_id, 1, roster)
    assert looks_uniform(asked(sites[0], plan, run_id, 2, roster))
