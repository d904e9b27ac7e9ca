"""Puts videos that were encoded alike together, packet by packet, with the tracks of another."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from jaxdeblur.errors import UserError
from jaxdeblur.video.ffmpeg import av, reason
from jaxdeblur.video.picture import VideoInfo
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.writer import VideoWriter


class VideoJoiner(VideoWriter):
    """Writes packets that are encoded already; everything else is copied as ``VideoWriter`` does.

    Each video must begin with a frame that can be decoded without others, as all do.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        info: VideoInfo,
        encoded: Any,
        *,
        source: VideoReader,
        name: str,
    ):
        """Opens the file.

        Args:
          path: where to write; its suffix chooses the container.
          info: the format of the source's frames; times are in its unit.
          encoded: PyAV's video track of one of the videos.
          source: the video whose other tracks, metadata and chapters are copied.
          name: the file's name in messages.

        Raises:
          UserError: the file cannot be written.
        """
        self._encoded = encoded
        super().__init__(path, info, source=source, name=name)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open, self._explained():
            if kind is None:
                self._copy_until(math.inf)
                self._container.close()
                self._file.flush()
                os.fsync(self._file.fileno())

    def write_packet(self, packet: Any, pts: int, dts: int, duration: int) -> None:
        """Writes a packet with these times, after the packets of other tracks that precede it.

        Raises:
          UserError: it cannot be written.
        """
        with self._explained():
            self._copy_until(pts * self._info.time_base)
            packet.stream = self._track
            packet.pts, packet.dts, packet.duration = pts, dts, duration
            packet.time_base = self._info.time_base
            self._container.mux(packet)

    def copy_rest(self) -> None:
        """Copies the packets of other tracks that are left.

        Raises:
          UserError: they cannot be written.
        """
        with self._explained():
            self._copy_until(math.inf)

    @property
    def copied(self) -> Fraction | float:
        """The time of the last packet copied from another track, in seconds."""
        return self._copied

    def _add_video(self, codec: str | None, crf: int | None) -> Any:
        track = self._container.add_stream_from_template(self._encoded, opaque=True)
        track.time_base = self._info.time_base
        if track.codec_context.name == "hevc" and self._format in ("mp4", "mov"):
            track.codec_context.codec_tag = "hvc1"  # as VideoWriter does
        return track


def decoding_times(pts: Sequence[int], step: int) -> list[int]:
    """Returns increasing decoding times, none after its frame is shown.

    Args:
      pts: when each frame is shown, in the order of decoding.
      step: the time between frames, for the first ones.
    """
    shown = sorted(pts)
    place = {time: rank for rank, time in enumerate(shown)}
    delay = max((index - place[time] for index, time in enumerate(pts)), default=0)
    before = [shown[0] - step * count for count in range(delay, 0, -1)]
    return [*before, *shown][: len(shown)]


@contextlib.contextmanager
def video_packets(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Opens a file that this package wrote; yields its video track, and its packets in order.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with av.open(os.fspath(path)) as container:
            track = container.streams.video[0]
            yield track, (packet for packet in container.demux(track) if packet.size)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error
