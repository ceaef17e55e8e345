"""What is published beside a plain generator: a released prior, a public start."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from ghostnet.certificate.certificate import verify_sampler
from ghostnet.cli.main import app
from ghostnet.errors import DataError, PlanError
from ghostnet.exchange import protocol
from ghostnet.models import build_generator
from ghostnet.plan import Plan, load_plan, plan_from_dict
from ghostnet.sampler.sampler import Sampler
from ghostnet.training import warm_start
from ghostnet.training.public_start import PROCEDURAL, fit_public, load_public
from tests.plans import tiny_plan, tiny_plan_text
from tests.samplers import keys_of


def _plan(**tables: dict[str, object]) -> Plan:
    raw = tiny_plan().to_dict()
    for table, values in tables.items():
        raw[table] |= values
    return plan_from_dict(raw)


def test_a_released_prior_is_the_release_s_class_shares():
    plan = _plan(image={"released_prior": True})
    size = plan.embedding.size
    release = torch.zeros(size)
    classes = len(plan.image.labels)
    release.reshape(classes, -1)[:, -1] = warm_start.MASS_WEIGHT * torch.arange(1, classes + 1)
    prior = warm_start.with_released_prior(plan, release).image.label_prior
    assert prior == pytest.approx([(i + 1) / sum(range(1, classes + 1)) for i in range(classes)], abs=1e-3)
    assert sum(prior) == pytest.approx(1, abs=1e-9)
    assert warm_start.with_released_prior(tiny_plan(), release).image.label_prior == tiny_plan().image.label_prior


def test_a_released_prior_or_a_public_start_needs_a_warm_start():
    off = {"noise_multiplier": 0.0}
    for tables in ({"image": {"released_prior": True}, "warm_start": off}, {"warm_start": off | {"public": "a.npz"}}):
        with pytest.raises(PlanError, match="need a warm start"):
            _plan(**tables)


def _public_file(folder: Path, plan: Plan, labels: list[int]) -> Path:
    path = folder / "public.npz"
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 40, 40), dtype=np.uint8)
    np.savez(path, images=images, labels=np.array(labels))
    return path


def test_public_images_come_in_the_plan_s_size_and_range_and_are_named_by_their_hash(tmp_path):
    plan = _plan(warm_start={"public": "public.npz"})
    path = _public_file(tmp_path, plan, [0, 1] * 4)
    public = load_public(plan.warm_start.public, plan.image, tmp_path, seed=plan.seed)
    assert public.images.shape == (8, plan.planes, plan.image.size, plan.image.size)
    assert (public.source, public.sha256) == ("public.npz", hashlib.sha256(path.read_bytes()).hexdigest())
    low = -1 if plan.image.range == "[-1,1]" else 0
    assert low <= public.images.min()
    assert public.images.max() <= 1


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 7], [-1, 0, 1]])
def test_public_images_that_lack_a_label_or_have_a_strange_one_are_refused(tmp_path, labels):
    plan = _plan(warm_start={"public": "public.npz"})
    _public_file(tmp_path, plan, labels)
    with pytest.raises(DataError, match="at least one image of each"):
        load_public(plan.warm_start.public, plan.image, tmp_path, seed=plan.seed)


def test_a_missing_public_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_public("nothing.npz", tiny_plan().image, tmp_path, seed=0)


def test_a_public_start_brings_the_generator_nearer_to_its_images():
    plan = _plan(warm_start={"public": "procedural", "steps": 40})
    public = load_public(PROCEDURAL, plan.image, Path(), seed=plan.seed)
    assert torch.equal(public.images, load_public(PROCEDURAL, plan.image, Path(), seed=plan.seed).images)
    generator = build_generator(plan.networks)
    labels = torch.arange(64) % len(plan.image.labels)
    z = torch.randn(64, plan.model.latent, generator=torch.Generator().manual_seed(0))
    target = warm_start.embed_images(public.images, plan.embedding).mean(0)

    def distance() -> float:
        with torch.no_grad():
            return float((warm_start.embed_images(generator(z, labels), plan.embedding).mean(0) - target).norm())

    before = distance()
    fit_public(generator, public, plan.embedding, plan.warm_start, latent=plan.model.latent)
    assert distance() < 0.7 * before


def test_a_run_publishes_prior_and_public_start_and_verifies(tmp_path):
    plan_file = tmp_path / "plan.toml"
    text = tiny_plan_text()
    text = text.replace("[image]", "[image]\nreleased_prior = true", 1)
    text = text.replace("[warm_start]", '[warm_start]\npublic = "procedural"\nshrink_classes = true', 1)
    plan_file.write_text(text)
    rng = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    np.savez(data, images=rng.integers(0, 256, (90, 28, 28), dtype=np.uint8), labels=np.arange(90) % 3 // 2)
    run = tmp_path / "run"
    asked = ["simulate", str(plan_file), "--data", str(data), "--sites", "2", "--out", str(run)]
    answer = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    certificate = json.loads((run / "sampler" / "certificate.json").read_text())
    assert certificate["public_images"]["source"] == "procedural"
    sampler = Sampler.load(run / "sampler")
    assert sampler.config.image.label_prior != tiny_plan().image.label_prior
    assert sampler.config.image.label_prior[0] == pytest.approx(2 / 3, abs=0.15)
    checks = verify_sampler(run / "sampler", trusted_keys=keys_of(run / "sites"))
    assert [check.name for check in checks if not check.passed] == []
    # What was released is the hospitals' two sums, with the classes drawn together
    sums = [load_file(path)[protocol.NOISED_SUM] for path in run.glob("sites/*/runs/*/warm_start.safetensors")]
    plain = torch.from_numpy(sum(sums) / (2 * tiny_plan().federation.patients))
    plan = load_plan(run / "plan.toml")
    noise_std = plan.warm_start.noise_multiplier / (2**0.5 * plan.federation.patients)
    shrunk = warm_start.shrink_classes(plain, plan.embedding, noise_std=noise_std)
    (released,) = (load_file(path)[protocol.RELEASED_MEAN] for path in run.glob("server/released*.safetensors"))
    assert np.allclose(released, shrunk, rtol=1e-5, atol=1e-7)
    assert not np.allclose(released, plain, rtol=1e-3)
