"""De-identification of headers: the allow-list keeps closed values only, and identifiers become keyed hashes."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import pytest

from client.deidentify.headers import read_record, record_from_dict
from client.deidentify.pseudonyms import content_key, file_key, in_test_split, patient_key
from client.quarantine import Code, Refused
from tests.client.intake.dicom_files import SECRET, dicom, picture

EXPLICIT = "1.2.840.10008.1.2.1"
PLANTED = "ZQPLANTEDQZ"


def test_only_the_named_values_are_copied() -> None:
    dataset = dicom(picture(), ViewPosition="PA", PatientName=f"{PLANTED}^DOE", StudyDescription=PLANTED)
    assert asdict(read_record(dataset, EXPLICIT)) == {
        "modality": "CR",
        "rows": 40,
        "columns": 40,
        "samples": 1,
        "photometric": "MONOCHROME2",
        "bits_stored": 12,
        "transfer_syntax": "explicit little endian",
        "view_position": "PA",
    }


@pytest.mark.parametrize("claimed", ["CR", "OT", "", PLANTED])
def test_a_capture_is_a_capture_whatever_it_says(claimed: str) -> None:
    dataset = dicom(picture(), SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality=claimed)
    record = read_record(dataset, EXPLICIT)
    assert record.modality == "SC"
    assert PLANTED not in repr(record)


@pytest.mark.parametrize("claimed", ["CR", "DX", "DR", "PX", "RG"])
@pytest.mark.parametrize(("sop_class", "modality"), [("1", "CR"), ("1.1", "DX"), ("1.1.1", "DX")])
def test_radiographs_may_call_themselves_by_each_others_names(claimed: str, sop_class: str, modality: str) -> None:
    dataset = dicom(picture(), SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{sop_class}", Modality=claimed)
    assert read_record(dataset, EXPLICIT).modality == modality
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"  # CT
    with pytest.raises(Refused) as caught:
        read_record(dataset, EXPLICIT)
    assert caught.value.code is Code.MODALITY


@pytest.mark.parametrize("name", ["PNG", "JPEG file", "NIfTI"])
def test_a_record_serves_files_that_are_not_dicom(name: str) -> None:
    values = asdict(read_record(dicom(picture()), EXPLICIT)) | {"transfer_syntax": name, "modality": "OT"}
    assert record_from_dict(values).transfer_syntax == name


def test_free_text_in_a_code_attribute_is_not_kept() -> None:
    assert PLANTED not in repr(read_record(dicom(picture(), ViewPosition=PLANTED), EXPLICIT))


@pytest.mark.parametrize(
    ("attributes", "syntax", "code"),
    [
        ({"PhotometricInterpretation": PLANTED}, EXPLICIT, Code.HEADER),
        ({"Modality": PLANTED}, EXPLICIT, Code.MODALITY),
        ({"Modality": "CT"}, EXPLICIT, Code.MODALITY),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, EXPLICIT, Code.SOP_CLASS),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, EXPLICIT, Code.SOP_CLASS),
        ({"SOPClassUID": "1.2.3.4"}, EXPLICIT, Code.SOP_CLASS),
        ({"Rows": None}, EXPLICIT, Code.HEADER),
        ({"Rows": 0}, EXPLICIT, Code.HEADER),
        ({"BitsStored": 65}, EXPLICIT, Code.HEADER),
        ({}, "1.2.3.4", Code.TRANSFER_SYNTAX),
        ({}, "PNG", Code.TRANSFER_SYNTAX),
    ],
)
def test_what_is_not_on_a_list_is_refused_by_code_alone(attributes: dict[str, Any], syntax: str, code: Code) -> None:
    with pytest.raises(Refused) as caught:
        read_record(dicom(picture(), **attributes), syntax)
    assert caught.value.code is code
    assert PLANTED not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"modality": PLANTED},
        {"view_position": PLANTED},
        {"transfer_syntax": "1.2.3"},
        {"rows": 70000},
        {"rows": True},
        {"rows": "40"},
        {"rows": 40.0},
        {"photometric": ["MONOCHROME2"]},
        {"patient_name": PLANTED},
    ],
)
def test_a_worker_cannot_pass_text_through_a_record(change: dict[str, Any]) -> None:
    good = asdict(read_record(dicom(picture()), EXPLICIT))
    assert record_from_dict(good) == read_record(dicom(picture()), EXPLICIT)
    with pytest.raises(Refused):
        record_from_dict(good | change)


def test_a_patient_key_needs_the_secret() -> None:
    key = patient_key(SECRET, "12345678")
    assert key != patient_key(bytes(32), "12345678")
    assert key != hashlib.sha256(b"12345678").hexdigest()
    assert "12345678" not in key


def test_padding_is_no_other_patient_and_case_is() -> None:
    assert patient_key(SECRET, "AB1") == patient_key(SECRET, " AB1 \0")
    assert patient_key(SECRET, "AB1") != patient_key(SECRET, "ab1")
    for empty in ("", "  ", "\0"):
        with pytest.raises(ValueError, match="no patient"):
            patient_key(SECRET, empty)


def test_one_text_has_another_key_for_each_use() -> None:
    assert len({patient_key(SECRET, "A"), file_key(SECRET, "A"), content_key(SECRET, b"A")}) == 3
    assert content_key(SECRET, b"AB", b"C") != content_key(SECRET, b"A", b"BC")


def test_the_split_is_a_fair_keyed_coin() -> None:
    keys = [patient_key(SECRET, str(number)) for number in range(4000)]
    chosen = [in_test_split(SECRET, key, 0.2) for key in keys]
    # Binomial(4000, 0.2): 5 standard deviations are 127; a false alarm has probability 6e-7, once for this secret.
    assert abs(sum(chosen) - 800) < 127
    assert chosen == [in_test_split(SECRET, key, 0.2) for key in keys]
    assert chosen != [in_test_split(bytes(32), key, 0.2) for key in keys]
    assert not any(in_test_split(SECRET, key, 0.0) for key in keys)
