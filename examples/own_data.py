"""Train a sampler on arrays of your own, from Python: arrays -> hospitals -> sampler, without the command line.

    python examples/own_data.py runs/own

`own_arrays` makes images up; put your own there. A row's patient is who is protected: all of a patient's images are
kept together, and epsilon is said of the patient. The plan, tiny.toml, takes
seconds, so the sampler's images are poor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from ghostnet.accounting.plan_cost import claim, resolve
from ghostnet.plan import load_plan
from ghostnet.progress import silent
from ghostnet.simulation.run import Engine, run

PLAN = Path(__file__).with_name("tiny.toml")


def own_arrays() -> dict[str, np.ndarray]:
    """The columns of the file: images, and one label and one patient an image."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(60), 2)  # two images of each of 60 patients
    labels = owners % 2
    images = rng.integers(0, 80, (len(owners), 28, 28))
    images[labels == 1, ::3] += 120
    return {"images": images.astype(np.uint8), "labels": labels, "patient": np.array([f"p{n:03d}" for n in owners])}


def main(arguments: list[str] | None = None) -> int:
    """Trains two simulated hospitals, each with half of the patients."""
    parser = argparse.ArgumentParser(description="Train a sampler on arrays of your own.")
    parser.add_argument("out", type=Path, help="new folder for the file and the run")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True)

    # The noise that makes the whole run cost the plan's epsilon is found before any image is read.
    plan = resolve(load_plan(PLAN))
    cost = claim(plan)
    print(f"noise multiplier {plan.privacy.noise_multiplier:.3f}, epsilon {cost.epsilon_pld:.3f} per patient")

    data = out / "own.npz"
    np.savez(data, **own_arrays())
    run(PLAN, plan, out / "run", [], data, 2, "iid", Engine.EMBEDDED, False, silent, print)

    figures = json.loads((out / "run" / "report.json").read_text())
    print(f"epsilon {figures['privacy']['epsilon_pld']:.3f}; sampler: {out / 'run' / 'sampler'}")
    return 0


if __name__ == "__main__":  # needed: hospitals run in processes of their own, which import this file
    raise SystemExit(main())
