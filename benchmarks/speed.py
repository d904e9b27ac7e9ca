"""Seconds that a frame takes with several weights, and in several tiles, side by side.

    python -m benchmarks.speed
    python -m benchmarks.speed --ckpt strcnn_dtb_choice --tile none 256x256
    python -m benchmarks.speed --ckpt RUN ANOTHER --size=1920x1080

All streams are open at once and take a frame each in turn, so that whatever else the machine does
slows all of them alike. Ratios are to the first one.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.options import natural
from jaxdeblur import devices
from jaxdeblur.errors import run_command
from jaxdeblur.options import Parser, frame_size
from jaxdeblur.restoration.deblurrer import Deblurrer
from jaxdeblur.restoration.stream import Stream
from jaxdeblur.weights import shipped

_WARM = 3


class Candidate(NamedTuple):
    """A stream that is timed."""

    name: str
    deblurrer: Deblurrer
    stream: Stream
    seconds: list[float]

    def push(self, frame: np.ndarray) -> None:
        """Restores one frame, and notes the time."""
        began = time.perf_counter()
        jax.block_until_ready(self.stream.push((frame,)))
        self.seconds.append(time.perf_counter() - began)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--ckpt", nargs="+", default=shipped.names(), help="runs, files or names of weights"
    )
    parser.add_argument("--tile", nargs="+", default=("none",), help="none or HEIGHTxWIDTH")
    parser.add_argument(
        "--size", type=frame_size, default="1280x720", help="WIDTHxHEIGHT of frames"
    )
    parser.add_argument("--frames", type=natural, default=12, help="timed, of each")
    arguments = parser.parse_args()
    width, height = arguments.size

    devices.keep_freed_memory()
    candidates = []
    for checkpoint, tile in itertools.product(arguments.ckpt, arguments.tile):
        deblurrer = Deblurrer(checkpoint, tile=tile)
        stream = deblurrer.open_stream(height, width)
        candidates.append(Candidate(f"{checkpoint}, tiles {tile}", deblurrer, stream, []))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}"
    print(f"{machine}, jax {jax.__version__}, {width}x{height}")

    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
    # Nothing comes out before the look-ahead is full; the compiler runs at the first frame.
    untimed = _WARM + max(candidate.deblurrer.model.lookahead for candidate in candidates)
    for i in range(untimed + arguments.frames):
        for candidate in candidates:
            candidate.push(frames[i % len(frames)])
    medians = [float(np.median(candidate.seconds[untimed:])) for candidate in candidates]
    print("| | s a frame | ratio |\n|---|---|---|")
    for candidate, seconds in zip(candidates, medians, strict=True):
        print(f"| {candidate.name} | {seconds:.3f} | {seconds / medians[0]:.2f} |")


if __name__ == "__main__":
    run_command(main, "benchmarks.speed")
