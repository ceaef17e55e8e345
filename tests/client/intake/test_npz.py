"""NPZ intake: the columns of the contract, and one clear line for anything else."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from client.cohort import load_cohorts
from client.config import SiteConfig
from client.intake.readers.npz import read_columns, read_npz
from ghostnet.errors import DataError
from tests.client.intake.dicom_files import SECRET, image_spec, write_site

NPZ = '[data]\nkind = "npz"\npath = "data.npz"'


def arrays(n: int = 20, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    columns: dict[str, Any] = {
        "images": rng.integers(0, 256, (n, 28, 28), dtype=np.uint8),
        "labels": np.arange(n) % 2,
        "patient": np.array([f"IM-{i // 2:04d}" for i in range(n)]),
    }
    return {name: column for name, column in (columns | changes).items() if column is not None}


def site(folder: Path, columns: dict[str, Any]) -> SiteConfig:
    np.savez(folder / "data.npz", **columns)
    return write_site(folder, data=NPZ)


def error(folder: Path, columns: dict[str, Any], **image: Any) -> str:
    np.savez(folder / "data.npz", **columns)
    with pytest.raises(DataError) as caught:
        read_npz(folder / "data.npz", image_spec(**image))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pixels_keep_their_values_in_the_plans_range(tmp_path: Path) -> None:
    columns = arrays(patient=None)
    for span, expected in (("[-1,1]", columns["images"] / 127.5 - 1), ("[0,1]", columns["images"] / 255)):
        cohorts = load_cohorts(site(tmp_path, columns), image_spec(range=span), SECRET)
        both = np.concatenate([cohorts.train.images.numpy(), cohorts.test.images.numpy()])[:, 0]
        for image in expected:
            assert np.abs(both - image).max(axis=(1, 2)).min() < 1e-6


def test_without_a_patient_column_every_image_is_a_patient(tmp_path: Path) -> None:
    cohorts = load_cohorts(site(tmp_path, arrays(patient=None)), image_spec(), SECRET)
    assert cohorts.train.patients + cohorts.test.patients == 20


def test_images_of_one_patient_stay_together(tmp_path: Path) -> None:
    for patient in (np.array([f"IM-{i // 2}" for i in range(20)]), np.arange(20) // 2):
        cohorts = load_cohorts(site(tmp_path, arrays(patient=patient)), image_spec(), SECRET)
        assert cohorts.table.patients == 10
        assert cohorts.train.owners.bincount().tolist() == [2] * cohorts.train.patients
        assert cohorts.train.patients == cohorts.table.train_patients


def test_the_split_column_wins(tmp_path: Path) -> None:
    split = np.array(["test"] * 4 + ["train"] * 16)
    cohorts = load_cohorts(site(tmp_path, arrays(split=split)), image_spec(), SECRET)
    assert (len(cohorts.train.images), len(cohorts.test.images)) == (16, 4)
    tested = (cohorts.test.images[:, 0] + 1) * 127.5
    for row in arrays()["images"][:4]:
        assert np.abs(tested.numpy() - row).max(axis=(1, 2)).min() < 1e-3


def test_a_patient_in_both_splits_is_refused(tmp_path: Path) -> None:
    config = site(tmp_path, arrays(split=np.array(["test", "train"] * 10)))
    with pytest.raises(DataError, match="10 patient"):
        load_cohorts(config, image_spec(), SECRET)


def test_masks_and_colour_become_planes(tmp_path: Path) -> None:
    columns = arrays(images=np.full((6, 28, 28, 3), 255, np.uint8), labels=np.zeros(6, int), patient=np.arange(6))
    columns["masks"] = np.zeros((6, 28, 28), np.uint8)
    columns["masks"][:, :14] = 1
    cohorts = load_cohorts(site(tmp_path, columns), image_spec(channels=3, mask_channels=1), SECRET)
    images = cohorts.train.images
    assert images.shape[1:] == (4, 28, 28)
    assert (images[:, :3] == 1).all()
    assert (images[:, 3, :14] == 1).all()
    assert (images[:, 3, 14:] == -1).all()


def test_a_row_without_a_patient_is_left_out(tmp_path: Path) -> None:
    patient = np.array(["a", "", "  ", "b"] * 5)
    assert load_cohorts(site(tmp_path, arrays(patient=patient)), image_spec(), SECRET).table.quarantined == {
        "NO_PATIENT_ID": 10
    }


def test_identifiers_are_in_no_file_of_the_state(tmp_path: Path) -> None:
    config = site(tmp_path, arrays(patient=np.array(["ZQPLANTEDQZ"] * 19 + [""])))
    load_cohorts(config, image_spec(), SECRET)
    kept = [path for path in config.state.rglob("*") if path.is_file()]
    assert {path.name for path in kept} == {"intake.json", "quarantine.csv"}
    assert all(b"ZQPLANTEDQZ" not in path.read_bytes() for path in kept)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": None}, "no column images"),
        ({"images": np.zeros((20, 28), np.uint8)}, "images is uint8 (20, 28)"),
        ({"images": np.zeros((20, 28, 28, 4), np.uint8)}, "images is uint8 (20, 28, 28, 4)"),
        ({"images": np.zeros((20, 0, 28), np.uint8)}, "images is uint8 (20, 0, 28)"),
        ({"images": np.zeros((20, 28, 28), np.float32)}, "images is float32"),
        ({"images": np.array(7, np.uint8)}, "images is uint8 ()"),
        ({"images": np.zeros((0, 28, 28), np.uint8), "labels": np.zeros(0, int), "patient": None}, "no row"),
        ({"labels": np.zeros(19, int)}, "labels is int64 (19,)"),
        ({"labels": np.zeros((20, 1), int)}, "labels is int64 (20, 1)"),
        ({"labels": np.zeros(20)}, "labels is float64"),
        ({"labels": np.zeros(20, bool)}, "labels is bool"),
        ({"labels": np.full(20, 2)}, "20 label(s) are not in 0..1"),
        ({"labels": np.full(20, -1)}, "20 label(s) are not in 0..1"),
        ({"labels": None}, "no column labels"),
        ({"patient": np.arange(19)}, "patient is int64 (19,)"),
        ({"patient": np.zeros(20)}, "patient is float64"),
        ({"split": np.array(["val"] * 20)}, "20 value(s) that are neither"),
        ({"split": np.zeros(20, int)}, "split is int64"),
        ({"masks": np.zeros((20, 27, 28), np.uint8)}, "masks is uint8 (20, 27, 28)"),
        ({"masks": np.zeros((20, 28, 28), bool)}, "masks is bool"),
    ],
)
def test_a_wrong_column_is_one_line_that_names_it(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in error(tmp_path, arrays(**changes))


def test_a_medmnist_file_is_shared_out_like_any_other(tmp_path: Path) -> None:
    parts = {"train": 4, "val": 2, "test": 3}
    columns: dict[str, Any] = {}
    for value, (part, n) in enumerate(parts.items()):
        columns[f"{part}_images"] = np.full((n, 28, 28), value, np.uint8)
        columns[f"{part}_labels"] = np.full((n, 1), value % 2, np.uint8)
    np.savez(tmp_path / "data.npz", **columns)
    found = read_columns(tmp_path / "data.npz")
    assert found["images"][:, 0, 0].tolist() == [0] * 4 + [1] * 2 + [2] * 3
    assert found["labels"].tolist() == [0] * 4 + [1] * 2 + [0] * 3
    assert found["split"].tolist() == ["train"] * 6 + ["test"] * 3
    assert [found["patient"].tolist().index(patient) for patient in found["patient"]] == [0] * 4 + [4] * 2 + [6] * 3


def test_the_same_pixels_in_both_parts_are_one_patient_who_is_never_trained_on(tmp_path: Path) -> None:
    columns = arrays(patient=None, split=np.array(["train"] * 16 + ["test"] * 4))
    columns["images"][19] = columns["images"][0]
    table = load_cohorts(site(tmp_path, columns), image_spec(), SECRET).table
    assert (table.patients, table.train_images, table.test_images, table.duplicates) == (19, 15, 4, 1)
    assert read_columns(tmp_path / "data.npz")["split"].tolist() == ["test"] + ["train"] * 15 + ["test"] * 4


def test_without_a_patient_column_one_image_less_moves_no_other(tmp_path: Path) -> None:
    columns = arrays(n=40, patient=None)
    parts = []
    for first in (0, 1):
        fewer = {name: column[first:] for name, column in columns.items()}
        cohorts = load_cohorts(site(tmp_path, fewer), image_spec(), SECRET)
        parts.append([{image.numpy().tobytes() for image in part.images} for part in (cohorts.train, cohorts.test)])
    (train, test), (train_of_fewer, test_of_fewer) = parts
    assert train_of_fewer <= train
    assert test_of_fewer <= test
    assert test_of_fewer
    assert len(train_of_fewer) + len(test_of_fewer) == 39


def test_a_file_without_a_row_is_an_error_for_people_and_an_empty_cohort_for_a_coordinator(tmp_path: Path) -> None:
    untyped = dict.fromkeys(("labels", "patient", "split"), np.array([]))  # what is left of a column without values
    for columns in (arrays(n=0, patient=None), arrays(n=0) | untyped):
        config = site(tmp_path, columns)
        with pytest.raises(DataError, match="no row"):
            load_cohorts(config, image_spec(), SECRET)
        assert load_cohorts(config, image_spec(), SECRET, strict=False).table.taken == 0


def test_a_mask_region_that_the_plan_has_not_is_no_mask(tmp_path: Path) -> None:
    masks = np.zeros((20, 28, 28), np.uint8)
    masks[:, 0, 0], masks[3, 5, 5], masks[4, 5, 5] = 2, 3, 255
    config = site(tmp_path, arrays(masks=masks))
    assert load_cohorts(config, image_spec(mask_channels=2), SECRET).table.quarantined == {"BAD_MASK": 2}
    assert load_cohorts(config, image_spec(mask_channels=1), SECRET).table.quarantined == {}


def test_masks_are_asked_for_when_the_plan_draws_them(tmp_path: Path) -> None:
    assert "no column masks" in error(tmp_path, arrays(), mask_channels=1)


@pytest.mark.parametrize("name", ["images", "labels", "patient", "hospital"])
def test_an_object_array_is_refused_and_never_unpickled(tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    column = np.empty(20, object)
    column[:] = [Payload() for _ in range(20)]
    assert f"{name} is an object array" in error(tmp_path, arrays(**{name: column}))
    assert not ran.exists()
    with np.load(tmp_path / "data.npz", allow_pickle=True) as file:
        _ = file[name]  # the payload is a real one
    assert ran.exists()


def test_a_header_that_lies_about_its_size_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        header = io.BytesIO()
        npy.write_array_header_1_0(
            header, {"shape": (1 << 20, 1 << 12, 1 << 12), "fortran_order": False, "descr": "|u1"}
        )
        archive.writestr("images.npy", header.getvalue() + bytes(100))
    with pytest.raises(DataError, match="holds 100 bytes"):
        read_npz(path, image_spec())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04broken", b"\x93NUMPY", pickle.dumps({"images": [1]})])
def test_a_file_that_is_no_npz_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a whole NPZ"):
        read_npz(path, image_spec())
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        read_npz(path, image_spec())


def test_a_truncated_npz_is_one_line_wherever_it_ends(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", **arrays())
    data = (tmp_path / "whole.npz").read_bytes()
    for cut in range(0, len(data), len(data) // 23):
        (tmp_path / "data.npz").write_bytes(data[:cut])
        with pytest.raises(DataError):
            read_npz(tmp_path / "data.npz", image_spec())
    for at in range(40, len(data) - 40, len(data) // 23):  # a flipped byte: refused by its checksum, or harmless
        changed = bytearray(data)
        changed[at] ^= 0xFF
        (tmp_path / "data.npz").write_bytes(changed)
        with contextlib.suppress(DataError):
            assert len(read_npz(tmp_path / "data.npz", image_spec()).images) == 20
