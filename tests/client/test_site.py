"""The door to a hospital's data: charged first, answered once, and silent about everything else."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.site
from client.app import build_app
from client.config import load_site
from client.site import Site
from ghostnet import protocol
from ghostnet.errors import BudgetError, DataError, FederationError, LedgerError, PolicyError, SpentError
from ghostnet.models import build_generator
from ghostnet.plan import Plan
from ghostnet.privacy.claim import resolve
from ghostnet.privacy.ledger import Ledger, verify_ledger
from ghostnet.utility import classifier
from ghostnet.warm_start import embedding_size
from ghostnet.weights import arrays_sha256, to_arrays
from tests.client.picture_files import eight_bit, write_png
from tests.plans import tiny_plan, tiny_plan_text, write_striped_npz

SITE = """
name = "north"
[data]
kind = "npz"
path = "data.npz"
[policy]
max_epsilon = {epsilon}
delta = 1e-5
"""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(tiny_plan())


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    write_striped_npz(tmp_path / "data.npz")
    (tmp_path / "site.toml").write_text(SITE.format(epsilon=10.0))
    return tmp_path / "site.toml"


@pytest.fixture
def site(site_file: Path) -> Site:
    return Site(load_site(site_file))


def test_nothing_is_answered_before_the_run_is_reserved_for_exactly_this_plan(site: Site, plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    site.join(plan, run_id)
    weaker = dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, noise_multiplier=0.31))
    with pytest.raises((LedgerError, PolicyError)):
        site.warm_start(weaker, run_id)


def test_the_policy_holds_for_every_request_also_for_one_that_never_joined(site_file: Path, plan: Plan) -> None:
    site_file.write_text(SITE.format(epsilon=10.0) + f'approved_plans = ["{"0" * 64}"]\n')
    site, run_id, generator = Site(load_site(site_file)), secrets.token_hex(16), to_arrays(build_generator(plan))
    mean = {protocol.RELEASED_MEAN: np.ones(embedding_size(plan), dtype=np.float32)}
    requests = (
        lambda: site.join(plan, run_id),
        lambda: site.warm_start(plan, run_id),
        lambda: site.train(plan, run_id, 1, generator, mean),
        lambda: site.finish(plan, run_id, generator, _classifier(plan), arrays_sha256(generator)),
    )
    for request in requests:
        with pytest.raises(PolicyError, match="P12"):
            request()
    assert "reserve" not in [entry.kind for entry in verify_ledger(site.config.ledger_path)]


def test_nothing_of_a_plan_is_built_before_the_limits_have_passed(
    site: Site, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = dataclasses.replace(plan, model=dataclasses.replace(plan.model, discriminator_width=4096))
    built: list[str] = []
    for name in ("LocalState", "build_generator"):
        monkeypatch.setattr(client.site, name, lambda *_, name=name: built.append(name))
    generator = to_arrays(build_generator(plan))
    run_id = secrets.token_hex(16)
    with pytest.raises(PolicyError, match="P14"):
        site.train(huge, run_id, 1, generator, {})
    with pytest.raises(PolicyError, match="P14"):
        site.finish(huge, run_id, generator, {}, arrays_sha256(generator))
    assert built == []


def test_one_row_that_does_not_fit_never_decides_whether_a_hospital_answers(site_file: Path, plan: Plan) -> None:
    columns = dict(np.load(site_file.parent / "data.npz"))
    columns["labels"][7] = 9  # no label of the plan
    columns["split"][:2] = ["train", "test"]
    columns["patient"][:2] = "p000"
    np.savez(site_file.parent / "data.npz", **columns)
    site, run_id = Site(load_site(site_file)), secrets.token_hex(16)
    site.join(plan, run_id)
    assert site.warm_start(plan, run_id)[protocol.NOISED_SUM].shape == (embedding_size(plan),)
    with pytest.raises(DataError):  # for the hospital's own people it is an error
        site.prepare(plan.image)


TABLE_SITE = """
name = "north"
[data]
kind = "images"
path = "images"
labels = "labels.csv"
modality = "DX"
[deidentify]
burned_in = "trust"
trusted_modalities = ["DX"]
[policy]
max_epsilon = 10.0
delta = 1e-5
"""


@pytest.mark.parametrize(
    "line",
    [b"a.png,A,plain,a\0b,", b"a.png,A,plain,,M\xfcller", b'a.png,A,plain,,"', b'"a.png"x,A,plain,,', None],
    ids=["mask", "byte", "quote", "text after a quote", "no file at all"],
)
def test_neither_does_a_line_of_a_table(tmp_path: Path, plan: Plan, line: bytes | None) -> None:
    (tmp_path / "images").mkdir()
    if line is not None:
        for seed, name in enumerate("ab"):
            write_png(tmp_path / f"images/{name}.png", eight_bit(seed))
    table = [b"image,patient,label,mask,comment", line or b"a.png,A,plain,,", b"b.png,B,striped,,"]
    (tmp_path / "labels.csv").write_bytes(b"\n".join(table))
    (tmp_path / "site.toml").write_text(TABLE_SITE)
    site, run_id = Site(load_site(tmp_path / "site.toml")), secrets.token_hex(16)
    site.join(plan, run_id)
    assert site.warm_start(plan, run_id)[protocol.NOISED_SUM].shape == (embedding_size(plan),)


def test_a_table_without_patients_serves_plans_per_image_only(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "images").mkdir()
    for seed, name in enumerate("ab"):
        write_png(tmp_path / f"images/{name}.png", eight_bit(seed))
    (tmp_path / "labels.csv").write_text("image,label\na.png,plain\nb.png,striped\n")
    (tmp_path / "site.toml").write_text(TABLE_SITE)
    site, run_id = Site(load_site(tmp_path / "site.toml")), secrets.token_hex(16)
    with pytest.raises(PolicyError, match="P19"):
        site.join(plan, run_id)
    per_image = resolve(dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, unit="image")))
    site.join(per_image, run_id)
    assert site.warm_start(per_image, run_id)[protocol.NOISED_SUM].shape == (embedding_size(plan),)


def test_nor_does_the_last_row_of_a_file(site_file: Path, plan: Plan) -> None:
    columns = dict(np.load(site_file.parent / "data.npz"))
    np.savez(site_file.parent / "data.npz", **{name: column[:0] for name, column in columns.items()})
    site, run_id = Site(load_site(site_file)), secrets.token_hex(16)
    site.join(plan, run_id)
    assert site.warm_start(plan, run_id)[protocol.NOISED_SUM].shape == (embedding_size(plan),)


def test_public_arrays_that_do_not_fit_are_refused_before_they_are_charged(site: Site, plan: Plan) -> None:
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan))
    site.join(plan, run_id)
    mean = {protocol.RELEASED_MEAN: np.ones(embedding_size(plan), dtype=np.float32)}
    with pytest.raises(FederationError):
        site.train(plan, run_id, 1, {**generator, "more": np.zeros(1, dtype=np.float32)}, mean)
    with pytest.raises(FederationError):
        site.train(plan, run_id, 1, generator, {})
    with pytest.raises(FederationError):
        site.finish(plan, run_id, generator, {}, arrays_sha256(generator))
    assert "begin" not in [entry.kind for entry in verify_ledger(site.config.ledger_path)]
    assert site.train(plan, run_id, 1, generator, mean).keys() == generator.keys()


def test_a_run_is_signed_for_one_set_of_weights_only(site: Site, plan: Plan) -> None:
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan))
    site.join(plan, run_id)
    counts, statement = site.finish(plan, run_id, generator, _classifier(plan), arrays_sha256(generator))
    assert counts.keys() == {protocol.NOISED_COUNTS}
    again, _ = site.finish(plan, run_id, generator, _classifier(plan), arrays_sha256(generator))
    np.testing.assert_array_equal(counts[protocol.NOISED_COUNTS], again[protocol.NOISED_COUNTS])
    other = {name: array + 1 for name, array in generator.items()}
    with pytest.raises(LedgerError, match="other weights"):
        site.finish(plan, run_id, other, _classifier(plan), arrays_sha256(other))


def _classifier(plan: Plan) -> dict[str, np.ndarray]:
    model = classifier.build_classifier(channels=1, classes=2)
    arrays = {f"{protocol.CLASSIFIER}{name}": array for name, array in to_arrays(model).items()}
    edges = np.linspace(-1, 1, plan.utility.bins - 1, dtype=np.float32)
    return {**arrays, protocol.SCORE_EDGES: edges}


def test_a_repeated_request_gets_identical_bytes_and_is_charged_once(site: Site, plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    site.join(plan, run_id)
    first = site.warm_start(plan, run_id)[protocol.NOISED_SUM]
    again = site.warm_start(plan, run_id)[protocol.NOISED_SUM]
    np.testing.assert_array_equal(first, again)
    kinds = [entry.kind for entry in verify_ledger(site.config.ledger_path)]
    assert (kinds.count("reserve"), kinds.count("begin"), kinds.count("commit")) == (1, 1, 1)


def test_another_run_draws_fresh_noise(site_file: Path, plan: Plan) -> None:
    site_file.write_text(SITE.format(epsilon=100.0))
    site = Site(load_site(site_file))
    sums = []
    for _ in range(2):
        run_id = secrets.token_hex(16)
        site.join(plan, run_id)
        sums.append(site.warm_start(plan, run_id)[protocol.NOISED_SUM])
    assert np.abs(sums[0] - sums[1]).max() > 0.5


def test_a_second_run_past_the_budget_is_refused_before_anything_is_read(site: Site, plan: Plan) -> None:
    site.join(plan, secrets.token_hex(16))
    run_id = secrets.token_hex(16)
    with pytest.raises(BudgetError, match="B01"):
        site.join(plan, run_id)
    with pytest.raises((LedgerError, BudgetError)):
        site.warm_start(plan, run_id)
    assert [entry.kind for entry in verify_ledger(site.config.ledger_path)].count("reserve") == 1


KILLED = """
import os, signal, sys
from pathlib import Path
import client.site
from client.config import load_site
from ghostnet.plan import load_plan
from ghostnet.privacy.claim import resolve
site = client.site.Site(load_site(Path(sys.argv[1])))
plan = resolve(load_plan(Path(sys.argv[2])))
site.join(plan, sys.argv[3])
client.site.write_reply = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
site.warm_start(plan, sys.argv[3])
"""


def test_a_hospital_killed_between_reading_and_answering_never_answers_that_request(
    site_file: Path, tmp_path: Path, plan: Plan
) -> None:
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    run_id = secrets.token_hex(16)
    command = [sys.executable, "-c", KILLED, str(site_file), str(tmp_path / "plan.toml"), run_id]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    site = Site(load_site(site_file))
    with Ledger.open(site.config.ledger_path) as ledger:
        before = ledger.spent(1e-5).epsilon_pld
    site.join(plan, run_id)
    with pytest.raises(SpentError, match="L01"):
        site.warm_start(plan, run_id)
    with Ledger.open(site.config.ledger_path) as ledger:
        assert ledger.spent(1e-5).epsilon_pld == before
    mean = {protocol.RELEASED_MEAN: np.ones(embedding_size(plan), dtype=np.float32)}
    assert site.train(plan, run_id, 1, to_arrays(build_generator(plan)), mean).keys()


def test_the_size_of_an_answer_does_not_tell_the_number_of_patients(tmp_path: Path, plan: Plan) -> None:
    sizes = set()
    for patients in (20, 61):
        folder = tmp_path / str(patients)
        folder.mkdir()
        write_striped_npz(folder / "data.npz", patients=patients)
        (folder / "site.toml").write_text(SITE.format(epsilon=10.0))
        site, run_id = Site(load_site(folder / "site.toml")), secrets.token_hex(16)
        site.join(plan, run_id)
        mean = {protocol.RELEASED_MEAN: np.ones(embedding_size(plan), dtype=np.float32)}
        generator = to_arrays(build_generator(plan))
        answers = {**site.warm_start(plan, run_id), **site.train(plan, run_id, 1, generator, mean)}
        sizes.add(tuple(sorted((name, array.shape, str(array.dtype)) for name, array in answers.items())))
    assert len(sizes) == 1


def _ask(site_file: Path, plan: Plan, kind: str, **config: str | int) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    content = {"plan": json.dumps(plan.to_dict()), "run-id": "ab" * 16, **config}
    request = Message(RecordDict({protocol.CONFIG: ConfigRecord(content)}), dst_node_id=2, message_type=kind)
    context = Context(run_id=1, node_id=2, node_config={"site": str(site_file)}, state=RecordDict(), run_config={})
    return build_app()(request, context)


def test_an_error_leaves_the_hospital_as_a_fixed_sentence_only(site_file: Path, plan: Plan) -> None:
    (site_file.parent / "data.npz").write_bytes(b"JANE DOE 1961-02-03")
    reply = _ask(site_file, plan, protocol.JOIN)
    assert reply.has_error()
    reason = reply.error.reason
    identifier = reason.rpartition(" ")[2]
    assert reason == f"the hospital could not answer; its log has the reason under {identifier}"
    log = (site_file.parent / "site.log").read_text()
    assert identifier in log
    assert "data.npz" in log
    assert (site_file.parent / "site.log").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"noise_multiplier": 0.0}, "P03"),
        ({"noise_multiplier": 0.01}, "P03"),
        ({"steps": 10**6}, "P07"),
        ({"epsilon": 1e6}, "P01"),
    ],
)
def test_a_plan_weaker_than_the_policy_is_refused_with_its_number(
    site_file: Path, plan: Plan, changed: dict, code: str
) -> None:
    weak = dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, **changed))
    reply = _ask(site_file, weak, protocol.JOIN)
    assert reply.has_error()
    assert reply.error.code == protocol.REFUSED
    assert f"[{code}]" in reply.error.reason
    assert not (site_file.parent / "ledger.sqlite").exists() or not [
        entry for entry in verify_ledger(site_file.parent / "ledger.sqlite") if entry.kind == "reserve"
    ]


@pytest.mark.parametrize("run_id", ["", "../../etc", "AB" * 16, "a" * 31, "a" * 33])
def test_a_run_id_that_is_not_one_is_refused(site_file: Path, plan: Plan, run_id: str) -> None:
    assert _ask(site_file, plan, protocol.JOIN, **{"run-id": run_id}).has_error()
    assert not (site_file.parent / "runs").exists()


def test_a_round_that_the_plan_does_not_have_is_refused(site_file: Path, plan: Plan) -> None:
    assert not _ask(site_file, plan, protocol.JOIN).has_error()
    for number in (0, 3, -1):  # refused by the round's number, before anything else is looked at
        reply = _ask(site_file, plan, MessageType.TRAIN, **{"server-round": number})
        assert reply.has_error()
    kinds = [entry.kind for entry in verify_ledger(site_file.parent / "ledger.sqlite")]
    assert "begin" not in kinds


def test_the_secrets_of_a_site_are_readable_by_its_user_only(site: Site, plan: Plan) -> None:
    run_id = secrets.token_hex(16)
    site.join(plan, run_id)
    site.warm_start(plan, run_id)
    state = site.config.state
    for path in (state / "secret.key", state / "site.key", state / "runs" / run_id / "warm_start.safetensors"):
        assert os.stat(path).st_mode & 0o077 == 0, path.name
