"""Hospitals as their coordinator meets them, opened over drawn patients, and what they release."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ghostnet.accounting import catalogue
from ghostnet.accounting.catalogue import Request, Statistic
from ghostnet.accounting.events import Event, event_from_dict
from ghostnet.audit.accounted import release_length
from ghostnet.errors import AuditError
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.exchange import protocol
from ghostnet.exchange.arrays import Arrays, join_pair, to_arrays
from ghostnet.exchange.secure_sum import Member, make_roster
from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import ImageSpec, Plan
from ghostnet.privacy.noise import Entropy
from ghostnet.training.cohort import Cohort
from ghostnet.utility.task import TaskModel, find_task, models_to_arrays, task_spec

LEDGER = "ledger.sqlite"  # in a hospital's folder

Networks = Mapping[str, nn.Module]
"""Networks that a coordinator sends, by the utility task that they count for."""

NONE: Networks = MappingProxyType({})


class Hospital(Protocol):
    """The requests that a hospital answers: `client.site.Site` behind `client.audited.AuditedSite`."""

    def join(self, plan: Plan, run_id: str) -> Any:
        """Reserves a run's cost."""
        ...

    def warm_start(self, plan: Plan, run_id: str) -> Arrays:
        """One noised sum of embeddings."""
        ...

    def train(self, plan: Plan, run_id: str, server_round: int, weights: Arrays, released_mean: Arrays) -> Arrays:
        """Weights after a round."""
        ...

    def step(self, plan: Plan, run_id: str, step: int, discriminator: Arrays, roster: str) -> Arrays:
        """One masked sum."""
        ...

    def finish(self, plan: Plan, run_id: str, generator: Arrays, public: Arrays) -> Arrays:
        """Noised counts; the hospital has to sign these weights."""
        ...

    def close(self) -> None:
        """Lets go of the ledger."""
        ...


Source = Entropy | None
"""Of a hospital's coins and noise; None leaves it the one that it chooses itself."""

OpenHospital = Callable[[Path, str, Cohort, ImageSpec, Source], Hospital]
"""(empty folder, name, drawn patients, image of the plans, source) -> a hospital with a state of its own."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Hospitals that have joined one run of a plan.

    Attributes:
        hospitals: in the order of the cohorts.
        ledgers: their files.
        run_id: the run.
        roster: of a pooled run, else empty.
    """

    hospitals: list[Hospital]
    ledgers: list[Path]
    run_id: str
    roster: str


@contextmanager
def joined(
    open_hospital: OpenHospital, cohorts: Sequence[Cohort], plan: Plan, entropies: Sequence[Source]
) -> Iterator[Run]:
    """Fresh hospitals, each with its patients and its entropy, in a new run; gone at the end."""
    run_id, hospitals, ledgers, members = secrets.token_hex(16), [], [], []
    with tempfile.TemporaryDirectory(prefix="ghostnet-audit-") as folder:
        for number, (cohort, entropy) in enumerate(zip(cohorts, entropies, strict=True)):
            own = Path(folder) / f"hospital-{number}"
            own.mkdir()
            hospitals.append(open_hospital(own, own.name, cohort, plan.image, entropy))
            ledgers.append(own / LEDGER)
        for hospital in hospitals:
            answer = hospital.join(plan, run_id)
            members.append(
                Member(
                    site=answer.name,
                    public_key=answer.public_key,
                    mask_key=answer.mask_key,
                    signature=answer.mask_key_signature,
                )
            )
        roster = ""
        if plan.federation.is_pooled:
            roster = make_roster(
                run_id=run_id, plan_hash=plan.hash(), hospitals=len(members), members=members
            ).to_text()
        try:
            yield Run(hospitals=hospitals, ledgers=ledgers, run_id=run_id, roster=roster)
        finally:
            for hospital in hospitals:
                hospital.close()


def released_by(
    open_hospital: OpenHospital,
    statistic: Statistic,
    cohort: Cohort,
    plan: Plan,
    entropy: Source,
    networks: Networks = NONE,
) -> Tensor:
    """The array of a statistic that a fresh hospital with these patients releases, float64 (d,).

    Args:
        open_hospital: under audit.
        statistic: of the catalogue, released by the first request or the last.
        cohort: the patients.
        plan: of the run.
        entropy: of coins and noise.
        networks: of tasks' models in the last request.
    """
    with joined(open_hospital, [cohort], plan, [entropy]) as run:
        answer = _answer(run.hospitals[0], run.run_id, plan, statistic.request, networks)
        return torch.from_numpy(answer[statistic.array]).double()


def single_statistics() -> list[Statistic]:
    """Statistics of the catalogue that are an array of the answer to the first or the last request."""
    asked = (Request.WARM_START, Request.FINISH)
    return [s for s in catalogue.CATALOGUE if s.request in asked and s.array]


def _answer(hospital: Hospital, run_id: str, plan: Plan, request: Request, networks: Networks = NONE) -> Arrays:
    if request is Request.WARM_START:
        return hospital.warm_start(plan, run_id)
    if request is Request.FINISH:
        return finish(hospital, run_id, plan, networks)
    raise AuditError(f"{request.name} is no request that is asked once; ask for {Request.WARM_START.name} or the last")


def finish(hospital: Hospital, run_id: str, plan: Plan, networks: Networks = NONE) -> Arrays:
    """The answer to the last request of a run, asked with untrained networks but for those given."""
    models = {}
    for name in catalogue.counted_tasks(plan):
        form = find_task(name).untrained(task_spec(plan))
        models[name] = TaskModel(network=networks.get(name, form.network), numbers=form.numbers)
    generator = to_arrays(build_generator(plan.networks))
    return hospital.finish(plan, run_id, generator, models_to_arrays(models))


@dataclass(frozen=True, kw_only=True)
class Whole:
    """One hospital's whole run.

    Attributes:
        charged: the events that its ledger reserved.
        unexpected: arrays of its answers that are no release of the plan, by name and shape.
    """

    charged: tuple[Event, ...]
    unexpected: tuple[str, ...]


def run_of(open_hospital: OpenHospital, cohort: Cohort, plan: Plan, entropies: Sequence[Source]) -> list[Whole]:
    """Asks fresh hospitals for all that the plan has, each with these patients: one, or all of a pooled plan."""
    found = []
    with joined(open_hospital, [cohort] * len(entropies), plan, entropies) as run:
        for hospital, ledger in zip(run.hospitals, run.ledgers, strict=True):
            unexpected = [
                f"{name} {array.dtype}{array.shape}"
                for answer, expected in _answers(hospital, run, plan)
                for name, array in answer.items()
                if (array.dtype, array.shape) != expected.get(name)
            ]
            hospital.close()
            reserved = [entry.fields["events"] for entry in verify_ledger(ledger) if entry.kind == "reserve"]
            charged = tuple(event_from_dict(event) for events in reserved for event in events)
            found.append(Whole(charged=charged, unexpected=tuple(unexpected)))
    return found


Form = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def _answers(hospital: Hospital, run: Run, plan: Plan) -> Iterator[tuple[Arrays, Form]]:
    """Every answer of a run, and the form of what the plan releases there."""
    network = build_discriminator(plan.networks)
    weights = join_pair(build_generator(plan.networks), network if plan.federation.share == "gan" else None)
    mean = {protocol.RELEASED_MEAN: np.full(plan.embedding.size, 0.1, np.float32)}
    if Request.WARM_START.value in catalogue.run_requests(plan):
        yield hospital.warm_start(plan, run.run_id), _released_form(plan, Request.WARM_START, np.float32)
    if plan.federation.is_pooled:
        for step in range(1, plan.privacy.steps + 1):
            yield (
                hospital.step(plan, run.run_id, step, to_arrays(network), run.roster),
                _released_form(plan, Request.STEP, np.int64),
            )
    else:
        released = mean if catalogue.WARM_START.is_on(plan) else {}
        for number in range(1, plan.federation.rounds + 1):
            yield hospital.train(plan, run.run_id, number, weights, released), _form(weights)
    yield finish(hospital, run.run_id, plan), _released_form(plan, Request.FINISH, np.float32)


def _released_form(plan: Plan, request: Request, dtype: type[np.generic]) -> Form:
    """The arrays of an answer to a request, as the catalogue names them."""
    return {
        s.array: (np.dtype(dtype), (release_length(s, plan),))
        for s in catalogue.CATALOGUE
        if s.request is request and s.is_on(plan)
    }


def _form(arrays: Arrays) -> Form:
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


def answers_of_one_run(
    open_hospital: OpenHospital, cohort: Cohort, plan: Plan, entropy: Source
) -> dict[Statistic, Tensor]:
    """The values that one hospital releases in one run by the first request and the last, float64."""
    statistics = single_statistics()
    with joined(open_hospital, [cohort], plan, [entropy]) as run:
        asked = [request for request in Request if any(s.request is request for s in statistics)]
        answers = {request: _answer(run.hospitals[0], run.run_id, plan, request) for request in asked}
    return {s: torch.from_numpy(answers[s.request][s.array]).double() for s in statistics}


def masked_steps(open_hospital: OpenHospital, plan: Plan, entropy: Source, *, patients: Cohort) -> NDArray[np.int64]:
    """All messages of a pooled run: int64 (steps, hospitals, d). Every hospital has these patients."""
    count = plan.federation.hospitals
    with joined(open_hospital, [patients] * count, plan, [entropy] * count) as run:
        weights = to_arrays(build_discriminator(plan.networks))
        return np.stack(
            [
                [
                    hospital.step(plan, run.run_id, step, weights, run.roster)[protocol.MASKED_SUM]
                    for hospital in run.hospitals
                ]
                for step in range(1, plan.privacy.steps + 1)
            ]
        )
