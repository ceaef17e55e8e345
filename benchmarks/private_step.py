"""What privacy costs one discriminator step, beside Opacus's own modules.

    python -m benchmarks.private_step [--json] [--batch 64] [--threads 1] [--repeats 9]

Variants run in turn in one process, on the same network, images and loss: forward, backward, clip each row, sum; those
"with noise" draw it too, as a hospital does. Opacus's variants are without noise, in their favour: its own would come
from torch's generator, which is not for release. Times are CPU time (`time.process_time`), medians over the repeats;
the ratio is the median of each round's ratio to the plain step, which a busy machine disturbs least. Peak memory is the
growth of a fresh process's resident set in one step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ghostnet.models.dcgan import Discriminator
from ghostnet.privacy.mechanism import GradientEngine, PatientGradients, Rows, noised_sum
from ghostnet.privacy.noise import SystemEntropy, grid_step
from ghostnet.training.losses import discriminator_loss

Step = Callable[[], list[Tensor]]
"""Runs a step; gives its sum over rows of clipped gradients, a tensor for each parameter (of plain: nothing)."""

CLIP_NORM = 1.0
REPORTED = {
    "plain": "forward and backward, no privacy",
    "ghostnet": "GhostNet, with noise",
    "ghostnet without noise": "GhostNet, without noise",
    "ghostnet, 2 images a patient": "GhostNet, with noise, rows in pairs",
    "opacus hooks": "Opacus GradSampleModule, clip, sum",
    "opacus ghost": "Opacus ghost clipping",
}


def main() -> None:
    """Runs the benchmark and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="rows of a step")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds; each runs every variant once")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.batch, arguments.threads, arguments.repeats)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


def measure(batch: int, threads: int, repeats: int) -> dict[str, object]:
    """Times every variant, interleaved, and measures each one's memory in a process of its own."""
    steps = {name: build(name, batch) for name in REPORTED}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    variants = {
        name: {
            "cpu_ms": 1e3 * statistics.median(times),
            "ratio_to_plain": statistics.median(t / p for t, p in zip(times, seconds["plain"], strict=True)),
            "peak_memory_mib": peak_memory_mib(name, batch, threads),
        }
        for name, times in seconds.items()
    }
    return {
        "network": "DCGAN 64x64 discriminator, GroupNorm, 2 labels",
        "parameters": sum(p.numel() for p in network().parameters()),
        "batch": batch,
        "threads": threads,
        "repeats": repeats,
        "variants": variants,
        "noise_cpu_ms": 1e3 * noise_seconds(repeats),
    }


def table(result: dict[str, object]) -> str:
    """The result as text."""
    lines = ["{network}, {parameters:,} parameters, batch {batch}, {threads} thread(s)".format(**result), ""]
    lines += [f"{'variant':38s} {'CPU ms':>8s} {'x plain':>8s} {'peak MiB':>9s}"]
    for name, row in result["variants"].items():  # type: ignore[attr-defined]
        figures = f"{row['cpu_ms']:8.0f} {row['ratio_to_plain']:8.2f} {row['peak_memory_mib']:9.0f}"
        lines.append(f"{REPORTED[name]:38s} {figures}")
    lines += ["", f"the noise alone, once a step of any size: {result['noise_cpu_ms']:.0f} ms"]
    return "\n".join(lines)


def network() -> Discriminator:
    """The product's discriminator at 64 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Discriminator(size=64, planes=1, labels=2, width=64, norm="group")


def example(batch: int, rows_per_group: int = 1) -> Rows:
    """Random rows, one group each, or `rows_per_group` rows each."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(batch) // rows_per_group
    return Rows(
        images=torch.randn(batch, 1, 64, 64, generator=generator),
        labels=torch.arange(batch) % 2,
        groups=groups,
        real=groups % 2 == 0,
        group_count=int(groups[-1]) + 1,
    )


def build(name: str, batch: int) -> Step:
    """One step of a variant, ready to run."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    rows = example(batch, 2 if "2 images" in name else 1)
    if name == "plain":
        return _plain(rows)
    if name == "opacus hooks":
        return _opacus_hooks(rows)
    if name == "opacus ghost":
        return _opacus_ghost(rows)
    return _ghostnet(rows, has_noise="without noise" not in name)


def _ghostnet(rows: Rows, *, has_noise: bool) -> Step:
    gradients, loss = PatientGradients(network(), GradientEngine.KERNELS), discriminator_loss("non-saturating")

    def step() -> list[Tensor]:
        summed = gradients.clipped_sum(
            rows, loss, clip_norm=CLIP_NORM, physical_rows=len(rows.images), grid_step=grid_step(CLIP_NORM)
        )
        return list(_noised(summed).values()) if has_noise else list(summed.values())

    return step


def _noised(summed: dict[str, Tensor]) -> dict[str, Tensor]:
    return noised_sum(summed, clip_norm=CLIP_NORM, noise_multiplier=1.0, entropy=SystemEntropy())


def _plain(rows: Rows) -> Step:
    model = network()

    def step() -> list[Tensor]:
        model.zero_grad()
        binary_cross_entropy_with_logits(model(rows.images, rows.labels), rows.real.float()).backward()
        return []

    return step


def _opacus_hooks(rows: Rows) -> Step:
    from opacus.grad_sample import GradSampleModule

    model = GradSampleModule(network(), loss_reduction="sum")
    parameters = list(model.parameters())

    def step() -> list[Tensor]:
        model.zero_grad()
        logits = model(rows.images, rows.labels)
        binary_cross_entropy_with_logits(logits, rows.real.float(), reduction="sum").backward()
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters], 1).norm(dim=1)
        factors = (CLIP_NORM / norms).clamp(max=1.0)
        summed = [(factors @ p.grad_sample.flatten(1)).view_as(p) for p in parameters]
        for p in parameters:
            p.grad_sample = None
        return summed

    return step


def _opacus_ghost(rows: Rows) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = GradSampleModuleFastGradientClipping(
        network(), max_grad_norm=CLIP_NORM, use_ghost_clipping=True, loss_reduction="mean"
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP_NORM,
        expected_batch_size=len(rows.images),
    )
    criterion = DPLossFastGradientClipping(model, optimizer, torch.nn.BCEWithLogitsLoss(), loss_reduction="mean")

    def step() -> list[Tensor]:
        optimizer.zero_grad()
        criterion(model(rows.images, rows.labels), rows.real.float()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    return step


def noise_seconds(repeats: int) -> float:
    """CPU time of one step's noise."""
    summed = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in network().named_parameters()}
    times = []
    for _ in range(min(repeats, 3)):
        start = time.process_time()
        _noised(summed)
        times.append(time.process_time() - start)
    return statistics.median(times)


def peak_memory_mib(name: str, batch: int, threads: int) -> float:
    """Growth of a fresh process's largest resident set in the second step of this size, in MiB."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_grown_mib, (name, batch, threads))


def _grown_mib(name: str, batch: int, threads: int) -> float:
    torch.set_num_threads(threads)
    build(name, 2)()  # imports and first-use buffers
    step = build(name, batch)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew here
    before = _high_water_kib()
    step()
    return (_high_water_kib() - before) / 1024


def _high_water_kib() -> int:
    """Largest resident set of this process; Linux only. (`ru_maxrss` would be inherited from the parent.)"""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


if __name__ == "__main__":
    main()
