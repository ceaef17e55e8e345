"""Uses the architecture "added" as any other: planned, trained, published, drawn, audited; prints what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from client.policy import PolicySpec, check_plan
from ghostnet.audit.contributions import check_contributions
from ghostnet.audit.every_release import public_fakes
from ghostnet.audit.kinds import local_step, step_kinds
from ghostnet.errors import PlanError
from ghostnet.plan import parse_plan
from ghostnet.privacy.noise import SystemEntropy
from ghostnet.sampler.sampler import Sampler
from ghostnet.sampler.write import write_sampler
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import train_round
from ghostnet.training.state import LocalState


def main(out: Path, text: str) -> None:
    """Prints one JSON object."""
    plan = parse_plan(text)
    refused = []
    for old, new in (("size = 20", "size = 28"), ('"hinge"', '"wasserstein"'), ('norm = "none"', 'norm = "group"')):
        try:
            parse_plan(text.replace(old, new))
        except PlanError as error:
            refused.append(str(error))
    check_plan(plan, PolicySpec(max_epsilon=100.0, delta=1e-5))

    # Trained: two private steps, the generator's among them.
    state = LocalState(plan)
    before = [p.detach().clone() for n in (state.generator, state.discriminator) for p in n.parameters()]
    public = torch.Generator().manual_seed(0)
    owners = torch.arange(16) // 2
    cohort = Cohort(images=torch.rand(16, 1, 20, 20, generator=public), labels=owners % 2, owners=owners, patients=8)
    train_round(
        state.generator,
        state.discriminator,
        state.optimizers,
        cohort,
        plan,
        first_step=0,
        steps=2,
        released_mean=None,
        entropy=SystemEntropy(),
    )
    after = [p for n in (state.generator, state.discriminator) for p in n.parameters()]

    # Published and drawn.
    write_sampler(out / "sampler", state.generator, plan)
    drawn = Sampler.load(out / "sampler").sample(5, seed=1)

    # Audited: the kind is found, and its clean step passes. The generator does not step, as in the whole audit.
    idle = parse_plan(text.replace("discriminator_steps = 1", "discriminator_steps = 1000"))
    kinds = {name: kind for name, kind in step_kinds(idle).items() if name.startswith("added")}
    steps = {name: (local_step(train_round, public_fakes(kind)), kind) for name, kind in kinds.items()}
    findings = list(check_contributions(steps, clip_norms=(0.01, 30.0)))
    print(
        json.dumps(
            {
                "refused": refused,
                "moved": all(bool((a != b).any()) for a, b in zip(before, after, strict=True)),
                "shape": list(drawn.shape),
                "kinds": list(kinds),
                "findings": [[f.check, f.passed, f.detail] for f in findings],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8"))
