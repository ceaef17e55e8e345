"""One DICOM Secondary Capture file for one synthetic image, saying in every place that it is synthetic.

Source: PS3.3 A.8.1 (Secondary Capture Image IOD), C.12.1 (SyntheticData, Contributing Equipment). The data set is
built from nothing: no attribute is copied from a patient's file, and every UID is a fresh random one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from ghostnet.errors import not_installed

try:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
except ImportError:
    raise not_installed("pydicom", "export") from None

NOTICE = "SYNTHETIC - NOT FOR DIAGNOSTIC USE"
IMPLEMENTATION_UID = UID("2.25.281537043166870926953034611397106180451")  # made once from a random UUID, for GhostNet


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The origin of synthetic images; written to Contributing Equipment.

    Attributes:
        sampler_name: name of the sampler's plan.
        software_version: GhostNet's version.
        weights_sha256: of the generator's weights.
        certificate_sha256: of the privacy certificate; "" where the sampler has none.
        privacy: the claim in words, such as "epsilon 4, delta 1e-05 per patient, ..."; "" where unknown.
    """

    sampler_name: str
    software_version: str
    weights_sha256: str
    certificate_sha256: str = ""
    privacy: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The attributes that all files of one export share."""

    study_uid: str
    series_uid: str
    moment: datetime


def new_series() -> Series:
    """A series with fresh UIDs, dated now."""
    study, series = generate_uid(prefix=None), generate_uid(prefix=None)
    return Series(study_uid=study, series_uid=series, moment=datetime.now())


def synthetic_dataset(
    pixels: np.ndarray, *, label: str, number: int, provenance: Provenance, series: Series
) -> Dataset:
    """Builds the data set of one image.

    Args:
        pixels: uint8 (h,w) grey or (h,w,3) RGB.
        label: name of the class the image was drawn for.
        number: instance number, from 1.
        provenance: what drew it.
        series: what the files of an export share.
    """
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    _identify(dataset, number, series)
    _describe(dataset, label, provenance)
    _pixels(dataset, pixels)
    dataset.ContributingEquipmentSequence = [_equipment(provenance, series.moment)]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = "GHOSTNET"
    return dataset


def write_dicom(path: Path, dataset: Dataset) -> None:
    """Writes a data set as a DICOM file with preamble and meta information."""
    dataset.save_as(path, enforce_file_format=True)


def _identify(dataset: Dataset, number: int, series: Series) -> None:
    date, time = series.moment.strftime("%Y%m%d"), series.moment.strftime("%H%M%S")
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid(prefix=None)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UID(series.study_uid), UID(series.series_uid)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.StudyDate, dataset.StudyTime = date, time
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "SYNTHETIC", "", ""
    dataset.PatientName, dataset.PatientID = "SYNTHETIC^GHOSTNET", f"SYN-{series.study_uid[-12:]}"
    dataset.PatientBirthDate, dataset.PatientSex = "", ""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Synthetic image; no header of a patient was copied"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.SeriesDescription = NOTICE


def _describe(dataset: Dataset, label: str, provenance: Provenance) -> None:
    dataset.SyntheticData = "YES"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ConversionType = "SYN"
    dataset.Modality = "OT"
    dataset.Manufacturer = "GhostNet"
    dataset.SecondaryCaptureDeviceManufacturer = "GhostNet"
    dataset.SecondaryCaptureDeviceSoftwareVersions = provenance.software_version
    dataset.BodyPartExamined = ""
    dataset.Laterality = ""
    dataset.PatientOrientation = ""
    dataset.BurnedInAnnotation = "NO"
    dataset.RecognizableVisualFeatures = "NO"
    dataset.LossyImageCompression = "00"
    dataset.DerivationDescription = f"Drawn by the generator of sampler {provenance.sampler_name}, class {label}"[:1024]
    dataset.ImageComments = f"{NOTICE}; class {label}"[:10240]


def _pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    colour = pixels.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    content = np.ascontiguousarray(pixels, dtype=np.uint8).tobytes()
    dataset.add_new("PixelData", "OB", content + b"\x00" * (len(content) % 2))


def _equipment(provenance: Provenance, moment: datetime) -> Dataset:
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109100", "DCM"
    purpose.CodeMeaning = "Synthesizing Equipment"
    lines = [f"sampler {provenance.sampler_name}", f"weights SHA-256 {provenance.weights_sha256}"]
    if provenance.certificate_sha256:
        lines.append(f"certificate SHA-256 {provenance.certificate_sha256}")
    if provenance.privacy:
        lines.append(provenance.privacy)
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [purpose]
    item.Manufacturer, item.ManufacturerModelName = "GhostNet", "GhostNet sampler"
    item.SoftwareVersions = provenance.software_version
    item.ContributionDateTime = moment.strftime("%Y%m%d%H%M%S")
    item.ContributionDescription = "; ".join(lines)[:1024]
    return item
