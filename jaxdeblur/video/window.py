"""A window that shows pictures as they are restored, where OpenCV is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from jaxdeblur.errors import UserError
from jaxdeblur.video.picture import Picture, VideoInfo
from jaxdeblur.video.pixels import to_packed_rgb


class Window:
    """A target of pictures; closing it, or q, calls ``stop``.

    Attributes:
      lost: nothing, since nothing is kept.
    """

    def __init__(self, title: str, info: VideoInfo, stop: Callable[[], None]):
        """Raises :class:`UserError` where OpenCV is not installed."""
        try:
            import cv2
        except ImportError as error:
            raise UserError("--show needs OpenCV: pip install opencv-python") from error
        self._cv2: Any = cv2
        self._title, self._info, self._stop = title, info, stop
        self.lost: list[str] = []

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(self._cv2.error):  # there may be none
            self._cv2.destroyAllWindows()

    def write(self, picture: Picture) -> None:
        """Shows it."""
        rgb = to_packed_rgb(picture.planes, self._info.layout, 8)
        try:
            self._cv2.imshow(self._title, rgb[..., ::-1])  # OpenCV's order is BGR
            key = self._cv2.waitKey(1) & 0xFF
        except self._cv2.error as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--show: no window can be opened: {reason}") from error
        if key in (27, ord("q")):
            self._stop()

    def copy(self, packets: Any) -> None:
        """Sound and the like are not shown."""
