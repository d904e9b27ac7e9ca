"""Reads and writes image files, in 8 or 16 bits, within a limit on their size.

Handles single images, and series of images as a source and a target of pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.shapes import Frame8, Plane
from jaxdeblur.video.ffmpeg import av, frame_planes, reason
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.picture import (
    FULL_RANGE,
    UNSPECIFIED,
    Picture,
    PictureSource,
    PictureTarget,
    VideoInfo,
    rgb8_info,
)
from jaxdeblur.video.pixels import PixelLayout, to_packed_rgb

# FFmpeg's pixel format of an image, by Pillow's mode and the bits of a sample.
_PIXEL_FORMATS = {
    ("L", 8): "gray",
    ("RGB", 8): "rgb24",
    ("RGBA", 8): "rgba",
    ("L", 16): "gray16le",
    ("RGB", 16): "rgb48le",
    ("RGBA", 16): "rgba64le",
}
# The formats that can be written with 16 bits, those without alpha, and those without EXIF and
# colour profiles.
_DEEP = {".png", ".tif", ".tiff"}
_OPAQUE = {".jpg", ".jpeg", ".bmp", ".ppm"}
_PLAIN = {".bmp", ".ppm"}
_ORIENTATION = 0x0112  # EXIF's tag for rotation and mirroring
# Of a TIFF's tags, those that EXIF has and that do not describe the file: description, maker,
# model, software, date, artist, copyright, and the tables of the exposure and of GPS.
_IN_TIFF = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825}
_EXIF_PREFIX = b"Exif\0\0"
# Only these decoders may run, whatever a file's suffix: others (EPS) start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
# FFmpeg's demuxers for images of 16 bits, which Pillow cannot read in full.
_DEEP_DEMUXERS = {"PNG": "png_pipe", "TIFF": "tiff_pipe", "PPM": "ppm_pipe"}
# Frames are written without visible loss. PNG at level 1 is four times faster than at level 6 and
# 13 % larger.
_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"compress_level": 1},
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"lossless": True, "method": 2},
    ".avif": {"quality": 95, "subsampling": "4:4:4"},
    ".tif": {"compression": "tiff_lzw"},
    ".tiff": {"compression": "tiff_lzw"},
}


def image_size(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns the stored (height, width) of an image, from its header.

    Raises:
      UserError: as :func:`read_image`.
    """
    with _opened(Path(path), max_pixels) as image:
        return image.height, image.width


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Frame8:
    """Reads an image as RGB, ``H W 3`` uint8; the size in its header is checked first.

    Grey images become three equal channels, transparency is dropped, 16 bits are reduced to the
    upper 8, and an animation to its first picture. EXIF orientation is not applied.

    Raises:
      UserError: the file is missing, not an image, damaged or truncated, its pixels are floats, or
        it has more than ``max_pixels`` pixels (nothing is decoded then).
    """
    with _opened(Path(path), max_pixels) as image:
        if image.mode.startswith("I"):  # 16-bit grey, which a conversion would clip, not scale
            grey = np.array(image).clip(0, 65535) // 256
            return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))


def write_png(
    path: str | os.PathLike[str], image: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]
) -> None:
    """Writes an RGB or grey image as PNG, completely or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with replace_when_whole(path) as part:
            _write(part, image, ".png", {})
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error


class ImageReader(PictureSource):
    """Reads image files as the frames of a video, upright by EXIF, in the given order.

    Grey images among colour images become RGB; those without alpha among others become opaque.
    """

    def __init__(self, paths: Sequence[Path], *, rate: Fraction, max_pixels: int):
        """Reads the headers of all images; there must be at least one.

        Raises:
          UserError: a file is not an image, or the sizes or bits differ.
        """
        self._paths, self._max_pixels = paths, max_pixels
        headers = [_header(path, max_pixels) for path in paths]
        _, height, width, bits = headers[0]
        for path, header in zip(paths, headers, strict=True):
            if header[1:] != (height, width, bits):
                raise UserError(
                    f"{path}: {header[2]}x{header[1]} pixels of {header[3]} bits, but "
                    f"{paths[0].name} has {width}x{height} of {bits}; all frames of a video must "
                    "have the same size and bit depth"
                )
        # The longest name has all channels: L, RGB, RGBA.
        self._mode = max((mode for mode, *_ in headers), key=len)
        self.info = dataclasses.replace(
            rgb8_info(height, width, rate),
            pixel_format=_PIXEL_FORMATS[self._mode, bits],
            layout=PixelLayout("grey" if self._mode == "L" else "rgb", bits),
            has_alpha=self._mode == "RGBA",
            # Untagged grey would be taken for limited range.
            colour=(FULL_RANGE * (self._mode == "L"), UNSPECIFIED, UNSPECIFIED, UNSPECIFIED),
            frames=len(paths),
        )

    def __iter__(self) -> Iterator[Picture]:
        """Yields the pictures; raises UserError if one is damaged or missing."""
        for index, path in enumerate(self._paths):
            with _opened(path, self._max_pixels) as image:
                read = _read_deep if _is_deep(image) else _read
                picture = read(path, image, self._mode)
            picture.pts, picture.duration = index, 1
            yield picture


class ImageWriter(PictureTarget):
    """Writes pictures as image files, under their own names or numbered, or as a single image."""

    def __init__(self, target: Path, info: VideoInfo, *, name: str):
        """Prepares to write into a folder or a single image, called ``name`` in messages."""
        self._target, self._info, self._name, self._count = target, info, name, 0
        self.lost = list(info.lost)

    def write(self, picture: Picture) -> None:
        """Writes one image; raises UserError if it cannot be written."""
        self._count += 1
        path, name = self._target, Path(self._name)
        if path.is_dir():
            file = picture.name or f"{self._count:06}.png"
            path, name = path / file, name / file
        suffix = path.suffix.lower()
        try:
            _write(path, self._shown(picture, suffix), suffix, picture.extra)
        # ValueError: the format cannot hold it; RuntimeError: libtiff cannot write a tag.
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{name}: cannot be written: {reason(error)}") from error

    def _shown(self, picture: Picture, suffix: str) -> Plane:
        """Returns the pixels of the image; records in ``lost`` what the format cannot hold."""
        layout, alpha, extra = self._info.layout, picture.alpha, picture.extra
        bits = 16 if layout.bits > 8 and suffix in _DEEP else 8
        for what, is_lost in {
            "bit depth above 8": layout.bits > 8 and bits == 8,
            "alpha": alpha is not None and suffix in _OPAQUE,
            "EXIF": "exif" in extra and suffix in _PLAIN,
            "colour profile": "icc_profile" in extra and suffix in _PLAIN,
        }.items():
            if is_lost:
                self.lose(f"{what} (not supported by {suffix})")
        pixels = to_packed_rgb(picture.planes, layout, bits)
        if layout.kind == "grey":
            pixels = pixels[..., 0]
        if alpha is not None and suffix not in _OPAQUE:
            scale = (2**bits - 1) / (2**layout.bits - 1)
            pixels = np.dstack([pixels, np.round(alpha * scale).astype(pixels.dtype)])
        return np.ascontiguousarray(np.rot90(pixels, self._info.quarter_turns))


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image within the limit and reads its header; any failure becomes a UserError."""
    if not os.path.isfile(path):  # excludes folders, and pipes that would never end
        raise UserError(f"{path}: no such image file")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise ValueError(f"{size} pixels exceed --max-pixels={max_pixels}")
            if image.mode == "F":  # of any range; a conversion would assume 0 to 255
                raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
            yield image
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise UserError(f"{path}: not a readable image: none of {kinds}") from error
    except Exception as error:  # on damaged files Pillow's parsers raise nearly any type
        raise UserError(f"{path}: not a readable image: {reason(error)}") from error


def _header(path: Path, max_pixels: int) -> tuple[str, int, int, int]:
    """Returns an image's mode (L, RGB or RGBA), upright height and width, and bits (8 or 16)."""
    with _opened(path, max_pixels) as image:
        is_grey = image.mode in ("1", "L") or image.mode.startswith("I")
        mode = "RGBA" if image.has_transparency_data else "L" if is_grey else "RGB"
        height, width = image.height, image.width
        if image.format != "TIFF" and _orientation(image) > 4:  # Pillow turns a TIFF itself
            height, width = width, height
        return mode, height, width, 16 if _is_deep(image) else 8


def _read(path: Path, image: Image.Image, mode: str) -> Picture:
    """Reads an image with the channels of ``mode``, its EXIF and its profile."""
    extra = {}
    image.load()
    # CMYK profiles, and grey profiles among colour images, would be wrong for the output.
    if image.mode == mode or image.mode[0] in "RP":
        extra["icc_profile"] = image.info.get("icc_profile")
    if image.format == "TIFF":
        exif = image.getexif()
        for tag in set(exif) - _IN_TIFF:
            del exif[tag]
        extra["exif"] = exif.tobytes() if exif else b""
    else:
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        extra["exif"] = image.info.get("exif", b"")
    if extra["exif"]:  # WebP's lacks the prefix, which JPEG needs
        extra["exif"] = _EXIF_PREFIX + extra["exif"].removeprefix(_EXIF_PREFIX)
    pixels = np.array(image.convert(mode))
    alpha = np.ascontiguousarray(pixels[..., 3]) if mode == "RGBA" else None
    colours = pixels if alpha is None else np.ascontiguousarray(pixels[..., :3])
    extra = {key: value for key, value in extra.items() if value}
    return Picture((colours,), alpha, name=path.name, extra=extra)


def _read_deep(path: Path, image: Image.Image, mode: str) -> Picture:
    """Does the same for an image of 16 bits, without EXIF and profile."""
    # The format is named, since FFmpeg takes a .ppm for one of a numbered series.
    demuxer = _DEEP_DEMUXERS[str(image.format)]
    with path.open("rb") as file, av.open(file, "r", format=demuxer) as container:
        frame = next(container.decode(video=0))
    planes, alpha = frame_planes(frame, _PIXEL_FORMATS[mode, 16])
    upright = functools.partial(_upright, orientation=_orientation(image))
    alpha = None if alpha is None else upright(alpha)
    return Picture(tuple(map(upright, planes)), alpha, name=path.name)


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation, 1 to 8."""
    with contextlib.suppress(Exception):  # damaged EXIF: Pillow's parser raises many types
        if image.format == "TIFF":
            exif = image.getexif()
        else:  # not getexif, which decodes a PNG
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        if (orientation := int(exif.get(_ORIENTATION, 1))) in range(1, 9):
            return orientation
    return 1


def _upright(plane: Plane, orientation: int) -> Plane:
    """Rotates and mirrors a stored plane as EXIF's orientation, 1 to 8, says."""
    if orientation > 4:
        plane = plane.swapaxes(0, 1)
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(plane[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def _is_deep(image: Image.Image) -> bool:
    """Returns whether the file has 16 bits per sample, of which Pillow would keep 8."""
    tile = image.tile[0] if image.tile else None  # type: ignore[attr-defined]
    how = tile and tile[3]
    if image.format == "PPM" and isinstance(how, tuple):  # the mode and the largest value
        return how[-1] > 255
    return image.mode.startswith("I") or ";16" in str(how)


def _write(path: Path, pixels: Plane, suffix: str, extra: dict[str, Any]) -> None:
    """Writes an image file.

    Args:
      path: the file to write.
      pixels: ``H W`` or ``H W 3|4``, uint8, or uint16 if ``_DEEP`` contains the suffix.
      suffix: the suffix of the format, in lower case.
      extra: ``exif`` and ``icc_profile`` to store, if the file has 8 bits and the format has them.

    Raises:
      OSError, ValueError: the file cannot be written, or the format cannot hold the image.
    """
    # Encoded to bytes first: imageio may silently lose a file's last bytes on a full disk.
    if pixels.dtype == np.uint16:
        encoded = _encoded_deeply(pixels, suffix)
    else:
        options = _OPTIONS.get(suffix, {}) | ({} if suffix in _PLAIN else extra)
        if "exif" in extra:
            options.pop("compression", None)  # libtiff, which compresses, refuses EXIF's own tables
        encoded = iio.imwrite(
            "<bytes>", pixels, plugin="pillow", extension=suffix, is_batch=False, **options
        )
    path.write_bytes(encoded)


def _encoded_deeply(pixels: Plane, suffix: str) -> bytes:
    """Encodes PNG or TIFF of 16 bits with FFmpeg."""
    encoder, order = ("png", "be") if suffix == ".png" else ("tiff", "le")
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    name = {1: "gray16", 3: "rgb48", 4: "rgba64"}[channels] + order
    frame = av.VideoFrame.from_ndarray(pixels, name)
    context: Any = av.CodecContext.create(encoder, "w")
    context.width, context.height, context.pix_fmt = frame.width, frame.height, name
    context.time_base = Fraction(1, 25)
    return b"".join(map(bytes, [*context.encode(frame), *context.encode(None)]))
