"""``jaxdeblur prepare``: checks GOPRO, DVD and BSD, and writes what published tables score.

``jaxdeblur prepare GOPRO SRC DST --protocol=estrnn`` reads a download and writes a folder for
``--data``. Frames that change are written as PNG, and all others are links to the download.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxdeblur.console import ProgressLine
from jaxdeblur.data.exposure import average
from jaxdeblur.data.synthesis import new_folder
from jaxdeblur.errors import UserError
from jaxdeblur.options import Parser
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.formats import list_frames, natural_key
from jaxdeblur.video.image_file import read_image, write_png


class Published(NamedTuple):
    """A data set as its authors published it.

    Attributes:
      folders: subfolders of a video: the blurred frames, then the sharp ones.
      splits: the number of videos and of frames in each split.
    """

    folders: tuple[str, ...]
    splits: dict[str, tuple[int, int]]


PUBLISHED = {
    # Nah et al. 2017: 3,214 pairs.
    "GOPRO": Published(("blur", "blur_gamma", "sharp"), {"train": (22, 2103), "test": (11, 1111)}),
    # Su et al. 2017: all 71 videos lie in one folder; layouts.py lists the test videos.
    "DVD": Published(("input", "GT"), {"quantitative_datasets": (71, 6708)}),
    # Zhong et al. 2022, for each exposure time.
    "BSD": Published(
        ("Blur/RGB", "Sharp/RGB"), {"train": (60, 6000), "valid": (20, 2000), "test": (20, 3000)}
    ),
}


def check(name: str, source: Path) -> list[str]:
    """Lists what a download lacks or has unlike the published one, a line each; empty if whole.

    The number of frames in GOPRO_Large_all is not published, so it is not checked.
    """
    published, said = PUBLISHED[name], []
    folders = () if _is_high_speed(name, source) else published.folders
    for split, (videos, frames) in published.splits.items():
        found = _videos(source / split)
        if len(found) != videos:
            said.append(f"{source / split}: {len(found)} videos, expected {videos}")
        for folder in folders:
            count = sum(len(_frames(video / folder)) for video in found)
            if count != frames:
                said.append(f"{source / split}/*/{folder}: {count} frames, expected {frames}")
    return said


def _pairs(folders: tuple[str, ...], video: Path) -> Iterator[tuple[str, Path | Frame8]]:
    """Yields the frames of a video with their paths below its folder."""
    for folder in folders:
        yield from ((f"{folder}/{file.name}", file) for file in _frames(video / folder))


def blurred(tau: int | None, as_printed: bool, video: Path) -> Iterator[tuple[str, Path | Frame8]]:
    """Yields frames made from GOPRO_Large_all by eq. 1 (ICCV 2017), with their paths.

    Exposures follow without a gap. The sharp frame as printed is X_{nT + floor(tau/2)}, counted
    from 1: for an odd tau, that is the frame before the middle one, which GOPRO uses.

    Raises:
      UserError: the video's name gives no tau, or a frame cannot be read.
    """
    if tau is None:
        if not (named := re.fullmatch(r".*_(\d\d)_\d\d", video.name)):
            raise UserError(f"{video}: no tau in the name, unlike GOPR0372_07_00; give --tau")
        tau = int(named[1])
    middle = tau // 2 - 1 if as_printed else (tau - 1) // 2
    files = _frames(video)
    for n in range(len(files) // tau):
        exposure = np.stack([read_image(file) for file in files[n * tau : (n + 1) * tau]])
        yield f"blur/{n + 1:06d}.png", average(exposure)
        yield f"blur_gamma/{n + 1:06d}.png", average(exposure, linear=True)
        yield f"sharp/{n + 1:06d}.png", exposure[middle]


def scaled(frame: Frame8) -> UInt8[np.ndarray, "rows columns 3"]:
    """Scales to three quarters by area averaging. How ESTRNN's authors do it is not known."""
    height, width, _ = frame.shape
    fine = Image.fromarray(frame).resize((3 * width, 3 * height), Image.Resampling.NEAREST)
    return np.asarray(fine.reduce(4))


def turned(frame: Frame8) -> UInt8[np.ndarray, "rows columns 3"]:
    """Rotates a portrait frame by 90 degrees; returns others unchanged."""
    return np.ascontiguousarray(np.rot90(frame)) if frame.shape[0] > frame.shape[1] else frame


CHANGES: dict[tuple[str, str | None], Callable[[Frame8], np.ndarray]] = {
    ("GOPRO", "estrnn"): scaled,
    ("DVD", "pvdnet"): turned,
}
"""How a protocol changes a data set's frames; other combinations score them unchanged."""


def _is_high_speed(name: str, source: Path) -> bool:
    """Returns whether this is GOPRO_Large_all, whose videos hold frames, not folders of them."""
    videos = [video for split in ("train", "test") for video in _videos(source / split)]
    return name == "GOPRO" and any(map(_frames, videos))


def _videos(folder: Path) -> list[Path]:
    found = [f for f in folder.glob("*") if f.is_dir() and not f.name.startswith(".")]
    return sorted(found, key=lambda f: natural_key(f.name))


def _frames(folder: Path) -> list[Path]:
    return list_frames(folder) if folder.is_dir() else []


def main(name: str = "jaxdeblur prepare") -> None:
    """Reads the options and writes the folder.

    Raises:
      UserError: the options conflict, the download is not as published, or files cannot be read
        or written.
    """
    parser = Parser(
        prog=name,
        description="Checks a download of GOPRO, DVD or BSD against the published data set and "
        "writes the folder that a protocol of published tables scores.",
    )
    parser.add_argument("name", choices=PUBLISHED, help="the data set")
    parser.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="the download: GOPRO_Large or GOPRO_Large_all, DVD's folder that holds "
        "quantitative_datasets, or BSD's of one exposure time",
    )
    parser.add_argument("target", metavar="DST", type=Path, help="the new folder, for --data")
    parser.add_argument(
        "--protocol",
        choices=("estrnn", "pvdnet"),
        help="estrnn: GOPRO at 960x540; pvdnet: DVD's portrait videos rotated; all others score "
        "the frames unchanged",
    )
    parser.add_argument(
        "--tau",
        type=int,
        choices=range(7, 14),
        help="for GOPRO_Large_all: high-speed frames in an exposure; by default GOPRO's, which the "
        "videos' names give",
    )
    parser.add_argument(
        "--as-printed",
        action="store_true",
        help="for GOPRO_Large_all: the sharp frame of eq. 1 as printed, not GOPRO's middle one",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="write what is there even if the download is incomplete",
    )
    given = parser.parse_args()
    dataset, source = given.name, given.source
    is_fast = _is_high_speed(dataset, source)
    if (given.tau or given.as_printed) and not is_fast:
        raise UserError(
            "--tau and --as-printed apply only to GOPRO_Large_all, whose frames are averaged"
        )
    change = CHANGES.get((dataset, given.protocol))
    if given.protocol and change is None:
        raise UserError(f"--protocol={given.protocol}: does not change {dataset}; leave it out")
    if missing := check(dataset, source):
        print(*missing, sep="\n", file=sys.stderr)
        if not given.partial:
            raise UserError(
                f"{source}: differs from {dataset} as published; use --partial to prepare it anyway"
            )
    if is_fast:
        make = functools.partial(blurred, given.tau, given.as_printed)
    else:
        make = functools.partial(_pairs, PUBLISHED[dataset].folders)
    count = 0
    with new_folder(given.target) as part:
        for video in [v for split in PUBLISHED[dataset].splits for v in _videos(source / split)]:
            line = ProgressLine(video.name, None, stays=True)
            for number, (place, frame) in enumerate(make(video), 1):
                into = part / video.relative_to(source) / place
                into.parent.mkdir(parents=True, exist_ok=True)
                if change:
                    pixels = read_image(frame) if isinstance(frame, Path) else frame
                    write_png(into.with_suffix(".png"), change(pixels))
                elif isinstance(frame, Path):
                    into.symlink_to(frame.absolute())
                else:
                    write_png(into, frame)
                line.update(number)
                count += 1
            line.close()
    print(f"{given.target}: {count} frames")
