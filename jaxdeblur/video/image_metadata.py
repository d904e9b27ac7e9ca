"""What image files hold beside their pixels: EXIF, XMP, colour, resolution and text.

It travels in ``Picture.extra``:

- ``exif``, ``icc_profile``, ``xmp``: blocks of bytes;
- ``cicp``: H.273's numbers of primaries, transfer function, matrix (0) and range (1);
- ``gamma``, ``dpi``: a number, two numbers;
- ``chromaticity``: x and y of white, red, green and blue, as in PNG;
- ``text``, ``comment``: a dict of strings, bytes;
- ``georeference``: tags of TIFF, as tifffile writes them;
- ``subsampled``: the file had 4:2:0 chroma of more than 8 bits;
- ``lost``: what the file holds beside that, in words.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, PngImagePlugin

from jaxdeblur.video.ffmpeg import av
from jaxdeblur.video.picture import LIMITED_RANGE, UNSPECIFIED, Picture, PictureTarget

EXIF_PREFIX = b"Exif\0\0"
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".jpe"})
"""The suffixes, in lower case, of JPEG."""

_NAMES = {
    "exif": "EXIF",
    "icc_profile": "colour profile",
    "xmp": "XMP",
    "gamma": "gamma",
    "chromaticity": "primary colours",
    "dpi": "resolution in dots per inch",
    "text": "text",
    "comment": "comment",
    "georeference": "georeference",
}
_BLOCKS = {"exif", "icc_profile", "xmp"}
_KEPT = {
    ".png": {*_BLOCKS, "gamma", "chromaticity", "dpi", "text", "cicp"},
    ".webp": _BLOCKS,
    ".avif": _BLOCKS,
    ".tif": {*_BLOCKS, "dpi", "georeference"},
    ".tiff": {*_BLOCKS, "dpi", "georeference"},
    ".bmp": {"dpi"},
    **{key: {*_BLOCKS, "dpi", "comment"} for key in JPEG_SUFFIXES},
}
_XMP_IN_PNG = "XML:com.adobe.xmp"
# A segment of JPEG has at most 64 KiB.
_MOST_XMP_IN_JPEG = 65503
# Without tags, programs take images for sRGB, whose primaries are those of BT.709. Video of these
# primaries and transfer functions has always been shown so.
_USUAL_PRIMARIES = {0, 1, UNSPECIFIED, 5, 6}
_USUAL_TRANSFERS = {0, 1, UNSPECIFIED, 6, 13, 14, 15}
_SAID = {9: "BT.2020", 12: "Display P3", 16: "PQ", 18: "HLG"}
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # as of ``chromaticity``
_USUAL_GAMMA = 1 / 2.2
_DPI_OF_NOBODY = 72  # what programs write that know no resolution


# How the segments of a JPEG begin that Pillow reads, or that hold nothing of the picture.
_READ_SEGMENTS = (
    *(b"JFIF", b"JFXX", b"Exif", b"ICC_PROFILE", b"MPF", b"Photoshop", b"Adobe", b"Ducky"),
    b"http://ns.adobe.com/xap/1.0/",
)
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/"
# By these names, XMP says that a video follows the JPEG (Google's and Samsung's phones).
_MOTION_PHOTO = (b"MotionPhoto", b"MicroVideo")
# Compressed texts and profiles are limited to 1 MB by Pillow: profiles of printers are larger.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


def cicp_of(colour: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """Returns the tag of RGB for a colour of video (``VideoInfo``); None if images are taken so."""
    _, _, primaries, transfer = colour
    if primaries in _USUAL_PRIMARIES and transfer in _USUAL_TRANSFERS:
        return None
    return primaries, transfer, 0, 1


def colour_name(cicp: tuple[int, int, int, int]) -> str:
    """Returns primaries and transfer function in words."""
    return " ".join(_SAID.get(number, f"kind {number}") for number in cicp[:2])


def kept_by(suffix: str) -> set[str]:
    """Returns what a format keeps of ``Picture.extra``."""
    return _KEPT.get(suffix, set())


def lose_extra(target: PictureTarget, picture: Picture, kept: Iterable[str], where: str) -> None:
    """Records what a target loses of a picture's metadata, other than the keys in ``kept``."""
    for what in picture.extra.get("lost", ()):
        target.lose(what)
    for key, value in picture.extra.items():
        if key in kept or (key == "dpi" and set(value) == {_DPI_OF_NOBODY}):
            continue
        if key == "cicp":
            target.lose(f"colour: {colour_name(value)} (not supported by {where})")
        elif key in _NAMES:
            target.lose(f"{_NAMES[key]} (not supported by {where})")


def read_extra(image: Image.Image, path: Path, mode: str) -> dict[str, Any]:
    """Returns the metadata of a loaded image other than TIFF, to be written with ``mode``."""
    info, extra, lost = _upright_info(image), {}, []
    # CMYK profiles, and grey profiles among colour images, would be wrong for the output.
    if image.mode == mode or image.mode[0] in "RP" or image.mode.startswith("I"):
        extra["icc_profile"] = info.get("icc_profile")
    elif "icc_profile" in info:
        lost.append("colour profile (of other channels than those of the result)")
    if exif := info.get("exif"):  # WebP's lacks the prefix, which JPEG needs
        extra["exif"] = EXIF_PREFIX + exif.removeprefix(EXIF_PREFIX)
    extra["xmp"] = info.get("xmp")
    if isinstance(extra["xmp"], str):
        extra["xmp"] = extra["xmp"].encode()
    extra["dpi"] = info.get("dpi")
    extra["comment"] = info.get("comment")
    if image.format == "PNG":
        texts = getattr(image, "text", {})
        extra["text"] = {key: text for key, text in texts.items() if key != _XMP_IN_PNG}
        if _XMP_IN_PNG in texts:
            extra["xmp"] = str(texts[_XMP_IN_PNG]).encode()
        if not {"srgb", "icc_profile"} & info.keys():
            extra |= _colour_of_png(info)
    extra["cicp"] = stored_cicp(image, path)
    lost += _not_read(image, info, extra["xmp"] or b"")
    if extra["cicp"] and image.format == "PNG" and {b"mDCV", b"cLLI"} & _chunks(path):
        lost.append("HDR mastering metadata")
    if (count := getattr(image, "n_frames", 1)) > 1:
        lost.append("1 further picture" if count == 2 else f"{count - 1} further pictures")
    return {key: value for key, value in {**extra, "lost": lost}.items() if value}


def _colour_of_png(info: dict[Any, Any]) -> dict[str, Any]:
    """Returns the gamma and the primary colours of a PNG where they are not those of sRGB."""
    gamma, primaries = info.get("gamma", _USUAL_GAMMA), info.get("chromaticity", _SRGB)
    found = {}
    if abs(gamma - _USUAL_GAMMA) > 1e-3:
        found["gamma"] = gamma
    if max(abs(one - two) for one, two in zip(primaries, _SRGB, strict=True)) > 2e-3:
        found["chromaticity"] = primaries
    return found


def _not_read(image: Image.Image, info: dict[Any, Any], xmp: bytes) -> list[str]:
    """Returns, in words, what an image holds that is not handed on."""
    lost = ["IPTC"] if 0x0404 in info.get("photoshop", {}) else []
    for name, data in getattr(image, "applist", ()):
        if data.startswith(_EXTENDED_XMP):
            lost.append("extended XMP")
        elif name.startswith("APP") and not data.startswith(_READ_SEGMENTS):
            lost.append(f"data of the camera or a program ({name})")
    if any(name in xmp for name in _MOTION_PHOTO):
        lost.append("video of a motion photo")
    # Without a unit, a resolution states the shape of pixels.
    sides = info.get("aspect") or (info.get("jfif_unit") == 0 and info.get("jfif_density"))
    if sides and sides[0] != sides[1]:
        lost.append("pixel aspect ratio")
    return lost


def _upright_info(image: Image.Image) -> dict[Any, Any]:
    """Returns Pillow's ``info`` as it is of the image turned upright by EXIF."""
    # Of a single pixel: only EXIF and XMP matter, which state the orientation.
    stand_in = Image.new("L", (1, 1))
    stand_in.info = dict(image.info)
    with contextlib.suppress(Exception):  # damaged EXIF: Pillow's parser raises many types
        stand_in = ImageOps.exif_transpose(stand_in)
    return stand_in.info


def stored_cicp(image: Image.Image, path: Path) -> tuple[int, int, int, int] | None:
    """Returns the colour tag of a PNG or AVIF, which Pillow does not read; None if it is usual.

    Raises:
      ValueError: a PNG says that black is not 0, which decoders ignore.
    """
    if image.format == "PNG":
        if b"cICP" not in _chunks(path):  # few files have it
            return None
    elif image.format != "AVIF":
        return None
    demuxer = "png_pipe" if image.format == "PNG" else "mov"
    with path.open("rb") as file, av.open(file, "r", format=demuxer) as container:
        of = next(container.decode(video=0)) if image.format == "PNG" else coded(container)
        if image.format == "PNG" and int(of.color_range) == LIMITED_RANGE:
            raise ValueError("pixels of limited range; convert it to full range")
        return cicp_of((0, 0, int(of.color_primaries), int(of.color_trc)))


def _chunks(path: Path) -> set[bytes]:
    """Returns which chunks of colour stand before the pixels of a PNG."""
    with path.open("rb") as file:
        beginning = file.read(1 << 16).partition(b"IDAT")[0]
    return {kind for kind in (b"cICP", b"mDCV", b"cLLI") if kind in beginning}


def coded(container: Any) -> Any:
    """Returns PyAV's description of the first picture of an open AVIF."""
    return container.streams.video[0].codec_context


def pillow_options(extra: dict[str, Any], suffix: str) -> dict[str, Any]:
    """Returns the options with which Pillow writes what a format other than PNG and TIFF keeps.

    Raises:
      ValueError: the format cannot hold it.
    """
    options = {key: value for key, value in extra.items() if key in kept_by(suffix)}
    if suffix in JPEG_SUFFIXES and len(options.get("xmp", b"")) > _MOST_XMP_IN_JPEG:
        raise ValueError("XMP of more than 64 KiB; write PNG or TIFF")
    return options


def with_chunks(encoded: bytes, extra: dict[str, Any]) -> bytes:
    """Returns a PNG with metadata, which neither Pillow nor FFmpeg writes into 16 bits."""
    file, text = io.BytesIO(), PngImagePlugin.PngInfo()

    def put(kind: bytes, data: bytes) -> None:
        PngImagePlugin.putchunk(file, kind, data)

    if cicp := extra.get("cicp"):
        put(b"cICP", bytes(cicp))
    if profile := extra.get("icc_profile"):
        put(b"iCCP", b"ICC Profile\0\0" + zlib.compress(profile))
    primaries = extra.get("chromaticity")
    if gamma := extra.get("gamma", primaries and _USUAL_GAMMA):  # one without the other is ignored
        put(b"gAMA", struct.pack(">I", round(100_000 * gamma)))
    if primaries:
        put(b"cHRM", struct.pack(">8I", *(round(100_000 * each) for each in primaries)))
    if dpi := extra.get("dpi"):  # per metre
        put(b"pHYs", struct.pack(">IIB", *(round(side / 0.0254) for side in dpi), 1))
    if exif := extra.get("exif"):
        put(b"eXIf", exif.removeprefix(EXIF_PREFIX))
    if xmp := extra.get("xmp"):
        text.add_itxt(_XMP_IN_PNG, xmp.decode("utf-8", "surrogateescape"))
    for key, value in extra.get("text", {}).items():
        text.add_text(key, value)
    for kind, data, *_ in text.chunks:
        put(kind, data)
    begin = 8 + 25  # after the signature and the chunk IHDR
    end = begin
    if encoded[begin + 4 : begin + 8] == b"pHYs":  # FFmpeg's, without a unit
        end += 12 + 9
    return encoded[:begin] + file.getvalue() + encoded[end:]
