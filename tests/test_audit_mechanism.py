"""The audit of the whole private step: the bounds are right, the clean build passes, each planted build fails."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from client.audited import HOSPITAL
from ghostnet.accounting.epsilon import PoissonGaussianSteps
from ghostnet.audit import bounds
from ghostnet.audit.bounds import Guesses
from ghostnet.audit.canary_checks import check_noise_of_run, check_power, claimed_tradeoff, log_likelihood_ratios
from ghostnet.audit.every_release import Build
from ghostnet.audit.mechanism import MechanismAudit, Profile, audit_loop, audit_mechanism
from ghostnet.cli import main as command_line
from ghostnet.errors import AuditError
from tests.entropy import SeededEntropy
from tests.planted import audit_builds
from tests.planted.audit_builds import BUILDS
from tests.planted.suite import EVERY_RELEASE

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parent.parent
SMALL = Profile(  # enough for gross bugs; the thresholds only tell it from an audit that sees nothing
    canaries=400,
    patients=8,
    sampling_rate=0.1,
    noise_multiplier=1.1,
    steps=30,
    watched=150,
    watched_steps=50,
    neighbours=5,
    least_one_run=0.05,
    least_f_dp=0.05,
    least_gdp=0.0,  # so few canaries leave it none
)

# (canaries, guessed, correct): P-values at epsilon 1 and delta 0, 1e-6, 1e-5; epsilon at 5 % and the same deltas;
# epsilon of the Gaussian family at delta 1e-5. From auditing.py of jax-privacy 2.0.0.
VECTORS = {
    (1000, 200, 170): (
        (4.3973764228521036e-05, 1.0136241495515628e-04, 6.178602714948735e-04),
        (1.399404, 1.399210, 1.397459),
        2.24069,
    ),
    (1000, 1000, 731): (
        (0.5180735189333483, 0.5181301706033249, 0.518640035633114),
        (0.880603, 0.880574, 0.880316),
        1.64267,
    ),
    (1000, 50, 50): (
        (1.5761911545634355e-07, 1.0599988809838881e-04, 1.0585803089447812e-03),
        (2.784727, 2.781889, 2.756219),
        4.06191,
    ),
    (5000, 500, 470): (
        (1.5456343923483817e-33, 7.903424751555645e-05, 7.903424751555645e-04),
        (2.435509, 2.434665, 2.426893),
        3.50999,
    ),
    (100, 10, 9): (
        (0.20401201235612004, 0.20406512223644752, 0.20454311115939472),
        (0.429845, 0.429586, 0.427251),
        0.60207,
    ),
    (1000, 100, 55): ((0.999967318006261, 0.9999673564492848, 0.9999677024364989), (0.0, 0.0, 0.0), 0.0),
}
DELTAS = (0.0, 1e-6, 1e-5)


@cache
def audited(name: str) -> MechanismAudit:
    """The small audit of a planted build's loop, or of the hospital's."""
    return audit_loop(BUILDS.get(name, HOSPITAL), SMALL, entropy=SeededEntropy(1))


@pytest.fixture
def clean() -> MechanismAudit:
    return audited("hospital")


# Bounds


@pytest.mark.parametrize("counts", VECTORS, ids=str)
def test_the_bounds_are_those_of_jax_privacy(counts: tuple[int, int, int]) -> None:
    p_values, epsilons, f_dp = VECTORS[counts]
    attack = Guesses(canaries=counts[0], guessed=counts[1], correct=counts[2])
    for delta, p_value, epsilon in zip(DELTAS, p_values, epsilons, strict=True):
        assert bounds.one_run_p_value(attack, epsilon=1.0, delta=delta) == pytest.approx(p_value, rel=1e-9, abs=1e-12)
        assert bounds.one_run_epsilon(attack, delta=delta, significance=0.05) == pytest.approx(epsilon, abs=1e-5)
    mu = bounds.one_run_mu(attack, significance=0.05)
    assert bounds.gdp_epsilon(mu, 1e-5) == pytest.approx(f_dp, abs=1e-3)


@pytest.mark.parametrize(("guesses", "cap"), [(100, 3.49), (1000, 5.81), (10_000, 8.11)])
def test_all_guesses_right_reaches_the_cap_of_the_method_and_no_more(guesses: int, cap: float) -> None:
    attack = Guesses(canaries=guesses, guessed=guesses, correct=guesses)
    exact = math.log(0.05 ** (1 / guesses) / (1 - 0.05 ** (1 / guesses)))
    assert bounds.one_run_epsilon(attack, delta=0.0, significance=0.05) == pytest.approx(exact, abs=1e-4)
    assert exact == pytest.approx(cap, abs=0.01)


def test_randomised_response_is_over_estimated_in_at_most_a_twentieth_of_runs() -> None:
    rng = np.random.default_rng(0)
    correct = rng.binomial(500, expit(1.0), 400)  # nominal 5 %; 8 % would be 2.8 standard errors above it
    found = [
        bounds.one_run_epsilon(Guesses(canaries=500, guessed=500, correct=int(v)), delta=0.0, significance=0.05)
        for v in correct
    ]
    assert 0.01 < np.mean(np.array(found) > 1.0) <= 0.08


def test_a_gaussian_mechanism_is_bounded_below_its_epsilon_and_refutes_only_smaller_claims() -> None:
    mu, m, over, refuted_smaller = 1.0, 2000, 0, 0
    epsilon = bounds.gdp_epsilon(mu, 1e-6)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        included = rng.random(m) < 0.5
        scores = mu * (rng.standard_normal(m) + mu * included) - mu**2 / 2
        true = bounds.lower_bounds(scores, included, delta=1e-6, claimed=bounds.gaussian_tradeoff(mu))
        over += max(true.one_run, true.f_dp, true.clopper_pearson, true.gdp) > epsilon or true.claim_refuted
        smaller = bounds.lower_bounds(scores, included, delta=1e-6, claimed=bounds.gaussian_tradeoff(mu / 4))
        refuted_smaller += smaller.claim_refuted
        assert 0 < true.one_run < true.f_dp
    assert over == 0
    assert refuted_smaller == 20


def test_scores_without_information_bound_nothing() -> None:
    rng = np.random.default_rng(3)
    found = bounds.lower_bounds(
        rng.standard_normal(1000), rng.random(1000) < 0.5, delta=1e-6, claimed=bounds.gaussian_tradeoff(0.5)
    )
    assert (found.one_run, found.clopper_pearson, found.claim_refuted) == (0.0, 0.0, False)


def test_gaussian_epsilon_is_the_analytic_one() -> None:
    for epsilon, sigma in ((0.5, 7.03), (1.0, 3.73), (2.0, 1.99)):  # Balle and Wang 2018, delta 1e-5
        assert bounds.gdp_epsilon(1 / sigma, 1e-5) == pytest.approx(epsilon, abs=0.005)
    assert bounds.gdp_epsilon(0.0, 1e-5) == 0.0


def test_an_exact_limit_covers_nothing_seen_and_everything_seen() -> None:
    assert bounds.clopper_pearson_upper(0, 50, 0.05) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert bounds.clopper_pearson_upper(50, 50, 0.05) == 1.0


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible"):
        Guesses(canaries=10, guessed=5, correct=6)


def test_the_claimed_curve_lies_below_the_diagonal_and_tightens_with_noise() -> None:
    curves = [
        claimed_tradeoff(PoissonGaussianSteps(name="s", sampling_rate=0.1, noise_multiplier=sigma, steps=40))
        for sigma in (1.0, 4.0)
    ]
    for x in (0.01, 0.1, 0.5, 0.9):
        assert 0 <= curves[0](x) < curves[1](x) < x


# Checks on a run's releases


def exact_releases(noise_multiplier: float, *, steps: int = 60, m: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    included = rng.random(m) < 0.5
    joined = (rng.random((steps, m)) < 0.1) & included
    return joined + noise_multiplier * rng.standard_normal((steps, m)), included


def test_the_score_tells_members_apart_better_than_the_plain_sum() -> None:
    event = PoissonGaussianSteps(name="s", sampling_rate=0.1, noise_multiplier=0.8, steps=60)
    releases, included = exact_releases(0.8)

    def separation(scores: np.ndarray) -> float:
        return float((scores[included].mean() - scores[~included].mean()) / scores[~included].std())

    assert separation(log_likelihood_ratios(releases, event)) > 1.1 * separation(releases.sum(0))


@pytest.mark.parametrize(
    ("spoil", "fails"),
    [
        (lambda noise: noise, ()),
        (lambda noise: 0.97 * noise, ("noise of the run",)),
        (lambda noise: 0 * noise, ("noise of the run", "noise freshness")),
        (lambda noise: np.where(np.arange(noise.size).reshape(noise.shape) == 7, np.nan, noise), None),
        (lambda noise: noise[:1].repeat(len(noise), 0), None),
        (lambda noise: (noise + np.roll(noise, 2, 0)) / math.sqrt(2), ("noise freshness",)),
        (lambda noise: noise[:, :1].repeat(noise.shape[1], 1), None),
        (lambda noise: noise[:0], None),
    ],
    ids=["clean", "x 0.97", "none", "NaN", "same each step", "carried over", "one number for all", "no release"],
)
def test_noise_of_a_run_that_is_not_fresh_or_not_of_its_size_is_seen(
    spoil: Callable[[np.ndarray], np.ndarray], fails: tuple[str, ...] | None
) -> None:
    noise = np.random.default_rng(2).standard_normal((60, 400))
    failed = tuple(finding.check for finding in check_noise_of_run(spoil(noise)) if not finding.passed)
    assert failed == fails if fails is not None else "noise freshness" in failed


# Builds


def test_the_clean_build_passes(clean: MechanismAudit) -> None:
    assert clean.passed, clean.failed
    assert 0 < clean.bounds.one_run < clean.epsilon_pld
    assert clean.to_dict()["verdict"] == "pass"


CAUGHT = {
    "NOISE_OVER_BATCH": "noise scale",
    "NOISE_OVER_4": "noise of the run",
    "NO_CLIP": "sensitivity",
    "IMAGE_CLIP": "contribution",
    "SAME_NOISE": "noise freshness",
    "ONE_PARAMETER_BARE": "noise in every parameter",
    "SHUFFLED": "Poisson sampling",
    "VIEWS_BY_ROW": "sensitivity",
    "QUARTER_CLAIMED": "step count",
}
BY_THEIR_CHECK_ALONE = {"HALF_RATE_CLAIMED": "Poisson sampling"}
"""Audited in tests/planted/suite.py by this check of the audit, without the rest: the loop is the clean one."""
SEEN_BY_BOUNDS = {"NOISE_OVER_BATCH", "NOISE_OVER_4", "NO_CLIP"}


@pytest.mark.parametrize("name", CAUGHT)
def test_a_planted_build_fails_the_audit_by_the_check_named_beside_it(name: str, clean: MechanismAudit) -> None:
    audit = audited(name)
    assert not audit.passed
    assert CAUGHT[name] in audit.failed
    assert CAUGHT[name] in [finding.check for finding in clean.findings]  # which passed for the clean twin
    if name in SEEN_BY_BOUNDS:
        assert "lower bounds" in audit.failed


def test_every_check_of_the_loop_catches_some_build(clean: MechanismAudit) -> None:
    others = {"lower bounds", "power"}  # asserted above and below
    caught = {*CAUGHT.values(), *BY_THEIR_CHECK_ALONE.values()}
    assert caught | others == {finding.check for finding in clean.findings}
    assert CAUGHT.keys() | BY_THEIR_CHECK_ALONE.keys() == BUILDS.keys()


def test_an_audit_with_too_little_power_fails(clean: MechanismAudit) -> None:
    full = Profile()
    least = {"one_run": full.least_one_run, "f_dp": full.least_f_dp, "gdp": full.least_gdp}
    assert not check_power(clean.bounds, least).passed
    assert not check_power(replace(clean.bounds, gdp=math.nan), {"gdp": 0.0}).passed


@pytest.mark.parametrize(
    "events", [(), (PoissonGaussianSteps(name="s", sampling_rate=0.1, noise_multiplier=0.0, steps=1),)]
)
def test_a_build_that_accounts_nothing_that_can_be_compared_is_refused(
    events: tuple[PoissonGaussianSteps, ...],
) -> None:
    with pytest.raises(AuditError, match="is accounted as"):
        audit_mechanism(replace(HOSPITAL, plan_events=lambda plan: events), SMALL)


# Command line


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def test_the_command_passes_this_installation_by_all_checks_each_of_which_catches_some_build(
    clean: MechanismAudit,
) -> None:
    result = run_command("ghostnet.cli", "audit", "mechanism", "--json")
    assert result.returncode == 0, result.stderr
    audit = json.loads(result.stdout)
    assert audit["verdict"] == "pass"
    assert audit["claim"]["epsilon_pld"] == pytest.approx(4.0, abs=0.01)
    for name, least in (("one_run", 1.0), ("f_dp", 1.4), ("gdp", 1.9)):
        assert least <= audit["lower_bounds"][name] < audit["claim"]["epsilon_pld"]
    loop = {finding.check for finding in clean.findings}  # each caught some build above
    expected = loop | {planted.caught_by for planted in EVERY_RELEASE}
    assert {finding["check"] for finding in audit["findings"]} == expected
    assert 0 < audit["false_alarm"] == pytest.approx(sum(finding["false_alarm"] for finding in audit["findings"]))
    assert audit["false_alarm"] < 0.003


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_ends_with_13_and_names_the_checks_that_a_planted_build_fails(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(build: Build, **_: object) -> MechanismAudit:
        assert build.name == BUILDS["QUARTER_CLAIMED"].name
        return audited("QUARTER_CLAIMED")  # the full one takes half a minute

    monkeypatch.setattr("ghostnet.audit.mechanism.audit_mechanism", small)
    monkeypatch.setattr(sys, "argv", ["audit_builds", "QUARTER_CLAIMED", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as stopped:
        audit_builds.main()
    assert stopped.value.code == 13
    shown = capsys.readouterr()
    assert "step count" in shown.err
    if as_json:
        assert json.loads(shown.out)["failed"] == ["step count"]
    else:
        assert "verdict: fail (build T / 4 accounted)" in shown.out


@pytest.mark.parametrize("build", ["no.such.module:X", "ghostnet.audit.mechanism:Nothing", "json:dumps", "json"])
def test_a_build_that_is_none_is_refused_in_one_line(
    build: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ghostnet", "audit", "mechanism", "--build", build])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 13
    assert f"build '{build}'" in capsys.readouterr().err
