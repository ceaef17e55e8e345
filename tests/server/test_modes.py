"""Each mode of federation to the published sampler: what crossed, what is signed, what the certificate says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ghostnet.accounting.plan_cost import claim
from ghostnet.certificate import certificate as certificates
from ghostnet.evidence import keys
from ghostnet.evidence.statement import certified
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import split_pair
from ghostnet.models import build_discriminator
from ghostnet.sampler.sampler import Sampler
from tests.asked import arrays_of
from tests.exchange.test_secure_sum import looks_uniform
from tests.server.federations import NAMES, failed, ledger_kinds, plan_of, run, three_hospitals

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    return three_hospitals(tmp_path / "sites")


def test_gan_averages_discriminators_beside_generators_and_says_so(sites: list[Path], tmp_path: Path) -> None:
    plan, out = plan_of("gan"), tmp_path / "run"
    grid = run(plan, sites, out)
    answers = [arrays_of(reply) for kind, _, reply in grid.seen if kind == protocol.TRAIN]
    assert len(answers) == 2 * len(NAMES)
    wanted = build_discriminator(plan.networks).state_dict().keys()
    assert all(split_pair(arrays)[1].keys() == wanted for arrays in answers)
    certificate = json.loads((out / "sampler" / "certificate.json").read_text())
    assert certificate["share"] == "gan"
    assert any("discriminator" in words for words in certificate["released"])
    assert all(statement["released"] == certificate["released"] for statement in certificate["statements"])
    assert failed(out) == []
    report = json.loads((out / "report.json").read_text())
    assert report["federation"]["share"] == "gan"
    assert not any(protocol.DISCRIMINATOR in name for name in Sampler.load(out / "sampler").generator.state_dict())


def test_pooled_publishes_one_sampler_and_the_coordinator_saw_only_uniform_parts(
    sites: list[Path], tmp_path: Path
) -> None:
    plan, out = plan_of("pooled"), tmp_path / "run"
    grid = run(plan, sites, out)
    steps = [arrays_of(reply) for kind, _, reply in grid.seen if kind == protocol.STEP]
    assert len(steps) == len(NAMES) * plan.privacy.steps
    assert all(looks_uniform(arrays[protocol.MASKED_SUM]) for arrays in steps)
    assert failed(out) == []
    certificate = json.loads((out / "sampler" / "certificate.json").read_text())
    promised = claim(plan)
    assert certificate["epsilon_pld_coalition"] == certified(promised.epsilon_pld_coalition)
    assert certificate["epsilon_pld_coalition"] > certificate["epsilon_pld"]
    assert certificate["epsilon_pld_other_hospital"] == certified(promised.epsilon_pld_other_hospital)
    report = json.loads((out / "report.json").read_text())
    assert report["privacy"]["epsilon_coalition"] == promised.epsilon_pld_coalition
    assert [t["round"] for t in report["timing"]["rounds"] if t["phase"] == "pooled steps"] == [1, 2]
    for site in sites:
        kinds = ledger_kinds(site)
        assert kinds.count("reserve") == 1
        assert kinds.count("begin") == kinds.count("commit") == plan.privacy.steps + 2  # warm start, finish


def test_a_certificate_of_fewer_or_other_hospitals_than_masked_together_does_not_hold(
    sites: list[Path], tmp_path: Path
) -> None:
    plan, out = plan_of("pooled", steps=2, rounds=1), tmp_path / "run"
    run(plan, sites, out)
    document = json.loads((out / "sampler" / "certificate.json").read_text())
    key = keys.load_or_create_key(out / "server" / "server.key")

    def rewritten(statements: list[dict]) -> list[str]:
        changed = {k: v for k, v in document.items() if k != "signature"}
        changed["statements"] = statements
        changed["ledger_heads"] = {s["site"]: s["ledger_head"] for s in statements}
        signed = {**changed, "signature": keys.sign(key, changed)}
        certificates.write_certificate(out / "sampler", signed)
        return failed(out)

    assert rewritten(document["statements"]) == []
    assert "pooled hospitals" in rewritten(document["statements"][:2])
