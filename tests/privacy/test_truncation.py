"""A truncated batch: who stays, what it costs whatever the number of patients is, and that a hospital keeps to it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from scipy import stats

from client.config import load_site
from client.policy import PolicySpec, check_declaration, check_plan
from client.site import Site
from ghostnet import protocol
from ghostnet.audit.conformance import check_batch_sizes
from ghostnet.audit.findings import Finding
from ghostnet.cli.plan import plan_cost
from ghostnet.errors import LedgerError, PlanError, PolicyError, SiteError
from ghostnet.models import build_generator
from ghostnet.plan import Plan, parse_plan, plan_from_dict
from ghostnet.privacy.accounting import (
    accountants_agree,
    epsilon_pld,
    epsilon_rdp,
)
from ghostnet.privacy.claim import claim, plan_events, resolve
from ghostnet.privacy.composition import compose
from ghostnet.privacy.events import (
    Event,
    PoissonGaussianSteps,
    TruncatedPoissonGaussianSteps,
    event_from_dict,
    event_to_dict,
    repeat_for_hospitals,
    sampled_steps,
    truncation_probability,
)
from ghostnet.privacy.ledger import Ledger, verify_ledger
from ghostnet.privacy.noise import Entropy
from ghostnet.privacy.sampling import sample_patients, truncate_sample
from ghostnet.privacy.statement import mechanism
from ghostnet.weights import to_arrays
from tests.entropy import SeededEntropy
from tests.plans import TINY, tiny_plan, write_striped_npz
from tests.planted.hospital_bugs import RUN, ask, hospital

DELTA = 1e-5
Accountant = Callable[[Sequence[Event], float], float]


def truncated(
    q: float = 0.1, sigma: float = 2.0, steps: int = 1, keep: int = 6, bound: int = 40
) -> TruncatedPoissonGaussianSteps:
    return TruncatedPoissonGaussianSteps(
        name="steps",
        sampling_rate=q,
        noise_multiplier=sigma,
        steps=steps,
        truncate_batch=keep,
        patients_at_most=bound,
    )


def untruncated(event: TruncatedPoissonGaussianSteps) -> PoissonGaussianSteps:
    fields = dataclasses.asdict(event)
    return PoissonGaussianSteps(**{key: fields[key] for key in fields.keys() - {"truncate_batch", "patients_at_most"}})


def truncated_plan(keep: int = 5, bound: int = 30) -> Plan:
    lines = f"fakes = 4\ntruncate_batch = {keep}\npatients_at_most = {bound}"
    return parse_plan(TINY.replace("fakes = 4", lines).replace("epsilon = 10.0", "epsilon = 25.0"))


# Who stays


def test_a_larger_sample_keeps_exactly_so_many_and_a_smaller_one_stays_as_it_is() -> None:
    entropy = SeededEntropy(0)
    sampled = torch.arange(3, 53, 5)
    kept = truncate_sample(sampled, 4, entropy)
    assert len(kept) == 4
    assert bool(torch.isin(kept, sampled).all())
    assert bool((kept.diff() > 0).all())
    for untouched in (0, 10, 11):
        assert torch.equal(truncate_sample(sampled, untouched, entropy), sampled)
    assert truncate_sample(sampled[:0], 4, entropy).dtype == torch.int64


def test_every_set_of_patients_stays_equally_often() -> None:
    """Chi-square over the 20 subsets of 3 of 6; 60 is passed by chance once in a million times."""
    entropy, draws = SeededEntropy(1), 4000
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        kept = tuple(truncate_sample(torch.arange(6), 3, entropy).tolist())
        seen[kept] = seen.get(kept, 0) + 1
    assert len(seen) == 20
    assert sum((count - draws / 20) ** 2 / (draws / 20) for count in seen.values()) < 60


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(PlanError, match="truncate_batch = -1"):
        truncate_sample(torch.arange(3), -1, SeededEntropy(0))


def keep(at_most: int) -> Callable[[int, float, int, Entropy], list[torch.Tensor]]:
    """A sampler that keeps so many; 0 = all."""
    return lambda patients, rate, steps, entropy: [
        truncate_sample(sample_patients(patients, rate, entropy), at_most, entropy) for _ in range(steps)
    ]


def keep_the_first(patients: int, rate: float, steps: int, entropy: Entropy) -> list[torch.Tensor]:
    return [sample_patients(patients, rate, entropy)[:20] for _ in range(steps)]


def batch_sizes(sampler: Callable[[int, float, int, Entropy], list[torch.Tensor]], at_most: int, seed: int) -> Finding:
    return check_batch_sizes(
        sampler, patients=500, sampling_rate=0.05, at_most=at_most, steps=100, entropy=SeededEntropy(seed)
    )


@pytest.mark.parametrize("seed", range(5))
def test_truncated_batches_have_the_sizes_that_are_accounted(seed: int) -> None:
    assert batch_sizes(keep(20), 20, seed).passed
    assert batch_sizes(keep(0), 500, seed).passed


@pytest.mark.parametrize(
    ("sampler", "at_most", "why"),
    [
        (keep(20), 500, "total"),  # accounted as if all stayed
        (keep(0), 20, "inf"),  # accounted as truncated, and not
        (keep(19), 20, "full"),
        (keep_the_first, 20, "first half"),  # who stays is not chosen at random
    ],
)
def test_batches_of_other_sizes_or_of_favoured_patients_are_seen(
    sampler: Callable[[int, float, int, Entropy], list[torch.Tensor]], at_most: int, why: str
) -> None:
    finding = batch_sizes(sampler, at_most, 0)
    assert not finding.passed
    assert why in finding.detail


# What it costs


def worst_delta(epsilon: float, event: TruncatedPoissonGaussianSteps, patients: int, *, add: bool) -> float:
    """Delta of one step in a cohort built to hurt, by summing densities: shares no code with the accountants.

    One dimension; the others all push by -1, the patient by +1. Both sums are mixtures over how many others joined.
    """
    q, sigma, keep = event.sampling_rate, event.noise_multiplier, event.truncate_batch
    x = np.linspace(-keep - 12 * sigma, 3 + 12 * sigma, 8_001)
    without, with_patient = np.zeros_like(x), np.zeros_like(x)
    for joined in range(patients):
        weight = stats.binom.pmf(joined, patients - 1, q)
        plain = stats.norm.pdf(x, -min(joined, keep), sigma)
        if joined < keep:
            moved = stats.norm.pdf(x, -joined + 1, sigma)
        else:
            stays = keep / (joined + 1)
            moved = stays * stats.norm.pdf(x, -keep + 2, sigma) + (1 - stays) * plain
        without += weight * plain
        with_patient += weight * ((1 - q) * plain + q * moved)
    first, second = (without, with_patient) if add else (with_patient, without)
    return float(np.maximum(first - math.exp(epsilon) * second, 0).sum() * (x[1] - x[0]))


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_no_number_of_patients_up_to_the_bound_costs_more_than_is_accounted(sigma: float, add: bool) -> None:
    event = truncated(sigma=sigma)
    for delta in (1e-2, 1e-4):
        epsilon = epsilon_pld([event], delta)
        for patients in (1, 7, 12, 40):
            assert worst_delta(epsilon, event, patients, add=add) <= delta * (1 + 1e-4)


def test_the_untruncated_event_is_not_a_bound_for_truncated_steps() -> None:
    event = truncated(q=0.5, sigma=2.0, keep=3, bound=6)
    plain = epsilon_pld([untruncated(event)], 1e-3)
    assert worst_delta(plain, event, 6, add=False) > 1e-3
    assert epsilon_pld([event], 1e-3) > plain


@pytest.mark.parametrize("accountant", [epsilon_pld, epsilon_rdp])
def test_a_higher_bound_never_costs_less_and_a_larger_batch_never_more(accountant: Accountant) -> None:
    few = accountant is epsilon_pld  # a second each; RDP takes milliseconds
    bounds = (1, 20, 4000) if few else (1, 7, 20, 40, 80, 400, 4000)
    sizes = (3, 9, 40) if few else (1, 3, 6, 9, 20, 39, 40)
    by_bound = [accountant([truncated(steps=20, bound=bound)], DELTA) for bound in bounds]
    by_size = [accountant([truncated(steps=20, keep=keep)], DELTA) for keep in sizes]
    assert by_bound == sorted(by_bound)
    assert by_size == sorted(by_size, reverse=True)
    plain = accountant([untruncated(truncated(steps=20))], DELTA)
    assert by_bound[0] == by_size[-1] == plain
    assert by_bound[-1] > 1.5 * plain


def test_the_librarys_event_read_with_a_bound_for_the_number_is_no_bound_and_ours_covers_every_number() -> None:
    def by_library(patients: int) -> float:
        accountant = pld_privacy_accountant.PLDAccountant()
        step = dp_event.TruncatedSubsampledGaussianDpEvent(patients, 0.1, 6, 2.0)
        return float(accountant.compose(step, 20).get_epsilon(DELTA))

    ours, library = epsilon_pld([truncated(steps=20, bound=4000)], DELTA), [by_library(n) for n in (80, 4000)]
    assert library[1] < library[0]  # so 4000 is no bound for 80
    # The library replaces a patient where one enters and one leaves, which costs it up to a few percent.
    assert ours >= 0.97 * max(library)


def test_a_rare_truncation_costs_what_the_library_says_for_the_bound_itself() -> None:
    event = truncated(q=0.05, steps=200, keep=80, bound=1000)
    accountant = pld_privacy_accountant.PLDAccountant()
    accountant.compose(dp_event.TruncatedSubsampledGaussianDpEvent(1000, 0.05, 80, 2.0), 200)
    assert epsilon_pld([event], DELTA) == pytest.approx(accountant.get_epsilon(DELTA), abs=2e-3)


@pytest.mark.parametrize("event", [truncated(steps=20), truncated(q=1.0, sigma=4.0, steps=5, keep=3)])
def test_the_two_accountants_agree_on_truncated_steps(event: TruncatedPoissonGaussianSteps) -> None:
    by_pld, by_rdp = compose([event], DELTA)
    assert accountants_agree(by_pld, by_rdp)
    assert by_rdp < 1.5 * by_pld + 0.5


def test_renyi_of_a_mixture_that_is_always_truncated_is_that_of_half_the_noise() -> None:
    always = truncated(q=1.0, sigma=4.0, steps=5, keep=3, bound=40)
    assert truncation_probability(always) == 1.0
    half = PoissonGaussianSteps(name="half", sampling_rate=1.0, noise_multiplier=2.0, steps=5)
    assert epsilon_rdp([always], DELTA) == pytest.approx(epsilon_rdp([half], DELTA), abs=2e-4)
    assert epsilon_pld([always], DELTA) == pytest.approx(epsilon_pld([half], DELTA), abs=5e-3)


# The event


def test_an_event_survives_writing_and_nothing_may_be_left_out() -> None:
    event = truncated(steps=7)
    written = event_to_dict(event)
    assert written["mechanism"] == "truncated-poisson-gaussian"
    assert event_from_dict(written) == event
    for key in written.keys() - {"mechanism"}:
        with pytest.raises(PlanError, match=key):
            event_from_dict({k: v for k, v in written.items() if k != key})
    with pytest.raises(PlanError, match="unknown key"):
        event_from_dict({**written, "mechanism": "poisson-gaussian"})
    assert repeat_for_hospitals([event], 3) == (truncated(steps=21),)


@pytest.mark.parametrize("value", [0, -1, True, 10**11, 2.0, math.nan])
@pytest.mark.parametrize("key", ["truncate_batch", "patients_at_most"])
def test_an_event_refuses_what_is_no_number_of_patients(key: str, value: float) -> None:
    with pytest.raises(PlanError, match="whole number"):
        replace(truncated(), **{key: value})


def test_without_a_truncation_the_event_is_the_plain_one() -> None:
    event = sampled_steps(name="s", sampling_rate=0.1, noise_multiplier=1.0, steps=2)
    assert type(event) is PoissonGaussianSteps


# The plan


def test_a_plan_without_the_keys_keeps_its_form_and_its_hash() -> None:
    plan = tiny_plan()
    assert not {"truncate_batch", "patients_at_most"} & plan.to_dict()["privacy"].keys()
    spelled_out = parse_plan(TINY.replace("fakes = 4", "fakes = 4\ntruncate_batch = 0\npatients_at_most = 0"))
    assert spelled_out.hash() == plan.hash()
    assert truncated_plan().hash() != plan.hash()
    assert plan_from_dict(truncated_plan().to_dict()) == truncated_plan()


@pytest.mark.parametrize(("keep", "bound"), [(0, 30), (5, 0), (-1, 30), (5, -30), (5, 10**10)])
def test_a_plan_with_half_of_a_truncation_is_refused(keep: int, bound: int) -> None:
    with pytest.raises(PlanError, match=r"truncate_batch|patients_at_most"):
        truncated_plan(keep, bound)


def test_the_plans_claim_check_and_certificate_tell_of_the_truncation() -> None:
    plan = truncated_plan()
    event = plan_events(plan)[-1]
    assert isinstance(event, TruncatedPoissonGaussianSteps)
    assert (event.truncate_batch, event.patients_at_most) == (5, 30)
    assert "5 patients stay" in claim(plan).sampling
    assert "declared at most 30 patients" in mechanism(plan)["sampling"]
    assert any("more patients than it declared" in words for words in mechanism(plan)["not_covered"])
    assert not any("declared" in words for words in mechanism(tiny_plan())["not_covered"])
    shown = plan_cost(plan)
    assert (shown["patients_kept_in_a_step"], shown["patients_at_most"]) == (5, 30)
    assert plan_cost(tiny_plan())["patients_kept_in_a_step"] == "all"
    assert shown["epsilon_pld"] > plan_cost(tiny_plan())["epsilon_pld"]


def test_a_plan_is_resolved_for_truncated_steps() -> None:
    plan = truncated_plan()
    plan = replace(
        plan,
        privacy=replace(plan.privacy, noise_multiplier=0.0, epsilon=3.0),  # a small epsilon is quick
        warm_start=replace(plan.warm_start, noise_multiplier=0.0),
        utility=replace(plan.utility, noise_multiplier=0.0),
    )
    assert 2.95 < claim(resolve(plan)).epsilon_pld <= 3.0


# The hospital


def test_a_ledger_counts_truncated_steps_and_recomputes_them(tmp_path: Path) -> None:
    event = truncated()
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        charged = {"plan_hash": "0" * 64, "delta": DELTA, "requests": ("warm",)}
        spent = ledger.reserve(run_id="run-1", events=(event,), epsilon=8.0, **charged)
        assert spent.epsilon_pld == epsilon_pld([event], DELTA) > epsilon_pld([untruncated(event)], DELTA)
        with pytest.raises(LedgerError, match="another plan"):
            ledger.reserve(run_id="run-1", events=(untruncated(event),), epsilon=8.0, **charged)
    assert verify_ledger(tmp_path / "ledger.sqlite")[-1].fields["events"] == [event_to_dict(event)]


def declared(patients: object) -> PolicySpec:
    """Limits that allow the truncated plans of these tests, with a declared bound."""
    return PolicySpec(max_epsilon=50.0, delta=1e-5, patients_at_most=patients)  # type: ignore[arg-type]


def test_a_truncated_plan_needs_a_declared_bound_of_at_most_its_own() -> None:
    plan = truncated_plan(bound=30)
    for enough in (30, 29, 1):
        check_plan(plan, declared(enough))
    for bad in (0, 31, 10**9, -1, True, 20.0, math.nan, "20", None):
        with pytest.raises(PolicyError, match="^P15: "):
            check_plan(plan, declared(bad))
    for any_number in (0, 4711):
        check_plan(tiny_plan(), declared(any_number))


def test_the_hospitals_people_are_told_when_they_have_declared_too_few() -> None:
    check_declaration(30, declared(30))
    check_declaration(4711, declared(0))
    with pytest.raises(SiteError, match=r"31 patients .*patients_at_most = 30"):
        check_declaration(31, declared(30))


@pytest.mark.parametrize(
    ("keep", "bound"), [(5, 0), (0, 30), (-1, -1), (True, 30), (5, math.nan), (5.0, 30), (5, "30"), (None, None)]
)
def test_half_of_a_truncation_is_refused_by_number_whoever_built_the_plan(keep: object, bound: object) -> None:
    plan = truncated_plan()
    asked = replace(plan, privacy=replace(plan.privacy, truncate_batch=keep, patients_at_most=bound))
    with pytest.raises(PolicyError, match="P15"):
        check_plan(asked, declared(30))
    check_plan(plan, declared(30))


def answers(folder: Path, *, patients: int, declaration: int, bound: int) -> list[object]:
    """What a coordinator learns from a hospital of so many patients that it asks for a truncated run."""
    site_file = hospital(folder)
    site_file.write_text(site_file.read_text() + f"patients_at_most = {declaration}\n")
    write_striped_npz(folder / "data.npz", patients=patients)
    plan = resolve(truncated_plan(bound=bound))
    outcomes: list[object] = []
    released: dict[str, np.ndarray] = {}
    for kind in (protocol.JOIN, protocol.WARM_START):
        reply = ask(site_file, plan, kind)
        if reply.has_error():
            outcomes.append((kind, reply.error.code, reply.error.reason.rpartition(" ")[0]))
            continue
        released = {name: array.numpy() for r in reply.content.array_records.values() for name, array in r.items()}
        outcomes.append((kind, sorted(reply.content), {name: array.shape for name, array in released.items()}))
    weights = to_arrays(build_generator(plan))
    mean = {protocol.RELEASED_MEAN: released.get(protocol.NOISED_SUM, np.zeros(1)) / np.float32(20)}
    try:
        trained = Site(load_site(site_file)).train(plan, RUN, 1, weights, mean)
        outcomes.append({name: array.shape for name, array in trained.items()})
    except PolicyError as refusal:
        outcomes.append(str(refusal))
    outcomes.append([entry.kind for entry in verify_ledger(folder / "ledger.sqlite")])
    return outcomes


@pytest.mark.parametrize(
    ("declaration", "bound", "refused"), [(20, 30, False), (20, 20, False), (20, 19, True), (0, 10**6, True)]
)
def test_the_number_of_patients_decides_nothing_that_a_coordinator_sees(
    declaration: int, bound: int, refused: bool, tmp_path: Path
) -> None:
    few = answers(tmp_path / "few", patients=10, declaration=declaration, bound=bound)
    many = answers(tmp_path / "many", patients=60, declaration=declaration, bound=bound)
    assert few == many
    assert ("P15" in str(few)) is refused
    assert ("reserve" in few[-1]) is not refused


def test_a_hospital_of_more_patients_than_it_declared_is_told_when_it_prepares(tmp_path: Path) -> None:
    site_file = hospital(tmp_path)
    text = site_file.read_text()
    for declaration, fits in ((0, True), (100, True), (5, False)):
        site_file.write_text(text + f"patients_at_most = {declaration}\n")
        site = Site(load_site(site_file))
        if fits:
            site.prepare(tiny_plan().image)
        else:
            with pytest.raises(SiteError, match="patients_at_most = 5"):
                site.prepare(tiny_plan().image)
