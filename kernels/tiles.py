"""How the kernels divide the pixels, with the reason beside each number, and the sizes they take.

Those of bfloat16 are the fastest of some fifty that an H200 timed (docs/lab/performance.md); the
others come from what the compiler makes of each kernel for sm_90: registers, spills and shared
memory.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.typing import DTypeLike

Kernel: TypeAlias = Literal["squeeze", "squeeze backward", "expand", "expand backward"]

ROWS = 64
"""Of a warpgroup product: the pixels of the smallest tile."""


class Tiles(NamedTuple):
    """How a kernel divides the pixels of its frames."""

    pixels: int
    """Of a tile."""
    stages: int
    """Tiles in shared memory at once, of whose 227 kB a multiprocessor has the rest decides."""
    blocks: int
    """To divide the pixels into, all frames together. More than fit at once end one after the
    other, and each adds a partial result."""

    def divide(self, frames: int, pixels: int, pixel_bytes: int, block_bytes: int) -> int:
        """Tiles of one block: so many that all frames together make the blocks with enough work.

        Args:
          frames, pixels: how many there are, the pixels of one frame.
          pixel_bytes: read and written of each pixel.
          block_bytes: moved by each block besides.
        """
        count = -(-pixels // self.pixels)
        shared = -(-count // max(1, self.blocks // frames))
        enough = -(-LEAST_WORK * block_bytes // (pixel_bytes * self.pixels))
        return min(max(shared, enough), count)


IN_BFLOAT16: dict[Kernel, Tiles] = {
    # Two blocks fit each of an H200's 132 multiprocessors. The maximum over a tile goes through
    # all four warps, so large tiles pay.
    "squeeze": Tiles(256, 2, 2 * 132),
    "squeeze backward": Tiles(64, 2, 4 * 132),
    "expand": Tiles(64, 2, 3 * 132),
    # Two streams of pixels, and two accumulators, which at 8192 numbers take all 255 registers, of
    # which 1 kB a thread goes to memory and back for each tile.
    "expand backward": Tiles(64, 2, 8 * 132),
}

IN_PARTS = Tiles(64, 2, 8 * 132)
"""Of float16 and float32, whose parts lie beside the tiles."""

LOGITS, VALUES = 4096, 16384
"""Most logits and values of a tile that has more than ROWS pixels: registers, shared memory."""

NUMBERS = {"bfloat16": 8192, "float16": 4096, "float32": 4096}
"""Most numbers of an accumulator, padded maps times padded channels: more do not fit registers."""

WIDEST = {"bfloat16": 128, "float16": 128, "float32": 64}
"""Most maps or channels of these, padded to 16 and to 64."""

LEAST_WORK = 16
"""A block moves at least so many times the bytes of its pixels as of all else: its partial result,
and the weights or maps it works with. So those cost at most 1/16 of the time."""


def up(size: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-size // step) * step


def of_kernel(kernel: Kernel, maps: int, channels: int, dtype: DTypeLike) -> Tiles:
    """The tiles of a kernel that takes so many maps and channels, which are padded."""
    if jnp.dtype(dtype).name != "bfloat16":
        return IN_PARTS
    return limited(IN_BFLOAT16[kernel], maps, channels)


def limited(tiles: Tiles, maps: int, channels: int) -> Tiles:
    """Tiles of as many pixels as there is room for."""
    most = min(LOGITS // maps, VALUES // channels) // ROWS * ROWS
    return tiles._replace(pixels=max(ROWS, min(tiles.pixels, most)))


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
