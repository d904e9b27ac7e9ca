"""The frames of a video, read by crop: from image files, or decoded once and memory-mapped.

Decoding a PNG takes a hundred times longer than reading a crop of decoded frames, and training
reads the same frames again and again. :func:`pack` decodes a video once into an array on disk that
is named by a hash of the files' names, sizes and times of change: a changed video is packed anew.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.data.cache import kept
from jaxdeblur.errors import UserError
from jaxdeblur.files import write_json
from jaxdeblur.shapes import Frame8, SeenVideo8, Video8
from jaxdeblur.video.image_file import read_image

ALL = slice(None)

_DECODED_AHEAD = 200_000_000  # Bytes of decoded frames in memory: 32 frames at 1920x1080.
_PIXELS = "pixels.npy"
_PACK_VERSION = 2  # Part of a pack's name: raise it when packs change.
_MOST_OPEN = 128  # Packs mapped at a time: each holds a file descriptor, of which there are 1024.


@runtime_checkable
class Frames(Protocol):
    """The frames of one video, all of one size."""

    @property
    def height(self) -> int:
        """Rows of pixels."""
        ...

    @property
    def width(self) -> int:
        """Columns of pixels."""
        ...

    def __len__(self) -> int: ...

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> Video8:
        """A copy of a crop of some frames.

        Raises:
          UserError: one of the frames cannot be read; the message names it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class FrameFiles:
    """Frames in image files, decoded at every read."""

    files: tuple[Path, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.files)

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> Video8:
        """Decodes the frames and cuts the crop out of them."""
        return np.stack([self._frame(file)[rows, columns] for file in self.files[times]])

    def stream(self) -> Iterator[Frame8 | UserError]:
        """All frames in turn, several decoded at a time; for an unreadable one, its error."""

        def attempt(file: Path) -> Frame8 | UserError:
            try:
                return self._frame(file)
            except UserError as error:
                return error

        files = iter(self.files)
        ahead = max(_DECODED_AHEAD // (3 * self.height * self.width), 1)
        with ThreadPoolExecutor(min(os.cpu_count() or 1, ahead)) as decoders:
            while some := list(itertools.islice(files, ahead)):
                yield from decoders.map(attempt, some)

    def _frame(self, file: Path) -> Frame8:
        frame = read_image(file)
        if frame.shape[:2] != (self.height, self.width):  # checked again, as files change
            raise UserError(
                f"{file}: {frame.shape[1]}x{frame.shape[0]} pixels, "
                f"unlike the {self.width}x{self.height} of the video"
            )
        return frame


@dataclasses.dataclass(frozen=True)
class VideoFile:
    """A video file: its frames come in turn only, so they are packed before they are cropped."""

    file: Path
    height: int
    width: int

    @classmethod
    def open(cls, file: Path) -> VideoFile:
        """Reads the size of a video.

        Raises:
          UserError: it is not a video.
        """
        from jaxdeblur.video.reader import VideoReader  # PyAV is for video files alone

        if not os.path.isfile(file):  # a pipe would never end
            raise UserError(f"{file}: no such video file")
        with VideoReader(file) as reader:
            return cls(file, reader.info.height, reader.info.width)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.file,)

    def stream(self) -> Iterator[Frame8]:
        """All frames in turn; UserError if the file is damaged or cut short."""
        from jaxdeblur.video.reader import VideoReader

        with VideoReader(self.file) as reader:
            layout = reader.info.layout
            to_rgb = jax.jit(lambda planes: jnp.round(255 * layout.to_rgb(planes)))
            for picture in reader:
                yield np.asarray(to_rgb(picture.planes)).astype(np.uint8)


class DecodedFrames:
    """Frames in memory or in a memory-mapped array ``T H W 3``; a crop is a copy of a few rows."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.asarray(array)  # a memmap's own class makes every slice slower
        _, self.height, self.width, _ = array.shape

    def __len__(self) -> int:
        return len(self.array)

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> Video8:
        """A copy of the crop."""
        return np.array(self.array[times, rows, columns])


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """Frames in a NumPy file, ``T H W C`` of bytes, which crops are read from."""

    file: Path
    length: int
    height: int
    width: int
    unreadable: Mapping[int, str] = dataclasses.field(default_factory=dict, hash=False)
    """Frames that :func:`pack` could not decode, and why; there the array is black."""

    @classmethod
    def open(cls, file: Path, channels: int) -> ArrayFile:
        """Reads the size.

        Raises:
          UserError: it is no such array of so many channels.
        """
        try:
            frames = _load(file)
        except _NO_ARRAY as error:
            raise UserError(f"{file}: not a readable array ({error})") from error
        if frames.ndim != 4 or frames.shape[3] != channels or frames.dtype != np.uint8:
            raise UserError(f"{file}: {frames.dtype} {frames.shape}, not bytes T H W {channels}")
        return cls(file, *frames.shape[:3])

    def __len__(self) -> int:
        return self.length

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.file,)

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> SeenVideo8:
        """A copy of a crop.

        Raises:
          UserError: one of these frames could not be decoded, or the file is gone or damaged.
        """
        for index in range(*times.indices(self.length)) if self.unreadable else ():
            if index in self.unreadable:
                raise UserError(self.unreadable[index])
        try:
            return np.array(_mapped(self.file)[times, rows, columns])
        except _NO_ARRAY as error:
            raise UserError(f"{self.file}: has vanished or is damaged: {error}") from error


_NO_ARRAY = (OSError, EOFError, ValueError)


def _load(file: Path) -> np.ndarray:
    return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))


_mapped = functools.lru_cache(maxsize=_MOST_OPEN)(_load)


def pack(source: FrameFiles | VideoFile) -> ArrayFile:
    """Decodes a video into the cache, if that has not been done before.

    Image files that cannot be decoded are remembered in ``unreadable``.

    Raises:
      UserError: a file has vanished, a video file is damaged, or there is no room in the cache.
    """

    def make(folder: Path) -> None:
        unreadable: dict[int, str] = {}

        def frames() -> Iterator[Frame8]:
            for index, frame in enumerate(source.stream()):
                if isinstance(frame, UserError):
                    unreadable[index] = str(frame)
                    frame = np.zeros((source.height, source.width, 3), np.uint8)
                yield frame

        count = _write_frames(folder / _PIXELS, frames(), source.height, source.width)
        write_json(folder / "frames.json", {"frames": count, "unreadable": unreadable})
        _mapped.cache_clear()  # it may hold a damaged file of the same name

    def read(folder: Path) -> ArrayFile:
        notes = json.loads((folder / "frames.json").read_text(encoding="utf-8"))
        unreadable = {int(index): str(reason) for index, reason in notes["unreadable"].items()}
        shape = (notes["frames"], source.height, source.width, 3)
        if _load(folder / _PIXELS).shape != shape:
            raise ValueError(f"{_PIXELS} is not {shape}")
        return ArrayFile(folder / _PIXELS, *shape[:3], unreadable)

    recipe = {"version": _PACK_VERSION, "files": stamps(source.files)}
    return kept("frames", recipe, make, read)


def _write_frames(target: Path, frames: Iterable[Frame8], height: int, width: int) -> int:
    """Writes frames one by one as one array; returns how many there were."""
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False}
    count = 0
    with open(target, "wb") as file:
        # NumPy pads headers, so that their length is the same for any number of frames.
        np.lib.format.write_array_header_1_0(file, header | {"shape": (0, height, width, 3)})
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)
            count += 1
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count, height, width, 3)})
    return count


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of files, by which it is known whether they are the same.

    Raises:
      UserError: one is no longer there.
    """
    try:
        found = [(file, file.stat()) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    return [(str(file.absolute()), stat.st_size, stat.st_mtime_ns) for file, stat in found]
