"""Files of several frames, colour, unequal pixels and rarer encodings: the right frames, in units and in shape."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from client.deidentify.survivors import MAX_IDENTIFIERS, bounded
from client.intake.readers.dicom import read_dicom
from client.intake.readers.frames import CT_WINDOW_HU, Source, evenly_spaced
from client.intake.sandbox.pool import Outcome, prepare_files
from client.intake.task import THUMBNAIL_SIDE, Limits, Prepared, Settings, Task
from client.quarantine import Code, Refused
from tests.client.intake.dicom_files import dicom, image_spec, picture, save, settings

ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"
LIMITS = Limits()

# 24 x 32 pixels of 1000 + 40 row + 25 column and a disc, in HTJ2K by OpenJPH 0.26: nothing installed here writes it.
HTJ2K = (
    "|4;u>04YEK0000W0000O00000000000000W0000O0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&kdTm&kdTmwh="
    "~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00001$N&NVlfVEb6Y~WJbO68r62JfxKmZbe!U6|$0IL21hjaka0Ect{zyK9c00htg1mFz7f;Er"
    "+0HKrsgth=eGytla`~m@V0KfnioB#o8KmZnyvWuZS8xgU1DA$Gf8)g82wzmMT1SK)pVRev$YAzYC8{EPmGM4~kxr*L8YeJjU004{30Rw+I0Kfnj"
    "SpWcCTmS)dAOVn|+jVf{9@Y*P?qPKf*L4u!o`((+?s;$!z;y*XhO&IX03?V+swBr>00nJsrs3d#mKFvE28Nb)V4xtQ$(m)GWofd2OeXsXWd_|G13"
    "&<fgr{8q3jiiy5h6Ho;=+X!Cy~ekKuiGbFooI9Bsi2E0075b0Kfn)+5iE1Q~(0#fDq<#5a#0G>w&LFE=~yLarWquj{{*YelC7)E`$*N_@9M1Q<0#"
    "matddu)M*Q+5L_To0(SvB8+n`EUHsmIzuU$49{g@+Bj0A1({UWfaU92S9LI5-{AgeT5Iy?{K=<q+1K+TO4`r3_q7{TA5CASQ0>ldda(RX@E%qQ;0"
    "`1zhn@>LNw#%1KyLRpV{2Y%29iatb0b&R4^q(MHKvMz#*#"
)


def read(path: Path, frames: int = 1) -> Source:
    return read_dicom(path, file_bytes=LIMITS.file_bytes, pixels=LIMITS.pixels, frames=frames)


def prepare(path: Path, used: Settings) -> Outcome:
    ((_, outcome),) = prepare_files([Task(path=path)], used, limits=LIMITS)
    return outcome


def cine(count: int, syntax: str | None = None, **attributes: Any) -> tuple[Dataset, np.ndarray]:
    frames = np.stack([picture(number) for number in range(count)])
    dataset = dicom(frames[0], NumberOfFrames=count, PixelData=frames.tobytes(), **attributes)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(ULTRASOUND)
    dataset.Modality = "US"
    if syntax:
        dataset.compress(syntax)
    return dataset, frames


# --- Which frames


def test_frames_are_spaced_evenly_and_the_middle_one_stands_for_all() -> None:
    assert [evenly_spaced(count, 1) for count in (1, 2, 9, 100)] == [(0,), (1,), (4,), (50,)]
    for count in range(1, 40):
        for wanted in range(1, 12):
            taken = evenly_spaced(count, wanted)
            assert len(taken) == len(set(taken)) == min(count, wanted)
            assert all(0 <= number < count for number in taken)
            gaps = np.diff(taken)
            assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
    assert evenly_spaced(5, 0) == ()


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_the_wanted_frames_of_a_cine_are_decoded(tmp_path: Path, syntax: str | None) -> None:
    dataset, frames = cine(7, syntax)
    source = read(save(dataset, tmp_path / "a.dcm"), frames=3)
    assert source.frame_numbers == (1, 3, 5)
    assert source.frames_total == 7
    for number, frame in zip(source.frame_numbers, source.frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, frames[number])


def test_frames_become_images_of_one_patient(tmp_path: Path) -> None:
    dataset, _ = cine(5)
    done = prepare(save(dataset, tmp_path / "a.dcm"), settings(modalities=("US",), frames_per_file=3))
    assert isinstance(done, Prepared)
    assert done.planes.shape == (3, 1, 28, 28)
    assert len({plane.tobytes() for plane in done.planes}) == 3
    assert done.patient_id == "P1"


def test_a_flat_frame_is_left_out_and_the_others_stay(tmp_path: Path) -> None:
    dataset, frames = cine(3)
    frames[1] = 700
    dataset.PixelData = frames.tobytes()
    path = save(dataset, tmp_path / "a.dcm")
    assert read(path, frames=3).frame_numbers == (0, 2)
    with pytest.raises(Refused, match="FLAT"):
        read(path)


def test_fewer_frames_than_stated_are_refused(tmp_path: Path) -> None:
    for number, syntax in enumerate((None, RLELossless, JPEG2000Lossless)):
        dataset, _ = cine(4, syntax)
        dataset.NumberOfFrames = 5
        with pytest.raises(Refused, match="TRUNCATED"):
            read(save(dataset, tmp_path / f"{number}.dcm"))


def test_all_wanted_frames_together_count_against_the_limit(tmp_path: Path) -> None:
    path = save(cine(4)[0], tmp_path / "a.dcm")
    assert len(read_dicom(path, file_bytes=1 << 20, pixels=3 * 1600, frames=3).frames) == 3
    with pytest.raises(Refused, match="TOO_LARGE"):
        read_dicom(path, file_bytes=1 << 20, pixels=3 * 1600, frames=4)


# --- Enhanced objects


def enhanced(slopes: list[float], *, per_frame: bool) -> tuple[Dataset, np.ndarray]:
    frames = np.stack([picture(number) for number in range(len(slopes))])
    dataset = dicom(frames[0], modality="CT", NumberOfFrames=len(slopes), PixelData=frames.tobytes())
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(ENHANCED_CT)
    groups = []
    for slope in slopes:
        values, measures, group = Dataset(), Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, -1024, "HU"
        measures.PixelSpacing = [2, 1]
        group.PixelValueTransformationSequence = Sequence([values])
        group.PixelMeasuresSequence = Sequence([measures])
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = Sequence([Dataset() if per_frame else groups[0]])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups if per_frame else [Dataset() for _ in groups])
    return dataset, frames


@pytest.mark.parametrize("per_frame", [True, False])
def test_an_enhanced_object_rescales_each_frame_by_its_functional_groups(tmp_path: Path, per_frame: bool) -> None:
    slopes = [1.0, 2.0, 0.5] if per_frame else [2.0, 2.0, 2.0]
    dataset, frames = enhanced(slopes, per_frame=per_frame)
    source = read(save(dataset, tmp_path / "a.dcm"), frames=3)
    assert source.record.modality == "CT"
    for frame, slope, stored in zip(source.frames, slopes, frames, strict=True):
        np.testing.assert_allclose(frame.pixels, stored * slope - 1024)
        assert frame.window == CT_WINDOW_HU
        assert frame.spacing == (2.0, 1.0)


@pytest.mark.parametrize("attributes", [{}, {"RescaleIntercept": "0", "RescaleType": "US"}])
def test_a_ct_that_is_not_in_hounsfield_units_has_its_own_window(tmp_path: Path, attributes: dict[str, str]) -> None:
    assert read(save(dicom(picture(), modality="CT", **attributes), tmp_path / "a.dcm")).frames[0].window is None


# --- Colour


def test_a_palette_is_applied(tmp_path: Path) -> None:
    indices = np.arange(1600).reshape(40, 40).astype(np.uint8)
    table = [np.arange(256)[::step].repeat(abs(step)).astype(np.uint8)[:256] for step in (1, -1, 2)]
    dataset, _ = cine(1, PhotometricInterpretation="PALETTE COLOR", BitsAllocated=8)
    dataset.BitsStored, dataset.HighBit, dataset.PixelData = 8, 7, indices.tobytes()
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 8])
        setattr(dataset, f"{name}PaletteColorLookupTableData", entries.tobytes())
    (frame,) = read(save(dataset, tmp_path / "a.dcm")).frames
    np.testing.assert_array_equal(frame.pixels, np.stack([entries[indices] for entries in table], axis=-1))
    assert frame.window == (0.0, 255.0)
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", (entries.astype("<u2") << 8).tobytes())
    (wide,) = read(save(dataset, tmp_path / "b.dcm")).frames
    assert wide.window == (0.0, 65535.0)
    np.testing.assert_array_equal(wide.pixels, frame.pixels * 256)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_has_its_full_scale_and_no_channel_is_swapped(tmp_path: Path, planar: int) -> None:
    rgb = np.zeros((40, 40, 3), np.uint8)
    rgb[..., 0], rgb[:20, :, 1], rgb[:, 30:, 2] = 200, 100, 50
    stored = rgb if planar == 0 else np.ascontiguousarray(rgb.transpose(2, 0, 1))
    dataset, _ = cine(1, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelData = 8, 8, 7, stored.tobytes()
    path = save(dataset, tmp_path / "a.dcm")
    (frame,) = read(path).frames
    np.testing.assert_array_equal(frame.pixels, rgb)
    done = prepare(path, settings(image_spec(channels=3, range="[0,1]"), modalities=("US",)))
    assert isinstance(done, Prepared)
    np.testing.assert_allclose(done.planes[0, :, 2, 2], np.array([200, 100, 0]) / 255, atol=1e-5)


# --- Shape of pixels


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"])
def test_unequal_pixels_are_drawn_in_their_true_shape_and_the_mask_with_them(tmp_path: Path, keyword: str) -> None:
    from PIL import Image

    mask = np.zeros((20, 40), np.uint8)
    mask[5:15, 10:30] = 1  # in pixels twice as high as wide: a square
    pixels = (1000 + 2000 * mask.astype(int) + picture(shape=(20, 40)) // 100).astype(np.uint16)
    path = save(dicom(pixels, **{keyword: [2, 1]}), tmp_path / "a.dcm")
    Image.fromarray(mask).save(tmp_path / "m.png")
    used = settings(image_spec(mask_channels=1, range="[0,1]"))
    ((_, done),) = prepare_files([Task(path=path, mask=tmp_path / "m.png")], used, limits=LIMITS)
    assert isinstance(done, Prepared)
    drawn, inside = done.planes[0]
    expected = np.zeros((28, 28))
    expected[7:21, 7:21] = 1
    np.testing.assert_allclose(inside, expected, atol=1e-6)
    np.testing.assert_array_equal(drawn > 0.5, expected > 0)


@pytest.mark.parametrize("spacing", [[1, 1], [0.5, 0.501], None])
def test_equal_or_unknown_spacing_changes_nothing(tmp_path: Path, spacing: list[float] | None) -> None:
    attributes = {} if spacing is None else {"PixelSpacing": spacing}
    assert read(save(dicom(picture(), **attributes), tmp_path / "a.dcm")).frames[0].spacing is None


def test_pixels_a_hundred_times_as_long_as_wide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="HEADER"):
        read(save(dicom(picture(), PixelSpacing=[100, 1]), tmp_path / "a.dcm"))


# --- Encodings


def test_htj2k_is_decoded(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:24, :32]
    pixels = 1000 + 40 * rows + 25 * columns + 500 * ((rows - 12) ** 2 + (columns - 10) ** 2 < 30)
    dataset = dicom(pixels.astype(np.uint16), BitsStored=16, HighBit=15)
    dataset.PixelData = encapsulate([base64.b85decode(HTJ2K)])
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.201")
    (frame,) = read(save(dataset, tmp_path / "a.dcm")).frames
    np.testing.assert_array_equal(frame.pixels, pixels)


def test_big_endian_and_deflated_are_the_native_image(tmp_path: Path) -> None:
    native = read(save(dicom(picture()), tmp_path / "native.dcm")).frames[0].pixels
    dataset = dicom(picture())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    np.testing.assert_array_equal(read(save(dataset, tmp_path / "deflated.dcm")).frames[0].pixels, native)
    dataset = dicom(picture(), PixelData=picture().astype(">u2").tobytes())
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    path = tmp_path / "big.dcm"
    dataset.save_as(path, little_endian=False, implicit_vr=False, enforce_file_format=True)
    np.testing.assert_array_equal(read(path).frames[0].pixels, native)


def test_a_codestream_of_another_size_than_the_header_is_not_decoded(tmp_path: Path) -> None:
    for name, syntax, mark, at in (("j2k", JPEG2000Lossless, b"\xff\x51", 6), ("jls", JPEGLSLossless, b"\xff\xf7", 5)):
        dataset = dicom(picture())
        dataset.compress(syntax)
        data = bytearray(dataset.PixelData)
        start = data.index(mark) + at
        data[start : start + 2] = b"\x7f\xff"
        dataset.PixelData = bytes(data)
        with pytest.raises(Refused, match="DECODE"):
            read(save(dataset, tmp_path / f"{name}.dcm"))


def test_a_file_that_inflates_out_of_proportion_is_refused(tmp_path: Path) -> None:
    dataset = dicom(picture())
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    packed = save(dataset, tmp_path / "a.dcm").read_bytes()
    start = 132 + 12 + int.from_bytes(packed[140:144], "little")
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    body = zlib.decompress(packed[start:], -zlib.MAX_WBITS) + bytes(8 << 20)
    (tmp_path / "bomb.dcm").write_bytes(packed[:start] + squeeze.compress(body) + squeeze.flush())
    with pytest.raises(Refused, match="TOO_LARGE"):
        read(tmp_path / "bomb.dcm")


def test_float_pixels_are_refused(tmp_path: Path) -> None:
    dataset = dicom(picture())
    del dataset.PixelData
    dataset.FloatPixelData = picture().astype(np.float32).tobytes()
    with pytest.raises(Refused, match="NO_PIXELS"):
        read(save(dataset, tmp_path / "a.dcm"))


# --- What else goes to the parent


def test_held_modalities_wait_for_a_person(tmp_path: Path) -> None:
    path = save(cine(1)[0], tmp_path / "a.dcm")
    used = settings(modalities=("US",), held_modalities=("US",))
    found = dict(prepare_files([Task(path=path), Task(path=path, approved=True)], used, limits=LIMITS, workers=1))
    assert found[0] is Code.HELD
    assert isinstance(found[1], Prepared)


def test_thumbnails_show_each_frame_before_and_after_with_its_aspect(tmp_path: Path) -> None:
    path = save(dicom(picture(shape=(40, 20))), tmp_path / "a.dcm")
    done = prepare(path, settings(thumbnails=True))
    assert isinstance(done, Prepared)
    assert done.thumbnails is not None
    assert done.thumbnails.shape == (1, 2, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    np.testing.assert_array_equal(done.thumbnails[0, 0], done.thumbnails[0, 1])  # nothing was blanked
    quarter = THUMBNAIL_SIDE // 4
    assert not done.thumbnails[..., :quarter].any()
    assert done.thumbnails[..., quarter : 3 * quarter].std() > 20


def test_identifiers_reach_the_parent_and_no_text_representation(tmp_path: Path) -> None:
    path = save(dicom(picture(), patient="MRN00042", PatientName="DOE^JANE"), tmp_path / "a.dcm")
    done = prepare(path, settings())
    assert isinstance(done, Prepared)
    assert {"MRN00042", "DOE^JANE"} <= set(done.identifiers)
    assert "MRN00042" not in repr(done)
    assert "DOE" not in repr(read(path))


def test_identifiers_are_bounded() -> None:
    many = bounded(f"text {number}" for number in range(3 * MAX_IDENTIFIERS))
    assert len(many) == MAX_IDENTIFIERS
    assert bounded(["abcd", " 12345\0", "12345", "x" * 1000]) == ("12345", "x" * 64)


def test_an_artefact_that_holds_an_identifier_is_not_written(tmp_path: Path) -> None:
    from client.deidentify.headers import record_from_dict
    from client.intake.cache import Cache, Entry

    values = {"modality": "CR", "rows": 9, "columns": 9, "samples": 1, "photometric": "MONOCHROME2"}
    values |= {"bits_stored": 8, "transfer_syntax": "RLE", "view_position": ""}
    planes = np.zeros((1, 1, 8, 8), np.float32)
    entry = Entry(planes=planes, record=record_from_dict(values), blanked=(0,), patient="f" * 64)
    cache = Cache(tmp_path, rules="r", shape=(1, 8, 8))
    assert cache.store("a", entry, ["DOE^JANE", "fffff"]) is entry  # the key itself may hold anything
    planes.view(np.uint8).reshape(-1)[16:24] = np.frombuffer(b"DOE^JANE", np.uint8)
    assert cache.store("b", entry, ["DOE^JANE"]) is Code.IDENTIFIER
    assert cache.load("b") is Code.IDENTIFIER
    assert all(b"DOE^JANE" not in path.read_bytes() for path in tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("stated", [0, None])
def test_no_frames_stated_and_one_there_is_one_frame(stated: int | None, tmp_path: Path) -> None:
    one, two = picture(), np.stack([picture(), picture(1)])
    path = save(dicom(one, NumberOfFrames=stated), tmp_path / "one.dcm")
    assert len(read_dicom(path, file_bytes=1 << 20, pixels=1 << 20).frames) == 1
    path = save(dicom(one, NumberOfFrames=0, PixelData=two.tobytes()[: one.nbytes - 2]), tmp_path / "none.dcm")
    with pytest.raises(Refused):
        read_dicom(path, file_bytes=1 << 20, pixels=1 << 20)
