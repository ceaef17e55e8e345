"""`ghostnet demo`: three hospitals of procedural chest phantoms, and the real path on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ghostnet.accounting.plan_cost import resolve
from ghostnet.cli.console import errors, notice, progress_bars, results
from ghostnet.cli.device import Device
from ghostnet.cli.simulate import check_out, tell
from ghostnet.plan import load_plan
from ghostnet.simulation.demo_hospitals import write_hospitals
from ghostnet.simulation.run import Engine, run
from ghostnet.training.device import find_device
from server.checkpoint import check_free

DEMO_PLAN = """\
# What the three demo hospitals agree on. Every key is explained in docs/examples/chest.toml.
name = "demo"
seed = 1

[image]
size = 32
labels = ["normal", "lesion"]
label_prior = [0.5, 0.5]
mask_channels = 1

[model]
latent = 32
generator_width = 16
discriminator_width = 16

[privacy]
epsilon = 10.0
delta = 1e-5
sampling_rate = 0.1
steps = 20
fakes = 24

[warm_start]
noise_multiplier = 0.6
features = 600
feature_size = 16
bandwidth = 8.0
mean_image_weight = 0.8
detail_weight = 1.0
steps = 400
batch = 64

[training]
generator_delay = 10
learning_rate_generator = 2e-5
detail_weight = 1.0

[federation]
rounds = 2
patients = 116
min_hospitals = 3

[utility]
noise_multiplier = 1.5
bins = 4
synthetic_images = 1500
classifier_steps = 150
"""


def demo(
    out: Annotated[Path, typer.Option(help="Run folder to write; must be new, or unfinished with --resume.")] = Path(
        "runs/demo"
    ),
    device: Device = "auto",
    resume: Annotated[bool, typer.Option(help="Go on with the unfinished run in --out.")] = False,
) -> None:
    """Train one sampler across three made-up hospitals, in a few minutes on two cores.

    Writes DICOM folders of procedural chest phantoms (with planted names and burned-in text), then runs intake,
    de-identification, training under DP, federation and publication on them: the same path as `ghostnet simulate`.
    """
    check_out(out, resume=resume)
    check_free(out, resume=resume)
    find_device(device)
    with progress_bars() as progress:
        written = sorted((out / "sites").glob("*/site.toml"))  # by the run that is taken up
        sites = written or write_hospitals(out, device=device, progress=progress)
        plan_file = out / "sites" / "plan.toml"
        plan_file.write_text(DEMO_PLAN)
        run(
            plan_file,
            resolve(load_plan(plan_file)),
            out,
            sites,
            None,
            0,
            "iid",
            Engine.EMBEDDED,
            resume,
            progress,
            notice,
            device=device,
        )
    _tell_blanked(sites)
    tell(out, as_json=False)
    known = " ".join(f'--key "$(ghostnet site key {site})"' for site in sites)  # each hospital prints its own
    errors.print(f"check the certificate: ghostnet verify {out / 'sampler'} {known}", soft_wrap=True)


def _tell_blanked(sites: list[Path]) -> None:
    """How many images the demo wrote names into, and in how many text was found and blanked."""
    planted = [len(json.loads((site.parent / "planted.json").read_text())["burned_in"]) for site in sites]
    intake = [json.loads((site.parent / "intake.json").read_text()) for site in sites]
    blanked, held = (sum(read[key] for read in intake) for key in ("blanked_images", "held"))
    results.print(
        f"names planted in the pixels of {sum(planted)} images; text was found and blanked in {blanked} images, "
        f"{held} more are held until a person has looked"
    )
