"""What intake costs beside the least that anybody must do: decode every file and resize it, on all cores.

    python -m benchmarks.intake [--pairs 3] [--copies 6] [--json]

The files are procedural, written to a temporary folder: 2048 x 2048 radiographs and 512 x 512 CT slices with a header
of about 90 attributes, native and compressed. "Bare" is a multiprocessing pool: pydicom's `pixel_array` with the
decoders that intake uses, then OpenCV's area resize. "Intake" is what `prepare_files` does to the same files, and the
parent after it: workers with limits, header checks, identifiers collected, noise looked for, window, resize, content
keys, the scan for survivors, the cache written; text is not looked for. Both run in turn, pair after pair, without
their processes' start; ratios are medians over the pairs, by the clock and by the processor seconds of all processes,
which a busy machine disturbs least. What looking for text costs is measured by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom.pixels
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from client.deidentify.headers import TRANSFER_SYNTAXES
from client.deidentify.pseudonyms import content_key, patient_key
from client.intake.cache import Cache, Entry
from client.intake.readers.pixeldata import DECODERS
from client.intake.sandbox.pool import prepare_files, usable_cores
from client.intake.task import Limits, Settings, Task
from client.modalities import MODALITIES
from client.quarantine import Code
from ghostnet.plan import ImageSpec
from ghostnet.training.phantom import chest

SIZE = 128
SYNTAXES = {"native": None, "RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}
SIDES = (2048, 512)
COPIES = {2048: 1, 512: 4}  # a hospital has many more slices than radiographs
SECRET = bytes(32)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds by the clock, and of processors in this process and its children."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> Cost:
        ticks = 0
        for task in Path(f"/proc/{os.getpid()}/task").iterdir():
            for child in (task / "children").read_text().split():
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return cls(wall_s=time.perf_counter(), cpu_s=time.process_time() + ticks / os.sysconf("SC_CLK_TCK"))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(wall_s=self.wall_s - other.wall_s, cpu_s=self.cpu_s - other.cpu_s)


def main() -> None:
    """Runs the benchmark and prints a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="timed pairs")
    parser.add_argument("--copies", type=int, default=6, help="radiographs of each kind; four times as many slices")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(arguments.pairs, arguments.copies)
    print(json.dumps(result, indent=2) if arguments.json else table(result))


def measure(pairs: int, copies: int) -> dict[str, Any]:
    """Times both, pair after pair, for each kind of file and for all files together."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = write_files(Path(folder), copies)
        everything = [path for paths in kinds.values() for path in paths]
        ratios: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in (*kinds, "all together")}
        for _ in range(pairs):
            for name, paths in ({**kinds} | {"all together": everything}).items():
                ratios[name].append((run_bare(paths), run_intake(paths, Path(folder))))
        sizes = {name: [len(paths), sum(p.stat().st_size for p in paths)] for name, paths in kinds.items()}
        return {
            "workers": usable_cores(),
            "pairs": pairs,
            "files": sizes | {"all together": [len(everything), sum(size for _, size in sizes.values())]},
            "bare_files_s": {
                name: _rate(name, sizes, everything, [b.wall_s for b, _ in r]) for name, r in ratios.items()
            },
            "intake_files_s": {
                name: _rate(name, sizes, everything, [i.wall_s for _, i in r]) for name, r in ratios.items()
            },
            "ratio": {name: statistics.median(b.wall_s / i.wall_s for b, i in r) for name, r in ratios.items()},
            "cpu_ratio": {name: statistics.median(b.cpu_s / i.cpu_s for b, i in r) for name, r in ratios.items()},
            "ocr_s_an_image": ocr_cost({name: paths[0] for name, paths in kinds.items() if name.endswith("native")}),
        }


def write_files(folder: Path, copies: int) -> dict[str, list[Path]]:
    """The files of each kind, all with different pixels."""
    rng = np.random.default_rng(7)
    kinds: dict[str, list[Path]] = {}
    for side in SIDES:
        base = chest(rng, 512, "lesion")[0]
        picture = cv2.resize(base.astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
        for name, syntax in SYNTAXES.items():
            paths = []
            for number in range(copies * COPIES[side]):
                pixels = 400 + 2400 * np.roll(picture, 16 * number, axis=1) + rng.normal(0, 12, picture.shape)
                dataset = _dataset(pixels.clip(0, 4095).astype(np.uint16), "CR" if side == 2048 else "CT", number)
                if syntax is not None:
                    dataset.compress(syntax, generate_instance_uid=False)
                paths.append(folder / f"{side}-{name}-{number}.dcm")
                dataset.save_as(paths[-1], enforce_file_format=True)
            kinds[f"{side} x {side} {name}"] = paths
    return kinds


def run_bare(paths: Sequence[Path]) -> Cost:
    """What it costs to decode and resize files in a pool, without the pool's start."""
    with multiprocessing.get_context("spawn").Pool(usable_cores()) as pool:
        pool.map(_decode_and_resize, paths[:1] * usable_cores(), chunksize=1)
        started = Cost.now()
        for _ in pool.imap_unordered(_decode_and_resize, paths):
            pass
        return Cost.now() - started


def run_intake(paths: Sequence[Path], folder: Path) -> Cost:
    """What it costs for the whole intake of files, cache included, without the workers' start."""
    image = ImageSpec(size=SIZE, labels=("a",), label_prior=(1.0,))
    settings = Settings(image=image, burned_in="trust", trusted_modalities=MODALITIES, modalities=MODALITIES)
    # The first files of each worker are the start: the clock runs from when each has answered once.
    tasks = [Task(path=path) for path in [*paths[:1] * usable_cores(), *paths]]
    with tempfile.TemporaryDirectory(dir=folder) as kept:
        cache = Cache(Path(kept), rules="benchmark", shape=(1, SIZE, SIZE))
        started = ended = Cost.now()
        outcomes = prepare_files(tasks, settings, limits=Limits(), workers=usable_cores())
        for count, (index, outcome) in enumerate(outcomes, start=1):
            if isinstance(outcome, Code):
                raise TypeError(f"the benchmark's own file was refused: {outcome.value}")
            key = content_key(SECRET, _digest(tasks[index].path))
            patient = patient_key(SECRET, outcome.patient_id)
            entry = Entry(planes=outcome.planes, record=outcome.record, blanked=outcome.blanked, patient=patient)
            if isinstance(cache.store(key, entry, outcome.identifiers), Code):
                raise TypeError("the benchmark's own file has a survivor")
            if count == usable_cores():
                started = Cost.now()
            if count == len(tasks):
                ended = Cost.now()  # while the workers are still there to be asked
        return ended - started


def ocr_cost(paths: dict[str, Path]) -> dict[str, float]:
    """Seconds of one core to look for text in one image of each size."""
    from client.deidentify.burned_in import find_text, render
    from client.intake.readers.dicom import read_dicom

    costs = {}
    for name, path in paths.items():
        shown = render(read_dicom(path, file_bytes=1 << 30, pixels=50_000_000).frames[0].pixels)
        find_text(shown[:32, :32])
        costs[name.removesuffix(" native")] = _cpu_seconds(lambda shown=shown: find_text(shown))
    return costs


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'files':<22}{'MB':>7}{'bare/s':>9}{'intake/s':>10}{'ratio':>8}{'of CPU':>8}"]
    for name, (count, size) in result["files"].items():
        rates = f"{result['bare_files_s'][name]:>9.1f}{result['intake_files_s'][name]:>10.1f}"
        ratios = f"{result['ratio'][name]:>8.2f}{result['cpu_ratio'][name]:>8.2f}"
        lines.append(f"{name:<22}{size / 1e6:>7.1f}{rates}{ratios}   ({count} files)")
    lines.append(f"{result['workers']} workers, medians of {result['pairs']} interleaved pairs")
    lines += [
        f"looking for text: {seconds:.2f} s of a core in {name}" for name, seconds in result["ocr_s_an_image"].items()
    ]
    return "\n".join(lines)


def _decode_and_resize(path: Path) -> np.ndarray:
    dataset = pydicom.dcmread(path)
    plugin = DECODERS.get(TRANSFER_SYNTAXES[dataset.file_meta.TransferSyntaxUID], ("",))[0]
    pixels = pydicom.pixels.pixel_array(dataset, decoding_plugin=plugin).astype(np.float32)
    return cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _cpu_seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _rate(name: str, sizes: dict[str, list[int]], everything: Sequence[Path], seconds: Sequence[float]) -> float:
    count = sizes[name][0] if name in sizes else len(everything)
    return count / statistics.median(seconds)


def _dataset(pixels: np.ndarray, modality: str, number: int) -> Dataset:
    """A data set with as many attributes as scanners write."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1" if modality == "CR" else "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.Modality = modality
    dataset.PatientID, dataset.PatientName = f"MRN{number:07d}", f"EXAMPLE^PATIENT{number}"
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, generate_uid())
    for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "PatientBirthDate"):
        setattr(dataset, keyword, "20240229")
    for keyword in ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"):
        setattr(dataset, keyword, "120102.123")
    for keyword in (
        *("AccessionNumber", "StudyID", "StationName", "InstitutionName", "InstitutionAddress", "Manufacturer"),
        *("ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber", "ProtocolName", "SeriesDescription"),
        *("StudyDescription", "InstitutionalDepartmentName", "PatientComments", "ImageComments", "FilterType"),
        *("ConvolutionKernel", "RequestedProcedureDescription", "PerformedProcedureStepDescription"),
    ):
        setattr(dataset, keyword, f"{keyword[:12]} 7")
    for keyword in ("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName"):
        setattr(dataset, keyword, "OTHER^PERSON^M")
    for keyword in ("KVP", "ExposureTime", "XRayTubeCurrent", "Exposure", "SliceThickness", "SliceLocation"):
        setattr(dataset, keyword, "120")
    dataset.ImageType, dataset.PixelSpacing = ["ORIGINAL", "PRIMARY", "AXIAL"], [0.7, 0.7]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = 1, number, 1
    block = dataset.private_block(0x0019, "GHOSTNET BENCH", create=True)
    for element in range(30):
        block.add_new(element, "LO", f"private value {element}")
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024" if modality == "CT" else "0"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = pixels.tobytes()
    return dataset


if __name__ == "__main__":
    main()
