"""Data sets as people have them on disk, checked when opened; every layout becomes a Dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxdeblur.data.packing import DecodedFrames, Frames
from jaxdeblur.data.scenes import ScenePool
from jaxdeblur.data.synthesis import Exposure, average
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Frame8


@runtime_checkable
class Video(Protocol):
    """A blurred video with its sharp frames; ``len`` is the number of frames."""

    @property
    def name(self) -> str:
        """What results call it; a folder's or file's name, never a path."""
        ...

    @property
    def height(self) -> int:
        """Rows of pixels."""
        ...

    @property
    def width(self) -> int:
        """Columns of pixels."""
        ...

    def __len__(self) -> int: ...

    def blurred(self, index: int) -> Frame8:
        """The blurred frame at ``index``; a UserError names it if it cannot be read."""
        ...

    def sharp(self, index: int) -> Frame8:
        """The sharp frame at ``index``; a UserError names it if it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class PairedVideo:
    """A video whose blurred and sharp frames both exist."""

    name: str
    blurred_frames: Frames
    sharp_frames: Frames
    motion: float | None = None
    """The largest speed in it, pixels a frame, where it is known (rendered scenes)."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.sharp_frames.height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.sharp_frames.width

    def __len__(self) -> int:
        return len(self.sharp_frames)

    def blurred(self, index: int) -> Frame8:
        """The blurred frame at ``index``."""
        return self.blurred_frames.read(slice(index, index + 1))[0]

    def sharp(self, index: int) -> Frame8:
        """The sharp frame at ``index``."""
        return self.sharp_frames.read(slice(index, index + 1))[0]


@dataclasses.dataclass(frozen=True)
class HighSpeedVideo:
    """A video whose blurred frames are averages of high-speed frames (eq. 1)."""

    name: str
    frames: Frames
    exposure: Exposure

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return self.frames.height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return self.frames.width

    def __len__(self) -> int:
        return self.exposure.count(len(self.frames))

    def blurred(self, index: int) -> Frame8:
        """The average of the exposure at ``index``."""
        start = index * self.exposure.period
        frames = self.frames.read(slice(start, start + self.exposure.tau))
        return average(frames, self.exposure.linear)

    def sharp(self, index: int) -> Frame8:
        """The middle frame of the exposure at ``index``."""
        middle = index * self.exposure.period + self.exposure.middle
        return self.frames.read(slice(middle, middle + 1))[0]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Videos under one name; ``name`` and ``variant`` say what was trained or scored on."""

    name: str
    variant: str
    """What else tells results apart: ``blur_gamma``, ``tau 11, period 12``; may be empty."""
    videos: Sequence[Video]


def pool_dataset(pool: ScenePool) -> Dataset:
    """A pool of rendered scenes as a data set of one video a scene."""
    videos = [
        PairedVideo(f"scene_{i:04d}", DecodedFrames(blurred), DecodedFrames(sharp), float(motion))
        for i, (blurred, sharp, motion) in enumerate(zip(*pool[:3], strict=True))
    ]
    return Dataset("rendered", "", videos)


def refuse(what: str, problems: Sequence[str], shown: int = 20) -> None:
    """Raises one UserError that names all problems (the first ``shown``, and how many more)."""
    if problems:
        more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
        raise UserError(f"{what}: " + "; ".join([*problems[:shown], *more]))
