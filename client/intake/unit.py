"""The unit that a hospital's data can protect: the patient where its source names patients, else the image.

The form of the source decides (its kind and its columns), never a row: whether a plan is refused must not hang on one
patient. DICOM files name their patient, and one without an identifier is left out (NO_PATIENT_ID). For pictures and
NIfTI the label table does: in layout nih and chexpert always, in a plain one where it has the column `patient`. So does
an NPZ file with that column, which MedMNIST's never have.
"""

from __future__ import annotations

import csv

from client.config import SiteConfig
from client.formats import file_format
from client.intake.labels.csv_lines import read_header
from client.intake.labels.layouts import unreadable_table
from client.intake.readers.npz import has_patients
from ghostnet.plan import Unit


def data_unit(config: SiteConfig) -> Unit:
    """The unit of a hospital's data; looks at the columns of an NPZ file or label table, and at no image.

    Raises:
        DataError: the NPZ file cannot be read.
        SiteError: the label table cannot be read.
    """
    data = config.data
    if data.kind == "npz":
        return "patient" if has_patients(data.path) else "image"
    if file_format(data.kind).names_patient or data.layout != "plain" or data.labels is None:
        return "patient"
    try:
        return "patient" if "patient" in read_header(data.labels) else "image"
    except (OSError, csv.Error) as error:
        raise unreadable_table(data.labels, error) from None
