"""Reads and writes TIFF files with tifffile.

Whatever a header says (tiles, separate planes, inks, bits, BigTIFF) is decoded as it says, or the
file is refused with the reason. Pillow and FFmpeg, which ignore parts of it, only decompress what
tifffile cannot without the package imagecodecs, and only where both understand the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from jaxdeblur.shapes import Plane
from jaxdeblur.video.ffmpeg import av

# Of damaged tags tifffile only warns, line by line; what matters becomes an error.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
# The first bytes of TIFF and BigTIFF, in both byte orders.
_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Numbers of the TIFF specification: photometric interpretations, sample formats, extra samples.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_UNSIGNED, _SIGNED, _FLOAT, _UNDEFINED = 1, 2, 3, 4
_PREMULTIPLIED, _ALPHA = 1, 2
# The channels of colour by photometric interpretation.
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _SEPARATED: 4}
_MOST_CHANNELS = 5  # of the largest pictures: inks and alpha
_GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
_XMP, _IPTC, _PHOTOSHOP = 700, 33723, 34377
# Of a TIFF's tags, those that EXIF has and that do not describe the file: description, maker,
# model, software, date, artist, copyright; and the tables of the exposure and of GPS.
_TEXTS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)
_TABLES = (0x8769, 0x8825)
# Descriptions by which programs find the pictures of a stack.
_OF_STACKS = ("ImageJ=", '{"shape"', "<?xml")


@dataclasses.dataclass(frozen=True)
class TiffHeader:
    """What a header says of the first picture.

    Attributes:
      mode: L, RGB or RGBA.
      height, width: size when upright.
      bits: 8 or 16.
      orientation: as in EXIF, 1 to 8.
      left: what the file holds beside the picture, in words.
    """

    mode: str
    height: int
    width: int
    bits: int
    orientation: int
    left: tuple[str, ...]


def is_tiff(path: Path) -> bool:
    """Returns whether a file begins as TIFF does; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return file.read(4) in _BEGINNINGS


def tiff_header(path: Path, max_pixels: int) -> TiffHeader:
    """Reads the header of the first full-size picture.

    Raises:
      ValueError: the picture is too large, or of a kind that is not read.
    """
    with _first_page(path, max_pixels) as (page, count):
        return _header(page, count)


def read_tiff(path: Path, max_pixels: int) -> tuple[Plane, TiffHeader, dict[str, Any]]:
    """Reads the first full-size picture, upright.

    Returns:
      Pixels, ``H W`` or ``H W 3|4`` of uint8 or uint16; the header; and metadata (``Picture``).

    Raises:
      ValueError: as ``tiff_header``, or the file is damaged. tifffile raises other types too.
    """
    with _first_page(path, max_pixels) as (page, count):
        header = _header(page, count)
        pixels = _decoded(path, page, header)
        return _upright(pixels, header.orientation), header, _metadata(path, page)


def encode_tiff(pixels: Plane, extra: dict[str, Any]) -> bytes:
    """Encodes ``H W`` or ``H W 3|4``, uint8 or uint16, with metadata (``Picture.extra``).

    tifffile does not write EXIF's tables; of 8 bits, Pillow does.
    """
    dpi, exif = extra.get("dpi"), Image.Exif()
    exif.load(extra.get("exif", b""))
    if pixels.dtype == np.uint8 and _has_tables(exif):
        if xmp := extra.get("xmp"):
            exif[_XMP] = xmp
        for tag, _, _, value, _ in extra.get("georeference", ()):
            exif[tag] = value
        options = {name: extra[name] for name in ("icc_profile", "dpi") if name in extra}
        file = io.BytesIO()
        # Not compressed: libtiff, which compresses, refuses these tables.
        Image.fromarray(pixels).save(file, "TIFF", exif=exif, **options)
        return file.getvalue()
    import tifffile  # takes a tenth of a second

    tags: list[Any] = list(extra.get("georeference", ()))
    tags += [(tag, "s", 0, str(exif[tag]), True) for tag in _TEXTS if tag in exif]
    if xmp := extra.get("xmp"):
        tags.append((_XMP, "B", len(xmp), xmp, True))
    file = io.BytesIO()
    tifffile.imwrite(
        file,
        pixels,
        photometric="minisblack" if pixels.ndim == 2 else "rgb",
        extrasamples=["unassalpha"] if pixels.shape[2:] == (4,) else None,
        compression="zlib",
        predictor=True,
        metadata=None,
        software=False,
        iccprofile=extra.get("icc_profile"),
        resolution=dpi,
        resolutionunit=None if dpi is None else "inch",
        extratags=tags,
    )
    return file.getvalue()


def loses_tables(extra: dict[str, Any], bits: int) -> bool:
    """Returns whether ``encode_tiff`` leaves out a part of EXIF."""
    exif = Image.Exif()
    exif.load(extra.get("exif", b""))
    return bits > 8 and _has_tables(exif)


def _has_tables(exif: Image.Exif) -> bool:
    return not set(exif) <= set(_TEXTS)


@contextlib.contextmanager
def _first_page(path: Path, max_pixels: int) -> Iterator[tuple[Any, int]]:
    """Opens a file; yields the first picture that is not a preview, and how many there are."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = [page.aspage() for page in file.pages]
        pages = [page for page in pages if not page.is_reduced]
        if not pages:
            raise ValueError("contains only a preview of a picture in another format")
        page = pages[0]
        height, width = page.imagelength, page.imagewidth
        if height * width > max_pixels:
            raise ValueError(f"{width}x{height} pixels exceed --max-pixels={max_pixels}")
        if height * width * page.samplesperpixel > _MOST_CHANNELS * max_pixels:
            channels = f"{page.samplesperpixel} channels"
            raise ValueError(f"{width}x{height} pixels of {channels}: raise --max-pixels")
        # ImageJ describes a stack of more than 4 GB in its first page alone.
        count = int((file.imagej_metadata or {}).get("images", 1))
        yield page, max(len(pages), count)


def _header(page: Any, count: int) -> TiffHeader:
    """Returns what a page says; raises ValueError for kinds that are not read."""
    photometric, bits, samples = int(page.photometric), page.bitspersample, page.samplesperpixel
    kind = getattr(page.photometric, "name", str(page.photometric))
    form = int(page.sampleformat or _UNSIGNED)
    if form == _FLOAT:  # of any range
        raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
    if form == _SIGNED:
        raise ValueError("signed pixels; convert it to unsigned ones of 8 or 16 bits")
    if form not in (_UNSIGNED, _UNDEFINED) or not isinstance(bits, int) or not 0 < bits <= 16:
        raise ValueError(f"pixels of {bits} bits; convert it to 8 or 16 bits")
    if page.imagedepth > 1:
        raise ValueError("a volume; convert it to a stack of pictures")
    if photometric == _YCBCR and bits == 8 and int(page.compression) != 1:
        colours = 3  # not compressed, Pillow does not read it
    elif photometric not in _COLOURS or (page.tags.valueof(332) or 1) != 1:  # inks but CMYK
        raise ValueError(f"pixels of the kind {kind}; convert it to RGB or grey")
    else:
        colours = _COLOURS[photometric]
    if samples < colours:
        raise ValueError(f"pixels of the kind {kind} with {samples} channels")
    extra = [int(each) for each in page.extrasamples]
    has_alpha = bool(extra) and extra[0] in (_PREMULTIPLIED, _ALPHA)
    is_grey = photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    left = []
    if (others := samples - colours - has_alpha) > 0:
        left.append("1 further channel" if others == 1 else f"{others} further channels")
    if count > 1:
        left.append("1 further picture" if count == 2 else f"{count - 1} further pictures")
    if photometric == _SEPARATED and page.iccprofile:
        left.append("colour profile (of other channels than those of the result)")
    if page.tags.get(_IPTC) is not None or page.tags.get(_PHOTOSHOP) is not None:
        left.append("IPTC and Photoshop's own data")
    orientation = page.tags.valueof(274)
    orientation = orientation if orientation in range(1, 9) else 1
    height, width = page.imagelength, page.imagewidth
    if orientation > 4:
        height, width = width, height
    mode = "RGBA" if has_alpha else "L" if is_grey else "RGB"
    return TiffHeader(mode, height, width, 8 if bits <= 8 else 16, orientation, tuple(left))


def _decoded(path: Path, page: Any, header: TiffHeader) -> Plane:
    """Returns the pixels as stored, in the header's mode and bits."""
    photometric, bits = int(page.photometric), page.bitspersample
    if photometric == _YCBCR:  # as JPEG has it; tifffile does not convert it
        return _by_pillow(path, header)
    try:
        stored = page.asarray()
    except (ValueError, NotImplementedError, ImportError) as error:
        if "imagecodecs" not in str(error) and not isinstance(error, ImportError):
            raise
        if header.bits == 8 and (photometric != _SEPARATED or page.samplesperpixel == 4):
            return _by_pillow(path, header)
        return _by_ffmpeg(path, page, header)
    array = rearrange(stored.reshape(page.shaped), "s 1 h w c -> h w (s c)")
    full, most = (2**header.bits - 1), 2**bits - 1
    dtype = np.dtype(np.uint8 if header.bits == 8 else np.uint16)
    if photometric == _PALETTE:
        table = page.colormap.T.astype(np.uint32)
        # 16 bits per entry, but old programs wrote 8.
        table = _scaled(table if table.max() > 255 else table * 257, 65535, full, dtype)
        extra = _scaled(array[..., 1:], most, full, dtype)
        return _with_alpha(table[array[..., 0]], extra, page, header)
    array = _scaled(array, most, full, dtype)
    if photometric == _SEPARATED:
        inks = full - array[..., :4].astype(np.uint32)
        colours = ((inks[..., :3] * inks[..., 3:] + full // 2) // full).astype(dtype)
        return _with_alpha(colours, array[..., 4:], page, header)
    number = 3 if photometric == _RGB else 1
    colours, extra = array[..., :number], array[..., number:]
    if photometric == _WHITE_IS_ZERO:
        colours = full - colours
    return _with_alpha(colours, extra, page, header)


def _scaled(array: np.ndarray, most: int, full: int, dtype: np.dtype) -> np.ndarray:
    """Scales whole numbers from 0 to ``most`` to 0 to ``full``, with rounding."""
    if most == full:
        return array.astype(dtype)
    return ((array.astype(np.uint32) * full + most // 2) // most).astype(dtype)


def _with_alpha(colours: np.ndarray, extra: np.ndarray, page: Any, header: TiffHeader) -> Plane:
    """Joins colours, ``H W 1|3``, with the first of the extra channels, if that is alpha."""
    if header.mode == "L":
        return np.ascontiguousarray(colours[..., 0])
    if colours.shape[-1] == 1:
        colours = np.repeat(colours, 3, axis=-1)
    if header.mode == "RGB":
        return np.ascontiguousarray(colours)
    alpha = extra[..., :1]
    if int(page.extrasamples[0]) == _PREMULTIPLIED:
        full = 2**header.bits - 1
        divisor = np.maximum(alpha.astype(np.uint32), 1)
        whole = (colours.astype(np.uint32) * full + divisor // 2) // divisor
        colours = np.minimum(whole, full).astype(colours.dtype)
    return np.concatenate([colours, alpha], axis=-1)


def _by_pillow(path: Path, header: TiffHeader) -> Plane:
    """Decompresses 8 bits with libtiff, which Pillow understands in full."""
    with Image.open(path, formats=["TIFF"]) as image:
        if (image.height, image.width) != (header.height, header.width):
            raise ValueError("Pillow decodes another picture; pip install imagecodecs reads it")
        pixels = np.asarray(image.convert(header.mode))
    # Pillow has turned it; undone here, since the caller turns all alike.
    return _upright(pixels, {6: 8, 8: 6}.get(header.orientation, header.orientation))


def _by_ffmpeg(path: Path, page: Any, header: TiffHeader) -> Plane:
    """Decompresses strips of 16 bits of grey or RGB, of which FFmpeg understands the rest."""
    is_plain = (
        *(int(page.photometric) in (_BLACK_IS_ZERO, _RGB), page.bitspersample == 16),
        *(not page.is_tiled, not page.parent.is_bigtiff, page.planarconfig == 1),
        *(page.index == 0, header.mode == "RGBA" or not page.extrasamples),
        int(page.extrasamples[0] if page.extrasamples else _ALPHA) == _ALPHA,
    )
    how = getattr(page.compression, "name", str(page.compression))
    what = f"samples of {page.bitspersample} bits compressed by {how}"
    needs = ValueError(f"{what}; reading it needs: pip install imagecodecs")
    if not all(is_plain):
        raise needs
    form = {"L": "gray16le", "RGB": "rgb48le", "RGBA": "rgba64le"}[header.mode]
    try:
        with path.open("rb") as file, av.open(file, "r", format="tiff_pipe") as container:
            frame = next(container.decode(video=0))
    except av.FFmpegError as error:
        raise needs from error
    return frame.reformat(format=form).to_ndarray()


def _upright(pixels: Plane, orientation: int) -> Plane:
    """Rotates and mirrors stored pixels as EXIF's orientation, 1 to 8, says."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def _metadata(path: Path, page: Any) -> dict[str, Any]:
    """Returns a page's metadata (``Picture.extra``)."""
    extra: dict[str, Any] = {"exif": _exif(path, page)}
    if int(page.photometric) not in (_SEPARATED,):  # a profile of inks would be wrong for RGB
        extra["icc_profile"] = page.iccprofile
    if xmp := page.tags.valueof(_XMP):
        extra["xmp"] = bytes(xmp)
    unit = {2: 1.0, 3: 2.54}.get(int(page.tags.valueof(296) or 2))
    sides = [page.tags.valueof(tag) for tag in (282, 283)]
    if unit and all(side and side[0] and side[1] for side in sides):
        extra["dpi"] = tuple(side[0] / side[1] * unit for side in sides)
    places = [page.tags.get(tag) for tag in _GEOREFERENCE]
    extra["georeference"] = [
        (tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in places if tag is not None
    ]
    return {key: value for key, value in extra.items() if value}


def _exif(path: Path, page: Any) -> bytes:
    """Returns a page's EXIF as a block of its own, as other formats hold it."""
    found, kept, has_any = Image.Exif(), Image.Exif(), False
    with contextlib.suppress(Exception), path.open("rb") as file:  # as of any damaged EXIF
        found.endian, found.bigtiff = page.parent.byteorder, page.parent.is_bigtiff
        found.load_from_fp(file, page.offset)
        for tag in _TABLES:
            if table := found.get_ifd(tag):
                kept.get_ifd(tag).update(table)
                has_any = True
        for tag in _TEXTS:
            if tag in found and not str(found[tag]).startswith(_OF_STACKS):
                kept[tag] = found[tag]
                has_any = True
        return kept.tobytes() if has_any else b""
    return b""
