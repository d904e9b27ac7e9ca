"""What the Pallas kernels share: how pixels are divided, masked tiles, products, the call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from kernels import tiles

Ref: TypeAlias = Any
"""A kernel's view of one block of an array in the GPU's memory."""

Input: TypeAlias = tuple[Array, pl.BlockSpec]
Output: TypeAlias = tuple[jax.ShapeDtypeStruct, pl.BlockSpec]


@dataclass(frozen=True)
class Layout:
    """How the pixels of `frames` frames are divided: into chunks, one a program, and tiles.

    The grid is (frames, chunks). Blocks are padded to powers of two beyond the arrays, so
    every load and store of pixels is masked to what is there.
    """

    frames: int
    pixels: int
    tile: tiles.Tile
    pixel_bytes: int  # read and written of each pixel
    program_bytes: int  # read and written by each program besides

    @property
    def tiles_a_chunk(self) -> int:
        """Tiles of one program."""
        return tiles.divide(
            self.frames, self.pixels, self.tile, self.pixel_bytes, self.program_bytes
        )

    @property
    def chunk(self) -> int:
        """Pixels of one program."""
        return self.tiles_a_chunk * self.tile.pixels

    @property
    def chunks(self) -> int:
        """Programs of one frame."""
        return pl.cdiv(self.pixels, self.chunk)

    def rows(self, columns: int) -> pl.BlockSpec:
        """Pixels down, for an array [frames, pixels, columns]."""
        return pl.BlockSpec((None, self.chunk, columns), lambda i, s: (i, s, 0))

    def columns(self, rows: int) -> pl.BlockSpec:
        """Pixels across, for an array [frames, rows, pixels]."""
        return pl.BlockSpec((None, rows, self.chunk), lambda i, s: (i, 0, s))

    def each_frame(self, *shape: int) -> pl.BlockSpec:
        """The same for all programs of a frame, for an array [frames, *shape]."""
        return pl.BlockSpec((None, *shape), lambda i, s: (i, *(0 for _ in shape)))

    def result(self, *shape: int) -> Output:
        """One float32 result of each program: an array [frames, chunks, *shape]."""
        return (
            jax.ShapeDtypeStruct((self.frames, self.chunks, *shape), jnp.float32),
            pl.BlockSpec((None, None, *shape), lambda i, s: (i, s, *(0 for _ in shape))),
        )

    def over_tiles(self, step: Callable[[pl.Slice, Array | None, Any], Any], carry: Any) -> Any:
        """Run `step(where, present, carry)` on each tile of this program's chunk.

        `where` slices the chunk; `present` says which of its pixels the frame has, None if all.
        """
        first = pl.program_id(1) * self.chunk

        def tile(i: Array, carry: Any) -> Any:
            start = i * self.tile.pixels
            present = None
            if self.pixels % self.chunk:
                present = first + start + jnp.arange(self.tile.pixels) < self.pixels
            return step(pl.Slice(start, self.tile.pixels), present, carry)

        return lax.fori_loop(0, self.tiles_a_chunk, tile, carry)

    def mask(
        self, present: Array | None, size: int, padded: int, *, across: bool = False
    ) -> Array | None:
        """Which of a tile there is: the present pixels and `size` of its other, padded, dimension.

        The pixels run down the tile, or across it. None where all of it is there.
        """
        pixels, other = (1, 0) if across else (0, 1)
        parts = [] if present is None else [jnp.expand_dims(present, other)]
        if size != padded:
            parts.append(jnp.expand_dims(jnp.arange(padded) < size, pixels))
        if not parts:
            return None
        shape = (padded, self.tile.pixels) if across else (self.tile.pixels, padded)
        return jnp.broadcast_to(functools.reduce(jnp.logical_and, parts), shape)

    def call(
        self,
        kernel: Callable[..., None],
        inputs: Sequence[Input],
        outputs: Sequence[Output],
        interpret: bool,
    ) -> Sequence[Array]:
        """Run the kernel once for each chunk of each frame."""
        grid = (self.frames, self.chunks)
        return call(kernel, grid, inputs, outputs, self.tile.warps, self.tile.stages, interpret)


def call(
    kernel: Callable[..., None],
    grid: tuple[int, int],
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    warps: int,
    stages: int,
    interpret: bool,
) -> Sequence[Array]:
    """Run the kernel for each point of the grid on the blocks that the specs give it."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[spec for _, spec in inputs],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        compiler_params=backend().CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name=kernel.__name__,
    )(*(array for array, _ in inputs))


def backend() -> Any:
    """JAX's Triton backend, imported when a kernel needs it: JAX means to remove it."""
    from jax.experimental.pallas import triton

    return triton


def everywhere(*shape: int) -> pl.BlockSpec:
    """The same for all programs, for an array of this shape."""
    return pl.BlockSpec(shape, lambda i, s: tuple(0 for _ in shape))


def padded(size: int) -> int:
    """Pad to a power of two, at least the 16 that a tensor core's product takes."""
    return max(16, pl.next_power_of_2(size))


def pad(array: Array, *sizes: int, value: float = 0.0) -> Array:
    """Pad the last dimensions of a small array to `sizes`."""
    lead = array.ndim - len(sizes)
    widths = [(0, size - array.shape[lead + i]) for i, size in enumerate(sizes)]
    if not any(after for _, after in widths):
        return array
    return jnp.pad(array, [(0, 0)] * lead + widths, constant_values=value)


def pad_bias(bias: Array, size: int) -> Array:
    """Pad a bias so that the maps that there are none of are masked: a logit of -inf."""
    return pad(bias.astype(jnp.float32), size, value=-jnp.inf)


def load(ref: Ref, mask: Array | None, other: float = 0.0) -> Array:
    """Load a tile, with `other` where it is masked."""
    return backend().load(ref, mask=mask, other=None if mask is None else other)


def store(ref: Ref, mask: Array | None, value: Array) -> None:
    """Store a tile in the dtype of the array, but for what is masked."""
    backend().store(ref, value.astype(ref.dtype), mask=mask)


def product(a: Array, b: Array, contracted: tuple[int, int], dtype: DTypeLike) -> Array:
    """Contract one dimension of each tile: operands in `dtype`, sums and result in float32.

    Half precision takes the tensor cores; float32 does not, as they would round it to TF32.
    """
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contracted[0],), (contracted[1],)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
