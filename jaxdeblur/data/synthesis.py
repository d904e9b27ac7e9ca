"""Blur from high-speed frames: the average of an exposure, eq. 1 of the paper (ICCV 2017).

``python -m jaxdeblur.data.synthesis IN OUT --tau=11 --period=12`` writes a data set of pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdeblur.data.packing import FrameFiles, VideoFile, high_speed_sources
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.files import replace_folder_when_whole, write_json
from jaxdeblur.images import MAX_PIXELS, image_size, write_png
from jaxdeblur.options import Parser
from jaxdeblur.shapes import Frame8

GAMMA = 2.2
"""Between stored values and light: stored = light ** (1 / 2.2), as in GOPRO's ``blur_gamma``."""

MAX_TAU = 256
"""The longest exposure in high-speed frames: sums of so many bytes fit 16 bits."""


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How high-speed frames X become blurred frames B and sharp frames S.

    B_n is the average of the ``tau`` frames from X_{nT} on, and S_n the one in their middle (of an
    even number, the earlier of the two). Eq. 1 as printed takes S_n one frame earlier when tau is
    odd; then a perfectly restored middle frame would not score as perfect.
    """

    tau: int = 11
    """High-speed frames in an exposure: more of them, more blur."""
    period: int = 12
    """T: high-speed frames from the start of an exposure to the start of the next. The video's rate
    is the high-speed rate divided by this. A camera has T > tau; T = tau uses every frame once."""
    linear: bool = False
    """Whether light is averaged (gamma 2.2), or the values as they are stored."""

    def __post_init__(self) -> None:
        if not 1 <= self.tau <= MAX_TAU:
            raise UserError(f"tau: {self.tau} is not from 1 to {MAX_TAU}")
        if self.period < 1:
            raise UserError(f"period: {self.period} is not positive")

    @property
    def middle(self) -> int:
        """Which frame of an exposure is the sharp one, counted from 0."""
        return (self.tau - 1) // 2

    def count(self, frames: int) -> int:
        """How many whole exposures ``frames`` high-speed frames hold."""
        return max(0, (frames - self.tau) // self.period + 1)


def average(
    frames: UInt8[np.ndarray, " tau *shape"], linear: bool = False
) -> UInt8[np.ndarray, "*shape"]:
    """The average of an exposure over its first axis, rounded to the nearest value (halves up)."""
    values = light_of_stored()[frames] if linear else frames
    return to_stored(values.sum(axis=0, dtype=np.float32 if linear else np.uint16), len(frames))


def synthesise(frames: Iterable[Frame8], exposure: Exposure) -> Iterator[tuple[Frame8, Frame8]]:
    """Yields (blurred, sharp) of each whole exposure of a high-speed video, frame by frame.

    Memory does not grow with tau. Exposures must not overlap (period >= tau).
    """
    if exposure.period < exposure.tau:
        raise UserError(f"period: {exposure.period} is below tau {exposure.tau}")
    total: Any = 0
    sharp: Any = None
    for index, frame in enumerate(frames):
        moment = index % exposure.period
        if moment >= exposure.tau:
            continue
        values = light_of_stored()[frame] if exposure.linear else frame.astype(np.uint16)
        total = values + (total if moment else 0)
        if moment == exposure.middle:
            sharp = frame
        if moment == exposure.tau - 1:
            yield to_stored(total, exposure.tau), sharp


def to_stored(total: np.ndarray, tau: int) -> np.ndarray:
    """The stored values of the average: of light if ``total`` is float, of stored values if not."""
    if total.dtype == np.float32:
        return (255 * (total / tau) ** np.float32(1 / GAMMA) + np.float32(0.5)).astype(np.uint8)
    return ((total + tau // 2) // tau).astype(np.uint8)


@functools.cache
def light_of_stored() -> np.ndarray:
    """The light, 0 to 1, that each of the 256 stored values stands for: float32."""
    return (np.arange(256) / 255).astype(np.float32) ** np.float32(GAMMA)


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
    found = high_speed_sources(source)
    first = found[0][1]
    alone = source == (first[0].parent if isinstance(first, list) else first)
    old = None
    try:
        with replace_folder_when_whole(target) as part:
            videos = [
                _write_video(name, frames, part, "" if alone else name, exposure, max_pixels)
                for name, frames in found
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
    source: list[Path] | Path,
    target: Path,
    folder: str,
    exposure: Exposure,
    max_pixels: int,
) -> dict[str, Any]:
    """Writes the pairs of one video; returns its entry in the manifest."""
    opened: FrameFiles | VideoFile
    if isinstance(source, list):
        opened = FrameFiles(tuple(source), *image_size(source[0], max_pixels), max_pixels)
        total = exposure.count(len(source))
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
    began, count = time.monotonic(), 0
    for blurred, sharp in synthesise(frames(), exposure):
        write_png(blurred_folder / f"{count:06d}.png", blurred)
        write_png(sharp_folder / f"{count:06d}.png", sharp)
        count += 1
        _show(name, count, total, time.monotonic() - began)
    if not count:
        raise UserError(f"{name}: has {taken} frames, an exposure takes {exposure.tau}")
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return {
        "name": name,
        "high_speed_frames": taken,
        "frames": count,
        "height": opened.height,
        "width": opened.width,
    }


def _show(name: str, count: int, total: int | None, seconds: float) -> None:
    if sys.stderr.isatty():
        of = f"/{total}, {seconds / count * (total - count):.0f} s left" if total else ""
        text = f"{name}: frame {count}{of}, {count / max(seconds, 1e-9):.1f} frames/s"
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def exposure_from(
    tau: int | None, period: int | None, duty: float | None, linear: bool = False
) -> Exposure:
    """The exposure that two of ``tau``, ``period`` and ``duty`` = tau / period say.

    Without ``duty`` a missing tau is 11 and a missing period is tau + 1.
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
    run_command(main, "synthesis")
