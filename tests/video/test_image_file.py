"""Image files: every format reads back, order is natural, errors name bad files and bombs."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, features

from jaxdeblur.errors import UserError
from jaxdeblur.video import image_file
from jaxdeblur.video.formats import MAX_PIXELS, list_frames
from jaxdeblur.video.image_file import (
    ImageReader,
    ImageWriter,
    image_size,
    read_image,
    write_png,
)
from jaxdeblur.video.picture import Picture, rgb8_info


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (18, 25, 3), np.uint8)


def test_png_round_trip(tmp_path, picture):
    write_png(tmp_path / "a.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture)
    assert image_size(tmp_path / "a.png") == (18, 25)
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("suffix", ["webp", "bmp", "tif", "ppm", "PNG"])
def test_lossless_formats(tmp_path, picture, suffix):
    Image.fromarray(picture).save(
        tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {})
    )
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), picture)


def test_other_kinds_of_pixels_become_rgb(tmp_path, picture):
    grey = picture[..., 0]
    write_png(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, -1))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey16.png"), np.stack([grey] * 3, -1))
    rgba = np.concatenate([picture, picture[..., :1]], -1)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), picture)
    Image.fromarray(picture).quantize(8).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (18, 25, 3)


def test_floats_are_refused_rather_than_read_as_black(tmp_path, picture):
    Image.fromarray(picture[..., 0] / np.float32(255)).save(tmp_path / "floats.tif")
    with pytest.raises(
        UserError, match=r"floats\.tif: .*: floating-point pixels; convert it to 8 or 16 bits"
    ):
        read_image(tmp_path / "floats.tif")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_an_image(tmp_path, picture):
    smooth = np.repeat(np.repeat(picture[:3, :5], 8, axis=0), 8, axis=1)
    Image.fromarray(smooth).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    assert list_frames(tmp_path) == [tmp_path / "a.avif"]
    assert image_size(tmp_path / "a.avif") == (24, 40)
    assert np.abs(read_image(tmp_path / "a.avif").astype(int) - smooth).max() <= 4


def test_natural_order_and_what_counts_as_a_frame(tmp_path, picture):
    for name in [
        "f10.png",
        "f2.png",
        "f1.PNG",
        "f02.png",
        ".hidden.png",
        "notes.txt",
        "-x.png",
        "é.jpg",
    ]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    names = [path.name for path in list_frames(tmp_path)]
    assert names == ["-x.png", "f1.PNG", "f02.png", "f2.png", "f10.png", "loop.png", "é.jpg"]
    with pytest.raises(UserError, match=r"loop\.png: no such image"):
        read_image(tmp_path / "loop.png")
    with pytest.raises(UserError, match="nowhere"):
        list_frames(tmp_path / "nowhere")


def png_with_header(width: int, height: int) -> bytes:
    """Returns a PNG that claims a size but holds hardly any pixels, like a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("read", [read_image, image_size])
def test_bombs_are_refused_with_their_size(tmp_path, read):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png_with_header(8192, 8193))
    with pytest.raises(UserError, match=f"8192x8193 .*={MAX_PIXELS}"):
        read(bomb)
    bomb.write_bytes(png_with_header(2**30, 2**30))
    with pytest.raises(UserError, match=r"bomb\.png: not a readable image: .*exceeds limit"):
        read(bomb)
    bomb.write_bytes(png_with_header(20, 20))
    with pytest.raises(UserError, match="exceed --max-pixels=399"):
        read(bomb, max_pixels=399)


def test_damaged_files_are_named(tmp_path, picture):
    whole = tmp_path / "whole.png"
    write_png(whole, picture)
    data = whole.read_bytes()
    bad = tmp_path / "bad.png"
    damaged = [b"", b"hello", data[: len(data) // 2], data[:30], b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    for content in damaged:
        bad.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.png: not a readable image"):
            read_image(bad)
    for absent in [
        tmp_path / "none.png",
        tmp_path,
        tmp_path / ("x" * 400 + ".png"),
        tmp_path / "a\0.png",
    ]:
        with pytest.raises(UserError, match="no such image file"):
            read_image(absent)


def test_any_flipped_byte_gives_an_image_or_one_error(tmp_path, picture):
    whole = tmp_path / "whole.webp"
    Image.fromarray(picture).save(whole, lossless=True)
    data = whole.read_bytes()
    rng = np.random.default_rng(1)
    for suffix, content in [("webp", data), ("png", png_with_header(20, 20))]:
        bad = tmp_path / f"bad.{suffix}"
        for position in rng.integers(0, len(content), 60):
            flipped = bytearray(content)
            flipped[position] ^= 1 << rng.integers(8)
            bad.write_bytes(flipped)
            with contextlib.suppress(UserError):
                assert read_image(bad).dtype == np.uint8


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_of_a_camera_is_kept_in_every_format(suffix, tmp_path, picture):
    """Its exposure and place are tables inside the table."""
    exif = Image.Exif()
    exif[0x010F] = "the maker"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[1] = "N"
    source = tmp_path / f"in.{suffix}"
    Image.fromarray(picture).save(source, exif=exif.tobytes())
    reader = ImageReader([source], rate=Fraction(25), max_pixels=MAX_PIXELS)
    (read,) = list(reader)
    for target in ("a.jpg", "a.png", "a.webp", "a.tif"):
        ImageWriter(tmp_path / target, reader.info, name=target).write(read)
        with Image.open(tmp_path / target) as image:
            found = image.getexif()
            assert found[0x010F] == "the maker", target
            assert (found.get_ifd(0x8769), found.get_ifd(0x8825)) == ({0x829A: 0.01}, {1: "N"})


def test_of_a_tiff_only_what_describes_the_picture_goes_into_another_file(tmp_path, picture):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "the maker", 6
    Image.fromarray(picture).save(tmp_path / "in.tif", exif=exif)
    reader = ImageReader([tmp_path / "in.tif"], rate=Fraction(25), max_pixels=MAX_PIXELS)
    (read,) = list(reader)
    np.testing.assert_array_equal(read.planes[0], np.rot90(picture, -1))
    ImageWriter(tmp_path / "a.jpg", reader.info, name="a.jpg").write(read)
    with Image.open(tmp_path / "a.jpg") as image:
        assert dict(image.getexif()) == {0x010F: "the maker"}


def test_any_failure_of_pillow_is_one_line(tmp_path, picture, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Error setting from dictionary")

    monkeypatch.setattr(image_file.iio, "imwrite", fail)
    writer = ImageWriter(tmp_path / "a.tif", rgb8_info(18, 25, Fraction(25)), name="a.tif")
    with pytest.raises(UserError, match=r"a\.tif: cannot be written: Error setting"):
        writer.write(Picture((picture,)))


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.ppm", "a.png"])
def test_a_disk_that_is_full_at_the_last_byte_is_an_error(name, tmp_path, picture):
    info = rgb8_info(*picture.shape[:2], Fraction(25))
    writer = ImageWriter(tmp_path / name, info, name=name)
    writer.write(Picture((picture,)))
    size = (tmp_path / name).stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, old[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            writer.write(Picture((picture,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_writing_into_a_missing_folder_is_named(tmp_path, picture):
    with pytest.raises(UserError, match="cannot be written"):
        write_png(tmp_path / "none" / "a.png", picture)
