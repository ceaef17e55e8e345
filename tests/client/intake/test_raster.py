"""PNG and JPEG: pixels as a person sees them, nothing else of the file, and no bomb."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.intake.readers.frames import Source
from client.intake.readers.raster import read_picture
from client.quarantine import Code, Refused
from tests.client.intake.picture_files import PLANTED, eight_bit, write_png


def read(path: Path, *, pixels: int = 1_000_000, file_bytes: int = 1 << 24) -> Source:
    return read_picture(path, modality="DX", file_bytes=file_bytes, pixels=pixels)


def pixels_of(path: Path) -> np.ndarray:
    return read(path).frames[0].pixels


def refused(path: Path, **limits: int) -> Code:
    with pytest.raises(Refused) as caught:
        read(path, **limits)
    return caught.value.code


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_grey_png_keeps_its_values_and_only_them(tmp_path: Path) -> None:
    source = read(write_png(tmp_path / "a.png", eight_bit()))
    np.testing.assert_array_equal(source.frames[0].pixels, eight_bit())
    assert (source.record.photometric, source.record.bits_stored, source.record.samples) == ("MONOCHROME2", 8, 1)
    assert (source.record.modality, source.record.transfer_syntax) == ("DX", "PNG")
    assert source.identifiers == (PLANTED,)
    assert source.patient_id == ""


def test_sixteen_bits_are_not_cut_to_eight(tmp_path: Path) -> None:
    deep = (np.arange(1600, dtype=np.uint16) * 40).reshape(40, 40)
    source = read(write_png(tmp_path / "a.png", deep))
    np.testing.assert_array_equal(source.frames[0].pixels, deep)
    assert source.record.bits_stored == 16


def deep_png(path: Path, channels: np.ndarray, *, transparent: bytes = b"", exif: bytes = b"") -> Path:
    """A PNG of 16 bits: (h,w) grey, (h,w,2) grey and alpha, (h,w,3) or (h,w,4); Pillow writes none of the last three.

    Args:
        path: of the file.
        channels: uint16.
        transparent: the value that stands for transparent, big endian.
        exif: a block of it.
    """
    height, width = channels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels[..., None].shape[2] if channels.ndim == 2 else channels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    parts += [chunk(b"tRNS", transparent)] if transparent else []
    parts += [chunk(b"eXIf", exif)] if exif else []
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


DEEP = np.random.default_rng(5).integers(0, 65536, (20, 30, 4)).astype(np.uint16)


def test_sixteen_bit_colour_keeps_all_its_bits(tmp_path: Path) -> None:
    source = read(deep_png(tmp_path / "a.png", DEEP[..., :3]))
    np.testing.assert_array_equal(source.frames[0].pixels, DEEP[..., :3])
    assert (source.record.bits_stored, source.record.photometric) == (16, "RGB")
    assert source.frames[0].window == (0.0, 65535.0)
    grey = np.repeat(DEEP[..., :1], 3, axis=2)
    np.testing.assert_array_equal(pixels_of(deep_png(tmp_path / "b.png", grey)), DEEP[..., 0])


@pytest.mark.parametrize("colours", [1, 3])
def test_sixteen_bit_alpha_darkens_and_hides(colours: int, tmp_path: Path) -> None:
    alpha = DEEP[..., 3].copy()
    alpha[:5] = 0
    drawn = DEEP[..., :colours]
    frame = read(deep_png(tmp_path / "a.png", np.concatenate([drawn, alpha[..., None]], axis=2))).frames[0]
    expected = (drawn * (alpha[..., None] / 65535)).squeeze()
    np.testing.assert_allclose(frame.pixels, expected, rtol=1e-5, atol=1e-3)
    assert frame.valid is not None
    np.testing.assert_array_equal(frame.valid, alpha > 0)


@pytest.mark.parametrize("colours", [1, 3])
def test_a_transparent_value_of_sixteen_bits_is_black_and_not_valid(colours: int, tmp_path: Path) -> None:
    drawn = DEEP[..., :colours].copy()
    drawn[:5] = 4660
    path = deep_png(tmp_path / "a.png", drawn.squeeze(), transparent=b"\x12\x34" * colours)
    frame = read(path).frames[0]
    assert frame.valid is not None
    assert not frame.valid[:5].any()
    assert frame.valid[5:].all()
    assert not frame.pixels[:5].any()
    np.testing.assert_array_equal(frame.pixels[5:], drawn[5:].squeeze())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_colour_is_turned_as_eight_bit_is(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shallow = (DEEP[..., :3] >> 8).astype(np.uint8)
    Image.fromarray(shallow).save(tmp_path / "shallow.png", exif=exif)
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    deep = pixels_of(deep_png(tmp_path / "deep.png", DEEP[..., :3], exif=block))
    np.testing.assert_array_equal(deep.astype(np.uint16) >> 8, pixels_of(tmp_path / "shallow.png"))


def test_sixteen_bit_colour_cut_short_is_refused(tmp_path: Path) -> None:
    path = deep_png(tmp_path / "a.png", DEEP)
    path.write_bytes(path.read_bytes()[:2000])
    assert refused(path) == Code.TRUNCATED


def test_of_a_jpeg_with_previews_the_main_picture_is_taken(tmp_path: Path) -> None:
    main, preview = Image.fromarray(eight_bit()), Image.fromarray(eight_bit()[:8, :8])
    main.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    main.save(tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    np.testing.assert_allclose(pixels_of(tmp_path / "a.jpg"), pixels_of(tmp_path / "b.jpg"), atol=2)


def test_grey_stored_as_colour_or_palette_is_grey(tmp_path: Path) -> None:
    grey = Image.fromarray(eight_bit())
    for mode in ("RGB", "RGBA", "LA", "P"):
        path = tmp_path / f"{mode}.png"
        grey.convert(mode).save(path)
        np.testing.assert_array_equal(pixels_of(path), eight_bit())


def test_colour_keeps_its_levels(tmp_path: Path) -> None:
    colours = np.stack([eight_bit(), 255 - eight_bit(), eight_bit() // 2], axis=-1)
    source = read(write_png(tmp_path / "a.png", colours))
    np.testing.assert_array_equal(source.frames[0].pixels, colours)
    assert (source.record.photometric, source.frames[0].window) == ("RGB", (0.0, 255.0))


def test_what_lies_under_transparency_is_not_an_image(tmp_path: Path) -> None:
    hidden = np.dstack([eight_bit()] * 3 + [np.full((40, 40), 255, np.uint8)])
    hidden[:10, :, 3] = 0
    Image.fromarray(hidden).save(tmp_path / "a.png")
    frame = read(tmp_path / "a.png").frames[0]
    assert (frame.pixels[:10] == 0).all()
    assert frame.valid is not None
    assert not frame.valid[:10].any()
    assert frame.valid[10:].all()
    np.testing.assert_array_equal(frame.pixels[10:], eight_bit()[10:])


def test_orientation_in_exif_is_honoured(tmp_path: Path) -> None:
    pixels = eight_bit(shape=(40, 24))
    stored = Image.fromarray(np.rot90(pixels))  # lies on its side, as a camera stores it
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    exif[0x010E] = PLANTED
    stored.save(tmp_path / "a.png", exif=exif)
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png"), pixels)
    jpeg = read(tmp_path / "a.jpg")
    assert np.abs(jpeg.frames[0].pixels - pixels).mean() < 3
    assert (jpeg.record.rows, jpeg.record.columns, jpeg.record.transfer_syntax) == (40, 24, "JPEG file")
    assert PLANTED in jpeg.identifiers


@pytest.mark.parametrize("form", ["BMP", "TIFF", "GIF", "WEBP", "PPM"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(eight_bit()).save(path, format=form)
    assert refused(path) == Code.NOT_PICTURE


def test_another_format_behind_a_jpeg_signature_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1000))
    with pytest.raises((Refused, SyntaxError)):
        read(tmp_path / "a.jpg")


def test_a_header_of_many_pixels_is_refused_before_they_are_allocated(tmp_path: Path) -> None:
    size = struct.pack(">IIBBBBB", 65535, 65535, 16, 0, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    (tmp_path / "a.png").write_bytes(bomb)
    assert refused(tmp_path / "a.png") == Code.TOO_LARGE
    assert refused(write_png(tmp_path / "b.png", eight_bit()), pixels=1599) == Code.TOO_LARGE
    assert refused(write_png(tmp_path / "c.png", eight_bit()), file_bytes=100) == Code.TOO_LARGE
    palette = Image.fromarray(eight_bit()).convert("P")
    palette.save(tmp_path / "d.png")
    assert refused(tmp_path / "d.png", pixels=1600) == Code.TOO_LARGE  # it would be decoded to four channels


def test_a_picture_cut_short_is_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        buffer = io.BytesIO()
        Image.fromarray(eight_bit()).save(buffer, format={"png": "PNG", "jpg": "JPEG"}[suffix])
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        assert refused(path) == Code.TRUNCATED


def test_flat_animated_and_ink_pictures_are_refused(tmp_path: Path) -> None:
    assert refused(write_png(tmp_path / "flat.png", np.full((8, 8), 7, np.uint8))) == Code.FLAT
    frames = [Image.fromarray(eight_bit(seed)) for seed in range(2)]
    frames[0].save(tmp_path / "two.png", save_all=True, append_images=frames[1:])
    assert refused(tmp_path / "two.png") == Code.FRAMES
    Image.fromarray(eight_bit()).convert("CMYK").save(tmp_path / "ink.jpg")
    assert refused(tmp_path / "ink.jpg") == Code.HEADER
    assert refused(tmp_path / "none.png") == Code.UNREADABLE
