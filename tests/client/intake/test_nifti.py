"""NIfTI: slices lie as a person expects whatever the file's axes, and a lying or swollen file allocates nothing."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from client.intake.readers.frames import CT_WINDOW_HU, Source
from client.intake.readers.nifti import read_nifti, read_slice
from client.quarantine import Code, Refused
from tests.client.intake.picture_files import PLANTED, write_nifti

RNG = np.random.default_rng(4)
RAS = RNG.integers(-900, 900, (12, 16, 9)).astype(np.int16)
"""x to the right, y to the front, z to the head."""


def read(
    path: Path, *, modality: str = "MR", pixels: int = 100_000, file_bytes: int = 1 << 22, frames: int = 1
) -> Source:
    return read_nifti(path, modality=modality, file_bytes=file_bytes, pixels=pixels, frames=frames)


def refused(path: Path, **limits: int) -> Code:
    with pytest.raises(Refused) as caught:
        read(path, **limits)
    return caught.value.code


def seen(ras: np.ndarray, z: int) -> np.ndarray:
    """An axial slice as radiologists look at it: front on top, the patient's right on the left."""
    return ras[::-1, ::-1, z].T


def patch(path: Path, at: int, form: str, *values: float) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, *values)
    path.write_bytes(data)
    return path


def test_every_order_of_the_axes_gives_the_same_slice(tmp_path: Path) -> None:
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            affine = np.zeros((4, 4))
            affine[3, 3] = 1
            stored = RAS.transpose(axes)
            for place, (axis, sign) in enumerate(zip(axes, flips, strict=True)):
                affine[axis, place] = sign * (axis + 1.0)
                stored = stored if sign == 1 else np.flip(stored, place)
            source = read(write_nifti(tmp_path / "a.nii", np.ascontiguousarray(stored), affine), frames=2)
            assert source.frame_numbers == (2, 6)
            assert source.frames_total == 9
            for frame, z in zip(source.frames, (2, 6), strict=True):
                np.testing.assert_array_equal(frame.pixels, seen(RAS, z))
                assert frame.spacing == (2.0, 1.0)


def test_the_middle_slice_stands_for_the_volume(tmp_path: Path) -> None:
    source = read(write_nifti(tmp_path / "a.nii.gz", RAS), modality="CT")
    np.testing.assert_array_equal(source.frames[0].pixels, seen(RAS, 4))
    assert source.frames[0].window == CT_WINDOW_HU
    assert (source.record.rows, source.record.columns, source.record.transfer_syntax) == (16, 12, "NIfTI")


def test_one_thick_slice_is_cut_along_its_own_axis(tmp_path: Path) -> None:
    sagittal = read(write_nifti(tmp_path / "a.nii", RAS[:1]))
    # The head is on top, and the front on the left as it is in DICOM.
    np.testing.assert_array_equal(sagittal.frames[0].pixels, RAS[0, ::-1, ::-1].T)
    flat = read(write_nifti(tmp_path / "b.nii", RAS[:, :, 0]))
    np.testing.assert_array_equal(flat.frames[0].pixels, seen(RAS, 0))


def test_slope_and_intercept_give_units_and_a_slope_of_zero_none(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", RAS)
    np.testing.assert_array_equal(read(patch(path, 112, "<ff", 2.0, -5.0)).frames[0].pixels, seen(RAS, 4) * 2.0 - 5)
    np.testing.assert_array_equal(read(patch(path, 112, "<ff", 0.0, -5.0)).frames[0].pixels, seen(RAS, 4))


def test_of_four_dimensions_the_first_volume_is_read(tmp_path: Path) -> None:
    source = read(write_nifti(tmp_path / "a.nii.gz", np.stack([RAS, RAS + 1], axis=3)))
    np.testing.assert_array_equal(source.frames[0].pixels, seen(RAS, 4))


def test_nifti_2_and_big_endian_files_are_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(RAS, np.eye(4)), tmp_path / "a.nii")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(RAS, np.eye(4), header), tmp_path / "b.nii")
    for name in ("a.nii", "b.nii"):
        np.testing.assert_array_equal(read(tmp_path / name).frames[0].pixels, seen(RAS, 4))


def test_texts_of_header_and_extension_are_named_as_what_must_not_survive(tmp_path: Path) -> None:
    for suffix in ("nii", "nii.gz"):
        assert PLANTED in read(write_nifti(tmp_path / f"a.{suffix}", RAS)).identifiers


def test_a_mask_is_cut_as_its_image_is(tmp_path: Path) -> None:
    mask = (RAS > 0).astype(np.uint8)
    flipped = np.diag([-1.0, 1, 1, 1])
    path = write_nifti(tmp_path / "mask.nii.gz", np.ascontiguousarray(mask[::-1]), flipped)
    for number in (0, 4, 8):
        found = read_slice(path, frame_number=number, frames_total=9, file_bytes=1 << 22)
        np.testing.assert_array_equal(found, seen(mask, number))
    with pytest.raises(Refused) as caught:
        read_slice(path, frame_number=0, frames_total=8, file_bytes=1 << 22)
    assert caught.value.code == Code.BAD_MASK


def test_nan_around_the_body_is_padding(tmp_path: Path) -> None:
    voxels = RAS.astype(np.float32)
    voxels[:3], voxels[-2:], voxels[:, :2] = np.nan, np.nan, np.nan
    frame = read(write_nifti(tmp_path / "a.nii", voxels)).frames[0]
    expected = seen(voxels, 4)
    assert frame.valid is not None
    np.testing.assert_array_equal(frame.valid, np.isfinite(expected))
    np.testing.assert_array_equal(frame.pixels[frame.valid], expected[frame.valid])
    assert (frame.pixels[~frame.valid] == expected[frame.valid].min()).all()
    voxels[6, 8, 4] = np.nan  # within the body
    assert refused(write_nifti(tmp_path / "b.nii", voxels)) == Code.NOT_FINITE
    voxels[...] = np.nan
    assert refused(write_nifti(tmp_path / "c.nii", voxels)) == Code.FLAT


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (0, 255), (-2.5, 4)])
def test_ct_in_other_units_is_refused_with_its_own_code(low: float, high: float, tmp_path: Path) -> None:
    scaled = low + (RAS + 900.0) / 1800 * (high - low)
    path = write_nifti(tmp_path / "a.nii", scaled.astype(np.float32))
    assert read(path, modality="MR").frames_total == 9
    with pytest.raises(Refused, match="NOT_HOUNSFIELD"):
        read(path, modality="CT")
    assert read(write_nifti(tmp_path / "b.nii", RAS), modality="CT").frames[0].window == CT_WINDOW_HU


@pytest.mark.parametrize("at", [-8, -4, -40])
def test_a_gzip_whose_checksum_or_length_does_not_fit_is_truncated(at: int, tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", RAS)
    assert read(path).frames_total == 9
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert refused(path) == Code.TRUNCATED


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    voxels = RAS.astype(np.float32)
    voxels[3, 3, 4] = value
    assert refused(write_nifti(tmp_path / "a.nii", voxels)) == Code.NOT_FINITE


def test_a_gzip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((4096, 4096, 512))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        file.write(bytes(1 << 24))
    assert path.stat().st_size < 1 << 18
    assert refused(path, file_bytes=1 << 30) == Code.TOO_LARGE
    # Of what follows the voxels that the header counts no more is unpacked than a file may have.
    small = header.copy()
    small.set_data_shape((8, 8, 2))
    small["vox_offset"] = 352
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(small.binaryblock + bytes(4) + bytes(range(128)) + bytes(1 << 24))
    assert read(path, file_bytes=1 << 24).frames_total == 2
    assert refused(path, file_bytes=1 << 23) == Code.TOO_LARGE


@pytest.mark.parametrize(
    ("at", "form", "values", "code"),
    [
        (40, "<hhhh", (3, 32767, 32767, 32767), Code.TOO_LARGE),
        (40, "<hhhh", (3, -1, 16, 9), Code.HEADER),
        (40, "<hhhh", (3, 0, 16, 9), Code.HEADER),
        (40, "<h", (9,), Code.HEADER),
        (40, "<hhhh", (3, 120, 16, 9), Code.TRUNCATED),
        (70, "<h", (1792,), Code.HEADER),  # complex
        (70, "<h", (9999,), Code.HEADER),
        (108, "<f", (1e9,), Code.HEADER),
        (108, "<f", (float("nan"),), Code.HEADER),
        (108, "<f", (-8.0,), Code.HEADER),
        (116, "<f", (float("nan"),), Code.HEADER),
        (280, "<f", (float("inf"),), Code.HEADER),
        (344, "<4s", (b"ni1\0",), Code.NOT_NIFTI),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, at: int, form: str, values: tuple, code: Code) -> None:
    assert refused(patch(write_nifti(tmp_path / "a.nii", RAS), at, form, *values)) == code


def test_limits_hold_for_the_slices_that_are_wanted(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", RAS)
    assert refused(path, pixels=191) == Code.TOO_LARGE
    assert refused(path, pixels=2 * 192 - 1, frames=2) == Code.TOO_LARGE
    assert refused(path, file_bytes=1000) == Code.TOO_LARGE


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz"):
        data = write_nifti(tmp_path / name, RAS).read_bytes()
        for cut in range(0, len(data) - 8, len(data) // 13):
            (tmp_path / name).write_bytes(data[:cut])
            assert refused(tmp_path / name) in (Code.TRUNCATED, Code.NOT_NIFTI, Code.HEADER)


def test_an_empty_slice_is_left_out_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    voxels = RAS.copy()
    voxels[:, :, :3] = voxels[:, :, 7] = 5
    source = read(write_nifti(tmp_path / "a.nii", voxels), frames=9)
    assert (source.frame_numbers, source.frames_total) == ((3, 4, 5, 6, 8), 9)
    for frame, z in zip(source.frames, source.frame_numbers, strict=True):
        np.testing.assert_array_equal(frame.pixels, seen(RAS, z))
    assert refused(write_nifti(tmp_path / "b.nii", np.full_like(RAS, 5))) is Code.FLAT
