"""Federations interrupted: hospitals that go missing, answers that get lost, a coordinator that dies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from ghostnet.errors import FederationError
from ghostnet.exchange import pooled, protocol
from tests.asked import arrays_of, values_of
from tests.plans import write_striped_npz
from tests.server.direct_grid import write_hospitals
from tests.server.federations import NAMES, ledger_kinds, plan_of, run, three_hospitals

pytestmark = pytest.mark.usefixtures("one_thread", "unpublished")


@pytest.fixture
def sites(tmp_path: Path) -> list[Path]:
    return three_hospitals(tmp_path / "sites")


@pytest.fixture
def unpublished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and report take most of a small run's time; these tests are about what comes before."""
    monkeypatch.setattr("server.app.publish", lambda outcome, out, progress: None)


def test_gan_hospitals_start_a_round_from_the_averaged_discriminator(sites: list[Path], tmp_path: Path) -> None:
    plan = plan_of("gan")
    sent: list[dict[str, np.ndarray]] = []

    def watch(message: Message, site: Path) -> None:
        if message.metadata.message_type == protocol.TRAIN:
            sent.append({k: a.numpy() for k, a in message.content.array_records["weights"].items()})

    grid = run(plan, sites, tmp_path / "run", fault=watch)
    first = [arrays_of(reply) for kind, _, reply in grid.seen if kind == protocol.TRAIN][: len(NAMES)]
    for name, array in sent[len(NAMES)].items():
        mean = np.mean([answer[name] for answer in first], axis=0)
        np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_hospital_that_goes_missing_stops_the_run_which_goes_on_from_the_last_step(
    sites: list[Path], tmp_path: Path
) -> None:
    plan, out = plan_of("pooled"), tmp_path / "run"

    def gone(message: Message, site: Path) -> str | None:
        return "drop" if site.parent.name == "south" and values_of(message).get("step") == 4 else None

    with pytest.raises(FederationError, match=r"step 4: south did not answer .* nothing of it was unmasked"):
        run(plan, sites, out, fault=gone)
    assert not (out / "sampler").exists()
    before = ledger_kinds(sites[0]).count("begin")
    grid = run(plan, sites, out, resume=True)
    asked = [kind for kind, _, _ in grid.seen].count(protocol.STEP)
    assert asked == len(NAMES)  # step 4 alone: steps 1 to 3 were on the coordinator's disk
    assert ledger_kinds(sites[0]).count("begin") == before + 1  # finish; its step 4 was answered from the store


def test_an_answer_lost_on_the_way_is_asked_for_again_and_is_the_same(sites: list[Path], tmp_path: Path) -> None:
    lost: list[str] = []

    def lose(message: Message, site: Path) -> str | None:
        if message.metadata.message_type == protocol.STEP and site.parent.name not in lost:
            lost.append(site.parent.name)
            return "lose"
        return None

    plan = plan_of("pooled", steps=2, rounds=1)
    run(plan, sites, tmp_path / "run", fault=lose)
    assert len(lost) == len(NAMES)
    assert all(ledger_kinds(site).count("begin") == plan.privacy.steps + 2 for site in sites)


def test_a_step_that_died_at_a_hospital_is_skipped_and_the_run_goes_on(
    sites: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, real = [], pooled.noised_share

    def dies(*args: object, **rest: object) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 5:  # the second hospital's second step: begun, never committed
            raise MemoryError
        return real(*args, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pooled, "noised_share", dies)
    plan = plan_of("pooled")
    run(plan, sites, tmp_path / "run")
    kinds = ledger_kinds(sites[1])
    assert (kinds.count("begin"), kinds.count("commit")) == (6, 5)


class Killed(BaseException):
    """Stands for SIGKILL: nothing is handled, nothing cleaned up."""


@pytest.mark.parametrize("share", ["generator", "gan", "pooled"])
def test_a_coordinator_killed_in_two_rounds_goes_on_and_nothing_is_charged_or_drawn_twice(
    share: str, sites: list[Path], tmp_path: Path
) -> None:
    plan, out = plan_of(share, more='server_optimizer = "fedavgm"' if share == "gan" else ""), tmp_path / "run"
    kind = protocol.STEP if share == "pooled" else protocol.TRAIN
    number = {"count": 0}

    def kill(message: Message, site: Path) -> None:
        number["count"] += message.metadata.message_type == kind
        if number["count"] in (2, 8 if share == "pooled" else 5):
            number["count"] += 100
            raise Killed

    for resume in (False, True):
        with pytest.raises(Killed):
            run(plan, sites, out, resume=resume, fault=kill)
        number["count"] = 3 if resume else 2  # later: in the second round
    run(plan, sites, out, resume=True)
    for site in sites:
        kinds = ledger_kinds(site)
        assert kinds.count("reserve") == 1
        steps = plan.privacy.steps if share == "pooled" else plan.federation.rounds
        assert kinds.count("begin") == kinds.count("commit") == steps + 2


def test_a_pooled_run_waits_for_its_own_hospitals_and_takes_no_other(sites: list[Path], tmp_path: Path) -> None:
    plan, out = plan_of("pooled"), tmp_path / "run"
    with pytest.raises(FederationError, match="2 of at least 3 hospitals joined"):
        run(plan, sites, out, fault=lambda message, site: "drop" if site.parent.name == "south" else None)
    (tmp_path / "more").mkdir()
    fourth = write_hospitals(
        tmp_path / "more", ["west"], lambda path, i: write_striped_npz(path), epsilon=30.0, coalition=1000.0
    )
    with pytest.raises(FederationError, match="exactly 3"):
        run(plan, [*sites, *fourth], tmp_path / "four")


def test_hospitals_without_a_class_train_join_and_tell_nothing(tmp_path: Path) -> None:
    def one_class(path: Path, i: int) -> None:
        write_striped_npz(path, seed=i, patients=30)
        columns = dict(np.load(path))
        kept = columns["labels"] == i % 2 if i < 2 else np.ones(len(columns["labels"]), dtype=bool)
        np.savez(path, **{key: values[kept] for key, values in columns.items()})

    shapes: dict[str, set] = {}
    for share in ("generator", "gan", "pooled"):
        folder = tmp_path / share
        folder.mkdir()
        sites = write_hospitals(folder, NAMES, one_class, epsilon=30.0, coalition=1000.0)
        grid = run(plan_of(share), sites, folder / "run")
        for kind, node, reply in grid.seen:
            form = tuple(sorted((n, a.shape, str(a.dtype)) for n, a in arrays_of(reply).items()))
            keys = tuple(sorted(values_of(reply)))
            shapes.setdefault(f"{share} {kind}", set()).add((form, keys))
            assert not reply.content.metric_records  # no weight, which would tell the cohort's size
            assert node
    assert {name for name, forms in shapes.items() if len(forms) > 1} == set()
