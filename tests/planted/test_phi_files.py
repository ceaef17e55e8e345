"""Identifiers planted wherever a file has room for one: none is in anything that is kept, and a leak is caught."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import config as pydicom_config

from client.cohort import check_site, load_cohorts
from client.config import SiteConfig
from client.deidentify.headers import HeaderRecord
from client.deidentify.survivors import identifiers_of, survivors
from client.intake import files
from client.intake.cache import Cache, Entry
from client.intake.readers.dicom import read_dicom
from client.quarantine import Code
from tests.client.intake.dicom_files import SECRET, dicom, image_spec, picture, write_hospital, write_labels, write_site
from tests.planted.phi_files import Planted, plant_everywhere

HOLDS_PATHS = frozenset({"quarantine.csv", "site.log"})
"""Files of the state folder that are documented to name files (docs/hospital-it.md)."""

NO_SEARCH = 'burned_in = "trust"\ntrusted_modalities = ["CR", "DX", "CT", "MR"]\nmodalities = ["CR", "DX", "CT", "MR"]'
"""No worker loads the text detector."""

KEY = "ab" * 32


@pytest.fixture(scope="module")
def planted() -> list[Planted]:
    return plant_everywhere(dicom(picture(), patient="MRNZQ0001", PatientName="Quillfeather^Theodoric"))


@pytest.fixture(scope="module")
def hospital(planted: list[Planted], tmp_path_factory: pytest.TempPathFactory) -> SiteConfig:
    folder = tmp_path_factory.mktemp("planted")
    labels = {}
    for number, file in enumerate(planted):
        # Folders and files are named after patients, as exports are.
        name = f"QUILLFEATHER_THEODORIC/{file.values[0].replace('/', '')}_{number}.dcm"
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(file.content)
        labels[name] = "normal"
    (folder / "images" / "QUILLFEATHER_THEODORIC" / "broken.dcm").write_bytes(planted[0].content[:-2000])
    labels["QUILLFEATHER_THEODORIC/broken.dcm"] = "lesion"
    write_labels(folder, labels)
    site = write_site(folder, deidentify=NO_SEARCH, more="[cohort]\ntest_fraction = 0.0")
    table = load_cohorts(site, image_spec(), SECRET).table
    # One picture in all of them: it is taken once for its patient, and once for the JPEG, which is lossy.
    assert table.taken + table.duplicates == len(planted)
    assert sum(table.quarantined.values()) == 1
    return site


def kept_files(state: Path) -> list[Path]:
    return [path for path in sorted(state.rglob("*")) if path.is_file() and path.name not in HOLDS_PATHS]


def leaks(paths: Iterable[Path], values: Iterable[str]) -> list[str]:
    wanted = list(values)
    return [path.name for path in paths if survivors(path.read_bytes(), wanted)]


def test_every_planted_value_is_in_its_file(planted: list[Planted]) -> None:
    assert sum(len(file.values) for file in planted) > 2500
    for file in planted:
        assert survivors(file.content, file.values) == len(set(file.values)), file.place
        assert file.content.count(b"DICM") >= 1


def test_not_one_planted_value_is_in_anything_that_is_kept(planted: list[Planted], hospital: SiteConfig) -> None:
    values = [value for file in planted for value in file.values]
    values += ["Quillfeather", "Theodoric", "MRNZQ0001", str(hospital.data.path)]
    kept = kept_files(hospital.state)
    assert sum(path.suffix == ".safetensors" for path in kept) >= len(planted)
    assert leaks(kept, values) == []


def test_the_files_that_hold_paths_do_and_the_search_sees_it(hospital: SiteConfig) -> None:
    listed = hospital.state / "quarantine.csv"
    assert listed.stat().st_mode & 0o077 == 0
    with listed.open() as file:
        assert len(list(csv.DictReader(file))) == 1
    assert leaks([listed], ["Quillfeather"]) == ["quarantine.csv"]


def test_a_worker_knows_what_to_look_for(planted: list[Planted]) -> None:
    # What lies inside pixel data is not searched for: it is decoded, and the decoded array holds no text.
    in_pixels = {"JPEG comment": 2, "trailing bytes": 1, "icon and profile": 1}
    for file in planted:
        found = identifiers_of(pydicom.dcmread(io.BytesIO(file.content)))
        unknown = [value for value in file.values if not any(value in text for text in found)]
        assert len(unknown) == in_pixels.get(file.place, 0), file.place


# --- The same intake with a bug in it is caught, beside the one that passes. ---


def record(**changes: object) -> HeaderRecord:
    values = {"modality": "CR", "rows": 40, "columns": 40, "samples": 1, "photometric": "MONOCHROME2"}
    made = HeaderRecord(**values, bits_stored=12, transfer_syntax="explicit little endian", view_position="")
    for name, value in changes.items():  # past the checks of its construction, as a bug in them would
        object.__setattr__(made, name, value)
    return made


def entry_of(file: Planted, folder: Path) -> tuple[Entry, tuple[str, ...]]:
    path = folder / "file.dcm"
    path.write_bytes(file.content)
    source = read_dicom(path, file_bytes=1 << 20, pixels=1 << 20)
    pixels = source.frames[0].pixels
    planes = (pixels / pixels.max()).astype(np.float32)[None, None]
    return Entry(planes=planes, record=record(), blanked=(0,), patient=KEY), source.identifiers


def bytes_passed_through(entry: Entry, content: bytes) -> Entry:
    raw = np.frombuffer(content[: entry.planes.nbytes].ljust(entry.planes.nbytes, b"\0"), np.float32)
    return replace(entry, planes=raw.reshape(entry.planes.shape))


BUGS = {
    "a header value is kept": lambda entry, _: replace(entry, record=record(view_position="Theodoric")),
    "a header value is kept in capitals": lambda entry, _: replace(entry, record=record(photometric="QUILLFEATHER")),
    "the patient is not keyed": lambda entry, _: replace(entry, patient="MRNZQ0001"),
    "bytes are passed through": bytes_passed_through,
}


@pytest.mark.parametrize("bug", BUGS)
def test_an_intake_that_leaks_is_stopped_before_anything_is_written(
    bug: str, planted: list[Planted], tmp_path: Path
) -> None:
    (file,) = [file for file in planted if file.place == "misplaced"]
    entry, identifiers = entry_of(file, tmp_path)
    cache = Cache(tmp_path / "cache", rules=bug, shape=(1, 40, 40))
    assert isinstance(cache.store("clean", entry, identifiers), Entry)
    assert cache.store("leaking", BUGS[bug](entry, file.content), identifiers) is Code.IDENTIFIER
    assert cache.load("leaking") is Code.IDENTIFIER
    assert leaks(kept_files(tmp_path / "cache"), identifiers) == []


def test_a_site_that_forgets_to_key_its_patients_trains_on_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hospital(tmp_path, patients=2, images=1)
    config = write_site(tmp_path, deidentify=NO_SEARCH)
    monkeypatch.setattr(files, "patient_key", lambda _, patient: patient)
    table = check_site(config, image_spec())
    assert table.quarantined == {"IDENTIFIER": 2}
    assert table.taken == 0
    assert leaks(kept_files(config.state / "cache"), ["MRN00000", "MRN00001"]) == []
    monkeypatch.undo()
    shutil.rmtree(config.state)
    assert check_site(config, image_spec()).taken == 2


def test_what_every_artefact_says_is_no_identifier(tmp_path: Path) -> None:
    write_hospital(tmp_path, patients=1, images=1)
    config = write_site(tmp_path, deidentify=NO_SEARCH)
    load_cohorts(config, image_spec(), SECRET)
    (entry,) = (config.state / "cache").rglob("*.safetensors")
    header = entry.read_bytes().split(b"}}", 1)[0]
    words = {word.decode() for word in re.findall(rb"[A-Za-z_0-9]{5,}", header)}
    assert {"columns", "MONOCHROME2", "blanked"} <= words
    (key,) = [word for word in words if re.fullmatch("[0-9a-f]{64}", word)]
    assert survivors(entry.read_bytes(), words - {key}) == 0
    assert survivors(entry.read_bytes(), [key]) == 1  # were it a text of the source


# --- Real files with planted identifiers. ---

SHARED = Path(os.environ.get("GHOSTNET_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
DICOM_PHI = SHARED / "data" / "dicom_phi"


@pytest.mark.skipif(
    not DICOM_PHI.is_dir(), reason="no dicom_phi in $GHOSTNET_SHARED/data (../shared/data without it): real CR, CT, MR"
)
def test_no_header_value_of_real_files_is_in_any_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydicom_config.settings, "reading_validation_mode", pydicom_config.IGNORE)
    names = sorted(path.name for path in DICOM_PHI.glob("*.dcm"))
    (tmp_path / "images").symlink_to(DICOM_PHI)
    write_labels(tmp_path, dict.fromkeys(names, "normal"))
    site = write_site(tmp_path, deidentify=NO_SEARCH)
    table = load_cohorts(site, image_spec(), SECRET).table
    assert table.taken + table.duplicates == len(names)
    assert len(names) >= 40
    values = {text for name in names for text in identifiers_of(pydicom.dcmread(DICOM_PHI / name))}
    values |= {text for name in names for text in answers(DICOM_PHI / name)}
    assert len(values) > 500
    assert leaks((site.state / "cache").rglob("*.safetensors"), values) == []


def answers(path: Path) -> list[str]:
    """Every planted text of a file's answer key, and the words of its original name."""
    key = path.with_suffix(".json").read_text()
    return re.findall(r'"text": "([^"]{5,})"', key) + re.findall(r"[A-Za-z]{5,}", key.split('"annotation"')[0])
