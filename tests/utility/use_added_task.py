"""Asks a copy of the tree about the task "added" that `test_task.py` has put there; prints one JSON object.

Run by its path, with the copy first on the path; with "runs" whole runs are audited too.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from client.audited import HOSPITAL
from ghostnet.accounting.catalogue import UTILITY_COUNTS
from ghostnet.accounting.plan_cost import claim
from ghostnet.audit import canaries, releases
from ghostnet.audit.kinds import step_kinds
from ghostnet.privacy.noise import SystemEntropy


def main() -> None:
    """What cost and audit say about its counts."""
    base = canaries.audit_plan(sampling_rate=0.1, noise_multiplier=1.0, steps=4, patients=20)
    base = replace(base, training=replace(base.training, discriminator_steps=1_000_000))
    plan = releases.release_plan(base)
    alone = replace(plan, utility=replace(plan.utility, tasks=plan.utility.tasks[:1]))
    kinds = dict(list(step_kinds(base).items())[:1])
    audited = []
    if "runs" in sys.argv:
        runs = releases.accounted_runs(plan, kinds)
        audited += releases.check_accounted(HOSPITAL.open_hospital, HOSPITAL.plan_events, runs, SystemEntropy())
    every = releases.releases_of(HOSPITAL.open_hospital, HOSPITAL.noised_features, plan, kinds)
    parts = releases.check_release_parts([r for r in every if r.name == UTILITY_COUNTS["added"].name])
    print(
        json.dumps(
            {
                "tasks": plan.utility.tasks,
                "epsilon": [claim(alone).epsilon_pld, claim(plan).epsilon_pld],
                "audit": {finding.check: finding.passed for finding in (*audited, *parts)},
            }
        )
    )


if __name__ == "__main__":
    main()
