"""Measures how long users wait: for the first frame, for each further one, and in memory.

    python -m benchmarks.start FRAMES --size=1280x720 --against ../other-checkout

``deblur.py - -`` restores the frames of FRAMES (a video, or a folder of images), enlarged or
reduced to each ``--size``, in a process of its own: first with an empty cache, then ``--repeats``
times with what the first start left there. With ``--against``, the ``deblur.py`` of another
checkout, run by the same interpreter, takes turns with this one. It needs an idle machine.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import machine
from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.options import FrameSize, Parser
from jaxdeblur.shapes import Frame8, Video8
from jaxdeblur.video.formats import list_frames
from jaxdeblur.video.image_file import read_image
from jaxdeblur.video.pixels import to_packed_rgb
from jaxdeblur.video.reader import VideoReader

_ROOT = Path(__file__).resolve().parents[1]


class Run(NamedTuple):
    """What one process took."""

    first: float
    """Seconds until the first restored frame."""
    each: float
    """Median seconds from frame to frame, without those that come when the input ends."""
    processor: float
    """Seconds of processor."""
    memory: float
    """Peak of resident memory, GB."""


def main() -> None:
    """Reads the options, measures and prints a table."""
    parser = Parser(prog="benchmarks.start", description=__doc__)
    parser.add_argument("frames", metavar="FRAMES", type=Path, help="a video or a folder of images")
    parser.add_argument(
        "--size", nargs="+", type=FrameSize, default=[FrameSize("1280x720")], help="WIDTHxHEIGHT"
    )
    parser.add_argument("--count", type=int, default=16, help="frames restored; more are left out")
    parser.add_argument("--repeats", type=int, default=2, help="starts with a filled cache")
    parser.add_argument("--against", type=Path, help="the folder of another checkout")
    arguments, options = parser.parse_known_args()
    roots = {"this": _ROOT} | ({"other": arguments.against} if arguments.against else {})
    for root in roots.values():
        if not (root / "deblur.py").is_file():
            raise UserError(f"{root}: no checkout of this project: it has no deblur.py")
    print(machine(), flush=True)
    print("| size | checkout | cache | first frame, s | s per frame | processor, s | peak, GB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for width, height in arguments.size:
        frames = read(arguments.frames, width, height, arguments.count)
        with tempfile.TemporaryDirectory() as folder:
            runs: dict[tuple[str, bool], list[Run]] = {}
            for repeat in range(1 + arguments.repeats):
                for name, root in roots.items():
                    run = restore(frames, root, Path(folder) / name, options)
                    runs.setdefault((name, repeat > 0), []).append(run)
            for (name, warm), several in runs.items():
                run = Run(*map(statistics.median, zip(*several, strict=True)))
                print(
                    f"| {width}x{height} | {name} | {'filled' if warm else 'empty'} | "
                    f"{run.first:.1f} | {run.each:.2f} | {run.processor:.1f} | {run.memory:.2f} |",
                    flush=True,
                )


def read(path: Path, width: int, height: int, count: int) -> Video8:
    """Returns the first frames of a video or a folder at a size, by FFmpeg's bicubic scaler."""
    import av

    rgb: Iterator[Frame8]
    if path.is_dir():
        rgb = map(read_image, list_frames(path))
    else:
        reader = VideoReader(path)
        rgb = (to_packed_rgb(picture.planes, reader.info.layout, 8) for picture in reader)
    return np.stack(
        [
            av.VideoFrame.from_ndarray(frame, format="rgb24")
            .reformat(width=width, height=height, interpolation="BICUBIC")
            .to_ndarray()
            for frame in itertools.islice(rgb, count)
        ]
    )


def restore(frames: Video8, root: Path, cache: Path, options: list[str]) -> Run:
    """Restores frames by a checkout's deblur.py in a process of its own.

    Raises:
      UserError: it fails, or gives another number of frames.
    """
    height, width = frames.shape[1:3]
    began = time.monotonic()
    command = [sys.executable, str(root / "deblur.py"), "-", "-", f"--size={width}x{height}"]
    process = subprocess.Popen(
        [*command, "--fps=30", *options],
        cwd=root,
        env=os.environ | {"JAXDEBLUR_CACHE": str(cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    writing = threading.Thread(target=write, args=(process, frames))
    writing.start()
    times = []
    while len(process.stdout.read(frames[0].nbytes)) == frames[0].nbytes:
        times.append(time.monotonic() - began)
    writing.join()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or len(times) != len(frames):
        raise UserError(f"{root}: exit code {process.returncode} after {len(times)} frames")
    gaps = np.diff(times)[: -max(2, len(times) // 8)]
    return Run(
        times[0],
        float(np.median(gaps)),
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024 / 1e9,
    )


def write(process: subprocess.Popen[bytes], frames: Video8) -> None:
    """Writes frames to a process's standard input."""
    assert process.stdin is not None
    try:
        for frame in frames:
            process.stdin.write(frame.tobytes())
        process.stdin.close()
    except BrokenPipeError:  # It failed, which its exit code says.
        pass


if __name__ == "__main__":
    run_command(main, "benchmarks.start")
