"""Reads videos with PyAV: frames, timestamps, packets of all other tracks, tags and chapters.

Frames are handed on in the arrays of the file's pixel format (video/pixels.py), so that 8 to 16
bits, grey, alpha, sub-sampling, colour matrix and range are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxdeblur.errors import UserError
from jaxdeblur.video.container import any_tags, av, reason
from jaxdeblur.video.ffmpeg_frames import describe, frame_planes
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.part import Part
from jaxdeblur.video.picture import Picture, PictureSource

# Demuxers that read only the given file: playlists can name other files.
_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif,m4v,h264,hevc,obu,ivf,nut,"
    "mxf,dv,yuv4mpegpipe"
}
# Seconds by which packets of one time may be apart in a file: as much as FFmpeg's muxer allows.
_INTERLEAVED_S = 10


class VideoReader(PictureSource):
    """Reads the first video track of a file, and the packets of all other tracks.

    Attributes:
      container: PyAV's container of the open file.
      track: the video track.
      others: the other tracks, which are copied.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_pixels: int = MAX_PIXELS,
        start: float = 0.0,
        duration: float | None = None,
    ):
        """Opens the file and decodes its first frame.

        Args:
          path: a video file.
          max_pixels: frames with more pixels are refused before they are decoded.
          start, duration: the part to read, in seconds; timestamps then begin at 0.

        Raises:
          UserError: the file is not a readable video, has no frame, or a frame is too large.
        """
        self.path = Path(path)
        # Fractions, so that a frame exactly at the end is recognised.
        length = None if duration is None else Fraction(duration).limit_denominator(10**6)
        self._part = Part(Fraction(start).limit_denominator(10**6), length)
        with contextlib.ExitStack() as opened:
            self._prepare(opened, max_pixels)
            self._open = opened.pop_all()

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Picture]:
        """Yields the frames in display order.

        Raises:
          UserError: a frame cannot be decoded, or the file ends before its last frame.
        """
        with self._explained():
            yield from self._pictures

    def _prepare(self, opened: contextlib.ExitStack, max_pixels: int) -> None:
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path}: no such video file")
        with self._explained("not a readable video"):
            # A file object, not a name: FFmpeg takes some names for URLs or pipes.
            file = opened.enter_context(self.path.open("rb"))
            container: Any = opened.enter_context(
                av.open(file, "r", container_options=_OPTIONS, **any_tags())
            )
        self.container = container
        covers = av.stream.Disposition.attached_pic
        tracks = [track for track in container.streams.video if not track.disposition & covers]
        if not tracks or tracks[0].codec_context is None:
            raise UserError(f"{self.path}: has no video track")
        self.track = tracks[0]
        # Tracks that the demuxer discards are parts of others (chapter titles in MP4).
        self.others = [
            stream
            for stream in container.streams
            if stream is not self.track and stream.discard != av.stream.Discard.all
        ]
        codec = self.track.codec_context
        if codec.width * codec.height > max_pixels:
            size = f"{codec.width}x{codec.height}"
            raise UserError(f"{self.path}: frames of {size} exceed --max-pixels={max_pixels}")
        # The decoder itself refuses larger frames that come later.
        codec.options = {"max_pixels": str(max_pixels)}
        codec.thread_type = "AUTO"
        self._time_base = Fraction(self.track.time_base or Fraction(1, 1_000_000))
        self._rate = Fraction(self.track.average_rate or self.track.guessed_rate or 25)
        self._count = self._video_packets = 0
        self._begun = self._ended = Fraction(0)  # of all tracks
        self._read: list[tuple[Any, list[Any]]] = []
        self._packets = self._demuxed()
        self._waiting: list[Any] = []
        self.trailing: list[Any] = []
        part = self._part
        begins = Fraction(container.start_time or 0, 1_000_000)
        if not part.is_whole:
            part.shift = part.start + begins
        where = f" at --start={float(part.start):g}" if part.start else ""
        if part.start:
            with self._explained(f"contains no frames{where}"):
                self._seek(begins)
        with self._explained():
            pictures = self._decode()
            first = next(pictures, None)
        if first is None:
            raise UserError(f"{self.path}: contains no frames{where}")
        self._pictures = itertools.chain([first], pictures)

    def _seek(self, begins: Fraction) -> None:
        """Seeks to a frame from which all frames of the part can be decoded.

        ``begins`` is the time at which the file begins.
        """
        back = 0
        while True:
            # Not every demuxer lands before the requested time (MPEG-TS does not), and the first
            # frames of an open group of pictures need the group before it.
            time = self._part.shift - back
            try:
                self.container.seek(round(time * 1_000_000), backward=True, any_frame=False)
            except av.FFmpegError as error:
                raise UserError(
                    f"{self.path}: cannot seek to --start; the file has no timestamps"
                ) from error
            # Times before the beginning are tried too: MPEG-TS at first lands too late even there.
            if self._read_to_first_frame() <= self._part.shift or time < begins - 8:
                return
            back = 2 * back or 1

    def _read_to_first_frame(self) -> float | Fraction:
        """Returns when the first frame from here on is shown; infinity if there is none.

        What is read for this is kept: a second seek to the same time may land elsewhere.
        """
        self._read, self._packets = [], self._demuxed()
        for packet, frames in self._packets:
            self._read.append((packet, frames))
            if frames:
                return 0 if frames[0].pts is None else frames[0].pts * self._time_base
        return math.inf

    def _demuxed(self) -> Iterator[tuple[Any, list[Any]]]:
        """Yields the packets of all tracks, those of the video with the frames they complete."""
        for packet in self.container.demux(self.track, *self.others):
            if packet.pts is not None:
                begin, end = packet.pts, packet.pts + (packet.duration or 0)
                self._begun = min(self._begun, Fraction(begin * packet.time_base))
                self._ended = max(self._ended, Fraction(end * packet.time_base))
            if packet.stream is not self.track:
                yield packet, []
                continue
            decode = self.track.codec_context.decode
            if packet.is_corrupt:
                yield packet, decode(None)  # the frames that the decoder still holds
                if self._part.ends_before(self._count / self._rate):
                    return  # the part is complete
                raise self._cut_short()
            self._video_packets += packet.size > 0
            yield packet, decode(packet if packet.size else None)

    @property
    def chapters(self) -> list[Any]:
        """The chapters that overlap the part that is read, cut to it."""
        return self._part.chapters(self.container.chapters())

    def _decode(self) -> Iterator[Picture]:
        """Yields the pictures of the part, each with the packets that precede it in the file."""
        last = None
        for time, frame in self._timed(self._frames()):
            if time < 0 and not self._part.is_whole:
                continue
            if self._part.ends_before(time):
                self.trailing = self._taken() + self._rest_of_part()
                return
            pts = round(time / self._time_base)
            if last is not None:
                pts = max(pts, last + 1)  # a frame cannot precede the last one
            last = pts
            if not self._count:
                given = describe(
                    frame, self.track, self.path, rate=self._rate, time_base=self._time_base
                )
                self.info = dataclasses.replace(given, frames=self._frame_count())
            self._count += 1
            yield self._picture(frame, pts)
        self.trailing = self._taken()
        if self._part.is_whole and last is not None:
            self._refuse_if_cut_short(last * self._time_base)

    def _frames(self) -> Iterator[Any]:
        """Yields the frames of the track; collects packets of the others in ``_waiting``."""
        for packet, frames in itertools.chain(self._read, self._packets):
            if packet.stream is self.track:
                yield from frames
            elif packet.size or packet.dts is not None:  # else: the end of a track
                self._waiting.append(packet)

    def _timed(self, frames: Iterator[Any]) -> Iterator[tuple[Fraction, Any]]:
        """Yields each frame with its time in the part."""
        last = None
        ticks = max(1, round(1 / (self._rate * self._time_base)))  # per frame, on average
        for frame in frames:
            pts = frame.pts
            if pts is None:  # raw streams have no timestamps
                pts = 0 if last is None else last + ticks
            time = pts * self._time_base
            if self._part.is_whole:
                if last is None and pts < 0:
                    # MP4 shows no frame before time 0, and Matroska cannot store such times.
                    self._part.shift = time
                if last is not None and last * self._time_base - time > 1:
                    raise UserError(
                        f"{self.path}: the timestamps start over after {self._count} frames, as in "
                        "files that were simply concatenated; rewrite it with FFmpeg, which puts "
                        "them in order"
                    )
            last = pts
            yield self._part.moved(time), frame

    def _taken(self) -> list[Any]:
        """Returns the waiting packets that lie in the part; none wait any longer."""
        packets, self._waiting = self._waiting, []
        return self._part.taken(packets)

    def _rest_of_part(self) -> list[Any]:
        """Returns the packets of other tracks in the part that follow its last frame."""
        rest: list[Any] = []
        if not self.others:
            return rest
        with contextlib.suppress(av.FFmpegError, OSError):  # damage after the part is ignored
            for packet in self.container.demux(self.track, *self.others):
                if packet.dts is None:
                    continue
                time = self._part.moved(packet.dts * packet.time_base)
                if self._part.ends_before(time - _INTERLEAVED_S):
                    break
                if packet.stream is not self.track:
                    rest += self._part.taken([packet])
        return rest

    def _refuse_if_cut_short(self, last: Fraction) -> None:
        """Raises UserError if the file states that it continues after its ``last`` frame's time."""
        missing = Fraction(0)
        # Fewer packets alone prove nothing: a trimmed video lacks those before the cut.
        if self._video_packets < self.track.frames:
            missing = (self._length() or last) - last
        # Matroska's demuxer takes the end of the file for the end of the video. Except in live
        # recordings, the header states the length of the longest track, with its audio lead-in.
        if "matroska" in self.container.format.name and self.container.duration:
            said = Fraction(self.container.duration, 1_000_000)
            missing = max(missing, said - (self._ended - self._begun))
        if missing > Fraction(5, 2) / self._rate:
            raise self._cut_short()

    def _frame_count(self) -> int | None:
        """Returns the number of frames to read, if the file states it or its own length."""
        if self.track.frames and self._part.is_whole:
            return self.track.frames
        length = self._length()
        return None if length is None else max(1, round(length * self._rate))

    def _length(self) -> Fraction | None:
        """Returns the number of seconds to read, if the file states its length."""
        if self.track.duration:
            length = self.track.duration * self._time_base
        elif self.container.duration:
            length = Fraction(self.container.duration, 1_000_000)
        else:
            return None
        length -= self._part.start
        return length if self._part.duration is None else min(length, self._part.duration)

    def _picture(self, frame: Any, pts: int) -> Picture:
        info = self.info
        if (frame.height, frame.width) != (info.height, info.width):
            raise UserError(
                f"{self.path}: the frame size changes from {info.width}x{info.height} to "
                f"{frame.width}x{frame.height} at frame {self._count}; restore the parts separately"
            )
        planes, alpha = frame_planes(frame, info.pixel_format)
        return Picture(planes, alpha, pts, frame.duration or 0, packets=self._taken())

    def _cut_short(self) -> UserError:
        message = f"{self.path}: truncated or damaged after {self._count} frames"
        if self._count:
            seconds = math.floor(1000 * self._count / self._rate) / 1000
            message += f" (--duration={seconds:.10g} restores them)"
        return UserError(message)

    @contextlib.contextmanager
    def _explained(self, otherwise: str = "") -> Iterator[None]:
        """Turns errors of FFmpeg and the system into a UserError of one line."""
        try:
            yield
        except PermissionError as error:
            raise UserError(f"{self.path}: cannot be read (permission denied)") from error
        except (av.FFmpegError, OSError) as error:
            what = otherwise or f"cannot be decoded after frame {self._count}"
            raise UserError(f"{self.path}: {what}: {reason(error)}") from error
