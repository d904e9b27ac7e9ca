"""One long video in parts: each process restores its share, and ``--join`` puts them together.

A part begins ``OVERLAP`` frames early, so that the networks know what went before, and ends with
the network's look-ahead. All parts take the light and the stabiliser that the first of them found.
A part's file holds the video alone; its record says which frames it has and when they are shown,
since not every container keeps times exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxdeblur import VERSION
from jaxdeblur.console import tell
from jaxdeblur.errors import UserError
from jaxdeblur.files import made_once, remove, replace_when_whole, write_json
from jaxdeblur.options import from_json
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.findings import find_out
from jaxdeblur.restoration.part_names import Portion, folder_of
from jaxdeblur.restoration.plan import DeblurConfig, Job
from jaxdeblur.restoration.restore import deblur
from jaxdeblur.video.joiner import VideoJoiner, decoding_times, video_packets
from jaxdeblur.video.picture import Picture, PictureSource, PictureTarget
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.writer import VideoWriter

OVERLAP = 24
"""Frames before a part that are restored for its first frames, and not written.

The networks are recurrent. On two real clips of 160x112 the first four frames of a part were within
one grey level of the undivided video's after 2 frames with ``strcnn_dtb_choice`` and after 16 with
``strcnn_dtb_paths``, which mixes the last restored frame into the next; after 24 single values
still differed by one.
"""

_ESTIMATE = "estimate.json"
# Seconds beyond the beginning at which MPEG-TS is asked to seek: it lands late (video/reader.py).
_BEYOND = 8


@dataclasses.dataclass(frozen=True)
class PartRecord:
    """What a part's file holds.

    Attributes:
      version: of this package.
      bytes: size of the input.
      settings: what all parts must share, as JSON.
      time_base: the unit of times, in seconds, as a fraction.
      frames: time and duration of each frame in the whole result, in order.
    """

    version: str
    bytes: int
    settings: str
    time_base: str
    frames: tuple[tuple[int, int], ...]


def restore_part(
    deblurrer_of: Callable[[dict[str, Any]], Deblurrer],
    job: Job,
    config: DeblurConfig,
    weights: str,
) -> None:
    """Restores the share ``config.part`` of a video into a file of its own, beside the output.

    Args:
      deblurrer_of: loads the network with these options, of what was found out.
      job: the video and the whole output.
      config: the options.
      weights: the name of the network, which all parts must share.

    Raises:
      UserError: the input cannot be read, or the part exists or cannot be written.
    """
    share, output, path = config.part, job.output, job.paths[0]
    assert share is not None
    assert output is not None
    target, record = share.path(output), share.record(output)
    if record.exists():
        is_newer = record.stat().st_mtime > path.stat().st_mtime
        if config.skip_done and is_newer:
            if not config.quiet:
                tell(f"{target}: is there already")
            return
        if not config.overwrite and not config.skip_done:
            raise UserError(f"{target}: already exists (--overwrite replaces it)")
    target.parent.mkdir(exist_ok=True)
    record.unlink(missing_ok=True)
    found = _estimate(deblurrer_of, job, config)
    deblurrer = deblurrer_of(as_options(found, config))
    written: list[PartTarget] = []

    @contextlib.contextmanager
    def target_of(_job: Job, source: PictureSource, _config: DeblurConfig) -> Iterator[Any]:
        assert isinstance(source, PartSource)
        with (
            replace_when_whole(target) as unfinished,
            VideoWriter(
                unfinished, source.info, codec=config.codec, crf=config.crf, name=str(target)
            ) as writer,
        ):
            written.append(PartTarget(writer, source))
            yield written[-1]
            if not written[-1].frames:
                raise UserError(f"{share} has no frames; use fewer parts")

    def source_of(_job: Job, _config: DeblurConfig) -> PartSource:
        return PartSource(path, share, config.max_pixels, deblurrer.model.lookahead)

    deblur(deblurrer, job, config, opened=source_of, written=target_of)
    (made,) = written
    options = ("strength", "dtype", "duty", "light", "stabilised", "codec", "crf")
    shared = {"weights": weights, "found": found, **{n: getattr(config, n) for n in options}}
    unit = made.source.info.time_base
    settings = json.dumps(shared, sort_keys=True)
    said = PartRecord(VERSION, path.stat().st_size, settings, str(unit), tuple(made.frames))
    write_json(record, dataclasses.asdict(said))


def join_parts(job: Job, config: DeblurConfig) -> None:
    """Puts the parts of a video together, with the input's other tracks, and removes them.

    Raises:
      UserError: a part is missing or unlike the others, or the output cannot be written.
    """
    output = job.output
    assert output is not None
    records, paths = _parts_of(output, job)
    frames = [frame for record in records for frame in record.frames]
    pts: list[int] = []  # in the order of decoding
    for path, record in zip(paths, records, strict=True):
        pts += _times_of_packets(path, record)
    if sorted(pts) != sorted(set(pts)):
        raise UserError(f"{folder_of(output)}: two parts have the same frames; restore them again")
    durations = dict(frames)
    dts = decoding_times(pts, max(1, frames[0][1]))
    with (
        VideoReader(job.paths[0], max_pixels=config.max_pixels) as source,
        replace_when_whole(output) as unfinished,
        video_packets(paths[0]) as (first, _),
        VideoJoiner(unfinished, source.info, first, source=source, name=str(output)) as joiner,
    ):
        for what in joiner.lost:
            if not config.quiet:
                tell(f"{job.name}: not kept: {what}")
        at = 0
        for path in paths:
            with video_packets(path) as (track, packets):
                _check_alike(first, track, path)
                for packet in packets:
                    joiner.write_packet(packet, pts[at], dts[at], durations[pts[at]])
                    at += 1
        joiner.copy_rest()
        _refuse_if_cut_short(source, sum(frames[-1]), joiner)
    remove(folder_of(output))
    if not config.quiet:
        tell(f"{output}: {len(frames)} frames of {len(paths)} parts")


class PartSource(PictureSource):
    """The frames of a part, after those before it and before those after it.

    Attributes:
      info: of the video; its number of frames is that of this source, about.
      begin, end: the times of the part, from and up to, in units of ``info.time_base``.
    """

    def __init__(self, path: Path, share: Portion, max_pixels: int, ahead: int) -> None:
        """Opens the video at the right place.

        Args:
          path: the video.
          share: which part.
          max_pixels: frames with more pixels are refused.
          ahead: the network's look-ahead, in frames.

        Raises:
          UserError: the video cannot be read, or does not state its times and length.
        """
        self._path, self._ahead = path, ahead
        self._is_last = share.number == share.of
        with VideoReader(path, max_pixels=max_pixels) as whole:
            track, unit = whole.track, whole.info.time_base
            first, length = _times(whole)
            # MP4 shows no frame before time 0, so the undivided result moves them all.
            self._moved = min(0, track.start_time or 0)
            bounds = [
                math.ceil((first + length * (share.number - 1 + end) / share.of) / unit)
                for end in (0, 1)
            ]
            self._begins = Fraction(whole.container.start_time or 0, 1_000_000)
            self._known = _before(whole, bounds[0], self._begins) if share.number > 1 else []
            self._states_end = bool(track.frames)  # as of MP4; others only guess their length
        self._length_end = first + length
        start = 0.0
        if self._known:
            # A little early, since the reader rounds; no frame lies between.
            start = max(0.0, float(self._known[0] * unit - self._begins - unit / 4))
        self._reader = VideoReader(path, max_pixels=max_pixels, start=start)
        self._start = Fraction(start).limit_denominator(10**6)
        info = self._reader.info
        self.begin = bounds[0] - self._moved if share.number > 1 else -(2**62)
        self.end = 2**62 if self._is_last else bounds[1] - self._moved
        seconds = (bounds[1] - (self._known or bounds)[0]) * unit
        self.info = dataclasses.replace(info, frames=max(2, round(seconds * info.rate)) + ahead)

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__(*_)

    def __iter__(self) -> Iterator[Picture]:
        """Yields the frames with their times in the whole result.

        Raises:
          UserError: a frame cannot be decoded, or the video ends early.
        """
        shift: int | None = None
        after, last = 0, 0
        for picture in self._reader:
            if shift is None:
                shift = self._shift(picture.pts)
            last = picture.pts + shift
            if last >= self.end:
                if after == self._ahead:
                    return
                after += 1
            yield dataclasses.replace(picture, pts=last)
        missing = self._length_end - (last + self._moved) * self.info.time_base
        if self._states_end and missing > Fraction(5, 2) / self.info.rate:
            raise UserError(f"{self._path}: truncated or damaged: the last frames are missing")

    def _shift(self, pts: int) -> int:
        """Returns what is added to the reader's times, given that of its first frame."""
        if not self._known:
            return 0
        # The reader's times begin at its start, rounded to a unit; those of packets are exact.
        about = pts + (self._start + self._begins) / self.info.time_base
        return min(self._known, key=lambda known: abs(known - about)) - self._moved - pts


class PartTarget(PictureTarget):
    """Writes those of a source's frames that belong to the part, from time 0 on.

    Attributes:
      source: of the frames.
      frames: time and duration of the frames written, in the whole result.
    """

    def __init__(self, writer: VideoWriter, source: PartSource) -> None:
        self.source = source
        self.frames: list[tuple[int, int]] = []
        self.lost = writer.lost
        self._writer = writer

    def write(self, picture: Picture) -> None:
        """Writes the picture, if it belongs to the part."""
        if self.source.begin <= picture.pts < self.source.end:
            self.frames.append((picture.pts, picture.duration))
            self._writer.write(dataclasses.replace(picture, pts=picture.pts - self.frames[0][0]))


def _times(whole: VideoReader) -> tuple[Fraction, Fraction]:
    """Returns when a video begins in its file, and its length, in seconds."""
    track, container = whole.track, whole.container
    unit = whole.info.time_base
    begin = (track.start_time or 0) * unit
    length = (track.duration or 0) * unit or Fraction(container.duration or 0, 1_000_000)
    if not track.duration and "matroska" in container.format.name:
        length -= max(Fraction(0), begin)  # it states when the video ends
    if track.start_time is None or length <= 0:
        raise UserError(
            f"{whole.path}: does not state its times and length, by which it is divided; rewrite "
            "it with FFmpeg first: ffmpeg -i INPUT -c copy OUTPUT.mkv"
        )
    return begin, length


def _before(whole: VideoReader, bound: int, begins: Fraction) -> list[int]:
    """Returns the times of the ``OVERLAP`` frames before ``bound`` and of some after it, in order.

    The packets are read, not decoded.
    """
    unit, seconds = whole.info.time_base, 2 * OVERLAP / whole.info.rate
    while True:
        time = bound * unit - seconds
        whole.container.seek(round(time * 1_000_000))
        found: list[int] = []
        for packet in whole.container.demux(whole.track):
            if packet.pts is not None and packet.size:
                found.append(packet.pts)
            # Frames are decoded before they are shown, so none that is shown earlier follows.
            if packet.dts is not None and packet.dts >= bound:
                break
        before = sorted(pts for pts in found if pts < bound)
        if len(before) >= OVERLAP or time < begins - _BEYOND:
            return before[-OVERLAP:] + sorted(pts for pts in found if pts >= bound)
        seconds *= 2


def _estimate(
    deblurrer_of: Callable[[dict[str, Any]], Deblurrer], job: Job, config: DeblurConfig
) -> dict[str, Any]:
    """Returns what was found out about the video; the first part writes it down for the others."""
    assert job.output is not None
    path = folder_of(job.output) / _ESTIMATE
    with made_once(path):
        if not path.exists():
            found = find_out(deblurrer_of({}), job.paths[0], max_pixels=config.max_pixels)
            write_json(path, found or {})
    return _read_json(path)


def as_options(found: dict[str, Any], config: DeblurConfig) -> dict[str, Any]:
    """Returns what was found out as options of ``Deblurrer``; what the user gave goes first."""
    options = dict(found)
    for name in options.keys() & {field.name for field in dataclasses.fields(config)}:
        if getattr(config, name) is not None:
            value = getattr(config, name)
            options[name] = value == "yes" if name == "stabilised" else value
    if config.duty is None:
        # As an option it would count as certain. Each part finds it, and how far to trust it.
        options.pop("duty", None)
    return options


def _parts_of(output: Path, job: Job) -> tuple[list[PartRecord], list[Path]]:
    """Returns the records and files of all parts, in order."""
    folder = folder_of(output)
    named = [re.fullmatch(r"\d+-of-(\d+)", path.stem) for path in folder.glob(f"*{output.suffix}")]
    counts = {found[1] for found in named if found is not None}  # others are left by a killed part
    if len(counts) != 1:
        what = "parts of different numbers; remove those of one" if counts else "no parts"
        raise UserError(f"{folder}: contains {what}")
    all_parts = [Portion(f"{number}/{max(counts)}") for number in range(1, int(max(counts)) + 1)]
    records: list[PartRecord] = []
    for share in all_parts:
        path = share.record(output)
        if not path.exists() or not share.path(output).exists():
            raise UserError(
                f"{folder}: {share} is missing; restore it with --part={share.number}/{share.of}"
            )
        record = from_json(PartRecord, _read_json(path), str(path))
        theirs = (record.version, record.settings, record.bytes)
        if records and theirs != (records[0].version, records[0].settings, records[0].bytes):
            raise UserError(
                f"{path}: the part was restored from another file or with other options"
            )
        if record.bytes != job.paths[0].stat().st_size:
            raise UserError(f"{path}: {job.name} has changed since; restore the parts again")
        records.append(record)
    return records, [share.path(output) for share in all_parts]


def _times_of_packets(path: Path, record: PartRecord) -> list[int]:
    """Returns when the frame of each packet is shown in the whole result, as its record says."""
    with video_packets(path) as (_, packets):
        shown = [packet.pts for packet in packets]
    if len(shown) != len(record.frames) or len(set(shown)) != len(shown):
        raise UserError(
            f"{path}: has {len(shown)} frames, not the {len(record.frames)} of its record; restore "
            "the part again"
        )
    place = {time: rank for rank, time in enumerate(sorted(shown))}
    return [record.frames[place[time]][0] for time in shown]


def _check_alike(first: Any, other: Any, path: Path) -> None:
    ours, theirs = (
        (each.codec_context.name, each.width, each.height, each.codec_context.extradata)
        for each in (first, other)
    )
    if ours != theirs:
        raise UserError(f"{path}: is encoded unlike the first part; restore it again")


def _refuse_if_cut_short(source: VideoReader, end: int, joiner: VideoJoiner) -> None:
    """Raises UserError if a Matroska file ends before the time that its header states."""
    if "matroska" not in source.container.format.name or not source.container.duration:
        return
    last = max(end * source.info.time_base, joiner.copied)
    missing = Fraction(source.container.duration, 1_000_000) - Fraction(last)
    if missing > Fraction(5, 2) / source.info.rate:
        raise UserError(f"{source.path}: truncated or damaged: the last frames are missing")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is damaged; remove it and restore the part again") from error
