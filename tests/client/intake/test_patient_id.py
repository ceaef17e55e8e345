"""One patient's identifier is one, in whatever bytes, character set and Unicode form the machines wrote it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from client.cohort import load_cohorts
from client.deidentify.pseudonyms import patient_key
from client.intake.readers.dicom import read_dicom
from client.intake.sandbox.worker import _read_patient
from tests.client.intake.dicom_files import SECRET, dicom, image_spec, picture, save, write_labels, write_site

NAME = "M\u00dcL-0001"
PLACE = "PLACE-0001"  # as many bytes as the longest form, which takes its place
FORMS = {
    "latin-1, declared": (NAME.encode("latin-1"), "ISO_IR 100"),
    "UTF-8, declared": (NAME.encode(), "ISO_IR 192"),
    "latin-1, not declared": (NAME.encode("latin-1"), None),
    "UTF-8, not declared": (NAME.encode(), None),
    "UTF-8, declared as latin-1": (NAME.encode(), "ISO_IR 100"),
    "latin-1, declared as UTF-8": (NAME.encode("latin-1"), "ISO_IR 192"),
    "UTF-8, an unknown set": (NAME.encode(), "ISO_IR 999"),
    "letters and accents apart": (unicodedata.normalize("NFD", NAME).encode(), "ISO_IR 192"),
}


def write_form(path: Path, form: str, *, seed: int = 0) -> Path:
    written, declared = FORMS[form]
    dataset = dicom(picture(seed), patient=PLACE)
    if declared:
        dataset.SpecificCharacterSet = declared
    save(dataset, path)
    path.write_bytes(path.read_bytes().replace(PLACE.encode(), written.ljust(len(PLACE))))
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_form_is_the_same_patient(form: str, tmp_path: Path) -> None:
    path = write_form(tmp_path / "a.dcm", form)
    known = patient_key(SECRET, NAME)
    assert patient_key(SECRET, read_dicom(path, file_bytes=1 << 20, pixels=1 << 20).patient_id) == known
    answer, _ = _read_patient({"patient": str(path)})
    assert patient_key(SECRET, answer["patient_id"]) == known


def test_a_text_of_another_character_set_is_read_as_declared(tmp_path: Path) -> None:
    written = b"\x1b$B;3ED\x1b(B-1"
    dataset = dicom(picture(), patient="PLACE-0001X2")
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    path = save(dataset, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes().replace(b"PLACE-0001X2", written.ljust(12)))
    assert read_dicom(path, file_bytes=1 << 20, pixels=1 << 20).patient_id.strip() == "\u5c71\u7530-1"


def test_all_forms_are_one_patient_of_a_folder_and_one_withdrawal_removes_them(tmp_path: Path) -> None:
    for i, form in enumerate(FORMS):
        write_form(tmp_path / f"images/{i}.dcm", form, seed=i)
    write_labels(tmp_path, {f"{i}.dcm": "normal" for i in range(len(FORMS))})
    more = "[cohort]\ntest_fraction = 0.0\n"
    table = load_cohorts(write_site(tmp_path, more=more), image_spec(), SECRET, workers=1).table
    assert (table.taken, table.patients) == (len(FORMS), 1)
    (tmp_path / "withdrawn.txt").write_text(NAME, encoding="utf-8")
    config = write_site(tmp_path, more=more + 'exclude = "withdrawn.txt"\n')
    withdrawn = load_cohorts(config, image_spec(), SECRET, workers=1, strict=False).table
    assert (withdrawn.taken, withdrawn.excluded) == (0, len(FORMS))
