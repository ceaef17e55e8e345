"""Wrong private steps that real systems ship, one function each, beside the right one.

Sources: Opacus's dcgan.py example (two forwards; fakes counted from the batch), APPFL #349 (batch clip), Opacus #80
(shuffled batches), Opacus privacy_engine.py (q and denominator from the data set), DeepMind and JAX-Privacy lists.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ghostnet.audit.sensitivity import StepInput
from ghostnet.privacy import kernels, mechanism
from ghostnet.privacy.groups import Groups, ParameterGradient, Tile
from ghostnet.privacy.mechanism import PatientGradients, Rows, join_rows, noised_sum, sample_patients
from ghostnet.privacy.noise import Entropy, from_grid, to_grid
from tests.privacy.networks import CancellingDiscriminator, SmallDiscriminator, build_small

PHYSICAL_ROWS = 8


def row_loss(logits: Tensor, real: Tensor) -> Tensor:
    """The non-saturating loss of the product."""
    return softplus(torch.where(real, -logits, logits))


def relativistic_loss(logits: Tensor, real: Tensor) -> Tensor:
    """Relativistic average loss: each row is compared with the mean of the other kind."""
    mean_real = (logits * real).sum() / real.sum().clamp(min=1)
    mean_fake = (logits * ~real).sum() / (~real).sum().clamp(min=1)
    return softplus(torch.where(real, mean_fake - logits, logits - mean_real))


class MinibatchStandardDeviation(SmallDiscriminator):
    """Adds the spread over the batch to every row's logit."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Logits (r,)."""
        return super().forward(images, labels) * (1 + images.std(0, unbiased=False).mean())


def step_rows(given: StepInput, fake_count: int | None = None) -> Rows:
    """Reals, then the public number of fakes."""
    count = given.fake_count if fake_count is None else fake_count
    return join_rows(
        images=given.images,
        labels=given.labels,
        groups=given.groups,
        fakes=given.fakes[:count],
        fake_labels=given.fake_labels[:count],
    )


def finite_patients(given: StepInput) -> StepInput:
    """The input without patients that have a pixel which is not finite.

    In a plain backward one row of NaN makes every row's gradient NaN (0 x NaN in the sum over rows), which would hide
    what the planted bug does by itself.
    """
    bad = given.groups[~given.images.flatten(1).isfinite().all(1)]
    keep = ~torch.isin(given.groups, bad)
    _, groups = given.groups[keep].unique(return_inverse=True)
    return replace(given, images=given.images[keep], labels=given.labels[keep], groups=groups)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """One vector."""
    return torch.cat([t.flatten() for t in tensors.values()])


class Clean:
    """The product's own step and sampler: what each bug changes one piece of."""

    def __init__(self) -> None:
        self.discriminator: nn.Module = build_small()
        self.row_loss = row_loss

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Sum before noise (d,)."""
        gradients = PatientGradients(self.discriminator)
        return flat(
            gradients.clipped_sum(step_rows(given), self.row_loss, clip_norm=clip_norm, physical_rows=PHYSICAL_ROWS)
        )

    def noised_sum(self, given: StepInput, clip_norm: float, noise_multiplier: float, entropy: Entropy) -> Tensor:
        """Released sum (d,)."""
        std = clip_norm * noise_multiplier
        on_grid = from_grid(to_grid(self.clipped_sum(given, clip_norm), std=std), std=std)  # a sum made for no noise
        summed = {"all": on_grid}
        return flat(noised_sum(summed, clip_norm=clip_norm, noise_multiplier=noise_multiplier, entropy=entropy))

    def sample(self, patients: int, sampling_rate: float, steps: int, entropy: Entropy) -> Sequence[Tensor]:
        """Sampled patients of each step."""
        return [sample_patients(patients, sampling_rate, entropy) for _ in range(steps)]


class NoNoise(Clean):
    """Clips, and forgets the noise."""

    def noised_sum(self, given: StepInput, clip_norm: float, noise_multiplier: float, entropy: Entropy) -> Tensor:
        """The bare sum."""
        return self.clipped_sum(given, clip_norm)


@dataclass
class ScaledNoise(Clean):
    """Noise of another size than accounted."""

    factor: Callable[[StepInput], float]
    row_loss: Callable[[Tensor, Tensor], Tensor] = field(default=row_loss)

    def __post_init__(self) -> None:
        self.discriminator = build_small()

    def noised_sum(self, given: StepInput, clip_norm: float, noise_multiplier: float, entropy: Entropy) -> Tensor:
        """Too little noise."""
        return super().noised_sum(given, clip_norm, noise_multiplier * self.factor(given), entropy)


def rows_in(given: StepInput) -> int:
    """Rows of a step."""
    return len(given.images) + given.fake_count


class SameNoise(Clean):
    """Draws the noise once and keeps it, as a fixed seed does."""

    noise: Tensor | None = None

    def noised_sum(self, given: StepInput, clip_norm: float, noise_multiplier: float, entropy: Entropy) -> Tensor:
        """Sum plus the noise of the first step."""
        summed = self.clipped_sum(given, clip_norm)
        if self.noise is None:
            self.noise = entropy.gaussian((len(summed),), 1.0)
        return summed + self.noise * clip_norm * noise_multiplier


class OwnGradients(Clean):
    """Right, but with per-row gradients by a plain loop: the clean twin of the bugs that the product's code refuses."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Mean over a patient's rows, then the clip, then the sum."""
        return clip_rows(self.group_means(step_rows(finite_patients(given))), clip_norm).sum(0)

    def group_means(self, rows: Rows) -> Tensor:
        """Mean gradient of each patient and fake (groups, d)."""
        gradients = self.row_gradients(rows)
        return torch.stack([gradients[rows.groups == group].mean(0) for group in range(rows.group_count)])

    def row_gradients(self, rows: Rows) -> Tensor:
        """One gradient a row, (r, d), of the losses of ONE forward over all rows."""
        logits = self.discriminator(rows.images, rows.labels)
        return self.gradients_of(self.row_loss(logits, rows.real))

    def gradients_of(self, losses: Tensor) -> Tensor:
        """Gradient of each loss (r, d)."""
        parameters = list(self.discriminator.parameters())
        grads = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses]
        size = sum(p.numel() for p in parameters)
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in grads]) if grads else torch.zeros(0, size)


def clip_rows(gradients: Tensor, clip_norm: float) -> Tensor:
    """Each row to at most clip_norm, non-finite rows to zero."""
    gradients = torch.where(gradients.isfinite().all(1, keepdim=True), gradients, 0.0).double()
    norms = gradients.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return gradients * (clip_norm / norms).clamp(max=1.0)


class Cancelling(Clean):
    """The product's step under a discriminator that is made to harm: some patients' rows cancel, huge as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = CancellingDiscriminator()


class NoRoundingReserve(Cancelling):
    """Measures a patient's summed gradient, and then sums all patients' rows anew."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Right in exact arithmetic; the self-test of blocks, which would notice, is left out."""
        with (
            mock.patch.object(kernels, "outer_products", sums_rows_anew),
            mock.patch.object(mechanism, "_is_invariant", return_value=True),
        ):
            return super().clipped_sum(given, clip_norm)


def sums_rows_anew(x: Tensor, g: Tensor, groups: Groups) -> ParameterGradient:
    """As `groups.outer_products`, in one product over all rows, whose numbers swallow each other."""
    per_row = (g @ x.transpose(1, 2)).flatten(1)  # (r, out in)
    own = groups.sum(per_row, torch.empty_like(per_row))
    matrix = g.shape[1], x.shape[1]

    def scaled(factors: Tensor) -> Iterator[Tile]:
        weighted = (g * factors.to(g.dtype)[groups.ids, None, None]).transpose(0, 1).flatten(1)  # (out, r t)
        values = torch.zeros_like(per_row)
        values[0] = (weighted @ x.transpose(0, 1).flatten(1).T).flatten()
        yield Tile(rows=slice(0, matrix[0]), columns=slice(0, matrix[1]), values=values)

    return ParameterGradient(matrix=matrix, squared_norm=own.double().square().sum(1), scaled=scaled)


class NoClip(OwnGradients):
    """Sums patients' mean gradients as they are."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Unbounded."""
        return clip_rows(self.group_means(step_rows(finite_patients(given))), 1e12).sum(0)


class BatchClip(OwnGradients):
    """Clips the batch's mean gradient instead of each patient's."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """The mean is within C; the sum that it stands for is not."""
        gradients = clip_rows(self.group_means(step_rows(finite_patients(given))), 1e12)
        return clip_rows(gradients.mean(0, keepdim=True), clip_norm)[0] * len(gradients)


class ImageClip(OwnGradients):
    """Clips every image, so that a patient with k images counts k times."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Sensitivity k C."""
        return clip_rows(self.row_gradients(step_rows(finite_patients(given))), clip_norm).sum(0)


class TwoForwards(OwnGradients):
    """One forward on reals, one on a fixed number of fakes; row i of both is clipped as one, as Opacus's hooks do."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Sensitivity 2 C: one real more re-pairs a fake that stood alone."""
        means = self.group_means(
            step_rows(finite_patients(given))
        )  # patients' means, so that only the pairing is wrong
        reals, fakes = means[: -given.fake_count], means[-given.fake_count :]
        pairs = torch.zeros(max(len(reals), len(fakes)), means.shape[1])
        pairs[: len(reals)] += reals
        pairs[: len(fakes)] += fakes
        return clip_rows(pairs, clip_norm).sum(0)


class FakesSizedByReals(Clean):
    """As many fakes as there are reals."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Sensitivity up to 2 C: each patient brings fakes along."""
        rows = step_rows(given, min(len(given.images), len(given.fakes)))
        gradients = PatientGradients(self.discriminator)
        return flat(gradients.clipped_sum(rows, self.row_loss, clip_norm=clip_norm, physical_rows=PHYSICAL_ROWS))


class CoupledNetwork(OwnGradients):
    """A discriminator with minibatch standard deviation; each patient clipped to C, but all of them move."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.discriminator = MinibatchStandardDeviation()


class CoupledLoss(OwnGradients):
    """The relativistic average loss; each patient clipped to C, but all of them move."""

    def __init__(self) -> None:
        super().__init__()
        self.row_loss = relativistic_loss


class ViewsByRow(Clean):
    """Augments row i with the i-th shift of a public seed, so that one patient more re-augments all later rows."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Each clipped to C, but all later ones move."""
        shifts = torch.randint(0, 8, (len(given.images),), generator=torch.Generator().manual_seed(0)).tolist()
        views = [image.roll(shift, -1) for image, shift in zip(given.images, shifts, strict=True)]
        images = torch.stack(views) if views else given.images
        return super().clipped_sum(replace(given, images=images), clip_norm)


class FakesDropped(Clean):
    """The fakes' gradients are lost, as where an optimiser overwrites p.grad with the reals' sum."""

    def clipped_sum(self, given: StepInput, clip_norm: float) -> Tensor:
        """Reals alone."""
        rows = step_rows(given, 0)
        gradients = PatientGradients(self.discriminator)
        return flat(gradients.clipped_sum(rows, self.row_loss, clip_norm=clip_norm, physical_rows=PHYSICAL_ROWS))


class Shuffled(Clean):
    """Epochs of shuffled, fixed-size batches, accounted as Poisson sampling."""

    def sample(self, patients: int, sampling_rate: float, steps: int, entropy: Entropy) -> Sequence[Tensor]:
        """Every patient once an epoch."""
        size, order, batches = int(patients * sampling_rate), torch.zeros(0, dtype=torch.int64), []
        for _ in range(steps):
            if len(order) < size:
                order = torch.from_numpy(entropy.uniform(patients).argsort())
            batches.append(order[:size])
            order = order[size:]
        return batches


class OtherRate(Clean):
    """Samples at another rate than is accounted."""

    def sample(self, patients: int, sampling_rate: float, steps: int, entropy: Entropy) -> Sequence[Tensor]:
        """Twice the rate."""
        return super().sample(patients, 2 * sampling_rate, steps, entropy)
