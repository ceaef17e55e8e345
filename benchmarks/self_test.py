"""What the self-test of the arithmetic costs a hospital's process, once for each network and release.

    python -m benchmarks.self_test [--repeats 3] [--json]

CPU milliseconds on one thread at the width that plans have by default, the median of some repeats after one that warms
up, and whether rows may share blocks on this machine ("no": each patient is computed alone). What is tried, and why
that is enough: `ghostnet/privacy/blocks.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch

from benchmarks.sensitivity_search import NETWORKS, machine, network_plan
from ghostnet.models import build_discriminator
from ghostnet.privacy import blocks
from ghostnet.privacy.mechanism import join_rows
from ghostnet.privacy.noise import SystemEntropy
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import patient_gradients
from ghostnet.training.losses import discriminator_loss
from ghostnet.training.perceptual import release_features
from ghostnet.training.warm_start import iter_patient_embeddings
from ghostnet.utility.classification import scores
from ghostnet.utility.classifier import build_classifier


def first_uses() -> dict[str, Callable[[], object]]:
    """By name, what makes the product try its arithmetic."""
    uses = {network: _step(network) for network in NETWORKS}
    plan = network_plan("dcgan 64")
    none = torch.zeros(1, dtype=torch.int64)
    one = Cohort(images=torch.zeros(1, 1, 64, 64), labels=none, owners=none, patients=1)
    uses["warm start, 64 px"] = lambda: list(iter_patient_embeddings(one, plan.embedding, 1))
    uses["perceptual release, dcgan 64"] = lambda: release_features(
        build_discriminator(plan.networks), one, plan, SystemEntropy()
    )
    for size in (32, 64):
        uses[f"utility counts, {size} px"] = _scores(size)
    return uses


def _step(network: str) -> Callable[[], object]:
    plan = network_plan(network)
    gradients = patient_gradients(build_discriminator(plan.networks), plan)
    fakes, labels = torch.zeros(2, 1, plan.image.size, plan.image.size), torch.zeros(2, dtype=torch.int64)
    rows = join_rows(images=fakes[:0], labels=labels[:0], groups=labels[:0], fakes=fakes, fake_labels=labels)
    loss = discriminator_loss("non-saturating")
    return lambda: gradients.clipped_sum(rows, loss, clip_norm=1.0, physical_rows=128)


def _scores(size: int) -> Callable[[], object]:
    return lambda: scores(build_classifier(channels=1, classes=2).eval(), torch.zeros(1, 1, size, size))


def measured(use: Callable[[], object], repeats: int) -> dict[str, float | bool]:
    """CPU milliseconds of the self-test alone, and its answer."""
    seconds: list[float] = []
    original = blocks._copies_agree

    def timed(*given: object, **named: object) -> bool:
        start = time.process_time()
        answer = original(*given, **named)  # type: ignore[arg-type]
        seconds.append(time.process_time() - start)
        return answer

    with mock.patch.object(blocks, "_copies_agree", timed):
        for _ in range(repeats + 1):
            blocks.forget()
            use()
    return {"cpu_ms": 1e3 * statistics.median(seconds[1:]), "shared": not blocks.computed_alone()}


def main() -> None:
    """Prints a table or JSON to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    logging.getLogger("ghostnet.training.perceptual").setLevel(logging.ERROR)  # it says that one patient is too few
    torch.set_num_threads(1)
    found = {name: measured(use, arguments.repeats) for name, use in first_uses().items()}
    if arguments.json:
        print(json.dumps({"machine": machine(), "self_test": found}, indent=2))
        return
    print(f"{machine()}\n\n{'':32s} {'CPU ms':>8s}  rows share blocks")
    for name, row in found.items():
        print(f"{name:32s} {row['cpu_ms']:8.0f}  {'yes' if row['shared'] else 'no'}")


if __name__ == "__main__":
    main()
