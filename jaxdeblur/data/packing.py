"""The frames of a video, read by crop: from image files, or decoded once and memory-mapped.

Decoding a PNG takes a hundred times longer than reading a crop of decoded frames, and training
reads the same frames again and again. :func:`pack` decodes a video once into a ``.npy`` file whose
name is made of the files' names, sizes and times of change, so that a changed video is packed anew.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from jaxdeblur.errors import UserError
from jaxdeblur.images import MAX_PIXELS, read_image
from jaxdeblur.shapes import Frame8, Video8

ALL = slice(None)


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
        return np.stack([self.frame(file)[rows, columns] for file in self.files[times]])

    def frame(self, file: Path) -> Frame8:
        """Decodes one of the files; its size is checked again, as files change."""
        frame = read_image(file, self.max_pixels)
        if frame.shape[:2] != (self.height, self.width):
            raise UserError(
                f"{file}: {frame.shape[1]}x{frame.shape[0]} pixels, "
                f"unlike the {self.width}x{self.height} of the video"
            )
        return frame


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
