"""Image files: read within a bound on their size, written whole, listed in natural order."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import imageio.v3 as imageio
import numpy as np
from jaxtyping import UInt8
from PIL import Image, features

from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_when_whole
from jaxdeblur.shapes import Frame8

WRITABLE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
"""The suffixes, in lower case, of the images that can be written."""

_AVIF = bool(features.check("avif"))  # Pillow has it from 11.3, unless it was built without

IMAGE_SUFFIXES = WRITABLE_SUFFIXES | ({".avif"} if _AVIF else set())
"""The suffixes, in lower case, of the files that count as images."""

UNREADABLE_SUFFIXES = frozenset({".heic", ".heif", ".avif"}) - IMAGE_SUFFIXES
"""The suffixes, in lower case, of photographs for which there is no decoder here."""

MAX_PIXELS = 8192 * 8192
"""The default bound on the pixels of an image: an 8K frame has half as many (200 MB as RGB)."""

# Only these decoders may run, whatever a file's suffix says: others (EPS) start programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", *(["AVIF"] if _AVIF else []))


def list_frames(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of ``folder`` in natural order (frame2 before frame10); hidden ones are not.

    Sub-folders are not entered. The list is empty if there is no image. Links that lead nowhere are
    listed too, so that reading them says so.

    Raises:
      UserError: ``folder`` is not a folder or cannot be read.
    """
    folder = Path(folder)
    try:
        with os.scandir(folder) as entries:
            frames = [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".")
                and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
                and not os.path.isdir(entry.path)
            ]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read as a folder: {_reason(error)}") from error
    return sorted(frames, key=lambda frame: natural_key(frame.name))


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key by which numbers inside names count as numbers: frame2 before frame10."""
    return [_piece_key(piece) for piece in re.findall(r"[0-9]+|[^0-9]+", name)], name


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
            imageio.imwrite(part, image, plugin="pillow", extension=".png", compress_level=1)
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


def _piece_key(piece: str) -> tuple[int, str]:
    if "0" <= piece[0] <= "9":  # by length, then digits: int() refuses very long numbers
        digits = piece.lstrip("0") or "0"
        return len(digits), digits
    return 0, piece


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a " + ", ".join(_FORMATS[:-1]) + f" or {_FORMATS[-1]} file"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
