"""Three stages at once: one thread reads, one feeds the network, and the caller's thread writes.

Queues of a few frames connect them, so memory does not grow with the video, and the slowest stage
alone determines the rate.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from jaxdeblur.errors import ProgressLine
from jaxdeblur.restoration.stream import Stream
from jaxdeblur.shapes import Plane
from jaxdeblur.video.picture import Picture

T = TypeVar("T")

Restored = tuple[Picture, tuple[Plane, ...]]
"""A picture as read, and its restored planes."""

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
    write: Callable[[Restored], None],
    progress: ProgressLine,
    *,
    began: float,
    patience: float | None = None,
) -> Timing:
    """Reads, restores and writes in parallel until the source ends; returns the timing.

    Args:
      source: pictures in the layout of the stream.
      stream: restores them.
      write: takes each picture with its restored planes.
      progress: is updated after each frame.
      began: the ``time.monotonic()`` to count from.
      patience: how many seconds to wait for the source to stop after a failure, since a source
        that waits for a pipe cannot be woken.
    """
    timing = Timing()
    stop = threading.Event()
    with (
        contextlib.closing(progress),
        _InThread(source, stop, patience) as pictures,
        _InThread(_restored(pictures, stream), stop) as results,
    ):
        for result in results:
            timing.frames += 1
            if timing.frames == 1:
                timing.first_frame = time.monotonic() - began
            progress.update(timing.frames)
            write(result)
    timing.seconds = time.monotonic() - began
    return timing


def _restored(pictures: _InThread[Picture], stream: Stream) -> Iterator[Restored]:
    waiting: collections.deque[Picture] = collections.deque()
    in_flight: collections.deque[Any] = collections.deque()

    def all_but(number: int) -> Iterator[Restored]:
        # Reading a result waits for the device, which by now has later frames queued.
        while len(in_flight) > number:
            yield waiting.popleft(), tuple(np.asarray(plane) for plane in in_flight.popleft())

    def planes() -> Iterator[tuple[Plane, ...]]:
        for picture in pictures:
            waiting.append(picture)
            yield picture.planes

    for restored in stream.restore(planes()):
        in_flight.append(restored)
        # A camera's next frame comes at an unknown time.
        yield from all_but(0 if pictures.is_starved else _AHEAD)
    yield from all_but(0)


class _InThread(Generic[T]):
    """Runs an iterable in a thread, a few items ahead; iteration raises its error.

    The end of the ``with`` block sets ``stop`` and waits for the thread, ``patience`` seconds if
    given.
    """

    def __init__(
        self, items: Iterable[T], stop: threading.Event, patience: float | None = None
    ) -> None:
        self._items, self._stop, self._patience = items, stop, patience
        self._queue: queue.Queue[Any] = queue.Queue(_DEPTH)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _InThread[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._patience)

    @property
    def is_starved(self) -> bool:
        """Whether no item is ready while more may come."""
        return self._queue.empty() and self._thread.is_alive()

    def __iter__(self) -> Iterator[T]:
        while not self._stop.is_set():
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is self:  # which marks the end
                break
            yield item
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            for item in self._items:
                self._put(item)
                if self._stop.is_set():
                    return
        except BaseException as error:
            self._error = error
        self._put(self)

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return
