"""The frames of a video, read by crop: from image files, or decoded once and memory-mapped.

Decoding a PNG takes a hundred times longer than reading a crop of decoded frames, and training
reads the same frames again and again. :func:`pack` decodes a video once into a ``.npy`` file whose
name is a hash of the files' names, sizes and times of change: a changed video is packed anew.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.errors import ProgressLine, UserError
from jaxdeblur.files import made_once, replace_when_whole, write_json
from jaxdeblur.shapes import Frame8, Video8
from jaxdeblur.video.formats import CONTAINERS, MAX_PIXELS, list_frames, natural_key
from jaxdeblur.video.image_file import read_image

ALL = slice(None)

_DECODED_AHEAD = 200_000_000  # Bytes of decoded frames in memory: 32 frames at 1920x1080.
_PACK_VERSION = 1  # Part of a pack's name: raise it when packs change.
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
    max_pixels: int = MAX_PIXELS

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
        frame = read_image(file, self.max_pixels)
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
    max_pixels: int = MAX_PIXELS

    @classmethod
    def open(cls, file: Path, max_pixels: int = MAX_PIXELS) -> VideoFile:
        """Reads the size of a video.

        Raises:
          UserError: it is not a video, or its frames have more than ``max_pixels`` pixels.
        """
        from jaxdeblur.video.reader import VideoReader  # PyAV is for video files alone

        if not os.path.isfile(file):  # a pipe would never end
            raise UserError(f"{file}: no such video file")
        with VideoReader(file, max_pixels=max_pixels) as reader:
            return cls(file, reader.info.height, reader.info.width, max_pixels)

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.file,)

    def stream(self) -> Iterator[Frame8]:
        """All frames in turn; UserError if the file is damaged or cut short."""
        from jaxdeblur.video.reader import VideoReader

        with VideoReader(self.file, max_pixels=self.max_pixels) as reader:
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
class PackedFrames:
    """Frames that :func:`pack` has decoded into a ``.npy`` file."""

    file: Path
    count: int
    height: int
    width: int
    unreadable: Mapping[int, str]
    """Frames that could not be decoded, and why; the file has black in their place."""

    def __len__(self) -> int:
        return self.count

    def read(self, times: slice, rows: slice = ALL, columns: slice = ALL) -> Video8:
        """A copy of the crop."""
        for index in range(*times.indices(self.count)) if self.unreadable else ():
            if index in self.unreadable:
                raise UserError(self.unreadable[index])
        return np.array(_mapped(self.file)[times, rows, columns])


@functools.lru_cache(maxsize=_MOST_OPEN)
def _mapped(file: Path) -> np.ndarray:
    try:
        return np.asarray(np.lib.format.open_memmap(file, mode="r"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: packed frames have vanished or are damaged: {error}") from error


def pack(
    sources: Sequence[FrameFiles | VideoFile],
    cache: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[PackedFrames]:
    """Decodes videos into the folder ``cache``, but for those that have been decoded before.

    Image files that cannot be decoded are remembered in ``unreadable``; a damaged video file is an
    error. ``progress`` is called with (videos decoded, videos to decode).

    Raises:
      UserError: a file has vanished, a video file is damaged, or there is no room in ``cache``.
    """
    places = [_place(source, cache) for source in sources]
    packs = [_open_pack(*pair) for pair in zip(sources, places, strict=True)]
    missing = [n for n, packed in enumerate(packs) if packed is None]
    if missing:
        _check_space(cache, [sources[n] for n in missing])
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{cache}: cannot be written: {error.strerror}") from error
    done: dict[Path, PackedFrames] = {}
    for count, n in enumerate(missing, start=1):
        with made_once(places[n]):  # every process of a run on many devices is here
            done[places[n]] = _open_pack(sources[n], places[n]) or _pack(sources[n], places[n])
        if progress:
            progress(count, len(missing))
    return [packed or done[place] for packed, place in zip(packs, places, strict=True)]


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


def _place(source: FrameFiles | VideoFile, cache: Path) -> Path:
    """Where the pack of a video belongs: its name without suffix."""
    text = json.dumps([_PACK_VERSION, *stamps(source.files)])
    return cache / f"frames-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _open_pack(source: FrameFiles | VideoFile, place: Path) -> PackedFrames | None:
    """The pack, or None if there is none or it is not whole (then it is made again)."""
    target = place.with_suffix(".npy")
    try:
        notes = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
        unreadable = {int(index): str(reason) for index, reason in notes["unreadable"].items()}
        array = np.lib.format.open_memmap(target, mode="r")
        expected = (notes["frames"], source.height, source.width, 3)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if array.dtype != np.uint8 or array.shape != expected:
        return None
    return PackedFrames(target, len(array), source.height, source.width, unreadable)


def _pack(source: FrameFiles | VideoFile, place: Path) -> PackedFrames:
    target = place.with_suffix(".npy")
    unreadable: dict[int, str] = {}

    def frames() -> Iterator[Frame8]:
        for index, frame in enumerate(source.stream()):
            if isinstance(frame, UserError):
                unreadable[index] = str(frame)
                frame = np.zeros((source.height, source.width, 3), np.uint8)
            yield frame

    try:
        with replace_when_whole(target) as part:
            count = _write_frames(part, frames(), source.height, source.width)
            # Before the frames get their name: frames without their notes do not count as packed.
            notes = {"of": str(source.files[0]), "frames": count, "unreadable": unreadable}
            write_json(place.with_suffix(".json"), notes)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    _mapped.cache_clear()  # it may hold a damaged file of the same name
    return PackedFrames(target, count, source.height, source.width, unreadable)


def show_packing() -> Callable[[int, int], None]:
    """What prints how far the decoding of videos is, as their ``progress``."""
    return ProgressLine("decoding", unit="videos", stays=True).update


def _check_space(cache: Path, sources: Sequence[FrameFiles | VideoFile]) -> None:
    """UserError if the disk has no room for the decoded frames of image files."""
    needed = sum(
        3 * len(source.files) * source.height * source.width
        for source in sources
        if isinstance(source, FrameFiles)
    )
    existing = next(
        folder for folder in (cache, *cache.absolute().parents) if os.path.exists(folder)
    )
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{cache}: the decoded frames need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free (set JAXDEBLUR_CACHE to a folder on a larger disk)"
        )


def _write_frames(target: Path, frames: Iterable[Frame8], height: int, width: int) -> int:
    """Writes frames one by one as one array; returns how many there were."""

    def write_header(count: int) -> int:
        # NumPy pads headers so that their length does not depend on the first dimension.
        shape = (count, height, width, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()

    count = 0
    with open(target, "wb") as file:
        start = write_header(0)
        for frame in frames:
            file.write(np.ascontiguousarray(frame).data)
            count += 1
        file.seek(0)
        if write_header(count) != start:
            raise AssertionError("the header of the array has grown over its first frame")
    return count


def high_speed_sources(root: Path) -> list[tuple[str, list[Path] | Path]]:
    """The high-speed videos in ``root``: (name, image files or a video file) in natural order.

    ``root`` is a video file, a folder of frames, or a folder of such folders and video files.

    Raises:
      UserError: there are none.
    """
    if os.path.isfile(root):
        return [(root.name, root)]
    if frames := list_frames(root):
        return [(root.absolute().name, frames)]
    found: list[tuple[str, list[Path] | Path]] = []
    for entry in sorted(root.iterdir(), key=lambda entry: natural_key(entry.name)):
        if entry.name.startswith("."):
            continue
        if os.path.isdir(entry):
            if frames := list_frames(entry):
                found.append((entry.name, frames))
        elif entry.suffix.lower() in CONTAINERS:
            found.append((entry.name, entry))
    if not found:
        raise UserError(f"{root}: holds no frames, no folders of frames and no videos")
    return found
