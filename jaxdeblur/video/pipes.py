"""Raw frames of packed RGB from and to file descriptors, as a source and a target of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.video.picture import Picture, PictureSource, PictureTarget, VideoInfo, rgb8_info
from jaxdeblur.video.pixels import to_packed_rgb


class RawReader(PictureSource):
    """Reads frames of packed RGB, 8 bits, from a file descriptor."""

    def __init__(self, descriptor: int, height: int, width: int, rate: Fraction):
        """Prepares to read.

        Args:
          descriptor: of the open file.
          height, width: of every frame, in pixels.
          rate: frames per second.
        """
        self._descriptor = descriptor
        self.info = rgb8_info(height, width, rate)

    def __iter__(self) -> Iterator[Picture]:
        """The pictures; UserError if the input cannot be read, or its last frame is not whole."""
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


class RawWriter(PictureTarget):
    """Writes frames of packed RGB, 8 bits, to a file descriptor."""

    def __init__(self, descriptor: int, info: VideoInfo):
        self._descriptor, self._info = descriptor, info
        self.lost = list(info.lost)
        if info.quarter_turns:
            self.lost.append("rotation")
        if info.has_alpha:
            self.lost.append("alpha")
        if info.layout.bits > 8:
            self.lost.append("more than 8 bits")

    def write(self, picture: Picture) -> None:
        """Writes one frame; UserError if it cannot be written, or nobody reads."""
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
