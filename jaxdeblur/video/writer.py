"""Writes videos with PyAV: encodes the frames again and copies all other packets unchanged.

``VideoWriter.lost`` lists what a container cannot hold.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from jaxdeblur.errors import UserError
from jaxdeblur.video.ffmpeg import (
    any_tags,
    av,
    build_frame,
    colours_in,
    is_cover,
    of_the_content,
    reason,
)
from jaxdeblur.video.formats import CONTAINERS
from jaxdeblur.video.image_metadata import cicp_of, lose_extra
from jaxdeblur.video.picture import Picture, PictureTarget, VideoInfo
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.timecode import later

# The encoder for each codec that the output keeps from the input.
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
# Quality that hides the second compression; the encoders' scales differ.
_CRF = {"libx264": 17, "libx264rgb": 17, "libx265": 19, "libvpx-vp9": 22, "libsvtav1": 22}
_OPTIONS = {
    "libx265": {"x265-params": "log-level=none"},
    "libvpx-vp9": {"b": "0", "row-mt": "1", "cpu-used": "4", "deadline": "good"},
    "libsvtav1": {"preset": "8"},
    "mjpeg": {"qmin": "1", "qmax": "3", "huffman": "optimal"},
}
# The encoder in place of H.264, which has no alpha, for frames with alpha.
_WITH_ALPHA = {"matroska": "ffv1", "avi": "ffv1", "mov": "prores_ks"}
_IN_TRANSPORT_STREAMS = {
    *("aac", "aac_latm", "mp1", "mp2", "mp3", "ac3", "eac3", "dts", "truehd", "opus"),
    *("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "h264", "hevc", "mpeg2video"),
}
_KNOWN_TO_MP4 = {
    *("title", "artist", "album_artist", "composer", "album", "date", "comment", "genre"),
    *("copyright", "grouping", "lyrics", "description", "synopsis", "show", "episode_id"),
    *("network", "keywords", "creation_time", "location", "language", "handler_name", "vendor_id"),
}


# The tags that other containers than MP4 and Matroska hold, by FFmpeg's muxers.
_HELD_TAGS = {
    "mpegts": {"service_name", "service_provider"},
    "avi": {
        *("title", "artist", "copyright", "comment", "date", "genre", "album", "track"),
        *("encoded_by", "timecode"),
    },
}
_OF_ANY_TRACK = {"handler_name", "vendor_id", "language"}


class VideoWriter(PictureTarget):
    """Writes a video: encodes the frames again and copies everything else.

    Attributes:
      encoder: FFmpeg's name of the encoder.
      pixel_format: FFmpeg's name of the pixel format in the file.
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
          path: where to write; its suffix, one of ``CONTAINERS``, chooses the container.
          info: the format of the frames.
          source: the video whose other tracks, metadata and chapters are copied.
          codec: FFmpeg's name of an encoder; by default the source's codec if the container
            supports it, else H.264, or VP9 in WebM.
          crf: constant quality, smaller is better; by default the loss is about invisible.
          name: the file's name in messages, if it differs from ``path``.

        Raises:
          UserError: the options are incompatible, or the file cannot be written.
        """
        self._name = name or str(path)
        self.lost = list(info.lost)
        self._info, self._count = info, 0
        self._of_video = source is not None
        self._lasts = 0  # units of AVI that the last frame is shown
        begin = source.container.start_time if source else None
        self._begin, self._last = Fraction(max(0, begin or 0), 1_000_000), -1  # for AVI
        self._path = Path(path)
        suffix = self._path.suffix.lower()
        self._format = CONTAINERS[suffix]
        options = {"avoid_negative_ts": "disabled"}  # a shift would move every timestamp
        tags = of_the_content(source.container.metadata) if source else {}
        if self._format in ("mp4", "mov") and not tags.keys() <= _KNOWN_TO_MP4:
            options["movflags"] = "use_metadata_tags"  # for any name, in a place few players read
        if suffix in (".m2ts", ".mts"):  # as camcorders and Blu-ray write it
            options["mpegts_m2ts_mode"] = "1"
        with contextlib.ExitStack() as opened, self._explained():
            # With a file of our own, every failed write is an exception; FFmpeg may miss the last.
            self._file: BinaryIO = self._path.open("wb")
            opened.callback(_close_quietly, self._file)
            self._container: Any = av.open(
                self._file, "w", format=self._format, container_options=options, **any_tags()
            )
            opened.callback(_close_quietly, self._container)
            self._track: Any = self._add_video(codec, crf)
            self._copies: dict[int, Any] = {}
            # The packets still to be copied, and the time of the last that was.
            self._packets, self._copied = iter(()), -math.inf
            if source is not None:
                self._take_over(source)
            self._open = opened.pop_all()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._open, self._explained():
            if kind is None:
                packets = self._track.encode(None)
                if self.encoder == "libx265" and self._count < 3:
                    # x265 leaves their decoding times to chance; so few frames are not reordered.
                    for packet in packets:
                        packet.dts = packet.pts
                self._container.mux(packets)
                if self._lasts > 1:  # AVI: the muxer fills the frames before with empty ones, too
                    end = av.Packet(0)
                    end.stream, end.time_base = self._track, self._track.codec_context.time_base
                    end.pts = end.dts = self._last + self._lasts - 1
                    self._container.mux(end)
                self._copy_until(math.inf)
                self._container.close()
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, picture: Picture) -> None:
        """Encodes a frame after the packets that precede it; raises UserError on failure."""
        tagged = {"cicp"} if cicp_of(self._info.colour) else set()
        lose_extra(self, picture, tagged, self._path.suffix.lower())
        with self._explained():
            self._copy_until(picture.pts * self._info.time_base)
            frame = build_frame(picture, self._info)
            # With these flags the conversion has no bias; by default it darkens by 0.7 levels.
            way = av.video.reformatter.Interpolation
            exact = way.BICUBIC | way.ACCURATE_RND | way.FULL_CHR_H_INT | way.FULL_CHR_H_INP
            # If nothing is to be converted, this is the same frame.
            frame = frame.reformat(format=self.pixel_format, interpolation=exact, **self._convert)
            frame.pts, frame.duration = picture.pts, picture.duration
            unit = frame.time_base = self._track.codec_context.time_base
            if self._format == "avi":
                # AVI begins at zero, but all tracks of a transport stream begin at some other time.
                time = picture.pts * self._info.time_base
                self._begin = min(self._begin, time)
                self._last = max(self._last + 1, round((time - self._begin) / unit))
                frame.pts, frame.duration = self._last, 1
                self._lasts = round(picture.duration * self._info.time_base / unit)
            self._count += 1
            self._container.mux(self._track.encode(frame))

    def _copy_until(self, time: Fraction | float) -> None:
        """Copies packets of other tracks, bit for bit, up to the first after ``time``."""
        while self._copied <= time and (packet := next(self._packets, None)) is not None:
            self._copied = (packet.dts or 0) * packet.time_base
            if (target := self._copies.get(packet.stream.index)) is not None:
                packet.stream = target
                self._container.mux(packet)

    def _default_encoder(self) -> str:
        encoder = _ENCODERS.get(self._info.codec or "", "libx264")
        if self._keeps_rgb("h264") and self._format in ("mp4", "mov", "matroska"):
            return "libx264rgb"
        if self._format == "webm":
            return encoder if encoder in ("libvpx-vp9", "libsvtav1") else "libvpx-vp9"
        if self._info.has_alpha and encoder == "libx264":
            return _WITH_ALPHA.get(self._format, encoder)
        if self._format == "mov" and encoder in ("libvpx-vp9", "libsvtav1"):
            return "libx264"  # FFmpeg lists them for QuickTime but refuses them
        return encoder if encoder in self._container.supported_codecs else "libx264"

    def _keeps_rgb(self, codec: str) -> bool:
        """Whether the source already is RGB of this codec, which its players thus support."""
        info = self._info
        is_rgb = self._of_video and info.layout.kind == "rgb" and not info.has_alpha
        return is_rgb and info.codec == codec and (codec != "h264" or info.layout.bits == 8)

    def _add_video(self, codec: str | None, crf: int | None) -> Any:
        info = self._info
        wanted = self._default_encoder() if codec is None else codec
        who = f"{self._name}: {wanted}" if codec is None else f"--codec={codec}"
        try:  # FFmpeg also accepts the name of a codec: h264 is libx264
            found = av.codec.Codec(wanted, "w")
            encoder = self.encoder = found.name
            if not found.video_formats:
                raise ValueError("encodes no video, or does not say of what")
            self.pixel_format = self._choose_format(found.video_formats)
            options = dict(_OPTIONS.get(encoder, {}))
            os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints a page otherwise
            if encoder in _CRF:
                options["crf"] = str(_CRF[encoder] if crf is None else crf)
            elif crf is not None:
                raise UserError(
                    f"--crf: {encoder} has no such setting; it applies to {', '.join(_CRF)}"
                )
            track = self._container.add_stream(encoder, rate=info.rate, options=options)
        except (av.FFmpegError, ValueError) as error:
            raise UserError(
                f"{who}: no encoder of video for {self._format}; use libx264 or another suffix"
            ) from error
        track.width, track.height, track.pix_fmt = info.width, info.height, self.pixel_format
        context = track.codec_context
        # AVI counts frames, and FFmpeg fills each unit without one with an empty frame.
        context.time_base = 1 / info.rate if self._format == "avi" else info.time_base
        context.flags |= av.codec.context.Flags.frame_duration
        context.thread_count = 0
        if encoder == "libx265" and self._format in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # as cameras write it: Apple's players accept no other
        if self._format == "avi":
            context.max_b_frames = 0  # AVI has no timestamps, so frames cannot be reordered
        if info.sample_aspect:
            context.sample_aspect_ratio = info.sample_aspect
        colour_range, matrix, primaries, transfer = self._colour
        context.color_range, context.colorspace = colour_range, matrix
        context.color_primaries, context.color_trc = primaries, transfer
        if info.display_matrix:
            track.set_display_matrix(info.display_matrix)
            if self._format not in ("mp4", "mov", "matroska", "webm"):
                self.lost.append(f"rotation (not supported by {self._format})")
        if self._format == "avi":
            self.lost.append("timestamps (AVI stores only the average frame rate)")
        return track

    def _choose_format(self, encodable: Any) -> str:
        """Returns the file's pixel format: the wanted one, or the one that loses least."""
        # FFmpeg's own decoder ignores the alpha of VP9, and x265 refuses it.
        opaque = self.encoder in ("libvpx-vp9", "libx265")
        formats = [f.name for f in encodable if not (opaque and _has_alpha(f))]
        choice = self._wanted_format()
        if choice not in formats:
            best: Any
            best, _ = av.codec.codec.find_best_pix_fmt_of_list(formats, choice, has_alpha=True)
            choice = best.name
        given, chosen = (av.VideoFormat(f, 16, 16) for f in (self._info.pixel_format, choice))
        self._colour, self._convert = colours_in(chosen, self.encoder, self._info)
        if self._info.has_alpha and not _has_alpha(chosen):
            self.lost.append(f"alpha (not supported with {self.encoder})")
        has_chroma = self._info.layout.kind != "grey"
        if has_chroma and not chosen.is_rgb and _chroma(chosen) < _chroma(given):
            self.lost.append(f"chroma resolution (not supported with {self.encoder})")
        if chosen.components[0].bits < given.components[0].bits:
            self.lost.append(f"bit depth above {chosen.components[0].bits}")
        return choice

    def _wanted_format(self) -> str:
        """Returns the best pixel format for these frames and for players."""
        info, layout = self._info, self._info.layout
        wanted = info.pixel_format
        # Players rarely support RGB. VP9 has no grey.
        if self._keeps_rgb("hevc") and self.encoder == "libx265":
            wanted = f"gbrp{'12le' if layout.bits > 8 else ''}"
        elif self._keeps_rgb("vp9") and self.encoder == "libvpx-vp9" and layout.bits == 8:
            wanted = "gbrp"
        elif (layout.kind == "rgb" and self.encoder in _CRF.keys() - {"libx264rgb"}) or (
            layout.kind == "grey" and self.encoder == "libvpx-vp9"
        ):
            wanted = f"yuv420p{'10le' if layout.bits > 8 else ''}"
        # These encoders refuse odd sizes with sub-sampled chroma.
        if self.encoder in ("libx264", "libx265") and (info.height % 2 or info.width % 2):
            wanted = wanted.replace("420p", "444p").replace("422p", "444p")
        return wanted

    def _take_over(self, source: VideoReader) -> None:
        container = self._container
        of_all, of_track = (self._of_the_part(source, e) for e in (source.container, source.track))
        container.metadata.update(of_all)
        self._track.metadata.update(of_track)
        self._lose_tags(of_all, of_track)
        self._track.disposition = source.track.disposition
        if chapters := source.chapters:
            if self._format in ("mp4", "mov", "matroska", "webm"):
                container.set_chapters(chapters)
            else:
                self.lost.append("chapters")
        for stream in source.others:
            # MP4's time-code track is recreated from the video track's metadata.
            if stream.type == "data" and "timecode" in stream.metadata:
                continue
            if is_cover(stream) and self._format != "mp4":
                self._attach_cover(source, stream)
                continue
            codec = stream.codec_context.name if stream.codec_context else stream.type
            if not self._can_hold(stream):
                self.lost.append(f"{stream.type} track {stream.index} ({codec})")
                continue
            copy = container.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(of_the_content(stream.metadata))
            copy.disposition = stream.disposition
            self._copies[stream.index] = copy
        if self._copies:
            self._packets = source.packets()
        container.start_encoding()

    def _of_the_part(self, source: VideoReader, described: Any) -> dict[str, str]:
        """Returns the tags of a file or track; a time code becomes that of the first frame."""
        tags = of_the_content(described.metadata)
        for name in [name for name in tags if name.lower() == "timecode" and source.skipped]:
            if (moved := later(tags[name], source.skipped, self._info.rate)) is None:
                del tags[name]
                self.lose("time code (not of a kind that can be moved to the part)")
            else:
                tags[name] = moved
        return tags

    def _lose_tags(self, of_all: dict[str, str], of_track: dict[str, str]) -> None:
        if (held := _HELD_TAGS.get(self._format)) is None:
            return
        kept = {name for name in of_all if name.lower() in held}
        if lost := sorted((of_all.keys() | of_track.keys() - _OF_ANY_TRACK) - kept):
            self.lose(f"metadata: {', '.join(lost)} (not supported by {self._format})")

    def _attach_cover(self, source: VideoReader, stream: Any) -> None:
        """Attaches a cover picture to Matroska, which has no track of that kind."""
        kind = {"mjpeg": "jpeg", "png": "png"}.get(stream.codec_context.name)
        data = source.cover(stream)
        if self._format != "matroska" or kind is None or not data:
            self.lose("cover picture")
            return
        name = stream.metadata.get("filename") or f"cover.{kind.replace('jpeg', 'jpg')}"
        self._container.add_attachment(name, f"image/{kind}", data)

    def _can_hold(self, stream: Any) -> bool:
        if stream.type == "attachment":
            return self._format == "matroska"
        if stream.codec_context is None:  # FFmpeg has no codec to write it with
            return False
        codec = stream.codec_context.codec
        if self._format == "mpegts":  # FFmpeg does not list what transport streams hold
            return codec.canonical_name in _IN_TRANSPORT_STREAMS
        return codec.name in self._container.supported_codecs

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self._name}: cannot be written: {reason(error)}") from error


def _chroma(pixel_format: Any) -> list[int]:
    """Returns the numbers of chroma samples of a picture."""
    return [c.width * c.height for c in pixel_format.components[1:3]]


def _has_alpha(pixel_format: Any) -> bool:
    return any(c.is_alpha for c in pixel_format.components)


def _close_quietly(file: Any) -> None:
    with contextlib.suppress(av.FFmpegError, OSError, ValueError):
        file.close()
