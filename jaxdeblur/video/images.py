"""Folders of frames and single images, as sources and targets of pictures beside video files.

They offer what ``VideoReader`` and ``VideoWriter`` do: a source has ``info`` and gives pictures, a
target takes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.video.container import reason
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.image_file import (
    DEEP_SUFFIXES,
    PIXEL_FORMATS,
    encode_image,
    image_header,
    read_picture,
)
from jaxdeblur.video.picture import Picture, PictureSource, PictureTarget, VideoInfo, rgb8_info
from jaxdeblur.video.pixels import PixelLayout, to_packed_rgb

# The formats without alpha, and those that hold no EXIF and colour profile.
_OPAQUE = {".jpg", ".jpeg", ".bmp", ".ppm"}
_PLAIN = {".bmp", ".ppm"}


class ImageReader(PictureSource):
    """Reads image files as the frames of a video, in the order given, the right way up.

    Grey images among others become RGB, and those without alpha among others are opaque.

    Attributes:
      info: what the frames are.
    """

    def __init__(
        self, paths: Sequence[Path], *, rate: Fraction = Fraction(25), max_pixels: int = MAX_PIXELS
    ):
        """Reads the headers of all images.

        Raises:
          UserError: there is no image, one is none, or their sizes or bits differ.
        """
        self._paths, self._max_pixels = paths, max_pixels
        if not paths:
            raise UserError("there are no images to restore")
        headers = [image_header(path, max_pixels) for path in paths]
        height, width, _, bits = headers[0]
        for path, header in zip(paths, headers, strict=True):
            if header[:2] != (height, width):
                raise UserError(
                    f"{path}: {header.width}x{header.height}, but {paths[0].name} is "
                    f"{width}x{height}; the frames of a video have one size"
                )
            if header.bits != bits:
                raise UserError(
                    f"{path}: {header.bits} bits, but {paths[0].name} has {bits}; the frames of a "
                    "video have one format"
                )
        # The longest name has all channels: L, RGB, RGBA.
        self._mode = max((header.mode for header in headers), key=len)
        self.info = dataclasses.replace(
            rgb8_info(height, width, rate),
            pixel_format=PIXEL_FORMATS[self._mode, bits],
            layout=PixelLayout("grey" if self._mode == "L" else "rgb", bits),
            has_alpha=self._mode == "RGBA",
            frames=len(paths),
        )

    def __iter__(self) -> Iterator[Picture]:
        """The pictures.

        Raises:
          UserError: one is damaged, or is gone.
        """
        for index, path in enumerate(self._paths):
            picture = read_picture(path, self._mode, self._max_pixels)
            picture.pts, picture.duration = index, 1
            yield picture


class ImageWriter(PictureTarget):
    """Writes pictures as image files, under their own names or numbered, or one image.

    Attributes:
      lost: what the image format cannot hold, in words.
    """

    def __init__(self, target: Path, info: VideoInfo, *, single: bool = False, name: str = ""):
        """Prepares to write; nothing is made yet.

        Args:
          target: the folder, or the one image.
          info: what the pictures are.
          single: ``target`` is an image, not a folder.
          name: of ``target``, in messages; by default as it is.
        """
        self._target, self._info, self._single = target, info, single
        self._name = name or str(target)
        self._count = 0
        self.lost = list(info.lost)

    def write(self, picture: Picture) -> None:
        """Writes one image.

        Raises:
          UserError: it cannot be written.
        """
        self.copy(picture.packets)
        self._count += 1
        path, name = self._target, Path(self._name)
        if not self._single:
            file = picture.name or f"{self._count:06}.png"
            path, name = path / file, name / file
        try:
            path.write_bytes(self._encoded(picture, path.suffix.lower()))
        except (OSError, ValueError) as error:  # ValueError: what a format cannot hold
            raise UserError(f"{name}: cannot be written: {reason(error)}") from error

    def _encoded(self, picture: Picture, suffix: str) -> bytes:
        layout, extra = self._info.layout, picture.extra
        bits = 16 if layout.bits > 8 and suffix in DEEP_SUFFIXES else 8
        pixels = to_packed_rgb(picture.planes, layout, bits)
        if layout.kind == "grey":
            pixels = pixels[..., 0]
        self._lose("more than 8 bits", suffix, layout.bits > 8 and bits == 8)
        self._lose("alpha", suffix, picture.alpha is not None and suffix in _OPAQUE)
        if picture.alpha is not None and suffix not in _OPAQUE:
            scale = (2**bits - 1) / (2**layout.bits - 1)
            alpha = np.round(picture.alpha * scale).astype(pixels.dtype)
            pixels = np.dstack([pixels, alpha])
        if suffix in _PLAIN:
            self._lose("EXIF", suffix, "exif" in extra)
            self._lose("colour profile", suffix, "icc_profile" in extra)
            extra = {}
        shown = np.ascontiguousarray(np.rot90(pixels, self._info.quarter_turns))
        return encode_image(shown, suffix, **extra)

    def _lose(self, what: str, suffix: str, is_lost: bool) -> None:
        what = f"{what} ({suffix} has no place for it)"
        if is_lost and what not in self.lost:
            self.lost.append(what)
