"""One image file: read within a bound on its size, in RGB of 8 bits or as it is; written whole."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.ffmpeg_frames import frame_planes, pixel_layout
from jaxdeblur.video.formats import MAX_PIXELS, READS_AVIF
from jaxdeblur.video.picture import Picture
from jaxdeblur.video.pyav import av

ORIENTATION = 0x0112
"""EXIF's tag of how a picture is to be turned and mirrored."""

# FFmpeg's demuxers for what Pillow cannot read whole: RGB of 16 bits.
_DEEP_DEMUXERS = {"PNG": "png_pipe", "TIFF": "tiff_pipe", "PPM": "ppm_pipe"}
# Only these decoders may run, whatever a file's suffix says: others (EPS) start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", *(["AVIF"] if READS_AVIF else []))


class Header(NamedTuple):
    """What the header of an image says."""

    height: int
    width: int
    is_grey: bool
    has_alpha: bool


def image_header(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Header:
    """What an image is, from its header alone; raises as :func:`read_image`."""
    with _opened(Path(path), max_pixels) as image:
        grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        return Header(image.height, image.width, grey, image.has_transparency_data)


def image_size(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The (height, width) of an image, from its header alone; raises as :func:`read_image`."""
    return image_header(path, max_pixels)[:2]


def read_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Frame8:
    """Reads an image as RGB, ``H W 3`` uint8; the size in its header is checked first.

    Grey images become three equal channels, transparency is dropped, of 16 bits the upper 8 are
    kept, of an animation the first picture. EXIF orientation is not applied.

    Raises:
      UserError: there is no such file, it is not an image, it is damaged or cut short, its pixels
        are floats, or it has more than ``max_pixels`` pixels (nothing is decoded then).
    """
    with _opened(Path(path), max_pixels) as image:
        if image.mode == "F":  # of whatever range; convert() takes them for 0 to 255
            raise UserError(f"{path}: its pixels are floats; give it 8 or 16 bits")
        if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip, not scale
            grey = (np.asarray(image).clip(0, 65535) // 256).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.array(image.convert("RGB"))


def write_png(
    path: str | os.PathLike[str], image: UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]
) -> None:
    """Writes an RGB or grey image as PNG, whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with replace_when_whole(path) as part:
            # Level 1 is four times faster on video frames than the default 6, and 13 % larger.
            Image.fromarray(image).save(part, format="PNG", compress_level=1)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {_reason(error)}") from error


@contextlib.contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an image whose size is within the bound; whatever goes wrong becomes a UserError."""
    if not os.path.isfile(path):  # neither a folder, nor a pipe that would never end
        raise UserError(f"{path}: no such image file")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise UserError(
                    f"{path}: {image.width}x{image.height} pixels are over "
                    f"--max-pixels={max_pixels}"
                )
            yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own bound, 179 million pixels
        raise UserError(f"{path}: too large to decode: {_reason(error)}") from error
    except Exception as error:  # on damaged files Pillow's parsers raise nearly every type there is
        raise UserError(f"{path}: not a readable image: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a " + ", ".join(_FORMATS[:-1]) + f" or {_FORMATS[-1]} file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def read_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Reads an image with its own channels and bits: grey or RGB, with or without alpha.

    Raises:
      UserError: as :func:`read_image`, and of pixels that are floats.
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
                    exif[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
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


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a sample, of which Pillow would keep 8."""
    tile = image.tile[0] if image.tile else None  # type: ignore[attr-defined]
    how = tile and tile[3]
    if image.format == "PPM" and isinstance(how, tuple):  # the mode and its largest value
        return how[-1] > 255
    return image.mode.startswith("I") or ";16" in str(how)


def _is_deep_avif(path: Path) -> bool:
    """Whether an AVIF has 10 or 12 bits a sample, which Pillow does not say."""
    # Where FFmpeg cannot read what Pillow can, nothing is said of the bits.
    with (
        contextlib.suppress(av.FFmpegError),
        path.open("rb") as file,
        av.open(file, "r", format="mov") as container,
    ):
        pixel_format = container.streams.video[0].codec_context.format
        return pixel_format is not None and pixel_format.components[0].bits > 8
    return False


def _read_deep(path: Path, kind: str) -> Picture:
    # Named, since FFmpeg takes a .ppm for one of a numbered series.
    with path.open("rb") as file, av.open(file, "r", format=_DEEP_DEMUXERS[kind]) as container:
        frame = next(container.decode(video=0))
        pixel_format, _, _ = pixel_layout(frame, path)
        planes, alpha = frame_planes(frame, pixel_format)
    return Picture(planes, alpha, name=path.name)
