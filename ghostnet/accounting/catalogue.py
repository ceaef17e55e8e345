"""The catalogue of released statistics: everything computed from patients that may leave a hospital's mechanism.

Each statistic stands here once. A plan's cost (`plan_cost`), the hospital's limits (`client.policy`), the requests that
a reservation pays for and the statement lists (`evidence.answers`), the noise (`training.release`), the arrays of an
answer (`client.site`) and the audit all ask the catalogue. What is not in it is neither noised nor sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from ghostnet.accounting.events import Event, GaussianRelease, PoissonGaussianSteps, SharedNoiseSteps
from ghostnet.errors import LedgerError, PlanError
from ghostnet.plan import Plan
from ghostnet.plan.tasks import REGISTRY as TASKS
from ghostnet.plan.tasks import TaskEntry

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Request(Enum):
    """The requests that read patients: the name in the ledger, or its prefix where a number follows."""

    WARM_START = "warm_start"
    ROUND = "round-"
    STEP = "step-"
    FINISH = "finish"

    @property
    def is_numbered(self) -> bool:
        """True if a run asks it several times, numbered from 1."""
        return self.value.endswith("-")


class Mechanism(Enum):
    """The kind of noise of a statistic, and with it the event that it is charged as."""

    GAUSSIAN = "one noisy sum over all patients"
    SAMPLED = "a noisy sum over a Poisson sample of the patients"
    SHARED = "the same over several hospitals together, each adding its share of the noise"


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One released statistic.

    Attributes:
        name: as in its event, and so in the ledger.
        mechanism: decides the event, and whether a noise multiplier of 0 switches the statistic off (GAUSSIAN) or is
            still to be calibrated.
        request: whose answer releases it.
        noise_key: of its noise multiplier in the plan, "table.key".
        policy_code: of the hospital's refusal where that is too little noise.
        norm_key: of the bound on one patient's part in the plan (L2); "" where the bound is 1.
        array: its name in the answer; "" where only weights that follow from it leave the hospital.
        length: numbers in one release, where the plan alone says.
        is_asked: whether a plan may have it.
        per_request: (plan, number of the request) -> releases that one answer makes; None: one in each.
    """

    name: str
    mechanism: Mechanism
    request: Request
    noise_key: str
    policy_code: str
    norm_key: str = ""
    array: str = ""
    length: Callable[[Plan], int] | None = None
    is_asked: Callable[[Plan], bool] = lambda _: True
    per_request: Callable[[Plan, int], int] | None = None

    def noise_multiplier(self, plan: Plan) -> float:
        """Sigma: standard deviation of the noise over the norm bound."""
        return plan_value(plan, self.noise_key)

    def norm_bound(self, plan: Plan) -> float:
        """Sensitivity: L2 bound on what one patient adds."""
        return plan_value(plan, self.norm_key) if self.norm_key else 1.0

    def noise_std(self, plan: Plan) -> float:
        """Standard deviation of the noise that one hospital adds."""
        whole = self.norm_bound(plan) * self.noise_multiplier(plan)
        return whole / math.sqrt(plan.federation.hospitals) if self.mechanism is Mechanism.SHARED else whole

    def is_on(self, plan: Plan) -> bool:
        """True if a run of the plan releases it."""
        is_switched_off = self.mechanism is Mechanism.GAUSSIAN and self.noise_multiplier(plan) == 0
        return self.is_asked(plan) and not is_switched_off

    def event(self, plan: Plan, releases: int) -> Event:
        """The event that so many releases are charged as.

        Raises:
            PlanError: the noise multiplier is still to be calibrated, or out of range.
        """
        sigma = self.noise_multiplier(plan)
        if self.mechanism is Mechanism.GAUSSIAN:
            return GaussianRelease(name=self.name, noise_multiplier=sigma, count=releases)
        if sigma == 0:
            raise PlanError(f"{self.noise_key} = 0 is still to be calibrated; resolve the plan before it is costed")
        rate = plan.privacy.sampling_rate
        if self.mechanism is Mechanism.SAMPLED:
            return PoissonGaussianSteps(name=self.name, sampling_rate=rate, noise_multiplier=sigma, steps=releases)
        return SharedNoiseSteps(
            name=self.name,
            sampling_rate=rate,
            noise_multiplier=sigma,
            steps=releases,
            hospitals=plan.federation.hospitals,
        )


def _task_counts(name: str, entry: TaskEntry) -> Statistic:
    """The noisy sum of what patients add to the counts of a utility task."""
    return Statistic(
        name=entry.event,
        mechanism=Mechanism.GAUSSIAN,
        request=Request.FINISH,
        noise_key="utility.noise_multiplier",
        policy_code="P05",
        array=entry.array,
        is_asked=lambda plan: name in plan.utility.tasks,
    )


WARM_START = Statistic(
    name="warm start",
    mechanism=Mechanism.GAUSSIAN,
    request=Request.WARM_START,
    noise_key="warm_start.noise_multiplier",
    policy_code="P04",
    array="noised_sum",
    length=lambda plan: plan.embedding.size,
)
UTILITY_COUNTS = {name: _task_counts(name, entry) for name, entry in TASKS.items()}
"""The counts of each utility task, by the task's name."""

PERCEPTUAL_FEATURES = Statistic(
    name="perceptual features",
    mechanism=Mechanism.GAUSSIAN,
    request=Request.ROUND,
    noise_key="training.perceptual_noise_multiplier",
    policy_code="P16",
    is_asked=lambda plan: not plan.federation.is_pooled,
    per_request=lambda _, number: int(number > 1),
)
DISCRIMINATOR_STEPS = Statistic(
    name="discriminator steps",
    mechanism=Mechanism.SAMPLED,
    request=Request.ROUND,
    noise_key="privacy.noise_multiplier",
    policy_code="P03",
    norm_key="privacy.clip_norm",
    is_asked=lambda plan: not plan.federation.is_pooled,
    per_request=lambda plan, number: plan.round_steps(number),
)
POOLED_STEPS = Statistic(
    name="discriminator steps",
    mechanism=Mechanism.SHARED,
    request=Request.STEP,
    noise_key="privacy.noise_multiplier",
    policy_code="P03",
    norm_key="privacy.clip_norm",
    array="masked_sum",
    is_asked=lambda plan: plan.federation.is_pooled,
)

CATALOGUE = (WARM_START, *UTILITY_COUNTS.values(), PERCEPTUAL_FEATURES, DISCRIMINATOR_STEPS, POOLED_STEPS)
"""In the order of a plan's events."""


def run_requests(plan: Plan) -> tuple[str, ...]:
    """Everything that a run of this plan may ask of the patients, each once, in the order of a run."""
    return tuple(
        f"{request.value}{number}" if request.is_numbered else request.value
        for request in Request
        for number in range(1, _request_count(plan, request) + 1)
    )


def counted_tasks(plan: Plan) -> tuple[str, ...]:
    """The utility tasks whose counts a run of this plan releases, each once, in the registry's order."""
    return tuple(name for name, statistic in UTILITY_COUNTS.items() if statistic.is_on(plan))


def events_of(
    plan: Plan, requests: Collection[str] | None = None, *, mechanisms: Collection[Mechanism] = tuple(Mechanism)
) -> tuple[Event, ...]:
    """The events that the answers to these requests are charged as.

    Args:
        plan: resolved, unless only GAUSSIAN releases are asked for.
        requests: by their names in the ledger; None: all that a run makes.
        mechanisms: of the statistics that are counted.

    Raises:
        PlanError: a noise multiplier is still to be calibrated.
    """
    counted = ((s, _releases(s, plan, requests)) for s in CATALOGUE if s.is_on(plan) and s.mechanism in mechanisms)
    return tuple(statistic.event(plan, releases) for statistic, releases in counted if releases > 0)


def answer_arrays(plan: Plan, request: str) -> frozenset[str] | None:
    """Names of the arrays that the answer to a request holds; None where it is weights.

    Raises:
        LedgerError: no statistic of the plan is released by such a request.
    """
    asked, number = _parsed(request)
    if asked is None or not 1 <= number <= _request_count(plan, asked):
        raise LedgerError(
            f"{request[:80]} is no request that the catalogue of released statistics names for this plan; "
            "a statistic must stand in ghostnet/accounting/catalogue.py before it is released"
        )
    arrays = frozenset(s.array for s in CATALOGUE if s.request is asked and s.is_on(plan))
    return None if "" in arrays else arrays


def check_catalogued(statistic: Statistic, plan: Plan) -> None:
    """Refuses noise for what the catalogue does not have, or the plan does not release.

    Raises:
        PlanError: so, with the statistic's name.
    """
    if statistic not in CATALOGUE:
        raise PlanError(
            f"{statistic.name!r} is not in the catalogue of released statistics as it stands there; "
            "add it to ghostnet/accounting/catalogue.py, so that it is charged, before it is released"
        )
    if not statistic.is_on(plan):
        raise PlanError(f"{statistic.name!r} is not released by this plan; set {statistic.noise_key} and the mode")


def plan_value(plan: Plan, key: str) -> float:
    """The number at "table.key" of a plan."""
    table, _, name = key.partition(".")
    value: float = getattr(getattr(plan, table), name)
    return value


def _request_count(plan: Plan, request: Request) -> int:
    """The number of times that a run asks it. The last request is asked in every run: it also signs."""
    if request is not Request.FINISH and not any(s.is_on(plan) for s in CATALOGUE if s.request is request):
        return 0
    return {Request.ROUND: plan.federation.rounds, Request.STEP: plan.privacy.steps}.get(request, 1)


def _releases(statistic: Statistic, plan: Plan, requests: Collection[str] | None) -> int:
    numbers: Collection[int] = range(1, _request_count(plan, statistic.request) + 1)
    if requests is not None:
        known, parsed = numbers, map(_parsed, requests)
        numbers = [number for asked, number in parsed if asked is statistic.request and number in known]
    if statistic.per_request is None:
        return len(numbers)
    return sum(statistic.per_request(plan, number) for number in numbers)


def _parsed(request: str) -> tuple[Request | None, int]:
    """The kind of a request and its number, 1 where it has none; None and 0 for anything else."""
    for asked in Request:
        if request == asked.value and not asked.is_numbered:
            return asked, 1
        if asked.is_numbered and request.startswith(asked.value) and _NUMBER.fullmatch(request, len(asked.value)):
            return asked, int(request[len(asked.value) :])
    return None, 0
