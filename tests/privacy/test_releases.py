"""One noisy sum over patients. Statistical checks fail a correct build with probability < 1e-8 (|z| < 6)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ghostnet.errors import PlanError
from ghostnet.privacy import releases
from ghostnet.privacy.noise import SystemEntropy, grid_step
from ghostnet.privacy.releases import noisy_sum
from tests.entropy import SeededEntropy


class NoNoise(SeededEntropy):
    """Shows the sum as it was before the noise."""

    def __init__(self) -> None:
        super().__init__(0)

    def discrete_gaussian(self, n: int, std: float) -> NDArray[np.int64]:
        return np.zeros(n, dtype=np.int64)


def bare_sum(vectors: torch.Tensor, norm_bound: float = 1.0) -> torch.Tensor:
    return noisy_sum(vectors, norm_bound=norm_bound, noise_multiplier=1.0, entropy=NoNoise())


def test_short_rows_are_summed_as_they_are() -> None:
    rows = torch.tensor([[0.5, 0.25], [-0.125, 0.5], [0.0, 0.0]])
    assert torch.equal(bare_sum(rows), torch.tensor([0.375, 0.75]))


def test_a_long_row_is_scaled_to_the_norm_bound() -> None:
    assert torch.allclose(bare_sum(torch.tensor([[30.0, 40.0]]), 2.0), torch.tensor([1.2, 1.6]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_counts_as_zero(bad: float) -> None:
    rows = torch.tensor([[0.5, 0.5], [0.1, bad]])
    assert torch.equal(bare_sum(rows), torch.tensor([0.5, 0.5]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), patients=st.integers(0, 30), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e38]))
def test_one_extra_patient_moves_the_sum_by_at_most_norm_bound(seed: int, patients: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(patients + 1, 17, generator=generator) * scale
    rows[-1, seed % 17] = [scale, 3e38, float("nan"), 0.0][seed % 4]
    bound = 0.75
    moved = bare_sum(rows, bound).double() - bare_sum(rows[:-1], bound).double()
    float32_cast = 2.0**-24 * bound * 2 * (patients + 1)
    assert float(moved.norm()) <= bound * (1 + 1e-9) + float32_cast


def test_sensitivity_check_catches_a_sum_without_clip() -> None:
    rows = torch.full((1, 17), 3.0)
    assert float(rows.sum(dim=0).norm()) > 0.75 * (1 + 1e-5)


def test_the_sum_does_not_depend_on_the_order_or_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(200, 50, generator=generator) * torch.logspace(-6, 6, 200).unsqueeze(1)
    whole = release(rows)
    assert torch.equal(release(rows[torch.randperm(200, generator=generator)]), whole)
    monkeypatch.setattr(releases, "_CHUNK_NUMBERS", 150)
    assert torch.equal(release(rows), whole)


def test_float_sums_would_depend_on_the_order() -> None:
    rows = torch.tensor([[1.0], [2.0**-60], [-1.0]], dtype=torch.float64)
    assert not torch.equal((rows[0] + rows[1]) + rows[2], (rows[0] + rows[2]) + rows[1])


def test_noise_has_std_norm_bound_times_noise_multiplier() -> None:
    d = 200_000
    released = noisy_sum(torch.ones(3, d), norm_bound=2.5, noise_multiplier=1.6, entropy=SystemEntropy()).double()
    assert released.shape == (d,)
    centred = released - 3 * 2.5 / d**0.5
    z = float(((centred / 4.0).square().mean() - 1) / np.sqrt(2 / d))
    assert abs(z) < 6
    assert abs(float(((centred * 0.98 / 4.0).square().mean() - 1) / np.sqrt(2 / d))) > 6  # 2 % less would be caught


def test_no_patients_is_noise_alone() -> None:
    released = noisy_sum(torch.zeros(0, 1000), norm_bound=1.0, noise_multiplier=2.0, entropy=SystemEntropy())
    assert released.dtype == torch.float32
    assert 1.5 < float(released.std()) < 2.5
    assert noisy_sum(torch.zeros(4, 0), norm_bound=1.0, noise_multiplier=2.0, entropy=SystemEntropy()).shape == (0,)


def test_a_patient_of_zeros_is_the_same_release_as_no_patient() -> None:
    assert torch.equal(release(torch.zeros(1, 8)), release(torch.zeros(0, 8)))


def test_wide_float64_rows_do_not_overflow_the_norm() -> None:
    rows = torch.tensor([[1e300, 0.0], [1e-300, 0.0]], dtype=torch.float64)
    assert torch.equal(bare_sum(rows), torch.tensor([1.0, 0.0]))


def test_rows_are_left_as_they_were() -> None:
    rows = torch.tensor([[3.0, float("nan")], [3.0, 4.0]])
    before = rows.clone()
    release(rows)
    assert torch.equal(rows.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), True, 0])
def test_a_bound_or_noise_that_protects_nothing_is_refused(bad: float) -> None:
    with pytest.raises(PlanError, match="noise_multiplier"):
        noisy_sum(torch.zeros(2, 2), norm_bound=1.0, noise_multiplier=bad, entropy=SystemEntropy())
    with pytest.raises(PlanError, match="norm_bound"):
        noisy_sum(torch.zeros(2, 2), norm_bound=bad, noise_multiplier=1.0, entropy=SystemEntropy())


@pytest.mark.parametrize("vectors", [torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(2, 2, dtype=torch.int64)])
def test_something_else_than_a_float_matrix_is_refused(vectors: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="patients, d"):
        noisy_sum(vectors, norm_bound=1.0, noise_multiplier=1.0, entropy=SystemEntropy())


def test_rows_are_clipped_before_they_are_put_on_the_grid() -> None:
    rows = torch.randn(50, 400, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 9
    steps = releases._in_steps(rows, 1.0, grid_step(1.0))
    assert torch.equal(steps, steps.round())
    assert 1 - 1e-4 < float(steps.norm(dim=1).max()) * grid_step(1.0) <= 1
    assert torch.equal(steps.sign(), (rows * (steps != 0)).sign())


def release(rows: torch.Tensor) -> torch.Tensor:
    return noisy_sum(rows, norm_bound=1.0, noise_multiplier=1.0, entropy=SeededEntropy(5))


def test_blocks_give_the_sum_of_one_matrix_bit_for_bit() -> None:
    vectors = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    whole, parts = (
        noisy_sum(given, norm_bound=1.0, noise_multiplier=1.0, entropy=SeededEntropy(5))
        for given in (vectors, iter(vectors.split(8)))
    )
    assert torch.equal(whole, parts)


def test_no_block_or_blocks_of_two_widths_are_refused() -> None:
    for blocks in ([], [torch.zeros(2, 3), torch.zeros(2, 4)]):
        with pytest.raises(ValueError, match="give"):
            noisy_sum(iter(blocks), norm_bound=1.0, noise_multiplier=1.0, entropy=SeededEntropy(5))
