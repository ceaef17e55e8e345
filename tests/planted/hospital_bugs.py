"""Wrong hospitals: each runs the real site, app, policy, ledger or loop with one piece of it replaced.

A check takes a folder to work in and returns a `Finding`; a bug is a context in which the check must not pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from numpy.typing import NDArray

import client.app
import client.policy
import client.site
from client.audited import HOSPITAL
from client.config import load_site
from client.policy import PolicySpec, check_plan
from client.site import Site
from ghostnet.accounting.epsilon import epsilon_pld
from ghostnet.accounting.events import Event
from ghostnet.accounting.plan_cost import resolve
from ghostnet.audit import canaries
from ghostnet.audit.canaries import NoEntropy, TrainRound
from ghostnet.audit.conformance import check_poisson_sampling, check_public_values
from ghostnet.audit.every_release import Build
from ghostnet.audit.findings import Finding
from ghostnet.audit.mechanism import Profile
from ghostnet.errors import BudgetError, LedgerError, PolicyError
from ghostnet.evidence import ledger as ledger_module
from ghostnet.evidence.ledger import Ledger, Spent, verify_ledger
from ghostnet.exchange.arrays import Arrays, to_arrays
from ghostnet.exchange.flower import VALUES, to_records
from ghostnet.exchange.messages import Body, JoinRequest, Plain, RoundRequest
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import Plan
from ghostnet.training import loop as training
from ghostnet.training.cohort import Cohort
from tests.asked import arrays_of, message, node, values_of
from tests.entropy import SeededEntropy
from tests.evidence.ledgers import DELTA, EVENTS, reserve
from tests.plans import tiny_plan, write_striped_npz
from tests.planted.audit_builds import loop_with

RUN = "ab" * 16
POLICY = PolicySpec(max_epsilon=30.0, delta=1e-5)
SITE = """
name = "north"
state = "."
[data]
kind = "npz"
path = "data.npz"
[policy]
max_epsilon = 30.0
delta = 1e-5
"""
SMALL = Profile(watched=200, watched_steps=100, sampling_rate=0.1)


def hospital(folder: Path) -> Path:
    """A hospital's site.toml, with data."""
    folder.mkdir(parents=True, exist_ok=True)
    write_striped_npz(folder / "data.npz", patients=30)
    (folder / "site.toml").write_text(SITE)
    return folder / "site.toml"


def adversarial_plan() -> Plan:
    """The tiny plan without warm start: two rounds of two steps."""
    plan = tiny_plan()
    return resolve(replace(plan, warm_start=replace(plan.warm_start, noise_multiplier=0.0)))


# DP skipped after a restart: the state is loaded, the private wrapper is not put back.


class CountingEntropy(SeededEntropy):
    """Counts the numbers of noise that were drawn."""

    drawn = 0

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        """Counts and draws."""
        self.drawn += n
        return super().discrete_gaussian(n, std)


def check_noise_after_a_restart(folder: Path) -> Finding:
    """A hospital that starts anew between two rounds draws noise for every number of every step of the second."""
    plan, site_file = adversarial_plan(), hospital(folder)
    weights = to_arrays(build_generator(plan.networks))
    first = Site(load_site(site_file))
    first.join(plan, RUN)
    first.train(plan, RUN, 1, weights, {})
    entropy = CountingEntropy(3)
    restarted = Site(load_site(site_file))
    restarted._entropy = entropy  # type: ignore[assignment]
    restarted.train(plan, RUN, 2, weights, {})
    numbers = sum(p.numel() for p in build_discriminator(plan.networks).parameters())
    expected = plan.round_steps(2) * numbers
    return Finding(
        check="noise after a restart",
        passed=entropy.drawn == expected,
        value=float(entropy.drawn),
        detail=f"{entropy.drawn} numbers of noise in the round after a restart, {expected} are accounted",
    )


@contextmanager
def skips_dp_after_a_restart() -> Iterator[None]:
    """Later rounds run the same loop on the bare gradient."""

    def bare(summed: dict[str, torch.Tensor], **_: object) -> dict[str, torch.Tensor]:
        return {name: value.float() for name, value in summed.items()}

    def loop(*arguments: Any, first_step: int, **named: Any) -> None:
        run = training.train_round if first_step == 0 else loop_with(noised_sum=bare)
        run(*arguments, first_step=first_step, **named)

    with mock.patch.object(client.site, "train_round", loop):
        yield


# NaN sigma from the server.


def check_nan_is_refused(folder: Path) -> Finding:
    """A plan whose noise is NaN, or nothing, is refused by the noise limits' own numbers."""
    refused = []
    for value in (math.nan, math.inf, 0.0, -1.0):
        for table, code in (("privacy", "P03"), ("warm_start", "P04"), ("utility", "P05")):
            if value == 0.0 and table != "privacy":
                continue  # off is allowed there
            plan = resolve(tiny_plan())
            asked = replace(plan, **{table: replace(getattr(plan, table), noise_multiplier=value)})
            try:
                check_plan(asked, POLICY)
                refused.append(False)
            except PolicyError as error:
                refused.append(f"{code}:" in str(error))
    return Finding(
        check="policy refuses NaN",
        passed=all(refused),
        value=float(sum(refused)),
        detail=f"{sum(refused)} of {len(refused)} plans with impossible noise were refused by their limit",
    )


@contextmanager
def lets_nan_through() -> Iterator[None]:
    """The limit is written as `if sigma < least: refuse`, which NaN passes."""

    def naive(plan: Plan, policy: PolicySpec) -> Iterator[str]:
        for code, value in (
            ("P03", plan.privacy.noise_multiplier),
            ("P04", plan.warm_start.noise_multiplier),
            ("P05", plan.utility.noise_multiplier),
        ):
            if value < policy.min_noise_multiplier:
                yield f"{code}: too little noise"

    with mock.patch.object(client.policy, "_noise", naive):
        yield


# Raw metrics in a message.


def ask(site_file: Path, plan: Plan, body: Body) -> Message:
    """One message of the coordinator to the hospital's own app, and its answer."""
    return client.app.build_app()(message(plan, body), node(site_file))


def check_message(folder: Path) -> Finding:
    """The answer to a round holds the generator's weights, the ledger's head, and nothing else."""
    plan, site_file = adversarial_plan(), hospital(folder)
    ask(site_file, plan, JoinRequest())
    weights = to_arrays(build_generator(plan.networks))
    answer = ask(site_file, plan, RoundRequest(server_round=1, weights=weights))
    unknown = [name for name in answer.content if name not in ("arrays", VALUES)]
    arrays = arrays_of(answer)
    unknown += [name for name in arrays if name not in weights or arrays[name].shape != weights[name].shape]
    unknown += [name for name in values_of(answer) if name != "ledger-head"]
    return Finding(
        check="only released values in a message",
        passed=not unknown,
        value=float(len(unknown)),
        detail=f"not released: {', '.join(unknown) if unknown else 'nothing'}",
    )


@contextmanager
def sends_raw_metrics() -> Iterator[None]:
    """What every Flower example does: the number of examples as the weight, and the loss beside it."""
    original, examples = Site.train, [0]

    def train(site: Site, plan: Plan, *rest: Any) -> Arrays:
        examples[0] = len(site._train_patients(plan.image).images)
        return original(site, plan, *rest)

    def talkative(plain: Plain) -> RecordDict:
        content = to_records(plain)
        content["metrics"] = MetricRecord({"weight": float(examples[0]), "loss": 0.69})
        return content

    with mock.patch.object(Site, "train", train), mock.patch.object(client.app, "to_records", talkative):
        yield


# A fresh accountant each round: every reservation is weighed alone.


class FreshAccountantEachRun(Ledger):
    """Composes only what was reserved last."""

    def _composed(self, events: tuple[Event, ...], delta: float) -> Spent:
        return super()._composed(events[-len(EVENTS) :], delta)


def check_epsilons_of_a_ledger(folder: Path) -> Finding:
    """Every epsilon that a ledger holds is what all events up to it give together."""
    limit = epsilon_pld(EVENTS * 2, DELTA)
    folder.mkdir(parents=True, exist_ok=True)
    with ledger_module.Ledger.open(folder / "ledger.sqlite") as ledger:
        for run in ("run-1", "run-2", "run-3"):
            try:
                reserve(ledger, run, epsilon=limit)
            except BudgetError:
                break
    try:
        charged = sum(entry.kind == "reserve" for entry in verify_ledger(folder / "ledger.sqlite"))
        detail, passed = f"{charged} runs are charged, and each epsilon is that of all events so far", charged == 2
    except LedgerError as error:
        detail, passed = str(error), False
    return Finding(check="every epsilon recomputed", passed=passed, value=limit, detail=detail)


@contextmanager
def fresh_accountant() -> Iterator[None]:
    """The hospital opens its ledger with the wrong class."""
    with mock.patch.object(ledger_module, "Ledger", FreshAccountantEachRun):
        yield


# The loop, accounted as something else, or with public numbers from the data.


def check_sampling_as_accounted(build: Build) -> Finding:
    """The loop samples patients at the rate of its event."""
    plan = _watched_plan()
    event = next(iter(build.plan_events(plan)))
    released = _who_took_part(build, plan)
    return check_poisson_sampling(
        lambda *_: [torch.from_numpy(np.flatnonzero(step > 0.5)) for step in released],
        patients=SMALL.watched,
        sampling_rate=event.sampling_rate,  # type: ignore[union-attr]
        steps=len(released),
        entropy=SeededEntropy(0),
    )


def check_steps_as_accounted(build: Build) -> Finding:
    """The loop releases as many sums as its event says."""
    plan = _watched_plan()
    accounted = next(iter(build.plan_events(plan))).steps  # type: ignore[union-attr]
    released = len(_who_took_part(build, plan))
    return Finding(
        check="step count",
        passed=released == accounted,
        value=float(released),
        detail=f"{released} noised sums were released, {accounted} are accounted",
    )


def _watched_plan() -> Plan:
    return canaries.audit_plan(
        sampling_rate=SMALL.sampling_rate,
        noise_multiplier=1.0,
        steps=SMALL.watched_steps,
        patients=SMALL.watched,
    )


def _who_took_part(build: Build, plan: Plan) -> NDArray[np.float64]:
    cohort = canaries.with_canaries(canaries.phantom_cohort(0), np.ones(SMALL.watched, bool), 1)
    entropy = canaries.CoinsWithoutNoise(SeededEntropy(2))
    return canaries.canary_releases(build.train_round, plan, cohort, canaries=SMALL.watched, entropy=entropy)


class Nobody(NoEntropy):
    """Coins by which no patient joins: what is released then is public, or tells the cohort's size."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Ones, as good as."""
        return np.full(n, 1 - 2.0**-53)


def check_public_numbers(train_round: TrainRound) -> Finding:
    """With nobody in a step, what the discriminator's optimiser gets is the same for every cohort."""

    def observed(cohort: Cohort) -> Mapping[str, object]:
        plan = _watched_plan()
        generator, network = canaries.build_networks(plan, 1)
        seen: list[bytes] = []
        optimizers = training.Optimizers(
            generator=torch.optim.Adam(generator.parameters(), 1e-3),
            discriminator=torch.optim.Adam(network.parameters(), 0.0),
        )
        parameters = [p for p in network.network.parameters() if p.requires_grad]
        optimizers.discriminator.register_step_pre_hook(
            lambda *_: seen.append(b"".join(p.grad.numpy().tobytes() for p in parameters if p.grad is not None))
        )
        train_round(
            generator, network, optimizers, cohort, plan,
            first_step=0, steps=2, released_mean=None, entropy=Nobody(),
        )  # fmt: skip
        return {"gradient of the fakes over the denominator": tuple(seen), "steps": len(seen)}

    with torch.random.fork_rng():
        return check_public_values(observed, canaries.phantom_cohort(4))


def public_from_data(*arguments: Any, **named: Any) -> None:
    """As `PrivacyEngine.make_private` does: the rate and the denominator come from len(dataset)."""
    generator, discriminator, optimizers, cohort, plan = arguments
    rate = min(1.0, plan.public_denominator / max(cohort.patients, 1))
    plan = replace(
        plan,
        federation=replace(plan.federation, patients=cohort.patients),
        privacy=replace(plan.privacy, sampling_rate=rate / 2),
    )
    training.train_round(generator, discriminator, optimizers, cohort, plan, **{**named, "released_mean": None})


# A hospital that promises patients where its images name none.


def check_unit_of_the_data(folder: Path) -> Finding:
    """Images without patients are never served, nor charged, as patients."""
    site_file = hospital(folder)
    columns = dict(np.load(folder / "data.npz"))
    del columns["patient"]
    np.savez(folder / "data.npz", **columns)
    site = Site(load_site(site_file))
    try:
        site.join(resolve(tiny_plan()), RUN)
        refused = ""
    except PolicyError as error:
        refused = str(error)[:3]
    per_image = replace(tiny_plan(), privacy=replace(tiny_plan().privacy, unit="image"))
    Site(load_site(site_file)).join(resolve(per_image), "cd" * 16)
    units = [e.fields.get("unit", "patient") for e in verify_ledger(site.config.ledger_path) if e.kind == "reserve"]
    return Finding(
        check="unit of the data",
        passed=refused == "P19" and units == ["image"],
        value=float(len(units)),
        detail=f"a plan per patient: {refused or 'accepted'}; reservations per {', '.join(units)}",
    )


@contextmanager
def says_patient_for_images() -> Iterator[None]:
    """Every image counts as a patient, and is called one."""
    with mock.patch.object(client.site, "data_unit", return_value="patient"):
        yield


Check = Callable[[Path], Finding]


def of_build(check: Callable[[Build], Finding], build: Build = HOSPITAL) -> Check:
    """A check of a build as one that is given a folder."""
    return lambda folder: check(build)


def under(bug: Callable[[], Any], check: Check) -> Check:
    """The check, made while the bug is in place."""

    def wrong(folder: Path) -> Finding:
        with bug():
            return check(folder)

    return wrong
