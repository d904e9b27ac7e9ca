"""Supported formats by file name: suffixes, and folders of frames in natural order.

No file is opened here, and neither JAX nor FFmpeg is imported.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable
from pathlib import Path

from jaxdeblur.errors import UserError

CONTAINERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
}
"""The suffixes of writable videos, with FFmpeg's name of the container."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp"),
        *(".tif", ".tiff", ".ppm", ".avif"),
    }
)
"""The suffixes, in lower case, of the images that are read and written."""

UNREADABLE_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".exr", ".hdr", ".dpx", ".psd", ".tga"),
        *(".pgm", ".pbm", ".pnm", ".pam", ".ico", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
        *(".raf", ".orf", ".rw2", ".pef", ".srw", ".raw", ".3fr", ".iiq"),
        *(".rwl", ".nrw", ".x3f", ".erf", ".dcr", ".kdc", ".mrw", ".mef", ".mos", ".fff", ".gpr"),
        *(".mpo", ".apng", ".avifs", ".heics", ".heifs", ".insp", ".jpf", ".jpx", ".jxr", ".wdp"),
        *(".psb", ".xcf", ".qoi", ".pfm", ".fits", ".fit", ".dib", ".pcx", ".sgi"),
    }
)
"""The suffixes, in lower case, of images for which there is no decoder here."""

RAW_SUFFIXES = frozenset(
    {
        *(".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".obu"),
        *(".mjpeg", ".mjpg", ".m1v", ".m2v"),
    }
)
"""The suffixes, in lower case, of raw streams of video, which may not state their frame rate."""

# Videos that are read but not written.
_OTHER_VIDEOS = {
    *(".gif", ".mpg", ".mpeg", ".vob", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv"),
    *(".mxf", ".dv", ".y4m", ".ivf", ".nut", ".insv", ".lrv", ".mod", ".tod"),
}

ANIMATED_SUFFIXES = frozenset({".gif", ".webp"})
"""The suffixes, in lower case, of the animations that show before and after."""

CAMERA = "camera:"
"""The prefix of a camera's name: ``camera:0``, or ``camera:`` and the device's name."""

MAX_PIXELS = 8192 * 8192
"""The default limit on the pixels of an image (200 MB as RGB): an 8K frame has half as many."""


def list_frames(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns the image files of ``folder`` in natural order (frame2 before frame10).

    Hidden files and sub-folders are skipped. The list is empty if there is no image. Broken links
    are listed, so that reading them reports the error.

    Raises:
      UserError: ``folder`` is not a folder or cannot be read.
    """
    folder = Path(folder)
    try:
        frames = [
            path
            for path in folder.iterdir()
            if is_image(path) and not path.name.startswith(".") and not os.path.isdir(path)
        ]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read as a folder: {error.strerror}") from error
    return sorted(frames, key=lambda frame: natural_key(frame.name))


def left_out(names: Iterable[str], folders: int = 0) -> str:
    """Returns which images and videos are not read among image files: ``2 .heic, 1 .mov``.

    Args:
      names: names of files.
      folders: how many folders are among them.
    """
    suffixes = (os.path.splitext(name)[1].lower() for name in names if not name.startswith("."))
    known = UNREADABLE_SUFFIXES | RAW_SUFFIXES | CONTAINERS.keys() | _OTHER_VIDEOS
    counts = collections.Counter(suffix for suffix in suffixes if suffix in known)
    texts = [f"{count} {suffix}" for suffix, count in sorted(counts.items())]
    if folders:
        texts.append("1 folder" if folders == 1 else f"{folders} folders")
    return ", ".join(texts)


def natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    """Returns a sort key that orders numbers inside names by value: frame2 before frame10."""
    pieces = re.findall(r"([0-9]+)|([^0-9]+)", name)
    return [(int(digits), "") if digits else (-1, text) for digits, text in pieces], name


def is_image(path: Path) -> bool:
    """Returns whether a file has the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES
