"""The adversarial steps at one hospital: the discriminator learns from patients under DP-SGD, the generator from it.

`train_round` is section 3 of the design, line by line. Private randomness (who is sampled, which of their images, in
which views, the noise) comes from `entropy`; everything else (the generator's noise, the fakes' labels and views) from
the plan's public seed and the step, and its amount never depends on the patients drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import pad

from ghostnet.accounting.catalogue import DISCRIMINATOR_STEPS
from ghostnet.errors import PlanError
from ghostnet.models import architecture
from ghostnet.plan import Plan, TrainingSpec
from ghostnet.privacy.mechanism import (
    PatientGradients,
    choose_rows,
    join_rows,
    sample_patients,
)
from ghostnet.privacy.noise import Entropy, grid_step
from ghostnet.privacy.penalised import InputPenalty, PenalisedGradients
from ghostnet.progress import Progress, silent
from ghostnet.training.cohort import Cohort
from ghostnet.training.losses import discriminator_loss, fakes_penalty, generator_loss
from ghostnet.training.perceptual import perceptual_loss, release_features
from ghostnet.training.release import release_step
from ghostnet.training.rollback import Watch
from ghostnet.training.warm_start import embedding_loss, high_frequency_residual

AddNoise = Callable[[int, dict[str, torch.Tensor]], dict[str, torch.Tensor]]

SHIFT_SHARE = 16  # a view is shifted by at most 1/16 of the image's side


@dataclass(frozen=True, kw_only=True)
class Optimizers:
    """Adam for each network."""

    generator: torch.optim.Adam
    discriminator: torch.optim.Adam


def train_round(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: Optimizers,
    cohort: Cohort,
    plan: Plan,
    *,
    first_step: int,
    steps: int,
    released_mean: torch.Tensor | None,
    entropy: Entropy,
    progress: Progress = silent,
    public_stream: int = 0,
    add_noise: AddNoise | None = None,
) -> None:
    """Runs one round of private adversarial steps; the networks are changed in place.

    Args:
        generator: on entry the weights that the server sent; on return the moving average that is sent back.
        discriminator: stays at the hospital.
        optimizers: of these two networks.
        cohort: SENSITIVE, the training patients.
        plan: `privacy.noise_multiplier` must be resolved (> 0).
        first_step: steps of the run that were done before this round.
        steps: discriminator steps of this round.
        released_mean: the warm start's release for the generator's feature matching, or None.
        entropy: source of sampling and noise.
        progress: told ("adversarial", steps done, steps).
        public_stream: number of this hospital, public, so that hospitals draw different fakes.
        add_noise: (step, clipped sum) -> noised sum; by default `release_step` with this plan's noise. Only a pooled
            federation's coordinator gives another: it has no patients, and adds the hospitals' noised total.

    Raises:
        PlanError: the discriminator cannot be trained privately, or the noise multiplier is not resolved.

    Guarantee:
        Unit: patient, add/remove one. Each step is a sampled Gaussian mechanism (q, sigma) with sensitivity
        clip_norm; the perceptual release, where the plan has one, is a Gaussian mechanism with sensitivity 1; the
        generator's steps are post-processing. Assumes: Poisson sampling with rate q.
        Not covered: a patient seen by two hospitals (see certificate.py), and time or memory that an observer of the
        hospital's machine could measure.
    """
    privacy, training, embedding = plan.privacy, plan.training, plan.embedding
    draw = partial(_draw, prior=plan.image.label_prior, latent=plan.model.latent)
    device = next(generator.parameters()).device
    gradients = patient_gradients(discriminator, plan)
    row_loss, adversarial_loss = discriminator_loss(training.loss), generator_loss(training.loss)
    average = copy.deepcopy(generator)
    generator.train()
    add_noise = add_noise or (lambda _, summed: release_step(DISCRIMINATOR_STEPS, summed, plan, entropy=entropy))

    # Once a round. Everything but the perceptual release is public.
    perceptual = None
    if first_step > 0 and plan.perceptual_releases:  # charged as PERCEPTUAL_FEATURES
        perceptual = release_features(discriminator, cohort, plan, entropy)
    with torch.no_grad():
        public = _public(plan.seed, public_stream, first_step, "watch")
        received = draw(copy.deepcopy(generator), training.generator_batch, public)  # (b, c, h, w), (b,)
    watch = Watch(generator, discriminator, *received, first_step)
    waited = 0  # discriminator steps since the generator's last one

    for step in range(first_step, first_step + steps):
        # Patients: each joins with probability q, with at most m images, each image in K views.
        sampled = sample_patients(cohort.patients, privacy.sampling_rate, entropy)  # (p,)
        index, groups = choose_rows(cohort.owners, sampled, privacy.images_per_patient, entropy)  # (r,), (r,)
        index, groups = (t.repeat_interleave(privacy.views) for t in (index, groups))  # (r K,)
        reals = _view(cohort.images[index], privacy.views, _private_draw(entropy))  # (r K, c, h, w)

        # Fakes: a public number of them, labels from the public prior, the same views.
        public = _public(plan.seed, public_stream, step, "fakes")
        with torch.no_grad():
            fakes, fake_labels = draw(generator, privacy.fakes, public)  # (F, c, h, w), (F,)
            fakes, fake_labels = (t.repeat_interleave(privacy.views, dim=0) for t in (fakes, fake_labels))
            fakes = _view(fakes, privacy.views, _public_draw(public))  # (F K, c, h, w)

        # Discriminator: clip each patient and each fake, add noise once.
        #   g = sum_p clip(g_p, C) + sum_f clip(g_f, C) + N(0, (sigma C)^2)
        rows = join_rows(
            images=reals.to(device),
            labels=cohort.labels[index].to(device),
            groups=groups.to(device),
            fakes=fakes,
            fake_labels=fake_labels,
            views=privacy.views,
        )
        summed = gradients.clipped_sum(
            rows,
            row_loss,
            clip_norm=privacy.clip_norm,
            physical_rows=training.physical_rows,
            grid_step=grid_step(DISCRIMINATOR_STEPS.noise_std(plan)),
        )
        noised = add_noise(step, summed)
        del reals, rows, summed
        step_discriminator(discriminator, optimizers.discriminator, noised, fakes, fake_labels, plan)

        # Generator, every n_D steps: fool the discriminator, match the releases. Post-processing: no real image.
        waited += 1
        due = not watch.stopped and _generator_is_due(
            discriminator, fakes, fake_labels, training, step=step, waited=waited
        )
        if due:
            waited = 0
            public = _public(plan.seed, public_stream, step, "generator")
            images, labels = draw(generator, training.generator_batch, public)  # (b, c, h, w), (b,)
            loss = adversarial_loss(discriminator(_view(images, privacy.views, _public_draw(public)), labels))
            if released_mean is not None and training.embedding_weight > 0:
                loss = loss + training.embedding_weight * embedding_loss(images, labels, released_mean, embedding)
            if training.detail_weight > 0:
                loss = loss + training.detail_weight * high_frequency_residual(images, embedding.feature_size)
            if perceptual is not None:
                loss = loss + training.perceptual_weight * perceptual_loss(images, labels, perceptual)
            if reason := watch.diverged(images, labels, loss):
                watch.roll_back(generator, average, discriminator, optimizers.generator, step=step, reason=reason)
            else:
                parameters = list(generator.parameters())
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                optimizers.generator.step()
                _move_average(average, generator, training.ema)
                watch.keep(average, discriminator, step)
        progress("adversarial", step + 1 - first_step, steps)
    generator.load_state_dict(watch.last_finite(average, step=first_step + steps).state_dict())


def private_views(images: torch.Tensor, views: int, entropy: Entropy) -> torch.Tensor:
    """One random view of each real row, drawn from `entropy`."""
    return _view(images, views, _private_draw(entropy))


def patient_gradients(discriminator: nn.Module, plan: Plan) -> PatientGradients | PenalisedGradients:
    """The way to a step's clipped sum: the fast one, or row by row where each patient's loss holds a penalty."""
    if plan.gradient_penalty != "patient":
        return PatientGradients(discriminator)
    penalty, weight = _input_penalty(plan), plan.training.gradient_penalty_weight
    return PenalisedGradients(discriminator, penalty=penalty, weight=weight)


def _input_penalty(plan: Plan) -> InputPenalty:
    """The kind of penalty that belongs to the plan's architecture.

    Raises:
        PlanError: its discriminator may have none.
    """
    penalty = architecture(plan.model.architecture).penalty
    if penalty is None:
        raise PlanError(
            f"training.gradient_penalty = {plan.training.gradient_penalty!r} is not for "
            f'{plan.model.architecture!r}; set training.gradient_penalty = "none"'
        )
    return penalty


def step_discriminator(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    noised: dict[str, torch.Tensor],
    fakes: torch.Tensor,
    fake_labels: torch.Tensor,
    plan: Plan,
) -> None:
    """One step of the discriminator from a noised sum; all of it is post-processing.

    Args:
        discriminator: changed in place.
        optimizer: of the discriminator.
        noised: by parameter name, from `release_step`.
        fakes: float (F, planes, h, w), those of the step; the gradient penalty is taken at them where the plan says so.
        fake_labels: int64 (F,).
        plan: denominator, penalty, and the bound on a WGAN critic's weights.
    """
    penalty: Sequence[torch.Tensor | float] = [0.0] * len(noised)
    if plan.gradient_penalty == "fakes":
        penalty = fakes_penalty(
            discriminator,
            fakes,
            fake_labels,
            penalty=_input_penalty(plan),
            weight=plan.training.gradient_penalty_weight,
            norm_bound=plan.privacy.clip_norm,
        )
    for (name, parameter), penalised in zip(discriminator.named_parameters(), penalty, strict=True):
        parameter.grad = noised[name].to(parameter.device) / plan.public_denominator + penalised
    optimizer.step()
    if (bound_weights := architecture(plan.model.architecture).bound_weights) is not None:
        bound_weights(discriminator, plan.training.weight_clip)


def public_labels(prior: tuple[float, ...], count: int, public: torch.Generator) -> torch.Tensor:
    """Labels in the proportions of the public prior: systematic sampling, each class within one of its exact share.

    Returns:
        int64 (count,), ascending.
    """
    places = (torch.arange(count, dtype=torch.float64) + torch.rand(1, generator=public, dtype=torch.float64)) / count
    edges = torch.tensor(prior, dtype=torch.float64).cumsum(0)[:-1]
    return torch.searchsorted(edges, places, right=True)


Draw = Callable[[int, int], torch.Tensor]  # (high, n) -> int64 (n,) in 0..high-1
_PURPOSES = ("fakes", "generator", "watch")


def _public(seed: int, stream: int, step: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose of a step: how many reals drew views cannot shift what fakes draw."""
    words = np.random.SeedSequence([seed, stream, step, _PURPOSES.index(purpose)]).generate_state(1)
    return torch.Generator().manual_seed(int(words[0]))


def _draw(
    generator: nn.Module, count: int, public: torch.Generator, *, prior: tuple[float, ...], latent: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fakes (count, c, h, w) and their labels (count,)."""
    device = next(generator.parameters()).device
    labels = public_labels(prior, count, public).to(device)
    z = torch.randn(count, latent, generator=public).to(device)
    return generator(z, labels), labels


def _generator_is_due(
    discriminator: nn.Module,
    fakes: torch.Tensor,
    labels: torch.Tensor,
    training: TrainingSpec,
    *,
    step: int,
    waited: int,
) -> bool:
    """True if the generator takes a step now.

    A fixed n_D counts steps. An adaptive one waits, between its least and its most, until the discriminator tells this
    step's fakes apart well enough (Bie et al. 2023). It never asks about reals: their accuracy is private.
    """
    if step < training.generator_delay:
        return False
    if training.discriminator_steps_most == 0:
        return (step + 1) % training.discriminator_steps == 0
    if training.discriminator_steps <= waited < training.discriminator_steps_most:
        with torch.no_grad():
            return bool((discriminator(fakes, labels) < 0).float().mean() >= training.fakes_accuracy)
    return waited >= training.discriminator_steps_most


def _public_draw(public: torch.Generator) -> Draw:
    """Views of fakes: from the public stream."""
    return lambda high, n: torch.randint(0, high, (n,), generator=public)


def _private_draw(entropy: Entropy) -> Draw:
    """Views of reals: a public stream, read row by row, would tie each patient's views to who was drawn before."""
    return lambda high, n: torch.from_numpy(entropy.integers(high, n))


def _view(images: torch.Tensor, views: int, draw: Draw) -> torch.Tensor:
    """One random view of each row: a shift, edges repeated; differentiable. With views = 1 the rows stay as they are.

    No flips: a mirrored chest is another anatomy.
    """
    if views == 1 or len(images) == 0:
        return images
    n, _, h, w = images.shape
    most = h // SHIFT_SHARE
    dy, dx = draw(2 * most + 1, 2 * n).reshape(2, n, 1).to(images.device)
    padded = pad(images, (most,) * 4, mode="replicate")
    y = (dy + torch.arange(h, device=images.device))[:, :, None]  # (n, h, 1)
    x = (dx + torch.arange(w, device=images.device))[:, None, :]  # (n, 1, w)
    row = torch.arange(n, device=images.device)[:, None, None]
    return padded[row, :, y, x].permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def _move_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Average <- decay average + (1 - decay) current, running statistics included."""
    now = current.state_dict()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(now[name], 1 - decay)
        else:
            tensor.copy_(now[name])
