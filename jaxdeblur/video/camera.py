"""A camera as a source of pictures: what cannot be restored in time is dropped, not piled up."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxdeblur.errors import UserError
from jaxdeblur.video.container import av, reason
from jaxdeblur.video.ffmpeg_frames import describe, frame_planes
from jaxdeblur.video.formats import CAMERA
from jaxdeblur.video.picture import Picture, PictureSource

_TICK = Fraction(1, 1000)


def open_device(name: str, options: dict[str, str]) -> Any:
    """The container of a camera, by V4L2, AVFoundation or DirectShow, whichever the system has.

    Raises:
      OSError, ValueError: there is no such camera, or this FFmpeg cannot open any.
    """
    if sys.platform == "darwin":
        return av.open(f"{name}:none", format="avfoundation", options=options)
    if sys.platform == "win32":
        return av.open(f"video={name}", format="dshow", options=options)
    device = f"/dev/video{name}" if name.isdigit() else name
    return av.open(device, format="v4l2", options=options)


class CameraReader(PictureSource):
    """Reads a camera until it ends, ``duration`` is over or somebody stops it (ctrl-C).

    A thread takes every frame from the device and keeps the newest; whoever is slower than the
    camera gets that one. Timestamps are those of the clock, so the video plays at real speed.

    Attributes:
      dropped: how many frames were taken and not handed on.
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
        """Opens the camera and takes its first frame.

        Args:
          name: as on the command line, with its prefix.
          size: height and width to ask the camera for; None for its own.
          rate: frames a second to ask it for.
          duration: seconds after which to end; None for never.
          max_pixels: larger frames are refused.

        Raises:
          UserError: there is no such camera, or it gives no frame of a size and format that can be
            restored.
        """
        self.name, self.dropped = name, 0
        self._duration = duration
        self._news = threading.Condition()
        self._newest: tuple[float, Any] | None = None
        self._error: Exception | None = None
        self._stopping = False
        options = {} if size is None else {"video_size": f"{size[1]}x{size[0]}"}
        if rate is not None:
            options["framerate"] = str(rate)
        try:
            container = open_device(name.removeprefix(CAMERA), options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UserError(f"{name}: no camera can be opened by it: {reason(error)}") from error
        self._thread = threading.Thread(
            target=self._take, args=(container,), name="camera", daemon=True
        )
        self._thread.start()
        first = self._next()
        if first is None:
            raise UserError(f"{name}: the camera gives no frame")
        frame = first[1]
        if frame.width * frame.height > max_pixels:
            self.stop()
            given = f"{frame.width}x{frame.height}"
            raise UserError(f"{name}: gives {given}, over --max-pixels={max_pixels}")
        track = container.streams.video[0]
        rate_given = Fraction(track.average_rate or track.guessed_rate or 30)
        found = describe(frame, track, Path(name), rate=rate_given, time_base=_TICK)
        # What a camera sends is no codec to keep a video in.
        self.info = dataclasses.replace(found, codec=None)
        self._began = time.monotonic()
        self._longest_delay = 0.0

    def __enter__(self) -> CameraReader:
        # Ctrl-C ends the recording, not the program: what was recorded is written to its end.
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
        """Ends the reading; the frames that were handed on are still restored."""
        with self._news:
            self._stopping = True
            self._news.notify_all()

    def __iter__(self) -> Iterator[Picture]:
        """The newest frame each time; UserError if the camera fails."""
        # The first frame told the size; by now, with everything compiled, there is a newer one.
        given, last = self._next(), -1
        self._began = given[0] if given else self._began
        self.dropped = 0
        while given is not None:
            taken, frame = given
            since = taken - self._began
            if self._duration is not None and since >= self._duration:
                return
            if (frame.height, frame.width) != (self.info.height, self.info.width):
                raise UserError(f"{self.name}: the size of its frames changed")
            last = max(last + 1, round(since / _TICK))
            yield Picture(*frame_planes(frame, self.info.pixel_format), pts=last)
            given = self._next()

    def delay(self, picture: Picture) -> float:
        """Seconds since a picture was taken."""
        return time.monotonic() - self._began - float(picture.pts * _TICK)

    def note_written(self, picture: Picture) -> None:
        """Told of each picture that has been written, for the ``summary``."""
        self._longest_delay = max(self._longest_delay, self.delay(picture))

    @property
    def summary(self) -> str:
        """How late frames were written, and how many never."""
        return f"{1000 * self._longest_delay:.0f} ms late at most, {self.dropped} frames dropped"

    def _take(self, container: Any) -> None:
        try:
            with container:
                for frame in container.decode(video=0):
                    with self._news:
                        if self._stopping:
                            break
                        self.dropped += self._newest is not None
                        self._newest = (time.monotonic(), frame)
                        self._news.notify_all()
        except (av.FFmpegError, OSError, ValueError) as error:
            self._error = error

    def _next(self) -> tuple[float, Any] | None:
        with self._news:
            while self._newest is None and self._thread.is_alive() and not self._stopping:
                self._news.wait(0.1)  # so that ctrl-C or an end is noticed where no frame comes
            given, self._newest = self._newest, None
        if given is None and self._error is not None and not self._stopping:
            raise UserError(f"{self.name}: the camera failed: {reason(self._error)}")
        return None if self._stopping else given
