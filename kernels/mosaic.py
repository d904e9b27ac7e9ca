"""What the Mosaic GPU kernels share: the plan of a call, streams of pixels, warpgroup products.

A block is one warpgroup. Bulk copies (TMA) bring tiles of pixels into swizzled shared memory, some
stages ahead; there they are the operands of warpgroup products (wgmma). These take bfloat16: a
float16 number is split into two bfloat16 parts and a float32 number into three, which hold all of
its bits, and the products of the parts are summed, except those below float32's rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu
from jax.typing import DTypeLike

from kernels import tiles
from kernels.tiles import up

Ref: TypeAlias = Any
"""A kernel's view of an array in the GPU's memory or in a block's shared memory."""

Load: TypeAlias = Callable[[], Array]
"""Loads a vector into registers."""

SWIZZLES = (128, 64, 32)
"""Bytes in a row of a swizzle. Both operands of a product have the same."""

PARTS = {"bfloat16": 1, "float16": 2, "float32": 3}
"""How many bfloat16 parts each number is split into."""

WGMMA, TRANSPOSED = gpu.Layout.WGMMA, gpu.Layout.WGMMA_TRANSPOSED
COLUMNS = WGMMA.reduce(0)
"""Register layouts of a matrix [64 i, 8 j] of a product, and of a vector of its columns."""

_SINCE_0_12 = hasattr(gpu, "store")
_INDEX = inspect.signature(gpu.load).parameters.get("idx")
_NEEDS_INDEX = _INDEX is not None and _INDEX.default is _INDEX.empty  # until 0.10


@dataclass(frozen=True)
class Plan:
    """How a call divides its pixels into chunks, one for each block, and these into tiles.

    `maps` and `channels` are padded, to 16 and to the rows of a product. `dtype` is that of all
    arrays of pixels, `moved` the count of their numbers read and written for each pixel, and
    `small` the bytes that a block moves for each number of a matrix of maps and channels.
    """

    frames: int
    pixels: int
    maps: int
    channels: int
    dtype: DTypeLike
    swizzle: int
    tiles: tiles.Tiles
    moved: int
    small: int
    interpret: bool

    @classmethod
    def of(
        cls,
        kernel: tiles.Kernel,
        x: Array,
        maps: int,
        channels: int,
        *,
        moved: int,
        small: int,
        interpret: bool,
    ) -> Plan:
        """Makes the plan of a kernel.

        Args:
          kernel: which one.
          x: pixels, [frames, pixels, width].
          maps, channels: of its matrices, not padded.
          moved: numbers read and written for each pixel.
          small: bytes that a block moves for each number of a matrix.
          interpret: whether the kernel runs on a CPU, slowly.
        """
        frames, pixels, width = x.shape
        padded = up(maps, 16), up(max(width, channels), 64)
        return cls(
            frames,
            pixels,
            *padded,
            dtype=x.dtype,
            swizzle=swizzle_of(x.dtype, width, channels),
            tiles=tiles.of_kernel(kernel, *padded, x.dtype),
            moved=moved,
            small=small,
            interpret=interpret,
        )

    @property
    def parts(self) -> int:
        """How many bfloat16 parts each number is split into."""
        return PARTS[jnp.dtype(self.dtype).name]

    @property
    def tiles_a_chunk(self) -> int:
        """Tiles in a chunk: about `tiles.blocks` chunks in all, each with enough work."""
        pixels, _, blocks = self.tiles
        count = pl.cdiv(self.pixels, pixels)
        shared = pl.cdiv(count, max(1, blocks // self.frames))
        tile_bytes = self.moved * jnp.dtype(self.dtype).itemsize * pixels
        block_bytes = self.small * self.maps * self.channels
        enough = pl.cdiv(tiles.LEAST_WORK * block_bytes, tile_bytes)
        return min(max(shared, enough), count)

    @property
    def chunks(self) -> int:
        """Chunks, and so blocks, of one frame."""
        return pl.cdiv(self.pixels, self.tiles_a_chunk * self.tiles.pixels)

    @property
    def logits(self) -> tuple[int, int]:
        """The shape of a tile's logits."""
        return self.tiles.pixels, self.maps

    @property
    def values(self) -> tuple[int, int]:
        """The shape of a tile's values."""
        return self.tiles.pixels, self.channels

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of a sum over the pixels."""
        return self.channels, self.maps

    def transforms(self, width: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """Returns a matrix's layout in memory: `swizzle`, or the widest that divides its rows."""
        size = jnp.dtype(dtype).itemsize
        swizzle = next(s for s in SWIZZLES if s <= self.swizzle and not width * size % s)
        return gpu.TilingTransform((8, swizzle // size)), gpu.SwizzleTransform(swizzle)

    def tile(self) -> Any:
        """Returns shared memory for an outgoing tile of pixels."""
        transforms = self.transforms(self.channels, self.dtype)
        return gpu.SMEM(self.values, self.dtype, transforms=transforms)

    def operand(self, rows: int, columns: int, swizzled: int = 0) -> list[Any]:
        """Returns shared memory for an operand of products; `swizzled` columns fit a swizzle."""
        transforms = self.transforms(swizzled or columns, jnp.bfloat16)
        memory = gpu.SMEM((rows, columns), jnp.bfloat16, transforms=transforms)
        return [memory] * self.parts

    def cut_tile(self) -> list[Any]:
        """Returns the same for a tile of pixels; none where the tile is an operand itself."""
        return self.operand(*self.values) if self.parts > 1 else []

    def small_matrix(self, array: Array) -> tuple[list[Array], list[Any]]:
        """Returns the parts of an array [maps, channels], or one per frame, and memory for them."""
        return self._padded_parts(array), self.operand(self.maps, self.channels)

    def over_maps(self, array: Array) -> tuple[list[Array], list[Any]]:
        """Returns the same for products that contract over the maps.

        As these require, its swizzle holds no more rows than there are maps.
        """
        return self._padded_parts(array), self.operand(self.maps, self.channels, self.maps)

    def _padded_parts(self, array: Array) -> list[Array]:
        return self.cut(_padded(array.astype(jnp.float32), self.maps, self.channels))

    def stream(self, array: Array) -> Array:
        """Pads an array [frames, pixels, width], if necessary, for copies of tiles.

        They take whole rows of a swizzle, or multiples of 16 bytes within one row.
        """
        swizzle = self.transforms(self.channels, self.dtype)[1].swizzle
        width = _width(array.shape[-1], array.dtype, swizzle)
        return _padded(array, up(array.shape[-2], 8), width)

    def like_stream(self, width: int) -> jax.ShapeDtypeStruct:
        """Returns the type of a result that is padded as by `stream`."""
        shape = jax.ShapeDtypeStruct((self.frames, self.pixels, width), self.dtype)
        return jax.eval_shape(self.stream, shape)

    def of_blocks(self, *shape: int) -> jax.ShapeDtypeStruct:
        """Returns the type of a float32 result of every block, [frames, chunks, ...]."""
        return jax.ShapeDtypeStruct((self.frames, self.chunks, *shape), jnp.float32)

    def call(
        self,
        kernel: Callable[..., None],
        streams: Mapping[str, Array],
        matrices: Mapping[str, tuple[Sequence[Array], Sequence[Any]]],
        vectors: Mapping[str, Array],
        results: Mapping[str, jax.ShapeDtypeStruct],
        scratch: Mapping[str, Any],
        sums: Sequence[str] = (),
    ) -> dict[str, Array]:
        """Runs `kernel(block, **arguments)` once for each chunk of each frame.

        Args:
          kernel: what a block does; its other arguments are named by the keys below.
          streams: arrays of pixels, whose tiles `Block.over_tiles` loads.
          matrices: parts of small matrices, and the shared memory that the kernel has them in.
          vectors: vectors over the maps, passed as functions that load them into registers. Like
            matrices, they are per frame if they have one more dimension, that of the frames.
          results: types of the arrays that the kernel writes.
          scratch: other shared memory.
          sums: names of accumulators [channels, maps].

        Returns:
          The results by name.
        """
        sources = {name: parts for name, (parts, _) in matrices.items()}
        arrays, structure = jax.tree.flatten((streams, sources, vectors))

        def run(*refs: Ref) -> None:
            *of_arrays, kept, spare, barrier = refs
            given = jax.tree.unflatten(structure, of_arrays[: len(arrays)])
            written = dict(zip(results, of_arrays[len(arrays) :], strict=True))
            block = Block(self, lax.axis_index("frame"), lax.axis_index("chunk"))
            for name, parts in given[1].items():
                for source, target in zip(parts, kept[name], strict=True):
                    gpu.copy_gmem_to_smem(block.own(source, 2), target, barrier)
                    gpu.barrier_wait(barrier)
            numbers = {name: partial(_load, block.own(ref, 1)) for name, ref in given[2].items()}
            pl.run_scoped(
                partial(kernel, block, **given[0], **kept, **numbers, **written, **spare),
                **{name: gpu.ACC(self.matrix, jnp.float32) for name in sums},
            )

        run.__name__ = kernel.__name__
        memory = {name: list(shared) for name, (_, shared) in matrices.items()}
        found = gpu.kernel(
            run,
            out_type=list(results.values()),
            scratch_types=[memory, dict(scratch), gpu.Barrier()],
            grid=(self.frames, self.chunks),
            grid_names=("frame", "chunk"),
            compiler_params=gpu.CompilerParams(
                # The fast exponential: accurate to float32's last bits near 0, and to 1e-5 where
                # its result is too small to matter in bfloat16.
                approx_math=self.parts == 1,
                lowering_semantics=gpu.LoweringSemantics.Warpgroup,
            ),
            interpret=_interpreter() if self.interpret else None,
        )(*arrays)
        return dict(zip(results, found, strict=True))

    def as_operand(self, tile: Ref, scratch: Sequence[Ref]) -> Sequence[Ref]:
        """Returns a tile of pixels as the parts that products take."""
        if self.parts == 1:
            return [tile]
        values = gpu.layout_cast(tile[...], WGMMA).astype(jnp.float32)
        for ref, part in zip(scratch, self.cut(values), strict=True):
            ref[...] = part
        gpu.commit_smem()
        return scratch

    def cut(self, values: Array) -> list[Array]:
        """Splits float32 numbers into bfloat16 parts that sum to them; one part is rounded."""
        if self.parts == 1:
            return [values.astype(jnp.bfloat16)]
        found = []
        for _ in range(self.parts):
            # Truncates bits: XLA may remove a rounding to bfloat16 and back.
            bits = lax.bitcast_convert_type(values, jnp.int32) & jnp.int32(-65536)
            part = lax.bitcast_convert_type(bits, jnp.float32)
            found.append(part.astype(jnp.bfloat16))
            values = values - part
        return found

    def product(self, shape: tuple[int, int], *terms: tuple[Sequence[Any], Sequence[Ref]]) -> Array:
        """Sums the products of (left, right), each in parts, into float32 registers."""

        def multiplied(accumulator: Ref) -> Array:
            for left, right in terms:
                self.accumulate(accumulator, left, right)
            return accumulator[...]

        return pl.run_scoped(multiplied, gpu.ACC(shape, jnp.float32))

    def accumulate(self, accumulator: Ref, left: Sequence[Any], right: Sequence[Ref]) -> None:
        """Adds a product to an accumulator; `left` is in shared memory or in registers."""
        parts = range(self.parts)
        # Products of later parts would round away.
        for i, j in ((i, j) for i in parts for j in parts if i + j < self.parts):
            if self.interpret and isinstance(left[i], jax.Array):
                # JAX's interpreter takes this operand only from shared memory.
                pl.run_scoped(
                    partial(_stored_first, accumulator, left[i], right[j]),
                    gpu.SMEM(left[i].shape, left[i].dtype),
                )
            else:
                gpu.wgmma(accumulator, left[i], right[j])
        gpu.wgmma_wait(0)

    def store_transposed(self, refs: Sequence[Ref], values: Array) -> list[Array]:
        """Stores a matrix [pixels, maps] as an operand [maps, pixels]; returns its parts."""
        parts = self.cut(values)
        for ref, part in zip(refs, parts, strict=True):
            ref.T[...] = gpu.layout_cast(part, TRANSPOSED)
        gpu.commit_smem()
        return parts


@dataclass(frozen=True)
class Block:
    """One block of a call, with one chunk of one frame."""

    plan: Plan
    frame: Array
    chunk: Array

    def own(self, ref: Ref, dimensions: int) -> Ref:
        """Returns the frame's part of an array with more than `dimensions` axes, else the array."""
        return ref.at[self.frame] if len(ref.shape) > dimensions else ref

    def over_tiles(
        self, body: Callable[..., Any], streams: Sequence[Ref], carry: Any = None
    ) -> Any:
        """Runs `carry = body(tile, *here, carry)` on each tile of the chunk; copies run ahead.

        `here` has each stream's tile in shared memory; beyond the array its values are 0.
        """
        plan = self.plan
        first = self.chunk * plan.tiles_a_chunk
        specs = [
            gpu.BlockSpec(
                plan.values,
                # A traced 0: a constant is rejected where the array is narrower.
                lambda i: (first + i, 0 * i),
                transforms=plan.transforms(plan.channels, plan.dtype),
            )
            for _ in streams
        ]
        return gpu.emit_pipeline(
            lambda indices, *arguments: body(first + indices[0], *arguments),
            grid=(plan.tiles_a_chunk,),
            in_specs=specs,
            max_concurrent_steps=min(plan.tiles.stages, plan.tiles_a_chunk),
            **({} if carry is None else {"init_carry": carry}),
        )(*(stream.at[self.frame] for stream in streams))

    def send(self, value: Array, buffer: Ref, stream: Ref, tile: Array) -> None:
        """Copies a tile through shared memory to an array of pixels, without waiting.

        Args:
          value: the tile.
          buffer: shared memory of the tile's size.
          stream: the array [frames, pixels, channels].
          tile: the tile's number.
        """
        gpu.wait_smem_to_gmem(0, wait_read_only=True)  # for the previous tile
        buffer[...] = value.astype(buffer.dtype)
        gpu.commit_smem()
        rows, channels = self.plan.values
        pixels, width = pl.ds(tile * rows, rows), pl.ds(0 * tile, channels)
        gpu.copy_smem_to_gmem(buffer, stream.at[self.frame, pixels, width])

    def result(self, ref: Ref, value: Array) -> None:
        """Writes this block's entry of an array [frames, chunks, ...]."""
        target = ref.at[self.frame, self.chunk]
        if _SINCE_0_12:
            getattr(gpu, "store")(target, value, optimized=False)  # noqa: B009 (JAX 0.10 has none)
        else:
            target[...] = value


def _interpreter() -> Any:
    """Returns JAX's interpreter of kernels, available from 0.11; it reports data races."""
    return getattr(gpu, "InterpretGPUParams")(detect_races=True)  # noqa: B009 (0.10 has none)


def _load(ref: Ref) -> Array:
    """Loads a vector from the GPU's memory into registers."""
    index = ((),) if _NEEDS_INDEX else ()
    return gpu.load(ref, *index, layout=COLUMNS, optimized=False)


def _stored_first(accumulator: Ref, left: Array, right: Ref, shared: Ref) -> None:
    shared[...] = left
    gpu.commit_smem()
    gpu.wgmma(accumulator, shared, right)


def transposed(refs: Sequence[Ref]) -> list[Ref]:
    """Returns transposed views of an operand's parts in shared memory."""
    return [ref.T for ref in refs]


def full(shape: tuple[int, ...], value: float, layout: Any = WGMMA) -> Array:
    """Returns a constant array in registers."""
    return gpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def across(vector: Array, like: Array) -> Array:
    """Broadcasts a number for each column over the rows."""
    return lax.broadcast_in_dim(vector, like.shape, (1,))


def down(vector: Array, like: Array) -> Array:
    """Broadcasts a number for each row over the columns."""
    return lax.broadcast_in_dim(vector, like.shape, (0,))


def _padded(array: Array, rows: int, width: int) -> Array:
    """Pads the last two dimensions of an array with 0; copies only where they are smaller."""
    if array.shape[-2:] == (rows, width):
        return array
    lead = [(0, 0)] * (array.ndim - 2)
    return jnp.pad(array, [*lead, (0, rows - array.shape[-2]), (0, width - array.shape[-1])])


def _width(width: int, dtype: DTypeLike, swizzle: int) -> int:
    size = jnp.dtype(dtype).itemsize
    return up(width, 16 // size if width * size <= swizzle else swizzle // size)


def swizzle_of(dtype: DTypeLike, *widths: int) -> int:
    """Returns the widest swizzle that pads no width beyond multiples of 16 bytes, else 128."""
    for swizzle in SWIZZLES:
        if all(_width(w, dtype, swizzle) == _width(w, dtype, 16) for w in widths):
            return swizzle
    return 128


@jax.custom_jvp
def first_derivative_only(values: Any) -> Any:
    """Returns `values`, and raises NotImplementedError where they are differentiated again."""
    return values


@first_derivative_only.defjvp
def _second_derivative(primals: Any, tangents: Any) -> NoReturn:
    raise NotImplementedError(
        "the kernels have first derivatives only; implementation='einsum' has higher ones too"
    )
