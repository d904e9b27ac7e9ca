"""Frames that another program restored, to be scored as our own are."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxdeblur.data.videos import Video, refuse
from jaxdeblur.errors import UserError
from jaxdeblur.files import safe_name
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.formats import MAX_PIXELS, list_frames
from jaxdeblur.video.image_file import image_size, read_image


@dataclasses.dataclass(frozen=True)
class RestoredFrames:
    """Image files of restored videos: a folder for each, or the files of the only one.

    Attributes:
      preset: what the report calls them.
      source: the folder, as it was given.
      folders: of the videos of the data set, in its order.
      max_pixels: larger frames are refused before they are decoded.
    """

    preset: str
    source: str
    folders: tuple[Path, ...]
    max_pixels: int = MAX_PIXELS

    @classmethod
    def find(
        cls, root: Path, name: str, videos: Sequence[Video], max_pixels: int = MAX_PIXELS
    ) -> RestoredFrames:
        """The folder of each video in ``root``, by its name or as ``evaluate.py --frames`` has it.

        Args:
          root: holds a folder for each video; of a single video it may hold the frames.
          name: what results call them; by default that of ``root``.
          videos: of the data set.
          max_pixels: larger frames are refused before they are decoded.

        Raises:
          UserError: ``root`` is no folder, or a video has none in it.
        """
        if not root.is_dir():
            raise UserError(f"--restored={root}: no such folder")
        folders, missing = [], []
        for i, video in enumerate(videos):
            safe = safe_name(video.name)
            found = [root / each for each in (safe, f"{i:03d}-{safe}") if (root / each).is_dir()]
            if not found and len(videos) == 1:
                found = [root]
            folders += found[:1]
            if not found:
                missing.append(f"{video.name}: no folder of that name")
        refuse(f"--restored={root}", missing)
        return cls(name or root.name, str(root), tuple(folders), max_pixels)

    def files(self, index: int) -> list[Path]:
        """The frames of video ``index`` in natural order."""
        return list_frames(self.folders[index])

    def check(self, videos: Sequence[Video], lengths: Sequence[int]) -> None:
        """Checks the frames of ``videos``, of which the first ``lengths`` are scored.

        Raises:
          UserError: there are too few or too many, or they have another size.
        """
        problems = []
        for i, (video, length) in enumerate(zip(videos, lengths, strict=True)):
            files = self.files(i)
            if len(files) not in (length, len(video)):
                problems.append(f"{video.name}: {len(files)} restored frames of {length}")
                continue
            height, width = image_size(files[0], self.max_pixels)
            if (height, width) != (video.height, video.width):
                problems.append(
                    f"{video.name}: restored frames are {width}x{height}, not "
                    f"{video.width}x{video.height}"
                )
        refuse(f"--restored={self.source}", problems)

    def digest(self) -> str:
        """By which a second start knows whether the frames are still the same."""
        digest = hashlib.sha256(self.preset.encode())
        for i in range(len(self.folders)):
            for path in self.files(i):
                about = path.stat()
                digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclasses.dataclass
class ReadRestoration:
    """Gives (blurred, restored) of one video, frame by frame, where nothing is left to restore."""

    restored: RestoredFrames
    index: int
    video: Video
    frames: int

    def __iter__(self) -> Iterator[tuple[Frame8, Frame8]]:
        for i, path in enumerate(self.restored.files(self.index)[: self.frames]):
            frame = read_image(path, self.restored.max_pixels)
            if frame.shape != (self.video.height, self.video.width, 3):
                raise UserError(f"{path}: not of the size of {self.video.name}'s other frames")
            yield self.video.blurred(i), frame

    def seconds_per_frame(self) -> None:
        """Not known: another program took it."""
