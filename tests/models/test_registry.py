"""One file and one line make an architecture; nothing outside the networks' own room knows one by its name."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

from ghostnet.models import REGISTRY, Architecture, ArchitectureName, architecture, build_generator, dcgan
from ghostnet.plan import ModelSpec
from ghostnet.sampler.folder import sampler_config
from ghostnet.sampler.sampler import Sampler
from tests.house import ROOT, copy_packages, places_that_know
from tests.networks import network_plan

HERE = Path(__file__).resolve().parent
LAST_LINE = '    "keras28": "ghostnet.models.keras28",\n'


def names_used(root: Path) -> Iterator[str]:
    """Places outside the networks' room that name an architecture: a text constant, or an import of its file."""
    return places_that_know(root, REGISTRY, set(REGISTRY.values()), [root / "ghostnet" / "models"])


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the three packages that a test may change."""
    return copy_packages(tmp_path)


def test_no_architecture_is_known_by_its_name_outside_the_networks_room() -> None:
    assert list(names_used(ROOT)) == []


@pytest.mark.parametrize(
    "line",
    [
        'bounded = name == "wgan"',
        'penalised = name in ("stylegan", "other")',
        'kind = {"wgan-gp": 1}.get(name)',
        'old = name.startswith("wgan")',
        "from ghostnet.models.wgan import clip_weights",
        "from ghostnet.models import dcgan",
        "import ghostnet.models.keras28",
    ],
)
def test_a_name_tested_elsewhere_is_seen(house: Path, line: str) -> None:
    (house / "client" / "planted.py").write_text(f'name = "other"\n{line}\n', encoding="utf-8")
    assert list(names_used(house)) == ["client/planted.py:2"]


def test_a_plan_takes_the_names_of_the_registry_and_no_other() -> None:
    assert get_args(ArchitectureName) == tuple(REGISTRY)
    assert ModelSpec().architecture in REGISTRY


def test_reading_the_plans_types_costs_no_import_of_torch() -> None:
    asked = "import sys, ghostnet.plan, ghostnet.models; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"]


@pytest.mark.parametrize("name", list(REGISTRY))
def test_a_record_says_what_its_networks_are(name: str) -> None:
    record = architecture(name)
    assert isinstance(record, Architecture)
    assert record.sizes == tuple(sorted(set(record.sizes)))
    assert record.norms
    assert record.row_milliseconds > 0
    assert record.penalty is not None or not (record.penalised_by_default or record.needs_penalty)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.sizes = ()  # type: ignore[misc]


def test_a_record_that_draws_otherwise_is_what_the_sampler_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = network_plan("dcgan")
    generator = build_generator(plan.networks)
    config = sampler_config(plan, run_id="", weights_sha256="")
    once = Sampler(generator, config).sample(3, seed=1)

    def twice(network: torch.nn.Module, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (network(z, labels) + network(-z, labels)) / 2

    monkeypatch.setattr(dcgan, "ARCHITECTURE", dataclasses.replace(dcgan.ARCHITECTURE, draw=twice))
    assert not torch.equal(Sampler(generator, config).sample(3, seed=1), once)


ADDED = (HERE / "added_architecture.py").read_text(encoding="utf-8")
"""A new architecture, as a contributor would add it: its file, and its line."""

PLAN = """
name = "added"
[image]
size = 20
labels = ["a", "b"]
label_prior = [0.5, 0.5]
[model]
architecture = "added"
latent = 4
generator_width = 4
discriminator_width = 4
discriminator_norm = "none"
[privacy]
epsilon = 8.0
delta = 1e-5
sampling_rate = 0.5
steps = 2
noise_multiplier = 1.0
fakes = 8
[warm_start]
noise_multiplier = 2.0
features = 64
feature_size = 8
[training]
loss = "hinge"
discriminator_steps = 1
generator_batch = 8
[federation]
patients = 8
rounds = 1
"""


def add(house: Path, text: str) -> None:
    """The file, and its line of the registry."""
    (house / "ghostnet" / "models" / "added.py").write_text(text, encoding="utf-8")
    registry = house / "ghostnet" / "models" / "__init__.py"
    before = registry.read_text(encoding="utf-8")
    assert before.count(LAST_LINE) == 1
    line = '    "added": "ghostnet.models.added",\n'
    registry.write_text(before.replace(LAST_LINE, LAST_LINE + line), encoding="utf-8")


def use(house: Path) -> subprocess.CompletedProcess[str]:
    (house / "plan.toml").write_text(PLAN, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(house), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "use_added_architecture.py"), str(house / "out"), str(house / "plan.toml")]
    return subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_a_file_and_a_line_make_an_architecture_that_trains_publishes_draws_and_is_audited(house: Path) -> None:
    before = use(house)
    assert "'added' is not one of" in before.stderr
    add(house, ADDED)
    result = use(house)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    said = ("20 px alone", 'set training.loss = "hinge"', 'set model.discriminator_norm = "none"')
    assert all(words in line for words, line in zip(said, found["refused"], strict=True)), found["refused"]
    assert found["moved"]
    assert found["shape"] == [5, 1, 20, 20]
    assert found["kinds"] == ["added hinge"]
    assert [check for check, _, _ in found["findings"]] == ["one patient's part", "patients apart"]
    assert all(passed for _, passed, _ in found["findings"]), found["findings"]


def test_an_added_discriminator_that_couples_patients_is_refused(house: Path) -> None:
    coupled = ADDED.replace("torch.relu(self.first(images))", "self.coupled(torch.relu(self.first(images)))")
    layer = "        self.coupled = nn.BatchNorm2d(width)\n"
    add(house, coupled.replace("        self.head = nn", layer + "        self.head = nn"))
    result = use(house)
    assert result.returncode != 0
    assert "BatchNorm2d" in result.stderr
    assert "discriminator" in result.stderr
