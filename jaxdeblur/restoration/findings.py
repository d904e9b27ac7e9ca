"""What is found out about a video before it is restored, from its first frames or later ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.stream import Stream
from jaxdeblur.video.formats import MAX_PIXELS
from jaxdeblur.video.reader import VideoReader

_PLACES = 8  # Where to look, evenly over the video, until something moves.


def found_by(stream: Stream) -> dict[str, Any]:
    """Returns what a stream has found out, by the names of ``Deblurrer``'s options; {} if nothing.

    Without blur paths there is nothing to find, nor where nothing moved.
    """
    return stream.found if "light" in stream.found else {}


def find_out(
    deblurrer: Deblurrer, path: Path, *, max_pixels: int = MAX_PIXELS, start: float = 0.0
) -> dict[str, Any] | None:
    """Looks at the first frames of a video, and further on while nothing moves.

    Returns what ``found_by`` does, or None without blur paths, which would be looked for in vain.

    Args:
      deblurrer: the network; it is compiled for the video's size.
      path: the video.
      max_pixels: frames with more pixels are refused.
      start: where the first frames are, in seconds.

    Raises:
      UserError: the video cannot be read.
    """
    if not deblurrer.model.opening:
        return None
    for place in _places(path, start, max_pixels):
        with VideoReader(path, max_pixels=max_pixels, start=place) as reader:
            info = reader.info
            stream = deblurrer.open_stream(info.height, info.width, info.layout)
            stream.look([picture.planes for picture in itertools.islice(reader, stream.opening)])
        if found := found_by(stream):
            return found
    return {}


def _places(path: Path, start: float, max_pixels: int) -> Iterator[float]:
    """Yields the times to look at, in seconds."""
    yield start
    with VideoReader(path, max_pixels=max_pixels, start=start) as reader:
        seconds = (reader.info.frames or 0) / float(reader.info.rate)
    if seconds:
        yield from (start + seconds * place / _PLACES for place in range(1, _PLACES))
