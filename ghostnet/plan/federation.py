"""The plan's [federation]: how the hospitals work together, and which combinations make sense."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from ghostnet.errors import PlanError
from ghostnet.plan.keys import Number, key
from ghostnet.plan.toml import check_number

Share = Literal["generator", "gan", "pooled"]
ServerOptimizer = Literal["fedavg", "fedavgm", "fedadam", "trimmed-mean", "median"]

ROBUST = ("trimmed-mean", "median")  # they rank the hospitals' values, so a weight would have no meaning
MAX_ROUNDS = 10_000
MAX_POOLED_STEPS = 20_000  # each is a request of its own in every ledger
MAX_POOLED_HOSPITALS = 100  # each masks with every other one
MIN_HOSPITALS_OF_MEDIAN = 3  # the median of two is their mean

_WEIGHT = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6}
WEIGHTS_SCHEMA = {
    "anyOf": [
        {"const": "equal"},
        {"type": "object", "additionalProperties": _WEIGHT},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"hospital": {"type": "string"}, "weight": _WEIGHT},
                "required": ["hospital", "weight"],
                "additionalProperties": False,
            },
        },
    ],
    "default": "equal",
}
"""The forms that a file gives, and the sorted list of a plan that was written out."""

_NAME = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, kw_only=True)
class HospitalWeight:
    """One hospital's public weight: agreed on beforehand, never counted from its patients."""

    hospital: Annotated[str, key("The hospital's name.")]
    weight: Annotated[float, key("Its weight in the mean.")]


@dataclass(frozen=True, kw_only=True)
class FederationSpec:
    """The settings of the federation: rounds, combination, sharing."""

    rounds: Annotated[
        int,
        key(
            "Flower rounds of adversarial training; 0 is the warm start only; pooled: parts that steps come in.",
            ge=0,
            le=MAX_ROUNDS,
        ),
    ] = 2
    share: Annotated[
        Share, key('What leaves a hospital: "generator", "gan" (discriminators too) or "pooled" (masked noised sums).')
    ] = "generator"
    hospitals: Annotated[
        int,
        key(
            "Pooled: exactly so many, each adding 1/hospitals of the noise's variance; 0 in other modes.",
            ge=0,
            le=MAX_POOLED_HOSPITALS,
        ),
    ] = 0
    server_optimizer: Annotated[ServerOptimizer, key("How the server combines what the hospitals send.")] = "fedavg"
    server_learning_rate: Annotated[
        Number, key("fedavgm: 1 takes the whole mean step; fedadam: size of a step of every weight.", gt=0, le=10)
    ] = 1.0
    server_momentum: Annotated[Number, key("fedavgm, fedadam: decay of the mean step.", ge=0, lt=1)] = 0.9
    trim: Annotated[
        Number,
        key("trimmed-mean: share of the hospitals cut off at each end, for every weight by itself.", ge=0, lt=0.5),
    ] = 0.2
    weights: Annotated[
        tuple[HospitalWeight, ...],
        key(
            'PUBLIC weight of each hospital in the mean, > 0 and <= 1e6: name = weight; "equal" or none: all the same.',
            schema=WEIGHTS_SCHEMA,
        ),
    ] = ()
    patients: Annotated[
        int,
        key(
            "PUBLIC nominal number of training patients a hospital: every denominator comes from it.",
            ge=1,
            le=100_000_000,
            unit="patients",
            example=1000,
        ),
    ]
    hospitals_per_patient: Annotated[
        int, key("PUBLIC bound on the hospitals that may hold the same patient.", ge=1, le=100)
    ] = 1
    min_hospitals: Annotated[int, key("A round with fewer replies is not averaged.", ge=1, le=100_000)] = 1
    round_timeout_s: Annotated[
        Number, key("Longest wait for the replies of a round.", gt=0, le=10_000_000, unit="seconds")
    ] = 3600.0

    @property
    def is_pooled(self) -> bool:
        """True if the hospitals add up one noised sum at every step."""
        return self.share == "pooled"

    @property
    def least_hospitals(self) -> int:
        """Hospitals without which nothing is combined."""
        return self.hospitals if self.is_pooled else self.min_hospitals

    def weight_of(self, hospital: str) -> float:
        """The hospital's public weight, 1 where the plan names none.

        Raises:
            PlanError: the plan gives weights and this hospital has none.
        """
        if not self.weights:
            return 1.0
        for entry in self.weights:
            if entry.hospital == hospital:
                return entry.weight
        raise PlanError(f"[federation].weights names no {hospital}; give every hospital that joins a weight, or none")


def read_weights(raw: object, source: str) -> object:
    """Turns `weights = "equal"` and the table name -> weight of a TOML file into the plan's one form, a sorted list.

    Raises:
        PlanError: it has none of these forms.
    """
    if raw == "equal":
        return []
    if isinstance(raw, Mapping):
        return [{"hospital": name, "weight": raw[name]} for name in sorted(raw)]
    if not isinstance(raw, list):
        raise PlanError(
            f'federation.weights = {raw!r:.200} is neither "equal" nor a table of name = weight; write a line for each '
            f"hospital below [federation.weights] in {source}"
        )
    return raw


def check_federation(federation: FederationSpec, *, steps: int, perceptual: bool, source: str) -> None:
    """Refuses combinations that would not do what they say.

    Args:
        federation: the table.
        steps: `privacy.steps`.
        perceptual: whether discriminator features are released (`training.perceptual_noise_multiplier`).
        source: the file's name, for messages.

    Raises:
        PlanError: names the key.
    """
    _check_pooled(federation, steps, source)
    if federation.is_pooled and perceptual:
        raise PlanError(
            "training.perceptual_noise_multiplier with share = 'pooled' is not built: features are released by a "
            f"hospital that trains rounds of its own; set it to 0 in {source}"
        )
    _check_optimizer(federation, source)
    _check_weights(federation, source)


def _check_pooled(federation: FederationSpec, steps: int, source: str) -> None:
    if not federation.is_pooled:
        if federation.hospitals:
            raise PlanError(
                f"federation.hospitals = {federation.hospitals} is for share = 'pooled' alone; in {source} remove it, "
                "or say with min_hospitals how many a round needs"
            )
        return
    check = partial(check_number, source=source, error=PlanError)
    check(federation.hospitals, key="federation.hospitals", low=2, high=MAX_POOLED_HOSPITALS)
    check(steps, key="privacy.steps", low=1, high=MAX_POOLED_STEPS)
    check(federation.hospitals_per_patient, key="federation.hospitals_per_patient", high=federation.hospitals)
    if federation.server_optimizer != "fedavg" or federation.weights:
        raise PlanError(
            f"share = 'pooled' adds sums up and averages nothing: remove server_optimizer and weights from {source}"
        )


def _check_optimizer(federation: FederationSpec, source: str) -> None:
    name, least = federation.server_optimizer, federation.min_hospitals
    if name == "fedadam" and federation.server_learning_rate > 0.1:
        raise PlanError(
            f"federation.server_learning_rate = {federation.server_learning_rate:g} with fedadam moves every weight by "
            f"about as much in a round; use 0.001 to 0.1 in {source}"
        )
    if name == "trimmed-mean" and math.floor(federation.trim * least) < 1:
        raise PlanError(
            f"trimmed-mean with trim = {federation.trim:g} of min_hospitals = {least} cuts nobody off; "
            f"raise one of them until trim * min_hospitals >= 1 in {source}"
        )
    if name == "median" and least < MIN_HOSPITALS_OF_MEDIAN:
        raise PlanError(
            f"the median of min_hospitals = {least} is no more robust than a mean; set it to 3 or more in {source}"
        )


def _check_weights(federation: FederationSpec, source: str) -> None:
    names = [entry.hospital for entry in federation.weights]
    for entry in federation.weights:
        if not _NAME.fullmatch(entry.hospital):
            raise PlanError(f"federation.weights: {entry.hospital!r} is not the name of a hospital ({source})")
        check_number(
            entry.weight, key=f"federation.weights.{entry.hospital}", above=0, high=1e6, source=source, error=PlanError
        )
    if names != sorted(set(names)):
        raise PlanError(f"federation.weights must name each hospital once, in alphabetical order ({source})")
    if names and federation.server_optimizer in ROBUST:
        raise PlanError(
            f"{federation.server_optimizer} ranks the hospitals' values and cannot weigh them; "
            f"remove weights from {source}, or use fedavg"
        )
