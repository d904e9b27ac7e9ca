"""The properties of a video, one frame of it, and the interfaces of sources and targets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxdeblur.shapes import Plane
from jaxdeblur.video.pixels import RGB8, PixelLayout

UNSPECIFIED = 2
"""FFmpeg's number of an unknown matrix, primaries or transfer function."""

LIMITED_RANGE, FULL_RANGE = 1, 2
"""FFmpeg's numbers of the ranges: 8-bit luma from 16 to 235, or from 0 to 255."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """The properties of a video, apart from its frames.

    Attributes:
      height, width: size of the frames as stored.
      pixel_format: FFmpeg's name of the format in which frames are handed on.
      layout: the meaning of the arrays of such a frame.
      has_alpha: whether frames have alpha.
      rate: average frames per second.
      time_base: the unit of timestamps, in seconds.
      codec: FFmpeg's name of the codec; None if the frames did not come from a video.
      sample_aspect: width of a pixel over its height.
      colour: FFmpeg's numbers of range, matrix, primaries and transfer function.
      display_matrix: rotation and flips, as nine integers.
      frames: number of frames, if the file states it.
      lost: what is lost from the source in any target, in words.
    """

    height: int
    width: int
    pixel_format: str
    layout: PixelLayout
    has_alpha: bool
    rate: Fraction
    time_base: Fraction
    codec: str | None = None
    sample_aspect: Fraction | None = None
    colour: tuple[int, int, int, int] = (0, UNSPECIFIED, UNSPECIFIED, UNSPECIFIED)
    display_matrix: tuple[int, ...] | None = None
    frames: int | None = None
    lost: tuple[str, ...] = ()

    @property
    def is_mirrored(self) -> bool:
        """Whether a player swaps left and right before it rotates the frames."""
        if self.display_matrix is None:
            return False
        a, b, _, c, d = self.display_matrix[:5]
        return a * d < b * c

    def upright(self, pixels: Plane) -> Plane:
        """Returns pixels, ``H W ...``, as a player shows them."""
        return np.rot90(pixels[:, ::-1] if self.is_mirrored else pixels, self.quarter_turns)

    @property
    def quarter_turns(self) -> int:
        """The counter-clockwise quarter turns by which a player rotates the frames: 0 to 3."""
        if self.display_matrix is None:
            return 0
        cosine, sine = self.display_matrix[:2]
        if self.is_mirrored:
            cosine, sine = -cosine, -sine
        return -round(math.atan2(sine, cosine) / (math.pi / 2)) % 4


def rgb8_info(height: int, width: int, rate: Fraction) -> VideoInfo:
    """Returns the properties of a video of packed 8-bit RGB at a constant rate."""
    return VideoInfo(height, width, "rgb24", RGB8, False, rate, time_base=1 / rate)


@dataclasses.dataclass
class Picture:
    """One frame on its way from a source to a target.

    Attributes:
      planes: its arrays, in the order of the layout.
      alpha: ``H W``, or None.
      pts: presentation time, in units of the source's time base.
      duration: how long it is shown, in the same units; 0 if unknown.
      name: for images, the name of the source file and of the target file.
      extra: metadata of an image file, to be written again.
    """

    planes: tuple[Plane, ...]
    alpha: Plane | None = None
    pts: int = 0
    duration: int = 0
    name: str = ""
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class PictureSource:
    """A source of pictures: a video, images, a pipe or a camera; used in a ``with`` block.

    Attributes:
      info: the format of the pictures.
      notes: what the user should know about the source, in words; complete when all is read.
    """

    info: VideoInfo
    notes: Sequence[str] = ()

    def __enter__(self) -> Any:  # itself
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Picture]:
        raise NotImplementedError


class PictureTarget:
    """A target of pictures: a video, images, an animation or a pipe; used in a ``with`` block.

    Attributes:
      lost: what the target does not hold, in words.
    """

    lost: list[str]

    def __enter__(self) -> Any:  # itself
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def write(self, picture: Picture) -> None:
        """Writes one picture; raises UserError if it cannot be written."""
        raise NotImplementedError

    def lose(self, what: str) -> None:
        """Records once that the target does not hold something."""
        if what not in self.lost:
            self.lost.append(what)
