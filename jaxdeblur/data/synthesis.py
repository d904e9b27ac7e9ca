"""Writes pairs of blurred and sharp frames made from high-speed video (eq. 1): a data set."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from jaxdeblur.data.cache import in_threads
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.videos import Video
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_folder_when_whole, write_json
from jaxdeblur.video.image_file import write_png


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a folder that becomes ``target`` when it is complete.

    Raises:
      UserError: ``target`` exists and is not an empty folder, or it cannot be written.
    """
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: already exists; remove it or choose another folder")
    try:
        with replace_folder_when_whole(target) as part:
            yield part
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error


def _write_video(video: Video, folder: Path) -> None:
    def write(index: int) -> None:
        for half, frame in (("blur", video.blurred(index)), ("sharp", video.sharp(index))):
            file = folder / half / video.name / f"{index:06d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_png(file, frame)

    in_threads(write, len(video), video.name, "frames")


def synthesise(source: Path, target: Path, exposure: Exposure) -> str:
    """Writes ``blur/``, ``sharp/`` and ``manifest.json`` to a new folder.

    Of a folder with splits it uses the training split.

    Returns:
      A line that says what was written.

    Raises:
      UserError: a frame or video cannot be read, a video is too short, or the folder exists or
        cannot be written.
    """
    with new_folder(target) as part:
        dataset = open_dataset(f"highspeed:{source}", "train", exposure=exposure)
        for video in dataset.videos:
            _write_video(video, part)
        made = {"source": str(source), **dataclasses.asdict(exposure)}
        write_json(part / "manifest.json", made)
    frames = sum(map(len, dataset.videos))
    return f"{target}: {frames} frames of {len(dataset.videos)} video(s), {dataset.variant}"
