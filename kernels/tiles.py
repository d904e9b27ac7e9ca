"""The tile sizes of the kernels, with the reason beside each number, and the sizes they take.

The numbers come from what the compiler makes of each kernel for sm_90 and sm_80, which needs no
GPU: registers, spills, shared memory, and the instructions of one tile against the time an H200
takes to read it (its 4.8 TB/s are 21 bytes a cycle for each of 132 multiprocessors, which issue
4 instructions a cycle). They have not been tuned by timing; `python -m benchmarks.gpu_day kernels`
is how.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

SQUEEZES = (
    "softmax_squeeze",
    "projected_squeeze",
    "softmax_squeeze_backward",
    "projected_squeeze_backward",
)
EXPANDS = ("softmax_expand", "projected_expand", "softmax_expand_backward")
HEAVIEST = ("projected_expand_backward",)


@dataclass(frozen=True)
class Tile:
    """How a kernel works: `pixels` at a time, `warps` to a program, `stages` of loads deep."""

    pixels: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Row:
    """The tile of some kernels for numbers of so many bytes, up to so many in an accumulator."""

    kernels: tuple[str, ...]
    bytes: int
    numbers: int
    tile: Tile


TABLE = (
    # Half precision, on tensor cores.
    # 64 pixels: the fewest that Hopper's warpgroup products take; twice as many save 5 % of the
    # instructions but halve the programs that fit on a multiprocessor.
    # 4 warps: one warpgroup; a second repeats part of its products, up to twice the instructions.
    # 3 stages: two tiles are on their way while one is worked on; with the 2 to 8 programs that
    # fit this is 70 to 150 kB, where 25 kB cover the latency of the memory.
    Row(SQUEEZES + EXPANDS, 2, 8192, Tile(pixels=64, warps=4, stages=3)),
    # Two accumulators and two operands of this many numbers: above 2048, 64 pixels spill
    # registers (460 bytes at 8192), 32 hardly (24 bytes), and 2 stages let two programs fit.
    Row(HEAVIEST, 2, 2048, Tile(pixels=64, warps=4, stages=3)),
    Row(HEAVIEST, 2, 8192, Tile(pixels=32, warps=4, stages=2)),
    # Above 8192, 4 warps have not the registers for an accumulator and its operands, and
    # 3 stages do not fit the 163 kB of shared memory of an A100.
    Row(SQUEEZES + EXPANDS, 2, 16384, Tile(pixels=64, warps=8, stages=2)),
    Row(HEAVIEST, 2, 16384, Tile(pixels=32, warps=8, stages=2)),
    # Float32: without TF32 the products are multiply-adds, unrolled.
    # 32 pixels in 4 warps take 1 to 3 times the instructions that the memory leaves time for; 64
    # save 5 % of them and need twice the registers.
    Row(SQUEEZES + EXPANDS + HEAVIEST, 4, 2048, Tile(pixels=32, warps=4, stages=3)),
    # Above 2048 that spills kilobytes; 16 pixels in 8 warps spill 504 bytes at the most.
    Row(SQUEEZES + EXPANDS + HEAVIEST, 4, 8192, Tile(pixels=16, warps=8, stages=2)),
    # Above 8192 the operands alone fill the shared memory, so no tile is loaded ahead; the
    # backward passes spill kilobytes. It runs; bfloat16 is the way to run sizes like this fast.
    Row(SQUEEZES + EXPANDS + HEAVIEST, 4, 16384, Tile(pixels=16, warps=8, stages=1)),
)

MOSAIC = {
    # 64 pixels: the rows of a warpgroup product. 4 warps: one warpgroup.
    # Shared memory, at 227 kB a multiprocessor, decides the stages. bfloat16 tiles are operands as
    # they come; float16 and float32 are cut into parts, which lie beside them.
    "bfloat16": (
        # 3 stages: two tiles on their way, 16 kB a block at 64 channels and 80 kB with the 5 blocks
        # that fit, where 25 kB cover the latency of the memory.
        Row(SQUEEZES + EXPANDS, 2, 8192, Tile(pixels=64, warps=4, stages=3)),
        # Two streams of pixels, and two accumulators: 255 registers at 8192, of which 1 kB a
        # thread goes to memory and back for each tile.
        Row(HEAVIEST, 2, 8192, Tile(pixels=64, warps=4, stages=2)),
    ),
    "float16": (Row(SQUEEZES + EXPANDS + HEAVIEST, 2, 4096, Tile(pixels=64, warps=4, stages=2)),),
    "float32": (Row(SQUEEZES + EXPANDS + HEAVIEST, 4, 4096, Tile(pixels=64, warps=4, stages=2)),),
}
"""The tiles of the Mosaic kernels for Hopper."""

MOSAIC_WIDEST = {"bfloat16": 128, "float16": 128, "float32": 64}
"""Most maps or channels of these, padded to 16 and to 64."""

PROGRAMS = 1056
"""Programs to divide the pixels into: 8 for each of an H200's 132 multiprocessors, as many as
fit at once with the smallest tiles. All end together; more would only add partial results."""

LEAST_WORK = 16
"""A program moves at least so many times the bytes of its pixels as of all else: its partial
result, and the weights or maps it works with. So those cost at most 1/16 of the time."""

JOINED_CHUNKS = 32
"""Partial results joined at a time: 32 rows of 256 float32 are 32 kB, 64 registers a thread."""

WIDEST = {2: 256, 4: 128}
"""Most maps or channels, padded, by the bytes of a number. In float32 the backward pass of a
projected squeeze of 256 x 64 needs 168 kB of shared memory, where an A100 has 167."""


def divide(frames: int, pixels: int, tile: Tile, pixel_bytes: int, program_bytes: int) -> int:
    """Tiles of one program: so many that all frames together make PROGRAMS with enough work each.

    `pixel_bytes` are read and written of each pixel, `program_bytes` by each program besides.
    """
    count = -(-pixels // tile.pixels)
    shared = -(-count // max(1, PROGRAMS // frames))
    enough = -(-LEAST_WORK * program_bytes // (pixel_bytes * tile.pixels))
    return min(max(shared, enough), count)


def choose(
    kernel: str, maps: int, channels: int, dtype: DTypeLike, *, mosaic: bool = False
) -> Tile:
    """Look up the tile of a kernel for padded sizes within its limit."""
    dtype = jnp.dtype(dtype)
    table = MOSAIC[dtype.name] if mosaic else TABLE
    rows = [row for row in table if kernel in row.kernels and row.bytes == dtype.itemsize]
    return min((r for r in rows if r.numbers >= maps * channels), key=lambda r: r.numbers).tile


def limit(maps: int, channels: int, dtype: DTypeLike) -> str | None:
    """Say which limit of the kernels these padded sizes pass, or None."""
    width = jnp.dtype(dtype).itemsize
    numbers, widest = max(r.numbers for r in TABLE if r.bytes == width), WIDEST[width]
    if max(maps, channels) <= widest and maps * channels <= numbers:
        return None
    return (
        f"the kernels take up to {widest} maps, {widest} channels and {numbers} of their product "
        f"in {jnp.dtype(dtype).name}, padded to powers of two; these are {maps} and {channels}"
    )


def mosaic_limit(maps: int, channels: int, dtype: DTypeLike) -> str | None:
    """Say which limit of the Mosaic kernels these sizes pass, or None."""
    name = jnp.dtype(dtype).name
    numbers, widest = max(r.numbers for r in MOSAIC[name]), MOSAIC_WIDEST[name]
    m, c = -(-maps // 16) * 16, -(-channels // 64) * 64
    if max(m, c) <= widest and m * c <= numbers:
        return None
    return (
        f"the Mosaic kernels take up to {widest} maps, {widest} channels and {numbers} of their "
        f"product in {name}, padded to multiples of 16 and 64; these are {m} and {c}"
    )
