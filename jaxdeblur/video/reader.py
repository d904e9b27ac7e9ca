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
from jaxdeblur.video.ffmpeg import any_tags, av, describe, frame_planes, is_cover, reason
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.picture import Picture, PictureSource

# Demuxers that read only the given file: playlists can name other files.
_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif,m4v,h264,hevc,obu,ivf,nut,"
    "mxf,dv,yuv4mpegpipe,mjpeg,mpegvideo"
}
# FFmpeg's names of raw streams, whose frames have no timestamps.
_RAW = {"h264", "hevc", "obu", "mjpeg", "mpegvideo"}
# Codecs of which each packet holds one picture; in others, some are not for display.
_ONE_PER_PACKET = {"h264", "hevc", "av1"}
# Seconds by which packets of one time may be apart in a file: as much as FFmpeg's muxer allows.
_INTERLEAVED_S = 10


class VideoReader(PictureSource):
    """Reads the first video track of a file, and the packets of all other tracks.

    Attributes:
      container: PyAV's container of the open file.
      track: the video track.
      others: the other tracks, which are copied.
      skipped: how many frames precede the part, at the average rate.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_pixels: int = MAX_PIXELS,
        start: float = 0.0,
        duration: float | None = None,
        rate: Fraction | None = None,
    ):
        """Opens the file and decodes its first frame.

        Args:
          path: a video file.
          max_pixels: frames with more pixels are refused before they are decoded.
          start, duration: the part to read, in seconds; timestamps then begin at 0.
          rate: frames per second of a raw stream, which may not state them.

        Raises:
          UserError: the file is not a readable video, has no frame, a frame is too large, or a rate
            is given for a file that has its own timestamps; or its colours are of a rare kind.
        """
        self.path = Path(path)
        # Fractions, so that a frame exactly at the end is recognised.
        self._start = Fraction(start).limit_denominator(10**6)
        self._end = math.inf if duration is None else Fraction(duration).limit_denominator(10**6)
        self._is_whole = not start and duration is None
        # Subtracted from every time in the file, so that a part begins at 0.
        self._shift = Fraction(0)
        self._count = self._packets_read = self._pictures_read = 0
        self._shown_until = 0  # by frames of AVI without content
        self._given_rate = rate
        self._damaged: list[int] = []
        self._has_fields = False
        self.notes: list[str] = []
        self._first = self._last = Fraction(0)  # times in all tracks
        with contextlib.ExitStack() as opened:
            self.container = opened.enter_context(self._opened())
            self._find_tracks(max_pixels)
            with self._explained():
                timed = self._timed()
                first = next(timed, None)
            if first is None:
                where = f" at --start={start:g}" if start else ""
                raise UserError(f"{self.path}: contains no frames{where}")
            self._frames = itertools.chain([first], timed)
            self.skipped = math.ceil(self._start * self._rate)
            try:
                given = describe(first[1], self.track, rate=self._rate, time_base=self._time_base)
            except ValueError as error:
                raise UserError(f"{self.path}: {error}") from error
            self.info = dataclasses.replace(given, frames=self._frame_count())
            self._open = opened.pop_all()

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Picture]:
        """Yields the frames in display order.

        Raises:
          UserError: a frame cannot be decoded, or the file ends before its last frame.
        """
        info, last = self.info, None
        with self._explained():
            for pts, frame in self._frames:
                if (frame.height, frame.width) != (info.height, info.width):
                    raise UserError(
                        f"{self.path}: the frame size changes to {frame.width}x{frame.height} at "
                        f"frame {self._count}; restore the parts separately"
                    )
                planes, alpha = frame_planes(frame, info.pixel_format)
                if last is not None:
                    yield last
                # Of a raw stream, FFmpeg's is that of its own default rate.
                duration = frame.duration if self._given_rate is None else self._ticks
                last = Picture(planes, alpha, pts, duration or 0)
                if self.container.format.name != "avi":
                    yield last
                    last = None
        if last is not None:  # of AVI, in which frames without content may prolong the last
            last.duration = max(last.duration, self._shown_until - last.pts)
            yield last
        if self._damaged:
            these = _ranges(self._damaged)
            self.notes.append(
                f"damaged, and restored as the decoder patched them: frames {these} (those after "
                "them, up to a key frame, may show it too)"
            )

    @property
    def _ticks(self) -> int:
        """How long a frame is shown on average, in units of the time base."""
        return max(1, round(1 / (self._rate * self._time_base)))

    @property
    def chapters(self) -> list[Any]:
        """The chapters that overlap the part that is read, cut to it."""
        kept = []
        for chapter in self.container.chapters():
            unit = chapter["time_base"]
            begin, end = (chapter[key] * unit - self._shift for key in ("start", "end"))
            if self._is_whole or (end > 0 and begin < self._end):
                begin, end = max(begin, Fraction(0)), min(end, self._end)
                kept.append({**chapter, "start": round(begin / unit), "end": round(end / unit)})
        return kept

    def packets(self) -> Iterator[Any]:
        """Yields the packets of the other tracks in the part, in the order of the file.

        They are read separately. Damage ends them early: iteration over the frames reports it.
        """
        with contextlib.suppress(av.FFmpegError, OSError), self._opened() as container:
            if self._start:
                container.seek(round((self._shift - _INTERLEAVED_S) * 1_000_000))
            for packet in container.demux(*(container.streams[each.index] for each in self.others)):
                if not packet.size and packet.dts is None:  # the end of a track
                    continue
                if is_cover(packet.stream):  # it has no time
                    yield packet
                    continue
                time = (packet.pts or 0) * packet.time_base - self._shift
                if time >= self._end + _INTERLEAVED_S:
                    return
                if self._is_whole or 0 <= time < self._end:
                    # Without a shift, packets are left alone: some have times that cannot be set.
                    if shift := round(self._shift / packet.time_base):
                        packet.pts = None if packet.pts is None else packet.pts - shift
                        packet.dts = None if packet.dts is None else packet.dts - shift
                    yield packet

    def cover(self, stream: Any) -> bytes:
        """Returns the image file of a track that is a cover picture; empty if there is none."""
        with contextlib.suppress(av.FFmpegError, OSError), self._opened() as container:
            for packet in container.demux(container.streams[stream.index]):
                return bytes(packet)
        return b""

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path}: no such video file")
        with contextlib.ExitStack() as opened:
            with self._explained("not a readable video"):
                # A file object, not a name: FFmpeg takes some names for URLs or pipes.
                file = opened.enter_context(self.path.open("rb"))
                container = opened.enter_context(
                    av.open(file, "r", container_options=_OPTIONS, **any_tags())
                )
            yield container

    def _find_tracks(self, max_pixels: int) -> None:
        streams = self.container.streams
        tracks = [track for track in streams.video if not is_cover(track)]
        if not tracks or tracks[0].codec_context is None:
            raise UserError(f"{self.path}: has no video track")
        self.track = tracks[0]
        # Tracks that the demuxer discards are parts of others (chapter titles in MP4).
        self.others = [
            stream
            for stream in streams
            if stream is not self.track and stream.discard != av.stream.Discard.all
        ]
        codec = self.track.codec_context
        if codec.width * codec.height > max_pixels:
            size = f"{codec.width}x{codec.height}"
            raise UserError(f"{self.path}: frames of {size} exceed --max-pixels={max_pixels}")
        # The decoder itself refuses larger frames that come later.
        codec.options = {"max_pixels": str(min(max_pixels, 2**31 - 1))}
        codec.thread_type = "AUTO"
        self._time_base = Fraction(self.track.time_base or Fraction(1, 1_000_000))
        rates = [self.track.average_rate, self.track.guessed_rate]
        if self.container.format.name == "dv":  # it takes its clock for the average
            rates.reverse()
        self._rate = Fraction(rates[0] or rates[1] or 25)
        self._is_raw = self.container.format.name in _RAW
        if self._given_rate is not None:
            if not self._is_raw:
                raise UserError(f"{self.path}: --fps applies to raw streams; this video has a rate")
            self._rate = self._given_rate
        elif self.container.format.name == "mpegvideo":
            self._given_rate = self._rate  # its times are those of decoding
        elif self._is_raw and not codec.framerate:
            self.notes.append(f"states no frame rate; {float(self._rate):g} is assumed (see --fps)")

    def _timed(self) -> Iterator[tuple[int, Any]]:
        """Yields the frames of the part with their timestamps in it, which increase."""
        begins = Fraction(self.container.start_time or 0, 1_000_000)
        if not self._is_whole:
            self._shift = self._start + begins
        unit = self._time_base
        pts: int | None = None
        last: int | None = None
        for frame in self._decoded_from(begins) if self._start else self._decoded():
            before, pts = pts, None if self._given_rate is not None else frame.pts
            if pts is None:  # raw streams have no timestamps
                pts = 0 if before is None else before + self._ticks
            if self._is_whole and before is None and pts < 0:
                # MP4 shows no frame before time 0, and Matroska cannot store such times.
                self._shift = pts * unit
            if self._is_whole and before is not None and (before - pts) * unit > 1:
                raise UserError(
                    f"{self.path}: the timestamps start over after {self._count} frames; rewrite "
                    "it with FFmpeg, which puts them in order"
                )
            time = pts * unit - self._shift
            if time >= self._end:
                return
            if time >= 0 or self._is_whole:
                shown = round(time / unit)
                last = shown if last is None else max(shown, last + 1)
                self._count += 1
                self._has_fields |= frame.interlaced_frame
                if frame.is_corrupt:
                    self._damaged.append(self._count)
                yield last, frame
        if self._is_whole and last is not None:
            self._refuse_if_cut_short(last * unit)
            # Two fields of one frame may have a packet each.
            missing = 0 if self._has_fields else self._pictures_read - self._count
            if missing > 0 and self.track.codec_context.codec.canonical_name in _ONE_PER_PACKET:
                what = "1 frame" if missing == 1 else f"{missing} frames"
                self.notes.append(f"damaged: {what} could not be decoded; the result lacks them")

    def _decoded_from(self, begins: Fraction) -> Iterator[Any]:
        """Seeks to where all frames of the part can be decoded; yields the frames from there on.

        ``begins`` is the time at which the file begins.
        """
        back = 0
        while True:
            # Not every demuxer lands before the requested time (MPEG-TS does not), and the first
            # frames of an open group of pictures need the group before it.
            time = self._shift - back
            with self._explained("cannot be read from --start on"):
                self.container.seek(round(time * 1_000_000))
                frames = self._decoded()
                found = list(itertools.islice(frames, 1))
            # Times before the beginning are tried too: MPEG-TS at first lands too late even there.
            in_time = found and (found[0].pts or 0) * self._time_base <= self._shift
            if in_time or time < begins - 8:
                return itertools.chain(found, frames)
            back = 2 * back or 1

    def _decoded(self) -> Iterator[Any]:
        """Yields the frames from the container's position on."""
        decode = self.track.codec_context.decode
        for packet in self.container.demux(self.track, *self.others):
            if packet.pts is not None:
                begin, end = packet.pts, packet.pts + (packet.duration or 0)
                self._first = min(self._first, Fraction(begin * packet.time_base))
                self._last = max(self._last, Fraction(end * packet.time_base))
            if packet.stream is not self.track:
                continue
            if packet.is_corrupt:
                yield from decode(None)  # the frames that the decoder still holds
                if self._count / self._rate >= self._end:
                    return  # the part is complete
                raise self._cut_short()
            if not packet.size and packet.dts is not None:
                self._packets_read += 1  # the last frame is shown on; the decoder would end at it
                continue
            self._packets_read += packet.size > 0
            self._pictures_read += packet.size > 0 and not packet.is_discard
            yield from decode(packet if packet.size else None)

    def _refuse_if_cut_short(self, last: Fraction) -> None:
        """Raises UserError if the file states that it continues after its ``last`` frame's time."""
        missing = Fraction(0)
        if self.container.format.name == "avi" and self._is_one_riff():
            # The demuxer leaves out null frames, which show the last one on.
            self._shown_until = (self.track.start_time or 0) + (self.track.duration or 0)
            return
        # Fewer packets alone prove nothing: a trimmed video lacks those before the cut.
        if self._packets_read < self.track.frames:
            missing = (self._length() or last) - last
        # Matroska's demuxer takes the end of the file for the end of the video. Except in live
        # recordings, the header states the length of the longest track, with its audio lead-in.
        if "matroska" in self.container.format.name and self.container.duration:
            said = Fraction(self.container.duration, 1_000_000)
            missing = max(missing, said - (self._last - self._first))
        if missing > Fraction(5, 2) / self._rate:
            raise self._cut_short()

    def _is_one_riff(self) -> bool:
        """Returns whether the length of an AVI is the one in its first bytes, so nothing is cut."""
        with self.path.open("rb") as file:
            return int.from_bytes(file.read(8)[4:], "little") + 8 == os.fstat(file.fileno()).st_size

    def _frame_count(self) -> int | None:
        """Returns the number of frames to read, if the file states it or its own length."""
        if self.track.frames and self._is_whole:
            return self.track.frames
        length = self._length()
        return None if length is None else max(1, round(length * self._rate))

    def _length(self) -> Any:
        """Returns the number of seconds to read, or None if the file does not state its length."""
        length = (self.track.duration or 0) * self._time_base
        length = length or Fraction(self.container.duration or 0, 1_000_000)
        return min(length - self._start, self._end) if length else None

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
        except (av.FFmpegError, OSError) as error:
            what = otherwise or f"cannot be decoded after frame {self._count}"
            raise UserError(f"{self.path}: {what}: {reason(error)}") from error


def _ranges(numbers: list[int]) -> str:
    """Returns ascending numbers in words: ``3, 7 to 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in runs)
