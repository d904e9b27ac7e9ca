"""How the kernels divide the pixels, with the reason beside each number, and the sizes they take.

The numbers come from what the compiler makes of each kernel for sm_90, which needs no GPU:
registers, spills and shared memory. They have not been tuned by timing;
`python -m benchmarks.gpu_day kernels` is how.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import DTypeLike

PIXELS = 64
"""Pixels of a tile: the rows of a warpgroup product."""

STAGES = {"bfloat16": 3, "float16": 2, "float32": 2}
"""Tiles in shared memory at once, of whose 227 kB a multiprocessor has the rest decides.

bfloat16: two tiles on their way, 16 kB a block at 64 channels and 80 kB with the 5 blocks that
fit, where 25 kB cover the latency of the memory. float16 and float32 are cut into parts, which
lie beside the tiles.
"""

HEAVIEST_STAGES = 2
"""Of an expand backwards: two streams of pixels, and two accumulators, which at 8192 numbers take
all 255 registers, of which 1 kB a thread goes to memory and back for each tile."""

NUMBERS = {"bfloat16": 8192, "float16": 4096, "float32": 4096}
"""Most numbers of an accumulator, padded maps times padded channels: more do not fit registers."""

WIDEST = {"bfloat16": 128, "float16": 128, "float32": 64}
"""Most maps or channels of these, padded to 16 and to 64."""

BLOCKS = 1056
"""Blocks to divide the pixels into: 8 for each of an H200's 132 multiprocessors, as many as fit
at once with the smallest tiles. All end together; more would only add partial results."""

LEAST_WORK = 16
"""A block moves at least so many times the bytes of its pixels as of all else: its partial result,
and the weights or maps it works with. So those cost at most 1/16 of the time."""


def up(size: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-size // step) * step


def divide(frames: int, pixels: int, pixel_bytes: int, block_bytes: int) -> int:
    """Tiles of one block: so many that all frames together make BLOCKS with enough work each.

    Args:
      frames, pixels: how many there are, the pixels of one frame.
      pixel_bytes: read and written of each pixel.
      block_bytes: moved by each block besides.
    """
    count = -(-pixels // PIXELS)
    shared = -(-count // max(1, BLOCKS // frames))
    enough = -(-LEAST_WORK * block_bytes // (pixel_bytes * PIXELS))
    return min(max(shared, enough), count)


def limit(maps: int, channels: int, dtype: DTypeLike) -> str | None:
    """Says which limit of the kernels these sizes pass; None for none."""
    name = jnp.dtype(dtype).name
    m, c = up(maps, 16), up(channels, 64)
    if max(m, c) <= WIDEST[name] and m * c <= NUMBERS[name]:
        return None
    return (
        f"the kernels take up to {WIDEST[name]} maps, {WIDEST[name]} channels and {NUMBERS[name]} "
        f"of their product in {name}, padded to multiples of 16 and 64; these are {m} and {c}"
    )
