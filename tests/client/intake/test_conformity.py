"""Every file that pydicom itself is tested with: an image equal to pydicom's own, or a code; nothing else."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import ImplicitVRLittleEndian

from client.deidentify.headers import SOP_CLASSES, TRANSFER_SYNTAXES
from client.intake.readers.dicom import read_dicom
from client.intake.readers.pixeldata import DECODERS
from client.intake.sandbox.pool import Outcome, prepare_files
from client.intake.task import Limits, Prepared, Task
from client.modalities import MODALITIES
from client.quarantine import Code, Refused
from tests.client.intake.dicom_files import settings

BUNDLED = Path(str(pydicom.__file__)).parent / "data" / "test_files"
LIMITS = Limits()
ZERO_SPACING = ("RG1_J2KI.dcm", "RG1_J2KR.dcm", "RG1_UNCI.dcm", "RG1_UNCR.dcm")
LOSSY = {"JPEG baseline", "JPEG extended", "JPEG 2000", "JPEG-LS"}


def pydicom_data() -> list[Path]:
    found = importlib.util.find_spec("data_store")
    folders = [Path(folder) / "data" for folder in found.submodule_search_locations or ()] if found else []
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def bundled() -> list[Path]:
    return sorted(path for path in BUNDLED.rglob("*") if path.is_file())


def outcomes_of(paths: Sequence[Path]) -> list[Outcome]:
    used = settings(modalities=MODALITIES, trusted_modalities=MODALITIES)
    found = dict(prepare_files([Task(path=path) for path in paths], used, limits=LIMITS))
    return [found[index] for index in range(len(paths))]


def pydicoms_own(path: Path, number: int) -> np.ndarray:
    """What pydicom makes of one frame: decoded by the same plug-in, in modality units, palettes applied."""
    dataset = pydicom.dcmread(path, force=True)  # one has no preamble
    if not dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    plugins = DECODERS.get(TRANSFER_SYNTAXES[dataset.file_meta.TransferSyntaxUID], ("",))
    # Lossless files are the same whatever decodes them: there pydicom may choose.
    lossy = TRANSFER_SYNTAXES[dataset.file_meta.TransferSyntaxUID] in LOSSY
    stored = pixel_array(dataset, index=number, decoding_plugin=plugins[0] if lossy else "")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.asarray(apply_color_lut(stored, dataset)[..., :3])
    shared = dataset.get("SharedFunctionalGroupsSequence")
    groups = [dataset.PerFrameFunctionalGroupsSequence[number], shared[0]] if shared else []
    for group in groups:
        if "PixelValueTransformationSequence" in group:
            stored = apply_modality_lut(stored, group.PixelValueTransformationSequence[0])
            return np.asarray(stored)
    return np.asarray(apply_modality_lut(stored, dataset))


def compare(path: Path) -> str:
    """Gives "equal" or "refused"; fails on anything else."""
    try:
        source = read_dicom(path, file_bytes=LIMITS.file_bytes, pixels=LIMITS.pixels, frames=2)
    except Refused:
        return "refused"
    sign = -1 if source.record.photometric == "MONOCHROME1" else 1
    for number, frame in zip(source.frame_numbers, source.frames, strict=True):
        expected = sign * pydicoms_own(path, number).astype(np.float64)
        known = np.ones(frame.pixels.shape[:2], bool) if frame.valid is None else frame.valid
        np.testing.assert_allclose(frame.pixels[known], expected[known], rtol=1e-6, atol=1e-3, err_msg=path.name)
    return "equal"


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> object:
    """Pydicom says much about its own broken files."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def check(paths: list[Path]) -> tuple[Counter[str], dict[str, Outcome]]:
    outcomes = outcomes_of(paths)
    names = {str(path): outcome for path, outcome in zip(paths, outcomes, strict=True)}
    said = Counter(outcome.value if isinstance(outcome, Code) else "taken" for outcome in outcomes)
    assert not set(said) & {"CRASHED", "TIMEOUT", "MEMORY", "PREPARE"}
    # Those without a patient are decoded too, before they are refused.
    decoded = [
        path
        for path, outcome in zip(paths, outcomes, strict=True)
        if isinstance(outcome, Prepared) or outcome is Code.NO_PATIENT_ID
    ]
    compared = [compare(path) for path in decoded]
    assert compared == ["equal"] * len(compared)
    return said, names


def wrongly_refused(paths: list[Path], names: dict[str, Outcome]) -> dict[str, Code]:
    """Files of a class that is taken, with a patient and 8- or 16-bit pixels that pydicom decodes, and a code."""
    found = {}
    for path in paths:
        outcome = names[str(path)]
        if isinstance(outcome, Prepared):
            continue
        try:
            dataset = pydicom.dcmread(path)
            image = SOP_CLASSES.get(str(dataset.get("SOPClassUID"))) and dataset.get("PatientID", "").strip(" \0")
            if image and dataset.BitsAllocated in (8, 16) and np.ptp(pixel_array(dataset, index=0)):
                found[path.name] = outcome
        except BaseException:  # noqa: BLE001, S112 - Rust panics included
            continue
    return found


def test_each_file_that_pydicom_bundles_is_its_own_image_or_a_code() -> None:
    paths = bundled()
    said, names = check(paths)
    assert said["taken"] >= 65
    # It was cropped, and one of its ultrasound regions lies outside what is left: where its text is cannot be told.
    assert wrongly_refused(paths, names) == {"examples_palette.dcm": Code.HEADER}


def test_each_file_of_pydicom_data_is_its_own_image_or_a_code() -> None:
    paths = pydicom_data()
    if not paths:
        pytest.skip("pydicom-data is not installed: pip install pydicom-data")
    said, names = check(paths)
    assert said["taken"] >= 48
    # Their PixelSpacing is 0\\0: that the pixels are square is said nowhere.
    assert wrongly_refused(paths, names) == dict.fromkeys(ZERO_SPACING, Code.HEADER)
