"""Everything heavy runs on the one device that was named, with the CPU's numbers, and private sums in whole float32."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.config import load_site
from client.site import Site
from ghostnet.errors import SiteError
from ghostnet.exchange import pooled
from ghostnet.exchange.arrays import to_arrays
from ghostnet.models import build_discriminator, build_generator
from ghostnet.privacy import mechanism, precision
from ghostnet.privacy.blocks import row_by_row
from ghostnet.privacy.mechanism import PatientGradients, join_rows
from ghostnet.sampler.folder import sampler_config
from ghostnet.sampler.sampler import Sampler
from ghostnet.simulation.partition import write_sites
from ghostnet.training import loop, warm_start
from ghostnet.training.device import find_device
from ghostnet.training.loop import train_round
from ghostnet.training.state import LocalState
from ghostnet.utility import classification
from ghostnet.utility.classification import patient_counts, score_edges
from ghostnet.utility.synthetic import Synthetic, train_on_synthetic
from ghostnet.utility.task import task_spec
from tests.elsewhere import DEVICE, elsewhere
from tests.entropy import SeededEntropy
from tests.networks import network_plan, plan_cohort
from tests.plans import tiny_plan_text

pytestmark = pytest.mark.usefixtures("one_thread")

Numbers = dict[str, np.ndarray]
NO_GPU = not torch.cuda.is_available()
SITE = """
name = "north"
[data]
kind = "npz"
path = "data.npz"
[policy]
max_epsilon = 10.0
delta = 1e-5
"""


def plan_of(name: str = "dcgan", **training: object):
    return network_plan(
        name,
        privacy={"noise_multiplier": 1.0, "steps": 4, "views": 2},
        model={"discriminator_norm": "none"},
        training={"discriminator_steps": 1, "generator_batch": 8, "detail_weight": 0.1, **training},
        utility={"synthetic_images": 80, "classifier_steps": 3},
    )


def fitted(device: torch.device) -> Numbers:
    plan = plan_of()
    vectors = warm_start.patient_embeddings(plan_cohort(plan), plan.embedding, plan.privacy.images_per_patient, device)
    generator = build_generator(plan.networks).to(device)
    warm_start.fit_generator(
        generator, vectors.mean(0).float(), plan.embedding, plan.warm_start, latent=plan.model.latent
    )
    return to_arrays(generator)


def trained(device: torch.device, name: str = "dcgan", **training: object) -> Numbers:
    plan = plan_of(name, **training)
    state, data = LocalState(plan, device), plan_cohort(plan)
    mean = warm_start.patient_embeddings(data, plan.embedding, plan.privacy.images_per_patient, device).mean(0).float()
    train_round(
        state.generator, state.discriminator, state.optimizers, data, plan,
        first_step=2, steps=2, released_mean=mean, entropy=SeededEntropy(0),
    )  # fmt: skip
    return {**to_arrays(state.generator), **{f"D.{n}": a for n, a in to_arrays(state.discriminator).items()}}


def shared(device: torch.device) -> Numbers:
    plan = network_plan(
        "dcgan",
        privacy={"noise_multiplier": 1.0},
        federation={"share": "pooled", "hospitals": 2, "rounds": 1},
    )
    network = build_discriminator(plan.networks).to(device)
    return {"share": pooled.noised_share(network, plan_cohort(plan), plan, entropy=SeededEntropy(0))}


def judged(device: torch.device) -> Numbers:
    plan = plan_of()
    generator = build_generator(plan.networks).to(device)
    source = Synthetic(generator=generator, sizes=plan.networks, label_prior=plan.image.label_prior)
    trained_model = train_on_synthetic(classification.TASK, source, task_spec(plan))
    model, edges = trained_model.network, trained_model.numbers[classification.EDGES]
    test = plan_cohort(plan, seed=1)
    counts = patient_counts(model, test, classes=2, edges=score_edges(model, test.images, 4))
    return {**to_arrays(model), "edges": edges.numpy(), "counts": counts.numpy()}


def drawn(device: torch.device) -> Numbers:
    plan = plan_of()
    config = sampler_config(plan, run_id="", weights_sha256="")
    return {"images": Sampler(build_generator(plan.networks).to(device), config).sample(5, seed=3).numpy()}


WORK: dict[str, Callable[[torch.device], Numbers]] = {
    "the warm start and its fit": fitted,
    "adversarial steps": trained,
    "steps with a penalty at fakes": lambda device: trained(device, "wgan-gp"),
    "steps with the perceptual release": lambda device: trained(
        device, perceptual_weight=1.0, perceptual_noise_multiplier=0.1
    ),
    "a share of a pooled step": shared,
    "the classifier, its edges and the counts": judged,
    "the sampler": drawn,
}


BUILT_HERE = {"the classifier, its edges and the counts": 5}
"""A classifier looks at one image of zeros when it is built, before it is moved, to size its last layer."""


@pytest.mark.parametrize("name", list(WORK))
def test_all_of_it_runs_on_the_other_device_and_gives_the_same_numbers(name: str) -> None:
    expected = WORK[name](torch.device("cpu"))
    with elsewhere() as heavy:
        found = WORK[name](DEVICE)
    assert heavy["there"] > 0
    assert heavy["here"] == BUILT_HERE.get(name, 0), f"{heavy['here']} products and convolutions ran on the CPU"
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert np.array_equal(found[key], array), key


def test_something_left_behind_is_seen() -> None:
    with elsewhere() as heavy:
        layer = nn.Linear(3, 2).to(DEVICE)
        with pytest.raises(RuntimeError, match="two devices"):
            layer(torch.randn(4, 3))
        assert heavy["here"] == 0
        copy.deepcopy(nn.Linear(3, 2))(torch.randn(4, 3))
    assert heavy["here"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(NO_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(WORK))
def test_a_gpu_gives_the_cpus_numbers_up_to_rounding(name: str) -> None:
    expected, found = WORK[name](torch.device("cpu")), WORK[name](torch.device("cuda:0"))
    for key in expected.keys() - {"share"}:  # a share is in whole grid steps of the noise
        np.testing.assert_allclose(found[key], expected[key], rtol=0.05, atol=0.05, err_msg=key)


def test_auto_is_a_gpu_where_torch_sees_one_and_a_name_is_taken_as_it_is() -> None:
    assert find_device("auto") == torch.device("cpu" if NO_GPU else "cuda:0")
    assert find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "CPU", "", "meta", "cpu:0"])
def test_what_names_no_device_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="--device = .* is not") as refused:
        find_device(name)
    assert "\n" not in str(refused.value)
    (tmp_path / "site.toml").write_text(SITE + f'[compute]\ndevice = "{name}"\n')
    with pytest.raises(SiteError, match=r"\[compute\]\.device in .*site\.toml = "):
        load_site(tmp_path / "site.toml")


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE + '[compute]\ndevice = "cuda:97"\n')
    with pytest.raises(SiteError, match=r'\[compute\]\.device in .*"cuda:97" and torch sees \d+ GPU'):
        Site(load_site(tmp_path / "site.toml"))
    assert [path.name for path in tmp_path.iterdir()] == ["site.toml"]


def test_a_simulation_on_a_gpu_that_is_not_there_ends_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(tiny_plan_text())
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 28, 28), np.uint8), labels=np.arange(4) % 2)
    for command in (
        ["simulate", tmp_path / "plan.toml", "--data", tmp_path / "data.npz", "--sites", 2, "--out", tmp_path / "run"],
        ["demo", "--out", tmp_path / "run"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ghostnet", *map(str, command), "--device", "cuda:97"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == SiteError.exit_code, done.stderr
        assert "torch sees" in done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_simulated_hospital_is_told_the_device_in_its_own_site_file(device: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", images=rng.integers(0, 255, (8, 28, 28)).astype(np.uint8), labels=np.arange(8) % 2)
    files = write_sites(tmp_path / "sites", tmp_path / "data.npz", 2, "iid", plan_of(), device=device)
    assert [load_site(file).compute.device for file in files] == [device] * 2


def test_a_site_says_nothing_and_computes_on_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    assert load_site(tmp_path / "site.toml").compute.device == "auto"


@pytest.fixture
def coarse():
    """A process that allows TF32 and bfloat16 everywhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield allowed()
    torch.set_float32_matmul_precision(before)


def allowed() -> list[str]:
    return [switch.fp32_precision for switch in precision._SWITCHES]


def clipped_sum_with(sum_clipped: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is allowed while a row's loss and its gradients are computed."""
    monkeypatch.setattr(mechanism, "sum_clipped", sum_clipped)
    plan, seen = plan_of(), []
    data = plan_cohort(plan, patients=4)

    def row_loss(logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        seen.append(allowed())
        return logits

    rows = join_rows(
        images=data.images,
        labels=data.labels,
        groups=data.owners,
        fakes=data.images[:2],
        fake_labels=data.labels[:2],
    )
    gradients = PatientGradients(build_discriminator(plan.networks))
    gradients.clipped_sum(rows, row_loss, clip_norm=1.0, physical_rows=8)
    return seen


def test_a_clipped_sum_is_computed_in_whole_float32_whatever_the_process_allows(
    coarse: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = clipped_sum_with(mechanism.sum_clipped, monkeypatch)
    assert seen
    assert all(switches == ["ieee"] * 5 for switches in seen)
    assert allowed() == coarse
    planted = clipped_sum_with(mechanism.sum_clipped.__wrapped__, monkeypatch)
    assert "bf16" in planted[0]
    assert "tf32" in planted[0]


def test_rows_one_by_one_are_computed_in_whole_float32_and_only_they(coarse: list[str]) -> None:
    seen: list[list[str]] = []

    def function(rows: torch.Tensor) -> torch.Tensor:
        seen.append(allowed())
        return rows.flatten(1).sum(1, keepdim=True)

    for _ in row_by_row(function, torch.randn(70, 1, 4, 4), kind="whole float32"):
        assert allowed() == coarse  # between two blocks the process has its own again
    assert len(seen) > 2
    assert all(switches == ["ieee"] * 5 for switches in seen)


def test_autocast_does_not_reach_a_clipped_sum() -> None:
    plan, seen = plan_of(), []

    def row_loss(logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        seen.append((logits.dtype, torch.is_autocast_enabled("cpu")))
        return logits

    data = plan_cohort(plan, patients=2)
    rows = join_rows(
        images=data.images,
        labels=data.labels,
        groups=data.owners,
        fakes=data.images[:1],
        fake_labels=data.labels[:1],
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loop.patient_gradients(build_discriminator(plan.networks), plan).clipped_sum(
            rows, row_loss, clip_norm=1.0, physical_rows=8
        )
    assert set(seen) == {(torch.float32, False)}
