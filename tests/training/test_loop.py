"""The loop of a round: what is noised, what is public, what is sent, and what survives a restart."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ghostnet.errors import PlanError, SiteError
from ghostnet.exchange.arrays import load_arrays, to_arrays
from ghostnet.models import build_generator
from ghostnet.training import loop
from ghostnet.training.cohort import Cohort
from ghostnet.training.loop import public_labels, train_round
from ghostnet.training.state import LocalState
from ghostnet.training.warm_start import high_frequency_residual, patient_embeddings
from tests.entropy import SeededEntropy
from tests.plans import tiny_plan

BASE = tiny_plan()


def plan_with(**changes):
    """The tiny plan with changes by table: privacy={...}, training={...}."""
    changes.setdefault("privacy", {}).setdefault("noise_multiplier", 1.0)
    return dataclasses.replace(BASE, **{t: dataclasses.replace(getattr(BASE, t), **v) for t, v in changes.items()})


def cohort(patients: int = 20, seed: int = 0) -> Cohort:
    public = torch.Generator().manual_seed(seed)
    owners = torch.arange(2 * patients) // 2
    images = torch.rand(2 * patients, 1, 28, 28, generator=public) * 2 - 1
    return Cohort(images=images, labels=owners % 2, owners=owners, patients=patients)


def run(plan, data=None, *, state=None, entropy=0, steps=4, first_step=0, release=None, **rest) -> LocalState:
    state = state or LocalState(plan)
    train_round(
        state.generator, state.discriminator, state.optimizers, data or cohort(), plan,
        first_step=first_step, steps=steps, released_mean=release, entropy=SeededEntropy(entropy), **rest,
    )  # fmt: skip
    state.step = first_step + steps
    return state


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two networks have the same weights and running statistics."""
    a, b = to_arrays(first), to_arrays(second)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class TellingEntropy(SeededEntropy):
    """Also notes the std of every noise tensor."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.stds: list[float] = []

    def discrete_gaussian(self, n, std):
        """Notes and draws."""
        self.stds.append(std)
        return super().discrete_gaussian(n, std)


def test_a_round_moves_both_networks_and_reports_public_progress_only():
    plan, seen = plan_with(), []
    state = run(plan, progress=lambda *a: seen.append(a))
    fresh = LocalState(plan)
    assert not same(state.discriminator, fresh.discriminator)
    assert not same(state.generator, fresh.generator)
    assert seen == [("adversarial", i, 4) for i in range(1, 5)]


def test_same_seed_and_entropy_repeat_a_round_and_other_entropy_changes_it():
    plan = plan_with()
    assert same(run(plan).generator, run(plan).generator)
    assert not same(run(plan).discriminator, run(plan, entropy=1).discriminator)


def test_a_step_without_noise_is_refused():
    with pytest.raises(PlanError):
        run(plan_with(privacy={"noise_multiplier": 0.0}))


def test_every_step_draws_noise_once_for_each_weight_tensor():
    plan, entropy = plan_with(privacy={"noise_multiplier": 1.5, "clip_norm": 0.5}), TellingEntropy(0)
    state = LocalState(plan)
    train_round(
        state.generator, state.discriminator, state.optimizers, cohort(), plan,
        first_step=0, steps=3, released_mean=None, entropy=entropy,
    )  # fmt: skip
    assert len(entropy.stds) == 3 * len(list(state.discriminator.parameters()))


def test_an_empty_cohort_still_takes_noisy_steps():
    none = torch.zeros(0, dtype=torch.long)
    empty = Cohort(images=torch.zeros(0, 1, 28, 28), labels=none, owners=none, patients=0)
    plan = plan_with(privacy={"views": 2})
    state = run(plan, empty)
    assert not same(state.discriminator, LocalState(plan).discriminator)
    assert all(torch.isfinite(p).all() for p in state.discriminator.parameters())


def test_a_patient_with_non_finite_pixels_does_not_reach_the_weights():
    data = cohort()
    data.images[7] = float("nan")
    plan = plan_with(privacy={"sampling_rate": 1.0})
    state = run(plan, data)
    for network in (state.generator, state.discriminator):
        assert all(torch.isfinite(t).all() for t in network.state_dict().values())


@pytest.mark.parametrize("views", [1, 3])
def test_rows_of_a_step_hold_every_view_of_a_patient_in_one_group_and_a_public_number_of_fakes(monkeypatch, views):
    rows = []

    class Watched(loop.PatientGradients):
        def clipped_sum(self, batch, *args, **kwargs):
            rows.append(batch)
            return super().clipped_sum(batch, *args, **kwargs)

    monkeypatch.setattr(loop, "PatientGradients", Watched)
    run(plan_with(privacy={"views": views, "sampling_rate": 1.0, "fakes": 5}))
    for batch in rows:
        assert batch.group_count == 20 + 5
        assert int(batch.real.sum()) == 20 * 2 * views
        sizes = torch.bincount(batch.groups)
        assert sizes[:20].tolist() == [2 * views] * 20
        assert sizes[20:].tolist() == [views] * 5


def test_fakes_of_a_step_do_not_depend_on_the_patients(monkeypatch):
    def fakes(data):
        kept = []
        real = loop.join_rows

        def watched(**parts):
            kept.append(parts["fakes"].clone())
            return real(**parts)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "join_rows", watched)
            run(plan_with(privacy={"views": 2}, training={"generator_delay": 100}), data)
        return torch.stack(kept)

    assert torch.equal(fakes(cohort(20)), fakes(cohort(7, seed=3)))


def test_hospitals_with_their_own_public_stream_draw_other_fakes():
    plan = plan_with()
    assert not same(run(plan, public_stream=0).discriminator, run(plan, public_stream=1).discriminator)


def test_generator_rests_during_its_delay_and_then_steps_every_n_d():
    plan = plan_with(training={"generator_delay": 4, "discriminator_steps": 2})
    start = LocalState(plan).generator
    early = run(plan, steps=4)
    assert all(torch.equal(a, b) for a, b in zip(early.generator.parameters(), start.parameters(), strict=True))
    late = run(plan, state=early, first_step=4, steps=5)
    steps = late.optimizers.generator.state[next(late.generator.parameters())]["step"]
    assert int(steps) == 2  # of steps 4..8: 5 and 7


def test_what_is_sent_is_the_moving_average_of_the_generator():
    quick, slow = plan_with(training={"ema": 0.0}), plan_with(training={"ema": 0.9})
    start = next(LocalState(quick).generator.parameters())
    moved = next(run(quick, steps=2).generator.parameters()) - start
    averaged = next(run(slow, steps=2).generator.parameters()) - start
    assert moved.abs().max() > 0
    assert torch.allclose(averaged, 0.1 * moved, atol=1e-7)  # one generator step: 0.9 old + 0.1 new


def test_embedding_weight_pulls_the_generator_towards_the_release():
    quick = {"discriminator_steps": 1, "ema": 0.0, "learning_rate_generator": 5e-3, "embedding_weight": 1e4}
    plan = plan_with(training=quick)
    data = Cohort(
        images=torch.full((40, 1, 28, 28), 0.9), labels=torch.arange(40) % 2, owners=torch.arange(40), patients=40
    )
    release = patient_embeddings(data, plan.embedding, plan.privacy.images_per_patient).sum(0)
    assert len(release) == plan.embedding.size

    def brightness(given):
        state = run(plan, cohort(), steps=16, release=given)
        return state.generator.eval()(torch.zeros(2, 8), torch.tensor([0, 1])).mean()

    assert brightness(release) > brightness(None) + 0.1


def test_detail_weight_takes_detail_finer_than_the_release_away():
    def detail(weight):
        given = {"discriminator_steps": 1, "ema": 0.0, "learning_rate_generator": 5e-3, "detail_weight": weight}
        plan = plan_with(training=given, warm_start={"feature_size": 7})
        generator = run(plan, steps=12).generator.eval()
        with torch.no_grad():
            images = generator(torch.randn(20, 8), torch.arange(20) % 2)
            return high_frequency_residual(images, plan.warm_start.feature_size)

    assert detail(1e4) < 0.5 * detail(0.0)


def test_labels_of_fakes_follow_the_public_prior_to_within_one():
    public = torch.Generator().manual_seed(0)
    for _ in range(20):
        counts = torch.bincount(public_labels((0.5, 0.3, 0.2), 64, public), minlength=3)
        assert (counts - 64 * torch.tensor([0.5, 0.3, 0.2])).abs().max() <= 1
    assert public_labels((1.0,), 5, public).tolist() == [0] * 5


def test_views_shift_within_a_sixteenth_and_one_view_is_the_image():
    image = torch.zeros(8, 1, 32, 32)
    image[:, :, 16, 16] = 1
    seen = loop._view(image, 2, loop._public_draw(torch.Generator().manual_seed(0)))
    places = seen[:, 0].flatten(1).argmax(1)
    offsets = torch.stack([places // 32 - 16, places % 32 - 16])
    assert offsets.abs().max() <= 2
    assert len(places.unique()) > 2
    assert loop._view(image, 1, loop._public_draw(torch.Generator())) is image


def test_saved_state_continues_exactly_where_it_stopped(tmp_path):
    plan = plan_with()
    first = run(plan, steps=2)
    first.save_state(tmp_path / "state.safetensors")
    sent = to_arrays(first.generator)
    restored = LocalState(plan)
    restored.load_state(tmp_path / "state.safetensors")
    load_arrays(restored.generator, sent)
    assert restored.step == 2
    kept, back = (run(plan, state=s, first_step=2, steps=2, entropy=9) for s in (first, restored))
    assert same(kept.discriminator, back.discriminator)
    assert same(kept.generator, back.generator)


def test_a_fresh_state_saves_and_loads(tmp_path):
    plan = plan_with()
    state = LocalState(plan)
    state.save_state(tmp_path / "state")
    other = LocalState(plan)
    other.load_state(tmp_path / "state")
    assert same(state.discriminator, other.discriminator)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _poison(path):
    tensors = load_file(path)
    name = next(n for n in tensors if tensors[n].numel() > 1)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path, {"plan": plan_with().hash(), "step": "2"})


def _drop(path):
    tensors = load_file(path)
    del tensors[next(iter(tensors))]
    save_file(tensors, path, {"plan": plan_with().hash(), "step": "2"})


def _other_plan(path):
    save_file(load_file(path), path, {"plan": "0" * 64, "step": "2"})


def _remove(path):
    path.unlink()


@pytest.mark.parametrize("spoil", [_truncate, _poison, _drop, _other_plan, _remove])
def test_a_damaged_state_is_refused_in_one_line_and_changes_nothing(tmp_path, spoil):
    plan, path = plan_with(), tmp_path / "state"
    run(plan, steps=2).save_state(path)
    spoil(path)
    state = LocalState(plan)
    before = copy.deepcopy(state.discriminator)
    with pytest.raises(SiteError) as caught:
        state.load_state(path)
    assert "\n" not in str(caught.value)
    assert same(before, state.discriminator)
    assert state.step == 0


def test_discriminator_of_a_round_carries_no_hooks_afterwards():
    state = run(plan_with())
    assert not any(m._forward_hooks or m._backward_hooks for m in state.discriminator.modules())


def test_the_global_seed_plays_no_part():
    plan = plan_with()
    torch.manual_seed(1)
    first = run(plan)
    torch.manual_seed(2)
    assert same(first.generator, run(plan).generator)
    assert same(build_generator(plan.networks), LocalState(plan).generator)


def test_the_views_of_real_images_are_drawn_privately_and_not_from_the_plans_seed(monkeypatch):
    """A public stream, read row by row, would give a patient other views when another patient comes before them."""
    image = torch.zeros(20, 1, 28, 28)
    image[:, :, 14, 14] = 1
    alike = Cohort(images=image, labels=torch.zeros(20, dtype=torch.int64), owners=torch.arange(20), patients=20)
    seen = []
    original = loop.join_rows
    monkeypatch.setattr(loop, "join_rows", lambda **rows: (seen.append(rows), original(**rows))[1])
    plan = plan_with(privacy={"views": 2, "sampling_rate": 1.0})
    for entropy in (1, 2):
        run(plan, alike, steps=1, entropy=entropy)
    assert not torch.equal(seen[0]["images"], seen[1]["images"])
    assert torch.equal(seen[0]["fake_labels"], seen[1]["fake_labels"])
