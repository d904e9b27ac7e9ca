"""Folders of frames, single images and raw pipes, as sources and targets beside video files.

They offer what ``VideoReader`` and ``VideoWriter`` do (jaxdeblur/video.py): a source has ``info``
and gives pictures, a target takes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxdeblur.errors import UserError
from jaxdeblur.images import IMAGE_SUFFIXES, MAX_PIXELS, image_header
from jaxdeblur.pixels import DevicePlane, PixelLayout, Plane
from jaxdeblur.video import Picture, VideoInfo, build_frame, frame_planes, pixel_layout

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
_DEEP_DEMUXERS = {"PNG": "png_pipe", "TIFF": "tiff_pipe", "PPM": "ppm_pipe"}
# Formats in which EXIF and a colour profile have a place.
_WITH_EXTRA = {"PNG", "JPEG", "WEBP", "TIFF"}

_ORIENTATION = 0x0112  # EXIF's tag
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
            display_matrix=_display_matrix(_orientation_of(self._first)),
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
                orientation = _orientation_shown(self._info.display_matrix)
            pixels = _turned(pixels, orientation)
            alpha = None if alpha is None else _turned(alpha, orientation)
        if deep:
            encoded = _encode_deep(pixels, alpha, _DEEP_ENCODERS[suffix])
            path.write_bytes(_with_chunks(encoded, extra) if extra else encoded)
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


class RawReader:
    """Reads frames of packed RGB, 8 bits, from a file descriptor.

    Attributes:
      info: what the frames are.
    """

    trailing: Sequence[Any] = ()

    def __init__(self, descriptor: int, height: int, width: int, rate: Fraction):
        self._descriptor = descriptor
        self.info = VideoInfo(
            height=height,
            width=width,
            pixel_format="rgb24",
            layout=PixelLayout("rgb"),
            has_alpha=False,
            rate=rate,
            time_base=1 / rate,
        )

    def __enter__(self) -> RawReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Picture]:
        """The pictures; raises :class:`UserError` if the last one is not whole."""
        shape = (self.info.height, self.info.width, 3)
        index = 0
        while True:
            pixels = np.empty(shape, np.uint8)
            got = self._fill(memoryview(pixels.data).cast("B"))
            if not got:
                return
            if got < pixels.nbytes:
                raise UserError(
                    f"-: the input ends inside frame {index}, after {got} of its {pixels.nbytes} "
                    "bytes; --size must be that of the frames"
                )
            yield Picture((pixels,), pts=index, duration=1)
            index += 1

    def _fill(self, buffer: memoryview) -> int:
        # Straight from the descriptor: a buffered file could not be left while it waits.
        got = 0
        while got < len(buffer):
            try:
                size = os.readv(self._descriptor, [buffer[got:]])
            except OSError as error:
                raise UserError(f"-: cannot be read: {error.strerror}") from error
            if not size:
                break
            got += size
        return got


class RawWriter:
    """Writes frames of packed RGB, 8 bits, to a file descriptor.

    Attributes:
      lost: what raw frames cannot hold, in words.
    """

    def __init__(self, descriptor: int, info: VideoInfo):
        self._descriptor, self._info = descriptor, info
        self.lost = list(info.lost)
        if _orientation_shown(info.display_matrix) not in (None, 1):
            self.lost.append("rotation")
        if info.has_alpha:
            self.lost.append("alpha")
        if info.layout.bits > 8:
            self.lost.append("more than 8 bits")

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, picture: Picture) -> None:
        """Writes one frame; :class:`UserError` if nobody reads."""
        self.copy(picture.packets)
        rgb = np.ascontiguousarray(to_packed_rgb(picture.planes, self._info.layout, 8))
        rest = memoryview(rgb.data).cast("B")
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BrokenPipeError as error:
            raise UserError("-: nobody reads the output any more") from error
        except OSError as error:
            raise UserError(f"-: cannot be written: {error.strerror}") from error

    def copy(self, packets: Sequence[Any]) -> None:
        """Raw frames hold no sound."""
        if packets and "sound and other tracks" not in self.lost:
            self.lost.append("sound and other tracks")


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads an image with its own channels and bits: grey or RGB, with or without alpha.

    Raises:
      UserError: as ``images.read_image``, and of pixels that are floats.
    """
    image_header(path, max_pixels)  # refuses what is too large or no image, by the header alone
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise UserError(f"{path}: its pixels are floats; give it 8 or 16 bits")
            extra = {key: image.info[key] for key in ("exif", "icc_profile") if image.info.get(key)}
            lost = []
            if image.mode == "CMYK":
                extra.pop("icc_profile", None)  # it is of inks
                lost.append("CMYK (written as RGB)")
            if image.format == "AVIF" and _is_deep_avif(path):
                lost.append("more than 8 bits (AVIF is read in 8)")
            if (count := getattr(image, "n_frames", 1)) > 1:
                lost.append(f"pictures after the first ({count} in the file)")
            if _is_deep(image):
                if image.format == "TIFF":  # among its own tags; Pillow turns what it loads itself
                    exif = Image.Exif()
                    exif[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
                    extra["exif"] = exif.tobytes()
                deep = _read_deep(path, str(image.format))
                return dataclasses.replace(deep, extra=extra, lost=tuple(lost))
            grey = image.mode in ("1", "L", "LA")
            has_alpha = image.has_transparency_data
            mode = ("L" if grey else "RGB") + ("A" if has_alpha else "")
            pixels = np.asarray(image.convert(mode))
    except UserError:
        raise
    except Exception as error:  # on damaged files Pillow's parsers raise nearly every type there is
        raise UserError(f"{path}: not a readable image: {error or type(error).__name__}") from error
    alpha = np.ascontiguousarray(pixels[..., -1]) if has_alpha else None
    if has_alpha:
        pixels = pixels[..., 0] if grey else pixels[..., :3]
    planes = (np.ascontiguousarray(pixels),)
    return Picture(planes, alpha, name=path.name, extra=extra, lost=tuple(lost))


def to_packed_rgb(planes: tuple[Plane, ...], layout: PixelLayout, bits: int) -> Plane:
    """Packed RGB of 8 or 16 bits from the arrays of any layout."""
    if layout == PixelLayout("rgb", bits):
        return planes[0]
    return np.asarray(_packed_rgb(layout, bits, planes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _packed_rgb(layout: PixelLayout, bits: int, planes: tuple[DevicePlane, ...]) -> DevicePlane:
    rgb = jnp.round(layout.to_rgb(planes) * (2**bits - 1))
    return rgb.astype(jnp.uint8 if bits == 8 else jnp.uint16)


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a sample, of which Pillow would keep 8."""
    tile = image.tile[0] if image.tile else None  # type: ignore[attr-defined]
    how = tile and tile[3]
    if image.format == "PPM" and isinstance(how, tuple):  # the mode and its largest value
        return how[-1] > 255
    return image.mode.startswith("I") or ";16" in str(how)


def _is_deep_avif(path: Path) -> bool:
    """Whether an AVIF has 10 or 12 bits a sample, by its ``av1C`` box (AV1 in ISOBMFF, 2.3.3)."""
    # Two bytes of version, profile and level; then flags, of which the second says so.
    found = re.search(rb"av1C..(.)", path.read_bytes(), re.DOTALL)
    return found is not None and bool(found[1][0] & 0x40)


def _read_deep(path: Path, kind: str) -> Picture:
    # Named, since FFmpeg takes a .ppm for one of a numbered series.
    with path.open("rb") as file, av.open(file, "r", format=_DEEP_DEMUXERS[kind]) as container:
        frame = next(container.decode(video=0))
        pixel_format, _, _ = pixel_layout(frame, path)
        planes, alpha = frame_planes(frame, pixel_format)
    return Picture(planes, alpha, name=path.name)


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


def _with_chunks(png: bytes, extra: dict[str, Any]) -> bytes:
    """A PNG with EXIF and colour profile after its header (PNG specification, section 11.3)."""
    end_of_header = 8 + 25
    chunks = b""
    if profile := extra.get("icc_profile"):
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    if exif := extra.get("exif"):
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return png[:end_of_header] + chunks + png[end_of_header:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return len(data).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")


def _orientation_of(picture: Picture) -> int | None:
    """What the EXIF of an image says of how it is shown, 1 to 8; None if it says nothing."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # damaged EXIF: Pillow's parser raises many types
        exif.load(picture.extra.get("exif", b""))
    orientation = exif.get(_ORIENTATION)
    return orientation if orientation in _SHOWN else None


def _display_matrix(orientation: int | None) -> tuple[int, ...] | None:
    """An EXIF orientation as a video's display matrix (``VideoInfo``)."""
    if orientation in (None, 1):
        return None
    a, b, c, d = (sign << 16 for sign in _SHOWN[orientation])
    return (a, b, 0, c, d, 0, 0, 0, 1 << 30)


def _orientation_shown(matrix: tuple[int, ...] | None) -> int | None:
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


def is_image(path: Path) -> bool:
    """Whether a file's suffix is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES
