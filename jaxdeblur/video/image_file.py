"""Reads and writes image files, in 8 or 16 bits, within a limit on their size.

Handles single images, and series of images as a source and a target of pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.shapes import Frame8, Plane
from jaxdeblur.video.ffmpeg import av, build_frame, frame_planes, reason
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.image_metadata import (
    JPEG_SUFFIXES,
    cicp_of,
    coded,
    kept_by,
    lose_extra,
    pillow_options,
    read_extra,
    stored_cicp,
    with_chunks,
)
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
from jaxdeblur.video.tiff import encode_tiff, is_tiff, loses_tables, read_tiff, tiff_header

# The limit on an image's size is ours (--max-pixels), and is checked before pixels are read.
Image.MAX_IMAGE_PIXELS = None

# FFmpeg's pixel format of an image, by Pillow's mode and the bits of a sample.
_PIXEL_FORMATS = {
    ("L", 8): "gray",
    ("RGB", 8): "rgb24",
    ("RGBA", 8): "rgba",
    ("L", 16): "gray16le",
    ("RGB", 16): "rgb48le",
    ("RGBA", 16): "rgba64le",
}
# The formats that can be written with 16 bits, and those without alpha.
_DEEP = {".png", ".tif", ".tiff"}
_OPAQUE = {*JPEG_SUFFIXES, ".bmp", ".ppm"}
_ORIENTATION = 0x0112  # EXIF's tag for rotation and mirroring
# Only these decoders may run, whatever a file's suffix: others (EPS) start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "AVIF")
# FFmpeg's demuxers for images of more than 8 bits, which Pillow cannot read in full.
_DEEP_DEMUXERS = {"PNG": "png_pipe", "PPM": "ppm_pipe", "AVIF": "mov"}
# Frames are written without visible loss. PNG at level 1 is four times faster than at level 6 and
# 13 % larger.
_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"compress_level": 1},
    ".webp": {"lossless": True, "method": 2},
    ".avif": {"quality": 95, "subsampling": "4:4:4"},
    **{key: {"quality": 95, "subsampling": 0} for key in JPEG_SUFFIXES},
}


def image_size(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns the stored (height, width) of an image, from its header; of TIFF, when upright.

    Raises:
      UserError: as :func:`read_image`.
    """
    path = Path(path)
    with _explained(path):
        if is_tiff(path):
            header = tiff_header(path, max_pixels)
            return header.height, header.width
        with _opened(path, max_pixels) as image:
            return image.height, image.width


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Frame8:
    """Reads an image as RGB, ``H W 3`` uint8; the size in its header is checked first.

    Grey images become three equal channels, transparency is dropped, 16 bits are reduced to the
    upper 8, and an animation to its first picture. EXIF orientation is applied to TIFF alone.

    Raises:
      UserError: the file is missing, not an image, damaged or truncated, its pixels are floats, or
        it has more than ``max_pixels`` pixels (nothing is decoded then).
    """
    path = Path(path)
    with _explained(path):
        if is_tiff(path):
            pixels, header, _ = read_tiff(path, max_pixels)
            pixels = pixels if header.bits == 8 else (pixels // 256).astype(np.uint8)
            return _with_channels(pixels, "RGB")
        with _opened(path, max_pixels) as image:
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
        _, height, width, bits, cicp = headers[0]
        for path, header in zip(paths, headers, strict=True):
            if header[1:4] != (height, width, bits):
                raise UserError(
                    f"{path}: {header[2]}x{header[1]} pixels of {header[3]} bits, but "
                    f"{paths[0].name} has {width}x{height} of {bits}; all frames of a video must "
                    "have the same size and bit depth"
                )
        # The longest name has all channels: L, RGB, RGBA.
        self._mode = max((mode for mode, *_ in headers), key=len)
        same = cicp is not None and all(header[-1] == cicp for header in headers)
        self.info = dataclasses.replace(
            rgb8_info(height, width, rate),
            pixel_format=_PIXEL_FORMATS[self._mode, bits],
            layout=PixelLayout("grey" if self._mode == "L" else "rgb", bits),
            has_alpha=self._mode == "RGBA",
            colour=(
                FULL_RANGE * (self._mode == "L"),  # untagged grey would be taken for limited range
                UNSPECIFIED,
                *(cicp[:2] if cicp is not None and same else (UNSPECIFIED, UNSPECIFIED)),
            ),
            frames=len(paths),
        )

    def __iter__(self) -> Iterator[Picture]:
        """Yields the pictures; raises UserError if one is damaged or missing."""
        for index, path in enumerate(self._paths):
            with _explained(path):
                if is_tiff(path):
                    picture = _read_tiff(path, self._max_pixels, self._mode)
                else:
                    with _opened(path, self._max_pixels) as image:
                        picture = _read(path, image, self._mode)
            picture.pts, picture.duration = index, 1
            yield picture


class ImageWriter(PictureTarget):
    """Writes pictures as image files, under their own names or numbered, or as a single image."""

    def __init__(self, target: Path, info: VideoInfo, *, name: str):
        """Prepares to write into a folder or a single image, called ``name`` in messages."""
        self._target, self._info, self._name, self._count = target, info, name, 0
        self.lost = list(info.lost)
        if (info.sample_aspect or 1) != 1:
            self.lose("pixel aspect ratio (images have square pixels)")

    def write(self, picture: Picture) -> None:
        """Writes one image; raises UserError if it cannot be written."""
        self._count += 1
        path, name = self._target, Path(self._name)
        if path.is_dir():
            file = picture.name or f"{self._count:06}.png"
            path, name = path / file, name / file
        suffix = path.suffix.lower()
        extra = dict(picture.extra)
        if tag := cicp_of(self._info.colour):
            extra.setdefault("cicp", tag)
        try:
            if suffix == ".avif" and self._stays_deep(picture, extra):
                self._lose(picture, extra, {"cicp"}, ".avif of more than 8 bits")
                _write_avif(path, picture, self._info, extra)
                return
            _write(path, self._shown(picture, suffix, extra), suffix, extra)
        # ValueError: the format cannot hold it; RuntimeError: libtiff cannot write a tag.
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{name}: cannot be written: {reason(error)}") from error

    def _lose(self, picture: Picture, extra: dict[str, Any], kept: set[str], where: str) -> None:
        lose_extra(self, dataclasses.replace(picture, extra=extra), kept, where)

    def _stays_deep(self, picture: Picture, extra: dict[str, Any]) -> bool:
        """Whether FFmpeg writes an AVIF of 10 bits: Pillow would keep 8, and no colour but sRGB."""
        info = self._info
        fits = info.height >= 64 and info.width >= 64 and not (info.height % 2 or info.width % 2)
        wanted = info.layout.bits > 8 and ("subsampled" in extra or "cicp" in extra)
        as_stored = picture.alpha is None and not (info.quarter_turns or info.is_mirrored)
        return wanted and fits and as_stored and "icc_profile" not in extra

    def _shown(self, picture: Picture, suffix: str, extra: dict[str, Any]) -> Plane:
        """Returns the pixels of the image; records in ``lost`` what the format cannot hold."""
        layout, alpha = self._info.layout, picture.alpha
        bits = 16 if layout.bits > 8 and suffix in _DEEP else 8
        kept = set(kept_by(suffix))
        if suffix in (".tif", ".tiff") and loses_tables(extra, bits):
            self.lose(f"EXIF but its texts (not supported by {suffix} of 16 bits)")
        self._lose(picture, extra, kept, suffix)
        if layout.bits > 8 and bits == 8:
            self.lose(f"bit depth above 8 (not supported by {suffix})")
        if alpha is not None and suffix in _OPAQUE:
            self.lose(f"alpha (not supported by {suffix})")
        pixels = to_packed_rgb(picture.planes, layout, bits)
        if layout.kind == "grey":
            pixels = pixels[..., 0]
        if alpha is not None and suffix not in _OPAQUE:
            scale = (2**bits - 1) / (2**layout.bits - 1)
            pixels = np.dstack([pixels, np.round(alpha * scale).astype(pixels.dtype)])
        return np.ascontiguousarray(self._info.upright(pixels))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns any failure to read an image into a UserError."""
    if not os.path.isfile(path):  # excludes folders, and pipes that would never end
        raise UserError(f"{path}: no such image file")
    try:
        yield
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join((*_FORMATS, "TIFF"))
        raise UserError(f"{path}: not a readable image: none of {kinds}") from error
    except Exception as error:  # on damaged files the parsers raise nearly any type
        raise UserError(f"{path}: not a readable image: {reason(error)}") from error


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image other than TIFF within the limit and reads its header."""
    with Image.open(path, formats=_FORMATS) as image:
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise ValueError(f"{size} pixels exceed --max-pixels={max_pixels}")
        if image.mode == "F":  # of any range; a conversion would assume 0 to 255
            raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
        yield image


def _header(
    path: Path, max_pixels: int
) -> tuple[str, int, int, int, tuple[int, int, int, int] | None]:
    """Returns an image's mode (L, RGB or RGBA), upright height and width, bits, and colour tag."""
    with _explained(path):
        if is_tiff(path):
            header = tiff_header(path, max_pixels)
            return header.mode, header.height, header.width, header.bits, None
        with _opened(path, max_pixels) as image:
            is_grey = image.mode in ("1", "L") or image.mode.startswith("I")
            mode = "RGBA" if image.has_transparency_data else "L" if is_grey else "RGB"
            height, width = image.height, image.width
            if _orientation(image) > 4:
                height, width = width, height
            bits = 16 if _is_deep(image, path) else 8
            return mode, height, width, bits, stored_cicp(image, path)


def _read_tiff(path: Path, max_pixels: int, mode: str) -> Picture:
    """Reads a TIFF with the channels of ``mode``, and its metadata."""
    pixels, header, extra = read_tiff(path, max_pixels)
    left = list(header.left)
    if header.mode == "L" != mode and extra.pop("icc_profile", None):
        left.append("colour profile (of other channels than those of the result)")
    pixels = _with_channels(pixels, mode)
    return _picture(pixels, path.name, {**extra, "lost": left} if left else extra)


def _read(path: Path, image: Image.Image, mode: str) -> Picture:
    """Reads another image with the channels of ``mode``, and its metadata."""
    is_deep, orientation = _is_deep(image, path), _orientation(image)
    if image.format != "PPM":
        image.load()  # PNG may hold metadata after its pixels
    extra = read_extra(image, path, mode)
    if is_deep:
        # The format is named, since FFmpeg takes a .ppm for one of a numbered series.
        demuxer = _DEEP_DEMUXERS[str(image.format)]
        with path.open("rb") as file, av.open(file, "r", format=demuxer) as container:
            frame = next(container.decode(video=0))
        if image.format == "AVIF" and "420" in frame.format.name:
            extra["subsampled"] = True
        planes, alpha = frame_planes(frame, _PIXEL_FORMATS[mode, 16])
        upright = functools.partial(_upright, orientation=orientation)
        alpha = None if alpha is None else upright(alpha)
        return Picture(tuple(map(upright, planes)), alpha, name=path.name, extra=extra)
    pixels = _upright(np.array(image.convert(mode)), orientation)
    return _picture(pixels, path.name, extra)


def _picture(pixels: Plane, name: str, extra: dict[str, Any]) -> Picture:
    """Returns a picture of packed pixels, whose alpha is stored apart."""
    if pixels.ndim == 2 or pixels.shape[-1] == 3:
        return Picture((pixels,), None, name=name, extra=extra)
    colours, alpha = (np.ascontiguousarray(each) for each in (pixels[..., :3], pixels[..., 3]))
    return Picture((colours,), alpha, name=name, extra=extra)


def _with_channels(pixels: Plane, mode: str) -> Plane:
    """Returns grey, RGB or RGBA with the channels of ``mode``, which may have fewer or more."""
    if mode == "L":
        return pixels
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if mode == "RGB":
        return np.ascontiguousarray(pixels[..., :3])
    opaque = np.full((*pixels.shape[:2], 1), np.iinfo(pixels.dtype).max, pixels.dtype)
    return pixels if pixels.shape[-1] == 4 else np.concatenate([pixels, opaque], axis=-1)


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation, 1 to 8."""
    with contextlib.suppress(Exception):  # damaged EXIF: Pillow's parser raises many types
        exif = Image.Exif()  # not getexif, which decodes a PNG
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


def _is_deep(image: Image.Image, path: Path) -> bool:
    """Returns whether the file has more than 8 bits per sample, of which Pillow would keep 8."""
    if image.format == "AVIF":
        if image.has_transparency_data:  # in a picture of its own, which FFmpeg does not join
            return False
        with path.open("rb") as file, av.open(file, "r", format="mov") as container:
            of = coded(container)
            # A picture made of tiles is not joined either.
            return of.format.components[0].bits > 8 and (of.width, of.height) == image.size
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
      extra: the metadata (``Picture``); what the format does not keep is ignored.

    Raises:
      OSError, ValueError: the file cannot be written, or the format cannot hold the image.
    """
    # Encoded to bytes first: imageio may silently lose a file's last bytes on a full disk.
    if suffix in (".tif", ".tiff"):
        encoded = encode_tiff(pixels, extra)
    elif pixels.dtype == np.uint16:
        encoded = with_chunks(_encoded_png16(pixels), extra)
    else:
        options = dict(_OPTIONS.get(suffix, {}))
        if suffix != ".png":
            options |= pillow_options(extra, suffix)
        encoded = iio.imwrite(
            "<bytes>", pixels, plugin="pillow", extension=suffix, is_batch=False, **options
        )
        if suffix == ".png" and extra:
            encoded = with_chunks(encoded, extra)
    path.write_bytes(encoded)


def _encoded_png16(pixels: Plane) -> bytes:
    """Encodes PNG of 16 bits with FFmpeg, since Pillow has no such RGB."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    name = {1: "gray16be", 3: "rgb48be", 4: "rgba64be"}[channels]
    frame = av.VideoFrame.from_ndarray(pixels, name)
    context: Any = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = frame.width, frame.height, name
    context.time_base = Fraction(1, 25)
    return b"".join(map(bytes, [*context.encode(frame), *context.encode(None)]))


def _write_avif(path: Path, picture: Picture, info: VideoInfo, extra: dict[str, Any]) -> None:
    """Writes AVIF of 10 bits with FFmpeg, whose encoder has 4:2:0 alone."""
    primaries, transfer, *_ = extra.get("cicp") or (1, 13, 0, 1)
    matrix = 9 if primaries == 9 else 1
    os.environ.setdefault("SVT_LOG", "1")  # the encoder prints a page otherwise
    frame = build_frame(picture, info).reformat(
        format="yuv420p10le", dst_colorspace=matrix, dst_color_range=FULL_RANGE
    )
    file = io.BytesIO()
    with av.open(file, "w", format="avif") as out:
        track: Any = out.add_stream("libsvtav1", rate=25, options={"crf": "10", "preset": "5"})
        track.width, track.height, track.pix_fmt = info.width, info.height, "yuv420p10le"
        context = track.codec_context
        context.color_range, context.colorspace = FULL_RANGE, matrix
        context.color_primaries, context.color_trc = primaries, transfer
        out.mux([*track.encode(frame), *track.encode(None)])
    path.write_bytes(file.getvalue())
