"""Videos for training and scoring (blurred frames with their sharp ones), and data sets of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxdeblur.data.exposure import Exposure, average
from jaxdeblur.data.frames import FrameFiles, Frames, stamps
from jaxdeblur.errors import ProgressLine, UserError
from jaxdeblur.shapes import Frame8


@runtime_checkable
class Video(Protocol):
    """A blurred video with its sharp frames; ``len`` is the number of frames."""

    name: str
    """The video's name in results: a folder's or file's name, never a path."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        return video_frames(self)[-1].height

    @property
    def width(self) -> int:
        """Columns of pixels."""
        return video_frames(self)[-1].width

    def __len__(self) -> int: ...

    def blurred(self, index: int) -> Frame8:
        """Returns the blurred frame at ``index``; a UserError names it if it cannot be read."""
        ...

    def sharp(self, index: int) -> Frame8:
        """Returns the sharp frame at ``index``; a UserError names it if it cannot be read."""
        ...


@dataclasses.dataclass(frozen=True)
class PairedVideo(Video):
    """A video whose blurred and sharp frames both exist."""

    name: str
    blurred_frames: Frames
    sharp_frames: Frames

    def __len__(self) -> int:
        return len(self.sharp_frames)

    def blurred(self, index: int) -> Frame8:
        """Returns the blurred frame at ``index``."""
        return self.blurred_frames.read(slice(index, index + 1))[0]

    def sharp(self, index: int) -> Frame8:
        """Returns the sharp frame at ``index``."""
        return self.sharp_frames.read(slice(index, index + 1))[0]


@dataclasses.dataclass(frozen=True)
class HighSpeedVideo(Video):
    """A video whose blurred frames are averages of high-speed frames (eq. 1)."""

    name: str
    frames: Frames
    exposure: Exposure

    def __len__(self) -> int:
        return self.exposure.count(len(self.frames))

    def blurred(self, index: int) -> Frame8:
        """Returns the average of the exposure at ``index``."""
        start = index * self.exposure.period
        frames = self.frames.read(slice(start, start + self.exposure.tau))
        return average(frames, self.exposure.linear)

    def sharp(self, index: int) -> Frame8:
        """Returns the middle frame of the exposure at ``index``."""
        middle = index * self.exposure.period + self.exposure.middle
        return self.frames.read(slice(middle, middle + 1))[0]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Videos under one name; ``name`` and ``variant`` say what was trained or scored on."""

    name: str
    variant: str
    """What else distinguishes results: ``blur_gamma``, ``tau 11, period 12``; may be empty."""
    videos: Sequence[Video]


def pack_dataset(dataset: Dataset) -> tuple[Dataset, list[str]]:
    """Returns the data set with its image files decoded into the cache, once, and the errors.

    A video with an error stays as it is: its other frames are decoded at every read.
    """
    line = ProgressLine("decoding", len(dataset.videos), unit="videos")
    videos: list[Video] = []
    errors = []
    for video in dataset.videos:
        try:
            fields = vars(video).items()
            packed: Any = {name: of.pack() for name, of in fields if isinstance(of, FrameFiles)}
            videos.append(dataclasses.replace(video, **packed))  # type: ignore[type-var]
        except UserError as error:
            videos.append(video)
            errors.append(str(error))
        line.update(len(videos))
    line.close()
    return dataclasses.replace(dataset, videos=videos), errors


def video_frames(video: Any) -> list[Frames]:
    """Returns what a video reads its frames from, the sharp ones last."""
    return [frames for frames in vars(video).values() if isinstance(frames, Frames)]


def sharp_files(video: Video) -> set[str]:
    """Returns the files of a video's sharp frames, which identify it under any name."""
    return {os.path.realpath(file) for file in video_frames(video)[-1].files}


def identity(video: Video) -> list[Any]:
    """Returns JSON values that show whether a video's frames have changed.

    Raises:
      UserError: a file no longer exists.
    """
    return [stamps(frames.files) for frames in video_frames(video)]


def refuse(what: str, problems: Sequence[str]) -> None:
    """Reports all problems at once.

    Raises:
      UserError: there are problems; it names the first 20 and says how many more there are.
    """
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise UserError(f"{what}: {'; '.join(problems[:20])}{more}")
