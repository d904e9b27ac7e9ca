"""Raw frames of packed RGB from and to file descriptors, as a source and a target of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.video.images import orientation_shown
from jaxdeblur.video.picture import Picture, VideoInfo
from jaxdeblur.video.pixels import PixelLayout, to_packed_rgb

_SIGNATURES = {
    b"\x1aE\xdf\xa3": (0, "a Matroska or WebM"),
    b"ftyp": (4, "an MP4 or QuickTime"),
    b"AVI ": (8, "an AVI"),
    b"\x89PNG": (0, "a PNG"),
    b"JFIF": (6, "a JPEG"),
}


def _file_kind(start: memoryview) -> str | None:
    """What a pipe carries that was meant to be raw frames: a file that was sent whole."""
    return next(
        (kind for sign, (at, kind) in _SIGNATURES.items() if start[at : at + len(sign)] == sign),
        None,
    )


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
            if not index and (kind := _file_kind(pixels.data.cast("B")[:got])):
                raise UserError(
                    f"-: this is {kind} file and not raw rgb24 frames; give its name in place of "
                    "-, or decode it first: ffmpeg -i FILE -f rawvideo -pix_fmt rgb24 -"
                )
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
        if orientation_shown(info.display_matrix) not in (None, 1):
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
