"""How the kernels tile the pixels, with the reason for each number, and the sizes they support.

The tiles for bfloat16 are the fastest of some fifty timed on an H200 (docs/lab/performance.md); the
others follow from the registers, spills and shared memory of each kernel as compiled for sm_90.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.typing import DTypeLike

Kernel: TypeAlias = Literal["squeeze", "squeeze backward", "expand", "expand backward"]

ROWS = 64
"""Rows of a warpgroup product, and pixels of the smallest tile."""


class Tiles(NamedTuple):
    """How a kernel divides the pixels of its frames."""

    pixels: int
    """Pixels of a tile."""
    stages: int
    """Tiles in shared memory at once, limited by its 227 kB per multiprocessor."""
    blocks: int
    """Blocks to divide the pixels of all frames into. If more than fit at once, they finish one
    after the other, and each adds a partial result."""


IN_BFLOAT16: dict[Kernel, Tiles] = {
    # Two blocks fit on each of an H200's 132 multiprocessors. The maximum over a tile involves all
    # four warps, so large tiles pay off.
    "squeeze": Tiles(256, 2, 2 * 132),
    "squeeze backward": Tiles(64, 2, 4 * 132),
    "expand": Tiles(64, 2, 3 * 132),
    # Two streams of pixels and two accumulators. At 8192 numbers these take all 255 registers, and
    # 1 kB per thread is spilled to memory and back for each tile.
    "expand backward": Tiles(64, 2, 8 * 132),
}

IN_PARTS = Tiles(64, 2, 8 * 132)
"""For float16 and float32, whose parts need shared memory besides the tiles."""

LOGITS, VALUES = 4096, 16384
"""Most logits (registers) and values (shared memory) of a tile with more than ROWS pixels."""

NUMBERS = {"bfloat16": 8192, "float16": 4096, "float32": 4096}
"""Most numbers in an accumulator, padded maps times padded channels; limited by registers."""

WIDEST = {"bfloat16": 128, "float16": 128, "float32": 64}
"""Most maps, padded to a multiple of 16, or channels, padded to a multiple of 64."""

LEAST_WORK = 16
"""A block moves at least this many times as many bytes for its pixels as for all else: its partial
result, and the weights or maps it works with. So those cost at most 1/16 of the time."""


def up(size: int, step: int) -> int:
    """Rounds `size` up to a multiple of `step`."""
    return -(-size // step) * step


def of_kernel(kernel: Kernel, maps: int, channels: int, dtype: DTypeLike) -> Tiles:
    """Returns the tiles of a kernel for these numbers of maps and channels.

    Args:
      kernel: which one.
      maps, channels: both padded.
      dtype: of the pixels.
    """
    if jnp.dtype(dtype).name != "bfloat16":
        return IN_PARTS
    return limited(IN_BFLOAT16[kernel], maps, channels)


def limited(tiles: Tiles, maps: int, channels: int) -> Tiles:
    """Returns `tiles` with no more pixels than there is room for."""
    most = min(LOGITS // maps, VALUES // channels) // ROWS * ROWS
    return tiles._replace(pixels=max(ROWS, min(tiles.pixels, most)))


def limit(maps: int, channels: int, dtype: DTypeLike) -> str | None:
    """Says which limit of the kernels these sizes exceed; None if they fit."""
    name = jnp.dtype(dtype).name
    m, c = up(maps, 16), up(channels, 64)
    if max(m, c) <= WIDEST[name] and m * c <= NUMBERS[name]:
        return None
    return (
        f"the kernels support up to {WIDEST[name]} maps, {WIDEST[name]} channels and a product of "
        f"{NUMBERS[name]} in {name}, padded to multiples of 16 and 64, not {m} and {c}"
    )
