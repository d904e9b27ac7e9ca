"""High-speed video into pairs of blurred and sharp frames (eq. 1), as a command.

``python -m jaxdeblur.data.synthesis IN OUT --tau=11 --period=12`` writes a data set of pairs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdeblur.data.exposure import GAMMA, Exposure, synthesise
from jaxdeblur.data.frames import FrameFiles, VideoFile
from jaxdeblur.data.layouts import high_speed_videos
from jaxdeblur.errors import ProgressLine, UserError, run_command
from jaxdeblur.files import ended_by_signals, replace_folder_when_whole, write_json
from jaxdeblur.options import Parser
from jaxdeblur.shapes import Frame8
from jaxdeblur.video.formats import MAX_PIXELS, list_frames
from jaxdeblur.video.image_file import image_size, write_png


def write_pairs(
    source: Path,
    target: Path,
    exposure: Exposure,
    *,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, Any]:
    """Turns high-speed videos into the folders ``blur`` and ``sharp``, all or nothing.

    Args:
      source: a video file, a folder of frames, or a folder of such folders and video files; then
        ``blur`` and ``sharp`` have a folder for each.
      target: the new folder. It gets a ``manifest.json`` that says how it was made.
      overwrite: replaces a ``target`` that this function made.

    Returns:
      The manifest.

    Raises:
      UserError: a frame or video cannot be read or one is too short, ``target`` exists or cannot be
        written, or T > tau does not hold.
    """
    if exposure.period <= exposure.tau:
        raise UserError(
            f"period: {exposure.period} must be above tau, {exposure.tau} (eq. 1 has T > tau)"
        )
    if os.path.lexists(target):
        if not overwrite:
            raise UserError(f"{target}: exists (--overwrite replaces what this command made)")
        if os.path.islink(target):
            raise UserError(f"{target}: is a link; name the folder that it leads to")
        if not os.path.isfile(target / _MANIFEST) or not os.path.isdir(target / "blur"):
            raise UserError(f"{target}: was not made by this command, so it is not overwritten")
    if not os.path.exists(source):
        raise UserError(f"{source}: no such file or folder")
    found = high_speed_videos(source)
    alone = found[0].sharp == source
    old = None
    try:
        with replace_folder_when_whole(target) as part:
            videos = [
                _write_video(name, frames, part, "" if alone else name, exposure, max_pixels)
                for name, _, frames in found
            ]
            manifest = {
                "source": str(source),
                "tau": exposure.tau,
                "period": exposure.period,
                "duty": exposure.tau / exposure.period,
                "averaged": f"light (gamma {GAMMA})" if exposure.linear else "values as stored",
                "sharp": f"frame {exposure.middle} of each exposure, counted from 0",
                "videos": videos,
            }
            write_json(part / _MANIFEST, manifest)
            if os.path.lexists(target):  # stands aside until the new folder has its name
                old = Path(tempfile.mkdtemp(prefix=f".{target.name[:80]}.old", dir=target.parent))
                os.rename(target, old)
        if old:
            shutil.rmtree(old)
    except (OSError, ValueError) as error:  # ValueError: a name no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{target}: cannot be written: {reason}") from error
    return manifest


_MANIFEST = "manifest.json"


def _write_video(
    name: str,
    source: Path,
    target: Path,
    folder: str,
    exposure: Exposure,
    max_pixels: int,
) -> dict[str, Any]:
    """Writes the pairs of one video; returns its entry in the manifest."""
    opened: FrameFiles | VideoFile
    if os.path.isdir(source):
        files = list_frames(source)
        opened = FrameFiles(tuple(files), *image_size(files[0], max_pixels), max_pixels)
        total = exposure.count(len(files))
    else:
        opened, total = VideoFile.open(source, max_pixels), None
    taken = 0

    def frames() -> Iterator[Frame8]:
        nonlocal taken
        for frame in opened.stream():
            if isinstance(frame, UserError):
                raise frame
            taken += 1
            yield frame

    blurred_folder, sharp_folder = target / "blur" / folder, target / "sharp" / folder
    blurred_folder.mkdir(parents=True)
    sharp_folder.mkdir(parents=True)
    count = 0
    line = ProgressLine(name, total, stays=True)
    for blurred, sharp in synthesise(frames(), exposure):
        write_png(blurred_folder / f"{count:06d}.png", blurred)
        write_png(sharp_folder / f"{count:06d}.png", sharp)
        count += 1
        line.update(count)
    if not count:
        raise UserError(f"{name}: has {taken} frames, an exposure takes {exposure.tau}")
    line.close()
    return {
        "name": name,
        "high_speed_frames": taken,
        "frames": count,
        "height": opened.height,
        "width": opened.width,
    }


def exposure_from(
    tau: int | None, period: int | None, duty: float | None, linear: bool = False
) -> Exposure:
    """The exposure that two of ``tau``, ``period`` and ``duty`` = tau / period say.

    Without ``duty`` a missing tau is 11 and a missing period is tau + 1.

    Args:
      tau: frames that are averaged.
      period: frames from the start of one exposure to that of the next, T of eq. 1.
      duty: the share of the period in which the shutter is open.
      linear: averages light instead of stored values.

    Raises:
      UserError: all three are given, or the duty is not below 1.
    """
    if duty is None:
        tau = 11 if tau is None else tau
        return Exposure(tau, tau + 1 if period is None else period, linear)
    if not 1e-6 <= duty < 1:
        raise UserError(f"--duty={duty}: must lie between 0 and 1 (eq. 1 has T > tau)")
    if tau is not None and period is not None:
        raise UserError("--duty: follows from --tau and --period, give two of the three")
    if period is not None:
        return Exposure(max(1, round(duty * period)), period, linear)
    tau = 11 if tau is None else tau
    return Exposure(tau, max(tau + 1, round(tau / duty)), linear)


def main(arguments: list[str] | None = None) -> None:
    """The command; see ``--help``."""
    parser = Parser(
        prog="python -m jaxdeblur.data.synthesis",
        description="Turns high-speed video into pairs of blurred and sharp frames (eq. 1): the "
        "mean of tau frames, every T-th frame, and the frame in the middle of each exposure.",
    )
    parser.add_argument(
        "source", metavar="IN", type=Path, help="a video, a folder of frames, or a folder of these"
    )
    parser.add_argument(
        "target", metavar="OUT", type=Path, help="the new folder: blur/, sharp/ and manifest.json"
    )
    unset = argparse.SUPPRESS
    parser.add_argument("--tau", type=int, default=unset, help="frames in an exposure (11)")
    parser.add_argument(
        "--period",
        type=int,
        default=unset,
        help="T, frames from one exposure to the next (tau + 1)",
    )
    parser.add_argument(
        "--duty", type=float, default=unset, help="tau / T, in place of one of the two"
    )
    parser.add_argument(
        "--linear", action="store_true", help=f"average light (gamma {GAMMA}), not values as stored"
    )
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger frames")
    parser.add_argument("--overwrite", action="store_true", help="replace what this command made")
    given = vars(parser.parse_args(arguments))
    manifest = write_pairs(
        given["source"],
        given["target"],
        exposure_from(given.get("tau"), given.get("period"), given.get("duty"), given["linear"]),
        overwrite=given["overwrite"],
        max_pixels=given["max_pixels"],
    )
    frames = sum(video["frames"] for video in manifest["videos"])
    print(
        f"{given['target']}: {frames} frames of {len(manifest['videos'])} video(s), "
        f"tau {manifest['tau']}, period {manifest['period']}, averaged: {manifest['averaged']}"
    )


if __name__ == "__main__":
    with ended_by_signals("synthesis"):
        run_command(main, "synthesis")
