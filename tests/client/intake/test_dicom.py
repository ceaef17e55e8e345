"""DICOM intake: pixels right, identifiers gone, and no file that can stop the others."""

from __future__ import annotations

import os
import random
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from client.intake.readers.dicom import read_dicom
from client.intake.readers.frames import CT_WINDOW_HU, Frame
from client.intake.sandbox.pool import Outcome, prepare_files
from client.intake.task import Limits, Prepared, Settings, Task
from client.quarantine import Code, Refused
from tests.client.intake.dicom_files import dicom, image_spec, picture, save, settings

LIMITS = Limits()


def read(path: Path) -> Frame:
    """The only frame of a file."""
    (frame,) = read_dicom(path, file_bytes=LIMITS.file_bytes, pixels=LIMITS.pixels).frames
    return frame


def refused(path: Path) -> Code:
    with pytest.raises(Refused) as caught:
        read(path)
    return caught.value.code


def prepare(
    tasks: list[Task], limits: Limits = LIMITS, used: Settings | None = None, workers: int | None = None
) -> list[Outcome]:
    found = dict(prepare_files(tasks, used or settings(), limits=limits, workers=workers))
    return [found[index] for index in range(len(tasks))]


# --- Pixels


def test_rescale_gives_physical_units(tmp_path: Path) -> None:
    pixels = picture()
    path = save(dicom(pixels, modality="CT", RescaleSlope="2", RescaleIntercept="-1024"), tmp_path / "a.dcm")
    image = read(path)
    np.testing.assert_array_equal(image.pixels, pixels.astype(np.float32) * 2 - 1024)
    assert image.window == CT_WINDOW_HU


def test_monochrome1_comes_out_as_its_monochrome2_twin(tmp_path: Path) -> None:
    pixels = picture()
    plain = save(dicom(pixels), tmp_path / "plain.dcm")
    inverse = save(dicom(4095 - pixels, PhotometricInterpretation="MONOCHROME1"), tmp_path / "inverse.dcm")
    first, second = prepare([Task(path=plain), Task(path=inverse)], workers=1)
    assert isinstance(first, Prepared)
    assert isinstance(second, Prepared)
    np.testing.assert_allclose(first.planes, second.planes, atol=1e-5)
    assert first.planes.std() > 0.1


def test_an_inverted_ct_keeps_its_fixed_window(tmp_path: Path) -> None:
    dataset = dicom(picture(), modality="CT", PhotometricInterpretation="MONOCHROME1", RescaleIntercept="-1024")
    path = save(dataset, tmp_path / "a.dcm")
    assert read(path).window == (-CT_WINDOW_HU[1], -CT_WINDOW_HU[0])


def test_padding_is_marked_and_drawn_black(tmp_path: Path) -> None:
    pixels = picture()
    pixels[:10] = 4000
    path = save(dicom(pixels, PixelPaddingValue=4000), tmp_path / "a.dcm")
    image = read(path)
    assert image.valid is not None
    assert not image.valid[:10].any()
    assert image.valid[10:].all()
    (done,) = prepare([Task(path=path)])
    assert isinstance(done, Prepared)
    assert (done.planes[0, 0, :6] == -1).all()


def test_a_negative_padding_value_in_its_unsigned_form_is_understood(tmp_path: Path) -> None:
    pixels = picture().astype(np.int16)
    pixels[:10] = -2000
    dataset = dicom(pixels, modality="CT", PixelRepresentation=1, BitsStored=16, HighBit=15)
    dataset.add_new(0x00280120, "US", 63536)
    image = read(save(dataset, tmp_path / "a.dcm"))
    assert image.valid is not None
    assert int((~image.valid).sum()) == 400


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_a_lossless_syntax_decodes_to_the_native_pixels(tmp_path: Path, syntax: str) -> None:
    dataset = dicom(picture())
    native = read(save(dataset, tmp_path / "native.dcm"))
    dataset.compress(syntax)
    packed = read(save(dataset, tmp_path / "packed.dcm"))
    np.testing.assert_array_equal(native.pixels, packed.pixels)


def test_decoded_pixels_are_pydicoms_own(tmp_path: Path) -> None:
    for name in (
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_bigendian.dcm",
    ):
        path = str(get_testdata_file(name))
        expected = pydicom.dcmread(path)
        slope, intercept = float(expected.get("RescaleSlope", 1)), float(expected.get("RescaleIntercept", 0))
        image = read(Path(path))
        known = np.ones(image.pixels.shape, bool) if image.valid is None else image.valid
        np.testing.assert_allclose(image.pixels[known], (expected.pixel_array * slope + intercept)[known])


def test_overlay_bits_above_the_stored_ones_are_cleared(tmp_path: Path) -> None:
    pixels = picture()
    dataset = dicom(pixels | 0x8000)
    assert refused(save(dataset, tmp_path / "bits.dcm")) is Code.HEADER  # nothing says what they are
    dataset.add_new(0x60000102, "US", 15)
    path = save(dataset, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read(path).pixels, pixels)


def test_a_mask_follows_the_geometry_of_its_image(tmp_path: Path) -> None:
    path = save(dicom(picture()), tmp_path / "a.dcm")
    mask = np.zeros((40, 40), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[:30]).save(tmp_path / "other.png")
    (tmp_path / "text.png").write_text("no png")
    used = settings(image_spec(mask_channels=1))
    names = ("mask.png", "other.png", "text.png", "none.png")
    done = prepare([Task(path=path, mask=tmp_path / name) for name in names] + [Task(path=path)], used=used, workers=1)
    assert isinstance(done[0], Prepared)
    assert done[0].planes.shape == (1, 2, 28, 28)
    np.testing.assert_array_equal(done[0].planes[0, 1], np.where(np.arange(28) < 14, 1.0, -1.0) * np.ones((28, 1)))
    assert done[1:] == [Code.BAD_MASK, Code.BAD_MASK, Code.BAD_MASK, Code.NO_MASK]


def test_two_mask_channels_are_the_values_one_and_two(tmp_path: Path) -> None:
    path = save(dicom(picture()), tmp_path / "a.dcm")
    mask = np.zeros((40, 40), np.uint8)
    mask[:20], mask[20:] = 1, 2
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (done,) = prepare([Task(path=path, mask=tmp_path / "mask.png")], used=settings(image_spec(mask_channels=2)))
    assert isinstance(done, Prepared)
    np.testing.assert_array_equal(done.planes[0, 1], -done.planes[0, 2])
    assert (done.planes[0, 1, 0] == 1).all()


# --- Burned-in text


def with_text() -> np.ndarray:
    from PIL import ImageDraw, ImageFont

    canvas = Image.fromarray((picture(shape=(512, 512)) // 16).astype(np.uint8) // 2)
    ImageDraw.Draw(canvas).text((40, 60), "DOE^JOHN 1961-02-03", fill=255, font=ImageFont.load_default(26))
    return np.asarray(canvas).astype(np.uint16) * 16


def test_burned_in_text_is_blanked_or_refused_as_the_site_says(tmp_path: Path) -> None:
    path = save(dicom(with_text()), tmp_path / "text.dcm")
    (trusted,) = prepare([Task(path=path)])
    (blanked,) = prepare([Task(path=path)], used=settings(burned_in="blank", trusted_modalities=()))
    (held,) = prepare([Task(path=path)], used=settings(burned_in="quarantine", trusted_modalities=()))
    assert held is Code.BURNED_IN_TEXT
    assert isinstance(trusted, Prepared)
    assert isinstance(blanked, Prepared)
    assert trusted.blanked == (0,)
    assert blanked.blanked[0] > 0
    assert np.abs(trusted.planes - blanked.planes).max() > 0.1


def test_trust_holds_for_the_listed_modalities_only(tmp_path: Path) -> None:
    path = save(dicom(with_text(), modality="DX"), tmp_path / "text.dcm")
    (done,) = prepare([Task(path=path)], used=settings(burned_in="trust", trusted_modalities=("CT",)))
    assert isinstance(done, Prepared)
    assert done.blanked[0] > 0


# --- Refusals


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"NumberOfFrames": 2}, Code.TRUNCATED),
        ({"NumberOfFrames": 200000}, Code.TRUNCATED),
        ({"NumberOfFrames": -1}, Code.FRAMES),
        ({"Rows": 65535, "Columns": 65535}, Code.TOO_LARGE),
        ({"Rows": 41}, Code.TRUNCATED),
        ({"RescaleSlope": "0"}, Code.HEADER),
        ({"BitsAllocated": 64}, Code.HEADER),
        ({"BitsAllocated": 8}, Code.HEADER),
        ({"SamplesPerPixel": 3}, Code.HEADER),
        ({"PixelData": b""}, Code.NO_PIXELS),
        ({"PixelData": bytes(40 * 40 * 2)}, Code.FLAT),
        ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, Code.FLAT),
    ],
)
def test_an_impossible_header_is_refused_before_decoding(
    tmp_path: Path, attributes: dict[str, Any], code: Code
) -> None:
    dataset = dicom(picture())
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    assert refused(save(dataset, tmp_path / "a.dcm")) is code


def test_a_lying_header_of_a_compressed_file_allocates_nothing(tmp_path: Path) -> None:
    for name in ("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"):
        dataset = pydicom.dcmread(str(get_testdata_file(name)))
        dataset.Rows = dataset.Columns = 65535
        assert refused(save(dataset, tmp_path / name)) is Code.TOO_LARGE


def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = save(dicom(picture()), tmp_path / "plain.dcm")
    data = path.read_bytes()
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    packed = save(dataset, tmp_path / "packed.dcm")
    np.testing.assert_array_equal(read(packed).pixels, read(path).pixels)
    meta = 132 + 12 + int(dataset.file_meta.FileMetaInformationGroupLength)
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    chunk = bytes(1 << 20)
    body = squeeze.compress(data[meta:]) + b"".join(squeeze.compress(chunk) for _ in range(40)) + squeeze.flush()
    bomb = tmp_path / "bomb.dcm"
    bomb.write_bytes(
        packed.read_bytes()[: 132 + 12 + int(pydicom.dcmread(packed).file_meta.FileMetaInformationGroupLength)] + body
    )
    assert bomb.stat().st_size < 100_000
    with pytest.raises(Refused) as caught:
        read_dicom(bomb, file_bytes=1 << 20, pixels=1_000_000)
    assert caught.value.code is Code.TOO_LARGE


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = save(dicom(picture()), tmp_path / "a.dcm")
    with pytest.raises(Refused, match="TOO_LARGE"):
        read_dicom(path, file_bytes=1000, pixels=1_000_000)


def test_truncated_files_are_refused_wherever_they_end(tmp_path: Path) -> None:
    tasks = []
    for syntax in (None, RLELossless, JPEG2000Lossless):
        dataset = dicom(picture())
        if syntax:
            dataset.compress(syntax)
        data = save(dataset, tmp_path / f"{syntax}.dcm").read_bytes()
        for cut in (0, 100, 140, 300, 600, len(data) // 2, len(data) - 40):
            path = tmp_path / f"{syntax}-{cut}.dcm"
            path.write_bytes(data[:cut])
            tasks.append(Task(path=path))
    outcomes = prepare(tasks)
    assert all(isinstance(outcome, Code) for outcome in outcomes)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_a_fragment_shorter_than_it_says_is_truncated(tmp_path: Path, syntax: str) -> None:
    dataset = dicom(picture())
    dataset.compress(syntax)
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    half = frame[: len(frame) // 4 * 2]
    packed = pydicom.encaps.encapsulate([half])
    at = packed.index(half)
    dataset.PixelData = packed[: at - 4] + len(frame).to_bytes(4, "little") + packed[at:]
    assert refused(save(dataset, tmp_path / "a.dcm")) is Code.TRUNCATED


def test_no_patient_no_image(tmp_path: Path) -> None:
    paths = [
        save(dicom(picture(), patient=patient), tmp_path / f"{number}.dcm")
        for number, patient in enumerate((None, "", "  "))
    ]
    assert prepare([Task(path=path) for path in paths], workers=1) == [Code.NO_PATIENT_ID] * 3


def test_only_listed_modalities_are_taken(tmp_path: Path) -> None:
    path = save(dicom(picture(), modality="MR"), tmp_path / "a.dcm")
    assert prepare([Task(path=path)], used=settings(modalities=("CR",))) == [Code.MODALITY]


# --- Hostile files and workers


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save(dicom(picture()), tmp_path / "good.dcm")


def pipe(path: Path) -> Path:
    """A path that a reader hangs on for ever."""
    os.mkfifo(path)
    return path


def workers_running() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"client.intake.sandbox.worker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except (OSError, ValueError, IndexError):
                continue
    return found


def test_a_file_that_hangs_is_given_up_and_the_rest_goes_on(tmp_path: Path, good: Path) -> None:
    hangs = pipe(tmp_path / "hangs.dcm")
    end = threading.Timer(240, lambda: hangs.open("wb").close())  # where it is not given up it ends, as this test must
    end.daemon = True
    end.start()
    outcomes = prepare([Task(path=good), Task(path=hangs), Task(path=good)], Limits(timeout_s=3), workers=1)
    end.cancel()
    assert [type(outcome) for outcome in outcomes] == [Prepared, Code, Prepared]
    assert outcomes[1] is Code.TIMEOUT
    assert workers_running() == []


def test_a_worker_that_dies_is_replaced(tmp_path: Path, good: Path) -> None:
    hangs = pipe(tmp_path / "hangs.dcm")

    def kill_the_reader() -> None:
        with hangs.open("wb"):  # returns once the worker has opened it
            (process,) = workers_running()
            os.kill(process, 9)

    killer = threading.Thread(target=kill_the_reader)
    killer.start()
    outcomes = prepare([Task(path=hangs), Task(path=good)], workers=1)
    killer.join()
    assert outcomes[0] is Code.CRASHED
    assert isinstance(outcomes[1], Prepared)


def test_a_file_that_needs_too_much_memory_is_refused_alone(tmp_path: Path, good: Path) -> None:
    big = save(dicom(picture(shape=(3000, 3000))), tmp_path / "big.dcm")
    outcomes = prepare([Task(path=big), Task(path=good)], Limits(memory_bytes=60 << 20), workers=1)
    assert outcomes[0] is Code.MEMORY
    assert isinstance(outcomes[1], Prepared)


def test_stopping_early_leaves_no_worker(tmp_path: Path, good: Path) -> None:
    tasks = [Task(path=good)] + [Task(path=pipe(tmp_path / f"{n}.dcm")) for n in range(2)]
    outcomes = prepare_files(tasks, settings(), limits=LIMITS, workers=2)
    assert isinstance(next(outcomes)[1], Prepared)
    outcomes.close()  # type: ignore[attr-defined]
    assert workers_running() == []


def test_every_bundled_or_mutated_file_is_an_image_or_a_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundled = sorted(Path(str(get_testdata_file("CT_small.dcm"))).parent.rglob("*"))
    tasks = [Task(path=path) for path in bundled if path.is_file()]
    seeds = (
        "CT_small.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "JPEG-lossy.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    )
    rng = random.Random(7)
    for name in seeds:
        data = Path(str(get_testdata_file(name))).read_bytes()
        for number in range(60):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 3, 20))):
                changed[rng.randrange(128, min(len(data), rng.choice((2000, len(data)))))] = rng.randrange(256)
            path = tmp_path / f"{number}-{name}"
            path.write_bytes(changed)
            tasks.append(Task(path=path))
    outcomes = prepare(tasks, Limits(timeout_s=10))
    assert len(outcomes) == len(tasks)
    taken = {task.path.name for task, outcome in zip(tasks, outcomes, strict=True) if isinstance(outcome, Prepared)}
    assert {"CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"} <= taken
    assert {"MR_truncated.dcm", "rtplan.dcm"}.isdisjoint(taken)
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == ""


# --- Identifiers


class Plants:
    """Unique texts and where they were put."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def text(self) -> str:
        self.values.append(f"ZQ{len(self.values):05d}QZ")
        return self.values[-1]

    def bytes(self) -> bytes:
        return self.text().encode() + b"PADPADP"


def plant_everywhere(dataset: Dataset, plants: Plants) -> None:
    """PHI in every place a DICOM file has for it: named, nested, private, curves, overlays, meta, preamble."""
    for keyword in (
        "PatientName",
        "PatientAddress",
        "InstitutionName",
        "StudyDescription",
        "ImageComments",
        "ViewPosition",
    ):
        setattr(dataset, keyword, plants.text())
    dataset.PatientID = plants.text()
    dataset.PatientBirthDate = "19610203"
    dataset.AccessionNumber = plants.text()
    for tag in (0x00082218, 0x52009229, 0x00081140):
        outer, inner = Dataset(), Dataset()
        inner.PatientName, inner.InstitutionAddress = plants.text(), plants.text()
        inner.add_new(0x00090010, "LO", "ACME")
        inner.add_new(0x00091001, "UN", plants.bytes())
        outer.add_new(0x00089124, "SQ", Sequence([inner]))
        dataset.add_new(tag, "SQ", Sequence([outer]))
    for group in (0x0009, 0x0019, 0x7FE1):
        dataset.add_new((group, 0x0010), "LO", plants.text())
        for element, kind in ((0x1001, "LO"), (0x1002, "UN"), (0x1003, "OB"), (0x1004, "PN")):
            dataset.add_new((group, element), kind, plants.bytes() if kind in ("UN", "OB") else plants.text())
    for group in (0x5000, 0x501E, 0x6000, 0x601E):
        dataset.add_new((group, 0x0022), "LO", plants.text())
        dataset.add_new((group, 0x3000), "OB", plants.bytes())
    for tag, kind in ((0xFFFCFFFC, "OB"), (0x0018FF77, "UN"), (0x00282000, "OB")):
        dataset.add_new(tag, kind, plants.bytes())
    icon = Dataset()
    icon.PixelData = plants.bytes()
    icon["PixelData"].VR = "OB"
    dataset.IconImageSequence = Sequence([icon])
    meta = dataset.file_meta
    meta.ImplementationVersionName = plants.text()[:16]
    meta.SourceApplicationEntityTitle = plants.text()
    meta.PrivateInformationCreatorUID = "1.2.3.4"
    meta.PrivateInformation = plants.bytes()
    dataset.preamble = plants.bytes().ljust(128, b"\0")


def write_planted(folder: Path, plants: Plants) -> list[Path]:
    """Four files: native with trailing bytes inside and after the pixels, RLE, and JPEG 2000 with a comment."""
    paths = []
    for name, syntax in (("native", None), ("rle", RLELossless), ("j2k", JPEG2000Lossless)):
        dataset = dicom(picture(len(paths)))
        if syntax:
            dataset.compress(syntax)
        plant_everywhere(dataset, plants)
        if name == "native":
            dataset.PixelData = dataset.PixelData + plants.bytes() + b"x"
        if name == "j2k":
            # A COM segment (FF64) right before the tile part (FF90).
            comment = plants.bytes()
            segment = b"\xff\x64" + (len(comment) + 4).to_bytes(2, "big") + b"\0\1" + comment
            (stream,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
            at = stream.index(b"\xff\x90")
            dataset.PixelData = pydicom.encaps.encapsulate([stream[:at] + segment + stream[at:]])
        path = save(dataset, folder / f"{name}-{plants.text()}.dcm")
        with path.open("ab") as file:
            file.write(plants.bytes())
        paths.append(path)
    return paths


def test_no_planted_identifier_is_in_any_byte_that_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from client.cohort import load_cohorts
    from tests.client.intake.dicom_files import SECRET, write_labels, write_site

    plants = Plants()
    paths = write_planted(tmp_path / "images", plants)
    broken = dicom(picture(9))
    plant_everywhere(broken, plants)
    broken.Rows = 41
    paths.append(save(broken, tmp_path / "images" / f"{plants.text()}.dcm"))
    write_labels(tmp_path, {path.name: "lesion" for path in paths})
    everything = b"".join(path.read_bytes() for path in paths) + "".join(path.name for path in paths).encode()
    assert len(plants.values) > 150
    assert [value for value in plants.values if value.encode() not in everything] == []  # the plants are really there
    config = write_site(tmp_path, more="[cohort]\ntest_fraction = 0.0")
    cohorts = load_cohorts(config, image_spec(), SECRET)
    assert cohorts.table.taken == 3
    assert cohorts.table.quarantined == {"TRUNCATED": 1}
    kept = [path for path in config.state.rglob("*") if path.is_file() and path.name != "quarantine.csv"]
    assert len(kept) >= 6
    said = capfd.readouterr()
    data = b"".join(path.read_bytes() + str(path.relative_to(config.state)).encode() for path in kept)
    data += (said.out + said.err + repr(cohorts.table)).encode()
    assert [value for value in plants.values if value.encode() in data] == []
    assert b"19610203" not in data


def test_a_header_that_pydicom_quotes_in_warnings_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = dicom(picture())
    path = save(dataset, tmp_path / "a.dcm")
    data = path.read_bytes()
    # "RescaleSlope" that is a name: pydicom's message would be: could not convert string to float: 'JOHN DOE'.
    element = b"\x28\x00\x53\x10DS\x08\x00JOHN DOE"
    at = data.index(b"\xe0\x7f\x10\x00")
    path.write_bytes(data[:at] + element + data[at:])
    (outcome,) = prepare([Task(path=path)])
    assert isinstance(outcome, Code)
    said = capfd.readouterr()
    assert said.out + said.err == ""
