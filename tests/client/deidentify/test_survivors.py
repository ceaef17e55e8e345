"""The last look finds a header's text in whatever encoding it was left, and finds none where none is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from client.deidentify.survivors import MAX_IDENTIFIER_CHARACTERS, MAX_IDENTIFIERS, identifiers_of, survivors
from tests.client.intake.dicom_files import dicom, picture

NOISE = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32).tobytes()


def hidden(text: bytes) -> bytes:
    """Bytes of an artefact around a text, at an odd offset."""
    return NOISE[:1237] + text + NOISE[1237:]


@pytest.mark.parametrize("coding", ["utf-8", "latin-1", "utf-16-le", "utf-16-be", "iso8859-9", "gb18030"])
@pytest.mark.parametrize("name", ["Quillfeather", "MRN12345", "Ährenhöfer"])
def test_a_name_is_found_in_every_encoding_and_case(name: str, coding: str) -> None:
    for written in (name, name.upper(), name.lower()):
        assert survivors(hidden(written.encode(coding)), [name]) == 1
    assert survivors(NOISE, [name]) == 0


@pytest.mark.parametrize(
    ("name", "coding"),
    [
        ("山田太郎", "shift_jis"),
        ("山田太郎", "iso2022_jp_2"),
        ("김희중씨", "euc_kr"),
        ("Иванова", "iso8859-5"),
        ("Łódźka", "iso8859-2"),
    ],
)
def test_a_name_is_found_in_the_character_set_of_its_country(name: str, coding: str) -> None:
    assert survivors(hidden(name.encode(coding)), [name]) == 1


def test_a_name_is_found_as_json_wrote_it() -> None:
    name = 'Ährenhöfer "Änne"'
    once = json.dumps({"name": name})
    assert survivors(hidden(once.encode()), [name]) == 1
    assert survivors(hidden(json.dumps({"entry": once}).encode()), [name]) == 1


def test_composed_and_decomposed_letters_are_one_name() -> None:
    assert survivors(hidden("A\u0308hrenho\u0308fer".encode()), ["Ährenhöfer"]) == 1


def test_each_identifier_counts_once() -> None:
    artefact = hidden(b"Quillfeather MRN12345 quillfeather")
    assert survivors(artefact, ["Quillfeather", "Quillfeather", "MRN12345", "Ostervald"]) == 2


@given(st.text(min_size=4, max_size=40), st.binary(max_size=300), st.binary(max_size=300))
def test_any_text_in_any_bytes_is_found(end: str, before: bytes, after: bytes) -> None:
    text = f"ZQ{end}"  # no fixed word of an artefact
    try:
        written = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair is no text
        return
    assert survivors(before + written + after, [text]) == 1


def test_digits_of_a_keyed_hash_are_not_taken_for_a_number() -> None:
    key = "0123456789abcdef" * 4
    artefact = json.dumps({"patient": key}).encode()
    assert survivors(artefact, ["12345", "456789"]) == 0
    assert survivors(artefact + b" 12345", ["12345", "456789"]) == 1
    assert survivors(artefact, [key]) == 1


def test_pixels_alone_are_never_taken_for_text() -> None:
    # 4 MB and 3000 eight-digit numbers: by the docstring a false alarm has probability below 1e-8 for this seed.
    rng = np.random.default_rng(1)
    pixels = rng.uniform(-1, 1, 1 << 20).astype(np.float32).tobytes()
    numbers = [str(number) for number in rng.integers(10**7, 10**8, 3000)]
    assert survivors(pixels, numbers) == 0


class Watched(bytes):
    """An artefact that counts how often it is searched from end to end, in whole or in its copies."""

    searches = 0

    def __contains__(self, needle: object) -> bool:
        Watched.searches += 1
        return super().__contains__(needle)  # type: ignore[operator]

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return Watched(found) if isinstance(key, slice) else found

    def __add__(self, after: Any) -> Watched:
        return Watched(bytes(self) + bytes(after))

    def __radd__(self, before: bytes) -> Watched:
        return Watched(before + bytes(self))

    def lower(self) -> Watched:
        return Watched(super().lower())


def test_thousands_of_identifiers_are_looked_for_in_one_pass() -> None:
    numbers = [str(number) for number in np.random.default_rng(2).integers(10**7, 10**8, MAX_IDENTIFIERS)]
    Watched.searches = 0
    assert survivors(Watched(NOISE * 50), numbers) == 0
    assert Watched.searches <= len(numbers) / 100
    assert survivors(Watched(NOISE * 50 + numbers[0].encode()), numbers) == 1
    assert Watched.searches > 0  # it does count


def test_every_text_of_a_header_is_an_identifier() -> None:
    inner, middle = Dataset(), Dataset()
    inner.PersonName = "Ostervald^Rosalinda"
    middle.AcquisitionContextSequence = Sequence([inner])
    dataset = dicom(picture(), patient="MRN1234567", PatientName="Quillfeather^Theodoric=山田^太郎")
    dataset.StudyDate, dataset.AccessionNumber = "20130713", "ACC0001"
    dataset.ImageComments = "first line\nsecond line of text"
    dataset.OtherPatientNames = ["Bramblewick^Cornelius", "Thistlewood"]
    dataset.RequestAttributesSequence = Sequence([middle])
    dataset.private_block(0x0099, "ACME PRIVATE", create=True).add_new(1, "UN", b"\0\x01hidden text\0")
    dataset.preamble = b"in the preamble".ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = "CONSOLE7"
    found = identifiers_of(dataset)
    wanted = {"Quillfeather", "Theodoric", "山田", "太郎", "Ostervald", "Rosalinda", "Bramblewick", "Cornelius"}
    wanted |= {"Thistlewood", "MRN1234567", "20130713", "ACC0001", "second line of text", "hidden text", "ACME PRIVATE"}
    wanted |= {"in the preamble", "CONSOLE7", dataset.SOPInstanceUID}
    assert wanted - set(found) == set()
    assert not any(text.startswith("1.2.840.10008.") for text in found)


def test_identifiers_are_bounded_and_hold_no_pixels() -> None:
    dataset = dicom(picture())
    dataset.PixelData = b"PIXELS AS TEXT  " * 200
    block = dataset.private_block(0x0099, "MANY", create=True)
    for number in range(200):
        block.add_new(number, "LO", [f"text {number} {part}" for part in range(30)])
    dataset.ImageComments = "x" * 10_000
    found = identifiers_of(dataset)
    assert len(found) == MAX_IDENTIFIERS
    assert max(map(len, found)) <= MAX_IDENTIFIER_CHARACTERS
    assert not any("PIXELS" in text for text in found)


def test_a_value_that_is_not_what_it_should_be_is_looked_at_as_bytes() -> None:
    dataset = dicom(picture())
    dataset["Rows"]._value = b"Quillfeather"
    assert "Quillfeather" in identifiers_of(dataset)
