"""Videos for training and scoring: blurred frames with their sharp ones, read by crop.

Decoding a PNG takes a hundred times longer than reading a crop of decoded frames, and training
reads the same frames repeatedly. So a video is packed: decoded once into an array on disk, named by
a hash of the files' names, sizes and modification times. A changed video is packed again.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.console import ProgressLine
from jaxdeblur.data.cache import kept_file, mapped
from jaxdeblur.data.exposure import Exposure, average
from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Frame8, SeenVideo8, Video8
from jaxdeblur.video.image_file import read_image

ALL = slice(None)

_DECODED_AT_ONCE = 16  # Frames in memory while a video is packed.
_PACK_VERSION = 3  # Part of a pack's name: raise it when the content of packs changes.
_MOST_OPEN = 128  # Packs mapped at a time: each holds one of 1024 file descriptors.
_NO_ARRAY = (OSError, EOFError, ValueError)

_mapped = functools.lru_cache(maxsize=_MOST_OPEN)(mapped)


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """Frames in image files, decoded at every read."""

    files: tuple[Path, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.files)

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> Video8:
        """Decodes the frames and returns their crop."""
        return np.stack([self._frame(file)[rows, columns] for file in self.files[times]])

    def pack(self) -> ArrayFile:
        """Decodes the frames into the cache unless they are there already.

        Raises:
          UserError: a file has vanished or cannot be decoded, or the cache has no room.
        """

        def decoded() -> Iterator[Frame8]:
            with ThreadPoolExecutor(os.cpu_count()) as decoders:
                for first in range(0, len(self), _DECODED_AT_ONCE):
                    files = self.files[first : first + _DECODED_AT_ONCE]
                    yield from decoders.map(self._frame, files)

        return _pack(self.files, self.height, self.width, decoded())

    def _frame(self, file: Path) -> Frame8:
        frame = read_image(file)
        if frame.shape[:2] != (self.height, self.width):  # checked again: files may change
            raise UserError(
                f"{file}: {frame.shape[1]}x{frame.shape[0]} pixels, "
                f"but the other frames of the video have {self.width}x{self.height}"
            )
        return frame


class DecodedFrames:
    """Frames in memory or in a memory-mapped array ``T H W 3``; a read copies only the crop."""

    files = ()

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.asarray(array)  # slicing an np.memmap is slower
        _, self.height, self.width, _ = array.shape

    def __len__(self) -> int:
        return len(self.array)

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> Video8:
        """Returns a copy of the crop."""
        return np.array(self.array[times, rows, columns])


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """Frames in a NumPy file, uint8 ``T H W C``, read by crop."""

    file: Path
    files: tuple[Path, ...]
    """The file, or what its frames were decoded from."""
    length: int
    height: int
    width: int

    @classmethod
    def open(cls, file: Path, channels: int, files: tuple[Path, ...] = ()) -> ArrayFile:
        """Opens a file and checks its array.

        Raises:
          UserError: it is not a uint8 array ``T H W C`` with that number of ``channels``.
        """
        try:
            frames = mapped(file)
        except _NO_ARRAY as error:
            raise UserError(f"{file}: not a readable array ({error})") from error
        if frames.ndim != 4 or frames.shape[3] != channels or frames.dtype != np.uint8:
            raise UserError(
                f"{file}: must be a uint8 array T H W {channels}, not {frames.dtype} {frames.shape}"
            )
        return cls(file, files or (file,), *frames.shape[:3])

    def __len__(self) -> int:
        return self.length

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> SeenVideo8:
        """Returns a copy of the crop.

        Raises:
          UserError: the file is missing or damaged.
        """
        try:
            return np.array(_mapped(self.file)[times, rows, columns])
        except _NO_ARRAY as error:
            raise UserError(f"{self.file}: missing or damaged: {error}") from error


Frames: TypeAlias = FrameFiles | DecodedFrames | ArrayFile
"""The frames of one video, all of one size."""


def pack_video(file: Path) -> ArrayFile:
    """Decodes a video file into the cache unless it is there already.

    Raises:
      UserError: the file is not a video, is damaged or truncated, or the cache has no room.
    """
    from jaxdeblur.video.reader import VideoReader  # PyAV is only needed for video files

    with VideoReader(file) as reader:
        info, turns = reader.info, reader.info.quarter_turns
        to_rgb = jax.jit(lambda planes: jnp.round(255 * info.layout.to_rgb(planes)))
        decoded = (
            info.upright(np.asarray(to_rgb(picture.planes)).astype(np.uint8)) for picture in reader
        )
        size = (info.width, info.height) if turns % 2 else (info.height, info.width)
        return _pack((file,), *size, decoded)


def _pack(files: tuple[Path, ...], height: int, width: int, frames: Iterable[Frame8]) -> ArrayFile:
    """Returns the frames of ``files`` in the cache, where they are written if missing."""

    def write(target: Path) -> None:
        header: dict[str, Any] = {"descr": "|u1", "fortran_order": False}
        count = 0
        with open(target, "wb") as file:
            # NumPy pads headers, so their length is the same for any number of frames.
            np.lib.format.write_array_header_1_0(file, header | {"shape": (0, height, width, 3)})
            for frame in frames:
                file.write(np.ascontiguousarray(frame).data)
                count += 1
            file.seek(0)
            shape = (count, height, width, 3)
            np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
        _mapped.cache_clear()  # it may hold a damaged file of that name

    recipe = {"version": _PACK_VERSION, "files": stamps(files)}
    return ArrayFile.open(kept_file("frames", recipe, write), 3, files)


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns path, size and modification time of files, which show whether they have changed.

    Raises:
      UserError: a file no longer exists.
    """
    try:
        found = [(file, file.stat()) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return [(str(file.absolute()), stat.st_size, stat.st_mtime_ns) for file, stat in found]


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
