"""Asks a copy of the tree about the statistic that `test_catalogue.py` has added to it; prints one JSON object.

Run by its path, with the copy first on the path.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.audited import HOSPITAL
from client.policy import PolicySpec, check_plan
from ghostnet.accounting import catalogue
from ghostnet.accounting.plan_cost import claim
from ghostnet.audit import canaries, releases
from ghostnet.audit.contributions import drawn_cohort
from ghostnet.audit.hospitals import finish
from ghostnet.audit.kinds import step_kinds
from ghostnet.errors import PolicyError
from ghostnet.plan import Plan
from ghostnet.privacy.noise import SystemEntropy

NAME, ARRAY, KEY = "class counts", "class_counts", "class_counts_noise_multiplier"


def main() -> None:
    """What cost, policy, requests, site, statement and audit say about it."""
    base = canaries.audit_plan(sampling_rate=0.1, noise_multiplier=1.0, steps=4, patients=20)
    base = replace(base, training=replace(base.training, discriminator_steps=1_000_000))
    plan = releases.release_plan(base)
    kinds = dict(list(step_kinds(base).items())[:1])
    audited = releases.check_accounted(
        HOSPITAL.open_hospital, HOSPITAL.plan_events, releases.accounted_runs(plan, kinds), SystemEntropy()
    )
    every = releases.releases_of(HOSPITAL.open_hospital, HOSPITAL.noised_features, plan, kinds)
    parts = releases.check_release_parts([release for release in every if release.name == NAME])
    answer, statement = last_answer(plan)
    print(
        json.dumps(
            {
                "file": catalogue.__file__,
                "noise_multiplier": getattr(plan.utility, KEY),
                "audit": {finding.check: finding.passed for finding in (*audited, *parts)},
                "array": {name: list(array.shape) for name, array in answer.items()},
                "signed": [event["name"] for event in statement["events"]],
                "epsilon": [claim(plan).epsilon_pld, claim(with_noise(plan, 0.0)).epsilon_pld],
                "refused": refusal(with_noise(plan, 0.01)),
            }
        )
    )


def with_noise(plan: Plan, noise_multiplier: float) -> Plan:
    """The plan with another noise multiplier of the statistic; 0 switches it off."""
    return replace(plan, utility=replace(plan.utility, **{KEY: noise_multiplier}))


def refusal(plan: Plan) -> str:
    """The hospital's refusal of a plan."""
    try:
        check_plan(plan, PolicySpec(max_epsilon=1e5, delta=1e-5))
    except PolicyError as error:
        return str(error)
    return ""


def last_answer(plan: Plan) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A hospital's last answer in a run of which nothing else was asked, and the statement that it signed."""
    with tempfile.TemporaryDirectory() as folder:
        hospital: Any = HOSPITAL.open_hospital(
            Path(folder), "north", drawn_cohort(plan, (1, 3, 2)), plan.image, SystemEntropy()
        )
        signed: list[dict[str, Any]] = []
        right = hospital._site.finish

        def noted(*arguments: Any) -> Any:
            answer, statement = right(*arguments)
            signed.append(statement)
            return answer, statement

        hospital._site.finish = noted
        run_id = secrets.token_hex(16)
        hospital.join(plan, run_id)
        return finish(hospital, run_id, plan), signed[0]


if __name__ == "__main__":
    main()
