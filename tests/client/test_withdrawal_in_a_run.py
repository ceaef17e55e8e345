"""A patient withdraws in the middle of a run: a hospital's next process leaves them out, and the run goes on."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import pytest

from client.config import load_site
from client.site import Site
from ghostnet.accounting.plan_cost import resolve
from ghostnet.errors import SiteError, SpentError
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.exchange.arrays import Arrays, to_arrays
from ghostnet.models import build_generator
from ghostnet.plan import Plan
from tests.plans import tiny_plan, write_striped_npz

pytestmark = pytest.mark.usefixtures("one_thread")

SITE = """
name = "north"
[data]
kind = "npz"
path = "data.npz"
[cohort]
exclude = "withdrawn.txt"
[policy]
max_epsilon = 40.0
delta = 1e-5
"""
RUN = secrets.token_hex(16)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(tiny_plan())


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    write_striped_npz(tmp_path / "data.npz", patients=20)
    (tmp_path / "withdrawn.txt").write_text("# nobody yet\n")
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path / "site.toml"


def process(site_file: Path) -> Site:
    """A hospital as each message of a deployed node starts it."""
    return Site(load_site(site_file))


def round_one(plan: Plan) -> tuple[Arrays, Arrays]:
    mean = np.ones(plan.embedding.size, np.float32)
    return to_arrays(build_generator(plan.networks)), {"released_mean": mean}


def test_it_holds_from_the_next_request_and_changes_nothing_of_the_answers_and_the_charge(
    site_file: Path, plan: Plan
) -> None:
    site = process(site_file)
    site.join(plan, RUN)
    before = site.warm_start(plan, RUN)
    trained_on = site.prepare(plan.image).train.patients
    charged = verify_ledger(site.config.ledger_path)[1]
    (site_file.parent / "withdrawn.txt").write_text("p001\n")  # a training patient: only every fifth is a test patient
    later = process(site_file)
    later.train(plan, RUN, 1, *round_one(plan))
    assert later.prepare(plan.image).train.patients == trained_on - 1
    assert later.prepare(plan.image).table.excluded > 0
    again = process(site_file).warm_start(plan, RUN)
    assert all(np.array_equal(again[name], before[name]) for name in before)
    entries = verify_ledger(site.config.ledger_path)
    assert [entry for entry in entries if entry.kind == "reserve"] == [charged]


def test_a_list_that_is_gone_spends_the_request_that_it_stops_and_nobody_is_trained_on(
    site_file: Path, plan: Plan
) -> None:
    process(site_file).join(plan, RUN)
    (site_file.parent / "withdrawn.txt").unlink()
    with pytest.raises(SiteError, match="exclude"):
        process(site_file).train(plan, RUN, 1, *round_one(plan))
    (site_file.parent / "withdrawn.txt").write_text("p001\n")
    with pytest.raises(SpentError):
        process(site_file).train(plan, RUN, 1, *round_one(plan))
    process(site_file).train(plan, RUN, 2, *round_one(plan))
