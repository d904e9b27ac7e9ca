"""A command that turns high-speed video into pairs of blurred and sharp frames (eq. 1).

``python -m jaxdeblur.data.synthesis IN OUT --tau=11 --period=12`` writes a data set of pairs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from jaxdeblur.console import run_command
from jaxdeblur.data.cache import in_threads
from jaxdeblur.data.datasets import open_dataset
from jaxdeblur.data.exposure import Exposure
from jaxdeblur.data.videos import Video
from jaxdeblur.errors import UserError
from jaxdeblur.files import replace_folder_when_whole, write_json
from jaxdeblur.options import Parser
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


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; see ``--help``. Of a folder with splits it uses the training split.

    Raises:
      UserError: a frame or video cannot be read, a video is too short, the folder exists or cannot
        be written, or T > tau does not hold.
    """
    parser = Parser(
        prog="python -m jaxdeblur.data.synthesis",
        description="Turns high-speed video into pairs of blurred and sharp frames (eq. 1): "
        "every T frames, the mean of tau frames and the frame in the middle of that exposure.",
    )
    parser.add_argument(
        "source", metavar="IN", type=Path, help="a video, a folder of frames, or a folder of either"
    )
    parser.add_argument(
        "target", metavar="OUT", type=Path, help="the new folder: blur/, sharp/ and manifest.json"
    )
    parser.add_argument("--tau", type=int, default=11, help="frames in an exposure")
    parser.add_argument("--period", type=int, help="T, frames between the starts of two (tau + 1)")
    parser.add_argument("--linear", action="store_true", help="average light, not stored values")
    given = parser.parse_args(arguments)
    period = given.tau + 1 if given.period is None else given.period
    exposure = Exposure(given.tau, period, given.linear)
    if period <= given.tau:
        raise UserError(f"period must be above tau, {given.tau}, not {period} (eq. 1 has T > tau)")
    with new_folder(given.target) as part:
        dataset = open_dataset(f"highspeed:{given.source}", "train", exposure=exposure)
        for video in dataset.videos:
            _write_video(video, part)
        made = {"source": str(given.source), **dataclasses.asdict(exposure)}
        write_json(part / "manifest.json", made)
    frames = sum(map(len, dataset.videos))
    print(f"{given.target}: {frames} frames of {len(dataset.videos)} video(s), {dataset.variant}")


if __name__ == "__main__":
    run_command(main, "synthesis")
