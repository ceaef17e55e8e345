"""The unit that a hospital's data can protect: the patient where its source names patients, else the image.

The form of the source decides (its kind and its columns), never a row: whether a plan is refused must not hang on one
patient. DICOM files name their patient, and one without an identifier is left out (NO_PATIENT_ID); the tables of layout
nih and chexpert do; an NPZ file does where it has the column `patient`, which MedMNIST's never have.
"""

from __future__ import annotations

from client.config import SiteConfig
from client.intake.npz import has_patients
from ghostnet.plan import Unit


def data_unit(config: SiteConfig) -> Unit:
    """The unit of a hospital's data; opens an NPZ file to look at its columns, and no image.

    Raises:
        DataError: the NPZ file cannot be read.
    """
    if config.data.kind == "npz" and not has_patients(config.data.path):
        return "image"
    return "patient"
