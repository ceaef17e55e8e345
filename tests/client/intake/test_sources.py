"""Every kind of data that a hospital may have, from its folder to cohorts, and no identifier on the way."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.cohort import Cohorts, check_site, load_cohorts
from client.config import SiteConfig, load_site
from client.intake.labels.layouts import CHEXPERT_FINDINGS
from client.intake.task import Limits
from client.intake.unit import data_unit
from ghostnet.errors import DataError, SiteError
from tests.client.intake.dicom_files import SECRET, dicom, image_spec, picture, save, write_labels, write_site
from tests.client.intake.picture_files import (
    PLANTED,
    eight_bit,
    picture_site,
    state_bytes,
    write_nifti,
    write_png,
    write_table,
)
from tests.client.test_cohort import NO_WORKER

TRAIN = "[cohort]\ntest_fraction = 0.0\n"
NIH = '[labels]\nmap = {"No Finding" = "normal", "Effusion" = "lesion"}\n'
CHEXPERT = '[labels]\nmap = {"No Finding" = "normal", "Pleural Effusion" = "lesion"}\n'


def load(config: SiteConfig, *, strict: bool = True, **image: Any) -> Cohorts:
    return load_cohorts(config, image_spec(size=40, **image), SECRET, strict=strict, workers=1)


def by_patient(cohorts: Cohorts) -> list[list[int]]:
    """The labels of each patient's images, in no order of the patients."""
    train = cohorts.train
    return sorted(sorted(train.labels[train.owners == owner].tolist()) for owner in range(train.patients))


def covered(cohorts: Cohorts) -> list[int]:
    """Pixels inside each image's mask, smallest first."""
    return sorted(int((image[-1] > 0).sum()) for image in cohorts.train.images)


def test_a_plain_folder_of_pictures(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("image", "patient", "label")]
    for patient in range(4):
        for number in range(2):
            name = f"{patient}/{number}.png"
            write_png(tmp_path / "images" / name, eight_bit(10 * patient + number))
            rows.append((name, f"{PLANTED}{patient}", ("normal", "lesion")[patient % 2]))
    write_png(tmp_path / "images/none.png", eight_bit(99))
    write_table(tmp_path / "labels.csv", [*rows, ("gone.png", "P", "lesion")])
    config = picture_site(tmp_path, more=TRAIN)
    cohorts = load(config)
    table = cohorts.table
    assert by_patient(cohorts) == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert (table.kind, table.modalities, table.syntaxes) == ("images", {"DX": 8}, {"PNG": 8})
    assert table.images_a_patient == {"1": 0, "2-5": 4, "6+": 0}
    assert (table.quarantined, table.source_counts.rows_without_file) == ({"NO_LABEL": 1}, 1)
    assert PLANTED.encode() not in state_bytes(config)
    again = load_cohorts(config, image_spec(size=40), SECRET, limits=NO_WORKER)
    assert again.table.from_cache == 8
    assert torch.equal(again.train.images, cohorts.train.images)


def test_without_a_patient_in_the_table_each_image_is_a_unit(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.png", "s/c.png", "s/d.png", "s/e.png")):
        write_png(tmp_path / "images" / name, eight_bit(min(i, 3)))
    config = picture_site(tmp_path, more=TRAIN)
    rows = [("image", "label", "comment"), ("a.png", "lesion", PLANTED), ("b.png", "normal", ""), ("s", "lesion", "")]
    write_table(tmp_path / "labels.csv", rows)
    cohorts = load(config)
    assert data_unit(config) == "image"
    assert by_patient(cohorts) == [[0], [1], [1], [1]]  # s/d and s/e have the same bytes: one image
    assert (cohorts.table.duplicates, cohorts.table.patients) == (1, 4)
    # What lines say of one image reaches no other: neither a line more nor a mask that another line names.
    write_table(
        tmp_path / "labels.csv", [("image", "label", "mask"), ("a.png", "lesion", "s/c.png"), ("s", "lesion", "")]
    )
    assert by_patient(load(config, strict=False)) == [[1], [1], [1]]


def test_a_list_of_withdrawn_patients_is_no_use_where_none_are_named(tmp_path: Path) -> None:
    write_png(tmp_path / "images/a.png", eight_bit())
    (tmp_path / "withdrawn.txt").write_text("A\n")
    config = picture_site(tmp_path, more=TRAIN + 'exclude = "withdrawn.txt"\n')
    for strict in (True, False):
        write_table(tmp_path / "labels.csv", [("image", "label"), ("a.png", "lesion")])
        with pytest.raises(SiteError, match=r"\[cohort\].exclude .* this data names none"):
            load(config, strict=strict)
    write_table(tmp_path / "labels.csv", [("image", "patient", "label"), ("a.png", "B", "lesion")])
    assert load(config).train.patients == 1


def test_the_patient_of_the_table_is_the_unit(tmp_path: Path) -> None:
    write_png(tmp_path / "images/a.png", eight_bit())
    write_png(tmp_path / "images/b.png", eight_bit())
    write_png(tmp_path / "images/c.png", eight_bit(1))
    config = picture_site(tmp_path, more=TRAIN)
    header = ("image", "patient", "label")
    write_table(tmp_path / "labels.csv", [header, ("a.png", "A", "lesion"), ("b.png", "A", "lesion")])
    same = load(config).table
    assert (same.taken, same.duplicates) == (1, 1)
    write_table(tmp_path / "labels.csv", [header, ("a.png", "A", "lesion"), ("b.png", "B", "lesion")])
    shared = load(config).table
    assert (shared.taken, shared.duplicates, shared.shared_pixels, shared.patients) == (2, 0, 2, 2)
    write_table(tmp_path / "labels.csv", [header, ("a.png", "", "lesion"), ("c.png", "C", "")])
    assert check_site(config, image_spec()).quarantined == {"NO_LABEL": 2, "NO_PATIENT_ID": 1}


def test_one_file_given_to_two_patients(tmp_path: Path) -> None:
    write_png(tmp_path / "images/a.png", eight_bit())
    header = ("image", "patient", "label")
    write_table(tmp_path / "labels.csv", [header, ("a.png", "A", "lesion"), ("a.png", "B", "normal")])
    config = picture_site(tmp_path, more=TRAIN)
    with pytest.raises(DataError, match="1 image file.s. to two patients .line 2, 3.; correct"):
        load(config)
    # To a coordinator nothing shows, and neither line decides over the other.
    assert by_patient(load(config, strict=False)) == [[0], [1]]


def test_masks_and_boxes_of_a_plain_table_become_mask_planes(tmp_path: Path) -> None:
    for seed, name in enumerate("abcdef"):
        write_png(tmp_path / f"images/{name}.png", eight_bit(seed))
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 5:15] = 255
    write_png(tmp_path / "images/masks/a.png", mask)
    write_png(tmp_path / "images/masks/f.png", mask[:20])
    rows = [
        ("image", "patient", "label", "mask", "box"),
        ("a.png", "A", "lesion", "masks/a.png", ""),
        ("b.png", "B", "lesion", "", "0 0 10 20; 30 30 40 40"),
        ("c.png", "C", "normal", "", "none"),
        ("d.png", "D", "lesion", "", ""),
        ("e.png", "E", "lesion", "masks/gone.png", ""),
        ("f.png", "F", "lesion", "masks/f.png", ""),
    ]
    write_table(tmp_path / "labels.csv", rows)
    cohorts = load(picture_site(tmp_path, more=TRAIN), mask_channels=1)
    assert covered(cohorts) == [0, 100, 300]
    assert cohorts.table.quarantined == {"BAD_MASK": 2, "NO_MASK": 1}
    assert (cohorts.table.mask_images, cohorts.table.boxed_images, cohorts.table.found) == (1, 2, 6)
    drawn = next(image for image in cohorts.train.images if int((image[-1] > 0).sum()) == 300)
    assert (drawn[-1, :20, :10] == 1).all()
    assert (drawn[-1, 30:, 30:] == 1).all()


def test_a_line_that_calls_another_patients_image_a_mask_takes_nothing_from_them(tmp_path: Path) -> None:
    for number in range(3):
        write_png(tmp_path / f"images/p{number}/a.png", eight_bit(number))
    write_png(tmp_path / "images/p0/mask.png", np.eye(40, dtype=np.uint8))
    rows = [
        ("image", "patient", "label", "mask"),
        ("p0", "A", "lesion", "p0/mask.png"),
        ("p1/a.png", "B", "lesion", ""),
    ]
    write_table(tmp_path / "labels.csv", rows)
    config = picture_site(tmp_path, more=TRAIN)
    alone = load(config)
    write_table(tmp_path / "labels.csv", [*rows, ("p2/a.png", "C", "normal", "p1/a.png")])
    cohorts = load(config)
    assert (alone.table.taken, cohorts.table.taken, cohorts.table.quarantined) == (2, 3, {})
    assert by_patient(cohorts) == [[0], [1], [1]]


def test_a_dicom_line_hides_no_image_of_a_folder_that_it_is_not_about(tmp_path: Path) -> None:
    for name, patient in {"A/1.dcm": "A", "A/2.dcm": "A", "B/1.dcm": "B"}.items():
        save(dicom(picture(len(name) + ord(name[0]) + ord(name[2])), patient=patient), tmp_path / "images" / name)
    write_png(tmp_path / "images/A/seg/1.png", np.eye(40, dtype=np.uint8))
    rows = [("A", "normal", "A/seg")]
    tables = []
    for more in ([], [("B", "normal", "A/1.dcm")]):
        write_labels(tmp_path, rows + more, masks=True)
        tables.append(load(write_site(tmp_path, more=TRAIN)).table)
    assert [table.taken for table in tables] == [2, 3]
    assert [table.source_counts.mask_files for table in tables] == [1, 1]


def test_masks_are_found_by_names_that_hold_dots(tmp_path: Path) -> None:
    for number in (4, 5):
        save(dicom(picture(number), patient=f"P{number}"), tmp_path / f"images/study/1.2.3.{number}.dcm")
        mask = np.zeros((40, 40), np.uint8)
        mask[:number] = 1
        write_png(tmp_path / f"images/masks/1.2.3.{number}.png", mask)
    write_png(tmp_path / "images/masks/1.png", np.ones((40, 40), np.uint8))
    write_labels(tmp_path, [("study", "lesion", "masks")], masks=True)
    assert covered(load(write_site(tmp_path, more=TRAIN), mask_channels=1)) == [160, 200]


def test_what_does_not_say_on_which_frame_it_lies_is_no_mask_of_several(tmp_path: Path) -> None:
    dataset = dicom(picture(), patient="A", NumberOfFrames=3)
    dataset.PixelData = np.stack([picture(seed) for seed in range(3)]).astype("<u2").tobytes()
    for name in ("mask", "boxes", "none"):
        dataset.PatientID = name
        save(dataset, tmp_path / f"images/{name}.dcm")
    write_png(tmp_path / "m.png", np.eye(40, dtype=np.uint8))
    header = ("image", "label", "mask", "box")
    rows = [
        ("mask.dcm", "lesion", "m.png", ""),
        ("boxes.dcm", "lesion", "", "0 0 9 9"),
        ("none.dcm", "lesion", "", "none"),
    ]
    write_table(tmp_path / "labels.csv", [header, *rows])
    data = '[data]\nkind = "dicom"\npath = "images"\nlabels = "labels.csv"\nframes_per_file = 3'
    cohorts = load(write_site(tmp_path, data=data, more=TRAIN), mask_channels=1)
    assert cohorts.table.quarantined == {"BAD_MASK": 2}
    assert covered(cohorts) == [0, 0, 0]


def test_a_mask_region_that_the_plan_has_not_is_no_mask(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("image", "patient", "label", "mask")]
    for value in (0, 2, 3, 255):
        write_png(tmp_path / f"images/{value}.png", eight_bit(value))
        write_png(tmp_path / f"masks/{value}.png", np.full((40, 40), value, np.uint8))
        rows.append((f"{value}.png", value, "lesion", f"masks/{value}.png"))
    write_table(tmp_path / "labels.csv", rows)
    config = picture_site(tmp_path, more=TRAIN)
    assert load(config, mask_channels=2).table.quarantined == {"BAD_MASK": 2}
    assert load(config, mask_channels=1).table.quarantined == {}


@pytest.mark.parametrize("mask", ["a\0b", "x" * 300, "loop.png"])
def test_a_mask_path_that_no_file_can_have_spoils_its_own_image_only(tmp_path: Path, mask: str) -> None:
    for seed, name in enumerate("ab"):
        write_png(tmp_path / f"images/{name}.png", eight_bit(seed))
    write_png(tmp_path / "m.png", np.eye(40, dtype=np.uint8))
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    header = ("image", "patient", "label", "mask")
    write_table(tmp_path / "labels.csv", [header, ("a.png", "A", "lesion", mask), ("b.png", "B", "lesion", "m.png")])
    table = load(picture_site(tmp_path, more=TRAIN), strict=False, mask_channels=1).table
    assert (table.taken, table.quarantined) == (1, {"BAD_MASK": 1})


def test_a_folder_that_cannot_be_read_is_an_error_for_people_and_empty_for_a_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        write_png(tmp_path / f"images/{name}/1.png", eight_bit(seed))
    header = ("image", "patient", "label")
    write_table(tmp_path / "labels.csv", [header, ("a/1.png", "A", "lesion"), ("b/1.png", "B", "lesion")])
    config, listed, entered = picture_site(tmp_path, more=TRAIN), os.scandir, Path.is_file

    def refuse(path: Path) -> None:  # as for a user without the right, which these tests may run with
        if path.is_relative_to(tmp_path / "images/b"):
            raise PermissionError

    monkeypatch.setattr(os, "scandir", lambda path: refuse(Path(path)) or listed(path))
    with pytest.raises(SiteError, match="cannot be read .PermissionError."):
        load(config)
    assert load(config, strict=False).table.taken == 1
    monkeypatch.setattr(os, "scandir", listed)  # the folder's names can be had, but not what is in it
    monkeypatch.setattr(Path, "is_file", lambda path: refuse(path) or entered(path))
    with pytest.raises(SiteError, match="cannot be read .PermissionError."):
        load(config)
    assert load(config, strict=False).table.taken == 1


def test_nih_boxes_of_a_name_that_two_images_have_are_drawn_on_neither(tmp_path: Path) -> None:
    table = [("Image Index", "Finding Labels", "Patient ID")]
    for seed, folder in enumerate(("anna", "berta")):
        write_png(tmp_path / f"images/{folder}/1.png", eight_bit(seed))
        table.append((f"{folder}/1.png", "Effusion", folder))
    write_table(tmp_path / "labels.csv", table)
    config = picture_site(tmp_path, data='layout = "nih"\nboxes = "boxes.csv"', more=TRAIN + NIH)
    for named, expected in (("1.png", []), ("berta/1.png", [100])):
        (tmp_path / "boxes.csv").write_text(f"Image Index,Finding Label,Bbox [x,y,w,h]\n{named},Effusion,5,5,10,10\n")
        assert covered(load(config, strict=False, mask_channels=1)) == expected


@pytest.mark.parametrize("turned", [False, True])
def test_a_namesake_of_another_patient_leaves_an_nih_image_its_boxes_and_gets_none_of_them(
    tmp_path: Path, turned: bool
) -> None:
    for i, name in enumerate(("anna/1.png", "berta/1.png")):
        write_png(tmp_path / "images" / name, eight_bit(i))
    config = picture_site(tmp_path, data='layout = "nih"\nboxes = "boxes.csv"', more=TRAIN + NIH)
    (tmp_path / "boxes.csv").write_text("Image Index,Finding Label,Bbox [x,y,w,h]\n1.png,Effusion,5,5,10,10\n")
    header, *rows = [("Image Index", "Finding Labels", "Patient ID"), ("1.png", "Effusion", "A")]
    rows.append(("berta/1.png", "No Finding", "B"))
    write_table(tmp_path / "labels.csv", [header, *(rows[::-1] if turned else rows)])
    for strict in (True, False):
        assert covered(load(config, strict=strict, mask_channels=1)) == [0, 100]
    write_table(tmp_path / "labels.csv", [header, rows[0]])
    (tmp_path / "images/berta/1.png").unlink()
    assert covered(load(config, mask_channels=1)) == [100]


def test_the_nih_layout_with_its_boxes(tmp_path: Path) -> None:
    table = [
        ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
        ("00000001_000.png", "Effusion|Hernia", 0, 1, "058Y"),
        ("00000001_001.png", "No Finding", 1, 1, "058Y"),
        ("00000002_000.png", "Hernia", 0, 2, "081Y"),
        ("00000003_000.png", "Effusion", 0, 3, "081Y"),
    ]
    for seed, row in enumerate(table[1:]):
        write_png(tmp_path / f"images/images_00{seed + 1}/images/{row[0]}", eight_bit(seed))
    write_table(tmp_path / "labels.csv", table)
    (tmp_path / "boxes.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Effusion,5,5,10,10,,,\n00000001_000.png,Hernia,0,0,30,30,,,\n"
    )
    data = 'layout = "nih"\nboxes = "boxes.csv"'
    config = picture_site(tmp_path, data=data, more=TRAIN + NIH)
    plain = load(config)
    assert by_patient(plain) == [[0, 1], [1]]
    assert plain.table.quarantined == {"NO_LABEL": 1}
    boxed = load(config, mask_channels=1)
    # The box of a finding that stands for no label does not count; nothing was found, so there is nothing to draw.
    assert covered(boxed) == [0, 100]
    assert boxed.table.quarantined == {"NO_LABEL": 1, "NO_MASK": 1}
    assert boxed.table.boxed_images == 2


def test_the_chexpert_layout_and_its_uncertain_labels(tmp_path: Path) -> None:
    table: list[tuple[object, ...]] = [("Path", "Sex", *CHEXPERT_FINDINGS)]
    for number, marks in enumerate(
        [{"No Finding": "1.0"}, {"Pleural Effusion": "1.0"}, {"Pleural Effusion": "-1.0"}, {}]
    ):
        path = f"train/patient0000{number // 2}/study{number}/view1_frontal.jpg"
        write_png(tmp_path / "images" / path, eight_bit(number))
        table.append((f"CheXpert-v1.0/{path}", "F", *(marks.get(name, "") for name in CHEXPERT_FINDINGS)))
    write_table(tmp_path / "labels.csv", table)
    config = picture_site(tmp_path, data='layout = "chexpert"', more=TRAIN + CHEXPERT)
    dropped = load(config)
    assert by_patient(dropped) == [[0, 1]]
    assert dropped.table.quarantined == {"NO_LABEL": 1, "UNCERTAIN_LABEL": 1}
    kept = load(
        picture_site(
            tmp_path, data='layout = "chexpert"', more=TRAIN + CHEXPERT + 'uncertain = "lesion"\nmissing = "normal"'
        )
    )
    assert by_patient(kept) == [[0, 1], [0, 1]]
    assert kept.table.label_rules == {
        "several labels present": "left out",
        "only uncertain ones": "labelled lesion",
        "none": "labelled normal",
    }


def test_coco_boxes_of_a_plain_table(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [("image", "patient", "label")]
    for seed, name in enumerate("abcd"):
        write_png(tmp_path / f"images/x/{name}.png", eight_bit(seed))
        rows.append((f"x/{name}.png", name, "lesion"))
    write_table(tmp_path / "labels.csv", rows)
    coco = {
        "images": [{"id": i, "file_name": f"x/{name}.png"} for i, name in enumerate("abcz")],
        "annotations": [
            {"image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10]},
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 10, 10]},
        ],
        "categories": [{"id": 1, "name": "lump"}, {"id": 2, "name": "normal"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(coco))
    cohorts = load(picture_site(tmp_path, data='boxes = "boxes.json"', more=TRAIN), mask_channels=1)
    assert covered(cohorts) == [0, 100]
    assert cohorts.table.quarantined == {"NO_MASK": 2}  # boxes of another label only; not in the file of boxes
    assert cohorts.table.source_counts.boxes_without_file == 1


def test_nifti_slices_with_nifti_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows: list[tuple[object, ...]] = [("image", "patient", "label", "mask")]
    for patient in range(2):
        voxels = rng.integers(-500, 500, (40, 40, 9)).astype(np.int16)
        mask = np.zeros((40, 40, 9), np.uint8)
        mask[:10, :10, 1] = 1
        mask[:20, :10, 4] = 1
        write_nifti(tmp_path / f"images/{patient}.nii.gz", voxels)
        write_nifti(tmp_path / f"masks/{patient}.nii.gz", mask)
        rows.append((f"{patient}.nii.gz", f"{PLANTED}{patient}", "lesion", f"masks/{patient}.nii.gz"))
    write_nifti(tmp_path / "images/2.nii.gz", voxels)
    write_nifti(tmp_path / "masks/2.nii.gz", mask[:, :, :8])
    rows.append(("2.nii.gz", "C", "lesion", "masks/2.nii.gz"))
    write_table(tmp_path / "labels.csv", rows)
    config = picture_site(tmp_path, kind="nifti", modality="CT", data="frames_per_file = 3", more=TRAIN)
    cohorts = load(config, mask_channels=1)
    assert by_patient(cohorts) == [[1, 1, 1], [1, 1, 1]]
    assert covered(cohorts) == [0, 0, 100, 100, 200, 200]
    assert cohorts.table.quarantined == {"BAD_MASK": 1}
    assert (cohorts.table.modalities, cohorts.table.syntaxes) == ({"CT": 6}, {"NIfTI": 6})
    assert PLANTED.encode() not in state_bytes(config)
    middle = load(picture_site(tmp_path, kind="nifti", modality="CT", more=TRAIN), mask_channels=1)
    assert covered(middle) == [200, 200]


def test_a_folder_of_dicom_files_has_one_line(tmp_path: Path) -> None:
    for number in range(3):
        save(dicom(picture(number), patient="P"), tmp_path / f"images/study/{number}.dcm")
        write_png(tmp_path / f"images/masks/{number}.png", np.eye(40, dtype=np.uint8))
    write_labels(tmp_path, [("study", "lesion", "masks")], masks=True)
    cohorts = load_cohorts(write_site(tmp_path, more=TRAIN), image_spec(mask_channels=1), SECRET)
    assert (cohorts.train.patients, len(cohorts.train.images), cohorts.table.found) == (1, 3, 3)


def test_a_medmnist_file_as_it_is_published(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    sizes = {"train": 6, "val": 3, "test": 4}
    columns: dict[str, Any] = {}
    for part, size in sizes.items():
        columns[f"{part}_images"] = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        columns[f"{part}_labels"] = np.arange(size, dtype=np.uint8)[:, None] % 2
    np.savez(tmp_path / "data.npz", **columns)
    for validation, expected in (("train", (9, 4)), ("test", (6, 7)), ("drop", (6, 4))):
        data = f'[data]\nkind = "npz"\npath = "data.npz"\nvalidation = "{validation}"'
        cohorts = load_cohorts(write_site(tmp_path, data=data), image_spec(), SECRET)
        assert (len(cohorts.train.images), len(cohorts.test.images)) == expected
        assert (cohorts.train.patients, cohorts.test.patients) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val_labels": np.zeros((3, 2), np.uint8)}, "several labels an image are not taken"),
        ({"val_labels": np.zeros((2, 1), np.uint8)}, "val_labels is uint8 (2, 1)"),
        ({"val_labels": None}, "no val_labels"),
        ({"val_images": np.zeros((3, 14, 14), np.uint8)}, "use one size"),
        ({"val_images": np.zeros((3, 28, 28), np.float32)}, "val_images is float32"),
        ({"train_labels": np.full((2, 1), 5)}, "2 label(s) are not in 0..1"),
    ],
)
def test_a_wrong_medmnist_file_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    columns: dict[str, Any] = {}
    for part, size in {"train": 2, "val": 3}.items():
        columns |= {
            f"{part}_images": np.zeros((size, 28, 28), np.uint8),
            f"{part}_labels": np.zeros((size, 1), np.uint8),
        }
    columns = {name: column for name, column in (columns | changes).items() if column is not None}
    np.savez(tmp_path / "data.npz", **columns)
    config = write_site(tmp_path, data='[data]\nkind = "npz"\npath = "data.npz"')
    with pytest.raises(DataError) as caught:
        load_cohorts(config, image_spec(), SECRET)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_kind_are_quarantined(tmp_path: Path) -> None:
    header = ("image", "patient", "label")
    write_png(tmp_path / "images/a.png", eight_bit())
    save(dicom(picture()), tmp_path / "images/b.dcm")
    write_table(tmp_path / "labels.csv", [header, ("a.png", "A", "lesion"), ("b.dcm", "B", "lesion")])
    assert check_site(picture_site(tmp_path), image_spec()).quarantined == {"NOT_PICTURE": 1}
    nifti = picture_site(tmp_path, kind="nifti", modality="MR")
    assert check_site(nifti, image_spec()).quarantined == {"NOT_NIFTI": 2}
    write_labels(tmp_path, {"a.png": "lesion", "b.dcm": "lesion"})
    assert check_site(write_site(tmp_path), image_spec()).quarantined == {"NOT_DICOM": 1}


def test_a_held_modality_waits_for_a_person(tmp_path: Path) -> None:
    write_png(tmp_path / "images/a.png", eight_bit())
    write_table(tmp_path / "labels.csv", [("image", "patient", "label"), ("a.png", "A", "lesion")])
    config = picture_site(tmp_path, modality="US")
    table = check_site(config, image_spec())
    assert (table.quarantined, table.held) == ({"HELD": 1}, 1)
    text = config.source.read_text().replace("[deidentify]", "[deidentify]\nheld_modalities = []")
    config.source.write_text(text)
    assert check_site(load_site(config.source), image_spec()).taken == 1


def test_random_pictures_and_volumes_stop_nobody(tmp_path: Path) -> None:
    rng = random.Random(5)
    png = write_png(tmp_path / "images/good.png", eight_bit()).read_bytes()
    rows: list[tuple[object, ...]] = [("image", "patient", "label"), ("good.png", "G", "lesion")]
    for number in range(60):
        data = bytearray(png)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(8, len(data))] = rng.randrange(256)
        (tmp_path / f"images/{number}.png").write_bytes(data[: rng.randint(9, len(data))])
        rows.append((f"{number}.png", number, "lesion"))
    write_table(tmp_path / "labels.csv", rows)
    table = check_site(picture_site(tmp_path, more=TRAIN), image_spec(), limits=Limits(memory_bytes=1 << 30))
    assert table.taken + sum(table.quarantined.values()) == 61
    assert not {"CRASHED", "TIMEOUT", "MEMORY"} & set(table.quarantined)
    assert table.quarantined


def test_an_unreadable_folder_or_table_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    config = picture_site(tmp_path)
    with pytest.raises(SiteError, match="labels.csv cannot be read"):
        load(config)
    write_table(tmp_path / "labels.csv", [("image", "patient", "label")])
    with pytest.raises(SiteError, match="is not a folder; name the folder"):
        load(config)
