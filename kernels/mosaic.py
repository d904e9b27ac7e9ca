"""What the Mosaic GPU kernels share: the plan of a call, streams of pixels, warpgroup products.

One warpgroup a block. Tiles of pixels come by bulk copies (TMA) into swizzled shared memory, some
stages ahead, and are there the operands of warpgroup products (wgmma). These take bfloat16: a
float16 number is cut into two bfloat16 parts and a float32 number into three, which hold all of
its bits, and the products of the parts are summed, but for those below float32's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu
from jax.typing import DTypeLike

from kernels import tiles

Ref: TypeAlias = Any
"""A kernel's view of an array in the GPU's memory or in a block's shared memory."""

ROWS = 64
"""Rows of a warpgroup product: pixels where they are its rows, channels where these are."""

SWIZZLES = (128, 64, 32)
"""Bytes of a row of a swizzle. The two operands of a product have the same."""

PARTS = {"bfloat16": 1, "float16": 2, "float32": 3}
"""Into how many bfloat16 numbers each number is cut."""

WGMMA, TRANSPOSED = gpu.Layout.WGMMA, gpu.Layout.WGMMA_TRANSPOSED
COLUMNS = WGMMA.reduce(0)
"""How registers hold a matrix [64 i, 8 j] of a product, and a vector of its columns."""


@dataclass(frozen=True)
class Plan:
    """How a call divides its pixels: into chunks, one a block, and tiles, some stages in flight.

    `maps` and `channels` are padded, to 16 and to the rows of a product.
    """

    frames: int
    pixels: int
    maps: int
    channels: int
    tile: tiles.Tile
    swizzle: int
    parts: int
    pixel_bytes: int
    program_bytes: int
    interpret: bool

    @property
    def tiles_a_chunk(self) -> int:
        """Tiles of one block."""
        return tiles.divide(
            self.frames, self.pixels, self.tile, self.pixel_bytes, self.program_bytes
        )

    @property
    def chunks(self) -> int:
        """Blocks of one frame."""
        return pl.cdiv(self.pixels, self.tiles_a_chunk * self.tile.pixels)

    @property
    def whole(self) -> bool:
        """Whether every tile is full."""
        return self.chunks * self.tiles_a_chunk * self.tile.pixels == self.pixels

    @property
    def logits(self) -> tuple[int, int]:
        """The shape of a tile's logits."""
        return self.tile.pixels, self.maps

    def fitting(self, width: int, dtype: DTypeLike) -> int:
        """The swizzle of a matrix so wide: that of the operands, if it is as wide itself."""
        size = width * jnp.dtype(dtype).itemsize
        return next(
            swizzle for swizzle in SWIZZLES if swizzle <= self.swizzle and not size % swizzle
        )

    def transforms(self, width: int, dtype: DTypeLike) -> tuple[Any, ...]:
        """How such a matrix lies in shared memory."""
        swizzle = self.fitting(width, dtype)
        tiling = (8, swizzle // jnp.dtype(dtype).itemsize)
        return gpu.TilingTransform(tiling), gpu.SwizzleTransform(swizzle)

    def shared(self, rows: int, columns: int, dtype: DTypeLike = jnp.bfloat16) -> Any:
        """Swizzled shared memory for a matrix."""
        return gpu.SMEM((rows, columns), dtype, transforms=self.transforms(columns, dtype))

    def operand(self, rows: int, columns: int) -> list[Any]:
        """Shared memory for the parts of an operand of products."""
        return [self.shared(rows, columns) for _ in range(self.parts)]

    def over_maps(self) -> list[Any]:
        """The same for a matrix [maps, channels] that products contract over its maps.

        Its swizzle holds no more rows than it has maps, as they demand.
        """
        swizzle = self.fitting(self.maps, jnp.bfloat16)
        transforms = (gpu.TilingTransform((8, swizzle // 2)), gpu.SwizzleTransform(swizzle))
        shape = (self.maps, self.channels)
        return [gpu.SMEM(shape, jnp.bfloat16, transforms=transforms) for _ in range(self.parts)]

    def cut_tile(self) -> list[Any]:
        """Shared memory for the parts of a tile of pixels; none where it is an operand itself."""
        return self.operand(self.tile.pixels, self.channels) if self.parts > 1 else []

    def call(
        self,
        kernel: Callable[..., None],
        arrays: Sequence[Array],
        results: Sequence[jax.ShapeDtypeStruct],
        scratch: Sequence[Any],
        accumulators: Sequence[tuple[int, int]] = (),
    ) -> Sequence[Array]:
        """Run `kernel(block, *refs)` once for each chunk of each frame.

        `refs` are those of the arrays, the results, the scratch (lists of it as lists) and the
        accumulators, whose shapes are given.
        """

        def run(*refs: Ref) -> None:
            block = Block(self, lax.axis_index("frame"), lax.axis_index("chunk"))
            pl.run_scoped(
                lambda *sums: kernel(block, *refs, *sums),
                *(gpu.ACC(shape, jnp.float32) for shape in accumulators),
            )

        run.__name__ = kernel.__name__
        return gpu.kernel(
            run,
            out_type=list(results),
            scratch_types=list(scratch),
            grid=(self.frames, self.chunks),
            grid_names=("frame", "chunk"),
            compiler_params=gpu.CompilerParams(
                # The fast exponential: good to float32's last bits near 0, and to 1e-5 where its
                # result is too small for bfloat16 to notice.
                approx_math=self.parts == 1,
                lowering_semantics=gpu.LoweringSemantics.Warpgroup,
            ),
            interpret=interpreter() if self.interpret else None,
        )(*arrays)

    def as_operand(self, tile: Ref, scratch: Sequence[Ref]) -> Sequence[Ref]:
        """A tile of pixels as the parts that products take."""
        if self.parts == 1:
            return [tile]
        values = gpu.layout_cast(tile[...], WGMMA).astype(jnp.float32)
        for ref, part in zip(scratch, self.cut(values), strict=True):
            ref[...] = part
        gpu.commit_smem()
        return scratch

    def cut(self, values: Array) -> list[Array]:
        """The parts of float32 numbers in registers: one is rounded, more are exact."""
        return cut(values, self.parts)

    def product(self, shape: tuple[int, int], *terms: tuple[Sequence[Any], Sequence[Ref]]) -> Array:
        """Sum the products of the (left, right) of `terms`, each in parts, as float32 registers."""

        def multiplied(accumulator: Ref) -> Array:
            for left, right in terms:
                self.accumulate(accumulator, left, right)
            return accumulator[...]

        return pl.run_scoped(multiplied, gpu.ACC(shape, jnp.float32))

    def accumulate(self, accumulator: Ref, left: Sequence[Any], right: Sequence[Ref]) -> None:
        """Add a product to an accumulator; `left` is in shared memory or in registers."""
        for i, j in pairs(self.parts):
            if self.interpret and isinstance(left[i], jax.Array):
                # JAX's interpreter takes this operand from shared memory alone.
                pl.run_scoped(
                    partial(_stored_first, accumulator, left[i], right[j]),
                    gpu.SMEM(left[i].shape, left[i].dtype),
                )
            else:
                gpu.wgmma(accumulator, left[i], right[j])
        gpu.wgmma_wait(0)

    def store_transposed(self, refs: Sequence[Ref], parts: Sequence[Array]) -> None:
        """Store a matrix [pixels, maps] in registers as an operand [maps, pixels]."""
        for ref, part in zip(refs, parts, strict=True):
            transposed(ref)[...] = gpu.layout_cast(part, TRANSPOSED)
        gpu.commit_smem()

    def fetch(self, barrier: Ref, sources: Sequence[Ref], targets: Sequence[Ref]) -> None:
        """Copy what all tiles of a block need into shared memory, and wait for it."""
        for source, target in zip(sources, targets, strict=True):
            gpu.copy_gmem_to_smem(source, target, barrier)
            gpu.barrier_wait(barrier)


@dataclass(frozen=True)
class Block:
    """One block of a call: its chunk of its frame."""

    plan: Plan
    frame: Array
    chunk: Array

    def over_tiles(
        self, body: Callable[..., Any], tiles: Sequence[tuple[Ref, Any]], carry: Any = None
    ) -> Any:
        """Run `carry = body(tile, *here, carry)` on each tile of the chunk, copies running ahead.

        `tiles` are (array, `rows` or `columns` of it); `here` is where they lie when they came.
        """
        first = self.chunk * self.plan.tiles_a_chunk
        carried = carry is not None
        return gpu.emit_pipeline(
            lambda indices, *arguments: body(first + indices[0], *arguments),
            grid=(self.plan.tiles_a_chunk,),
            in_specs=[spec(lambda i: first + i) for _, spec in tiles],
            max_concurrent_steps=min(self.plan.tile.stages, self.plan.tiles_a_chunk),
            **({"init_carry": carry} if carried else {}),
        )(*(array.at[self.frame] for array, _ in tiles))

    def rows(self, width: int, dtype: DTypeLike) -> Callable[..., Any]:
        """Of an array [pixels, width or less]; what there is not comes as 0."""
        # A traced 0: a constant would be refused where the array is narrower than the tile.
        return lambda tile: gpu.BlockSpec(
            (self.plan.tile.pixels, width),
            lambda i: (tile(i), 0 * i),
            transforms=self.plan.transforms(width, dtype),
        )

    def columns(self, height: int, dtype: DTypeLike) -> Callable[..., Any]:
        """Of an array [height or less, pixels]."""
        return lambda tile: gpu.BlockSpec(
            (height, self.plan.tile.pixels), lambda i: (0 * i, tile(i)), transforms=widest(dtype)
        )

    def absent(self, tile: Array, values: Array, otherwise: float) -> Array:
        """Put `otherwise` for the pixels of a tile's [pixels, maps] that there are none of."""
        if self.plan.whole:
            return values
        row = gpu.broadcasted_iota(jnp.int32, values.shape, 0, layout=WGMMA)
        there = row < self.plan.pixels - tile * self.plan.tile.pixels
        return jnp.where(there, values, full(values.shape, otherwise))

    def send(self, value: Array, buffer: Ref, array: Ref, tile: Array) -> None:
        """Copy a tile's [pixels, width] through shared memory to an array, without waiting."""
        gpu.wait_smem_to_gmem(0, wait_read_only=True)  # for the tile before
        buffer[...] = value.astype(buffer.dtype)
        self._send(buffer, array.at[self.frame, self._pixels(tile), _from_0(tile, buffer.shape[1])])

    def send_across(self, value: Array, buffer: Ref, array: Ref, tile: Array) -> None:
        """The same of [pixels, maps] to an array [maps, pixels]."""
        gpu.wait_smem_to_gmem(0, wait_read_only=True)
        transposed(buffer)[...] = gpu.layout_cast(value.astype(buffer.dtype), TRANSPOSED)
        self._send(buffer, array.at[self.frame, _from_0(tile, buffer.shape[0]), self._pixels(tile)])

    def _pixels(self, tile: Array) -> Any:
        return pl.ds(tile * self.plan.tile.pixels, self.plan.tile.pixels)

    def _send(self, buffer: Ref, target: Ref) -> None:
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(buffer, target)

    def result(self, ref: Ref, value: Array) -> None:
        """Write a block's own result, of an array [frames, chunks, ...]."""
        store(ref.at[self.frame, self.chunk], value)


def _from_0(tile: Array, size: int) -> Any:
    return pl.ds(0 * tile, size)  # a traced 0, as above


def _stored_first(accumulator: Ref, left: Array, right: Ref, shared: Ref) -> None:
    shared[...] = left
    gpu.commit_smem()
    gpu.wgmma(accumulator, shared, right)


def interpreter() -> Any:
    """The interpreter's parameters. Raises NotImplementedError where JAX's has none of it."""
    if not hasattr(gpu, "InterpretGPUParams"):
        raise NotImplementedError(
            f"the Mosaic GPU interpreter of JAX {jax.__version__} reads no transposed operands; "
            "that of 0.11 does"
        )
    return gpu.InterpretGPUParams(detect_races=True)


def pairs(parts: int) -> list[tuple[int, int]]:
    """Which parts of the two operands are multiplied: not those whose product rounds away."""
    return [(i, j) for i in range(parts) for j in range(parts) if i + j < parts]


def cut(values: Array, parts: int) -> list[Array]:
    """Cut float32 numbers into bfloat16 parts that sum to them; one part is rounded."""
    if parts == 1:
        return [values.astype(jnp.bfloat16)]
    found = []
    for _ in range(parts):
        # Not by rounding and back: XLA may take that for no rounding at all.
        bits = lax.bitcast_convert_type(values, jnp.int32) & jnp.int32(-65536)
        part = lax.bitcast_convert_type(bits, jnp.float32)
        found.append(part.astype(jnp.bfloat16))
        values = values - part
    return found


def cut_array(array: Array, parts: int, *sizes: int) -> list[Array]:
    """The parts of a small array, its last dimensions padded to `sizes`."""
    lead = array.ndim - len(sizes)
    widths = [(0, size - array.shape[lead + i]) for i, size in enumerate(sizes)]
    padded = jnp.pad(array.astype(jnp.float32), [(0, 0)] * lead + widths)
    return cut(padded, parts)


def transposed(ref: Ref) -> Ref:
    """The transposed view of a matrix in shared memory."""
    return ref.T if _SINCE_0_12 else gpu.transpose_ref(ref, (1, 0))


def all_transposed(refs: Sequence[Ref]) -> list[Ref]:
    """The same of each part of an operand."""
    return [transposed(ref) for ref in refs]


def projection(plan: Plan, x: Array, weights: Array, bias: Array) -> list[Array]:
    """The bias, -inf for maps that there are none of; the parts of the weights, maps x channels."""
    absent = (0, plan.maps - bias.size)
    padded = jnp.pad(bias.astype(jnp.float32), absent, constant_values=-jnp.inf)
    return [padded, *cut_array(weights.astype(x.dtype).T, plan.parts, plan.maps, plan.channels)]


def projected(plan: Plan, x: Sequence[Ref], weights: Sequence[Ref], bias: Array) -> Array:
    """The logits of a tile of pixels, from what `projection` gave."""
    a = plan.product(plan.logits, (x, all_transposed(weights)))
    return a + across(bias, a)


def load(ref: Ref, layout: Any) -> Array:
    """Load a small array from the GPU's memory into registers."""
    index = () if _SINCE_0_12 else ((),)
    return gpu.load(ref, *index, layout=layout, optimized=False)


def store(ref: Ref, value: Array) -> None:
    """Store a small array in registers to the GPU's memory."""
    if _SINCE_0_12:
        getattr(gpu, "store")(ref, value, optimized=False)  # noqa: B009 (JAX 0.10 has none)
    else:
        ref[...] = value


_SINCE_0_12 = hasattr(gpu, "store")


def full(shape: tuple[int, ...], value: float, layout: Any = WGMMA) -> Array:
    """A constant in registers."""
    return gpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def widest(dtype: DTypeLike) -> tuple[Any, ...]:
    """How a tile [maps, pixels] lies in shared memory."""
    tiling = (8, SWIZZLES[0] // jnp.dtype(dtype).itemsize)
    return gpu.TilingTransform(tiling), gpu.SwizzleTransform(SWIZZLES[0])


def small_results(plan: Plan, *shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    """Float32 results of each block: arrays [frames, chunks, ...]."""
    lead = (plan.frames, plan.chunks)
    return [jax.ShapeDtypeStruct((*lead, *shape), jnp.float32) for shape in shapes]


def across(vector: Array, like: Array) -> Array:
    """A number for each column, laid over the rows."""
    return lax.broadcast_in_dim(vector, like.shape, (1,))


def down(vector: Array, like: Array) -> Array:
    """A number for each row, laid over the columns."""
    return lax.broadcast_in_dim(vector, like.shape, (0,))


def up(size: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-size // step) * step


def pixels_down(array: Array, plan: Plan, tile: int) -> Array:
    """An array [frames, pixels, width] as copies of tiles take it; a copy where it is not so yet.

    They take whole rows of a swizzle, and of these at least 16 bytes. `tile` is a tile's width.
    """
    swizzle = plan.fitting(tile, array.dtype)
    return _padded(array, 8, _width(array.shape[-1], array.dtype, swizzle))


def pixels_across(array: Array) -> Array:
    """The same of an array [frames, maps, pixels], whose tiles have the widest swizzle."""
    return _padded(array, 8, up(array.shape[-1], SWIZZLES[0] // array.dtype.itemsize))


def _padded(array: Array, rows: int, width: int) -> Array:
    height = up(array.shape[-2], rows)
    if array.shape[-2:] == (height, width):
        return array
    widths = [(0, 0), (0, height - array.shape[-2]), (0, width - array.shape[-1])]
    return jnp.pad(array, widths)


def _width(width: int, dtype: DTypeLike, swizzle: int) -> int:
    size = jnp.dtype(dtype).itemsize
    return up(width, 16 // size if width * size <= swizzle else swizzle // size)


def swizzle_of(*arrays: tuple[int, DTypeLike]) -> int:
    """The widest swizzle for which none of (width, dtype) need be padded further than 16 bytes."""
    for swizzle in SWIZZLES:
        if all(_width(w, d, swizzle) == _width(w, d, 16) for w, d in arrays):
            return swizzle
    return 128
