"""A federation step by step: two hospitals, their limits, a plan that is refused, a run, and its check.

    python examples/federation.py runs/two-hospitals

Each hospital is a folder with its images and its own site.toml, as in a deployment. In a notebook, each part of `main`
under a heading is a cell.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from client.config import load_site
from client.policy import check_plan
from client.site import Site
from client.site_toml import write_site
from ghostnet import Sampler
from ghostnet.accounting.plan_cost import resolve
from ghostnet.certificate.certificate import verify_sampler
from ghostnet.errors import PolicyError
from ghostnet.evidence import keys
from ghostnet.evidence.ledger import verify_ledger
from ghostnet.plan import load_plan
from ghostnet.progress import silent
from ghostnet.simulation.run import Engine, run

PLAN = Path(__file__).with_name("tiny.toml")
LIMITS = {
    "data.kind": "npz",
    "data.path": "data.npz",
    "policy.max_epsilon": 10.0,  # per patient, over all runs
    "policy.delta": 1e-5,
}


def write_hospital(folder: Path, name: str, seed: int) -> Path:
    """One hospital's folder: 40 patients with two images each, and its site.toml."""
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(40), 2)
    labels = owners % 2
    images = rng.integers(0, 80, (len(owners), 28, 28))
    images[labels == 1, ::3] += 120
    patients = np.array([f"{name}-{n:03d}" for n in owners])
    folder.mkdir(parents=True, mode=0o700)
    np.savez(folder / "data.npz", images=images.astype(np.uint8), labels=labels, patient=patients)
    write_site(folder / "site.toml", LIMITS | {"name": name})
    return folder / "site.toml"


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where the published sampler holds what its certificate says."""
    parser = argparse.ArgumentParser(description="A federation of two hospitals, step by step.")
    parser.add_argument("out", type=Path, help="new folder for the hospitals and the run")
    out = parser.parse_args(arguments).out

    # The hospitals, and what they take in: the table stays with the hospital.
    sites = [write_hospital(out / name, name, seed) for seed, name in enumerate(("north", "south"))]
    plan = resolve(load_plan(PLAN))
    for site in sites:
        cohorts = Site(load_site(site)).prepare(plan.image)
        print(f"{site.parent.name}: {cohorts.train.patients} patients to train on, {cohorts.test.patients} to test on")

    # A hospital's limits hold whatever it is asked: epsilon 20 is more than its 10.
    greedy = dataclasses.replace(plan, privacy=dataclasses.replace(plan.privacy, epsilon=20.0, noise_multiplier=0.0))
    try:
        check_plan(resolve(greedy), load_site(sites[0]).policy)
    except PolicyError as refusal:
        print(f"refused: {refusal}")

    # The run: the two Flower apps, in this process and one worker process or more.
    run(PLAN, plan, out / "run", sites, None, len(sites), "", Engine.EMBEDDED, False, silent, print)

    # Each hospital's ledger, checked from outside, and its public key, which it gives to whoever verifies.
    configs = [load_site(site) for site in sites]
    for config in configs:
        print(f"{config.name}: {len(verify_ledger(config.ledger_path))} ledger entries")
    trusted = {config.name: keys.public_hex(keys.load_or_create_key(config.key_path)) for config in configs}

    # The sampler that anybody may have: checked offline, then drawn from.
    failed = [check.name for check in verify_sampler(out / "run" / "sampler", trusted_keys=trusted) if not check.passed]
    print(f"failed checks: {', '.join(failed) or 'none'}")
    images = Sampler.load(out / "run" / "sampler").sample(4, label="striped", seed=0)
    print(f"drew {tuple(images.shape)}")
    return 1 if failed else 0


if __name__ == "__main__":  # needed: hospitals run in processes of their own, which import this file
    raise SystemExit(main())
