"""Restores 200 and 2,000 frames with deblur.py's own stages: peak memory of both, and the rates.

    python -m benchmarks.stream
    python -m benchmarks.stream --size=1280x720 --frames 60 240 --ckpt=RUN

Each length runs in a process of its own, since peak memory never falls. Of the longer one it also
prints what each stage does alone, and what share of the network's own rate the whole reaches.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np

from benchmarks.options import natural, reason
from jaxdeblur import devices, models, presets
from jaxdeblur.errors import UserError, run_command
from jaxdeblur.options import Parser, frame_size
from jaxdeblur.restoration.convert import deblur
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.jobs import DeblurConfig, plan
from jaxdeblur.video.picture import Picture, VideoInfo
from jaxdeblur.video.pixels import PixelLayout
from jaxdeblur.video.reader import VideoReader
from jaxdeblur.video.writer import VideoWriter


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--frames", type=natural, nargs=2, default=(200, 2000), help="two lengths")
    parser.add_argument("--size", type=frame_size, default="256x144", help="WIDTHxHEIGHT of frames")
    parser.add_argument("--model", default="strcnn_dtb_small", help="a preset, random weights")
    parser.add_argument("--ckpt", help="trained weights instead of a preset")
    parser.add_argument("--video", type=Path, help=argparse.SUPPRESS)  # the process of one length
    arguments = parser.parse_args()
    if arguments.video is not None:
        print(json.dumps(measure(arguments.video, arguments.model, arguments.ckpt)))
        return
    if arguments.ckpt is None:
        presets.find(arguments.model)
    width, height = arguments.size
    print(f"{_machine()}; {arguments.ckpt or arguments.model}; {width}x{height}")
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
    """Restores a video by the command's own stages, then times each stage alone."""
    devices.keep_freed_memory()  # as deblur.py does
    weights = ckpt or models.build(presets.find(model).network)
    deblurrer = Deblurrer(weights, tile="none")
    output = video.with_name("restored.mp4")
    (job,) = plan([str(video)], str(output))
    timing = deblur(deblurrer, job, DeblurConfig(quiet=True, tile="none"))
    # Of the command alone: what follows holds frames in memory.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if _on_mac() else 1024)
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
    """Frames a second of reading and decoding alone."""
    with VideoReader(video) as reader:
        began = time.perf_counter()
        frames = sum(1 for _ in reader)
        return frames / (time.perf_counter() - began)


def restoring_rate(deblurrer: Deblurrer, video: Path, seconds: float = 10.0) -> float:
    """Frames a second of the network alone: the median time of a step, compiled before."""
    with VideoReader(video) as reader:
        info, picture = reader.info, next(iter(reader))
    stream = deblurrer.open_stream(info.height, info.width, info.layout)
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 20 or time.perf_counter() < end:
        began = time.perf_counter()
        jax.block_until_ready(stream.push(picture.planes))
        times.append(time.perf_counter() - began)
    return 1 / float(np.median(times[5:]))


def writing_rate(video: Path, output: Path) -> float:
    """Frames a second of encoding and writing alone."""
    with VideoReader(video) as reader:
        pictures = [picture for picture, _ in zip(reader, range(200), strict=False)]
        with VideoWriter(output, reader.info, source=reader) as writer:
            began = time.perf_counter()
            for picture in pictures:
                writer.write(picture)
        return len(pictures) / (time.perf_counter() - began)


def make_video(path: Path, frames: int, height: int, width: int) -> None:
    """A texture that drifts: neither trivial nor impossible to compress."""
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
    command = [sys.executable, "-m", "benchmarks.stream", *options]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise UserError(reason(process.stderr))
    return json.loads(process.stdout.splitlines()[-1])


def _machine() -> str:
    device = jax.devices()[0]
    return (
        f"{device.device_kind} x {jax.device_count()}, {platform.machine()}, jax {jax.__version__}"
    )


def _on_mac() -> bool:
    return sys.platform == "darwin"  # where ru_maxrss counts bytes, not kilobytes


if __name__ == "__main__":
    run_command(main, "benchmarks.stream")
