"""The list of withdrawn patients: keyed like the images, and an error where it cannot be followed."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.deidentify.pseudonyms import patient_key
from client.exclusions import read_exclusions
from ghostnet.errors import SiteError
from tests.client.intake.dicom_files import SECRET


def write(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "withdrawn.txt"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_patients_are_keyed_as_their_images_are(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff# withdrawn in May\r\nMRN00001\r\n\r\n  MRN00002 \nMüller 7\nMRN00001".encode())
    expected = {patient_key(SECRET, name) for name in ("MRN00001", "MRN00002", "Müller 7")}
    assert read_exclusions(path, SECRET) == expected
    assert read_exclusions(path, bytes(32)).isdisjoint(expected)


def test_an_empty_list_leaves_nobody_out(tmp_path: Path) -> None:
    assert read_exclusions(write(tmp_path, b"# nobody yet\n"), SECRET) == frozenset()


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [(b"MRN00001\n\xff\xfe\n", 0o600, "not UTF-8"), (b"MRN00001\n", 0o666, "changed by everyone")],
)
def test_a_list_that_cannot_be_followed_ends_the_intake(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    with pytest.raises(SiteError, match=said) as caught:
        read_exclusions(write(tmp_path, content, mode), SECRET)
    assert "MRN00001" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_no_empty_list(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        read_exclusions(tmp_path / "none.txt", SECRET)
    with pytest.raises(SiteError, match="cannot be read"):
        read_exclusions(tmp_path, SECRET)
