"""Three parallel stages: a thread reads, the calling thread feeds the network, a thread writes.

Queues of a few frames connect them, so memory does not grow with the video, and the slowest stage
alone determines the rate.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
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

# Frames that may wait between two stages: enough to even out encoders, which take several frames
# before they return any, and few enough that 8K frames do not fill the memory.
_DEPTH = 3

# Frames whose work is queued on the device before the result of one is read: the parts of blur
# paths work on several frames at once.
_AHEAD = 2


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
    """Reads, restores and writes in parallel until the source ends; returns the timing.

    Args:
      source: pictures in the layout of the stream.
      stream: restores them.
      write: takes each picture with its restored planes, in another thread.
      progress: is updated after each frame.
      began: the ``time.monotonic()`` to count from, if work began earlier; by default now.
      patience: how many seconds to wait for the source to stop after a failure, since a source
        that waits for a pipe cannot be woken.
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
            # Reading the result waits for the device, which by now has later frames queued.
            planes = tuple(np.asarray(plane) for plane in restored)
            timing.frames += 1
            if timing.frames == 1:
                timing.first_frame = time.monotonic() - began
            progress.update(timing.frames)
            results.put((waiting.popleft(), planes))

        def restored_frames() -> Iterator[Any]:
            rest = iter(pictures)
            opening = [*itertools.islice(rest, stream.opening)]
            stream.look([picture.planes for picture in opening])
            for picture in itertools.chain(opening, rest):
                waiting.append(picture)
                restored = stream.push(picture.planes)
                if restored is not None:
                    yield restored
            yield from stream.flush()

        in_flight: collections.deque[Any] = collections.deque()
        for restored in restored_frames():
            in_flight.append(restored)
            # A camera's next frame comes at an unknown time.
            while len(in_flight) > (0 if pictures.starved else _AHEAD):
                hand_on(in_flight.popleft())
        for restored in in_flight:
            hand_on(restored)
        results.finish()
    timing.seconds = time.monotonic() - began
    return timing


class _Stage:
    """A thread with a queue of a few items; it ends with the ``with`` block."""

    def __init__(self, run: Callable[[], None], name: str, patience: float | None) -> None:
        self._patience = patience
        self._queue: queue.Queue[Any] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=run, name=name, daemon=True)

    def __enter__(self) -> Any:  # itself
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._patience)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class Reading(_Stage, Iterable[T]):
    """Runs an iterable in a thread, a few items ahead; iteration raises its error."""

    def __init__(self, items: Iterable[T], *, patience: float | None = None) -> None:
        super().__init__(self._run, "reading", patience)
        self._items = items

    @property
    def starved(self) -> bool:
        """Whether no item is ready while more may come."""
        return self._queue.empty() and self._thread.is_alive()

    def __iter__(self) -> Iterator[T]:
        while (item := self._queue.get()) is not self:  # which marks the end
            yield item
        self._raise_error()

    def _run(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._error = error
        self._put(self)


class Writing(_Stage):
    """Calls a function in a thread, a few items behind; the next ``put`` raises its error."""

    def __init__(self, function: Callable[[Any], None], *, patience: float | None = None) -> None:
        super().__init__(self._run, "writing", patience)
        self._function = function

    def put(self, item: Any) -> None:
        """Queues an item; raises what the function raised for an earlier one."""
        self._put(item)
        self._raise_error()

    def finish(self) -> None:
        """Waits until all items are done; raises what the function raised."""
        while self._queue.unfinished_tasks and not self._stop.is_set():
            time.sleep(0.002)
        self._raise_error()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with contextlib.suppress(queue.Empty):
                    self._function(self._queue.get(timeout=0.1))
                    self._queue.task_done()
        except BaseException as error:
            self._error = error
            self._stop.set()
