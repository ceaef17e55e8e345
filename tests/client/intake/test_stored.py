"""Words of pixel data to stored values and their modality's units: bits, padding, tables, spacing, colours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from client.intake.readers.dicom import read_dicom
from client.intake.readers.frames import Frame
from client.quarantine import EXPLAINED, Code, Refused
from tests.client.intake.dicom_files import dicom, picture, save


def read(dataset: Dataset, folder: Path) -> Frame:
    path = save(dataset, folder / "a.dcm")
    return read_dicom(path, file_bytes=1 << 24, pixels=1 << 22).frames[0]


def refused(dataset: Dataset, folder: Path) -> Code:
    with pytest.raises(Refused) as caught:
        read(dataset, folder)
    return caught.value.code


def bits(dataset: Dataset, *, stored: int, high: int, signed: bool = False) -> Dataset:
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = stored, high, int(signed)
    return dataset


# --- Which bits count


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_bits_below_the_stored_ones_are_shifted_out(syntax: str | None, tmp_path: Path) -> None:
    words = picture() << 4 | 5
    dataset = bits(dicom(words), stored=12, high=15)
    if syntax:
        dataset.HighBit = 11  # pydicom compresses what the standard allows
        dataset.BitsStored = 16
        dataset.compress(syntax)
        bits(dataset, stored=12, high=15)
    np.testing.assert_array_equal(read(dataset, tmp_path).pixels, picture())


def test_a_signed_value_in_the_upper_bits_keeps_its_sign(tmp_path: Path) -> None:
    values = picture().astype(np.int16) - 2000
    frame = read(bits(dicom((values << 4).view(np.uint16)), stored=12, high=15, signed=True), tmp_path)
    np.testing.assert_array_equal(frame.pixels, values)


def test_a_codestream_of_the_stored_bits_has_them_lowest(tmp_path: Path) -> None:
    dataset = dicom(picture())
    dataset.compress(JPEGLSLossless)
    dataset.HighBit = 15
    np.testing.assert_array_equal(read(dataset, tmp_path).pixels, picture())


def test_values_above_the_stored_bits_are_refused(tmp_path: Path) -> None:
    assert refused(bits(dicom(picture()), stored=10, high=9), tmp_path) is Code.HEADER


@pytest.mark.parametrize("extended", [True, False])
def test_the_sign_of_a_value_may_fill_the_bits_above_it_or_not(extended: bool, tmp_path: Path) -> None:
    values = picture().astype(np.int16) - 2000
    words = values.view(np.uint16) if extended else values.view(np.uint16) & 0xFFF
    frame = read(bits(dicom(words), stored=12, high=11, signed=True), tmp_path)
    np.testing.assert_array_equal(frame.pixels, values)


def test_pixels_without_a_sign_rule_are_refused_with_the_elements_name(tmp_path: Path) -> None:
    dataset = dicom(picture())
    del dataset.PixelRepresentation
    assert refused(dataset, tmp_path) is Code.HEADER
    assert "PixelRepresentation" in EXPLAINED[Code.HEADER]


def test_a_capture_of_one_bit_a_pixel_is_black_and_white(tmp_path: Path) -> None:
    drawn = picture(shape=(37, 41)) > 2500
    dataset = dicom(drawn)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    bits(dataset, stored=1, high=0).BitsAllocated = 1
    packed = np.packbits(drawn.ravel(), bitorder="little").tobytes()
    dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    dataset["PixelData"].VR = "OB"
    np.testing.assert_array_equal(read(dataset, tmp_path).pixels, drawn)


# --- Padding


@pytest.mark.parametrize(
    ("stored", "signed", "in_pixels", "vr", "written"),
    [
        (16, False, 63536, "SS", -2000),
        (16, True, -2000, "US", 63536),
        (12, True, -2048, "US", 2048),
        (12, False, 4095, "SS", -1),
        (12, False, 63536, "SS", -2000),
        (12, False, 63536, "US", 63536),
        (12, True, -2000, "US", 63536),
        (12, False, 0, "US", 0),
    ],
)
def test_padding_is_found_in_every_form_of_its_value(
    stored: int, signed: bool, in_pixels: int, vr: str, written: int, tmp_path: Path
) -> None:
    pixels = (picture().astype(np.int32) - (1500 if signed else 0)).clip(-2000 if signed else 2500, 4000)
    pixels = pixels.clip(max=2000 if signed else 4000)
    pixels[:10] = in_pixels
    dataset = bits(dicom(pixels.astype("<i4").astype(np.int16)), stored=stored, high=stored - 1, signed=signed)
    dataset.add_new(0x00280120, vr, written)
    frame = read(dataset, tmp_path)
    assert frame.valid is not None
    assert not frame.valid[:10].any()
    assert frame.valid[10:].sum() >= 1190  # what has the very value of the padding counts as such


def test_a_range_of_padding_around_zero_is_found_in_unsigned_words(tmp_path: Path) -> None:
    pixels = picture()
    pixels[:5], pixels[5:10] = 65534, 2
    dataset = bits(dicom(pixels), stored=16, high=15)
    dataset.add_new(0x00280120, "SS", -5)
    dataset.add_new(0x00280121, "SS", 5)
    valid = read(dataset, tmp_path).valid
    assert valid is not None
    np.testing.assert_array_equal(valid, (np.arange(40) >= 10)[:, None] * np.ones((1, 40), bool))


# --- The modality LUT


def with_table(entries: bytes, descriptor: list[int], vr: str, **more: Any) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", descriptor)
    item.add_new(0x00283004, "LO", "US")
    item.add_new(0x00283006, vr, entries if vr in ("OB", "OW", "UN") else np.frombuffer(entries, "<u2").tolist())
    dataset = dicom(picture(), **more)
    dataset.ModalityLUTSequence = Sequence([item])
    return dataset


@pytest.mark.parametrize("vr", ["US", "OW", "OB", "UN"])
@pytest.mark.parametrize("stated", [8, 10, 12, 14, 16])
def test_a_table_of_words_gives_its_own_values_whatever_width_it_states(vr: str, stated: int, tmp_path: Path) -> None:
    table = (np.arange(4096) * 16 + 7).astype("<u2")
    frame = read(with_table(table.tobytes(), [4096, 0, stated], vr), tmp_path)
    np.testing.assert_array_equal(frame.pixels, table[picture()])


@pytest.mark.parametrize("vr", ["US", "OW", "OB"])
def test_a_table_of_bytes_has_two_in_a_word(vr: str, tmp_path: Path) -> None:
    table = (np.arange(4096) >> 4).astype(np.uint8)
    frame = read(with_table(table.tobytes(), [4096, 0, 8], vr), tmp_path)
    np.testing.assert_array_equal(frame.pixels, table[picture()])


def test_values_beyond_a_table_get_its_ends(tmp_path: Path) -> None:
    table = (np.arange(101) * 3).astype("<u2")
    frame = read(with_table(table.tobytes(), [101, 1500, 16], "US"), tmp_path)
    np.testing.assert_array_equal(frame.pixels, table[picture().astype(int).clip(1500, 1600) - 1500])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_table_reads_the_same_in_every_native_form(syntax: str, tmp_path: Path) -> None:
    table = (np.arange(4096) * 16).astype("<u2")
    dataset = with_table(table.tobytes(), [4096, 0, 16], "US")
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = picture().astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_array_equal(read(dataset, tmp_path).pixels, table[picture()])


def test_a_table_with_another_number_of_entries_than_it_states_is_refused(tmp_path: Path) -> None:
    assert refused(with_table(bytes(200), [4096, 0, 16], "OW"), tmp_path) is Code.HEADER


# --- Spacing


@pytest.mark.parametrize(
    ("vr", "written"),
    [("LO", ["0,5", "1,5"]), ("LO", "0.5"), ("FD", [0.0, 0.0]), ("FD", [0.0, 1.5]), ("LO", ["a", "b"])],
)
def test_a_spacing_that_cannot_be_read_is_refused(vr: str, written: Any, tmp_path: Path) -> None:
    dataset = dicom(picture())
    dataset.add_new(0x00280030, vr, written)
    assert refused(dataset, tmp_path) is Code.HEADER


def test_a_spacing_of_another_vr_is_read(tmp_path: Path) -> None:
    dataset = dicom(picture())
    dataset.add_new(0x00280030, "FD", [0.5, 1.5])
    assert read(dataset, tmp_path).spacing == (0.5, 1.5)


# --- CT


def test_ct_that_was_scaled_is_refused_with_its_own_code(tmp_path: Path) -> None:
    scaled = {"modality": "CT", "RescaleIntercept": "0", "RescaleSlope": "0.000244"}
    assert refused(dicom(picture(), **scaled), tmp_path) is Code.NOT_HOUNSFIELD
    assert read(dicom(picture(), modality="CT", RescaleIntercept="-1024"), tmp_path).window == (-1000.0, 1000.0)


# --- Colours


def colour_jpeg(*, subsampled: bool, marker: bytes, label: str) -> tuple[Dataset, np.ndarray]:
    """A DICOM file around a JPEG in YCbCr of soft colours, and its pixels as Pillow decodes the JPEG file."""
    rows, columns = np.mgrid[:40, :48]
    drawn = np.stack([4 * rows, 4 * columns, 200 - 2 * rows], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=95, subsampling=2 if subsampled else 0)
    whole = file.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(whole))).astype(np.float32)
    stream = whole[:2] + marker + whole[20:]  # in place of JFIF's marker
    dataset = dicom(drawn[..., 0], PhotometricInterpretation=label, SamplesPerPixel=3, PlanarConfiguration=0)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    dataset.Modality = "XC"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    return dataset, expected


ADOBE_YCC = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0\1"


@pytest.mark.parametrize(
    ("subsampled", "marker", "label"),
    [(True, b"", "RGB"), (False, ADOBE_YCC, "RGB"), (True, b"", "YBR_FULL_422"), (True, ADOBE_YCC, "YBR_FULL_422")],
)
def test_colours_are_those_that_the_jpeg_was_written_in(
    subsampled: bool, marker: bytes, label: str, tmp_path: Path
) -> None:
    dataset, expected = colour_jpeg(subsampled=subsampled, marker=marker, label=label)
    assert np.abs(read(dataset, tmp_path).pixels - expected).mean() < 4


def test_a_jpeg_that_says_nothing_has_the_colours_of_its_header(tmp_path: Path) -> None:
    dataset, expected = colour_jpeg(subsampled=False, marker=b"", label="RGB")
    assert np.abs(read(dataset, tmp_path).pixels - expected).mean() > 20


# --- Decoders


def test_a_decoder_that_fails_is_followed_by_the_next_one(tmp_path: Path) -> None:
    dataset = dicom(picture())
    dataset.compress(JPEGLSLossless)
    (stream,) = generate_frames(dataset.PixelData, number_of_frames=1)
    at = stream.index(b"\xff\xf7") + 11
    assert stream[at] == 0x11
    # The sampling of an only component says nothing; pyjpegls refuses any but 1 x 1, GDCM decodes it.
    dataset.PixelData = encapsulate([stream[:at] + b"\x22" + stream[at + 1 :]])
    np.testing.assert_array_equal(read(dataset, tmp_path).pixels, picture())
    dataset.PixelData = encapsulate([stream[: len(stream) // 2]])
    path = save(dataset, tmp_path / "half.dcm")
    with pytest.raises(RuntimeError):
        read_dicom(path, file_bytes=1 << 24, pixels=1 << 22)
