"""Video files in and out by PyAV: frames, timestamps, sound, and all that a container says of them.

Frames are handed on in the arrays that the file's pixel format has (jaxdeblur/pixels.py), so that
8 to 16 bits, grey, alpha, sub-sampling, colour matrix and range are kept. Sound, subtitle and other
tracks are copied packet by packet. What a container cannot hold is said in ``VideoWriter.lost``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import Interpolation

from jaxdeblur.errors import UserError
from jaxdeblur.images import MAX_PIXELS
from jaxdeblur.pixels import PixelLayout, Plane

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
    ".nut": "nut",
}
"""The suffixes of the videos that can be written, with FFmpeg's name of their container."""

# Demuxers that read the file they are given and nothing else: playlists can name other files.
_READABLE = (
    "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif,m4v,h264,hevc,obu,ivf,nut,mxf,dv,yuv4mpegpipe"
)

# The encoder for each codec that is written again as it was read.
_ENCODERS = {
    "h264": "libx264",
    "hevc": "libx265",
    "vp8": "libvpx-vp9",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
    "ffv1": "ffv1",
    "prores": "prores_ks",
    "mjpeg": "mjpeg",
    "png": "png",
}
# Quality that hides the second compression; the scales of the encoders differ.
_CRF = {"libx264": 17, "libx265": 19, "libvpx-vp9": 22, "libsvtav1": 22}
_OPTIONS = {
    "libx265": {"x265-params": "log-level=none"},
    "libvpx-vp9": {"b": "0", "row-mt": "1", "cpu-used": "4", "deadline": "good"},
    "libsvtav1": {"preset": "8"},
    "mjpeg": {"qmin": "1", "qmax": "3", "huffman": "optimal"},
}
# The encoder where H.264 would be taken and frames have alpha, of which it has none.
_WITH_ALPHA = {"matroska": "ffv1", "nut": "ffv1", "avi": "ffv1", "mov": "prores_ks"}
# Seconds by which packets of one moment may lie apart in a file: as much as FFmpeg's muxer lets.
_INTERLEAVED_S = 10
# Containers that count time in fixed steps, and how many a second has.
_TICKS = {"matroska": 1000, "webm": 1000, "mpegts": 90000}
_IN_TRANSPORT_STREAMS = {
    *("aac", "aac_latm", "mp1", "mp2", "mp3", "ac3", "eac3", "dts", "truehd", "opus"),
    *("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "h264", "hevc", "mpeg2video"),
}
# Kr and Kb of the colour matrices, by FFmpeg's numbers (H.273, table 4).
_MATRICES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
_NO_PROFILE = "colour profile (a video has none)"
# What may stand beside the pixels of a frame and is not written again, by PyAV's name of its kind.
_BESIDE_PIXELS = {
    "MASTERING_DISPLAY_METADATA": "HDR mastering metadata",
    "CONTENT_LIGHT_LEVEL": "HDR mastering metadata",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "ICC_PROFILE": _NO_PROFILE,
    "SPHERICAL": "projection of a 360-degree video",
    "STEREO3D": "arrangement of the views of a stereo video",
    "A53_CC": "closed captions inside the frames",
}
_UNSPECIFIED = 2
_LIMITED_RANGE, _FULL_RANGE = 1, 2
_SUBSAMPLINGS = {
    (1, 1): "444",
    (1, 2): "422",
    (2, 2): "420",
    (2, 1): "440",
    (1, 4): "411",
    (4, 4): "410",
}
# Metadata that describes the old file, or that MP4 holds without being asked to hold any key.
_OF_THE_FILE = {
    *("major_brand", "minor_version", "compatible_brands", "encoder", "duration"),
    # What mkvmerge counts of each track.
    *("bps", "number_of_frames", "number_of_bytes", "_statistics_tags"),
    *("_statistics_writing_app", "_statistics_writing_date_utc"),
}
_KNOWN_TO_MP4 = {
    *("title", "artist", "album_artist", "composer", "album", "date", "comment", "genre"),
    *("copyright", "grouping", "lyrics", "description", "synopsis", "show", "episode_id"),
    *("network", "keywords", "creation_time", "location", "language", "handler_name", "vendor_id"),
}


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a video is, apart from its frames.

    Attributes:
      height, width: of the frames as they are stored.
      pixel_format: FFmpeg's name of the format in which frames are handed over.
      layout: what the arrays of such a frame mean.
      has_alpha: frames carry alpha.
      rate: average frames a second.
      time_base: the unit of timestamps, in seconds.
      codec: FFmpeg's name of the codec; None if the frames did not come from a video.
      sample_aspect: the shape of a pixel, width over height.
      colour: FFmpeg's numbers of range, matrix, primaries and transfer function.
      display_matrix: rotation and flips, as nine integers.
      frames: how many frames there are, if the file says.
      lost: what of the source no file can take over, in words.
    """

    height: int
    width: int
    pixel_format: str
    layout: PixelLayout
    has_alpha: bool
    rate: Fraction
    time_base: Fraction
    codec: str | None = None
    sample_aspect: Fraction | None = None
    colour: tuple[int, int, int, int] = (0, _UNSPECIFIED, _UNSPECIFIED, _UNSPECIFIED)
    display_matrix: tuple[int, ...] | None = None
    frames: int | None = None
    lost: tuple[str, ...] = ()

    @property
    def turned(self) -> bool:
        """A player shows the frames turned by a quarter."""
        return self.display_matrix is not None and self.display_matrix[0] == 0


@dataclasses.dataclass
class Picture:
    """One frame on its way from a source to a target.

    Attributes:
      planes: its arrays, as the layout says.
      alpha: ``H W``, or None.
      pts: when it is shown, in units of the source's time base.
      duration: how long, in the same units; 0 if unknown.
      name: the file that it came from and the name of the one it goes to, for images.
      packets: of other tracks, that stand before it in the file.
      extra: what an image file says beside its pixels, to be written again.
      lost: what of the frame no file can take over, in words.
    """

    planes: tuple[Plane, ...]
    alpha: Plane | None = None
    pts: int = 0
    duration: int = 0
    name: str = ""
    packets: list[Any] = dataclasses.field(default_factory=list)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
    lost: tuple[str, ...] = ()


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
                av.open(
                    file,
                    "r",
                    metadata_errors="replace",
                    container_options={"format_whitelist": _READABLE},
                )
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
        self._time_base: Fraction = self._track.time_base or Fraction(1, 1_000_000)
        self._rate = self._track.average_rate or self._track.guessed_rate or Fraction(25)
        self._count = 0
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
            self._container.seek(round(time * 1_000_000), backward=True, any_frame=False)
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
        return _of_the_content(self._container.metadata)

    @property
    def track_metadata(self) -> dict[str, str]:
        """Of the video track."""
        return _of_the_content(self._track.metadata)

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
                begin = max(begin, Fraction(0))
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
        if whole and not _matroska_is_whole(self.path):
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
            sample_aspect=aspect if aspect else None,
            # Some facts stand in the frames, some in the container alone.
            colour=(
                int(frame.color_range or context.color_range or layout.full_range * _FULL_RANGE),
                _specified(frame.colorspace, context.colorspace),
                _specified(frame.color_primaries, context.color_primaries),
                _specified(frame.color_trc, context.color_trc),
            ),
            display_matrix=_display_matrix(frame),
            frames=frames,
            lost=_lost_with(frame),
        )
        # Decoders give every GIF and every palette with alpha, whether or not it is used.
        if has_alpha and (frame.format.has_palette or codec == "gif") and self._is_opaque():
            self.info = without_alpha(self.info)

    def _is_opaque(self) -> bool:
        """Whether no pixel of the whole file is transparent; decodes it for that."""
        with (
            self.path.open("rb") as file,
            av.open(file, "r", container_options={"format_whitelist": _READABLE}) as container,
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
        lost = _lost_with(frame)  # not every frame has captions
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
            raise UserError(f"{self.path}: {what}: {_reason(error)}") from error


class VideoWriter:
    """Writes a video: frames encoded again, everything else as it was.

    Attributes:
      lost: what the container or codec cannot hold, in words.
      encoder: FFmpeg's name of the encoder.
      pixel_format: FFmpeg's name of the format in the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        info: VideoInfo,
        *,
        source: VideoReader | None = None,
        codec: str | None = None,
        crf: int | None = None,
        name: str | None = None,
    ):
        """Opens the file.

        Args:
          path: where to write; its suffix chooses the container.
          info: what the frames are.
          source: whose other tracks, metadata and chapters are taken over.
          codec: FFmpeg's name of an encoder; by default the source's codec if the container takes
            it, else H.264, or VP9 in WebM.
          crf: constant quality, smaller is better; by default about invisible.
          name: the file's name in messages, if it differs from ``path``.

        Raises:
          UserError: the options do not go together, or the file cannot be written.
        """
        self.path = Path(path)
        self._name = name or str(path)
        self.lost = list(info.lost)
        self._count = 0
        if info.has_alpha and info.pixel_format.startswith("gray"):
            self.lost.append("alpha (no video format has it beside grey)")
            info = without_alpha(info)
        self._info = info
        container_name = CONTAINERS.get(self.path.suffix.lower())
        if container_name is None:
            raise UserError(
                f"{self._name}: no video format that can be written; use {', '.join(CONTAINERS)}"
            )
        self._open = contextlib.ExitStack()
        try:
            with self._explained():
                self._prepare(container_name, source, codec, crf)
        except BaseException:
            self.abandon()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def write(self, picture: Picture) -> None:
        """Encodes a frame, after the packets that stand before it."""
        if "icc_profile" in picture.extra and _NO_PROFILE not in self.lost:
            self.lost.append(_NO_PROFILE)
        with self._explained():
            self._count += 1
            self.copy(picture.packets)
            frame = build_frame(picture, self._info)
            if frame.format.name != self.pixel_format:
                # With these flags the conversion has no bias; by default it darkens by 0.7 levels.
                exact = (
                    Interpolation.BICUBIC
                    | Interpolation.ACCURATE_RND
                    | Interpolation.FULL_CHR_H_INT
                    | Interpolation.FULL_CHR_H_INP
                )
                frame = frame.reformat(
                    format=self.pixel_format, interpolation=exact, **self._convert
                )
            frame.pts, frame.time_base = picture.pts, self._info.time_base
            if picture.duration:
                self._durations[picture.pts] = picture.duration
            self._mux(self._track.encode(frame))

    def copy(self, packets: Sequence[Any]) -> None:
        """Copies packets of other tracks, bit for bit."""
        with self._explained():
            for packet in packets:
                target = self._copies.get(packet.stream.index)
                if target is not None:
                    packet.stream = target
                    self._container.mux(packet)

    def close(self) -> None:
        """Finishes the file; raises :class:`UserError` if it could not be written whole."""
        try:
            with self._explained():
                packets = self._track.encode(None)
                if self.encoder == "libx265" and self._count < 3:
                    # It leaves their times of decoding to chance; so few frames have one order.
                    for packet in packets:
                        packet.dts = packet.pts
                self._mux(packets)
                self._container.close()
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes the file as it is."""
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._open.close()

    def _prepare(
        self, container_name: str, source: VideoReader | None, codec: str | None, crf: int | None
    ) -> None:
        # Through a file of our own, every failed write is an exception; FFmpeg may lose the last.
        self._file: BinaryIO = self._open.enter_context(self.path.open("wb"))
        options = {"avoid_negative_ts": "disabled"}  # a shift would move every timestamp
        metadata = source.metadata if source else {}
        if container_name in ("mp4", "mov") and not metadata.keys() <= _KNOWN_TO_MP4:
            options["movflags"] = "use_metadata_tags"
        if self.path.suffix.lower() in (".m2ts", ".mts"):  # as camcorders and Blu-ray write it
            options["mpegts_m2ts_mode"] = "1"
        self._container: Any = av.open(
            self._file, "w", format=container_name, container_options=options
        )
        self._open.callback(_close_quietly, self._container)
        self.encoder = self._default_encoder(container_name)
        if codec is not None:
            try:  # FFmpeg takes the name of a codec for that of its encoder: h264 is libx264
                self.encoder = av.codec.Codec(codec, "w").name
            except ValueError as error:
                raise UserError(f"--codec={codec}: no such encoder; try libx264") from error
        self._track = self._add_video(container_name, codec, crf)
        self._durations: dict[int, int] = {}
        self._copies: dict[int, Any] = {}
        if source is not None:
            self._take_over(source, container_name)

    def _default_encoder(self, container_name: str) -> str:
        encoder = _ENCODERS.get(self._info.codec or "", "libx264")
        if container_name == "webm":
            return encoder if encoder in ("libvpx-vp9", "libsvtav1") else "libvpx-vp9"
        if self._info.has_alpha and encoder == "libx264":
            return _WITH_ALPHA.get(container_name, encoder)
        if container_name == "mov" and encoder in ("libvpx-vp9", "libsvtav1"):
            return "libx264"  # FFmpeg lists them for QuickTime, and then refuses them
        return encoder if encoder in self._container.supported_codecs else "libx264"

    def _add_video(self, container_name: str, codec: str | None, crf: int | None) -> Any:
        info, encoder = self._info, self.encoder
        try:
            formats = [f.name for f in av.codec.Codec(encoder, "w").video_formats or ()]
        except ValueError as error:
            raise UserError(
                f"{self._name}: this FFmpeg has no encoder {encoder}; name another by --codec"
            ) from error
        if not formats:
            raise UserError(f"--codec={codec}: not an encoder of videos; try libx264")
        if encoder == "libvpx-vp9":
            # FFmpeg lists more with alpha than it takes, and two containers have a place for it.
            with_alpha = info.has_alpha and container_name in ("webm", "matroska")
            plain = [name for name in formats if not _has_alpha(name)]
            formats = ["yuva420p"] if with_alpha else plain
        options = dict(_OPTIONS.get(encoder, {}))
        os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints a page otherwise
        if encoder in _CRF:
            options["crf"] = str(_CRF[encoder] if crf is None else crf)
        elif crf is not None:
            raise UserError(
                f"--crf: {encoder} has no such setting; it applies to {', '.join(_CRF)}"
            )
        self.pixel_format = self._choose_format(formats)
        try:
            track = self._container.add_stream(encoder, rate=info.rate, options=options)
        except (av.FFmpegError, ValueError) as error:
            what = f"{self._name}: {container_name} cannot hold {encoder}; use another suffix"
            if codec is not None:
                what = (
                    f"--codec={codec}: {container_name} cannot hold it; use another codec or suffix"
                )
            raise UserError(what) from error
        track.width, track.height, track.pix_fmt = info.width, info.height, self.pixel_format
        context = track.codec_context
        context.time_base = info.time_base
        context.thread_count = 0
        if encoder == "libx265" and container_name in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # as cameras write it: Apple's players know no other
        if container_name == "avi":
            context.max_b_frames = 0  # AVI has no timestamps, so frames cannot be reordered
        if info.sample_aspect:
            context.sample_aspect_ratio = info.sample_aspect
        colour_range, matrix, primaries, transfer = self._colour
        context.color_range, context.colorspace = colour_range, matrix
        context.color_primaries, context.color_trc = primaries, transfer
        if info.display_matrix:
            track.set_display_matrix(info.display_matrix)
            if container_name not in ("mp4", "mov", "matroska", "webm"):
                self.lost.append(f"rotation ({container_name} has none)")
        if container_name == "avi":
            self.lost.append("timestamps, other than the average rate (AVI has none)")
        elif (info.time_base * _TICKS.get(container_name, 0)).denominator > 1:
            unit = f"1/{_TICKS[container_name]} s"
            self.lost.append(f"timestamps finer than {unit} ({container_name} counts in it)")
        return track

    def _choose_format(self, formats: list[str]) -> str:
        """The pixel format in the file: that of the frames, or the nearest that loses least."""
        info = self._info
        wanted = info.pixel_format
        odd = [info.height % 2, info.width % 2]
        # Whatever the conversion, it is no conversion of the range.
        scale = _FULL_RANGE if info.layout.full_range else _LIMITED_RANGE
        self._colour = info.colour
        self._convert = {"src_color_range": scale, "dst_color_range": scale}
        choice = wanted
        if self.encoder in ("libx264", "libx265") and any(odd) and info.layout.chroma != (1, 1):
            rows, columns = info.layout.chroma
            if (rows > 1 and odd[0]) or (columns > 1 and odd[1]):
                # These encoders refuse odd sizes with chroma shared between pixels.
                choice = wanted.replace(_SUBSAMPLINGS[(rows, columns)], "444", 1)
        is_rgb = info.layout.kind in ("rgb", "gbr")
        if is_rgb and not any(odd) and self.encoder in _CRF:
            # What players show: they rarely take RGB or 4:4:4.
            choice = "yuv420p10le" if info.layout.bits > 8 else "yuv420p"
            if info.has_alpha and "yuva420p" in formats:
                choice = choice.replace("yuv", "yuva")
        if choice not in formats:
            choice = _nearest_format(choice, formats)
        if is_rgb and av.VideoFormat(choice, 16, 16).components[0].is_luma:
            # RGB becomes YUV: by the matrix and range that players assume. What is known of its
            # primaries and transfer function stays, as of HDR, whose primaries have their matrix.
            _, _, primaries, transfer = info.colour
            matrix = 9 if primaries == 9 else 1 if info.height >= 720 else 6
            self._colour = (
                _LIMITED_RANGE,
                matrix,
                _specified(primaries, matrix),
                _specified(transfer, matrix),
            )
            self._convert |= {"dst_colorspace": matrix, "dst_color_range": _LIMITED_RANGE}
        if choice != wanted:
            chosen, given = av.VideoFormat(choice, 16, 16), av.VideoFormat(wanted, 16, 16)
            if info.has_alpha and not _has_alpha(choice):
                self.lost.append(f"alpha ({self.encoder} has none here)")
            if chosen.components[0].bits < given.components[0].bits:
                self.lost.append(f"more than {chosen.components[0].bits} bits")
        return choice

    def _take_over(self, source: VideoReader, container_name: str) -> None:
        container = self._container
        container.metadata.update(source.metadata)
        self._track.metadata.update(source.track_metadata)
        self._track.disposition = source.disposition
        chapters = source.chapters
        if chapters:
            if container_name in ("mp4", "mov", "matroska", "webm", "nut"):
                container.set_chapters(chapters)
            else:
                self.lost.append("chapters")
        for stream in source.others:
            # MP4's track of the time code is written again from the video track's metadata.
            if stream.type == "data" and "timecode" in stream.metadata:
                continue
            codec = stream.codec_context.name if stream.codec_context else stream.type
            if not self._can_hold(stream, container_name):
                kind = {"audio": "sound"}.get(stream.type, stream.type)
                self.lost.append(f"{kind} track {stream.index} ({codec})")
                continue
            copy = container.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(_of_the_content(stream.metadata))
            copy.disposition = stream.disposition
            self._copies[stream.index] = copy
        try:
            container.start_encoding()
        except av.FFmpegError as error:
            raise UserError(
                f"{self._name}: {container_name} cannot hold the tracks of {source.path} with "
                f"{self.encoder} ({_reason(error)}); use {source.path.suffix} or --codec"
            ) from error

    def _can_hold(self, stream: Any, container_name: str) -> bool:
        if stream.type == "attachment":
            return container_name == "matroska"
        if stream.codec_context is None:  # FFmpeg knows no codec by which to write it
            return False
        codec = stream.codec_context.codec
        if container_name == "mpegts":  # FFmpeg does not list what transport streams hold
            return codec.canonical_name in _IN_TRANSPORT_STREAMS
        return container_name == "nut" or codec.name in self._container.supported_codecs

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Encoders pass on timestamps, but not how long the last frame lasts.
            duration = self._durations.pop(packet.pts, None)
            if duration is not None:
                packet.duration = duration
            self._container.mux(packet)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self._name}: cannot be written: {_reason(error)}") from error


def _matroska_is_whole(path: Path) -> bool:
    """Whether a Matroska or WebM file is as long as it says; others do not say it so.

    The demuxer takes the end of the file for the end of the video. A file is a header and a
    segment, each with its size before it (RFC 8794, section 4; RFC 9559, section 5).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"\x1a\x45\xdf\xa3":
            return True
        header = _ebml_size(file)
        if header is None or header > size:
            return True
        file.seek(header, os.SEEK_CUR)
        if file.read(4) != b"\x18\x53\x80\x67":
            return True
        segment = _ebml_size(file)
        return segment is None or file.tell() + segment <= size


def _ebml_size(file: BinaryIO) -> int | None:
    """The size that stands here; None if it is left open, as in a live recording."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    bits = 7 * length
    value = int.from_bytes(first + file.read(length - 1), "big") & (2**bits - 1)
    return None if value == 2**bits - 1 else value


def pixel_layout(frame: Any, path: Path) -> tuple[str, PixelLayout, bool]:
    """The format in which frames like this one are handed over, its layout, and if it has alpha."""
    pixel_format = frame.format
    components = pixel_format.components
    bits, has_alpha = components[0].bits, any(c.is_alpha for c in components)
    a = "a" if has_alpha else ""
    if bits > 16 or pixel_format.name.endswith(("f16le", "f16be")):
        raise UserError(f"{path}: pixels of format {pixel_format.name} are not supported")
    deep = f"{bits}le" if bits > 8 else ""
    if pixel_format.has_palette:
        return "rgba", PixelLayout("rgb"), True
    if pixel_format.is_rgb:
        if pixel_format.is_planar:
            return f"gbr{a}p{deep}", PixelLayout("gbr", bits), has_alpha
        if bits > 8:
            return ("rgba64le" if has_alpha else "rgb48le"), PixelLayout("rgb", 16), has_alpha
        return ("rgba" if has_alpha else "rgb24"), PixelLayout("rgb"), has_alpha
    unspecified = frame.color_range == 0
    if len(components) <= 2:  # grey
        if has_alpha:
            return ("rgba64le" if bits > 8 else "rgba"), PixelLayout("rgb", 16 if deep else 8), True
        full = frame.color_range == _FULL_RANGE or unspecified
        bits = max(bits, 8)
        return f"gray{deep}", PixelLayout("grey", bits, full_range=full), False
    sized = av.VideoFormat(pixel_format.name, 16, 16).components[1]
    chroma = (16 // sized.height, 16 // sized.width)
    if chroma not in _SUBSAMPLINGS:
        raise UserError(f"{path}: pixels of format {pixel_format.name} are not supported")
    full = pixel_format.name.startswith("yuvj") or frame.color_range == _FULL_RANGE
    assumed = _MATRICES[1] if frame.height >= 720 else _MATRICES[6]
    weights = _MATRICES.get(int(frame.colorspace), assumed)
    layout = PixelLayout("yuv", bits, chroma, weights, full)
    return f"yuv{a}{_SUBSAMPLINGS[chroma]}p{deep}", layout, has_alpha


def frame_planes(frame: Any, pixel_format: str) -> tuple[tuple[Plane, ...], Plane | None]:
    """The arrays of a decoded frame, and its alpha."""
    # FFmpeg's yuvj420p is yuv420p of full range, which the layout says.
    if frame.format.name.replace("yuvj", "yuv") != pixel_format:
        frame = frame.reformat(format=pixel_format)
    arrays = [_plane_array(plane, frame.format) for plane in frame.planes]
    has_alpha = any(c.is_alpha for c in frame.format.components)
    if not frame.format.is_planar and frame.format.is_rgb:
        pixels = arrays[0]
        alpha = np.ascontiguousarray(pixels[..., 3]) if has_alpha else None
        return (np.ascontiguousarray(pixels[..., :3]),), alpha
    alpha = arrays.pop() if has_alpha else None
    return tuple(arrays), alpha


def build_frame(picture: Picture, info: VideoInfo) -> Any:
    """A frame for the encoder from a picture's arrays."""
    frame: Any = av.VideoFrame(info.width, info.height, info.pixel_format)
    arrays = list(picture.planes)
    if info.has_alpha:
        alpha = picture.alpha
        if alpha is None:  # an image without, among others
            alpha = np.full(arrays[0].shape[:2], 2**info.layout.bits - 1, info.layout.dtype)
        if info.layout.kind == "rgb":
            arrays = [np.concatenate([arrays[0], alpha[..., None]], axis=-1)]
        else:
            arrays.append(alpha)
    for plane, array in zip(frame.planes, arrays, strict=True):
        rows = array.reshape(array.shape[0], -1)
        target = np.frombuffer(plane, array.dtype).reshape(array.shape[0], -1)
        target[:, : rows.shape[1]] = rows
    frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc = info.colour
    return frame


def _display_matrix(frame: Any) -> tuple[int, ...] | None:
    """How a frame is turned and flipped (``VideoInfo``); None if not at all."""
    try:
        for side in frame.side_data:
            if side.type.name == "DISPLAYMATRIX":
                return tuple(int(x) for x in np.frombuffer(side, np.int32))
    except ValueError:  # beside the frame stands a kind that PyAV has no name for, as EXIF
        angle = math.radians(frame.rotation)
        cosine, sine = round(65536 * math.cos(angle)), round(65536 * math.sin(angle))
        if frame.rotation:
            return (cosine, -sine, 0, sine, cosine, 0, 0, 0, 1 << 30)
    return None


def _lost_with(frame: Any) -> tuple[str, ...]:
    """What a decoded frame says that no frame is written with, in words."""
    try:
        lost = [_BESIDE_PIXELS.get(side.type.name, "") for side in frame.side_data]
    except ValueError:
        lost = ["what stands beside the pixels of its frames (of an unknown kind)"]
    if frame.interlaced_frame:
        lost.append("interlacing (frames are written as progressive)")
    return tuple(dict.fromkeys(filter(None, lost)))


def without_alpha(info: VideoInfo) -> VideoInfo:
    """The same video without alpha."""
    if not info.has_alpha:
        return info
    packed = {"rgba": "rgb24", "rgba64le": "rgb48le"}
    planar = info.pixel_format.replace("yuva", "yuv").replace("gbra", "gbr")
    pixel_format = packed.get(info.pixel_format, planar)
    return dataclasses.replace(info, pixel_format=pixel_format, has_alpha=False)


def _plane_array(plane: Any, pixel_format: Any) -> Plane:
    deep = pixel_format.components[0].bits > 8
    rows = np.frombuffer(plane, np.uint16 if deep else np.uint8).reshape(plane.height, -1)
    if pixel_format.is_rgb and not pixel_format.is_planar:
        channels = len(pixel_format.components)
        return rows[:, : plane.width * channels].reshape(plane.height, plane.width, channels)
    return np.ascontiguousarray(rows[:, : plane.width])


def _nearest_format(wanted: str, formats: list[str]) -> str:
    """The format of ``formats`` into which ``wanted`` turns with the least loss."""
    best: Any
    best, _ = av.codec.codec.find_best_pix_fmt_of_list(formats, wanted, has_alpha=True)
    return best.name


def _has_alpha(pixel_format: str) -> bool:
    return any(c.is_alpha for c in av.VideoFormat(pixel_format, 16, 16).components)


def _with_first(pictures: Iterator[Picture]) -> Iterator[Picture] | None:
    """The same pictures with the first one decoded now; None if there is none."""
    first = next(pictures, None)
    if first is None:
        return None

    def all_of_them() -> Iterator[Picture]:
        yield first
        yield from pictures

    return all_of_them()


def _of_the_content(metadata: dict[str, str]) -> dict[str, str]:
    # MP4's demuxer gives texts twice, the second time with their language at the end of the key.
    twice = {key for key in metadata if key[:-4] in metadata and key[-4:] in ("-eng", "-und")}
    return {
        key: value
        for key, value in metadata.items()
        if key.lower().removesuffix("-eng") not in _OF_THE_FILE and key not in twice
    }


def _specified(of_frame: int, of_container: int) -> int:
    return int(of_container if of_frame == _UNSPECIFIED else of_frame)


def _close_quietly(container: Any) -> None:
    with contextlib.suppress(av.FFmpegError, OSError, ValueError):
        container.close()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
