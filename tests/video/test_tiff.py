"""TIFF: each kind of header is decoded as it says, or refused; pixels are never wrong."""

from __future__ import annotations

import contextlib
import importlib.util
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from PIL import Image

from jaxdeblur.errors import UserError
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.image_file import ImageReader, ImageWriter, image_size, read_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 65536, (40, 64, 3), np.uint16)
GREY, RGB8 = RGB[..., 0], (RGB >> 8).astype(np.uint8)
TABLE = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
DEEP = RNG.integers(0, 65536, (3, 65536), np.uint16)
FULL = 65535


def of_inks(cmyk: np.ndarray) -> np.ndarray:
    """RGB of inks: what neither an ink of the colour nor black covers."""
    full = np.iinfo(cmyk.dtype).max
    covered = (full - cmyk[..., :3].astype(float)) * (full - cmyk[..., 3:].astype(float)) / full
    return np.floor(covered + 0.5).astype(cmyk.dtype)


INKS, INKS8 = np.dstack([RGB, GREY // 2]), np.dstack([RGB8, GREY.astype(np.uint8)])
OPACITY = np.dstack([RGB // 2, np.full_like(GREY, FULL // 2)])

KINDS = {
    "strips": (RGB, {}, RGB),
    "tiles": (GREY, {"tile": (16, 16)}, GREY),
    "tiles of colour": (RGB, {"tile": (16, 16), "compression": "zlib", "predictor": True}, RGB),
    "tiles of 8 bits": (RGB8, {"tile": (16, 32)}, RGB8),
    "planes": (np.moveaxis(RGB, -1, 0), {"planarconfig": "separate"}, RGB),
    "planes of 8 bits": (np.moveaxis(RGB8, -1, 0), {"planarconfig": "separate"}, RGB8),
    "big-endian": (RGB, {"byteorder": ">"}, RGB),
    "BigTIFF": (RGB, {"bigtiff": True}, RGB),
    "BigTIFF of 8 bits": (RGB8, {"bigtiff": True}, RGB8),
    "BigTIFF of grey": (GREY, {"bigtiff": True, "tile": (16, 16), "byteorder": ">"}, GREY),
    "lzma": (RGB, {"compression": "lzma"}, RGB),
    "white is zero": (GREY, {"photometric": "miniswhite"}, FULL - GREY),
    "white is zero, 8 bits": (RGB8[..., 0], {"photometric": "miniswhite"}, 255 - RGB8[..., 0]),
    "inks": (INKS, {"photometric": "separated"}, of_inks(INKS)),
    "inks of 8 bits": (INKS8, {"photometric": "separated"}, of_inks(INKS8)),
    "inks in tiles": (INKS, {"photometric": "separated", "tile": (16, 16)}, of_inks(INKS)),
    "palette": (
        *(RGB8[..., 0], {"photometric": "palette", "colormap": TABLE}),
        np.moveaxis(TABLE // 257, 0, -1).astype(np.uint8)[RGB8[..., 0]],
    ),
    "palette of 16 bits": (GREY, {"photometric": "palette", "colormap": DEEP}, DEEP.T[GREY]),
    "black and white": (GREY > 30000, {}, (GREY > 30000) * np.uint8(255)),
    "alpha": (np.dstack([RGB, GREY]), {"extrasamples": ["unassalpha"]}, np.dstack([RGB, GREY])),
    "grey and alpha": (
        *(RGB[..., :2], {"photometric": "minisblack", "extrasamples": ["unassalpha"]}),
        RGB[..., [0, 0, 0, 1]],
    ),
    "a fourth channel": (np.dstack([RGB, GREY]), {"extrasamples": ["unspecified"]}, RGB),
    "five channels": (np.dstack([RGB, RGB[..., :2]]), {}, RGB),
}


def read(path) -> np.ndarray:
    """Returns the pixels of an image with its alpha."""
    (picture,) = ImageReader([path], rate=Fraction(25), max_pixels=MAX_PIXELS)
    pixels = picture.planes[0]
    return pixels if picture.alpha is None else np.dstack([pixels, picture.alpha])


def save(path, data, *, bigtiff=False, byteorder="<", **options):
    if "photometric" not in options:
        is_grey = data.ndim == 2 or "volumetric" in options
        options["photometric"] = "minisblack" if is_grey else "rgb"
    options = {"software": False, "metadata": None, **options}
    tifffile.imwrite(path, data, bigtiff=bigtiff, byteorder=byteorder, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_that_the_header_means(kind, tmp_path):
    data, options, expected = KINDS[kind]
    save(tmp_path / "in.tif", data, **options)
    found = read(tmp_path / "in.tif")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert image_size(tmp_path / "in.tif") == (40, 64)
    assert read_image(tmp_path / "in.tif").shape == (40, 64, 3)


def test_premultiplied_alpha_is_divided_out(tmp_path):
    save(tmp_path / "in.tif", OPACITY, extrasamples=["assocalpha"])
    found = read(tmp_path / "in.tif").astype(int)
    assert np.abs(found[..., :3] - RGB).max() <= 2
    assert (found[..., 3] == FULL // 2).all()


def test_few_bits_fill_the_range(tmp_path):
    """Two samples of 4 bits share a byte."""
    packed = RNG.integers(0, 256, (40, 32), np.uint8)
    save(tmp_path / "in.tif", packed)
    with tifffile.TiffFile(tmp_path / "in.tif", mode="r+b") as file:
        tags = file.pages.first.tags
        tags[256].overwrite(64)  # columns
        tags[258].overwrite(4)  # bits
    expected = np.stack([packed >> 4, packed & 15], -1).reshape(40, 64) * np.uint8(17)
    np.testing.assert_array_equal(read(tmp_path / "in.tif"), expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "zstd", "packbits", "tiff_deflate"])
def test_what_tifffile_cannot_decompress_pillow_and_ffmpeg_do(compression, tmp_path):
    smooth = np.repeat(np.repeat(RGB8[::8, ::8], 8, 0), 8, 1)
    for name, image in (("rgb", smooth), ("grey", smooth[..., 0])):
        Image.fromarray(image).save(tmp_path / f"{name}.tif", compression=compression)
        found = read(tmp_path / f"{name}.tif").astype(int)
        assert np.abs(found - image).max() <= (40 if compression == "jpeg" else 0)
    if compression not in ("jpeg", "zstd"):
        Image.fromarray(GREY).save(tmp_path / "deep.tif", compression=compression)
        np.testing.assert_array_equal(read(tmp_path / "deep.tif"), GREY)


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P"])
def test_other_channels_of_8_bits_too(mode, tmp_path):
    given = {"CMYK": INKS8, "RGBA": np.dstack([RGB8, GREY.astype(np.uint8)]), "P": RGB8}[mode]
    image = Image.frombytes("RGB" if mode == "P" else mode, (64, 40), given.tobytes())
    image = image.quantize(9) if mode == "P" else image
    image.save(tmp_path / "in.tif", compression="tiff_lzw")
    expected = {"CMYK": of_inks(INKS8), "RGBA": given, "P": np.asarray(image.convert("RGB"))}[mode]
    found = read(tmp_path / "in.tif").astype(int)
    assert np.abs(found - expected).max() <= (1 if mode == "CMYK" else 0)


@pytest.mark.parametrize("compression", ["group4", "tiff_lzw"])
def test_black_and_white_too(compression, tmp_path):
    Image.fromarray(GREY > 30000).save(tmp_path / "in.tif", compression=compression)
    np.testing.assert_array_equal(read(tmp_path / "in.tif"), (GREY > 30000) * np.uint8(255))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_every_decoder_turns_it_alike(compression, orientation, tmp_path):
    Image.fromarray(RGB8).save(
        tmp_path / "in.tif", compression=compression, tiffinfo={274: orientation}
    )
    with Image.open(tmp_path / "in.tif") as image:
        np.testing.assert_array_equal(read(tmp_path / "in.tif"), np.asarray(image))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (GREY.astype(np.int16), {}, "signed pixels; convert it to unsigned"),
        (RGB8.astype(np.int8), {}, "signed pixels"),
        (GREY.astype(np.float32), {}, "floating-point pixels; convert it to 8 or 16 bits"),
        ((RGB8 / 255).astype(np.float16), {}, "floating-point pixels"),
        (GREY.astype(np.uint32), {}, "pixels of 32 bits"),
        (RGB, {"photometric": "cielab"}, "pixels of the kind CIELAB"),
        (GREY, {"photometric": "cfa"}, "pixels of the kind CFA"),
        (RGB8, {"photometric": "ycbcr"}, "pixels of the kind YCBCR; convert it to RGB"),
        (GREY, {"subfiletype": 1}, "contains only a preview"),
        (
            *(np.zeros((16, 16, 16), np.uint16), {"volumetric": True, "tile": (16, 16, 16)}),
            "a volume; convert it to a stack of pictures",
        ),
    ],
)
def test_what_is_not_read_is_said(data, options, message, tmp_path):
    save(tmp_path / "in.tif", data, **options)
    for each in (read, read_image, image_size):
        with pytest.raises(UserError, match=rf"in\.tif: not a readable image: {message}"):
            each(tmp_path / "in.tif")


@pytest.mark.skipif(
    importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs decompresses it"
)
def test_what_nothing_here_decompresses_names_what_would(tmp_path):
    """FFmpeg would write tiles as black."""
    save(tmp_path / "in.tif", GREY, tile=(16, 16))
    with tifffile.TiffFile(tmp_path / "in.tif", mode="r+b") as file:
        file.pages.first.tags[259].overwrite(5)  # LZW
    with pytest.raises(UserError, match="compressed by LZW; reading it needs: pip install image"):
        read(tmp_path / "in.tif")


def test_channels_count_towards_the_limit(tmp_path):
    """A damaged number of channels would fill the memory."""
    save(tmp_path / "in.tif", RGB8)
    with tifffile.TiffFile(tmp_path / "in.tif", mode="r+b") as file:
        file.pages.first.tags[277].overwrite(60000)
    with pytest.raises(UserError, match="64x40 pixels of 60000 channels: raise --max-pixels"):
        read_image(tmp_path / "in.tif", max_pixels=10_000)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_any_flipped_byte_gives_an_image_or_one_error(compression, tmp_path, capfd):
    save(tmp_path / "in.tif", RGB8, compression=compression, software="s", resolution=(9, 9))
    whole = (tmp_path / "in.tif").read_bytes()
    header = whole.rindex(b"s\0") if compression else 8
    for position in [*range(8), *RNG.integers(header, len(whole), 60), *RNG.integers(0, 300, 60)]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << RNG.integers(8)
        (tmp_path / "in.tif").write_bytes(flipped)
        with contextlib.suppress(UserError):
            assert read(tmp_path / "in.tif").dtype in (np.uint8, np.uint16)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"compression": "zlib"}])
def test_a_truncated_file_is_refused(options, tmp_path):
    save(tmp_path / "in.tif", GREY, **options)
    whole = (tmp_path / "in.tif").read_bytes()
    for cut in (len(whole) // 2, len(whole) - 20):
        (tmp_path / "in.tif").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"in\.tif: not a readable image"):
            read(tmp_path / "in.tif")


def lost(tmp_path, source, target="out.tif") -> list[str]:
    reader = ImageReader([source], rate=Fraction(25), max_pixels=MAX_PIXELS)
    writer = ImageWriter(tmp_path / target, reader.info, name=target)
    for picture in reader:
        writer.write(picture)
    return writer.lost


def test_further_pictures_and_channels_are_said_previews_are_not(tmp_path):
    save(tmp_path / "five.tif", KINDS["five channels"][0])
    assert lost(tmp_path, tmp_path / "five.tif") == ["2 further channels"]
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([GREY] * 5), imagej=True)
    assert lost(tmp_path, tmp_path / "stack.tif") == ["4 further pictures"]
    with Image.open(tmp_path / "out.tif") as image:
        assert "ImageJ" not in str(image.tag_v2.get(270)), "it would describe a stack"
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(RGB8[::2, ::2], subfiletype=1, photometric="rgb")
        file.write(RGB8, photometric="rgb")
    assert lost(tmp_path, tmp_path / "pyramid.tif") == []
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), RGB8)


@pytest.mark.parametrize("given", [INKS, INKS8])
def test_a_profile_of_inks_is_said(given, tmp_path):
    save(tmp_path / "in.tif", given, photometric="separated", iccprofile=b"p" * 200)
    said = "colour profile (of other channels than those of the result)"
    assert lost(tmp_path, tmp_path / "in.tif") == [said]


@pytest.mark.parametrize("bigtiff", [False, True])
def test_exif_of_a_tiff_becomes_a_block_of_its_own(bigtiff, tmp_path):
    save(tmp_path / "in.tif", RGB8, bigtiff=bigtiff, extratags=[(0x010F, "s", 0, "maker", True)])
    assert lost(tmp_path, tmp_path / "in.tif", "out.jpg") == []
    with Image.open(tmp_path / "out.jpg") as image:
        assert dict(image.getexif()) == {0x010F: "maker"}


@pytest.mark.parametrize("data", [RGB8, RGB])
def test_the_place_on_earth_stays_in_tiff(data, tmp_path):
    scale = (33550, 12, 3, (0.5, 0.5, 0.0), True)
    place = (33922, 12, 6, (0.0, 0.0, 0.0, 7.0, 47.0, 0.0), True)
    save(tmp_path / "in.tif", data, extratags=[scale, place])
    assert lost(tmp_path, tmp_path / "in.tif") == []
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        tags = file.pages.first.tags
        assert (tags[33550].value, tags[33922].value) == (scale[3], place[3])
    assert lost(tmp_path, tmp_path / "in.tif", "out.png") == [
        "georeference (not supported by .png)"
    ]


def test_tables_of_exif_are_said_where_16_bits_cannot_take_them(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif.get_ifd(0x8769)[0x829A] = "maker", 0.01
    Image.fromarray(GREY).save(tmp_path / "in.png", exif=exif.tobytes())
    assert lost(tmp_path, tmp_path / "in.png") == [
        "EXIF but its texts (not supported by .tif of 16 bits)"
    ]
    with Image.open(tmp_path / "out.tif") as image:
        assert image.getexif()[0x010F] == "maker"
