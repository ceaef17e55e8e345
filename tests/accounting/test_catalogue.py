"""The catalogue of released statistics: an entry decides cost, limit, request, noise and answer; all else stays."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from ghostnet.accounting import catalogue
from ghostnet.accounting.catalogue import (
    CATALOGUE,
    DISCRIMINATOR_STEPS,
    PERCEPTUAL_FEATURES,
    POOLED_STEPS,
    UTILITY_COUNTS,
    WARM_START,
    Mechanism,
    answer_arrays,
    events_of,
    plan_value,
    run_requests,
)
from ghostnet.accounting.events import GaussianRelease
from ghostnet.accounting.plan_cost import plan_events, resolve
from ghostnet.audit.accounted import NotedEntropy, accounted_draws
from ghostnet.errors import LedgerError, PlanError
from ghostnet.plan import Plan, parse_plan
from ghostnet.plan.load import load_plan
from ghostnet.privacy.noise import grid_step
from ghostnet.training.release import release_share, release_step, release_vectors
from tests.entropy import SeededEntropy
from tests.plans import tiny_plan, tiny_plan_text

ROOT = Path(__file__).resolve().parents[2]
PERCEPTUAL = "discriminator_steps = 2\nperceptual_noise_multiplier = 1.7\nperceptual_weight = 1.0"


def pooled_plan() -> Plan:
    federation = 'rounds = 2\nshare = "pooled"\nhospitals = 3'
    return parse_plan(tiny_plan_text(rounds=federation, epsilon="epsilon = 100.0"))


def perceptual_plan(rounds: int = 3) -> Plan:
    text = tiny_plan_text(
        discriminator_steps=PERCEPTUAL, steps="steps = 8", rounds=f"rounds = {rounds}", epsilon="epsilon = 100.0"
    )
    return parse_plan(text)


def warm_start_plan() -> Plan:
    text = tiny_plan_text(rounds="rounds = 0").replace("steps = 4", "steps = 0")
    return parse_plan(text)


PLANS = {
    "tiny": tiny_plan(),
    "pooled": pooled_plan(),
    "perceptual": perceptual_plan(),
    "warm start alone": warm_start_plan(),
    **{path.stem: resolve(load_plan(path)) for path in sorted((ROOT / "docs/examples").glob("*.toml"))},
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def counts(events) -> Counter:
    """Releases by everything else that an event says."""
    found = Counter()
    for event in events:
        field = "count" if isinstance(event, GaussianRelease) else "steps"
        found[dataclasses.replace(event, **{field: 1})] += getattr(event, field)
    return found


@every_plan
def test_what_the_requests_are_charged_one_by_one_is_what_the_plan_costs(plan):
    requests = run_requests(plan)
    assert sum((counts(events_of(plan, [request])) for request in requests), Counter()) == counts(plan_events(plan))
    assert events_of(plan, requests) == plan_events(plan)
    assert events_of(plan, []) == ()


def test_the_requests_of_a_run_are_those_of_the_ledger():
    assert run_requests(tiny_plan()) == ("warm_start", "round-1", "round-2", "finish")
    assert run_requests(pooled_plan()) == ("warm_start", "step-1", "step-2", "step-3", "step-4", "finish")
    assert run_requests(PLANS["warm start alone"]) == ("warm_start", "finish")
    off = tiny_plan_text().replace("[warm_start]\nnoise_multiplier = 0.6", "[warm_start]\nnoise_multiplier = 0.0")
    assert run_requests(parse_plan(off)) == ("round-1", "round-2", "finish")


def test_each_answer_is_charged_as_the_statistics_that_it_releases():
    plan = perceptual_plan()  # 8 steps in 3 rounds
    names = {r: [(e.name, getattr(e, "count", None)) for e in events_of(plan, [r])] for r in run_requests(plan)}
    assert names == {
        "warm_start": [("warm start", 1)],
        "round-1": [("discriminator steps", None)],
        "round-2": [("perceptual features", 1), ("discriminator steps", None)],
        "round-3": [("perceptual features", 1), ("discriminator steps", None)],
        "finish": [("utility counts", 1)],
    }
    assert [events_of(plan, [f"round-{n}"])[-1].steps for n in (1, 2, 3)] == [2, 3, 3]


def test_the_entries_name_what_there_is_and_do_not_meet():
    for statistic in CATALOGUE:
        assert isinstance(plan_value(tiny_plan(), statistic.noise_key), float)
        assert statistic.norm_bound(tiny_plan()) == 1.0
    for plan in PLANS.values():
        asked = [s for s in CATALOGUE if s.is_asked(plan)]
        assert len({s.name for s in asked}) == len({s.noise_key for s in asked}) == len(asked)
        arrays = [(s.request, s.array) for s in asked if s.array]
        assert len(set(arrays)) == len(arrays)
    assert len({s.policy_code for s in CATALOGUE}) == len({s.noise_key for s in CATALOGUE})


@pytest.mark.parametrize(
    "request_name",
    [
        "histogram",
        "round-0",
        "round-3",
        "round-01",
        "round-",
        "round-+1",
        "round-1 ",
        "step-1",
        "Finish",
        "",
        "9" * 5000,
    ],
)
def test_a_request_that_no_entry_names_is_refused(request_name):
    with pytest.raises(LedgerError, match="no request that the catalogue"):
        answer_arrays(tiny_plan(), request_name)


def test_only_requests_of_the_plans_mode_and_switches_are_named():
    for plan, refused in (
        (pooled_plan(), "round-1"),
        (pooled_plan(), "step-5"),
        (PLANS["warm start alone"], "round-1"),
        (dataclasses.replace(tiny_plan(), warm_start=dataclasses.replace(tiny_plan().warm_start, noise_multiplier=0.0)),
         "warm_start"),
    ):  # fmt: skip
        assert refused not in run_requests(plan)
        with pytest.raises(LedgerError):
            answer_arrays(plan, refused)


def test_the_arrays_of_an_answer_are_those_of_its_statistics():
    tiny, pooled = tiny_plan(), pooled_plan()
    assert answer_arrays(tiny, "warm_start") == {"noised_sum"}
    assert answer_arrays(tiny, "round-1") is None  # weights
    assert answer_arrays(tiny, "finish") == {"noised_counts"}
    assert answer_arrays(pooled, "step-1") == {"masked_sum"}
    off = dataclasses.replace(tiny, utility=dataclasses.replace(tiny.utility, noise_multiplier=0.0))
    assert answer_arrays(off, "finish") == frozenset()  # the last request is asked for its signature


def noised_by(statistic, plan, entropy, numbers=5):
    zeros = torch.zeros(numbers, dtype=torch.float64)
    if statistic.mechanism is Mechanism.GAUSSIAN:
        return release_vectors(statistic, torch.zeros(2, numbers), plan, entropy=entropy)
    if statistic.mechanism is Mechanism.SAMPLED:
        return release_step(statistic, {"weight": zeros}, plan, entropy=entropy)["weight"]
    return release_share(statistic, zeros, plan, entropy=entropy)


@pytest.mark.parametrize("statistic", CATALOGUE, ids=lambda s: f"{s.name}, {s.mechanism.name}")
def test_the_noise_of_each_statistic_is_that_of_its_event(statistic):
    plan = pooled_plan() if statistic is POOLED_STEPS else perceptual_plan()
    plan = dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, clip_norm=0.7))
    one = dataclasses.replace(statistic, length=lambda _: 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "CATALOGUE", (one,))
        entropy = NotedEntropy(SeededEntropy(1))
        noised_by(one, plan, entropy)
        assert dict(entropy.draws) == accounted_draws(plan, [one.event(plan, 1)])
        less = dataclasses.replace(one.event(plan, 1), noise_multiplier=1.3 * one.noise_multiplier(plan))
        assert dict(entropy.draws) != accounted_draws(plan, [less])


@pytest.mark.parametrize("statistic", CATALOGUE, ids=lambda s: f"{s.name}, {s.mechanism.name}")
def test_a_statistic_that_is_not_as_in_the_catalogue_gets_no_noise(statistic):
    plan = pooled_plan() if statistic is POOLED_STEPS else perceptual_plan()
    noised_by(statistic, plan, SeededEntropy(0))
    for changed in ({"name": "other"}, {"noise_key": "utility.bins"}, {"norm_key": "training.beta1"}):
        with pytest.raises(PlanError, match="not in the catalogue"):
            noised_by(dataclasses.replace(statistic, **changed), plan, SeededEntropy(0))


def test_a_statistic_gets_no_noise_in_a_plan_or_a_form_that_it_does_not_have():
    tiny, pooled = tiny_plan(), pooled_plan()
    for statistic, plan in ((PERCEPTUAL_FEATURES, tiny), (DISCRIMINATOR_STEPS, pooled), (POOLED_STEPS, tiny)):
        with pytest.raises(PlanError, match="not released by this plan"):
            noised_by(statistic, plan, SeededEntropy(0))
    with pytest.raises(PlanError, match="one noisy sum over all patients"):
        release_step(UTILITY_COUNTS["classification"], {"weight": torch.zeros(3)}, tiny, entropy=SeededEntropy(0))
    with pytest.raises(PlanError, match="Poisson sample"):
        release_vectors(DISCRIMINATOR_STEPS, torch.zeros(2, 3), tiny, entropy=SeededEntropy(0))
    with pytest.raises(PlanError, match="over all patients"):
        release_share(WARM_START, torch.zeros(3), tiny, entropy=SeededEntropy(0))


def test_a_share_lies_on_the_grid_of_the_pooled_noise():
    plan = pooled_plan()
    std = POOLED_STEPS.noise_std(plan)
    assert std == pytest.approx(plan.privacy.noise_multiplier * plan.privacy.clip_norm / 3**0.5)
    value = torch.full((4,), 1000 * grid_step(std), dtype=torch.float64)
    bare = release_share(POOLED_STEPS, torch.zeros(4, dtype=torch.float64), plan, entropy=SeededEntropy(2))
    assert torch.equal(
        release_share(POOLED_STEPS, value, plan, entropy=SeededEntropy(2)) - bare, torch.full((4,), 1000)
    )


# Nothing else adds noise.

ADDERS = {"noisy_sum", "noised_sum", "add_gaussian", "add_gaussian_steps"}
DRAWS = {"gaussian", "discrete_gaussian"}  # of an `Entropy`
DOOR = Path("ghostnet/training/release.py")


def noise_used(source: str) -> set[str]:
    """What adds or draws noise in a source, as it is imported or reached for."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= ADDERS & {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            is_draw = node.attr in DRAWS and ast.unparse(node.value).lower().endswith(("entropy", "entropy()"))
            found |= {node.attr} if node.attr in ADDERS or is_draw else set()
    return found


def test_only_the_release_module_adds_noise():
    folders = ("ghostnet", "client", "server")
    sources = {path.relative_to(ROOT): path.read_text() for f in folders for path in (ROOT / f).rglob("*.py")}
    own = (Path("ghostnet/privacy"), Path("ghostnet/audit"))  # the mechanism; the audit's own coins for drawn patients
    using = {path for path, source in sources.items() if noise_used(source) and not set(path.parents) & set(own)}
    assert using == {DOOR}
    assert noise_used(sources[DOOR]) == {"noisy_sum", "noised_sum", "add_gaussian_steps"}


@pytest.mark.parametrize(
    "line",
    [
        "from ghostnet.privacy.releases import noisy_sum",
        "from ghostnet.privacy.noise import add_gaussian as add",
        "releases.noisy_sum(counts, norm_bound=1.0, noise_multiplier=2.0, entropy=entropy)",
        "value + self._entropy.gaussian(value.shape, 1.0)",
        "SystemEntropy().discrete_gaussian(7, 2.0)",
    ],
)
def test_noise_added_elsewhere_is_seen(line):
    assert noise_used((ROOT / "client/site.py").read_text()) == set()
    assert noise_used((ROOT / "client/site.py").read_text() + "\n" + line) != set()


# A new statistic: three files.

ENTRY = """
CLASS_COUNTS = Statistic(
    name="class counts",
    mechanism=Mechanism.GAUSSIAN,
    request=Request.FINISH,
    noise_key="utility.class_counts_noise_multiplier",
    policy_code="P99",
    array="class_counts",
    length=lambda plan: len(plan.image.labels),
)
CATALOGUE = (*CATALOGUE, CLASS_COUNTS)
"""
ANSWER = """
            if catalogue.CLASS_COUNTS.is_on(plan):
                has = torch.zeros(test.patients, len(plan.image.labels))
                has[test.owners, test.labels] = 1.0
                noised = release_vectors(catalogue.CLASS_COUNTS, has, plan, entropy=self._entropy)
                released["class_counts"] = noised.numpy()
            return released
"""


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1, f"{before!r} is not once in {file}; the recipe in docs/architecture.md has moved"
    file.write_text(text.replace(before, after))


def ask_copy(copy: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "tests/accounting/new_statistic.py"
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script)], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the tree in which the plan has a key more, and the last answer a statistic more."""
    for package in ("ghostnet", "client"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    edit(
        tmp_path / "ghostnet/plan/spec.py",
        "    bins: Annotated[int, ",
        '    class_counts_noise_multiplier: Annotated[Number, key("Of the counts of classes.", ge=0)] = 0.0\n'
        "    bins: Annotated[int, ",
    )
    edit(
        tmp_path / "client/site.py",
        "\n            return released\n",
        ANSWER,
    )
    return tmp_path


def test_three_files_make_a_new_statistic_that_is_charged_limited_signed_and_audited(copy):
    file = copy / "ghostnet/accounting/catalogue.py"
    edit(file, "\n\ndef run_requests(", f"\n{ENTRY}\n\ndef run_requests(")
    done = ask_copy(copy)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["file"] == str(file)
    assert found["noise_multiplier"] > 0
    assert found["array"] == {"noised_counts": [2000], "class_counts": [2]}
    assert found["signed"] == ["utility counts", "class counts"]
    assert found["epsilon"][0] > found["epsilon"][1] + 0.01
    assert "P99: utility.class_counts_noise_multiplier = 0.01" in found["refused"]
    audited = {
        "noise drawn as accounted",
        "ledger holds what is accounted",
        "nothing else in an answer",
        "one patient's part of a release",
        "patients apart in a release",
    }
    assert found["audit"] == dict.fromkeys(audited, True)


def test_the_same_without_its_entry_is_released_by_nobody(copy):
    # The statistic is there, with noise of its own and its place in the answer; the catalogue does not know it.
    text = (copy / "client/site.py").read_text()
    (copy / "client/site.py").write_text(
        text.replace("catalogue.CLASS_COUNTS.is_on(plan)", "plan.utility.class_counts_noise_multiplier == 0").replace(
            "release_vectors(catalogue.CLASS_COUNTS, has, plan,", "release_vectors(statistic, has, plan,"
        )
    )
    done = ask_copy(copy)
    assert done.returncode != 0
    assert "the catalogue of released statistics has ['noised_counts']; it is not sent" in done.stderr
