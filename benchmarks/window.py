"""What a longer window costs a causal stream: time per frame and bytes of state, by T.

    python -m benchmarks.window

A past frame is kept as M+1 vectors an attention block, so both should hardly grow. The windows take
turns, frame by frame, so that a busy moment of the machine does not count against one of them.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time

import jax
from flax import nnx

from benchmarks.options import natural
from jaxdeblur.errors import run_command
from jaxdeblur.models.fsta import Fsta
from jaxdeblur.models.fsta_config import FSTA_LIVE
from jaxdeblur.models.parameters import split
from jaxdeblur.options import Parser


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--windows", type=natural, nargs="+", default=(5, 16, 64, 256), metavar="T", help="frames"
    )
    parser.add_argument("--width", type=natural, default=640, help="pixels")
    parser.add_argument("--height", type=natural, default=360, help="pixels")
    parser.add_argument("--frames", type=natural, default=20, help="frames timed for each T")
    arguments = parser.parse_args()

    frame = jax.random.uniform(jax.random.key(0), (1, arguments.height, arguments.width, 3))
    streams, seconds = {}, {window: [] for window in arguments.windows}
    for window in arguments.windows:
        config = dataclasses.replace(FSTA_LIVE, window=window)
        rebuild, parameters = split(Fsta(config, rngs=nnx.Rngs(0)))
        step = jax.jit(
            lambda parameters, state, frame, rebuild=rebuild: rebuild(parameters).step(
                state, frame
            ),
            donate_argnums=1,
        )
        state = rebuild(parameters).initial_state(1, arguments.height, arguments.width)
        state, _ = jax.block_until_ready(step(parameters, state, frame))  # compiles
        streams[window] = (step, parameters, state)
    for _ in range(arguments.frames):
        for window, (step, parameters, state) in streams.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(parameters, state, frame))
            seconds[window].append(time.perf_counter() - start)
            streams[window] = (step, parameters, state)

    print(
        f"fsta_live, {arguments.width}x{arguments.height}, {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} cores, jax {jax.__version__}, median of {arguments.frames} frames\n"
    )
    print("| T | ms a frame | against the first | kB of state | more than the first |")
    print("|---|---|---|---|---|")
    base_time = base_bytes = None
    for window, (_, _, state) in streams.items():
        median = statistics.median(seconds[window])
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        base_time, base_bytes = base_time or median, base_bytes or size
        print(
            f"| {window} | {1e3 * median:.1f} | {median / base_time - 1:+.1%} "
            f"| {size / 1e3:.1f} | {(size - base_bytes) / 1e3:.1f} |"
        )


if __name__ == "__main__":
    run_command(main, "benchmarks.window")
