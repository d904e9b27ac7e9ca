"""What each way of fusing a window costs, and what a longer window costs a causal stream.

    python -m benchmarks.fusion            one block, by pixels and by frames
    python -m benchmarks.fusion stream     the whole network as a stream, by its window

One fusion block alone, without the network around it: from the features of T frames, h x w x 48, to
what the middle frame takes from them. The full affinity is there twice: with the HW rows that the
middle frame needs, which is how the network runs it, and with all THW rows, as published.

FLOPs and peak memory are the compiler's own figures, time is the median after compilation. The full
affinity runs in chunks, so its peak says little; what it would take in one piece stands under
"maps": the softmax weights alone, float32, by arithmetic. A slope is the exponent of growth.

``stream``: time for each frame and bytes of state of ``fsta_live``. A past frame is kept as M+1
vectors an attention block, so both should hardly grow. The windows take turns, frame by frame, so
that a busy moment of the machine does not count against one of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange
from flax import nnx

from benchmarks.options import natural
from jaxdeblur.errors import run_command
from jaxdeblur.models.attention import FactorisedAttention
from jaxdeblur.models.fsta import Fsta
from jaxdeblur.models.fsta_config import FSTA_LIVE
from jaxdeblur.models.fusion import Concat, Conv3d, Fusion, NonLocal, nonlocal_rows
from jaxdeblur.models.parameters import split
from jaxdeblur.options import Parser, frame_size

CHANNELS, M, N = 48, 8, 4
CHUNK_BYTES = 2**26
"""What the full affinity may take at a time."""
MOST_FLOPS = 1.2e11
"""A block that takes more is not run: seconds each time on two cores."""
SIZES = ((16, 24), (32, 48), (64, 96), (128, 192))
WINDOWS = (3, 5, 9, 17, 33)

Block = Callable[[Any, jax.Array], jax.Array]


class Cost(NamedTuple):
    """What one block costs on one input; ``amount`` is the pixels of a frame, or the frames."""

    amount: int
    flops: float
    peak_bytes: int
    map_bytes: int
    seconds: float | None


def from_memory(fusion: Fusion, clip: jax.Array) -> jax.Array:
    """As the network does: each frame's memory, then the fusion of the middle frame."""
    return fusion.fuse(clip[:, clip.shape[1] // 2], fusion.remember(clip))


def from_affinity(fusion: NonLocal, clip: jax.Array, rows: int | None, *, full: bool) -> jax.Array:
    """The non-local block; ``rows`` at a time, or all; of the middle frame's, or of all frames'."""
    middle, height, width = clip.shape[1] // 2, *clip.shape[2:4]
    memory = fusion.remember(clip)
    queries = fusion.query(clip if full else clip[:, middle : middle + 1])
    flat = [rearrange(x, "B T h w c -> B (T h w) c") for x in (queries, *memory)]
    gathered = nonlocal_rows(*flat, rows=rows or flat[0].shape[1])
    frames = rearrange(gathered, "B (T h w) c -> B T h w c", h=height, w=width)
    return fusion.out(frames[:, middle if full else 0])


def blocks(window: int, height: int, width: int) -> dict[str, tuple[Fusion, Block, Block, int]]:
    """For each name: parameters, the block in one piece and as it is run, softmax weights."""
    rngs = nnx.Rngs(0)
    fsta = FactorisedAttention(CHANNELS, spatial=M, temporal=N, rngs=rngs)
    affinity = NonLocal(CHANNELS, limit_bytes=CHUNK_BYTES, rngs=rngs)
    rows = affinity.rows_at_once(1, window, height, width)
    some, full = (functools.partial(from_affinity, full=full) for full in (False, True))
    pixels = height * width

    def in_pieces(block: Callable[..., jax.Array]) -> tuple[Block, Block]:
        return functools.partial(block, rows=None), functools.partial(block, rows=rows)

    return {
        "fsta": (fsta, from_memory, from_memory, (window * M + M * N) * pixels + N * window),
        "concat": (Concat(CHANNELS, window, rngs=rngs), from_memory, from_memory, 0),
        "conv3d": (Conv3d(CHANNELS, window, rngs=rngs), from_memory, from_memory, 0),
        "nonlocal, HW rows": (affinity, *in_pieces(some), window * pixels**2),
        "nonlocal, THW rows": (affinity, *in_pieces(full), (window * pixels) ** 2),
    }


def measure(
    amount: int, fusion: Fusion, whole: Block, run: Block, weights: int, clip: jax.Array
) -> Cost:
    """Compiles the block, runs it unless it is too much work."""
    graph, parameters = nnx.split(fusion)

    def lower(block: Block) -> Any:
        return jax.jit(lambda p, x: block(nnx.merge(graph, p), x)).lower(parameters, clip)

    compiled = lower(run).compile()
    sizes = compiled.memory_analysis()
    peak = sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    # In one piece, since the analysis counts the body of a loop once.
    flops = lower(whole).compile().cost_analysis()["flops"]
    seconds = None
    if flops <= MOST_FLOPS:
        jax.block_until_ready(compiled(parameters, clip))
        times, begun = [], time.perf_counter()
        while len(times) < 3 or (len(times) < 15 and time.perf_counter() - begun < 1):
            start = time.perf_counter()
            jax.block_until_ready(compiled(parameters, clip))
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times)
    return Cost(amount, flops, peak, 4 * weights, seconds)


def slope(costs: list[Cost], field: str) -> str:
    """The exponent of growth over the three largest inputs that were measured."""
    points = [(c.amount, getattr(c, field)) for c in costs if getattr(c, field)][-3:]
    if len(points) < 2:
        return "-"
    return f"{np.polyfit(*np.log(np.array(points, float)).T, 1)[0]:.2f}"


def report(title: str, unit: str, inputs: list[tuple[int, int, int, int]]) -> None:
    """Measures every block on every input (amount, frames, height, width) and prints the table."""
    print(f"\n{title}\n")
    print(f"| fusion | {unit} | parameters | MFLOP | peak MiB | maps MiB | ms |")
    print("|---|---|---|---|---|---|---|")
    costs: dict[str, list[Cost]] = {}
    for amount, frames, height, width in inputs:
        clip = jax.random.normal(jax.random.key(0), (1, frames, height, width, CHANNELS))
        for name, (fusion, whole, run, weights) in blocks(frames, height, width).items():
            cost = measure(amount, fusion, whole, run, weights, clip)
            costs.setdefault(name, []).append(cost)
            count = sum(x.size for x in jax.tree.leaves(nnx.state(fusion, nnx.Param)))
            taken = "not run" if cost.seconds is None else f"{1e3 * cost.seconds:.2f}"
            print(
                f"| {name} | {amount} | {count:,} | {cost.flops / 1e6:,.1f} "
                f"| {cost.peak_bytes / 2**20:,.1f} | {cost.map_bytes / 2**20:,.1f} | {taken} |",
                flush=True,
            )
    print(
        f"\n| fusion | slope by {unit}: FLOPs | peak memory | maps | time |\n|---|---|---|---|---|"
    )
    for name, series in costs.items():
        fields = ("flops", "peak_bytes", "map_bytes", "seconds")
        print(f"| {name} | " + " | ".join(slope(series, field) for field in fields) + " |")


def by_input(arguments: argparse.Namespace) -> None:
    """One block alone: the tables by pixels and by frames."""
    print(
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}; "
        f"C = {CHANNELS}, (M, N) = ({M}, {N})"
    )
    sizes = [(math.prod(size), 5, *size) for size in SIZES[: arguments.sizes]]
    report("By pixels, T = 5", "pixels", sizes)
    report("By frames, 32x48", "T", [(t, t, 32, 48) for t in WINDOWS[: arguments.windows]])


def by_window(arguments: argparse.Namespace) -> None:
    """The whole network as a stream: milliseconds and state for each window."""
    width, height = arguments.size
    frame = jax.random.uniform(jax.random.key(0), (1, height, width, 3))
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
        state = rebuild(parameters).initial_state(1, height, width)
        state, _ = jax.block_until_ready(step(parameters, state, frame))  # compiles
        streams[window] = (step, parameters, state)
    for _ in range(arguments.frames):
        for window, (step, parameters, state) in streams.items():
            start = time.perf_counter()
            state, _ = jax.block_until_ready(step(parameters, state, frame))
            seconds[window].append(time.perf_counter() - start)
            streams[window] = (step, parameters, state)

    print(
        f"fsta_live, {width}x{height}, {jax.devices()[0].device_kind}, "
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


def main() -> None:
    parser = Parser(description=__doc__)
    parser.set_defaults(measure=by_input)
    parser.add_argument("--sizes", type=natural, default=len(SIZES), help="how many of the sizes")
    parser.add_argument(
        "--windows", type=natural, default=len(WINDOWS), help="how many of the windows"
    )
    stream = parser.add_subparsers().add_parser("stream", help="the window of a whole network")
    stream.set_defaults(measure=by_window)
    stream.add_argument(
        "--windows", type=natural, nargs="+", default=(5, 16, 64, 256), metavar="T", help="frames"
    )
    stream.add_argument("--size", type=frame_size, default="640x360", help="WIDTHxHEIGHT of frames")
    stream.add_argument("--frames", type=natural, default=20, help="frames timed for each T")
    arguments = parser.parse_args()
    arguments.measure(arguments)


if __name__ == "__main__":
    run_command(main, "benchmarks.fusion")
