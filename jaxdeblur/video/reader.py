"""Videos in by PyAV: frames, timestamps, the packets of all other tracks, tags and chapters.

Frames are handed on in the arrays that the file's pixel format has (video/pixels.py), so that
8 to 16 bits, grey, alpha, sub-sampling, colour matrix and range are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxdeblur.errors import UserError
from jaxdeblur.video.container import any_tags, of_the_content, reason
from jaxdeblur.video.ffmpeg_frames import (
    display_matrix,
    frame_planes,
    lost_with,
    pixel_layout,
    specified,
)
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.picture import FULL_RANGE, Picture, VideoInfo, without_alpha
from jaxdeblur.video.pyav import av

# Demuxers that read the file they are given and nothing else: playlists can name other files.
_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif,m4v,h264,hevc,obu,ivf,nut,"
    "mxf,dv,yuv4mpegpipe"
}
# Seconds by which packets of one moment may lie apart in a file: as much as FFmpeg's muxer lets.
_INTERLEAVED_S = 10


class VideoReader:
    """Reads the first video track of a file, and the packets of all others.

    Attributes:
      info: what the video is.
      others: the tracks that are copied.
      trailing: after the last frame, the packets that follow it.
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
          UserError: it is not a readable video, has no frame, or a frame is too large.
        """
        self.path = Path(path)
        self._max_pixels = max_pixels
        # As fractions, so that a frame exactly at the end is recognised.
        self._start = Fraction(start).limit_denominator(10**6)
        self._duration = None if duration is None else Fraction(duration).limit_denominator(10**6)
        self._open = contextlib.ExitStack()
        try:
            self._prepare()
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __iter__(self) -> Iterator[Picture]:
        """The frames in the order in which they are shown.

        Raises:
          UserError: a frame cannot be decoded, or the file ends before its last frame.
        """
        with self._explained():
            yield from self._pictures

    def _prepare(self) -> None:
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path}: no such video file")
        with self._explained("is not a video that can be read"):
            # A file object, not a name: to FFmpeg a name may also be an address or a pipe.
            file = self._open.enter_context(self.path.open("rb"))
            self._container: Any = self._open.enter_context(
                av.open(file, "r", container_options=_OPTIONS, **any_tags())
            )
        container = self._container
        tracks = [
            stream
            for stream in container.streams.video
            if not stream.disposition & av.stream.Disposition.attached_pic
        ]
        if not tracks or tracks[0].codec_context is None:
            raise UserError(f"{self.path}: has no video track")
        self._track = tracks[0]
        # Tracks that the demuxer discards are parts of others (chapter titles in MP4).
        self.others = [
            stream
            for stream in container.streams
            if stream is not self._track and stream.discard != av.stream.Discard.all
        ]
        codec = self._track.codec_context
        self._refuse_if_large(codec.width, codec.height)
        # The decoder itself refuses larger frames, should one come later.
        codec.options = {"max_pixels": str(self._max_pixels)}
        codec.thread_type = "AUTO"
        # FFmpeg's own decoder of VP8 and VP9 leaves alpha out; libvpx has it.
        self._alpha_decoder: Any = None
        # Matroska's muxer writes the key in capitals, WebM's does not.
        metadata = {key.lower(): value for key, value in self._track.metadata.items()}
        if metadata.get("alpha_mode") == "1" and codec.name in ("vp8", "vp9"):
            name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}[codec.name]
            self._alpha_decoder = av.CodecContext.create(name, "r")
        track = self._track
        self._time_base = Fraction(track.time_base or Fraction(1, 1_000_000))
        self._rate = Fraction(track.average_rate or track.guessed_rate or 25)
        self._count = 0
        self._begun = self._ended = Fraction(0)  # of all tracks
        self._shift = Fraction(0)
        self._read: list[tuple[Any, list[Any]]] = []
        self._packets = self._demuxed()
        if self._start or self._duration is not None:
            self._shift = self._origin
        if self._start:
            with self._explained(f"has no frame at --start={float(self._start):g}"):
                self._seek()
        self.trailing: list[Any] = []
        with self._explained():
            pictures = _with_first(self._decode())
        if pictures is None:
            where = f" at --start={float(self._start):g}" if self._start else ""
            raise UserError(f"{self.path}: has no frame{where}")
        self._pictures = pictures

    @property
    def _origin(self) -> Fraction:
        """When the part that is read begins, in the file's own time."""
        begins = self._container.start_time or 0
        return self._start + Fraction(begins, 1_000_000)

    def _seek(self) -> None:
        """Goes to a frame from which all that are shown from the start on can be decoded."""
        begins = Fraction(self._container.start_time or 0, 1_000_000)
        back = 0
        while True:
            # Not every demuxer comes out before the time that it is given (MPEG-TS does not), and
            # the first frames of an open group of pictures need the group before it.
            time = self._origin - back
            try:
                self._container.seek(round(time * 1_000_000), backward=True, any_frame=False)
            except av.FFmpegError as error:
                raise UserError(f"{self.path}: --start: has no times to search by") from error
            if self._alpha_decoder is not None:
                self._alpha_decoder.flush_buffers()
            # From before the beginning too: the first times, MPEG-TS comes out too late even there.
            if self._read_to_first_frame() <= self._origin or time < begins - 8:
                return
            back = 2 * back or 1

    def _read_to_first_frame(self) -> float | Fraction:
        """When the first frame from here on is shown; infinity if there is none.

        What is read for it is kept: a second seek to the same place may end elsewhere.
        """
        self._read, self._packets = [], self._demuxed()
        for packet, frames in self._packets:
            self._read.append((packet, frames))
            if frames:
                return 0 if frames[0].pts is None else frames[0].pts * self._time_base
        return math.inf

    def _demuxed(self) -> Iterator[tuple[Any, list[Any]]]:
        """The packets of all tracks, those of the video with the frames that they complete."""
        for packet in self._container.demux(self._track, *self.others):
            if packet.pts is not None:
                begin, end = packet.pts, packet.pts + (packet.duration or 0)
                self._begun = min(self._begun, Fraction(begin * packet.time_base))
                self._ended = max(self._ended, Fraction(end * packet.time_base))
            if packet.stream is not self._track:
                yield packet, []
                continue
            if packet.is_corrupt:
                yield packet, self._frames_of(None)  # those that the decoder still holds
                if self._duration is not None and self._count / self._rate >= self._duration:
                    return  # all of the part is there
                raise UserError(self._cut_short())
            yield packet, self._frames_of(packet)

    @property
    def metadata(self) -> dict[str, str]:
        """Of the whole file, without what describes the file itself."""
        return of_the_content(self._container.metadata)

    @property
    def track_metadata(self) -> dict[str, str]:
        """Of the video track."""
        return of_the_content(self._track.metadata)

    @property
    def disposition(self) -> Any:
        """Of the video track."""
        return self._track.disposition

    @property
    def chapters(self) -> list[Any]:
        """Of the whole file, moved with the part that is read."""
        if not self._start and self._duration is None:
            return self._container.chapters()
        kept = []
        for chapter in self._container.chapters():
            unit = chapter["time_base"]
            begin, end = (self._moved(chapter[key] * unit) for key in ("start", "end"))
            if end > 0 and (self._duration is None or begin < self._duration):
                begin, end = max(begin, Fraction(0)), min(end, self._duration or end)
                kept.append({**chapter, "start": round(begin / unit), "end": round(end / unit)})
        return kept

    def _moved(self, time: Fraction) -> Fraction:
        return time - self._shift

    def _decode(self) -> Iterator[Picture]:
        whole = not self._start and self._duration is None
        packets: list[Any] = []
        last = None
        video_packets = 0
        read, self._read = self._read, []
        for packet, frames in itertools.chain(read, self._packets):
            if packet.stream is not self._track:
                if packet.dts is None and not packet.size:  # the end of a track
                    continue
                if whole or self._in_part(packet):
                    self._move(packet)
                    packets.append(packet)
                continue
            video_packets += packet.size > 0
            for frame in frames:
                pts = frame.pts
                if pts is None:  # raw streams have no timestamps
                    pts = 0 if last is None else last + self._ticks
                if whole and not self._count and pts < 0:
                    # Before zero MP4 shows no frame, and Matroska gives none a time.
                    self._shift = pts * self._time_base
                    for packet in packets:
                        self._move(packet)
                time = self._moved(pts * self._time_base)
                if time < 0 and not whole:
                    continue
                if self._duration is not None and time >= self._duration:
                    self.trailing = packets + self._rest_of_part(self._duration)
                    return
                pts = round(time / self._time_base)
                if whole and last is not None and (last - pts) * self._time_base > 1:
                    raise UserError(
                        f"{self.path}: its timestamps start again after {self._count} frames, as "
                        "where files were joined as they are; write it anew with FFmpeg, which "
                        "gives them an order"
                    )
                if last is not None and pts <= last:  # a frame cannot be shown before another
                    pts = last + 1
                last = pts
                if not self._count:
                    self._describe(frame)
                self._count += 1
                yield self._picture(frame, pts, packets)
                packets = []
        self.trailing = packets
        # Fewer packets alone say nothing: of a trimmed video those before the cut are not given.
        length = self._length()
        if whole and video_packets < self._track.frames and length and last is not None:
            missing = length - last * self._time_base
            if missing > 2.5 / float(self._rate):
                raise UserError(self._cut_short())
        # Matroska's demuxer takes the end of the file for that of the video. The header says how
        # long the longest track is, the lead-in of its sound included, but for live recordings.
        if whole and "matroska" in self._container.format.name and self._container.duration:
            missing = Fraction(self._container.duration, 1_000_000) - (self._ended - self._begun)
            if missing > 2.5 / float(self._rate):
                raise UserError(self._cut_short())

    def _rest_of_part(self, duration: Fraction) -> list[Any]:
        """The packets of other tracks that belong to the part and stand behind its last frame."""
        rest: list[Any] = []
        if not self.others:
            return rest
        with contextlib.suppress(av.FFmpegError, OSError):  # damage behind the part is none of it
            for packet in self._container.demux(self._track, *self.others):
                if packet.dts is None:
                    continue
                if packet.stream is not self._track and self._in_part(packet):
                    self._move(packet)
                    rest.append(packet)
                elif self._moved(packet.dts * packet.time_base) > duration + _INTERLEAVED_S:
                    break
        return rest

    def _frames_of(self, packet: Any) -> list[Any]:
        """The frames that a packet completes; with an empty one or None, all that are left."""
        decoder = self._alpha_decoder or self._track.codec_context
        return decoder.decode(packet if packet is not None and packet.size else None)

    def _in_part(self, packet: Any) -> bool:
        """Whether a packet lies in the part that is read."""
        if packet.pts is None:
            return False
        time = self._moved(packet.pts * packet.time_base)
        return time >= 0 and (self._duration is None or time < self._duration)

    def _move(self, packet: Any) -> None:
        """Moves a packet's timestamps as the frames are moved."""
        if not self._shift:
            return
        shift = round(self._shift / packet.time_base)
        if packet.pts is not None:
            packet.pts -= shift
        if packet.dts is not None:
            packet.dts -= shift

    @property
    def _ticks(self) -> int:
        """How long a frame lasts on average, in units of the time base."""
        return max(1, round(1 / (self._rate * self._time_base)))

    def _describe(self, frame: Any) -> None:
        """Sets ``info`` from the first frame: some facts stand in frames alone."""
        format_name, layout, has_alpha = pixel_layout(frame, self.path)
        track = self._track
        context = track.codec_context
        codec = context.codec.canonical_name
        aspect = track.sample_aspect_ratio
        frames = track.frames or None
        if frames is None or self._start or self._duration is not None:
            length = self._length()
            frames = None if length is None else max(1, round(length * self._rate))
        self.info = VideoInfo(
            height=frame.height,
            width=frame.width,
            pixel_format=format_name,
            layout=layout,
            has_alpha=has_alpha,
            rate=self._rate,
            time_base=self._time_base,
            codec=codec,
            sample_aspect=Fraction(aspect) if aspect else None,
            # Some facts stand in the frames, some in the container alone.
            colour=(
                int(frame.color_range or context.color_range or layout.full_range * FULL_RANGE),
                specified(frame.colorspace, context.colorspace),
                specified(frame.color_primaries, context.color_primaries),
                specified(frame.color_trc, context.color_trc),
            ),
            display_matrix=display_matrix(frame),
            frames=frames,
            lost=lost_with(frame),
        )
        # Decoders give every GIF and every palette with alpha, whether or not it is used.
        if has_alpha and (frame.format.has_palette or codec == "gif") and self._is_opaque():
            self.info = without_alpha(self.info)

    def _is_opaque(self) -> bool:
        """Whether no pixel of the whole file is transparent; decodes it for that."""
        with (
            self.path.open("rb") as file,
            av.open(file, "r", container_options=_OPTIONS, **any_tags()) as container,
            contextlib.suppress(av.FFmpegError),  # damage is said when it is read
        ):
            track: Any = container.streams[self._track.index]
            track.codec_context.options = {"max_pixels": str(self._max_pixels)}
            for frame in container.decode(track):
                _, alpha = frame_planes(frame, "rgba")
                if alpha is not None and alpha.min() < 255:
                    return False
        return True

    def _length(self) -> Fraction | None:
        """How many seconds will be read, if the file says how long it is."""
        if self._track.duration:
            length = self._track.duration * self._time_base
        elif self._container.duration:
            length = Fraction(self._container.duration, 1_000_000)
        else:
            return None
        length -= self._start
        if self._duration is not None:
            length = min(length, self._duration)
        return length

    def _picture(self, frame: Any, pts: int, packets: list[Any]) -> Picture:
        info = self.info
        if (frame.height, frame.width) != (info.height, info.width):
            raise UserError(
                f"{self.path}: changes its size from {info.width}x{info.height} to "
                f"{frame.width}x{frame.height} at frame {self._count}; restore the parts apart"
            )
        planes, alpha = frame_planes(frame, info.pixel_format)
        lost = lost_with(frame)  # not every frame has captions
        return Picture(planes, alpha, pts, frame.duration or 0, packets=packets, lost=lost)

    def _refuse_if_large(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise UserError(
                f"{self.path}: frames of {width}x{height} are over --max-pixels={self._max_pixels}"
            )

    def _cut_short(self) -> str:
        seconds = math.floor(1000 * self._count / self._rate) / 1000
        good = f" (--duration={seconds:.10g} restores them)"
        return (
            f"{self.path}: is cut short or damaged after {self._count} frames"
            f"{good if self._count else ''}"
        )

    @contextlib.contextmanager
    def _explained(self, otherwise: str = "") -> Iterator[None]:
        """Turns what FFmpeg and the system say into one line."""
        try:
            yield
        except PermissionError as error:
            raise UserError(f"{self.path}: may not be read (permission denied)") from error
        except (av.FFmpegError, OSError) as error:
            what = otherwise or f"cannot be decoded after frame {self._count}"
            raise UserError(f"{self.path}: {what}: {reason(error)}") from error


def _with_first(pictures: Iterator[Picture]) -> Iterator[Picture] | None:
    """The same pictures with the first one decoded now; None if there is none."""
    first = next(pictures, None)
    if first is None:
        return None

    def all_of_them() -> Iterator[Picture]:
        yield first
        yield from pictures

    return all_of_them()
