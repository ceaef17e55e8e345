"""Small plans and data for tests: real in every part, but quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ghostnet.plan import Plan, parse_plan

TINY = """
name = "tiny"
seed = 3
[image]
size = 28
labels = ["plain", "striped"]
label_prior = [0.5, 0.5]
[model]
latent = 8
generator_width = 8
discriminator_width = 8
[privacy]
epsilon = 10.0
noise_multiplier = 1.0
delta = 1e-5
sampling_rate = 0.3
steps = 4
fakes = 4
images_per_patient = 2
[warm_start]
noise_multiplier = 0.6
features = 32
feature_size = 14
steps = 6
batch = 16
[training]
discriminator_steps = 2
generator_batch = 8
[federation]
rounds = 2
patients = 20
min_hospitals = 1
[utility]
noise_multiplier = 2.0
bins = 4
synthetic_images = 64
classifier_steps = 8
"""


def tiny_plan_text(**replacements: str) -> str:
    """The tiny plan's TOML with lines replaced: tiny_plan_text(epsilon="epsilon = nan")."""
    lines = TINY.splitlines()
    for key, line in replacements.items():
        lines = [line if old.partition("=")[0].strip() == key else old for old in lines]
    return "\n".join(lines)


def tiny_plan(**replacements: str) -> Plan:
    """The tiny plan, parsed; see `tiny_plan_text`."""
    return parse_plan(tiny_plan_text(**replacements))


def write_striped_npz(path: Path, *, patients: int = 60, size: int = 28, seed: int = 0) -> Path:
    """Images that differ by label (plain noise or stripes), one to three a patient, some of them test rows."""
    rng = np.random.default_rng(seed)
    images, labels, owners, split = [], [], [], []
    for patient in range(patients):
        label = patient % 2
        for _ in range(int(rng.integers(1, 4))):
            image = rng.integers(0, 80, (size, size))
            if label:
                image[:: int(rng.integers(2, 4))] += 120
            images.append(image.astype(np.uint8))
            labels.append(label)
            owners.append(f"p{patient:03d}")
            split.append("test" if patient % 5 == 0 else "train")
    np.savez(path, images=np.stack(images), labels=np.array(labels), patient=np.array(owners), split=np.array(split))
    return path
