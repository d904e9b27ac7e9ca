"""What a video is apart from its frames, and one frame on its way from a source to a target."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from jaxdeblur.shapes import Plane
from jaxdeblur.video.pixels import RGB8, PixelLayout

UNSPECIFIED = 2
"""FFmpeg's number of a matrix, primaries or transfer function that is not known."""

LIMITED_RANGE, FULL_RANGE = 1, 2
"""FFmpeg's numbers of the ranges: luma of 8 bits from 16 to 235, or from 0 to 255."""


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a video is, apart from its frames.

    Attributes:
      height, width: of the frames as they are stored.
      pixel_format: FFmpeg's name of the format in which frames are handed over.
      layout: what the arrays of such a frame mean.
      has_alpha: frames carry alpha.
      rate: average frames a second.
      time_base: the unit of timestamps, in seconds.
      codec: FFmpeg's name of the codec; None if the frames did not come from a video.
      sample_aspect: the shape of a pixel, width over height.
      colour: FFmpeg's numbers of range, matrix, primaries and transfer function.
      display_matrix: rotation and flips, as nine integers.
      frames: how many frames there are, if the file says.
      lost: what of the source no file can take over, in words.
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
    def quarter_turns(self) -> int:
        """By how many quarters, counter-clockwise, a player turns the frames: 0 to 3."""
        if self.display_matrix is None:
            return 0
        cosine, sine = self.display_matrix[:2]
        return -round(math.atan2(sine, cosine) / (math.pi / 2)) % 4


def rgb8_info(height: int, width: int, rate: Fraction) -> VideoInfo:
    """Frames of packed RGB, 8 bits, at a constant rate."""
    return VideoInfo(height, width, "rgb24", RGB8, False, rate, time_base=1 / rate)


@dataclasses.dataclass
class Picture:
    """One frame on its way from a source to a target.

    Attributes:
      planes: its arrays, as the layout says.
      alpha: ``H W``, or None.
      pts: when it is shown, in units of the source's time base.
      duration: how long, in the same units; 0 if unknown.
      name: the file that it came from and the name of the one it goes to, for images.
      packets: of other tracks, that stand before it in the file.
      extra: what an image file says beside its pixels, to be written again.
    """

    planes: tuple[Plane, ...]
    alpha: Plane | None = None
    pts: int = 0
    duration: int = 0
    name: str = ""
    packets: list[Any] = dataclasses.field(default_factory=list)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


class PictureSource:
    """Where pictures come from: a video, images, a pipe or a camera; used in a ``with`` block.

    Attributes:
      info: what the pictures are.
      trailing: packets of other tracks that follow on the last picture.
    """

    info: VideoInfo
    trailing: Sequence[Any] = ()

    def __enter__(self) -> Any:  # itself
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def __iter__(self) -> Iterator[Picture]:
        raise NotImplementedError


class PictureTarget:
    """Where pictures go: a video, images, an animation or a pipe; used in a ``with`` block.

    Attributes:
      lost: what it does not hold, in words.
    """

    lost: list[str]

    def __enter__(self) -> Any:  # itself
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def write(self, picture: Picture) -> None:
        """Writes one picture; UserError if it cannot be written."""
        raise NotImplementedError

    def copy(self, packets: Sequence[Any]) -> None:
        """Takes packets of other tracks; most targets hold none."""
        if packets and "sound and other tracks" not in self.lost:
            self.lost.append("sound and other tracks")


def without_alpha(info: VideoInfo) -> VideoInfo:
    """The same video without alpha."""
    if not info.has_alpha:
        return info
    packed = {"rgba": "rgb24", "rgba64le": "rgb48le"}
    planar = info.pixel_format.replace("yuva", "yuv").replace("gbra", "gbr")
    pixel_format = packed.get(info.pixel_format, planar)
    return dataclasses.replace(info, pixel_format=pixel_format, has_alpha=False)
