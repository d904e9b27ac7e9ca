"""Three stages at once: one thread reads, one feeds the network, and the caller's thread writes.

Queues of a few frames connect them, so memory does not grow with the video, and the slowest stage
alone determines the rate.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np

from jaxdeblur import devices
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
# paths work on several frames at once. The latter where memory is scarce.
_AHEAD, _LEAST_AHEAD = 2, 1


def in_stages(
    source: Iterable[Picture], stream: Stream, patience: float | None = None
) -> Generator[Restored, None, None]:
    """Yields each picture with its restored planes, while threads read and restore the next ones.

    ``patience`` is how many seconds to wait for the source to stop after a failure, since a source
    that waits for a pipe cannot be woken.
    """
    stop = threading.Event()
    with (
        _InThread(source, stop, patience) as pictures,
        _InThread(_restored(pictures, stream), stop) as results,
    ):
        yield from results


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

    is_first = True
    for restored in stream.restore(planes()):
        in_flight.append(restored)
        ahead = _LEAST_AHEAD if devices.memory_is_scarce() else _AHEAD
        # Someone waits for the first frame, and a camera's next one comes at an unknown time.
        yield from all_but(0 if is_first or pictures.is_starved else ahead)
        is_first = False
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
