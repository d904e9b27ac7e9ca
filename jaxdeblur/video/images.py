"""Folders of frames and single images, as sources and targets of pictures beside video files.

They offer what ``VideoReader`` and ``VideoWriter`` do: a source has ``info`` and gives pictures, a
target takes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Plane
from jaxdeblur.video.ffmpeg_frames import build_frame
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.image_file import ORIENTATION, image_header, read_picture
from jaxdeblur.video.picture import Picture, VideoInfo
from jaxdeblur.video.pixels import PixelLayout, to_packed_rgb
from jaxdeblur.video.pyav import av

# How each suffix is written: Pillow's name of the format and its options. Frames are written
# without visible loss; PNG at level 1 is four times faster than at 6 and 13 % larger.
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 1}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "method": 2}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".ppm": ("PPM", {}),
}
# FFmpeg's encoders for what Pillow cannot write: RGB of 16 bits.
_DEEP_ENCODERS = {".png": "png", ".tif": "tiff", ".tiff": "tiff"}
# Formats in which EXIF and a colour profile have a place.
_WITH_EXTRA = {"PNG", "JPEG", "WEBP", "TIFF"}
# How each EXIF orientation is shown: a, b, c and d of x' = a x + c y and y' = b x + d y.
_SHOWN = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


class ImageReader:
    """Reads image files as the frames of a video, in the order given.

    Grey images among others become RGB, and those without alpha among others are opaque.

    Attributes:
      info: what the frames are.
    """

    trailing: Sequence[Any] = ()

    def __init__(
        self, paths: Sequence[Path], *, rate: Fraction = Fraction(25), max_pixels: int = MAX_PIXELS
    ):
        """Reads the headers of all images, and the first image.

        Raises:
          UserError: there is no image, one is none, sizes differ, or the first cannot be read.
        """
        self._paths, self._max_pixels = paths, max_pixels
        if not paths:
            raise UserError("there are no images to restore")
        headers = [image_header(path, max_pixels) for path in paths]
        height, width = headers[0][:2]
        for path, header in zip(paths, headers, strict=True):
            if header[:2] != (height, width):
                raise UserError(
                    f"{path}: {header.width}x{header.height}, but {paths[0].name} is "
                    f"{width}x{height}; the frames of a video have one size"
                )
        self._first = read_picture(paths[0], max_pixels)
        layout = _layout_of_image(self._first)
        if not all(header.is_grey for header in headers):
            layout = dataclasses.replace(layout, kind="rgb")
        has_alpha = any(header.has_alpha for header in headers)
        self.info = VideoInfo(
            height=height,
            width=width,
            pixel_format=_pixel_format(layout, has_alpha),
            layout=layout,
            has_alpha=has_alpha,
            rate=rate,
            time_base=1 / rate,
            display_matrix=_matrix_of(_orientation_of(self._first)),
            frames=len(paths),
            lost=self._first.lost,
        )

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Picture]:
        """The pictures; raises :class:`UserError` if one has other bits, or is damaged."""
        for index, path in enumerate(self._paths):
            picture = self._first if not index else read_picture(path, self._max_pixels)
            if self.info.layout.kind == "rgb" and picture.planes[0].ndim == 2:
                picture = _in_colour(picture)
            if _layout_of_image(picture) != self.info.layout:
                raise UserError(
                    f"{path}: other bits than {self._paths[0].name}; the frames of a video have "
                    "one format"
                )
            picture.pts, picture.duration = index, 1
            yield picture


class ImageWriter:
    """Writes pictures as image files, under their own names or numbered, or one image.

    Attributes:
      lost: what the image format cannot hold, in words.
    """

    def __init__(self, target: Path, info: VideoInfo, *, single: bool = False, name: str = ""):
        """Prepares to write into the folder ``target``, or the one image ``target``."""
        self._target, self._info, self._single = target, info, single
        self._name = name or str(target)
        self._count = 0
        self.lost = list(info.lost)

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, picture: Picture) -> None:
        """Writes one image; :class:`UserError` if it cannot be written."""
        self.copy(picture.packets)
        self._count += 1
        if self._single:
            if self._count > 1:
                raise UserError(f"{self._name}: one image, but the input has more frames")
            path = self._target
        else:
            path = self._target / (picture.name or f"{self._count:06}.png")
        try:
            self._save(path, picture)
        except (OSError, ValueError) as error:  # ValueError: what a format cannot hold
            raise UserError(
                f"{Path(self._name) / path.name if not self._single else self._name}: cannot be "
                f"written: {getattr(error, 'strerror', None) or error}"
            ) from error

    def copy(self, packets: Sequence[Any]) -> None:
        """Images hold no sound."""
        if packets and "sound and other tracks" not in self.lost:
            self.lost.append("sound and other tracks")

    def _save(self, path: Path, picture: Picture) -> None:
        suffix = path.suffix.lower()
        pixels, alpha = self._pixels(picture), picture.alpha
        if alpha is not None and pixels.dtype == np.uint16:  # of 10 or 12 bits, as in ProRes 4444
            top = 2**self._info.layout.bits - 1
            alpha = ((alpha.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
        deep = pixels.dtype == np.uint16
        file_format, options = _FORMATS[suffix]
        if deep and suffix not in _DEEP_ENCODERS:
            self._lose("more than 8 bits")
            pixels, deep = _to_8_bits(pixels), False
            alpha = None if alpha is None else _to_8_bits(alpha)
        if alpha is not None and file_format in ("JPEG", "BMP", "PPM"):
            self._lose("alpha")
            alpha = None
        extra = picture.extra
        if extra and (file_format not in _WITH_EXTRA or (deep and file_format == "TIFF")):
            for key, what in (("exif", "EXIF"), ("icc_profile", "colour profile")):
                if key in extra:
                    self._lose(what)
            extra = {}
        if "exif" not in extra:  # so that the picture itself must be the right way up
            orientation = _orientation_of(picture)
            if orientation is None and not picture.name:  # a frame of a video
                orientation = orientation_shown(self._info.display_matrix)
            pixels = _turned(pixels, orientation)
            alpha = None if alpha is None else _turned(alpha, orientation)
        if deep:
            encoded = _encode_deep(pixels, alpha, _DEEP_ENCODERS[suffix])
            path.write_bytes(_with_extra(encoded, extra) if extra else encoded)
            return
        if alpha is not None:
            colour = pixels if pixels.ndim == 3 else pixels[..., None]
            pixels = np.concatenate([colour, alpha[..., None]], axis=-1)
        Image.fromarray(pixels).save(path, format=file_format, **options, **extra)

    def _pixels(self, picture: Picture) -> Plane:
        """Grey or RGB, of 8 or 16 bits."""
        info = self._info
        is_grey = info.layout.kind == "grey"
        if is_grey and info.layout.bits in (8, 16) and info.layout.full_range:
            return picture.planes[0]
        rgb = to_packed_rgb(picture.planes, info.layout, 16 if info.layout.bits > 8 else 8)
        return rgb[..., 0] if is_grey else rgb

    def _lose(self, what: str) -> None:
        what = f"{what} ({Path(self._name).suffix or 'the image format'} has no place for it)"
        if what not in self.lost:
            self.lost.append(what)


def _encode_deep(pixels: Plane, alpha: Plane | None, encoder: str) -> bytes:
    """PNG or TIFF of 16 bits."""
    grey = pixels.ndim == 2
    layout = PixelLayout("grey" if grey else "rgb", 16)
    if grey and alpha is not None:
        pixels, layout = np.stack([pixels] * 3, axis=-1), PixelLayout("rgb", 16)
    info = VideoInfo(
        height=pixels.shape[0],
        width=pixels.shape[1],
        pixel_format=_pixel_format(layout, alpha is not None),
        layout=layout,
        has_alpha=alpha is not None,
        rate=Fraction(25),
        time_base=Fraction(1, 25),
    )
    frame = build_frame(Picture((pixels,), alpha), info)
    context: Any = av.CodecContext.create(encoder, "w")
    formats = [f.name for f in context.codec.video_formats]
    # PNG stores the high byte first; nothing is lost by the change.
    name = info.pixel_format if info.pixel_format in formats else info.pixel_format[:-2] + "be"
    context.width, context.height, context.pix_fmt = info.width, info.height, name
    context.time_base = info.time_base
    if frame.format.name != name:
        frame = frame.reformat(format=name)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def _with_extra(png: bytes, extra: dict[str, Any]) -> bytes:
    """A PNG with EXIF and colour profile, which FFmpeg's encoder leaves out."""
    end_of_header = 33  # the signature and the first chunk, whose sizes are fixed
    chunks = io.BytesIO()
    if profile := extra.get("icc_profile"):
        PngImagePlugin.putchunk(chunks, b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    if exif := extra.get("exif"):
        PngImagePlugin.putchunk(chunks, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return png[:end_of_header] + chunks.getvalue() + png[end_of_header:]


def _orientation_of(picture: Picture) -> int | None:
    """What the EXIF of an image says of how it is shown, 1 to 8; None if it says nothing."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # damaged EXIF: Pillow's parser raises many types
        exif.load(picture.extra.get("exif", b""))
    orientation = exif.get(ORIENTATION)
    return orientation if orientation in _SHOWN else None


def _matrix_of(orientation: int | None) -> tuple[int, ...] | None:
    """An EXIF orientation as a video's display matrix (``VideoInfo``)."""
    if orientation in (None, 1):
        return None
    a, b, c, d = (sign << 16 for sign in _SHOWN[orientation])
    return (a, b, 0, c, d, 0, 0, 0, 1 << 30)


def orientation_shown(matrix: tuple[int, ...] | None) -> int | None:
    """The EXIF orientation that a display matrix stands for; None for none and for odd angles."""
    if matrix is None:
        return None
    signs = tuple(int(np.sign(matrix[place])) for place in (0, 1, 3, 4))
    return next((number for number, shown in _SHOWN.items() if shown == signs), None)


def _turned(pixels: Plane, orientation: int | None) -> Plane:
    """The pixels as an orientation shows them."""
    a, b, c, d = _SHOWN[orientation or 1]
    if a:
        return np.ascontiguousarray(pixels[::d, ::a])
    return np.ascontiguousarray(pixels[::c, ::b].swapaxes(0, 1))


def as_stored(shown: Plane, orientation: int | None) -> Plane:
    """Pixels as a file with an orientation holds them, so that they are shown as they are here."""
    back = {6: 8, 8: 6}  # quarter turns undo each other; all others undo themselves
    return _turned(shown, back.get(orientation or 1, orientation))


def _in_colour(picture: Picture) -> Picture:
    """A grey picture as RGB; a profile of grey would be wrong there."""
    extra = {key: value for key, value in picture.extra.items() if key != "icc_profile"}
    lost = picture.lost + ("colour profile of grey images",) * (extra != picture.extra)
    rgb = np.repeat(picture.planes[0][..., None], 3, axis=-1)
    return dataclasses.replace(picture, planes=(rgb,), extra=extra, lost=lost)


def _layout_of_image(picture: Picture) -> PixelLayout:
    plane = picture.planes[0]
    return PixelLayout("rgb" if plane.ndim == 3 else "grey", 8 * plane.dtype.itemsize)


def _pixel_format(layout: PixelLayout, has_alpha: bool) -> str:
    deep = layout.bits == 16
    if layout.kind == "rgb":
        return ("rgba64le" if deep else "rgba") if has_alpha else ("rgb48le" if deep else "rgb24")
    return "gray16le" if deep else "gray"


def _to_8_bits(samples: Plane) -> Plane:
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
