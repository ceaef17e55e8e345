"""What a step of each architecture costs, beside DCGAN's.

    python -m benchmarks.architectures [--json] [--size 64] [--rows 64] [--width 64] [--repeats 5] [--threads 1]

For each architecture: its weights, a private discriminator step (forward, per-row clip, sum, noise, Adam; `rows`
images, half of them fakes, each a patient of one image) and a generator step of as many fakes, in milliseconds of CPU
time (`time.process_time`), medians over the repeats. All variants run in turn in one process, so that a busy machine
hurts them alike; the ratio to DCGAN is the median of each round's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from ghostnet.models import architecture
from ghostnet.plan import Plan, parse_plan
from ghostnet.privacy.mechanism import join_rows, noised_sum
from ghostnet.privacy.noise import SystemEntropy, grid_step
from ghostnet.training.loop import patient_gradients, step_discriminator
from ghostnet.training.losses import discriminator_loss, generator_loss
from ghostnet.training.state import LocalState

Step = Callable[[], object]
PLAN = """
name = "architectures"
[image]
size = {size}
labels = ["a", "b"]
label_prior = [0.5, 0.5]
[model]
architecture = "{architecture}"
generator_width = {width}
discriminator_width = {width}
discriminator_norm = "{norm}"
[privacy]
epsilon = 10.0
delta = 1e-5
noise_multiplier = 1.0
sampling_rate = 0.5
steps = 1
fakes = {fakes}
[warm_start]
feature_size = 16
[training]
loss = "{loss}"
gradient_penalty = "{penalty}"
physical_rows = {rows}
[federation]
patients = {rows}
rounds = 1
"""
VARIANTS = {  # name: (architecture, gradient penalty)
    "dcgan": ("dcgan", "auto"),
    "wgan": ("wgan", "auto"),
    "wgan-gp": ("wgan-gp", "fakes"),
    "wgan-gp, penalty per patient": ("wgan-gp", "patient"),
    "stylegan": ("stylegan", "fakes"),
    "stylegan, R1 per patient": ("stylegan", "patient"),
    "keras28": ("keras28", "auto"),
}


def main() -> None:
    """Runs the benchmark and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels a side; architectures without it are left out")
    parser.add_argument("--rows", type=int, default=64, help="images of a step, half of them fakes")
    parser.add_argument("--width", type=int, default=64, help="width of both networks")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; each runs every variant once")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.size, arguments.rows, arguments.width, arguments.repeats)
    result["threads"] = arguments.threads
    print(json.dumps(result, indent=2) if arguments.json else table(result))


def measure(size: int, rows: int, width: int, repeats: int) -> dict[str, object]:
    """Weights, and times of both steps, of every variant that draws this size."""
    drawn = {name: v for name, v in VARIANTS.items() if size in architecture(v[0]).sizes}
    states = {name: LocalState(_plan(*variant, size, rows, width)) for name, variant in drawn.items()}
    steps = {name: (_discriminator_step(state, rows), _generator_step(state, rows)) for name, state in states.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for both in steps.values():
        for step in both:
            step()
    for _ in range(repeats):
        for name, (first, second) in steps.items():
            seconds[name].append((_timed(first), _timed(second)))
    reference = next(iter(seconds.values()))  # DCGAN's where it draws this size
    found = {}
    for name, times in seconds.items():
        found[name] = {
            "generator_weights": sum(p.numel() for p in states[name].generator.parameters()),
            "discriminator_weights": sum(p.numel() for p in states[name].discriminator.parameters()),
        }
        for i, step_name in enumerate(("discriminator", "generator")):
            ratio = statistics.median(t[i] / r[i] for t, r in zip(times, reference, strict=True))
            found[name][f"{step_name}_step_cpu_ms"] = round(1e3 * statistics.median(t[i] for t in times), 1)
            found[name][f"{step_name}_step_ratio"] = round(ratio, 2)
    return {"size": size, "rows": rows, "width": width, "repeats": repeats, "variants": found}


def table(result: dict[str, object]) -> str:
    """The result as text."""
    lines = ["{size} px, {rows} rows a step, width {width}, {threads} thread(s), CPU ms".format(**result), ""]
    lines += [f"{'':30s} {'G weights':>11s} {'D weights':>11s} {'D step':>8s} {'x':>6s} {'G step':>8s} {'x':>6s}"]
    for name, row in result["variants"].items():  # type: ignore[attr-defined]
        lines.append(
            f"{name:30s} {row['generator_weights']:11,d} {row['discriminator_weights']:11,d} "
            f"{row['discriminator_step_cpu_ms']:8.0f} {row['discriminator_step_ratio']:6.2f} "
            f"{row['generator_step_cpu_ms']:8.0f} {row['generator_step_ratio']:6.2f}"
        )
    return "\n".join(lines)


def _plan(name: str, penalty: str, size: int, rows: int, width: int) -> Plan:
    record = architecture(name)
    return parse_plan(
        PLAN.format(
            architecture=name,
            penalty=penalty,
            size=size,
            width=width,
            rows=rows,
            fakes=rows // 2,
            norm=record.norms[0],
            loss=(record.losses or ("non-saturating",))[0],
        )
    )


def _discriminator_step(state: LocalState, rows: int) -> Step:
    plan, entropy, half = state.plan, SystemEntropy(), rows // 2
    shape = (1, plan.image.size, plan.image.size)
    public = torch.Generator().manual_seed(0)
    fakes, labels = torch.randn(half, *shape, generator=public), torch.arange(half) % 2
    reals = torch.randn(half, *shape, generator=public)
    batch = join_rows(images=reals, labels=labels, groups=torch.arange(half), fakes=fakes, fake_labels=labels)
    gradients, row_loss = patient_gradients(state.discriminator, plan), discriminator_loss(plan.training.loss)

    def step() -> None:
        clip_norm = plan.privacy.clip_norm
        step = grid_step(clip_norm)
        summed = gradients.clipped_sum(batch, row_loss, clip_norm=clip_norm, physical_rows=rows, grid_step=step)
        noised = noised_sum(summed, clip_norm=clip_norm, noise_multiplier=1.0, entropy=entropy)
        step_discriminator(state.discriminator, state.optimizers.discriminator, noised, fakes, labels, plan)

    return step


def _generator_step(state: LocalState, rows: int) -> Step:
    plan = state.plan
    public = torch.Generator().manual_seed(1)
    z, labels = torch.randn(rows, plan.model.latent, generator=public), torch.arange(rows) % 2
    loss_of, parameters = generator_loss(plan.training.loss), list(state.generator.parameters())

    def step() -> None:
        loss = loss_of(state.discriminator(state.generator(z, labels), labels))
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        state.optimizers.generator.step()

    return step


def _timed(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


if __name__ == "__main__":
    main()
