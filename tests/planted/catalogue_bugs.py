"""Hospitals that release a statistic outside the catalogue, or charge another noise than they add."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import client.site
from client.site import Site
from ghostnet.accounting.catalogue import WARM_START, Mechanism, Request, Statistic
from ghostnet.accounting.events import Event
from ghostnet.audit import releases
from ghostnet.audit.contributions import drawn_cohort
from ghostnet.audit.every_release import Build
from ghostnet.audit.findings import Finding
from ghostnet.audit.hospitals import run_of
from ghostnet.errors import LedgerError, PlanError
from ghostnet.exchange.arrays import Arrays
from ghostnet.plan import Plan
from ghostnet.privacy.noise import Entropy
from ghostnet.privacy.releases import noisy_sum
from ghostnet.training.release import release_vectors
from tests.entropy import SeededEntropy
from tests.planted.release_bugs import base

Noised = Callable[[Tensor, Plan, Entropy], Tensor]

CLASS_COUNTS = Statistic(
    name="class counts",
    mechanism=Mechanism.GAUSSIAN,
    request=Request.FINISH,
    noise_key="utility.noise_multiplier",
    policy_code="P21",
    array="class_counts",
)


def check_only_catalogued(build: Build) -> Finding:
    """A hospital answers all requests of a run, and with nothing but what the catalogue names."""
    plan = releases.release_plan(base())
    try:
        (whole,) = run_of(build.open_hospital, drawn_cohort(plan, (1, 3, 2)), plan, [SeededEntropy(12)])
        wrong = ", ".join(whole.unexpected)
    except (LedgerError, PlanError) as error:
        if "catalogue of released statistics" not in str(error):
            raise
        wrong = str(error)
    return Finding(
        check="only catalogued statistics",
        passed=not wrong,
        value=float(bool(wrong)),
        detail=f"a whole run holds what the catalogue does not have: {wrong or 'nothing'}",
    )


def _through_the_door(vectors: Tensor, plan: Plan, entropy: Entropy) -> Tensor:
    return release_vectors(CLASS_COUNTS, vectors, plan, entropy=entropy)


def _around_the_door(vectors: Tensor, plan: Plan, entropy: Entropy) -> Tensor:
    sigma = plan.utility.noise_multiplier
    return noisy_sum(vectors, norm_bound=1.0, noise_multiplier=sigma, entropy=entropy)


@contextmanager
def _adds_class_counts(noised: Noised) -> Iterator[None]:
    right = Site._release

    def release(self: Site, plan: Plan, run_id: str, request: str, receive: Callable[[], Any]) -> Arrays:
        def more() -> Callable[[], Arrays]:
            answer = receive()
            test = self._cohorts(plan.image).test
            counts = torch.zeros(test.patients, len(plan.image.labels))
            counts[test.owners, test.labels] = 1.0
            return lambda: {**answer(), CLASS_COUNTS.array: noised(counts, plan, self._entropy).numpy()}

        return right(self, plan, run_id, request, more if request == Request.FINISH.value else receive)

    with mock.patch.object(Site, "_release", release):
        yield


@contextmanager
def class_counts_with_a_statistic_of_their_own() -> Iterator[None]:
    """The last answer also holds class counts, noised as a statistic that was never entered in the catalogue."""
    with _adds_class_counts(_through_the_door):
        yield


@contextmanager
def class_counts_with_noise_of_their_own() -> Iterator[None]:
    """The last answer also holds class counts, noised without the catalogue."""
    with _adds_class_counts(_around_the_door):
        yield


@contextmanager
def answers_another_request() -> Iterator[None]:
    """The warm start's sum is released by a request that is in no reservation."""
    right = Site._release

    def release(self: Site, plan: Plan, run_id: str, request: str, receive: Callable[[], Any]) -> Arrays:
        return right(self, plan, run_id, "histogram" if request == Request.WARM_START.value else request, receive)

    with mock.patch.object(Site, "_release", release):
        yield


@contextmanager
def charged_with_more_noise() -> Iterator[None]:
    """The warm start is charged, in the plan's cost and in the ledger, as if its noise were 2.5 times as large."""
    right = Statistic.event

    def event(self: Statistic, plan: Plan, count: int) -> Event:
        found = right(self, plan, count)
        larger = 2.5 * found.noise_multiplier
        return dataclasses.replace(found, noise_multiplier=larger) if self == WARM_START else found

    with mock.patch.object(Statistic, "event", event):
        yield


@contextmanager
def noised_with_less() -> Iterator[None]:
    """The hospital adds a third less noise to what it releases for the counts than the catalogue says."""
    right = client.site.release_vectors

    def less(statistic: Statistic, vectors: Any, plan: Plan, *, entropy: Entropy) -> Tensor:
        if statistic.request is not Request.FINISH:
            return right(statistic, vectors, plan, entropy=entropy)
        sigma = statistic.noise_multiplier(plan) / 1.5
        return noisy_sum(vectors, norm_bound=statistic.norm_bound(plan), noise_multiplier=sigma, entropy=entropy)

    with mock.patch.object(client.site, "release_vectors", less):
        yield
