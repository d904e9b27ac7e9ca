"""Measures the cost of each way to fuse a window, by pixels and by frames.

    python -m benchmarks.fusion

Each fusion block runs alone, without the network around it: from the features of T frames,
h x w x 48, to what the middle frame takes from them. The full affinity is measured twice: with the
HW rows that the middle frame needs, as in the network, and with all THW rows, as published.

FLOPs and peak memory are the compiler's figures; time is the median after compilation. The full
affinity runs in chunks, so its peak says little; "maps" is the calculated size of the softmax
weights alone, in one piece in float32. A slope is the exponent of growth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange
from flax import nnx

from benchmarks.common import machine, side_by_side
from jaxdeblur.console import run_command
from jaxdeblur.models.attention import FactorisedAttention
from jaxdeblur.models.fsta_config import FstaConfig
from jaxdeblur.models.fusion import Concat, Conv3d, Fusion, NonLocal, nonlocal_rows
from jaxdeblur.options import Parser

CHANNELS, M, N = 48, 8, 4
CHUNK_BYTES = 2**26
"""The size of a chunk of the full affinity."""
MOST_FLOPS = 1.2e11
"""A block that takes more is not run: each run would take seconds on two cores."""
SIZES = ((16, 24), (32, 48), (64, 96), (128, 192))
WINDOWS = (3, 5, 9, 17, 33)

Block = Callable[[Any, jax.Array], jax.Array]


class Cost(NamedTuple):
    """The cost of one block on one input; ``amount`` is the pixels of a frame, or the frames."""

    amount: int
    flops: float
    peak_bytes: int
    map_bytes: int
    seconds: float | None


def from_memory(fusion: Fusion, clip: jax.Array) -> jax.Array:
    """Runs as in the network: computes each frame's memory, then fuses the middle frame."""
    return fusion.fuse(clip[:, clip.shape[1] // 2], fusion.remember(clip))


def from_affinity(fusion: NonLocal, clip: jax.Array, rows: int | None, *, full: bool) -> jax.Array:
    """Runs the non-local block for the middle frame or (``full``) all; ``rows`` at once, or all."""
    middle, height, width = clip.shape[1] // 2, *clip.shape[2:4]
    memory = fusion.remember(clip)
    queries = fusion.query(clip if full else clip[:, middle : middle + 1])
    flat = [rearrange(x, "B T h w c -> B (T h w) c") for x in (queries, *memory)]
    gathered = nonlocal_rows(*flat, rows=rows or flat[0].shape[1])
    frames = rearrange(gathered, "B (T h w) c -> B T h w c", h=height, w=width)
    return fusion.out(frames[:, middle if full else 0])


def blocks(window: int, height: int, width: int) -> dict[str, tuple[Fusion, Block, Block, int]]:
    """Returns by name: parameters, the block in one piece and as it is run, softmax weights."""
    rngs = nnx.Rngs(0)
    config = FstaConfig(window=window, spatial_maps=M, temporal_maps=N, nonlocal_bytes=CHUNK_BYTES)
    fsta = FactorisedAttention(config, CHANNELS, rngs=rngs)
    affinity = NonLocal(config, CHANNELS, rngs=rngs)
    rows = affinity.rows_at_once(1, window, height, width)
    some, full = (functools.partial(from_affinity, full=full) for full in (False, True))
    pixels = height * width

    def in_pieces(block: Callable[..., jax.Array]) -> tuple[Block, Block]:
        return functools.partial(block, rows=None), functools.partial(block, rows=rows)

    return {
        "fsta": (fsta, from_memory, from_memory, (window * M + M * N) * pixels + N * window),
        "concat": (Concat(config, CHANNELS, rngs=rngs), from_memory, from_memory, 0),
        "conv3d": (Conv3d(config, CHANNELS, rngs=rngs), from_memory, from_memory, 0),
        "nonlocal, HW rows": (affinity, *in_pieces(some), window * pixels**2),
        "nonlocal, THW rows": (affinity, *in_pieces(full), (window * pixels) ** 2),
    }


def measure(
    amount: int, fusion: Fusion, whole: Block, run: Block, weights: int, clip: jax.Array
) -> Cost:
    """Compiles a block, and times it unless it is too much work."""
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
        seconds = side_by_side({"block": lambda: compiled(parameters, clip)}, 9)["block"]
    return Cost(amount, flops, peak, 4 * weights, seconds)


def slope(costs: list[Cost], field: str) -> str:
    """Returns the exponent of growth over the three largest inputs that were measured."""
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


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="number of sizes")
    parser.add_argument("--windows", type=int, default=len(WINDOWS), help="number of windows")
    arguments = parser.parse_args()
    print(f"{machine()}; C = {CHANNELS}, (M, N) = ({M}, {N})")
    sizes = [(math.prod(size), 5, *size) for size in SIZES[: arguments.sizes]]
    report("By pixels, T = 5", "pixels", sizes)
    report("By frames, 32x48", "T", [(t, t, 32, 48) for t in WINDOWS[: arguments.windows]])


if __name__ == "__main__":
    run_command(main, "benchmarks.fusion")
