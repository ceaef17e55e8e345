"""The cohort: patients kept apart, work done once, and a table that says what happened without saying to whom."""

from __future__ import annotations

import csv
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from client.cohort import Cohorts, check_site, load_cohorts
from client.intake.task import Limits
from client.secrets import load_or_create_secret
from ghostnet.errors import DataError, SiteError
from tests.client.intake.dicom_files import (
    SECRET,
    dicom,
    image_spec,
    picture,
    save,
    write_hospital,
    write_labels,
    write_site,
)

NO_WORKER = Limits(startup_s=0.0)
"""With these a worker that is started at all ends the intake."""

ALL_TRAIN = "[cohort]\ntest_fraction = 0.0"


def entries(cohorts: Cohorts) -> list[bytes]:
    return sorted(image.numpy().tobytes() for part in (cohorts.train, cohorts.test) for image in part.images)


def test_every_image_of_a_patient_has_one_owner_and_one_side(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=12, images=2)
    cohorts = load_cohorts(config, image_spec(), SECRET)
    train, test, table = cohorts.train, cohorts.test, cohorts.table
    assert train.images.dtype == torch.float32
    assert train.images.shape[1:] == (1, 28, 28)
    assert train.patients + test.patients == table.patients == 12
    assert train.patients > test.patients > 0
    for part in (train, test):
        assert part.owners.bincount().tolist() == [2] * part.patients
        for owner in range(part.patients):
            assert len(set(part.labels[part.owners == owner].tolist())) == 1
    assert table.labels == {"lesion": 12, "normal": 12}
    assert table.modalities == {"CR": 24}
    assert table.syntaxes == {"explicit little endian": 24}
    assert table.quarantined == {}


def test_the_split_follows_the_secret_and_nothing_else(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=12, images=1)
    first = load_cohorts(config, image_spec(), SECRET)
    again = load_cohorts(config, image_spec(), SECRET)
    other = load_cohorts(config, image_spec(), bytes(32))
    assert torch.equal(first.train.images, again.train.images)
    assert entries(first) == entries(other)
    assert sorted(map(bytes, first.test.images.numpy())) != sorted(map(bytes, other.test.images.numpy()))


def test_one_patient_more_changes_nobody_elses_rows(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=8, images=2)
    with_all = load_cohorts(config, image_spec(), SECRET)
    # The extra patient repeats pixels of patient 0: dropping either copy would tie the two together.
    shutil.rmtree(tmp_path / "images" / "p7")
    without = load_cohorts(config, image_spec(), SECRET)
    dataset = pydicom.dcmread(tmp_path / "images" / "p0" / "0.dcm")
    dataset.PatientID = "MRN00007"
    save(dataset, tmp_path / "images" / "p7" / "0.dcm")
    twin = load_cohorts(config, image_spec(), SECRET)
    assert set(entries(without)) <= set(entries(with_all))
    assert len(entries(twin)) == len(entries(without)) + 1
    assert twin.table.duplicates == 0
    assert twin.table.shared_pixels == 2


def test_the_same_pixels_twice_count_once_for_a_patient(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=3, images=2)
    shutil.copy(tmp_path / "images/p0/0.dcm", tmp_path / "images/p0/9.dcm")
    dataset = pydicom.dcmread(tmp_path / "images/p1/0.dcm")
    dataset.StudyDescription = "another header, the same pixels"
    save(dataset, tmp_path / "images/p1/9.dcm")
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("p0/9.dcm,normal\np1/9.dcm,lesion\n")
    table = check_site(config, image_spec())
    assert (table.found, table.taken, table.duplicates, table.shared_pixels) == (8, 6, 2, 0)


# --- Work done once


def test_a_second_run_opens_no_file_again(tmp_path: Path) -> None:
    config = write_hospital(tmp_path)
    first = load_cohorts(config, image_spec(), SECRET)
    second = load_cohorts(config, image_spec(), SECRET, limits=NO_WORKER)
    assert (first.table.from_cache, second.table.from_cache) == (0, 12)
    assert entries(first) == entries(second)
    renamed = image_spec(labels=("normal", "tumour"), label_prior=(0.9, 0.1))
    (tmp_path / "labels.csv").write_text((tmp_path / "labels.csv").read_text().replace("lesion", "tumour"))
    assert load_cohorts(config, renamed, SECRET, limits=NO_WORKER).table.labels == {"normal": 6, "tumour": 6}


def test_images_from_the_cache_are_among_those_taken(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=2, images=1)
    shutil.copy(tmp_path / "images/p0/0.dcm", tmp_path / "images/p0/again.dcm")  # dropped: the same pixels
    save(dicom(np.zeros((40, 40), np.uint16)), tmp_path / "images/flat.dcm")  # its refusal is cached too
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("p0/again.dcm,normal\nflat.dcm,normal\n")
    check_site(config, image_spec())
    again = check_site(config, image_spec(), limits=NO_WORKER)
    assert (again.taken, again.from_cache, again.quarantined, again.duplicates) == (2, 2, {"FLAT": 1}, 1)


def test_shares_of_the_labels_shape_no_entry(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=2, images=1)
    load_cohorts(config, image_spec(), SECRET)
    for image in (image_spec(label_prior=(0.9, 0.1)), image_spec(released_prior=True)):
        assert load_cohorts(config, image, SECRET, limits=NO_WORKER).table.from_cache == 2


@pytest.mark.parametrize("change", ["size", "range", "modalities", "content", "secret"])
def test_whatever_shapes_an_entry_makes_a_new_one(tmp_path: Path, change: str) -> None:
    config, image, secret = write_hospital(tmp_path, patients=2, images=1), image_spec(), SECRET
    load_cohorts(config, image, secret)
    if change == "size":
        image = image_spec(size=32)
    elif change == "range":
        image = image_spec(range="[0,1]")
    elif change == "modalities":
        config = write_site(tmp_path, deidentify='burned_in = "trust"\ntrusted_modalities = ["CR"]')
    elif change == "content":
        for patient in range(2):
            save(dicom(picture(55 + patient), patient="MRN00000"), tmp_path / f"images/p{patient}/0.dcm")
    else:
        secret = bytes(32)
    with pytest.raises(SiteError, match="no image worker"):
        load_cohorts(config, image, secret, limits=NO_WORKER)


def test_a_refusal_is_remembered_and_an_accident_is_not(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=2, images=1)
    save(dicom(picture(), patient=None), tmp_path / "images/p0/0.dcm")
    assert load_cohorts(config, image_spec(), SECRET).table.quarantined == {"NO_PATIENT_ID": 1}
    again = load_cohorts(config, image_spec(), SECRET, limits=NO_WORKER)
    assert again.table.quarantined == {"NO_PATIENT_ID": 1}
    shutil.rmtree(config.state / "cache")
    small = Limits(pixels=1000)
    assert check_site(config, image_spec(), limits=small).quarantined == {"TOO_LARGE": 2}
    assert check_site(config, image_spec()).quarantined == {"NO_PATIENT_ID": 1}


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=3, images=1)
    first = load_cohorts(config, image_spec(), SECRET)
    kept = sorted((config.state / "cache").rglob("*.safetensors"))
    kept[0].write_bytes(kept[0].read_bytes()[:-100])
    kept[1].write_bytes(b"")
    second = load_cohorts(config, image_spec(), SECRET)
    assert second.table.from_cache == 1
    assert entries(first) == entries(second)


def test_a_patient_who_left_is_gone_from_the_cache_of_every_plan(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=3, images=2)
    for size in (28, 32):
        load_cohorts(config, image_spec(size=size), SECRET)
    assert len(list((config.state / "cache").rglob("*.safetensors"))) == 12
    shutil.rmtree(tmp_path / "images" / "p1")
    load_cohorts(config, image_spec(), SECRET)
    assert len(list((config.state / "cache").rglob("*.safetensors"))) == 8


def test_two_plans_in_turn_open_no_file_again(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=3, images=1)
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(tmp_path / "images" / "m.png")
    names = [f"p{patient}/0.dcm" for patient in range(3)]
    write_labels(tmp_path, [(name, "normal", "m.png") for name in names[:2]] + [(names[2], "lesion", "")], masks=True)
    drawn, plain = image_spec(mask_channels=1), image_spec()
    one_label = image_spec(labels=("lesion", "other"))
    for image in (drawn, plain, one_label):
        load_cohorts(config, image, SECRET, strict=False)
    for image, known in ((drawn, 2), (plain, 3), (one_label, 1), (plain, 3), (drawn, 2)):
        again = load_cohorts(config, image, SECRET, limits=NO_WORKER, strict=False)
        assert again.table.from_cache == known


def test_a_patient_who_withdraws_is_gone_from_the_cache_of_every_plan(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=3, images=2)
    for size in (28, 32):
        load_cohorts(config, image_spec(size=size), SECRET)
    (tmp_path / "out.txt").write_text("MRN00001\n")
    load_cohorts(write_site(tmp_path, more='[cohort]\nexclude = "out.txt"'), image_spec(), SECRET, limits=NO_WORKER)
    assert len(list((config.state / "cache").rglob("*.safetensors"))) == 8


def test_what_old_rules_made_does_not_pile_up(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=1, images=1)
    for size in range(16, 28):
        check_site(config, image_spec(size=size))
    assert len([path for path in (config.state / "cache").iterdir() if path.is_dir()]) == 8
    assert check_site(config, image_spec(size=27), limits=NO_WORKER).from_cache == 1


def test_a_review_that_may_show_a_withdrawn_patient_is_deleted_and_a_later_one_stays(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=3, images=1)
    review = config.state / "review"
    review.mkdir(parents=True)
    (review / "index.html").write_text("pictures")
    assert not check_site(config, image_spec()).source_counts.review_deleted
    (tmp_path / "out.txt").write_text("MRN00001\n")
    config = write_site(tmp_path, more='[cohort]\nexclude = "out.txt"')
    assert check_site(config, image_spec()).source_counts.review_deleted
    assert not review.exists()
    review.mkdir()
    assert not check_site(config, image_spec()).source_counts.review_deleted
    assert review.exists()


def test_only_the_sites_user_can_read_what_is_kept(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=2, images=1)
    load_cohorts(config, image_spec(), SECRET)
    for path in config.state.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_two_processes_share_one_cache(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=6, images=2)
    code = (
        "import sys; from pathlib import Path;"
        "from client.config import load_site; from client.cohort import load_cohorts;"
        "from tests.client.intake.dicom_files import SECRET, image_spec;"
        "c = load_cohorts(load_site(Path(sys.argv[1])), image_spec(), SECRET);"
        "print(c.table.from_cache, float(c.train.images.double().sum()), len(c.train.images))"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(config.source)]
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sorted(int(words[0]) for words in said) == [0, 12]  # one did the work, the other found it done
    assert said[0][1:] == said[1][1:]
    assert not list(config.state.rglob("*.tmp"))


def test_progress_counts_up_to_all_images(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    load_cohorts(write_hospital(tmp_path), image_spec(), SECRET, lambda *step: told.append(step))
    assert told[0] == ("images", 0, 12)
    assert told[-1] == ("images", 12, 12)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


# --- What is left out


def test_one_bad_file_is_quarantined_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=4, images=1)
    folder = tmp_path / "images"
    data = (folder / "p0/0.dcm").read_bytes()
    (folder / "DOE^JOHN.dcm").write_bytes(data[:-500])
    (folder / "notes.txt").write_text("not an image")
    (folder / "unlabelled.dcm").write_bytes(data)
    (folder / "empty-label.dcm").write_bytes(data)
    (folder / "DICOMDIR").write_bytes(data)
    (folder / ".hidden.dcm").write_bytes(data)
    with (tmp_path / "labels.csv").open("a") as file:
        file.write("DOE^JOHN.dcm,lesion\nempty-label.dcm,\ngone.dcm,lesion\n")
    table = load_cohorts(config, image_spec(), SECRET).table
    assert (table.found, table.taken) == (8, 4)
    assert table.quarantined == {"NOT_DICOM": 1, "NO_LABEL": 2, "TRUNCATED": 1}
    assert table.source_counts.rows_without_file == 1
    kept = json.loads((config.state / "intake.json").read_text())
    assert kept["quarantined"] == table.quarantined
    assert set(kept["explained"]) == set(table.quarantined)
    assert "DOE" not in (config.state / "intake.json").read_text()
    with (config.state / "quarantine.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["path"]: row["code"] for row in rows} == {
        "DOE^JOHN.dcm": "TRUNCATED",
        "notes.txt": "NOT_DICOM",
        "unlabelled.dcm": "NO_LABEL",
        "empty-label.dcm": "NO_LABEL",
    }
    assert {row["file"] for row in rows} == {row["file"] for row in kept["refused"]}


def test_a_folder_without_a_usable_image_is_an_error_and_a_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.txt").write_text("nothing")
    write_labels(tmp_path, {"a.txt": "lesion"})
    config = write_site(tmp_path)
    with pytest.raises(DataError, match="no image to train on among 1 .*NOT_DICOM 1"):
        load_cohorts(config, image_spec(), SECRET)
    assert check_site(config, image_spec()).quarantined == {"NOT_DICOM": 1}
    assert json.loads((config.state / "intake.json").read_text())["taken"] == 0
    (tmp_path / "images" / "a.txt").unlink()
    with pytest.raises(DataError, match="holds no image file"):
        check_site(config, image_spec())
    (tmp_path / "images").rmdir()
    with pytest.raises(SiteError, match="not a folder"):
        check_site(config, image_spec())


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (
            "image,label\np0/0.dcm,ZQSECRETQZ\np1/0.dcm,other\n",
            DataError,
            "2 line(s) with a label that the plan does not name",
        ),
        ("image,label\np0/0.dcm,lesion\n./p0/0.dcm,lesion\n", DataError, "1 image(s) twice"),
        ("file,label\np0/0.dcm,lesion\n", SiteError, "no column image"),
        ("image\np0/0.dcm\n", SiteError, "no column label"),
        ("", SiteError, "no column image"),
        ('"image,label\np0/0.dcm,lesion\n', SiteError, "cannot be read"),
        ('image,label\n"p0/0.dcm,lesion\n', DataError, "1 line(s) whose quotes do not match"),
    ],
)
def test_a_wrong_label_table_is_one_line_without_its_values(
    tmp_path: Path, text: str, error: type[Exception], said: str
) -> None:
    config = write_hospital(tmp_path, patients=2, images=1)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(error) as caught:
        load_cohorts(config, image_spec(), SECRET)
    assert said in str(caught.value)
    assert "ZQSECRETQZ" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_table_from_a_spreadsheet_is_understood(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=2, images=1)
    rows = "\ufeffimage,label,comment\r\np0\\0.dcm, normal ,x\r\n./p1/0.dcm,lesion,y\r\n"
    (tmp_path / "labels.csv").write_bytes(rows.encode())
    assert check_site(config, image_spec()).labels == {"lesion": 1, "normal": 1}


def test_a_mask_outside_the_hospitals_folders_is_not_opened(tmp_path: Path) -> None:
    from PIL import Image

    hospital = tmp_path / "hospital"
    save(dicom(picture()), hospital / "images" / "a.dcm")
    save(dicom(picture(1)), hospital / "images" / "b.dcm")
    for path in (tmp_path / "outside.png", hospital / "images" / "inside.png"):
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(path)
    rows = [("a.dcm", "lesion", "../../outside.png"), ("b.dcm", "lesion", "inside.png")]
    write_labels(hospital, rows, masks=True)
    config = write_site(hospital, more=ALL_TRAIN)
    cohorts = load_cohorts(config, image_spec(mask_channels=1), SECRET)
    assert cohorts.table.quarantined == {"BAD_MASK": 1}
    assert (cohorts.table.found, cohorts.train.images.shape[1]) == (2, 2)  # the mask inside is no image


def test_a_new_state_folder_is_the_sites_alone(tmp_path: Path) -> None:
    config = write_hospital(tmp_path, patients=1, images=1)
    check_site(config, image_spec())
    assert config.state.stat().st_mode & 0o777 == 0o700


def test_check_site_uses_the_sites_own_secret(tmp_path: Path) -> None:
    config = write_hospital(tmp_path)
    table = check_site(config, image_spec())
    secret = load_or_create_secret(config.state / "secret.key")
    cohorts = load_cohorts(config, image_spec(), secret, limits=NO_WORKER)
    assert cohorts.table.from_cache == 12
    assert (table.train_images, table.test_images) == (cohorts.table.train_images, cohorts.table.test_images)
    assert table.to_dict()["train_images"] == table.train_images
