"""Image files: every format reads back, order is natural, errors name bad files and bombs."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

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
    with pytest.raises(UserError, match=rf"bomb\.png: .*{2**30}x{2**30} pixels exceed --max-pix"):
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
    writer = ImageWriter(tmp_path / "a.jpg", rgb8_info(18, 25, Fraction(25)), name="a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: cannot be written: Error setting"):
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


def test_the_limit_on_pixels_is_ours_alone(tmp_path):
    """Pillow refuses more than 179 million, whatever --max-pixels says."""
    (tmp_path / "large.png").write_bytes(png_with_header(20000, 10000))
    with pytest.raises(UserError, match="exceed --max-pixels"):
        image_size(tmp_path / "large.png")
    assert image_size(tmp_path / "large.png", max_pixels=300_000_000) == (10000, 20000)


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>\xc3\xa9</x:xmpmeta>"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def written(tmp_path, source, target, name=None) -> ImageWriter:
    """Reads an image and writes it as another; returns the writer."""
    reader = ImageReader([source], rate=Fraction(25), max_pixels=MAX_PIXELS)
    writer = ImageWriter(tmp_path / target, reader.info, name=name or target)
    for each in reader:
        writer.write(each)
    return writer


def found_in(path) -> dict:
    """Returns what Pillow finds beside the pixels."""
    with Image.open(path) as image:
        image.load()
        return {
            "exif": image.getexif().get(0x010F),
            "icc_profile": image.info.get("icc_profile"),
            "xmp": image.info.get("xmp"),
            "dpi": 300 in {round(float(side)) for side in image.info.get("dpi", ())},
        }


@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.webp", "a.tif", "deep.png", "deep.tif"])
def test_what_stands_beside_the_pixels_is_kept_or_said(source, tmp_path, picture):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "the maker", 6
    if source.startswith("deep"):
        deep = picture.astype(np.uint16) * 257
        extra = {"icc_profile": PROFILE, "xmp": XMP, "dpi": (300.0, 300.0), "exif": exif.tobytes()}
        image_file._write(tmp_path / source, deep, source[4:], extra)
    else:
        options = {"tiffinfo": {700: XMP, **exif}} if source == "a.tif" else {"exif": exif}
        options |= {} if source in ("a.png", "a.tif") else {"xmp": XMP}
        if source == "a.png":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
        Image.fromarray(picture).save(
            tmp_path / source, icc_profile=PROFILE, dpi=(300, 300), **options
        )
    given = found_in(tmp_path / source)
    assert (given["exif"], given["icc_profile"], given["xmp"]) == ("the maker", PROFILE, XMP)
    for target in ("b.jpg", "b.png", "b.webp", "b.tif", "b.avif", "b.bmp", "b.ppm"):
        lost = " ".join(written(tmp_path, tmp_path / source, target).lost)
        kept = found_in(tmp_path / target)
        names = {
            **{"exif": "EXIF", "icc_profile": "colour profile", "xmp": "XMP"},
            "dpi": "dots per inch",
        }
        for key, name in names.items():
            assert (kept[key] == given[key]) != (name in lost), (target, key, lost)
        if target in ("b.png", "b.tif"):
            assert not lost, "these formats hold all of it"


def test_text_and_a_gamma_of_its_own_stay_in_png(tmp_path, picture):
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "me")
    info.add(b"gAMA", struct.pack(">I", 100000))
    Image.fromarray(picture).save(tmp_path / "in.png", pnginfo=info)
    assert written(tmp_path, tmp_path / "in.png", "out.png").lost == []
    with Image.open(tmp_path / "out.png") as image:
        assert (image.text, image.info["gamma"]) == ({"Author": "me"}, 1.0)
    lost = written(tmp_path, tmp_path / "in.png", "out.jpg").lost
    assert lost == ["text (not supported by .jpg)", "gamma (not supported by .jpg)"]


def with_chunk(path, kind: bytes, data: bytes) -> None:
    """Puts a chunk before the pixels of a PNG."""
    file = io.BytesIO()
    PngImagePlugin.putchunk(file, kind, data)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + file.getvalue() + whole[33:])


DISPLAY_P3 = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def test_primary_colours_of_its_own_stay_in_png(tmp_path, picture):
    """As old programs tag colours; a gamma alone would show them as sRGB."""
    write_png(tmp_path / "in.png", picture)
    with_chunk(tmp_path / "in.png", b"cHRM", struct.pack(">8I", *DISPLAY_P3))
    assert written(tmp_path, tmp_path / "in.png", "out.png").lost == []
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["chromaticity"] == tuple(each / 100_000 for each in DISPLAY_P3)
        assert image.info["gamma"] == 0.45455
    lost = written(tmp_path, tmp_path / "out.png", "out.jpg").lost
    assert lost == ["primary colours (not supported by .jpg)"]


def test_a_png_of_limited_range_is_refused(tmp_path, picture):
    write_png(tmp_path / "in.png", picture)
    with_chunk(tmp_path / "in.png", b"cICP", bytes((1, 1, 0, 0)))
    with pytest.raises(
        UserError, match=r"in\.png: .*: pixels of limited range; convert it to full"
    ):
        written(tmp_path, tmp_path / "in.png", "out.png")


def test_mastering_metadata_of_a_deep_png_is_said(tmp_path, picture):
    deep = picture.astype(np.uint16) * 257
    image_file._write(tmp_path / "in.png", deep, ".png", {"cicp": (9, 16, 0, 1)})
    with_chunk(tmp_path / "in.png", b"cLLI", struct.pack(">2I", 10_000_000, 4_000_000))
    lost = written(tmp_path, tmp_path / "in.png", "out.png").lost
    assert lost == ["HDR mastering metadata"]
    assert facts(tmp_path / "out.png") == (16, 9, 16)


def test_pixels_that_are_not_square_are_said(tmp_path, picture):
    write_png(tmp_path / "in.png", picture)
    with_chunk(tmp_path / "in.png", b"pHYs", struct.pack(">IIB", 2, 1, 0))
    assert written(tmp_path, tmp_path / "in.png", "out.png").lost == ["pixel aspect ratio"]


@pytest.mark.parametrize(
    ("marker", "data", "said"),
    [
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40, ["extended XMP"]),
        (0xE1, b"FLIR\0\1\0\0heat", ["data of the camera or a program (APP1)"]),
        (0xEB, b"JP\0\1\0\0\0\1c2pa", ["data of the camera or a program (APP11)"]),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<MicroVideo/>", ["video of a motion photo"]),
        (0xEC, b"Ducky\0\1\0\4\0\0\0\x3c", []),
    ],
)  # fmt: skip
def test_what_a_jpeg_holds_beside_is_said(marker, data, said, tmp_path, picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG")
    whole, segment = file.getvalue(), struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
    (tmp_path / "in.jpg").write_bytes(whole[:2] + segment + whole[2:])
    assert written(tmp_path, tmp_path / "in.jpg", "out.jpg").lost == said


def test_a_profile_of_a_printer_is_larger_than_pillows_limit(tmp_path, picture):
    profile = bytes(2_000_000)
    Image.fromarray(picture).save(tmp_path / "in.png", icc_profile=profile)
    assert written(tmp_path, tmp_path / "in.png", "out.png").lost == []
    assert found_in(tmp_path / "out.png")["icc_profile"] == profile


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "a.tif"])
def test_of_many_pictures_the_first_is_taken_and_the_others_are_said(name, tmp_path):
    """A stack, an animation, or a photograph with a depth map (MPO)."""
    rng = np.random.default_rng(0)
    many = [Image.fromarray(rng.integers(0, 256, (24, 32), np.uint8)) for _ in range(4)]
    form = "MPO" if name == "a.jpg" else None
    many[0].save(tmp_path / name, form, save_all=True, append_images=many[1:])
    assert written(tmp_path, tmp_path / name, f"b{name[1:]}").lost == ["3 further pictures"]
    assert read_image(tmp_path / f"b{name[1:]}").shape == (24, 32, 3)


def tagged_avif(path, pixel_format="yuv420p10le", primaries=9, transfer=16):
    with av.open(str(path), "w", format="avif") as out:
        track = out.add_stream("libsvtav1", rate=25, options={"crf": "10"})
        track.width, track.height, track.pix_fmt = 96, 64, pixel_format
        context = track.codec_context
        context.color_range, context.colorspace = 1, 9
        context.color_primaries, context.color_trc = primaries, transfer
        pixels = np.arange(64 * 96 * 3).reshape(64, 96, 3) % 250
        frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), "rgb24")
        out.mux([*track.encode(frame.reformat(format=pixel_format)), *track.encode(None)])


def facts(path) -> tuple[int, int, int]:
    with av.open(str(path)) as file:
        frame = next(file.decode(video=0))
    bits = frame.format.components[0].bits
    return bits, int(frame.color_primaries), int(frame.color_trc)


def test_avif_of_10_bits_stays_so_with_its_colour(tmp_path, monkeypatch):
    monkeypatch.setenv("SVT_LOG", "1")
    tagged_avif(tmp_path / "in.avif")
    assert facts(tmp_path / "in.avif") == (10, 9, 16)
    assert written(tmp_path, tmp_path / "in.avif", "out.avif").lost == []
    assert facts(tmp_path / "out.avif") == (10, 9, 16)
    readers = [
        ImageReader([tmp_path / name], rate=Fraction(25), max_pixels=MAX_PIXELS)
        for name in ("in.avif", "out.avif")
    ]
    before, after = (next(iter(reader)).planes[0].astype(int) for reader in readers)
    assert np.abs(before - after).mean() < 0.01 * 65535
    assert written(tmp_path, tmp_path / "in.avif", "out.png").lost == []
    assert facts(tmp_path / "out.png") == (16, 9, 16)
    # A PNG's tag is read, too.
    lost = written(tmp_path, tmp_path / "out.png", "out.tif").lost
    assert lost == ["colour: BT.2020 PQ (not supported by .tif)"]
    lost = written(tmp_path, tmp_path / "in.avif", "out.jpg").lost
    assert lost == [
        "colour: BT.2020 PQ (not supported by .jpg)",
        "bit depth above 8 (not supported by .jpg)",
    ]


def test_a_colour_of_8_bits_is_said_or_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SVT_LOG", "1")
    tagged_avif(tmp_path / "in.avif", "yuv420p", 12, 13)
    assert written(tmp_path, tmp_path / "in.avif", "out.png").lost == []
    assert facts(tmp_path / "out.png") == (8, 12, 13)
    lost = written(tmp_path, tmp_path / "out.png", "out.avif").lost
    assert lost == ["colour: Display P3 kind 13 (not supported by .avif)"]
