"""What the page does, without the page: looks at files, restores them in turn, shows their frames.

One restoration runs at a time in the process, whoever asked for it: two would only share the
device. The networks stay loaded and compiled, so that a second try begins at once.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxdeblur.app.show import FileProgress, Found, Settings
from jaxdeblur.errors import message_of
from jaxdeblur.options import Time
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.findings import find_out, found_by
from jaxdeblur.restoration.plan import DeblurConfig, Job, plan
from jaxdeblur.restoration.restore import Watch, deblur
from jaxdeblur.restoration.stream import Stream
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.ffmpeg import av
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.image_file import ImageReader, read_image
from jaxdeblur.video.pixels import to_packed_rgb
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.weights import shipped

# Seconds for a million pixels of a frame, until this machine has restored some: two CPU cores and
# an H100 (docs/deblur.md); a photograph's blur on a GPU was never timed.
_SECONDS_PER_MEGAPIXEL: dict[str, dict[shipped.Use, float]] = {
    "cpu": {"video": 1.6, "fast video": 1.3, "photograph": 2.5, "fast photograph": 1.3},
    "gpu": {"video": 0.018, "fast video": 0.01, "photograph": 0.05, "fast photograph": 0.01},
}
# As much as a screen shows; larger previews only take longer to load.
_PREVIEW = 2560
_EVERY_S = 0.2  # Between two looks at a restoration's progress.


class _Cancelled(Exception):
    """Raised in the restoration that the user stops."""


class Engine:
    """The networks, each loaded once, and how fast this machine has been with them."""

    def __init__(self, ckpt: str | None = None) -> None:
        """Prepares; ``ckpt`` names weights for everything, None the shipped ones."""
        self._ckpt = ckpt
        self._deblurrers: dict[str, Deblurrer] = {}
        self._per_megapixel: dict[str, float] = {}
        self.busy = threading.Lock()

    def deblurrer(self, use: shipped.Use) -> Deblurrer:
        """Returns the network for a use; raises UserError if its weights cannot be loaded."""
        name = self._name(use)
        if name not in self._deblurrers:
            self._deblurrers[name] = Deblurrer(name)
        return self._deblurrers[name]

    def seconds(self, found: Found, frames: int, fast: bool) -> float:
        """Returns how long ``frames`` frames of a file may take, without compilation."""
        use = found.use(fast)
        pixels = found.height * found.width / 1e6
        if (measured := self._per_megapixel.get(self._name(use))) is not None:
            return frames * pixels * measured
        kind = "cpu" if jax.default_backend() == "cpu" else "gpu"
        return frames * pixels * _SECONDS_PER_MEGAPIXEL[kind][use]

    def is_measured(self, found: Found, fast: bool) -> bool:
        """Returns whether ``seconds`` goes by this machine's own speed."""
        return self._name(found.use(fast)) in self._per_megapixel

    def learn(self, found: Found, fast: bool, seconds_per_frame: float) -> None:
        """Remembers how long frames took."""
        megapixels = found.height * found.width / 1e6
        self._per_megapixel[self._name(found.use(fast))] = seconds_per_frame / megapixels

    def _name(self, use: shipped.Use) -> str:
        return shipped.default_name(use) if self._ckpt is None else self._ckpt


@dataclasses.dataclass(frozen=True)
class RestoredFile:
    """A restored file.

    Attributes:
      found: the file it was made from.
      path: the file.
      times: when each of its frames is shown, in seconds; one for a photograph.
      shift: what is added to these for the times in the original.
    """

    found: Found
    path: Path
    times: list[Fraction]
    shift: Fraction

    def pair(self, number: int, folder: Path) -> tuple[str, str]:
        """Writes a frame before and after as pictures into ``folder``, in place of older ones.

        Raises:
          UserError: a file can no longer be read.
        """
        number = min(max(number, 0), len(self.times) - 1)
        for old in folder.glob("frame-*.png"):
            old.unlink(missing_ok=True)
        pictures = []
        for name, path, shift in (
            ("before", self.found.path, self.shift),
            ("after", self.path, Fraction(0)),
        ):
            if self.found.is_video:
                # Halfway to the frame before: times in files are rounded.
                gap = self.times[number] - self.times[number - 1] if number else Fraction(0)
                pixels = _frame_at(path, self.times[number] + shift - gap / 2)
            else:
                pixels = read_image(path)
            # A new name each time, since browsers keep what a name showed.
            target = folder / f"frame-{time.monotonic_ns()}-{name}.png"
            _write_preview(target, pixels)
            pictures.append(str(target))
        return pictures[0], pictures[1]


class Session:
    """What one tab of a browser dropped and restored.

    Attributes:
      folder: for results and pictures; it is removed with the session.
      found: the files that can be restored.
      wrong: what is wrong with the others, a line each.
      results: what was restored.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.folder = folder
        self.found: list[Found] = []
        self.wrong: list[str] = []
        self.results: list[RestoredFile] = []
        self._engine, self._uploads = engine, set[Path]()
        self._cancelled = threading.Event()

    def take(self, paths: list[Path], used_elsewhere: set[Path]) -> None:
        """Takes the files that were dropped in place of the last.

        The last files and their results are removed, unless another session uses them too.
        """
        self.forget(used_elsewhere | set(paths))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._cancelled = threading.Event()
        self._uploads = set(paths)
        for path in paths:
            try:
                self.found.append(look_at(path, self.folder))
            except Exception as error:
                if (message := message_of(error)) is None:
                    raise
                self.wrong.append(_by_name(message, path))

    def find_out(self) -> Iterator[Found]:
        """Yields each video with what is found out about its shutter, and compiles for its size."""
        cancelled = self._cancelled
        for number, found in enumerate(self.found):
            if not found.is_video:
                continue
            with self._engine.busy:
                if cancelled.is_set():
                    return
                deblurrer = self._engine.deblurrer("video")
                facts = find_out(deblurrer, found.path)
            if cancelled.is_set():
                return
            self.found[number] = dataclasses.replace(found, facts=facts)
            yield self.found[number]

    def restore(self, settings: Settings) -> Iterator[FileProgress]:
        """Restores the files one after the other; yields what to show, a few times a second."""
        self.cancel()  # a restoration that another button began
        cancelled = self._cancelled = threading.Event()
        self._drop_results()
        try:
            for number, found in enumerate(list(self.found)):
                state = FileProgress(found.name, number, len(self.found))
                done = threading.Event()
                thread = threading.Thread(
                    target=self._restore_one,
                    args=(found, settings, state, cancelled, done),
                    daemon=True,
                )
                thread.start()
                while not done.wait(_EVERY_S):
                    yield dataclasses.replace(state)
                thread.join()
                if state.crash is not None:
                    raise state.crash
                if self._cancelled is not cancelled:
                    return  # another one shows its progress now
                yield dataclasses.replace(state)
                if cancelled.is_set():
                    return
        finally:
            cancelled.set()

    def cancel(self) -> None:
        """Stops the restoration after the frame or the compilation at work."""
        self._cancelled.set()

    def seconds(self, settings: Settings) -> tuple[float, bool] | None:
        """Returns how long restoring may take, and if this machine's speed is known; or None."""
        total, is_measured = 0.0, True
        for found in self.found:
            frames = found.frames_in(settings.start, settings.seconds)
            if frames is None:
                return None
            total += self._engine.seconds(found, frames, settings.fast)
            is_measured &= self._engine.is_measured(found, settings.fast)
        return total, is_measured

    @property
    def is_idle(self) -> bool:
        """Whether no restoration runs."""
        return self._cancelled.is_set()

    @property
    def uploads(self) -> set[Path]:
        """The files that were dropped."""
        return self._uploads

    def forget(self, keep: set[Path]) -> None:
        """Stops, and removes all files but those in ``keep``."""
        self.cancel()
        self._drop_results()
        shutil.rmtree(self.folder, ignore_errors=True)
        for path in self._uploads - keep:
            path.unlink(missing_ok=True)
        self.found, self.wrong, self._uploads = [], [], set()

    def _drop_results(self) -> None:
        for result in self.results:
            result.path.unlink(missing_ok=True)
        self.results = []

    def _restore_one(
        self,
        found: Found,
        settings: Settings,
        state: FileProgress,
        cancelled: threading.Event,
        done: threading.Event,
    ) -> None:
        try:
            with self._engine.busy:
                self._restore(found, settings, state, cancelled)
        except _Cancelled:
            state.error = "cancelled"
        except Exception as error:
            if (message := message_of(error)) is None:
                state.crash = error
            else:
                state.error = _by_name(message, found.path)
        finally:
            done.set()

    def _restore(
        self, found: Found, settings: Settings, state: FileProgress, cancelled: threading.Event
    ) -> None:
        began: list[float] = []

        def restored(done: int, total: int | None, stream: Stream) -> None:
            if cancelled.is_set():
                raise _Cancelled
            now = time.monotonic()
            state.done, state.total = done, total
            # The first frame waits for the compiler, so its time says nothing about the rest.
            if done == 1:
                began.append(now)
            elif done > 1:
                each = (now - began[0]) / (done - 1)
                state.left = None if total is None else each * max(0, total - done)
                self._engine.learn(found, settings.fast, each)
            streams[:] = [stream]

        streams: list[Stream] = []
        watch = Watch(say=state.notes.append, restored=restored)
        if cancelled.is_set():
            raise _Cancelled
        deblurrer = self._engine.deblurrer(found.use(settings.fast))
        deblurrer.strength = settings.strength
        job, config = _job(found, settings, self.folder)
        timing = deblur(deblurrer, job, config, watch=watch)
        state.seconds = timing.seconds
        state.facts = found_by(streams[0])
        if found in self.found and deblurrer.model.opening:  # it looked for the shutter
            self.found[self.found.index(found)] = dataclasses.replace(found, facts=state.facts)
        assert job.output is not None
        if cancelled.is_set():
            job.output.unlink(missing_ok=True)
            raise _Cancelled
        self.results.append(_result(found, job.output, settings))
        state.result = len(self.results) - 1


def look_at(path: Path, folder: Path) -> Found:
    """Returns what the header and the first frame of a file say.

    Args:
      path: the file.
      folder: where its result will be.

    Raises:
      UserError: it is neither a video nor an image that can be read.
    """
    (job,) = plan([str(path)], DeblurConfig(out_dir=str(folder)))
    if job.kind == "images":
        info = ImageReader(job.paths, rate=Fraction(25), max_pixels=MAX_PIXELS).info
        return Found(path, False, info.height, info.width, 1, None)
    with VideoReader(path) as reader:
        info = reader.info
    height, width = info.height, info.width
    if info.quarter_turns % 2:
        height, width = width, height
    rate = float(info.rate)
    return Found(path, True, height, width, info.frames, rate)


def _job(found: Found, settings: Settings, folder: Path) -> tuple[Job, DeblurConfig]:
    part: dict[str, Any] = {}
    if found.is_video:
        length = None if settings.seconds is None else Time(settings.seconds)
        part = {"start": Time(settings.start), "duration": length}
    config = DeblurConfig(out_dir=str(folder), strength=settings.strength, quiet=True, **part)
    (job,) = plan([str(found.path)], config)
    assert job.output is not None
    output = job.output.with_stem(f"{found.path.stem}-sharp")
    return dataclasses.replace(job, output=output), config


def _result(found: Found, path: Path, settings: Settings) -> RestoredFile:
    if not found.is_video:
        return RestoredFile(found, path, [Fraction(0)], Fraction(0))
    times = _times_of(path)
    is_part = settings.start or settings.seconds is not None
    shift = Fraction(0)
    if is_part:
        with VideoReader(found.path) as reader:
            begins = Fraction(reader.container.start_time or 0, 1_000_000)
        shift = begins + Fraction(settings.start).limit_denominator(10**6)
    return RestoredFile(found, path, times, shift)


def _times_of(path: Path) -> list[Fraction]:
    """Returns the times of the frames in a video that was just written, in order."""
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        return sorted(
            Fraction(packet.pts * packet.time_base)
            for packet in container.demux(track)
            if packet.pts is not None
        )


def _frame_at(path: Path, time: Fraction) -> Frame8:
    """Returns the first frame at or after a time in the file, upright, in RGB."""
    with VideoReader(path) as reader:
        begins = Fraction(reader.container.start_time or 0, 1_000_000)
    with VideoReader(path, start=max(0.0, float(time - begins))) as reader:
        picture, info = next(iter(reader)), reader.info
    rgb = to_packed_rgb(picture.planes, info.layout, 8)
    return info.upright(rgb)


def _write_preview(path: Path, pixels: Frame8) -> None:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_PREVIEW, _PREVIEW))
    image.save(path, compress_level=1)


def _by_name(message: str, path: Path) -> str:
    """Returns a message in which the uploaded file has its own name."""
    return message.replace(str(path), path.name)
