"""The door to a hospital's data: charged first, answered once, and silent about everything else."""

from __future__ import annotations

import dataclasses
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

import client.site
from client.app import build_app
from client.config import load_site
from client.requests import Publication
from client.site import Site
from ghostnet.accounting.catalogue import counted_tasks
from ghostnet.accounting.events import event_to_dict
from ghostnet.accounting.plan_cost import plan_events, resolve
from ghostnet.errors import BudgetError, DataError, FederationError, LedgerError, PolicyError, SpentError
from ghostnet.evidence.faults import Adoption
from ghostnet.evidence.ledger import Ledger, verify_ledger
from ghostnet.evidence.software import installed_software
from ghostnet.evidence.statement import certified
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import arrays_sha256, to_arrays
from ghostnet.exchange.messages import Body, JoinRequest, RoundRequest
from ghostnet.models import build_generator
from ghostnet.plan import Plan
from ghostnet.utility import classification
from ghostnet.utility.task import find_task, models_to_arrays, task_spec
from tests.asked import message, node
from tests.client.intake.picture_files import eight_bit, write_png
from tests.plans import tiny_plan, tiny_plan_text, write_striped_npz
from tests.samplers import publication

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
    site, run_id = Site(load_site(site_file)), secrets.token_hex(16)
    generator = to_arrays(build_generator(plan.networks))
    mean = {protocol.RELEASED_MEAN: np.ones(plan.embedding.size, dtype=np.float32)}
    requests = (
        lambda: site.join(plan, run_id),
        lambda: site.warm_start(plan, run_id),
        lambda: site.train(plan, run_id, 1, generator, mean),
        lambda: site.finish(plan, run_id, generator, _classifier(plan), publication(plan, run_id, generator)),
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
    generator = to_arrays(build_generator(plan.networks))
    run_id = secrets.token_hex(16)
    with pytest.raises(PolicyError, match="P14"):
        site.train(huge, run_id, 1, generator, {})
    with pytest.raises(PolicyError, match="P14"):
        site.finish(huge, run_id, generator, {}, publication(plan, run_id, generator))
    assert built == []


def test_one_row_that_does_not_fit_never_decides_whether_a_hospital_answers(site_file: Path, plan: Plan) -> None:
    columns = dict(np.load(site_file.parent / "data.npz"))
    columns["labels"][7] = 9  # no label of the plan
    columns["split"][:2] = ["train", "test"]
    columns["patient"][:2] = "p000"
    np.savez(site_file.parent / "data.npz", **columns)
    site, run_id = Site(load_site(site_file)), secrets.token_hex(16)
    site.join(plan, run_id)
    assert site.warm_start(plan, run_id)[protocol.NOISED_SUM].shape == (plan.embedding.size,)
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
    assert site.warm_start(plan, run_id)[protocol.NOISED_SUM].shape == (plan.embedding.size,)


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
    assert site.warm_start(per_image, run_id)[protocol.NOISED_SUM].shape == (plan.embedding.size,)


def test_nor_does_the_last_row_of_a_file(site_file: Path, plan: Plan) -> None:
    columns = dict(np.load(site_file.parent / "data.npz"))
    np.savez(site_file.parent / "data.npz", **{name: column[:0] for name, column in columns.items()})
    site, run_id = Site(load_site(site_file)), secrets.token_hex(16)
    site.join(plan, run_id)
    assert site.warm_start(plan, run_id)[protocol.NOISED_SUM].shape == (plan.embedding.size,)


def test_public_arrays_that_do_not_fit_are_refused_before_they_are_charged(site: Site, plan: Plan) -> None:
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan.networks))
    site.join(plan, run_id)
    mean = {protocol.RELEASED_MEAN: np.ones(plan.embedding.size, dtype=np.float32)}
    with pytest.raises(FederationError):
        site.train(plan, run_id, 1, {**generator, "more": np.zeros(1, dtype=np.float32)}, mean)
    with pytest.raises(FederationError):
        site.train(plan, run_id, 1, generator, {})
    with pytest.raises(FederationError):
        site.finish(plan, run_id, generator, {}, publication(plan, run_id, generator))
    assert "begin" not in [entry.kind for entry in verify_ledger(site.config.ledger_path)]
    assert site.train(plan, run_id, 1, generator, mean).keys() == generator.keys()


def test_a_run_is_signed_for_one_sampler_only(site: Site, plan: Plan) -> None:
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan.networks))
    site.join(plan, run_id)
    signed = publication(plan, run_id, generator)
    counts, statement = site.finish(plan, run_id, generator, _classifier(plan), signed)
    assert counts.keys() == {"noised_counts"}
    assert statement["files"] == signed.files
    again, _ = site.finish(plan, run_id, generator, _classifier(plan), signed)
    np.testing.assert_array_equal(counts["noised_counts"], again["noised_counts"])
    other = {name: array + 1 for name, array in generator.items()}
    with pytest.raises(LedgerError, match="other files"):
        site.finish(plan, run_id, other, _classifier(plan), publication(plan, run_id, other))
    picture = dataclasses.replace(signed, files={**signed.files, "samples.png": "6" * 64})
    with pytest.raises(LedgerError, match="other files"):
        site.finish(plan, run_id, generator, _classifier(plan), picture)


def test_a_last_answer_that_fails_leaves_the_run_with_the_sampler_that_it_was_asked_to_sign_first(
    site: Site, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan.networks))
    site.join(plan, run_id)
    first = publication(plan, run_id, generator)

    def fails(*arguments: object, **rest: object) -> None:
        raise MemoryError

    monkeypatch.setattr(classification, "TASK", dataclasses.replace(classification.TASK, counts=fails))
    with pytest.raises(MemoryError):
        site.finish(plan, run_id, generator, _classifier(plan), first)
    monkeypatch.undo()
    other = {name: array + 1 for name, array in generator.items()}
    for _ in range(2):
        with pytest.raises(LedgerError, match="other files"):
            site.finish(plan, run_id, other, _classifier(plan), publication(plan, run_id, other))
    counts, statement = site.finish(plan, run_id, generator, _classifier(plan), first)
    assert counts == {}
    assert (statement["answered"], statement["spent"], statement["events"]) == ([], ["finish"], [])
    assert statement["epsilon_pld"] == 0.0 < statement["reserved"]["epsilon_pld"]


SETTLED = """
import os, signal, sys
from pathlib import Path
import client.site
from client.config import load_site
from ghostnet.models import build_generator
from ghostnet.plan import load_plan
from ghostnet.accounting.plan_cost import resolve
from ghostnet.exchange.arrays import to_arrays
from tests.client.test_site import _classifier
from tests.samplers import publication
site = client.site.Site(load_site(Path(sys.argv[1])))
plan = resolve(load_plan(Path(sys.argv[2])))
site.join(plan, sys.argv[3])
client.site.Ledger.begin = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
generator = to_arrays(build_generator(plan.networks))
site.finish(plan, sys.argv[3], generator, _classifier(plan), publication(plan, sys.argv[3], generator))
"""


def test_a_hospital_killed_before_it_begins_its_last_answer_has_settled_on_the_sampler(
    site_file: Path, tmp_path: Path, plan: Plan
) -> None:
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan.networks))
    command = [sys.executable, "-c", SETTLED, str(site_file), str(tmp_path / "plan.toml"), run_id]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGKILL
    site = Site(load_site(site_file))
    kinds = [entry.kind for entry in verify_ledger(site.config.ledger_path)]
    assert (kinds.count("publish"), kinds.count("begin")) == (1, 0)
    other = {name: array + 1 for name, array in generator.items()}
    with pytest.raises(LedgerError, match="other files"):
        site.finish(plan, run_id, other, _classifier(plan), publication(plan, run_id, other))
    counts, statement = site.finish(plan, run_id, generator, _classifier(plan), publication(plan, run_id, generator))
    assert counts.keys() == {"noised_counts"}
    assert [entry["request"] for entry in statement["answered"]] == ["finish"]


def _published(plan: Plan, run_id: str, generator: dict[str, np.ndarray], **files: str | None) -> Publication:
    good = publication(plan, run_id, generator)
    changed = {**good.files, **{name.replace("_", "."): digest for name, digest in files.items()}}
    return dataclasses.replace(good, files={name: digest for name, digest in changed.items() if digest is not None})


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"README_md": "0" * 64}, "README.md"),
        ({"config_json": "0" * 64}, "config.json"),
        ({"model_safetensors": "0" * 64}, "generator received"),
        ({"evil_py": "0" * 64}, "evil.py"),
        ({"certificate_json": "0" * 64}, "certificate.json"),
        ({"samples_png": None}, "one SHA-256 of each"),
        ({"transcript_safetensors": None}, "one SHA-256 of each"),
        ({"samples_png": "0" * 63}, "one SHA-256 of each"),
        ({"samples_png": "0" * 64 + "\n"}, "one SHA-256 of each"),
        ({"samples_png": "A" * 64}, "one SHA-256 of each"),
    ],
)
def test_files_that_are_not_this_runs_sampler_are_not_signed_and_nothing_is_spent(
    site: Site, plan: Plan, files: dict[str, str | None], says: str
) -> None:
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan.networks))
    site.join(plan, run_id)
    with pytest.raises(DataError, match=says):
        site.finish(plan, run_id, generator, _classifier(plan), _published(plan, run_id, generator, **files))
    kinds = [entry.kind for entry in verify_ledger(site.config.ledger_path)]
    assert "begin" not in kinds
    assert "publish" not in kinds
    assert site.finish(plan, run_id, generator, _classifier(plan), _published(plan, run_id, generator))[1]


@pytest.mark.parametrize("lie", ["labels", "prior", "run", "name", "hash"])
def test_a_config_or_card_that_says_something_else_than_was_agreed_is_not_signed(
    site: Site, plan: Plan, lie: str
) -> None:
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan.networks))
    site.join(plan, run_id)
    image = plan.image
    lies = {
        "labels": lambda: publication(
            dataclasses.replace(plan, image=dataclasses.replace(image, labels=image.labels[::-1])), run_id, generator
        ),
        "prior": lambda: publication(plan, run_id, generator, prior=(0.9, 0.1)),
        "run": lambda: publication(plan, "0" * 32, generator),
        "name": lambda: publication(dataclasses.replace(plan, name="anonymous"), run_id, generator),
        "hash": lambda: publication(dataclasses.replace(plan, seed=plan.seed + 1), run_id, generator),
    }
    with pytest.raises(DataError, match="to sign is not that of what plan, run, weights and prior give"):
        site.finish(plan, run_id, generator, _classifier(plan), lies[lie]())
    assert "publish" not in [entry.kind for entry in verify_ledger(site.config.ledger_path)]


def test_a_released_prior_is_signed_as_the_released_mean_gives_it(site: Site, plan: Plan) -> None:
    asked = dataclasses.replace(plan, image=dataclasses.replace(plan.image, released_prior=True))
    run_id, generator = secrets.token_hex(16), to_arrays(build_generator(plan.networks))
    site.join(asked, run_id)
    mean = np.ones(plan.embedding.size, dtype=np.float32)
    mean[-1] = 3.0  # mass of the second label, beside 1 of the first
    public = {**_classifier(plan), protocol.RELEASED_MEAN: mean}
    with pytest.raises(DataError, match="prior"):
        site.finish(asked, run_id, generator, public, publication(asked, run_id, generator))
    with pytest.raises(FederationError):
        site.finish(asked, run_id, generator, _classifier(plan), publication(asked, run_id, generator))
    signed = publication(asked, run_id, generator, prior=(0.25, 0.75))
    assert site.finish(asked, run_id, generator, public, signed)[1]["files"] == signed.files


def test_a_statement_lists_what_was_answered_and_what_all_runs_cost(site_file: Path, plan: Plan) -> None:
    site_file.write_text(SITE.format(epsilon=25.0))
    site, generator = Site(load_site(site_file)), to_arrays(build_generator(plan.networks))
    mean = {protocol.RELEASED_MEAN: np.ones(plan.embedding.size, dtype=np.float32)}
    statements = []
    for asked in (["warm_start", "round-1", "round-2"], ["round-2"]):
        run_id = secrets.token_hex(16)
        site.join(plan, run_id)
        digests = {}
        for request in asked:
            if request == "warm_start":
                answer = site.warm_start(plan, run_id)
            else:
                answer = site.train(plan, run_id, int(request[-1]), generator, mean)
            digests[request] = arrays_sha256(answer)
        counts, statement = site.finish(
            plan, run_id, generator, _classifier(plan), publication(plan, run_id, generator)
        )
        digests["finish"] = arrays_sha256(counts)
        assert {entry["request"]: entry["digest"] for entry in statement["answered"]} == digests
        statements.append(statement)
    whole, part = statements
    assert whole["events"] == [event_to_dict(event) for event in plan_events(plan)]
    assert [event.get("steps") for event in part["events"]] == [None, plan.round_steps(2)]
    assert part["epsilon_pld"] < whole["epsilon_pld"] == whole["reserved"]["epsilon_pld"]
    with Ledger.open(site.config.ledger_path) as ledger:
        assert part["lifetime"]["epsilon_pld"] == certified(ledger.spent(1e-5).epsilon_pld)
    assert part["lifetime"]["epsilon_pld"] > 1.2 * whole["lifetime"]["epsilon_pld"]
    assert (part["lifetime"]["max_epsilon"], part["lifetime"]["delta"]) == (25.0, 1e-5)
    assert part["software"] == installed_software(Path(client.site.__file__).parent)


def test_a_statement_on_an_adopted_ledger_says_so(site_file: Path, plan: Plan) -> None:
    site_file.write_text(SITE.format(epsilon=25.0))
    config, generator, counted = load_site(site_file), to_arrays(build_generator(plan.networks)), []
    for _ in range(3):
        run_id = secrets.token_hex(16)
        site = Site(config)
        site.join(plan, run_id)
        _, statement = site.finish(plan, run_id, generator, _classifier(plan), publication(plan, run_id, generator))
        counted.append((statement["lifetime"]["adoptions"], statement["lifetime"]["epsilon_pld"]))
        for file in (config.ledger_path, config.ledger_path.with_suffix(".head")):
            file.unlink()
        Ledger.adopt(
            config.ledger_path, Adoption(reason="the disk burnt"), site=config.name, witness=config.witness_path
        ).close()
    assert [adoptions for adoptions, _ in counted] == [0, 1, 1]  # the adoption that is known is the new ledger's own
    assert len({epsilon for _, epsilon in counted}) == 1  # what was lost is in none of them


def _classifier(plan: Plan) -> dict[str, np.ndarray]:
    spec = task_spec(plan)
    return models_to_arrays({name: find_task(name).untrained(spec) for name in counted_tasks(plan)})


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
from ghostnet.accounting.plan_cost import resolve
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
    mean = {protocol.RELEASED_MEAN: np.ones(plan.embedding.size, dtype=np.float32)}
    assert site.train(plan, run_id, 1, to_arrays(build_generator(plan.networks)), mean).keys()


def test_the_size_of_an_answer_does_not_tell_the_number_of_patients(tmp_path: Path, plan: Plan) -> None:
    sizes = set()
    for patients in (20, 61):
        folder = tmp_path / str(patients)
        folder.mkdir()
        write_striped_npz(folder / "data.npz", patients=patients)
        (folder / "site.toml").write_text(SITE.format(epsilon=10.0))
        site, run_id = Site(load_site(folder / "site.toml")), secrets.token_hex(16)
        site.join(plan, run_id)
        mean = {protocol.RELEASED_MEAN: np.ones(plan.embedding.size, dtype=np.float32)}
        generator = to_arrays(build_generator(plan.networks))
        answers = {**site.warm_start(plan, run_id), **site.train(plan, run_id, 1, generator, mean)}
        sizes.add(tuple(sorted((name, array.shape, str(array.dtype)) for name, array in answers.items())))
    assert len(sizes) == 1


def _ask(site_file: Path, plan: Plan, body: Body, **changed: object) -> Message:
    return build_app()(message(plan, body, **changed), node(site_file))


def test_an_error_leaves_the_hospital_as_a_fixed_sentence_only(site_file: Path, plan: Plan) -> None:
    (site_file.parent / "data.npz").write_bytes(b"JANE DOE 1961-02-03")
    reply = _ask(site_file, plan, JoinRequest())
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
    reply = _ask(site_file, weak, JoinRequest())
    assert reply.has_error()
    assert reply.error.code == protocol.REFUSED
    assert f"[{code}]" in reply.error.reason
    assert not (site_file.parent / "ledger.sqlite").exists() or not [
        entry for entry in verify_ledger(site_file.parent / "ledger.sqlite") if entry.kind == "reserve"
    ]


@pytest.mark.parametrize("run_id", ["", "../../etc", "AB" * 16, "a" * 31, "a" * 33])
def test_a_run_id_that_is_not_one_is_refused(site_file: Path, plan: Plan, run_id: str) -> None:
    assert _ask(site_file, plan, JoinRequest(), run_id=run_id).has_error()
    assert not (site_file.parent / "runs").exists()


def test_a_round_that_the_plan_does_not_have_is_refused(site_file: Path, plan: Plan) -> None:
    assert not _ask(site_file, plan, JoinRequest()).has_error()
    for number in (0, 3, -1):  # refused by the round's number, before anything else is looked at
        reply = _ask(site_file, plan, RoundRequest(server_round=number, weights={}))
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
