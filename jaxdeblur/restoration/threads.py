"""Three stages at once: a thread reads, this thread feeds the network, a thread writes.

Queues of a few frames lie between them, so memory does not grow with the video, and the rate is
that of the slowest stage, not of the sum.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from jaxdeblur.errors import ProgressLine
from jaxdeblur.restoration.stream import Stream
from jaxdeblur.shapes import Plane
from jaxdeblur.video.picture import Picture

T = TypeVar("T")

# Frames that may wait between two stages: enough to level out encoders, which take several frames
# before they give any, and few enough that 8K frames do not fill the memory.
_DEPTH = 3


@dataclasses.dataclass
class Timing:
    """Where the time of a restoration went: seconds that each stage was busy."""

    frames: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    restoring: float = 0.0
    writing: float = 0.0
    first_frame: float = 0.0
    """Until the first frame was restored, from the start: mostly compilation."""

    def __str__(self) -> str:
        rate = self.frames / max(self.seconds, 1e-9)
        stages = ("reading", "restoring", "writing")
        busy = ", ".join(
            f"{stage} {getattr(self, stage) / max(self.seconds, 1e-9):.0%}" for stage in stages
        )
        frames = "1 frame" if self.frames == 1 else f"{self.frames} frames"
        return (
            f"{frames} in {self.seconds:.1f} s, {rate:.2f} frames/s "
            f"(first after {self.first_frame:.1f} s; busy: {busy})"
        )


def run_stages(
    source: Iterable[Picture],
    stream: Stream,
    write: Callable[[tuple[Picture, tuple[Plane, ...]]], None],
    progress: ProgressLine,
    *,
    began: float | None = None,
    patience: float | None = None,
    write_patience: float | None = None,
) -> Timing:
    """Reads, restores and writes at once until the source ends; gives where the time went.

    Args:
      source: pictures in the layout of the stream.
      stream: restores them.
      write: takes each picture with its restored planes, in another thread.
      progress: is told of each frame.
      began: the ``time.monotonic()`` from which to count, if something came before.
      patience: how many seconds to wait for the source to stop if something fails; a source that
        waits for a pipe cannot be woken.
      write_patience: the same for ``write``.
    """
    timing = Timing()
    began = time.monotonic() if began is None else began
    waiting: collections.deque[Picture] = collections.deque()
    with (
        contextlib.closing(progress),
        Reading(source, patience=patience) as pictures,
        Writing(write, patience=write_patience) as results,
    ):

        def hand_on(restored: Any) -> None:
            # Reading the result waits for the device, which by now has the next frame to do.
            planes = tuple(np.asarray(plane) for plane in restored)
            timing.frames += 1
            if timing.frames == 1:
                timing.first_frame = time.monotonic() - began
            progress.update(timing.frames)
            results.put((waiting.popleft(), planes))

        def restored_frames() -> Iterator[Any]:
            for picture in pictures:
                waiting.append(picture)
                restored = stream.push(picture.planes)
                if restored is not None:
                    yield restored
            yield from stream.flush()

        in_flight = None
        for restored in restored_frames():
            if in_flight is not None:
                hand_on(in_flight)
            in_flight = restored
            if pictures.starved:  # of a camera nobody knows when the next frame comes
                hand_on(in_flight)
                in_flight = None
        if in_flight is not None:
            hand_on(in_flight)
        results.finish()
    timing.seconds = time.monotonic() - began
    timing.reading, timing.writing = pictures.busy, results.busy
    timing.restoring = timing.seconds - pictures.waited - results.waited
    return timing


class Reading(Iterable[T]):
    """Runs an iterable in a thread, a few items ahead; its error is raised where it is iterated.

    Attributes:
      busy: seconds that the iterable worked.
      waited: seconds that the consumer waited for it.
    """

    def __init__(
        self, items: Iterable[T], depth: int = _DEPTH, *, patience: float | None = None
    ) -> None:
        self.busy = self.waited = 0.0
        self._patience = patience
        self._items = items
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)

    def __enter__(self) -> Reading[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(self._patience)

    @property
    def starved(self) -> bool:
        """Whether nothing is ready, and there may be more to come."""
        return self._queue.empty() and self._thread.is_alive()

    def __iter__(self) -> Iterator[T]:
        while True:
            began = time.monotonic()
            kind, value = self._queue.get()
            self.waited += time.monotonic() - began
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value

    def _run(self) -> None:
        try:
            items = iter(self._items)
            while not self._stop.is_set():
                began = time.monotonic()
                item = next(items, self)
                self.busy += time.monotonic() - began
                if item is self:
                    self._put("end", None)
                    return
                self._put("item", item)
        except BaseException as error:
            self._put("error", error)

    def _put(self, kind: str, value: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put((kind, value), timeout=0.1)
                return


class Writing:
    """Calls a function in a thread, a few items behind; its error is raised at the next ``put``.

    Attributes:
      busy: seconds that the function worked.
      waited: seconds that the producer waited for it.
    """

    def __init__(
        self,
        function: Callable[[Any], None],
        depth: int = _DEPTH,
        *,
        patience: float | None = None,
    ) -> None:
        self.busy = self.waited = 0.0
        self._patience = patience
        self._function = function
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writing", daemon=True)

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._patience)

    def put(self, item: Any) -> None:
        """Hands on an item; raises what the function raised for an earlier one."""
        began = time.monotonic()
        while True:
            if self._error is not None:
                raise self._error
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                break
        self.waited += time.monotonic() - began

    def finish(self) -> None:
        """Waits until all items are done; raises what the function raised."""
        began = time.monotonic()
        while self._queue.unfinished_tasks and self._error is None:
            time.sleep(0.002)
        self.waited += time.monotonic() - began
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            began = time.monotonic()
            try:
                self._function(item)
            except BaseException as error:
                self._error = error
                return
            self.busy += time.monotonic() - began
            self._queue.task_done()
