"""The work of deblur.py: reads, restores and writes in parallel; replaces files when complete."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxdeblur.errors import ProgressLine, UserError, message_of, tell
from jaxdeblur.files import replace_folder_when_whole, replace_when_whole
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.plan import DeblurConfig, Job, check_compare
from jaxdeblur.restoration.threads import Timing, run_stages
from jaxdeblur.shapes import Plane
from jaxdeblur.video.animation import MAX_WIDTH, AnimationWriter
from jaxdeblur.video.camera import CameraReader
from jaxdeblur.video.comparison import Comparison
from jaxdeblur.video.formats import ANIMATED_SUFFIXES, CONTAINERS
from jaxdeblur.video.image_file import ImageReader, ImageWriter
from jaxdeblur.video.picture import Picture, PictureSource, PictureTarget, VideoInfo
from jaxdeblur.video.pipes import RawReader, RawWriter
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.writer import VideoWriter

# Seconds of compilation after which a message explains the wait.
_LONG_S = 3.0

# As a share of a plane's value range: a single image that changes less looks unchanged.
_VISIBLE = 0.25 / 255


Restored = tuple[Picture, tuple[Plane, ...]]
"""A picture as read, and its restored planes."""

PictureView = Callable[[Picture, tuple[Plane, ...]], Picture]
"""Makes the picture to write from both."""


def restore_all(
    deblurrer_of: Callable[[Job], Deblurrer], jobs: list[Job], config: DeblurConfig
) -> None:
    """Restores the jobs in order; a job that fails does not stop the rest.

    Raises:
      UserError: an option does not suit the inputs, or jobs failed; each of several is reported.
    """
    kinds = {job.kind for job in jobs}
    if config.fps is not None and kinds == {"video"}:
        raise UserError("--fps applies to images, pipes and cameras only; videos keep their own")
    if config.size is not None and not kinds & {"pipe", "camera"}:
        raise UserError("--size applies to pipes and cameras only; files state their own size")
    failed = []
    for job in jobs:
        try:
            deblur(deblurrer_of(job), job, config)
        except Exception as error:
            message = message_of(error)
            if len(jobs) == 1 or message is None:
                raise
            failed.append(job.name)
            tell(f"error: {' '.join(message.split())}")
    if failed:
        names = ", ".join(failed)
        raise UserError(f"{len(failed)} of {len(jobs)} inputs could not be restored: {names}")


def deblur(deblurrer: Deblurrer, job: Job, config: DeblurConfig) -> Timing:
    """Restores one input into its output, which is replaced only when the new one is complete.

    Raises:
      UserError: the input cannot be read or the output not written; an old output is unchanged.
    """
    say: Callable[[str], None] = (lambda text: None) if config.quiet else tell
    began = time.monotonic()
    if config.compare is not None:
        check_compare(job, config.compare, config.overwrite)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(_open_source(job, config))
        info = source.info
        results = _Results(info, say)
        target = stack.enter_context(_open_target(job, source, config))
        if isinstance(source, VideoReader) and not isinstance(target, VideoWriter):
            target.lost += ["audio and other tracks"] if source.others else []
        results.add(job.name, target, _restored)
        if config.compare is not None:
            writer, comparison = stack.enter_context(_open_comparison(config.compare, info, config))
            results.add(config.compare, writer, comparison)
        results.say_what_is_lost()
        # After the targets are opened, so that a wrong option is reported before compilation.
        _compile(deblurrer, job, info, config, say)
        progress = ProgressLine(job.name, info.frames, quiet=config.quiet)
        stream = deblurrer.open_stream(info.height, info.width, info.layout)
        timing = run_stages(
            source,
            stream,
            results.write,
            progress,
            began=began,
            patience=1.0 if job.kind == "pipe" else None,
            write_patience=1.0 if job.output is None else None,
        )
        if not timing.frames:
            raise UserError(f"{job.name}: contains no frames")
        if isinstance(source, CameraReader):
            say(f"{job.name}: {source.dropped} frames dropped")
        results.say_what_is_lost()
    say(f"{job.name}: {timing}")
    if stream.shutter is not None:
        duty, light = stream.shutter
        say(f"{job.name}: the shutter was open {duty:.0%} of the time, in {light} light")
    if results.change < _VISIBLE and config.strength:
        why = (
            "no blur was found"
            if deblurrer.of_photographs
            else "these weights find blur by comparing neighbouring frames; give those too, as a "
            "folder or a video"
        )
        say(f"{job.name}: hardly changed: {why}")
    return timing


class _Results:
    """Writes the results to all targets, each with its own view, and reports what they lose.

    Attributes:
      change: how much a single image changed (``_change``); 1 for all other inputs.
    """

    def __init__(self, info: VideoInfo, say: Callable[[str], None]) -> None:
        self.change = 1.0
        self._is_one, self._bits = info.frames == 1, info.layout.bits
        self._say = say
        self._targets: list[tuple[str, PictureTarget, PictureView]] = []
        self._said: set[str] = set()

    def add(self, name: str, target: PictureTarget, view: PictureView) -> None:
        """Adds a target, called ``name`` in messages; ``view`` makes its pictures."""
        self._targets.append((name, target, view))

    def write(self, result: Restored) -> None:
        """Writes one frame to all targets."""
        if self._is_one:
            self.change = _change(*result, self._bits)
        for _, target, view in self._targets:
            target.write(view(*result))

    def say_what_is_lost(self) -> None:
        """Reports what the targets do not keep, each item once."""
        for name, target, _ in self._targets:
            for what in target.lost:
                line = f"{name}: not kept: {what}"
                if line not in self._said:
                    self._said.add(line)
                    self._say(line)


def _compile(
    deblurrer: Deblurrer,
    job: Job,
    info: VideoInfo,
    config: DeblurConfig,
    say: Callable[[str], None],
) -> None:
    what = f"compiling for {info.width}x{info.height}, or loading an earlier compilation"
    timer = threading.Timer(_LONG_S, say, [f"{job.name}: {what} ..."])
    timer.daemon = True
    timer.start()
    try:
        tiles = deblurrer.compile(info.height, info.width, info.layout)
    finally:
        timer.cancel()
    if config.tile == "auto" and tiles is not None:
        say(f"{job.name}: restoring frames in tiles of {tiles} to fit the free memory")


def _change(picture: Picture, restored: tuple[Plane, ...], bits: int) -> float:
    """Returns the mean change of an image's values, as a share of the range of its bits."""
    before, after = picture.planes[0], restored[0]
    difference = np.abs(before.astype(np.float32) - after.astype(np.float32)).mean()
    return float(difference) / (2**bits - 1)


def _restored(picture: Picture, restored: tuple[Plane, ...]) -> Picture:
    return dataclasses.replace(picture, planes=restored)


def _open_source(job: Job, config: DeblurConfig) -> PictureSource:
    cut = bool(config.start or config.length is not None)
    if job.kind == "camera":
        if config.start:
            raise UserError(f"--start applies to video files only; {job.name} starts now")
        return CameraReader(
            job.name,
            size=config.raw_size,
            rate=config.rate if config.fps else None,
            duration=config.length,
            max_pixels=config.max_pixels,
        )
    if job.kind == "video":
        return VideoReader(
            job.paths[0],
            max_pixels=config.max_pixels,
            start=config.start,
            duration=config.length,
        )
    if cut:
        raise UserError(f"--start, --end and --duration apply to videos, but {job.name} is not one")
    if job.kind == "images":
        return ImageReader(job.paths, rate=config.rate, max_pixels=config.max_pixels)
    if config.raw_size is None:
        raise UserError("-: give the --size=WIDTHxHEIGHT of the frames in the pipe")
    return RawReader(_descriptor(sys.stdin, "input"), *config.raw_size, config.rate)


def _descriptor(stream: Any, what: str) -> int:
    if stream is None:  # Python sets None when it is closed
        raise UserError(f"-: standard {what} is closed")
    return stream.fileno()


@contextlib.contextmanager
def _open_target(job: Job, source: PictureSource, config: DeblurConfig) -> Iterator[PictureTarget]:
    info, output, suffix = source.info, job.output, job.suffix
    encoding = config.codec is not None or config.crf is not None
    compared = config.compare is not None and not _is_animation(config.compare)
    if encoding and suffix not in CONTAINERS and not compared:
        raise UserError(f"--codec and --crf apply to videos, but {output or '-'} is not one")
    if output is None:
        if sys.stdout is not None and sys.stdout.isatty():
            raise UserError("-: standard output is a terminal; send raw frames into a pipe or file")
        yield RawWriter(_descriptor(sys.stdout, "output"), info)
        return
    try:
        output.parent.mkdir(exist_ok=True)
        replace = replace_when_whole if suffix else replace_folder_when_whole
        with replace(output) as part:
            target: PictureTarget
            if suffix in CONTAINERS:
                target = VideoWriter(
                    part,
                    info,
                    source=source if isinstance(source, VideoReader) else None,
                    codec=config.codec,
                    crf=config.crf,
                    name=str(output),
                )
            else:
                target = ImageWriter(part, info, name=str(output))
            with target:
                yield target
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _open_comparison(
    path: str, info: VideoInfo, config: DeblurConfig
) -> Iterator[tuple[PictureTarget, Comparison]]:
    """Opens the file of ``--compare``; yields its writer and what makes its pictures."""
    writer: PictureTarget
    with replace_when_whole(path) as part:
        if _is_animation(path):
            comparison = Comparison(info, MAX_WIDTH)
            writer = AnimationWriter(part, comparison.info, name=path)
        else:
            comparison = Comparison(info)
            writer = VideoWriter(
                part, comparison.info, codec=config.codec, crf=config.crf, name=path
            )
        with writer:
            yield writer, comparison


def _is_animation(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in ANIMATED_SUFFIXES
