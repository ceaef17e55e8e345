"""The sampler: what is loaded is what was written, and the same seed draws the same images."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch.utils.data import DataLoader

from ghostnet import Sampler
from ghostnet.errors import DataError, RunFolderError, SiteError, VerifyError
from ghostnet.models import build_generator
from ghostnet.plan import FederationSpec, ImageSpec, ModelSpec, Plan, PrivacySpec
from ghostnet.sampler.pixels import median_denoise, to_uint8
from ghostnet.sampler.sampler import NoCertificateWarning
from ghostnet.sampler.write import write_sampler

pytestmark = pytest.mark.filterwarnings("ignore::ghostnet.sampler.sampler.NoCertificateWarning")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the networks are tiny; more threads only wait for each other


def make_plan(**image: object) -> Plan:
    return Plan(
        name="small",
        image=ImageSpec(**{"size": 28, "labels": ("normal", "lesion"), "label_prior": (0.25, 0.75), **image}),
        model=ModelSpec(generator_width=8, latent=16),
        privacy=PrivacySpec(epsilon=4.0, delta=1e-5, sampling_rate=0.1, steps=10),
        federation=FederationSpec(rounds=1, patients=100),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = make_plan(mask_channels=1)
    write_sampler(tmp_path / "sampler", build_generator(plan.networks), plan, run_id="run-1")
    return tmp_path / "sampler"


def test_the_loaded_generator_is_the_written_one(tmp_path: Path) -> None:
    plan = make_plan()
    generator = build_generator(plan.networks)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    write_sampler(tmp_path / "s", generator, plan)
    assert generator.training  # writing leaves the caller's network as it was
    loaded = Sampler.load(tmp_path / "s")
    z, labels = torch.randn(3, 16), torch.tensor([0, 1, 1])
    assert torch.equal(loaded.generator(z, labels), generator.eval()(z, labels))
    assert loaded.config.plan_hash == plan.hash()


def test_the_folder_holds_the_published_files_and_nothing_else(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors", "samples.png"}
    assert [path.name for path in folder.parent.iterdir()] == ["sampler"]  # no temporary folder is left


def test_digests_of_a_written_sampler_are_those_of_its_files(tmp_path: Path) -> None:
    plan = make_plan()
    transcript = {"a": np.zeros(3, np.float32)}
    digests = write_sampler(tmp_path / "s", build_generator(plan.networks), plan, transcript=transcript)
    assert "transcript.safetensors" in digests
    assert digests == {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / "s").iterdir()}


def test_image_i_of_a_seed_does_not_depend_on_n_or_the_batch_size(folder: Path) -> None:
    sampler = Sampler.load(folder)
    many, few = sampler.draw(70, seed=5), sampler.draw(9, seed=5)
    small_batches = sampler.draw(70, seed=5, batch_size=7)
    assert torch.equal(many.labels, small_batches.labels)
    assert torch.equal(many.labels[:9], few.labels)
    torch.testing.assert_close(many.images, small_batches.images, rtol=0, atol=1e-5)
    torch.testing.assert_close(many.images[:9], few.images, rtol=0, atol=1e-5)


def test_without_a_seed_each_call_draws_fresh_images(folder: Path) -> None:
    sampler = Sampler.load(folder)
    first, second = sampler.draw(8, 0), sampler.draw(8, 0)
    assert not torch.allclose(first.images, second.images)
    assert torch.equal(sampler.sample(8, 0, seed=0), sampler.sample(8, 0, seed=0))


def test_a_data_set_serves_a_loader(folder: Path, tmp_path: Path) -> None:
    drawn = Sampler.load(folder).draw(10, seed=4)
    batches = list(DataLoader(Sampler.load(folder).dataset(10, seed=4), batch_size=4))
    assert [len(images) for images, _, _ in batches] == [4, 4, 2]
    found = [torch.cat(column) for column in zip(*batches, strict=True)]
    torch.testing.assert_close(found[0], drawn.images)
    assert torch.equal(found[1], drawn.labels)
    assert drawn.masks is not None
    assert torch.equal(found[2], drawn.masks)
    plan = make_plan()
    write_sampler(tmp_path / "plain", build_generator(plan.networks), plan)
    assert [part.shape for part in Sampler.load(tmp_path / "plain").dataset(2, seed=1)[1]] == [(1, 28, 28), ()]


def test_a_sampler_says_what_it_is_and_moves(folder: Path) -> None:
    sampler = Sampler.load(folder)
    shown = repr(sampler)
    for known in ("'small'", "1 x 28 x 28 and 1 mask", *sampler.labels, "dcgan", "cpu", "no certificate"):
        assert known in shown
    assert "\n" not in shown
    assert sampler.to("cpu") is sampler
    with pytest.raises(SiteError):
        sampler.to("cuda:99")


def test_a_sampler_without_a_certificate_is_loaded_with_a_warning(folder: Path) -> None:
    with pytest.warns(NoCertificateWarning, match="no certificate.json"):
        Sampler.load(folder)
    (folder / "certificate.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sampler.load(folder).has_certificate


def test_another_seed_draws_other_images(folder: Path) -> None:
    sampler = Sampler.load(folder)
    assert not torch.allclose(sampler.sample(4, 0, seed=0), sampler.sample(4, 0, seed=1))


def test_the_same_seed_draws_the_same_images_in_another_process(folder: Path) -> None:
    code = "import torch; torch.set_num_threads(1); from ghostnet import Sampler; "
    code += f"print(float(Sampler.load({str(folder)!r}).sample(3, seed=8).double().sum()))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert float(printed.stdout) == pytest.approx(
        float(Sampler.load(folder).sample(3, seed=8).double().sum()), abs=1e-4
    )


def test_labels_without_a_choice_follow_the_public_prior(folder: Path) -> None:
    labels = torch.cat([part.labels for part in Sampler.load(folder).batches(800, seed=1)])
    # 800 draws at 0.75 have a standard deviation of 0.0153; the bound is 5 of them.
    assert abs(float(labels.double().mean()) - 0.75) < 0.0766


@pytest.mark.parametrize("label", ["lesion", 1, "1"])
def test_a_label_can_be_given_by_name_or_index(folder: Path, label: str | int) -> None:
    assert set(Sampler.load(folder).draw(5, label).labels.tolist()) == {1}


@pytest.mark.parametrize("label", ["tumour", 2, -1, True, "2", "²"])
def test_an_unknown_label_is_refused_and_the_known_ones_named(folder: Path, label: object) -> None:
    with pytest.raises(DataError, match="normal, lesion"):
        Sampler.load(folder).sample(1, label)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "seed"), [(-1, 0), (1.5, 0), (True, 0), (1, -1), (1, 2**63)])
def test_a_count_or_seed_that_is_no_whole_number_is_refused(folder: Path, n: object, seed: int) -> None:
    with pytest.raises(DataError):
        Sampler.load(folder).sample(n, seed=seed)  # type: ignore[arg-type]


def test_images_lie_in_the_plans_range_and_masks_are_binary(tmp_path: Path) -> None:
    for pixel_range, low in (("[-1,1]", -1.0), ("[0,1]", 0.0)):
        plan = make_plan(range=pixel_range, mask_channels=2, channels=3)
        target, generator = tmp_path / f"from{low:g}", build_generator(plan.networks)
        torch.nn.init.zeros_(generator.net[-2].bias)  # masks of a fresh generator are empty
        write_sampler(target, generator, plan)
        images, masks = Sampler.load(target).sample_with_masks(6)
        assert images.shape == (6, 3, 28, 28)
        assert masks.shape == (6, 2, 28, 28)
        assert low <= float(images.min()) < float(images.max()) <= 1
        assert set(masks.unique().tolist()) == {0, 1}


def test_a_sampler_without_masks_says_so(tmp_path: Path) -> None:
    plan = make_plan()
    write_sampler(tmp_path / "s", build_generator(plan.networks), plan)
    with pytest.raises(DataError, match="draws no masks"):
        Sampler.load(tmp_path / "s").sample_with_masks(1)


def test_samples_can_be_trained_on(folder: Path) -> None:
    layer = torch.nn.Conv2d(1, 1, 3)
    for batch in Sampler.load(folder).batches(3):
        layer(batch.images).sum().backward()  # fails for inference-mode tensors
    assert layer.weight.grad is not None


def test_zero_images_have_the_right_shape(folder: Path) -> None:
    samples = Sampler.load(folder).draw(0)
    assert samples.images.shape == (0, 1, 28, 28)
    assert samples.masks is not None
    assert samples.masks.shape == (0, 1, 28, 28)


def test_a_flipped_bit_in_the_weights_is_refused(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(VerifyError, match="SHA-256"):
        Sampler.load(folder)


def rewrite(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Weights with a config that vouches for them, so that only the checks after the hash can refuse them."""
    content = safetensors.numpy.save(arrays)
    (folder / "model.safetensors").write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights_sha256": hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "type", "nan"])
def test_weights_that_do_not_fit_the_config_are_refused(folder: Path, damage: str) -> None:
    arrays = safetensors.numpy.load((folder / "model.safetensors").read_bytes())
    rewrite(folder, arrays)
    Sampler.load(folder)  # the clean twin: rewriting by itself is accepted
    name = next(name for name, array in sorted(arrays.items()) if array.ndim > 1)
    if damage == "missing":
        arrays["padding"] = arrays.pop(name)
    elif damage == "extra":
        arrays["extra"] = np.zeros(3, np.float32)
    elif damage == "shape":
        arrays[name] = arrays[name].reshape(-1)
    elif damage == "type":
        arrays[name] = arrays[name].astype(np.float64)
    else:
        arrays[name].flat[0] = np.nan
    rewrite(folder, arrays)
    with pytest.raises(VerifyError):
        Sampler.load(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"surprise": 1}, "unknown key surprise"),
        ({"format": "ghostnet-sampler/9"}, "ghostnet-sampler/9"),
        ({"image": None}, "image"),
        ({"weights_sha256": 5}, "weights_sha256"),
    ],
)
def test_a_config_with_another_meaning_is_refused(folder: Path, change: dict[str, object], says: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(VerifyError, match=says):
        Sampler.load(folder)


@pytest.mark.parametrize("key", ["latent", "generator_width"])
def test_a_config_that_claims_a_huge_network_is_refused_before_memory_is_taken(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"] |= {"latent": 4096, "generator_width": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerifyError, match="config.json describes"):
        Sampler.load(folder)
    config["model"][key] = 10**9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerifyError, match=key):
        Sampler.load(folder)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"format": NaN}', b'{"a":1,"a":2}', b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(VerifyError, match="config.json"):
        Sampler.load(folder)


def test_a_folder_that_is_no_sampler_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="give the folder of a sampler") as caught:
        Sampler.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_sampler_is_never_written_over_another(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    plan = make_plan()
    with pytest.raises(RunFolderError, match="never overwritten"):
        write_sampler(folder, build_generator(plan.networks), plan)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_diverged_generator_is_not_published(tmp_path: Path) -> None:
    plan = make_plan()
    generator = build_generator(plan.networks)
    with torch.no_grad():
        next(generator.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="NaN"):
        write_sampler(tmp_path / "s", generator, plan)
    assert list(tmp_path.iterdir()) == []


def test_denormalising_maps_the_ends_of_the_range_to_0_and_255() -> None:
    values = torch.tensor([-1.5, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    assert to_uint8(values, "[-1,1]").reshape(-1).tolist() == [0, 0, 128, 255]
    assert to_uint8(values, "[0,1]").reshape(-1).tolist() == [0, 0, 0, 255]
    assert to_uint8(torch.zeros(2, 3, 4, 5), "[0,1]").shape == (2, 4, 5, 3)


def test_the_median_removes_a_speck_and_keeps_an_edge() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1
    specked = image.clone()
    specked[0, 0, 2, 1] = 1
    assert torch.equal(median_denoise(specked), image)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, ghostnet; assert 'torch' not in sys.modules; print(ghostnet.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "0.1.0"
