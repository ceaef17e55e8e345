"""Files to data sets: with or without a preamble, whole or cut short, deflated or not."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from client.formats import FIRST_BYTES, begins_as_dicom
from client.intake.readers.dicom import read_dicom
from client.quarantine import EXPLAINED, Code, Refused
from tests.client.intake.dicom_files import dicom, picture, save

RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"  # not taken


def code_of(path: Path) -> Code | None:
    try:
        read_dicom(path, file_bytes=1 << 24, pixels=1 << 22)
    except Refused as refusal:
        return refusal.code
    return None


# --- No preamble


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_data_set_without_a_preamble_is_taken(syntax: str, tmp_path: Path) -> None:
    dataset = dicom(picture())
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = picture().astype(">u2").tobytes()
    del dataset.file_meta
    form = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
    dcmwrite(tmp_path / "a.dcm", dataset, enforce_file_format=False, **form)
    assert (tmp_path / "a.dcm").read_bytes()[128:132] != b"DICM"
    source = read_dicom(tmp_path / "a.dcm", file_bytes=1 << 24, pixels=1 << 22)
    np.testing.assert_array_equal(source.frames[0].pixels, picture())
    assert source.patient_id.strip() == "P1"


def test_a_meta_group_without_a_preamble_says_the_syntax(tmp_path: Path) -> None:
    dataset = dicom(picture())
    dataset.compress(RLELossless)
    path = save(dataset, tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[132:])
    assert code_of(path) is None


@pytest.mark.parametrize(
    "first",
    [b"", bytes(400), b"image,label\na.dcm,normal\n" * 20, b"\x08\x00" * 200, b"\x89PNG\r\n\x1a\n" + bytes(400)],
)
def test_other_files_are_no_data_set(first: bytes) -> None:
    assert not begins_as_dicom(first[:FIRST_BYTES])


# --- Cut short


def nested(undefined: bool) -> Dataset:
    dataset = dicom(picture())
    inner, outer = Dataset(), Dataset()
    inner.PatientName = "A^B"
    outer.add_new(0x00089124, "SQ", Sequence([inner]))
    dataset.add_new(0x00081140, "SQ", Sequence([outer]))
    for item in (inner, outer):
        item.is_undefined_length_sequence_item = undefined
    dataset[0x00081140].is_undefined_length = undefined
    return dataset


@pytest.mark.parametrize("sop_class", [None, RT_DOSE])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("undefined", [False, True])
def test_a_file_cut_short_is_truncated_whatever_class_it_claims(
    sop_class: str | None, syntax: str, undefined: bool, tmp_path: Path
) -> None:
    dataset = nested(undefined)
    if syntax == RLELossless:
        dataset.compress(syntax)
    if sop_class:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    data = save(dataset, tmp_path / "whole.dcm").read_bytes()
    assert code_of(tmp_path / "whole.dcm") is (Code.SOP_CLASS if sop_class else None)
    pixels = data.index(b"\xe0\x7f\x10\x00")
    cuts = [*range(pixels - 150, pixels + 400, 7), len(data) - 200, len(data) - 20]
    codes = []
    for cut in cuts:
        (tmp_path / "cut.dcm").write_bytes(data[:cut])
        codes.append(code_of(tmp_path / "cut.dcm"))
    # Where a file ends with an element nothing of it says that more was to come.
    assert codes.count(Code.TRUNCATED) >= len(cuts) - 3
    assert codes[-60:] == [Code.TRUNCATED] * 60
    assert None not in codes


def test_bytes_after_the_pixels_do_not_matter(tmp_path: Path) -> None:
    path = save(dicom(picture()), tmp_path / "a.dcm")
    for after in (b"\0", bytes(7), b"\xfc\xff\xfc\xffOB\0\0\xff\0\0\0junk"):
        (tmp_path / "b.dcm").write_bytes(path.read_bytes() + after)
        assert code_of(tmp_path / "b.dcm") is None


# --- Deflated


def test_a_deflated_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    dataset = dicom(picture())
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    whole = save(dataset, tmp_path / "a.dcm").read_bytes()
    assert code_of(tmp_path / "a.dcm") is None
    at = 132 + 12 + int(read_file_meta_info(tmp_path / "a.dcm").FileMetaInformationGroupLength)
    plain = zlib.decompress(whole[at:], -zlib.MAX_WBITS)
    (tmp_path / "b.dcm").write_bytes(whole[:at] + zlib.compress(plain))  # with zlib's header, which it may not have
    assert code_of(tmp_path / "b.dcm") is Code.UNREADABLE
    assert "data set" in EXPLAINED[Code.UNREADABLE]
    (tmp_path / "c.dcm").write_bytes(whole[: len(whole) // 2])
    assert code_of(tmp_path / "c.dcm") is Code.TRUNCATED


# --- Elements that cannot be read


@pytest.mark.parametrize("element", [b"\x28\0\0\0ZZ\0\0", b"\x18\0\x99\x99IS\4\0zzzz", b"\x28\0\x08\0IS\4\x001.5 "])
def test_an_element_that_cannot_be_read_is_not_called_pixels_that_cannot(element: bytes, tmp_path: Path) -> None:
    data = save(dicom(picture()), tmp_path / "a.dcm").read_bytes()
    at = data.index(b"\x28\0\x02\0US")
    (tmp_path / "b.dcm").write_bytes(data[:at] + element + data[at:])
    number_of_frames = element.startswith(b"\x28\0\x08\0")
    assert code_of(tmp_path / "b.dcm") is (Code.FRAMES if number_of_frames else None)
