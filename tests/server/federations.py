"""Small federations without processes, for tests of what hospitals and coordinator do together."""

from __future__ import annotations

from pathlib import Path

from ghostnet.accounting.plan_cost import resolve
from ghostnet.certificate.certificate import verify_sampler
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.plan import Plan
from ghostnet.progress import silent
from server.app import coordinate
from server.checkpoint import Checkpoint
from tests.plans import tiny_plan, write_striped_npz
from tests.samplers import keys_of
from tests.server.direct_grid import DirectGrid, Fault, write_hospitals

NAMES = ("harbour", "north", "south")
FEDERATION = 'patients = 20\nshare = "{share}"\n'


def plan_of(share: str, *, steps: int = 4, more: str = "", rounds: int = 2) -> Plan:
    more += f"\nhospitals = {len(NAMES)}" if share == "pooled" else ""
    return resolve(
        tiny_plan(
            epsilon="epsilon = 30.0",
            steps=f"steps = {steps}",
            rounds=f"rounds = {rounds}",
            patients=FEDERATION.format(share=share) + more,
            classifier_steps="classifier_steps = 2",
        )
    )


def run(plan: Plan, sites: list[Path], out: Path, *, resume: bool = False, fault: Fault | None = None) -> DirectGrid:
    grid = DirectGrid(sites, fault or (lambda message, site: None))
    checkpoint = Checkpoint.open(out, plan, resume=resume)
    coordinate(grid, plan, checkpoint, expected=len(sites), progress=silent)  # type: ignore[arg-type]
    return grid


def ledger_kinds(site: Path) -> list[str]:
    return [entry.kind for entry in verify_ledger(site.parent / "ledger.sqlite")]


def failed(out: Path) -> list[str]:
    checks = verify_sampler(out / "sampler", trusted_keys=keys_of(out.parent / "sites"))
    return [check.name for check in checks if not check.passed]


def three_hospitals(folder: Path) -> list[Path]:
    """Their site.toml files."""
    folder.mkdir()
    return write_hospitals(
        folder, NAMES, lambda path, i: write_striped_npz(path, seed=i, patients=30), epsilon=30.0, coalition=1000.0
    )
