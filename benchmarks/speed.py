"""Measures how fast weights restore: frames side by side, a camera's frames, a whole film.

    python -m benchmarks.speed frame --ckpt strcnn_dtb_choice --tile none 256x256
    python -m benchmarks.speed live --ckpt=RUN --size=640x360 --fps=30 --seconds=20
    python -m benchmarks.speed film --ckpt=RUN --size=1280x720 --frames 60 240

``frame``: all streams are open at once and restore a frame each in turn, so that other load on the
machine slows all of them alike. Ratios are relative to the first one.

``live``: frames arrive at a camera's rate, and the latency for a viewer is measured. The camera
does not wait: a frame is dropped if the inbox is full. Latency is the time from when a frame is
captured until its restored pixels are in memory; it includes the network's look-ahead, which no
speed can remove.

``film``: restores two lengths with deblur.py's own stages, each in a process of its own, since peak
memory never falls. Prints the peak of both and, for the longer one, the rate of each stage alone
and the share of the network's own rate that the whole reaches.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.common import machine, side_by_side
from jaxdeblur import devices, models, presets
from jaxdeblur.console import run_command
from jaxdeblur.errors import UserError
from jaxdeblur.options import FrameSize, Parser
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.plan import DeblurConfig, plan
from jaxdeblur.restoration.restore import deblur
from jaxdeblur.video.picture import Picture, VideoInfo
from jaxdeblur.video.pixels import PixelLayout
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.writer import VideoWriter
from jaxdeblur.weights import shipped

_WARM = 3
_INBOX = 2  # Frames that may wait for the network.


def main() -> None:
    parser = Parser(description=__doc__)
    what = parser.add_subparsers(required=True, metavar="frame | live | film")
    frame = what.add_parser("frame", help="seconds per frame, side by side")
    frame.set_defaults(measure=frames_side_by_side)
    frame.add_argument(
        "--ckpt", nargs="+", default=shipped.names(), help="runs, files or names of weights"
    )
    frame.add_argument("--tile", nargs="+", default=("none",), help="none or HEIGHTxWIDTH")
    frame.add_argument("--size", type=FrameSize, default="1280x720", help="WIDTHxHEIGHT")
    frame.add_argument("--frames", type=int, default=12, help="frames timed for each")

    live = what.add_parser("live", help="latency and dropped frames at a camera's rate")
    live.set_defaults(measure=a_camera)
    live.add_argument("--size", type=FrameSize, default="160x96", help="frame size, WIDTHxHEIGHT")
    live.add_argument("--fps", type=float, default=24.0, help="the camera's rate")
    live.add_argument("--seconds", type=float, default=10.0, help="duration")

    film = what.add_parser("film", help="peak memory and rates for videos of two lengths")
    film.set_defaults(measure=a_film)
    film.add_argument("--frames", type=int, nargs=2, default=(200, 2000), help="two lengths")
    film.add_argument("--size", type=FrameSize, default="256x144", help="frame size, WIDTHxHEIGHT")
    film.add_argument("--video", type=Path, help=argparse.SUPPRESS)  # the process of one length
    for one in (live, film):
        one.add_argument(
            "--model", default="strcnn_dtb_small", help="a preset, with random weights"
        )
        one.add_argument("--ckpt", help="trained weights, instead of a preset")
    arguments = parser.parse_args()
    arguments.measure(arguments)


def frames_side_by_side(arguments: argparse.Namespace) -> None:
    """Times a frame of each stream in turn."""
    width, height = arguments.size
    devices.keep_freed_memory()
    frames = itertools.cycle(
        np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
    )
    cases: dict[str, Callable[[], Any]] = {}
    lookahead = 0
    for checkpoint, tile in itertools.product(arguments.ckpt, arguments.tile):
        deblurrer = Deblurrer(checkpoint, tile=tile)
        stream = deblurrer.open_stream(height, width)
        lookahead = max(lookahead, deblurrer.model.lookahead)
        cases[f"{checkpoint}, tiles {tile}"] = lambda stream=stream: stream.push((next(frames),))
    print(f"{machine()}; {width}x{height}")
    # Nothing is returned before the look-ahead is full; the first frame includes compilation.
    medians = side_by_side(cases, arguments.frames, untimed=_WARM + lookahead)
    first = next(iter(medians.values()))
    print("| | s a frame | ratio |\n|---|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.3f} | {seconds / first:.2f} |")


def a_camera(arguments: argparse.Namespace) -> None:
    """Restores the frames of a simulated camera and prints their latency."""
    width, height = arguments.size
    deblurrer = Deblurrer(arguments.ckpt or models.build(presets.find(arguments.model).network))

    began = time.perf_counter()
    deblurrer.warm_up(height, width)
    warm_up = time.perf_counter() - began
    camera = Camera(height, width, arguments)
    latencies, restored = watch(deblurrer.open_stream(height, width), camera)
    if not latencies:
        raise UserError(
            f"--seconds={arguments.seconds:g}: no frame was restored while the camera ran; the "
            f"network looks {deblurrer.model.lookahead} frames ahead"
        )

    ahead = deblurrer.model.lookahead / arguments.fps
    milliseconds = 1000 * np.array(latencies)
    what = arguments.ckpt or arguments.model
    print(f"{machine()}; {what}; {width}x{height} at {arguments.fps:g}/s")
    print(f"warm-up before the first frame: {warm_up:.1f} s")
    print(
        f"latency: median {np.median(milliseconds):.1f} ms, "
        f"99th percentile {np.percentile(milliseconds, 99):.1f} ms, "
        f"of which look-ahead {1000 * ahead:.1f} ms ({deblurrer.model.lookahead} frames)"
    )
    print(f"dropped: {camera.dropped} of {camera.taken} frames; restored: {restored}")


class Camera:
    """Takes frames at a fixed rate, whether or not the consumer is ready for them.

    Attributes:
      inbox: queue of (time taken, frame), ended by None.
      taken, dropped: numbers of frames.
    """

    def __init__(self, height: int, width: int, options: argparse.Namespace):
        self.inbox: queue.Queue[tuple[float, np.ndarray] | None] = queue.Queue(_INBOX)
        self.taken = self.dropped = 0
        self._frames = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), np.uint8)
        self._fps, self._count = options.fps, round(options.seconds * options.fps)

    def run(self) -> None:
        """Takes all frames."""
        began = time.perf_counter()
        for index in range(self._count):
            time.sleep(max(0.0, began + index / self._fps - time.perf_counter()))
            self.taken += 1
            try:
                self.inbox.put_nowait((time.perf_counter(), self._frames[index % 8]))
            except queue.Full:
                self.dropped += 1
        self.inbox.put(None)


def watch(stream: Any, camera: Camera) -> tuple[list[float], int]:
    """Restores the camera's frames; returns latencies and the number of all restored frames."""
    taken: collections.deque[float] = collections.deque()
    latencies: list[float] = []
    thread = threading.Thread(target=camera.run, daemon=True)
    thread.start()
    while (item := camera.inbox.get()) is not None:
        when, frame = item
        taken.append(when)
        restored = stream.push((frame,))
        if restored is not None:
            np.asarray(restored[0])
            latencies.append(time.perf_counter() - taken.popleft())
    rest = sum(1 for _ in stream.flush())
    thread.join()
    return latencies, len(latencies) + rest


def a_film(arguments: argparse.Namespace) -> None:
    """Restores films of two lengths, each in a process of its own."""
    if arguments.video is not None:
        print(json.dumps(measure(arguments.video, arguments.model, arguments.ckpt)))
        return
    if arguments.ckpt is None:
        presets.find(arguments.model)
    width, height = arguments.size
    print(f"{machine()}; {arguments.ckpt or arguments.model}; {width}x{height}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in arguments.frames:
            video = Path(folder) / f"{frames}.mp4"
            make_video(video, frames, height, width)
            results.append(_in_a_process(video, arguments))
            print(
                f"{frames:6} frames: peak memory {results[-1]['peak'] / 2**20:.1f} MiB"
                + (f", device {peak / 2**20:.1f} MiB" if (peak := results[-1]["device"]) else "")
            )
    short, long = results
    for kind in ("peak", "device"):
        if short[kind]:
            growth = long[kind] / short[kind] - 1
            print(f"growth of {kind} memory: {growth:+.1%} ({'ok' if growth < 0.05 else 'FAIL'})")
    print("frames/s of each stage alone, then of the whole (after its first frame):")
    for stage in ("reading", "restoring", "writing", "whole"):
        print(f"{stage:>12} {long[stage]:9.2f}")
    share = long["whole"] / long["restoring"]
    print(f"the whole reaches {share:.1%} of the network's rate (goal: 90 %)")


def measure(video: Path, model: str, ckpt: str | None) -> dict[str, float]:
    """Restores a video with the command's own stages, then times each stage alone."""
    devices.keep_freed_memory()  # as deblur.py does
    devices.add_threads()
    weights = ckpt or models.build(presets.find(model).network)
    deblurrer = Deblurrer(weights, tile="none")
    output = video.with_name(f"{video.stem}-restored.mp4")
    config = DeblurConfig(quiet=True, tile="none")
    (job,) = plan([str(video), str(output)], config)
    timing = deblur(deblurrer, job, config)
    # Memory of the command alone: the timings below hold frames in memory.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in kB on Linux
    device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return {
        "peak": peak,
        "device": device if jax.default_backend() != "cpu" else 0,
        "whole": (timing.frames - 1) / (timing.seconds - timing.first_frame),
        "reading": reading_rate(video),
        "restoring": restoring_rate(deblurrer, video),
        "writing": writing_rate(video, output),
    }


def reading_rate(video: Path) -> float:
    """Returns frames per second of reading and decoding alone."""
    with VideoReader(video) as reader:
        began = time.perf_counter()
        frames = sum(1 for _ in reader)
        return frames / (time.perf_counter() - began)


def restoring_rate(deblurrer: Deblurrer, video: Path) -> float:
    """Returns frames per second of the network alone, from the median time of a compiled step."""
    with VideoReader(video) as reader:
        info, picture = reader.info, next(iter(reader))
    stream = deblurrer.open_stream(info.height, info.width, info.layout)
    times = []
    end = time.perf_counter() + 10
    while len(times) < 20 or time.perf_counter() < end:
        began = time.perf_counter()
        jax.block_until_ready(stream.push(picture.planes))
        times.append(time.perf_counter() - began)
    return 1 / float(np.median(times[5:]))


def writing_rate(video: Path, output: Path) -> float:
    """Returns frames per second of encoding and writing alone."""
    with VideoReader(video) as reader:
        pictures = [picture for picture, _ in zip(reader, range(200), strict=False)]
        with VideoWriter(output, reader.info, source=reader) as writer:
            began = time.perf_counter()
            for picture in pictures:
                writer.write(picture)
        return len(pictures) / (time.perf_counter() - began)


def make_video(path: Path, frames: int, height: int, width: int) -> None:
    """Writes a drifting texture, neither trivial nor impossible to compress."""
    layout = PixelLayout("yuv", 8, (2, 2), full_range=False)
    rate = Fraction(30)
    info = VideoInfo(height, width, "yuv420p", layout, False, rate, 1 / rate)
    rng = np.random.default_rng(0)
    coarse = rng.integers(16, 235, (height // 8 + 2, width // 8 + 2), np.uint8)
    texture = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    chroma = np.full((-(-height // 2), -(-width // 2)), 128, np.uint8)
    with VideoWriter(path, info) as writer:
        for t in range(frames):
            writer.write(Picture((np.roll(texture, (t, 3 * t), (0, 1)), chroma, chroma), pts=t))


def _in_a_process(video: Path, arguments: argparse.Namespace) -> dict[str, float]:
    options = [f"--video={video}", f"--model={arguments.model}"]
    if arguments.ckpt:
        options.append(f"--ckpt={arguments.ckpt}")
    command = [sys.executable, "-m", "benchmarks.speed", "film", *options]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(process.returncode)  # it has said why
    return json.loads(process.stdout.splitlines()[-1])


if __name__ == "__main__":
    run_command(main, "benchmarks.speed")
