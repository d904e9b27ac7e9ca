"""A camera as a source of pictures; frames that cannot be restored in time are dropped."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from jaxdeblur.errors import UserError
from jaxdeblur.video.ffmpeg import av, describe, frame_planes, reason
from jaxdeblur.video.formats import CAMERA
from jaxdeblur.video.picture import Picture, PictureSource

_TICK = Fraction(1, 1000)


def open_device(name: str, options: dict[str, str]) -> Any:
    """Opens a camera by the system's interface: V4L2 or AVFoundation.

    Raises:
      OSError, ValueError: there is no such camera, or this FFmpeg cannot open cameras.
    """
    if sys.platform == "darwin":
        return av.open(f"{name}:none", format="avfoundation", options=options)
    device = f"/dev/video{name}" if name.isdigit() else name
    return av.open(device, format="v4l2", options=options)


class CameraReader(PictureSource):
    """Reads a camera until it ends, ``duration`` has passed or the user stops it (ctrl-C).

    A thread takes every frame from the device and keeps only the newest, which a slower consumer
    receives. Timestamps come from the clock, so the video plays at real speed.

    Attributes:
      dropped: number of frames that were captured but not handed on.
    """

    def __init__(
        self,
        name: str,
        *,
        size: tuple[int, int] | None = None,
        rate: Fraction | None = None,
        duration: float | None = None,
        max_pixels: int,
    ):
        """Opens the camera and waits for its first frame.

        Args:
          name: the camera as on the command line, with its prefix.
          size: height and width to request; None for the camera's default.
          rate: frames per second to request; None for the camera's default.
          duration: seconds after which to stop; None for no limit.
          max_pixels: larger frames are refused.

        Raises:
          UserError: there is no such camera, or it delivers no frame of a permitted size.
        """
        self.name, self.dropped = name, 0
        self._duration = math.inf if duration is None else duration
        self._newest: queue.Queue[tuple[float, Any]] = queue.Queue(1)
        self._error: Exception | None = None
        self._stopped = threading.Event()
        options = {} if size is None else {"video_size": f"{size[1]}x{size[0]}"}
        if rate is not None:
            options["framerate"] = str(rate)
        try:
            container = open_device(name.removeprefix(CAMERA), options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{name}: cannot open the camera: {reason(error)}") from error
        self._thread = threading.Thread(target=self._take, args=(container,), daemon=True)
        self._thread.start()
        first = self._next()
        if first is None:
            raise UserError(f"{name}: the camera delivers no frames")
        self._began, frame = first
        if frame.width * frame.height > max_pixels:
            self.stop()
            given = f"{frame.width}x{frame.height}"
            raise UserError(f"{name}: frames of {given} exceed --max-pixels={max_pixels}")
        track = container.streams.video[0]
        rate_given = Fraction(track.average_rate or track.guessed_rate or 30)
        found = describe(frame, track, rate=rate_given, time_base=_TICK)
        # A camera's codec is not one to store a video in.
        self.info = dataclasses.replace(found, codec=None)

    def __enter__(self) -> CameraReader:
        # Ctrl-C ends the recording, not the program: all recorded frames are still written.
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, lambda *_: self.stop())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(1.0)
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def stop(self) -> None:
        """Stops reading; frames already handed on are still restored."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Picture]:
        """Yields the newest frame each time; raises UserError if the camera fails."""
        # The first frame only gave the size; now that everything is compiled, a newer one exists.
        given, last = self._next(), -1
        self._began = given[0] if given else self._began
        self.dropped = 0
        while given is not None and given[0] - self._began < self._duration:
            taken, frame = given
            if (frame.height, frame.width) != (self.info.height, self.info.width):
                raise UserError(f"{self.name}: the frame size changed")
            last = max(last + 1, round((taken - self._began) / _TICK))
            yield Picture(*frame_planes(frame, self.info.pixel_format), pts=last)
            given = self._next()

    def _take(self, container: Any) -> None:
        try:
            with container:
                frames = container.decode(video=0)
                while not self._stopped.is_set():
                    try:
                        frame = next(frames)
                    except BlockingIOError:  # AVFoundation has no frame yet
                        time.sleep(0.005)
                        frames = container.decode(video=0)
                        continue
                    with contextlib.suppress(queue.Empty):
                        self._newest.get_nowait()
                        self.dropped += 1
                    self._newest.put((time.monotonic(), frame))
        except StopIteration:
            pass
        except (av.FFmpegError, OSError, ValueError) as error:
            self._error = error

    def _next(self) -> tuple[float, Any] | None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                return self._newest.get(timeout=0.1)
            if self._error is not None:
                raise UserError(f"{self.name}: the camera failed: {reason(self._error)}")
            if not self._thread.is_alive():
                break
        return None
