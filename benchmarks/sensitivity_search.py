"""A hostile coordinator's search: can its weights or plans make one patient move a sum by more than is charged?

    python -m benchmarks.sensitivity_search [--count 10000] [--seconds S] [--threads 1 2] [--seed 0]
                                            [--arithmetic product|alone|unfilled] [--json]

Each trial draws, from the seed and its number alone, a release (a step of one of the architectures, the warm start, the
perceptual release, the utility counts), crafted weights or a crafted plan, other patients and one patient more, at the
front, in the middle or at the end. The product's own code then sums three times, exactly, without noise: with that
patient, without, and that patient alone. Counted are

- numbers changed: coordinates where (with - without) is not what the patient adds alone, to the bit. All sums are
  exact, so a single bit that moves in anybody else's part shows;
- the ratio: how far the sum moved over what is charged; "at bound" counts those above 0.99, where clipping bound.

`--arithmetic alone` takes the way of a machine that fails the self-test (each patient in a block of its own);
`unfilled` is a planted bug, the arithmetic without blocks of one shape, and must be found. The exit code is 1 where a
number changed or a ratio is above 1 + 1e-5. Cost of the self-test of the arithmetic: `python -m benchmarks.self_test`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.hostile_weights import CRAFTS, draw_ordinary
from ghostnet.models import architecture, build_discriminator
from ghostnet.plan import Plan, parse_plan
from ghostnet.privacy import blocks, mechanism, releases
from ghostnet.privacy.blocks import Block, block_rows
from ghostnet.privacy.mechanism import Rows, join_rows
from ghostnet.privacy.noise import SystemEntropy, from_grid, grid_step
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import patient_gradients
from ghostnet.training.losses import discriminator_loss
from ghostnet.training.perceptual import release_features
from ghostnet.training.warm_start import iter_patient_embeddings
from ghostnet.utility.classification import patient_counts, scores
from ghostnet.utility.classifier import build_classifier

TOLERANCE = 1e-5
REPORTED_FINDINGS = 20
PLAN = """
name = "search"
[image]
size = {size}
labels = ["a", "b"]
label_prior = [0.5, 0.5]
[model]
architecture = "{architecture}"
discriminator_norm = "{norm}"
[privacy]
epsilon = 10.0
delta = 1e-5
noise_multiplier = 1.0
sampling_rate = 0.5
steps = 2
images_per_patient = 1000
[training]
loss = "{loss}"
gradient_penalty = "{penalty}"
perceptual_weight = 1.0
perceptual_noise_multiplier = 1.0
[warm_start]
feature_size = 14
[federation]
patients = 100
rounds = 2
"""
NETWORKS = {  # name: (architecture, pixels a side, gradient penalty)
    "dcgan 28": ("dcgan", 28, "none"),
    "dcgan 32": ("dcgan", 32, "none"),
    "dcgan 64": ("dcgan", 64, "none"),
    "dcgan 28, patient penalty": ("dcgan", 28, "patient"),
    "wgan 28": ("wgan", 28, "auto"),
    "wgan-gp 28": ("wgan-gp", 28, "fakes"),
    "wgan-gp 28, patient penalty": ("wgan-gp", 28, "patient"),
    "stylegan 32": ("stylegan", 32, "fakes"),
    "stylegan 32, patient penalty": ("stylegan", 32, "patient"),
    "keras28": ("keras28", 28, "auto"),
}
OTHERS = (0, 1, 2, 3, 5, 6, 7, 8, 9, 13, 14, 15, 16, 17, 30, 31, 40, 63, 70)
SIGMAS = (0.05, 0.3, 0.71, 1.0, 1.9, 7.3, 100.0)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one trial found.

    Attributes:
        subject: network or release.
        kind: of weights or plan.
        moved: how far the sum moved over what is charged.
        changed: numbers of the sum that are not what they would be if all others added the same.
        details: what else was drawn.
    """

    subject: str
    kind: str
    moved: float
    changed: int
    details: str

    @property
    def is_a_miss(self) -> bool:
        """Whether the promise was broken."""
        return self.changed > 0 or not self.moved <= 1 + TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Patients:
    """The others and one more, each with rows of their own.

    Attributes:
        images: of each patient, (rows, planes, h, w).
        labels: of each, int64 (rows,).
        place: of the one more among them.
        picture: what kind of images that one has.
    """

    images: list[Tensor]
    labels: list[Tensor]
    place: int
    picture: str

    def chosen(self, who: str) -> list[int]:
        """The indices of "all", of "others" or of the one "alone"."""
        everyone = range(len(self.images))
        return {"all": list(everyone), "others": [i for i in everyone if i != self.place], "alone": [self.place]}[who]

    def cohort(self, who: str) -> Cohort:
        """As the releases take them."""
        some = self.chosen(who)
        none = self.images[0][:0], self.labels[0][:0]
        owners = torch.repeat_interleave(
            torch.arange(len(some)), torch.tensor([len(self.labels[i]) for i in some]).long()
        )
        return Cohort(
            images=torch.cat([none[0], *(self.images[i] for i in some)]),
            labels=torch.cat([none[1], *(self.labels[i] for i in some)]),
            owners=owners,
            patients=len(some),
        )

    @property
    def known(self) -> Tensor:
        """The first image of everybody."""
        return torch.cat([images[:1] for images in self.images])

    def __str__(self) -> str:
        sizes = [len(labels) for labels in self.labels]
        return f"rows {sizes}, the extra patient at {self.place} with {self.picture} images"


class InFileOrder:
    """Coins that let `choose_rows` keep a patient's rows in their order, so that both sums read them alike."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """All zero: equal keys leave rows as they are."""
        return np.zeros(n)


def trial(number: int, seed: int, subject: str | None = None) -> Outcome:
    """Runs one trial; the same for the same number, seed and subject, on one machine with as many threads."""
    rng = random.Random(f"{seed} {number}")
    stream = torch.Generator().manual_seed(rng.getrandbits(60))
    subject = subject or SUBJECT_CYCLE[number % len(SUBJECT_CYCLE)]
    run = RELEASES.get(subject)
    return run(rng, stream) if run else step_trial(subject, rng, stream)


def step_trial(subject: str, rng: random.Random, stream: torch.Generator) -> Outcome:
    """One step's clipped sum of a discriminator with crafted weights."""
    plan = drawn_plan(subject, rng)
    clip_norm, sigma = 10.0 ** rng.uniform(-3, 3), rng.choice((None, *SIGMAS))
    physical_rows = round(2 ** rng.uniform(0, 7))
    patients = drawn_patients(plan, rng, stream, block=block_rows(physical_rows))
    kind, discriminator = crafted_discriminator(plan, patients, rng, stream)
    fakes, loss = _images(plan, rng.randint(0, 3), stream), rng.choice(("non-saturating", "hinge", "wasserstein"))
    gradients = patient_gradients(discriminator, plan)

    def summed(who: str, fakes: Tensor) -> Tensor:
        cohort = patients.cohort(who)
        rows = join_rows(
            images=cohort.images,
            labels=cohort.labels,
            groups=cohort.owners,
            fakes=fakes,
            fake_labels=torch.arange(len(fakes)) % len(plan.image.labels),
        )
        parts = gradients.clipped_sum(
            rows,
            discriminator_loss(loss),
            clip_norm=clip_norm,
            physical_rows=physical_rows,
            grid_step=grid_step(clip_norm * sigma) if sigma else 0.0,
        )
        return torch.cat([part.flatten() for part in parts.values()])

    moved = summed("all", fakes) - summed("others", fakes)
    return Outcome(
        subject=subject,
        kind=kind,
        moved=float(moved.norm()) / clip_norm,
        changed=int((moved != summed("alone", fakes[:0])).sum()),
        details=f"{patients}; {len(fakes)} fakes, {loss}, C = {clip_norm:g}, sigma = {sigma}, {physical_rows = }, "
        f"width {plan.model.discriminator_width}, {plan.planes} planes, {len(plan.image.labels)} labels",
    )


def warm_start_trial(rng: random.Random, stream: torch.Generator) -> Outcome:
    """The warm start's sum under a crafted plan."""
    size = rng.choice((28, 32, 64))
    widths = [10.0 ** rng.uniform(-9, 3) for _ in range(rng.choice((1, 1, 2, 3)))]
    plan = replace_in(
        drawn_plan(f"dcgan {size}", rng),
        warm_start={
            "bandwidth": widths[0],
            "more_bandwidths": tuple(widths[1:]),
            "features": 2 * rng.choice((1, 3, 8, 50, 333, 1000)),
            "feature_size": rng.randint(4, size),
            "mean_image_weight": rng.choice((0.0, 0.3, 0.999)),
        },
    )
    plan = replace(plan, seed=rng.getrandbits(20))
    patients = drawn_patients(plan, rng, stream)

    def release(who: str, sigma: float) -> None:
        vectors = iter_patient_embeddings(patients.cohort(who), plan.embedding, plan.privacy.images_per_patient)
        releases.noisy_sum(vectors, norm_bound=1.0, noise_multiplier=sigma, entropy=SystemEntropy())

    least = math.floor(math.log10(min(widths)))
    kind = f"bandwidth {'1e-9 to 1e-6' if least < -6 else '1e-6 to 1e-3' if least < -3 else '1e-3 to 1e3'}"
    return _release_outcome("warm start", kind, release, rng, f"{patients}; {plan.warm_start}, {size} px")


def perceptual_trial(rng: random.Random, stream: torch.Generator) -> Outcome:
    """The perceptual release under a crafted snapshot."""
    network = rng.choice(list(NETWORKS))
    plan = drawn_plan(network, rng)
    patients = drawn_patients(plan, rng, stream)
    kind, discriminator = crafted_discriminator(plan, patients, rng, stream)

    def release(who: str, sigma: float) -> None:
        noised = replace_in(plan, training={"perceptual_noise_multiplier": sigma})
        release_features(discriminator, patients.cohort(who), noised, InFileOrder())  # type: ignore[arg-type]

    return _release_outcome("perceptual release", kind, release, rng, f"{patients}; {network}")


def utility_trial(rng: random.Random, stream: torch.Generator) -> Outcome:
    """The utility counts under a crafted classifier, whose edges lie on known patients' scores."""
    classes = rng.choice((2, 2, 3, 7))
    plan = drawn_plan(f"dcgan {rng.choice((28, 28, 32, 64))}", rng)
    plan = replace_in(plan, image={"labels": tuple(map(str, range(classes)))})
    patients = drawn_patients(plan, rng, stream)
    model = build_classifier(channels=plan.image.channels, classes=classes, seed=rng.getrandbits(20)).eval()
    draw_ordinary(model, stream)
    kind = rng.choice(list(CRAFTS))
    CRAFTS[kind](model, model, patients.known, rng, stream)
    edges = None
    if classes == 2:
        known = scores(model, patients.known)
        known = known[known.isfinite()][: rng.randint(1, 9)]
        edges = torch.cat([known, torch.zeros(1, dtype=torch.float64)]).unique()

    def release(who: str, sigma: float) -> None:
        counts = patient_counts(model, patients.cohort(who), classes=classes, edges=edges)
        releases.noisy_sum(counts, norm_bound=1.0, noise_multiplier=sigma, entropy=SystemEntropy())

    return _release_outcome("utility counts", kind, release, rng, f"{patients}; {classes} classes")


RELEASES: dict[str, Callable[[random.Random, torch.Generator], Outcome]] = {
    "warm start": warm_start_trial,
    "perceptual release": perceptual_trial,
    "utility counts": utility_trial,
}
SUBJECT_CYCLE = (*NETWORKS, *RELEASES, "stylegan 32", "keras28", *RELEASES)  # the attacks that once worked: twice


def _release_outcome(
    subject: str, kind: str, release: Callable[[str, float], None], rng: random.Random, details: str
) -> Outcome:
    sigma = rng.choice(SIGMAS)
    with exact_totals() as totals:
        for who in ("all", "others", "alone"):
            release(who, sigma)
    with_patient, without, alone = totals
    moved = with_patient - without  # int64, in steps of the noise's grid
    return Outcome(
        subject=subject,
        kind=kind,
        moved=float(moved.double().norm()) * grid_step(sigma),
        changed=int((moved != alone).sum()),
        details=f"{details}, sigma = {sigma}",
    )


@contextmanager
def exact_totals() -> Iterator[list[Tensor]]:
    """Keeps what `noisy_sum` would add noise to, in whole steps, and adds none."""
    totals: list[Tensor] = []

    def kept(total: Tensor, *, std: float, entropy: object) -> Tensor:
        totals.append(total)
        return from_grid(total, std=std).float()

    with mock.patch.object(releases, "add_gaussian", kept):
        yield totals


def drawn_plan(network: str, rng: random.Random) -> Plan:
    """A plan of the network with labels, planes and width drawn; values need not be what a plan file may hold."""
    name, size, penalty = NETWORKS[network]
    labels = rng.choice((1, 2, 2, 3, 20))
    width = rng.choice((4,) * 20 + ((4, 5, 7, 8) if name == "stylegan" else (6, 8, 12, 16)))
    if penalty != "patient" and rng.random() < 0.01:
        width = 64
    return replace_in(
        network_plan(network),
        image={
            "labels": tuple(map(str, range(labels))),
            "label_prior": (1 / labels,) * labels,
            "channels": rng.choice((1, 1, 1, 3)),
            "mask_channels": rng.choice((0, 0, 0, 1)),
        },
        model={
            "discriminator_width": width,
            "discriminator_norm": rng.choice(sorted(architecture(name).norms, reverse=True)),
        },
    )


def network_plan(network: str) -> Plan:
    """A plan of the network with everything else at its default."""
    name, size, penalty = NETWORKS[network]
    record = architecture(name)
    return parse_plan(
        PLAN.format(
            architecture=name,
            size=size,
            penalty=penalty,
            norm=record.norms[0],
            loss=(record.losses or ("non-saturating",))[0],
        )
    )


def replace_in(plan: Plan, **tables: dict[str, object]) -> Plan:
    """The plan with values of some tables replaced, unchecked."""
    return replace(plan, **{name: replace(getattr(plan, name), **values) for name, values in tables.items()})


def drawn_patients(plan: Plan, rng: random.Random, stream: torch.Generator, *, block: int = 16) -> Patients:
    """Up to 70 others of 1 to 3 images, or of more than a block holds, and one patient more."""
    most = 17 if plan.image.size == 64 or plan.model.discriminator_width > 16 else 70
    if plan.model.architecture == "stylegan" and rng.random() < 0.7:
        most = min(most, 17)  # its blocks take ten times longer than others'
    others = rng.choice([n for n in OTHERS if n <= most] + [rng.randint(0, most)])
    choices = rng.choice(((1,), (1,), (2,), (1, 2, 3)))
    sizes = [rng.choice(choices) for _ in range(others)]
    if others and rng.random() < 0.1:
        sizes[rng.randrange(others)] = block + rng.randint(1, 3)
    place = rng.choice((0, others // 2, others))
    extra = rng.choice((1, 1, 2, 3, block, block + rng.randint(1, block + 1)))
    sizes.insert(place, extra)
    images = [_images(plan, size, stream) for size in sizes]
    picture = rng.choice(("ordinary",) * 4 + ("copied", "opposite", "huge", "not finite"))
    images[place] = _pictured(picture, images, place, extra)
    labels = [torch.randint(len(plan.image.labels), (size,), generator=stream) for size in sizes]
    return Patients(images=images, labels=labels, place=place, picture=picture)


def _pictured(picture: str, images: list[Tensor], place: int, rows: int) -> Tensor:
    own = images[place].clone()
    if picture == "copied":
        return images[place - 1][:1].expand_as(own).clone()
    if picture == "opposite":
        own[1::2] = -own[: rows // 2 * 2 : 2]
    if picture == "huge":
        own *= 1e20
    if picture == "not finite":
        own[0, 0, 0, 0] = math.nan
    return own


def _images(plan: Plan, count: int, stream: torch.Generator) -> Tensor:
    return torch.rand(count, plan.planes, plan.image.size, plan.image.size, generator=stream) * 2 - 1


def crafted_discriminator(
    plan: Plan, patients: Patients, rng: random.Random, stream: torch.Generator
) -> tuple[str, nn.Module]:
    """A discriminator with crafted weights, and their kind."""
    discriminator = build_discriminator(plan.networks)
    if rng.random() < 0.5:
        draw_ordinary(discriminator, stream)
    kind = rng.choice(list(CRAFTS))
    labels = torch.cat([labels[:1] for labels in patients.labels])
    CRAFTS[kind](discriminator, lambda images: discriminator(images, labels), patients.known, rng, stream)
    return kind, discriminator


@contextmanager
def arithmetic(name: str) -> Iterator[None]:
    """Runs with the product's arithmetic, with its fallback, or with the planted bug (see the module's text)."""
    blocks.forget()
    changes: list[tuple[object, str, object]] = []
    if name != "product":
        shares = name == "unfilled"
        changes += [(mechanism, "_is_invariant", lambda *_: shares), (blocks, "_rows_are_invariant", lambda *_: shares)]
    if name == "unfilled":
        changes += [(mechanism, "block_rows", int), (mechanism, "_block", _unfilled_block)]
        changes += [(blocks, "filled", lambda rows, _: rows)]
    with ExitStack() as patches:
        for module, attribute, new in changes:
            patches.enter_context(mock.patch.object(module, attribute, new))
        try:
            yield
        finally:
            blocks.forget()


def _unfilled_block(rows: Rows, part: Block, block: int) -> Rows:
    """The rows of one block and no others: the bug that blocks of one shape are there to prevent."""
    del block
    groups = rows.groups[part.rows] - part.groups.start
    return Rows(
        images=rows.images[part.rows],
        labels=rows.labels[part.rows],
        groups=groups,
        real=rows.real[part.rows],
        group_count=part.groups.stop - part.groups.start,
    )


def search(count: int, *, seed: int, threads: Sequence[int], seconds: float = math.inf) -> Iterator[Outcome]:
    """Trials 0, 1, ..., for at most so long; the number of threads alternates."""
    started, before = time.monotonic(), torch.get_num_threads()
    try:
        for number in range(count):
            if time.monotonic() - started > seconds:
                return
            torch.set_num_threads(threads[number // len(SUBJECT_CYCLE) % len(threads)])
            outcome = trial(number, seed)
            yield replace(outcome, details=f"trial {number}, {torch.get_num_threads()} threads: {outcome.details}")
    finally:
        torch.set_num_threads(before)


def summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Trials, worst ratio and misses: in all, by subject and by kind."""

    def of(some: Sequence[Outcome]) -> dict[str, object]:
        return {
            "trials": len(some),
            "at_the_bound": sum(o.moved > 0.99 for o in some),
            "worst_ratio": max(o.moved if math.isfinite(o.moved) else math.inf for o in some),
            "numbers_changed": sum(o.changed for o in some),
            "misses": sum(o.is_a_miss for o in some),
        }

    def by(name: str) -> dict[str, dict[str, object]]:
        values = dict.fromkeys(getattr(o, name) for o in outcomes)
        return {value: of([o for o in outcomes if getattr(o, name) == value]) for value in values}

    findings = [
        f"{o.subject}, {o.kind}: ratio {o.moved:.9g}, {o.changed} changed; {o.details}" for o in outcomes if o.is_a_miss
    ]
    return {
        **of(outcomes),
        "by_subject": by("subject"),
        "by_kind": by("kind"),
        "findings": findings[:REPORTED_FINDINGS],
    }


def table(result: dict[str, object]) -> str:
    """The result as text."""
    lines = ["{machine}; {arithmetic} arithmetic, threads {threads}, seed {seed}".format(**result)]
    lines += ["", f"{'':32s} {'trials':>7s} {'at bound':>9s} {'worst ratio':>14s} {'changed':>9s} {'misses':>7s}"]
    for heading in ("by_subject", "by_kind"):
        for name, row in {**result[heading]}.items():  # type: ignore[dict-item]
            lines.append(_line(name, row))
        lines.append("")
    lines += [_line("in all", result), "", *result["findings"]]  # type: ignore[misc]
    lines += [*result["computed_alone"]]  # type: ignore[misc]
    return "\n".join(lines)


def _line(name: str, row: dict[str, object]) -> str:
    return "{:32s} {trials:7d} {at_the_bound:9d} {worst_ratio:14.9f} {numbers_changed:9d} {misses:7d}".format(
        name, **row
    )


def machine() -> str:
    """Processor, threads and torch."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    processor = cpu[0] if cpu else platform.processor()
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def main() -> None:
    """Searches, prints progress to stderr and a table or JSON to stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="trials")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads, in turn")
    parser.add_argument(
        "--seed", type=int, default=0, help="of all trials; another seed gives another part of a search"
    )
    parser.add_argument("--arithmetic", choices=("product", "alone", "unfilled"), default="product")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    logging.getLogger("ghostnet.training.perceptual").setLevel(logging.ERROR)  # it says when nobody is left to release
    outcomes: list[Outcome] = []
    with arithmetic(arguments.arithmetic):
        for outcome in search(
            arguments.count, seed=arguments.seed, threads=arguments.threads, seconds=arguments.seconds
        ):
            outcomes.append(outcome)
            if outcome.is_a_miss or len(outcomes) % 500 == 0:
                worst, misses = max(o.moved for o in outcomes), sum(o.is_a_miss for o in outcomes)
                print(f"{len(outcomes)} trials, worst ratio {worst:.9f}, {misses} misses", file=sys.stderr, flush=True)
        alone = blocks.computed_alone()
    result = {
        "machine": machine(),
        "arithmetic": arguments.arithmetic,
        "threads": arguments.threads,
        "seed": arguments.seed,
        **summary(outcomes),
        "computed_alone": alone,
    }
    print(json.dumps(result, indent=2) if arguments.json else table(result))
    sys.exit(1 if result["misses"] else 0)


if __name__ == "__main__":
    main()
