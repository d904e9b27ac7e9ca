"""A source and a target of pictures for raw frames of packed RGB through file descriptors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.video.image_metadata import cicp_of, colour_name, lose_extra
from jaxdeblur.video.picture import Picture, PictureSource, PictureTarget, VideoInfo, rgb8_info
from jaxdeblur.video.pixels import to_packed_rgb


class RawReader(PictureSource):
    """Reads frames of packed 8-bit RGB from a file descriptor."""

    def __init__(self, descriptor: int, height: int, width: int, rate: Fraction):
        """Prepares to read.

        Args:
          descriptor: descriptor of the open file.
          height, width: size of every frame, in pixels.
          rate: frames per second.
        """
        self._descriptor = descriptor
        self.info = rgb8_info(height, width, rate)

    def __iter__(self) -> Iterator[Picture]:
        """Yields pictures; raises UserError if reading fails or the last frame is incomplete."""
        # Unbuffered: a buffered file could not be abandoned while it waits.
        with open(self._descriptor, "rb", buffering=0, closefd=False) as file:
            for index in itertools.count():
                pixels = np.empty((self.info.height, self.info.width, 3), np.uint8)
                rest = memoryview(pixels.data).cast("B")
                try:
                    while rest and (size := file.readinto(rest)):
                        rest = rest[size:]
                except OSError as error:
                    raise UserError(f"-: cannot be read: {error.strerror}") from error
                if len(rest) == pixels.nbytes:
                    return
                if rest:
                    got = pixels.nbytes - len(rest)
                    raise UserError(
                        f"-: the input ends within frame {index}, after {got} of its "
                        f"{pixels.nbytes} bytes; --size must match the frames"
                    )
                yield Picture((pixels,), pts=index, duration=1)


class RawWriter(PictureTarget):
    """Writes frames of packed 8-bit RGB to a file descriptor."""

    def __init__(self, descriptor: int, info: VideoInfo):
        self._descriptor, self._info = descriptor, info
        self.lost = list(info.lost)
        if info.quarter_turns:
            self.lost.append("rotation")
        if info.is_mirrored:
            self.lost.append("mirroring")
        if (info.sample_aspect or 1) != 1:
            self.lost.append("pixel aspect ratio")
        if info.has_alpha:
            self.lost.append("alpha")
        if info.layout.bits > 8:
            self.lost.append("bit depth above 8")
        if tag := cicp_of(info.colour):
            self.lost.append(f"colour: {colour_name(tag)} (raw frames have no tag)")

    def write(self, picture: Picture) -> None:
        """Writes one frame; raises UserError if it cannot be written or nobody reads it."""
        lose_extra(self, picture, {"cicp"}, "raw frames")
        rgb = np.ascontiguousarray(to_packed_rgb(picture.planes, self._info.layout, 8))
        rest = memoryview(rgb.data).cast("B")
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BrokenPipeError as error:
            raise UserError("-: the reader closed the output pipe") from error
        except OSError as error:
            raise UserError(f"-: cannot be written: {error.strerror}") from error
