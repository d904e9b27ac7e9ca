"""The work of deblur.py: reads, restores and writes in parallel; replaces files when complete."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from jaxdeblur.console import ProgressLine, tell
from jaxdeblur.errors import BAD_MACHINE, UserError, exit_code_of, message_of
from jaxdeblur.files import replace_folder_when_whole, replace_when_whole
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.plan import DeblurConfig, Job
from jaxdeblur.restoration.stream import Stream
from jaxdeblur.restoration.threads import in_stages
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


PictureView = Callable[[Picture, tuple[Plane, ...]], Picture]
"""Makes the picture to write from one as read and its restored planes."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What follows a restoration, in place of lines on stderr. What a function raises ends it.

    Attributes:
      say: takes a message, but not of the wait, the timing and the shutter, which the caller knows.
      restored: takes the number of frames restored so far, how many there are if known, and the
        stream; before the first frame, 0.
    """

    say: Callable[[str], None]
    restored: Callable[[int, int | None, Stream], None]


@dataclasses.dataclass
class Timing:
    """How long a restoration took, in seconds.

    Attributes:
      frames: how many were restored.
      seconds: from the start to the end.
      first_frame: from the start until the first frame was restored; mostly compilation.
    """

    frames: int = 0
    seconds: float = 0.0
    first_frame: float = 0.0

    def __str__(self) -> str:
        rate = self.frames / max(self.seconds, 1e-9)
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return (
            f"{frames} in {self.seconds:.1f} s, {rate:.2f} frames/s "
            f"(first after {self.first_frame:.1f} s)"
        )


def restore_all(
    deblurrer_of: Callable[[Job], Deblurrer], jobs: list[Job], config: DeblurConfig
) -> None:
    """Restores the jobs in order; a job that fails does not stop the rest.

    Raises:
      UserError: jobs failed; each of several is reported.
    """
    failed, worst = [], None
    for job in jobs:
        try:
            deblur(deblurrer_of(job), job, config)
        except Exception as error:
            message = message_of(error)
            if len(jobs) == 1 or message is None:
                raise
            failed.append(job.name)
            if worst is None or exit_code_of(error) == BAD_MACHINE:
                worst = error
            tell(f"error: {message}")
    if failed:
        names = ", ".join(failed)
        message = f"{len(failed)} of {len(jobs)} inputs could not be restored: {names}"
        raise UserError(message) from worst


def deblur(
    deblurrer: Deblurrer,
    job: Job,
    config: DeblurConfig,
    *,
    watch: Watch | None = None,
    opened: Callable[..., contextlib.AbstractContextManager[PictureSource]] | None = None,
    written: Callable[..., contextlib.AbstractContextManager[PictureTarget]] | None = None,
) -> Timing:
    """Restores one input into its output, which is replaced only when the new one is complete.

    Args:
      deblurrer: the network.
      job: the input and the output.
      config: the options.
      watch: what follows the work; None for lines on stderr.
      opened: opens the source of ``job`` and ``config``; by default all that the input holds.
      written: opens the target of ``job``, the source and ``config``; by default the output.

    Raises:
      UserError: the input cannot be read or the output not written; an old output is unchanged.
    """

    def say(text: str, about: str = job.name) -> None:
        if watch is not None:
            watch.say(text)
        elif not config.quiet:
            tell(f"{about}: {text}")

    def say_what_is_lost() -> None:
        for note in source.notes:
            if (job.name, note) not in said:
                said.add((job.name, note))
                say(note)
        for name, each, _ in targets:
            for what in each.lost:
                if (name, what) not in said:
                    said.add((name, what))
                    say(f"not kept: {what}", name)

    said: set[tuple[str, str]] = set()
    if job.left_out:
        say(f"not read: {job.left_out}; convert images to PNG or JPEG, and name videos and folders")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        source = stack.enter_context((opened or _open_source)(job, config))
        info = source.info
        target = stack.enter_context((written or _open_target)(job, source, config))
        if isinstance(source, VideoReader) and not isinstance(target, VideoWriter):
            target.lost += ["audio and other tracks"] if source.others else []
        targets: list[tuple[str, PictureTarget, PictureView]] = [(job.name, target, _restored)]
        if config.compare is not None:
            writer, comparison = stack.enter_context(_open_comparison(config.compare, info, config))
            targets.append((config.compare, writer, comparison))
        say_what_is_lost()
        # After the targets are opened, so that a wrong option is reported before compilation.
        # Measured on two cores (docs/lab/performance.md).
        usual = "a minute the first time, then 20 s" if deblurrer.model.opening else "10 s"
        size = f"{info.width}x{info.height}"
        waits = _explained_wait(
            say, f"compiling for {size}, or loading an earlier compilation: about {usual} ..."
        )
        with waits if watch is None else contextlib.nullcontext():
            tiles = deblurrer.compile(info.height, info.width, info.layout)
        if config.tile == "auto" and tiles is not None:
            say(f"restoring frames in tiles of {tiles} to fit the free memory")
        stream = deblurrer.open_stream(info.height, info.width, info.layout, alone=job.single)
        stages = in_stages(source, stream, patience=1.0 if job.kind == "pipe" else None)
        progress = ProgressLine(job.name, info.frames, quiet=config.quiet or watch is not None)
        timing, change = Timing(), 1.0
        if watch is not None:
            watch.restored(0, info.frames, stream)
        with contextlib.closing(progress), contextlib.closing(stages):
            for picture, planes in stages:
                timing.frames += 1
                timing.first_frame = timing.first_frame or time.monotonic() - began
                progress.update(timing.frames)
                if watch is not None:
                    watch.restored(timing.frames, info.frames, stream)
                for _, each, view in targets:
                    each.write(view(picture, planes))
                if info.frames == 1:
                    change = _change(picture, planes, info.layout.bits)
        timing.seconds = time.monotonic() - began
        if not timing.frames:
            raise UserError(f"{job.name}: contains no frames")
        if isinstance(source, CameraReader):
            say(f"{source.dropped} frames dropped")
        say_what_is_lost()
    if watch is None:
        say(str(timing))
    if watch is None:
        found = stream.found
        if "duty" in found and "light" in found:
            say(f"the shutter was open {found['duty']:.0%} of the time, in {found['light']} light")
        for remark in stream.remarks:
            say(remark)
    if change < _VISIBLE and config.strength:
        why = (
            "no blur was found"
            if deblurrer.of_photographs
            else "these weights find blur by comparing neighbouring frames; give those too, as a "
            "folder or a video"
        )
        say(f"hardly changed: {why}")
    return timing


@contextlib.contextmanager
def _explained_wait(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Says what the body does if it takes long."""
    timer = threading.Timer(_LONG_S, say, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _change(picture: Picture, restored: tuple[Plane, ...], bits: int) -> float:
    """Returns the mean change of an image's values, as a share of the range of its bits."""
    before, after = picture.planes[0], restored[0]
    difference = np.abs(before.astype(np.float32) - after.astype(np.float32)).mean()
    return float(difference) / (2**bits - 1)


def _restored(picture: Picture, restored: tuple[Plane, ...]) -> Picture:
    return dataclasses.replace(picture, planes=restored)


def _open_source(job: Job, config: DeblurConfig) -> PictureSource:
    size = None if config.size is None else config.size[::-1]  # height and width
    if job.kind == "camera":
        return CameraReader(
            job.name,
            size=size,
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
            rate=config.rate if config.fps and job.is_raw else None,
        )
    if job.kind == "images":
        return ImageReader(job.paths, rate=config.rate, max_pixels=config.max_pixels)
    if size is None:
        raise UserError("-: give the --size=WIDTHxHEIGHT of the frames in the pipe")
    return RawReader(sys.stdin.fileno(), *size, config.rate)


@contextlib.contextmanager
def _open_target(job: Job, source: PictureSource, config: DeblurConfig) -> Iterator[PictureTarget]:
    info, output, suffix = source.info, job.output, job.suffix
    encoding = config.codec is not None or config.crf is not None
    compared = config.compare is not None and not _is_animation(config.compare)
    if encoding and suffix not in CONTAINERS and not compared:
        raise UserError(f"--codec and --crf apply to videos, but {output or '-'} is not one")
    if output is None:
        if sys.stdout.isatty():
            raise UserError("-: standard output is a terminal; send raw frames into a pipe or file")
        yield RawWriter(sys.stdout.fileno(), info)
        return
    try:
        output.parent.mkdir(exist_ok=True)
        if suffix:
            replaced = replace_when_whole(output)
        else:
            replaced = replace_folder_when_whole(output, fill=config.overwrite)
        with replaced as part:
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
            # It is made of RGB for the eye, not for the archive.
            writer.lost = [what for what in writer.lost if not what.startswith("chroma")]
        with writer:
            yield writer, comparison


def _is_animation(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in ANIMATED_SUFFIXES
