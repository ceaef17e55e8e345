"""Three invented hospitals on disk: real DICOM files of procedural phantoms, with identifiers planted everywhere.

No value belongs to anybody. Each hospital's `planted.json` lists every identifier that was written into its files, so
that a test can look for them in whatever leaves the hospital.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    RLELossless,
)

from client.site_toml import write_site
from ghostnet.durable import new_folder
from ghostnet.errors import DataError
from ghostnet.progress import Progress, silent
from ghostnet.training.device import AUTO
from ghostnet.training.phantom import LABELS, Anatomy, Label, Radiograph, draw_anatomy, radiograph

SIZE = 256  # px
BURNED_SHARE = 0.1  # of the images carry name and birth date in their pixels
IMAGES_A_PATIENT = (0.80, 0.14, 0.04, 0.02)  # share of patients with 1, 2, 3 and 4 images


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """The imaging equipment of one hospital."""

    hospital: str
    modality: str
    photometric: str
    bits: int  # bits stored, in 16
    slope: float
    intercept: float
    gaussian: float = 0.0  # noise, standard deviation in [0,1]
    impulses: float = 0.0  # share of pixels that are salt or pepper
    compressed: bool = False  # RLE Lossless


SCANNERS = (
    Scanner(
        hospital="north", modality="CR", photometric="MONOCHROME2", bits=12, slope=1.0, intercept=0.0, gaussian=0.05
    ),
    Scanner(hospital="south", modality="DX", photometric="MONOCHROME1", bits=16, slope=0.5, intercept=-200.0),
    Scanner(
        hospital="harbour",
        modality="DX",
        photometric="MONOCHROME2",
        bits=12,
        slope=2.0,
        intercept=-1024.0,
        impulses=0.03,
        compressed=True,
    ),
)

_SETTINGS: dict[str, object] = {
    "data.kind": "dicom",
    "data.path": "images",
    "data.labels": "labels.csv",
    "cohort.test_fraction": 0.25,
    "deidentify.modalities": ["CR", "DX"],
    "policy.max_epsilon": 20.0,
    "policy.delta": 1e-5,
    "policy.allow_real_reference": True,
}


def write_hospitals(
    folder: Path,
    *,
    hospitals: int = 3,
    patients: Sequence[int] = (160, 155, 150),
    seed: int = 0,
    device: str = AUTO,
    progress: Progress = silent,
) -> list[Path]:
    """Writes folder/sites/<name>/{site.toml, images/, masks/, labels.csv, planted.json} for north, south and harbour.

    North: CR, 12 bit, MONOCHROME2, Gaussian noise. South: DX, 16 bit, MONOCHROME1, rescaled. Harbour: DX, 12 bit, RLE
    Lossless, salt and pepper. One further file of each hospital is cut short, as after a broken transfer.

    Args:
        folder: is created; must not hold hospitals yet.
        hospitals: 1 to 3.
        patients: number of patients of each hospital, each with 1 to 4 images of 256 px and one label.
        seed: the same seed writes the same bytes.
        device: that the hospitals compute on.
        progress: called with images written; the total is an estimate until the end.

    Returns:
        The hospitals' site.toml files.

    Raises:
        DataError: a hospital or patient number out of range.
        RunFolderError: folder/sites holds something already, or cannot be written.
    """
    if not 1 <= hospitals <= len(SCANNERS) or len(patients) < hospitals or min(patients[:hospitals]) < 1:
        raise DataError(
            f"hospitals = {hospitals} with patients = {tuple(patients)}: give 1 to {len(SCANNERS)} hospitals, "
            "and at least one patient for each"
        )
    plans = [_draw_hospital(np.random.default_rng([seed, i]), patients[i]) for i in range(hospitals)]
    total, done = sum(sum(len(p.labels) for p in plan) for plan in plans), 0
    with new_folder(folder / "sites") as sites:
        for index, scanner in enumerate(SCANNERS[:hospitals]):
            site = sites / scanner.hospital
            rng = np.random.default_rng([seed, index, 1])
            records = []
            for patient in plans[index]:
                records += _write_patient(site, scanner, patient, rng)
                done += len(patient.labels)
                progress("phantoms", done, total)
            _truncate(site, records[0]["image"])
            _write_tables(site, scanner, plans[index], records, device)
    return [folder / "sites" / scanner.hospital / "site.toml" for scanner in SCANNERS[:hospitals]]


def planted_values(folder: Path) -> list[str]:
    """Every identifier that `write_hospitals` put into headers, pixels, names of files or folders under `folder`."""
    values: list[str] = []
    for manifest in sorted(folder.glob("sites/*/planted.json")):
        values += json.loads(manifest.read_text(encoding="utf-8"))["values"]
    return values


_FAMILY = ("QUILLFEATHER", "OSTERVALD", "BRAMBLEWICK", "THISTLEWOOD", "VANDERMOLEN", "HOLLOWAYSON", "PENNYROYALE")
_GIVEN = ("MARGUERITE", "THEODORIC", "ROSALINDA", "BARTHOLOMEW", "ANNELIESE", "CORNELIUS", "WILHELMINA")
_STREETS = ("Larkspur Lane", "Old Mill Road", "Cinder Alley", "Harbour Steps", "Foxglove Crescent")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Everything that could name one patient. Each value is long enough not to turn up by chance."""

    name: str  # DICOM PN
    burned_name: str  # as drawn into pixels
    patient_id: str
    second_id: str
    birth_date: str  # YYYYMMDD
    study_date: str
    address: str
    phone: str
    physician: str
    operator: str
    institution: str
    station: str
    device_serial: str
    accession: str
    comment: str
    uid_root: str  # holds the birth date, as some vendors' UIDs do

    def values(self) -> list[str]:
        """Every planted value."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def draw_person(rng: np.random.Generator) -> Person:
    """Draws one person."""

    def number(digits: int) -> str:
        return str(rng.integers(10 ** (digits - 1), 10**digits))

    def date(first_year: int, years: int) -> str:
        return f"{first_year + rng.integers(years)}{1 + rng.integers(12):02d}{1 + rng.integers(28):02d}"

    family = f"{rng.choice(_FAMILY)}{chr(65 + rng.integers(26))}{chr(65 + rng.integers(26))}"
    given, birth = str(rng.choice(_GIVEN)), date(1931, 60)
    return Person(
        name=f"{family}^{given}",
        burned_name=f"{family} {given}",
        patient_id=f"MRN{number(8)}",
        second_id=f"INS-{number(9)}",
        birth_date=birth,
        study_date=date(2015, 9),
        address=f"{number(3)} {rng.choice(_STREETS)}, {number(5)}",
        phone=f"+49-{number(3)}-{number(7)}",
        physician=f"DR{rng.choice(_FAMILY)}^{rng.choice(_GIVEN)}",
        operator=f"OP{rng.choice(_FAMILY)}^{number(4)}",
        institution=f"St. {str(rng.choice(_GIVEN)).title()} Infirmary {number(4)}",
        station=f"STN{number(6)}",
        device_serial=f"SN-{number(9)}",
        accession=f"ACC{number(9)}",
        comment=f"daughter {rng.choice(_GIVEN)} calls {number(8)}",
        uid_root=f"1.2.826.0.1.3680043.{number(6)}.{birth}.{number(7)}",
    )


@dataclass(frozen=True, kw_only=True)
class _Patient:
    person: Person
    anatomy: Anatomy
    labels: tuple[Label, ...]  # one an image


def _draw_hospital(rng: np.random.Generator, patients: int) -> list[_Patient]:
    drawn = []
    for index in range(patients):
        images = 1 + int(rng.choice(4, p=IMAGES_A_PATIENT))
        # Turn by turn, so that even a small hospital has both classes.
        label = LABELS[index % 2]
        drawn.append(_Patient(person=draw_person(rng), anatomy=draw_anatomy(rng), labels=(label,) * images))
    return drawn


def _write_patient(site: Path, scanner: Scanner, patient: _Patient, rng: np.random.Generator) -> list[dict[str, str]]:
    """Writes one patient's files; one record (image, label, mask, burned) each."""
    records = []
    for number, label in enumerate(patient.labels):
        taken = radiograph(patient.anatomy, rng, SIZE, label)
        burned = bool(rng.random() < BURNED_SHARE)
        seen = _add_noise(taken, scanner, rng)
        stored = _store(_burn(seen, patient.person, rng) if burned else seen, scanner)
        image = f"{patient.person.patient_id}/IM{number + 1:04d}.dcm"
        mask = f"masks/{patient.person.patient_id}_{number + 1:04d}.png"
        _write_dicom(site / "images" / image, stored, scanner, patient.person, number)
        (site / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(site / mask), taken.mask)
        records.append({"image": image, "label": label, "mask": mask, "burned": "yes" if burned else ""})
    return records


def _add_noise(taken: Radiograph, scanner: Scanner, rng: np.random.Generator) -> NDArray[np.float32]:
    image = 0.08 + 0.84 * taken.image  # the detector's range is never filled
    if scanner.gaussian:
        image = image + rng.normal(0, scanner.gaussian, image.shape)
    if scanner.impulses:
        coin = rng.random(image.shape)
        image = np.where(coin < scanner.impulses / 2, 0, np.where(coin > 1 - scanner.impulses / 2, 1, image))
    noisy: NDArray[np.float32] = np.clip(image, 0, 1).astype(np.float32)
    return noisy


def _burn(image: NDArray[np.float32], person: Person, rng: np.random.Generator) -> NDArray[np.float32]:
    """Name and birth date, as a console writes them: white on the image, after acquisition."""
    top = int(rng.choice([14, SIZE - 24]))
    ink = np.zeros(image.shape, np.uint8)
    for row, text in enumerate((person.burned_name, f"{person.birth_date} {person.patient_id}")):
        place = (4, top + 14 * row)
        cv2.putText(ink, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1, cv2.LINE_AA)
    darkened = image * (1 - cv2.dilate(ink, np.ones((3, 3), np.uint8)) / np.float32(255))
    burned: NDArray[np.float32] = np.maximum(darkened, ink / np.float32(255)).astype(np.float32)
    return burned


def _store(image: NDArray[np.float32], scanner: Scanner) -> NDArray[np.uint16]:
    highest = 2**scanner.bits - 1
    shown = 1 - image if scanner.photometric == "MONOCHROME1" else image
    stored: NDArray[np.uint16] = np.rint(shown * highest).astype(np.uint16)
    return stored


def _write_dicom(path: Path, stored: NDArray[np.uint16], scanner: Scanner, person: Person, number: int) -> None:
    data = _identifiers(scanner, person, number)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.SourceApplicationEntityTitle = person.station
    data.preamble = f"{person.name} {person.patient_id}".encode("ascii")[:128].ljust(128, b"\0")
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = scanner.photometric
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, scanner.bits, scanner.bits - 1
    data.PixelRepresentation = 0
    data.RescaleSlope, data.RescaleIntercept, data.RescaleType = scanner.slope, scanner.intercept, "US"
    data.ImagerPixelSpacing = [1.4, 1.4]
    data.PixelData = stored.astype("<u2").tobytes()
    data.DataSetTrailingPadding = f"padding {person.name} ".encode("ascii")
    if scanner.compressed:
        data.compress(RLELossless, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def _identifiers(scanner: Scanner, person: Person, number: int) -> Dataset:
    """A header with the person in every kind of place that de-identifiers are known to miss."""
    data = Dataset()
    cr = scanner.modality == "CR"
    data.SOPClassUID = ComputedRadiographyImageStorage if cr else DigitalXRayImageStorageForPresentation
    data.StudyInstanceUID = f"{person.uid_root}.1"
    data.SeriesInstanceUID = f"{person.uid_root}.1.1"
    data.SOPInstanceUID = f"{person.uid_root}.1.1.{number + 1}"
    data.Modality, data.BodyPartExamined, data.ViewPosition = scanner.modality, "CHEST", "PA"
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.PatientName, data.PatientID = person.name, person.patient_id
    data.PatientBirthDate, data.PatientSex, data.PatientAge = person.birth_date, "O", "057Y"
    data.PatientAddress, data.PatientTelephoneNumbers = person.address, person.phone
    data.PatientComments, data.ImageComments = person.comment, f"seen by {person.physician}"
    data.AccessionNumber, data.StudyID = person.accession, "1"
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = person.study_date
    data.StudyTime, data.InstanceNumber, data.SeriesNumber = "101112", str(number + 1), "1"
    data.StudyDescription = f"chest of {person.name}"
    data.ReferringPhysicianName, data.OperatorsName = person.physician, person.operator
    data.InstitutionName, data.StationName = person.institution, person.station
    data.DeviceSerialNumber = person.device_serial
    data.BurnedInAnnotation = "NO"  # as so often, whatever is in the pixels
    inner = Dataset()
    inner.PatientID, inner.IssuerOfPatientID = person.second_id, person.institution
    data.OtherPatientIDsSequence = Items([inner])
    deep = Dataset()
    deep.PersonName, deep.TextValue = person.physician, person.comment
    request = Dataset()
    request.RequestingPhysician, request.RequestedProcedureDescription = person.physician, person.comment
    request.AcquisitionContextSequence = Items([deep])
    data.RequestAttributesSequence = Items([request])
    block = data.private_block(0x0099, "GHOSTVENDOR", create=True)
    block.add_new(0x01, "LO", person.name)
    block.add_new(0x02, "UT", f"{person.address}; {person.phone}")
    block.add_new(0x03, "SQ", Items([inner]))
    return data


def _truncate(site: Path, image: str) -> None:
    """A second copy of one file, cut in the middle of its pixels."""
    whole = (site / "images" / image).read_bytes()
    (site / "images" / "TRUNCATED.dcm").write_bytes(whole[: math.ceil(len(whole) * 0.6)])


def _write_tables(
    site: Path, scanner: Scanner, plan: list[_Patient], records: list[dict[str, str]], device: str
) -> None:
    columns = ["image", "label", "mask"]
    rows = [{c: r[c] for c in columns} for r in records]
    rows.append({**rows[0], "image": "TRUNCATED.dcm"})
    with (site / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    values = sorted({value for patient in plan for value in patient.person.values()})
    burned = [r["image"] for r in records if r["burned"]]
    manifest = {"values": values, "burned_in": burned, "truncated": ["TRUNCATED.dcm"]}
    (site / "planted.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    write_site(site / "site.toml", _SETTINGS | {"name": scanner.hospital, "compute.device": device})
