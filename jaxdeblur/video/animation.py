"""Writes small GIF and WebP animations with imageio: before and after for a page or a message."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdeblur.errors import UserError
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.ffmpeg import reason
from jaxdeblur.video.image_metadata import cicp_of, colour_name
from jaxdeblur.video.picture import Picture, PictureTarget, VideoInfo

MAX_WIDTH = 640
"""Wider pictures are reduced to this width: a second of 30 frames takes about 1 MB as WebP."""

MAX_FRAMES = 300
"""Further frames are dropped: all are held in memory until the file is written."""

# The unit of a format's delays and the shortest delay, in milliseconds. Browsers show frames of
# 10 ms and less for 100 ms.
_DELAYS = {".gif": (10, 20), ".webp": (1, 11)}


class AnimationWriter(PictureTarget):
    """Writes upright 8-bit RGB as an animation that loops forever, at most ``MAX_WIDTH`` wide."""

    def __init__(
        self, path: Path, info: VideoInfo, *, max_frames: int = MAX_FRAMES, name: str = ""
    ):
        """Prepares to write; the file is created after the last picture.

        Args:
          path: the file; its suffix selects the format.
          info: the format of the pictures.
          max_frames: how many pictures are kept; later ones are dropped and noted in ``lost``.
          name: the file's name in messages; by default ``path``.
        """
        self._path, self._info, self._max_frames = path, info, max_frames
        self._name, self._suffix = name or str(path), path.suffix.lower()
        self._frames: list[Frame8] = []
        self._begins: list[Fraction] = []  # of the frames, in milliseconds
        self._end = Fraction(0)  # of the last picture, kept or not
        self.lost: list[str] = []
        if tag := cicp_of(info.colour):
            self.lose(f"colour: {colour_name(tag)} (not supported by {self._suffix})")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._frames:
            self._save()

    def write(self, picture: Picture) -> None:
        """Adds one picture, unless it follows the last one sooner than the format can show."""
        info, shortest = self._info, _DELAYS[self._suffix][1]
        if len(self._frames) == self._max_frames:
            self.lose(f"frames after the first {self._max_frames}")
            return
        begin = 1000 * picture.pts * info.time_base
        self._end = begin + 1000 / info.rate
        if self._frames and begin - self._begins[-1] < shortest:
            self.lose(f"frames less than {shortest} ms apart (not supported by {self._suffix})")
            return
        (rgb,) = picture.planes
        self._frames.append(_small(rgb, float(info.sample_aspect or 1)))
        self._begins.append(begin)

    def _save(self) -> None:
        unit, shortest = _DELAYS[self._suffix]
        # Each time is rounded, not each delay, so that errors do not add up.
        times = [int(time / unit) * unit for time in (*self._begins, self._end)]
        delays = [max(shortest, after - before) for before, after in itertools.pairwise(times)]
        try:
            # Encoded to bytes first: imageio may silently lose a file's last bytes on a full disk.
            encoded = iio.imwrite(
                "<bytes>",
                np.stack(self._frames),
                plugin="pillow",
                extension=self._suffix,
                is_batch=True,
                duration=delays if len(delays) > 1 else delays[0],  # Pillow takes no list of one
                loop=0,
                quality=80,  # WebP only; GIF has none
            )
            self._path.write_bytes(encoded)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._name}: cannot be written: {reason(error)}") from error


def _small(frame: Frame8, aspect: float) -> UInt8[np.ndarray, "h w 3"]:
    """Resamples a frame to square pixels, at most ``MAX_WIDTH`` wide."""
    height, width = frame.shape[0], frame.shape[1] * aspect
    scale = min(1.0, MAX_WIDTH / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
