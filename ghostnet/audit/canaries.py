"""Canaries: patients made to show in a hospital's release as much as the clip allows, each at a place of its own.

The audit build puts a port beside the discriminator, one more linear layer that only canaries' rows reach. The
gradient of canary i is K e_i there and 0 everywhere else, with K = 10 C so that the clip binds; a clean step turns it
into C e_i. What a step releases at coordinate i is then N(0, (sigma C)^2) for a canary that is out, and C Bernoulli(q)
more for one that is in. No canary meets another, and nothing tells more about one patient than this.

The step under audit is the hospital's own loop, called as the hospital calls it; an optimiser that takes notes sees
what it releases. All images are drawn (`ghostnet.training.phantom`); an audit touches no patient.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ghostnet.models import build_discriminator, build_generator
from ghostnet.plan import (
    FederationSpec,
    ImageSpec,
    ModelSpec,
    Plan,
    PrivacySpec,
    TrainingSpec,
    UtilitySpec,
    WarmStartSpec,
)
from ghostnet.privacy.layers import row_independent
from ghostnet.privacy.noise import Entropy
from ghostnet.progress import Progress, silent
from ghostnet.training import phantom
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import AddNoise, Optimizers

OVERSHOOT = 10.0  # K over C; at K <= C a step that forgets to clip would pass
SIZE = 28
CLASSES = phantom.LABELS


class TrainRound(Protocol):
    """The hospital's loop of private steps; `ghostnet.training.loop.train_round` is the one that hospitals run."""

    def __call__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        optimizers: Optimizers,
        cohort: Cohort,
        plan: Plan,
        *,
        first_step: int,
        steps: int,
        released_mean: Tensor | None,
        entropy: Entropy,
        progress: Progress = silent,
        add_noise: AddNoise | None = None,
    ) -> None:
        """See `ghostnet.training.loop.train_round`."""
        ...


@row_independent
class DiscriminatorWithPort(nn.Module):
    """A discriminator, and the port: rows labelled CLASSES + i are canary i and reach the port alone.

    Args:
        network: the plan's discriminator.
        canaries: width of the port.
        gradient: K, the norm of a canary's gradient under the non-saturating loss at logit 0.
    """

    def __init__(self, network: nn.Module, canaries: int, gradient: float) -> None:
        super().__init__()
        self.network = network
        self.port = nn.Linear(canaries, 1, bias=False)
        self.gradient = gradient
        nn.init.zeros_(self.port.weight)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits (r,)."""
        canary = labels - len(CLASSES)
        is_canary = canary >= 0
        place = F.one_hot(canary.clamp(min=0), self.port.in_features) * is_canary[:, None]  # (r, m)
        at_port = -2 * self.gradient * self.port(place.to(images.dtype))[:, 0]  # softplus'(0) = 1/2
        return torch.where(is_canary, at_port, self.network(images, labels.clamp(max=len(CLASSES) - 1)))


class CoinsWithoutNoise:
    """Real coins, no noise: shows who took part in a step. For synthetic patients only."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def uniform(self, n: int) -> NDArray[np.float64]:
        """See `Entropy.uniform`."""
        return self._entropy.uniform(n)

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """See `Entropy.integers`."""
        return self._entropy.integers(high, n)

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        """Zeros."""
        return np.zeros(n, np.int64)

    def gaussian(self, shape: tuple[int, ...], std: float) -> Tensor:
        """Zeros."""
        return torch.zeros(shape)


class NoEntropy(CoinsWithoutNoise):
    """The same coin for everyone and no noise, so that only the patients differ between two calls."""

    def __init__(self) -> None:
        pass

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Zeros: each joins."""
        return np.zeros(n)

    def integers(self, high: int, n: int) -> NDArray[np.int64]:
        """Zeros."""
        return np.zeros(n, np.int64)


def audit_plan(*, sampling_rate: float, noise_multiplier: float, steps: int, patients: int) -> Plan:
    """A plan with small networks and the loop's every part, for `patients` synthetic patients."""
    return Plan(
        name="audit",
        image=ImageSpec(size=SIZE, labels=CLASSES, label_prior=(0.5, 0.5)),
        model=ModelSpec(latent=4, generator_width=4, discriminator_width=4),
        privacy=PrivacySpec(
            epsilon=1000.0,  # no budget is enforced here; the claim is what is audited
            delta=1e-6,
            clip_norm=0.5,  # not 1, at which a forgotten factor C would not show
            sampling_rate=sampling_rate,
            steps=steps,
            noise_multiplier=noise_multiplier,
            fakes=8,
        ),
        warm_start=WarmStartSpec(noise_multiplier=0.0),
        training=TrainingSpec(discriminator_steps=20, generator_batch=8, embedding_weight=0.0, physical_rows=128),
        federation=FederationSpec(patients=patients),
        utility=UtilitySpec(noise_multiplier=0.0),
    )


@lru_cache(maxsize=4)  # 5 ms an image; nobody writes to it
def phantom_cohort(patients: int, *, seed: int = 0) -> Cohort:
    """Drawn radiographs of patients with one to three images each; images (n, 1, 28, 28) in [-1,1]."""
    rng = np.random.default_rng(seed)
    images, labels, owners = [], [], []
    for patient in range(patients):
        anatomy, label = phantom.draw_anatomy(rng), patient % len(CLASSES)
        for _ in range(1 + patient % 3):
            images.append(2 * phantom.radiograph(anatomy, rng, SIZE, CLASSES[label]).image[None] - 1)
            labels.append(label)
            owners.append(patient)
    return Cohort(
        images=torch.from_numpy(np.stack(images)) if images else torch.zeros(0, 1, SIZE, SIZE),
        labels=torch.tensor(labels, dtype=torch.int64),
        owners=torch.tensor(owners, dtype=torch.int64),
        patients=patients,
    )


def with_canaries(cohort: Cohort, included: NDArray[np.bool_], images_each: int) -> Cohort:
    """The cohort and the canaries that are in, as patients with `images_each` blank images."""
    canaries = torch.from_numpy(np.flatnonzero(included)).repeat_interleave(images_each)
    owners = torch.arange(int(included.sum())).repeat_interleave(images_each)
    return Cohort(
        images=torch.cat([cohort.images, torch.zeros(len(canaries), 1, SIZE, SIZE)]),
        labels=torch.cat([cohort.labels, canaries + len(CLASSES)]),
        owners=torch.cat([cohort.owners, owners + cohort.patients]),
        patients=cohort.patients + int(included.sum()),
    )


class FixedFakes(nn.Module):
    """A generator whose fakes are given, so that a patient can be placed against them; public, as all fakes are."""

    def __init__(self, fakes: Tensor) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # an optimiser and a device need one
        self.fakes = fakes

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """The first fakes, (b, c, h, w)."""
        return self.fakes[: len(z)]


def build_networks(plan: Plan, canaries: int) -> tuple[nn.Module, DiscriminatorWithPort]:
    """Generator, and discriminator with its port; the same for the same plan, and no global seed is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        generator, network = build_generator(plan.networks), build_discriminator(plan.networks)
    return generator, DiscriminatorWithPort(network, canaries, OVERSHOOT * plan.privacy.clip_norm)


def idle_optimizers(generator: nn.Module, discriminator: nn.Module) -> Optimizers:
    """Optimisers that leave both networks as they are."""
    return Optimizers(
        generator=torch.optim.Adam(generator.parameters(), 0.0),
        discriminator=torch.optim.Adam(discriminator.parameters(), 0.0),
    )


def released_sums(
    train_round: TrainRound,
    generator: nn.Module,
    discriminator: nn.Module,
    cohort: Cohort,
    plan: Plan,
    *,
    first_step: int = 0,
    steps: int,
    entropy: Entropy,
    learning_rate: float = 0.0,
    progress: Progress = silent,
) -> list[dict[str, Tensor]]:
    """Runs the hospital's loop and notes each noised sum that it gives its discriminator's optimiser.

    Args:
        train_round: the loop under audit.
        generator: of the loop.
        discriminator: of the loop; a port is put back to zero after each step, so that canaries' gradients stay K.
        cohort: synthetic patients.
        plan: from `audit_plan`.
        first_step: steps that were done before.
        steps: from there on.
        entropy: handed to the loop.
        learning_rate: of the discriminator; 0 leaves it as it is.
        progress: handed to the loop.

    Returns:
        For each step the sum by parameter name, in units of C; of a discriminator with a port, the port's alone.
    """
    scale = plan.public_denominator / plan.privacy.clip_norm
    port = getattr(discriminator, "port", None)
    noted: list[dict[str, Tensor]] = []

    def note(*_: Any) -> None:
        gradients = {name: p.grad for name, p in discriminator.named_parameters() if port is None or p is port.weight}
        noted.append({name: g.detach() * scale for name, g in gradients.items() if g is not None})

    def put_back(*_: Any) -> None:
        if port is not None:
            nn.init.zeros_(port.weight)

    betas = (plan.training.beta1, plan.training.beta2)
    optimizers = Optimizers(
        generator=torch.optim.Adam(generator.parameters(), plan.training.learning_rate_generator, betas=betas),
        discriminator=torch.optim.Adam(discriminator.parameters(), learning_rate, betas=betas),
    )
    optimizers.discriminator.register_step_pre_hook(note)
    optimizers.discriminator.register_step_post_hook(put_back)
    train_round(
        generator,
        discriminator,
        optimizers,
        cohort,
        plan,
        first_step=first_step,
        steps=steps,
        released_mean=None,
        entropy=entropy,
        progress=progress,
    )
    return noted


def canary_releases(
    train_round: TrainRound,
    plan: Plan,
    cohort: Cohort,
    *,
    canaries: int,
    entropy: Entropy,
    progress: Progress = silent,
) -> NDArray[np.float64]:
    """The values that all steps of a plan release at the canaries' coordinates, (steps, canaries), in units of C.

    Args:
        train_round: the loop under audit.
        plan: from `audit_plan`.
        cohort: from `with_canaries`.
        canaries: m, those in and those out.
        entropy: handed to the loop.
        progress: handed to the loop.
    """
    generator, discriminator = build_networks(plan, canaries)
    noted = released_sums(
        train_round,
        generator,
        discriminator,
        cohort,
        plan,
        steps=plan.privacy.steps,
        entropy=entropy,
        learning_rate=plan.training.learning_rate_discriminator,
        progress=progress,
    )
    at_port = [step["port.weight"][0].numpy() for step in noted]
    return np.stack(at_port).astype(np.float64) if at_port else np.zeros((0, canaries))
