"""The expands as Mosaic GPU kernels: one read of the pixels and one write, forward and backward.

The rows of all products are pixels, and all combinations of a pixel are in one row: its softmax is
finished in registers, which are the left operand of the product with g. Backwards the maps and
their derivatives go through shared memory too, for the products that sum over the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import mosaic_gpu as gpu
from jax.typing import DTypeLike

from kernels import tiles
from kernels.mosaic import (
    COLUMNS,
    PARTS,
    ROWS,
    WGMMA,
    Block,
    Plan,
    Ref,
    all_transposed,
    cut_array,
    down,
    full,
    load,
    pixels_down,
    projected,
    projection,
    small_results,
    swizzle_of,
    up,
)
from kernels.reference import FLOOR


def softmax_limits(logits: Array, g: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.mosaic_limit(g.shape[-2], g.shape[-1], g.dtype)


def projected_limits(x: Array, weights: Array, bias: Array, g: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    if x.dtype != g.dtype:
        return f"the Mosaic kernels take x and g of one dtype; these are {x.dtype} and {g.dtype}"
    return tiles.mosaic_limit(bias.size, max(x.shape[-1], g.shape[-1]), g.dtype)


def softmax_forward(logits: Array, g: Array, *, interpret: bool) -> Array:
    """Expand g [B, K, C] to the pixels by the softmax of the logits [B, P, K]."""
    pixels, combinations = logits.shape[1:]
    channels = g.shape[-1]
    moved = combinations * logits.dtype.itemsize + channels * g.dtype.itemsize
    widths = [(combinations, logits.dtype), (channels, g.dtype)]
    plan = _plan("softmax_expand", pixels, g, channels, moved, 2, widths, interpret)
    n = plan.parts

    def softmax_expand(block: Block, logits_ref: Ref, *refs: Ref) -> None:
        y_ref = refs[n]
        g, y_buffer, barrier = refs[n + 1 :]
        plan.fetch(barrier, [part.at[block.frame] for part in refs[:n]], g)

        def body(tile: Array, logits: Ref) -> None:
            e, inverse = _softmax(_logits(logits, combinations))
            y = plan.product((plan.tile.pixels, plan.channels), (plan.cut(e), g))
            block.send(y * down(inverse, y), y_buffer, y_ref, tile)

        block.over_tiles(body, [(logits_ref, block.rows(plan.maps, logits.dtype))])
        gpu.wait_smem_to_gmem(0)

    padded = pixels_down(logits, plan, plan.maps)
    shape = _like_pixels(plan, padded.shape[1], channels, g.dtype)
    [y] = plan.call(
        softmax_expand,
        [padded, *_combinations(plan, g)],
        [shape],
        [
            plan.over_maps(),
            plan.shared(plan.tile.pixels, plan.channels, g.dtype),
            gpu.Barrier(),
        ],
    )
    return y[:, :pixels, :channels]


def projected_forward(x: Array, weights: Array, bias: Array, g: Array, *, interpret: bool) -> Array:
    """Expand g [B, K, C] to the pixels by the softmax of x weights + bias, x [B, P, D]."""
    pixels, depth = x.shape[1:]
    channels = g.shape[-1]
    widths = [(depth, x.dtype), (channels, g.dtype)]
    moved = (depth + channels) * g.dtype.itemsize
    plan = _plan("projected_expand", pixels, g, depth, moved, 4, widths, interpret)
    n = plan.parts

    def projected_expand(block: Block, x_ref: Ref, bias_ref: Ref, *refs: Ref) -> None:
        y_ref = refs[2 * n]
        weights, g, x_parts, y_buffer, barrier = refs[2 * n + 1 :]
        plan.fetch(barrier, refs[:n], weights)
        plan.fetch(barrier, [part.at[block.frame] for part in refs[n : 2 * n]], g)
        bias = load(bias_ref, COLUMNS)

        def body(tile: Array, x: Ref) -> None:
            a = projected(plan, plan.as_operand(x, x_parts), weights, bias)
            e, inverse = _softmax(a)
            y = plan.product((plan.tile.pixels, plan.channels), (plan.cut(e), g))
            block.send(y * down(inverse, y), y_buffer, y_ref, tile)

        block.over_tiles(body, [(x_ref, block.rows(plan.channels, x.dtype))])
        gpu.wait_smem_to_gmem(0)

    padded = pixels_down(x, plan, plan.channels)
    shape = _like_pixels(plan, padded.shape[1], channels, g.dtype)
    [y] = plan.call(
        projected_expand,
        [padded, *projection(plan, x, weights, bias), *_combinations(plan, g)],
        [shape],
        [
            plan.operand(plan.maps, plan.channels),
            plan.over_maps(),
            plan.cut_tile(),
            plan.shared(plan.tile.pixels, plan.channels, g.dtype),
            gpu.Barrier(),
        ],
    )
    return y[:, :pixels, :channels]


def softmax_backward(logits: Array, g: Array, dy: Array, *, interpret: bool) -> tuple[Array, Array]:
    """Derivatives with respect to the logits and g, for the derivative dy [B, P, C] of y."""
    pixels, combinations = logits.shape[1:]
    channels = g.shape[-1]
    moved = 2 * combinations * logits.dtype.itemsize + channels * g.dtype.itemsize
    widths = [(combinations, logits.dtype), (channels, dy.dtype)]
    name = "softmax_expand_backward"
    plan = _plan(name, pixels, g, channels, moved, 6, widths, interpret)
    n = plan.parts

    def softmax_expand_backward(block: Block, logits_ref: Ref, dy_ref: Ref, *refs: Ref) -> None:
        dlogits_ref, dg_ref = refs[n : n + 2]
        g, dy_parts, p_parts, buffer, barrier, dg = refs[n + 2 :]
        plan.fetch(barrier, [part.at[block.frame] for part in refs[:n]], g)

        def body(tile: Array, logits: Ref, dy: Ref) -> None:
            dy_operand = plan.as_operand(dy, dy_parts)
            p, dlogits = _backward(plan, _logits(logits, combinations), dy_operand, g)
            block.send(dlogits, buffer, dlogits_ref, tile)
            plan.store_transposed(p_parts, plan.cut(p))
            plan.accumulate(dg, all_transposed(dy_operand), all_transposed(p_parts))

        tiles_of = [
            (logits_ref, block.rows(plan.maps, logits.dtype)),
            (dy_ref, block.rows(plan.channels, dy.dtype)),
        ]
        block.over_tiles(body, tiles_of)
        block.result(dg_ref, dg[...])
        gpu.wait_smem_to_gmem(0)

    padded = pixels_down(logits, plan, plan.maps)
    dlogits, dg = plan.call(
        softmax_expand_backward,
        [padded, pixels_down(dy, plan, plan.channels), *_combinations(plan, g)],
        [
            jax.ShapeDtypeStruct(padded.shape, logits.dtype),
            *small_results(plan, (plan.channels, plan.maps)),
        ],
        [
            plan.operand(plan.maps, plan.channels),
            plan.cut_tile(),
            plan.operand(plan.maps, plan.tile.pixels),
            plan.shared(plan.tile.pixels, plan.maps, logits.dtype),
            gpu.Barrier(),
        ],
        accumulators=[(plan.channels, plan.maps)],
    )
    return dlogits[:, :pixels, :combinations], _summed(dg, combinations, channels)


def projected_backward(
    x: Array, weights: Array, bias: Array, g: Array, dy: Array, *, interpret: bool
) -> tuple[Array, Array, Array, Array]:
    """Derivatives with respect to x, the weights, the bias and g, for the derivative dy of y."""
    pixels, depth = x.shape[1:]
    combinations, channels = g.shape[-2:]
    widths = [(depth, x.dtype), (channels, dy.dtype)]
    moved = (2 * depth + channels) * g.dtype.itemsize
    name = "projected_expand_backward"
    plan = _plan(name, pixels, g, depth, moved, 12, widths, interpret)
    n = plan.parts

    def projected_expand_backward(
        block: Block, x_ref: Ref, dy_ref: Ref, bias_ref: Ref, *refs: Ref
    ) -> None:
        dx_ref, dweights_ref, dbias_ref, dg_ref = refs[2 * n : 2 * n + 4]
        weights, weights_over_maps, g, x_parts, dy_parts, *rest = refs[2 * n + 4 :]
        maps_parts, dx_buffer, barrier, dweights, dg = rest
        plan.fetch(barrier, [*refs[:n], *refs[:n]], [*weights, *weights_over_maps])
        plan.fetch(barrier, [part.at[block.frame] for part in refs[n : 2 * n]], g)
        bias = load(bias_ref, COLUMNS)

        def body(tile: Array, x: Ref, dy: Ref, dbias: Array) -> Array:
            x_operand, dy_operand = plan.as_operand(x, x_parts), plan.as_operand(dy, dy_parts)
            # Past the end dy is 0, so dlogits and dy are: those pixels add nothing.
            a = projected(plan, x_operand, weights, bias)
            p, dlogits = _backward(plan, a, dy_operand, g)
            plan.store_transposed(maps_parts, plan.cut(p))
            plan.accumulate(dg, all_transposed(dy_operand), all_transposed(maps_parts))
            dlogits_cut = plan.cut(dlogits)
            plan.store_transposed(maps_parts, dlogits_cut)
            plan.accumulate(dweights, all_transposed(x_operand), all_transposed(maps_parts))
            dx = plan.product((plan.tile.pixels, plan.channels), (dlogits_cut, weights_over_maps))
            block.send(dx, dx_buffer, dx_ref, tile)
            return dbias + jnp.sum(dlogits, axis=0)

        tiles_of = [
            (x_ref, block.rows(plan.channels, x.dtype)),
            (dy_ref, block.rows(plan.channels, dy.dtype)),
        ]
        dbias = block.over_tiles(body, tiles_of, full((plan.maps,), 0.0, COLUMNS))
        block.result(dbias_ref, dbias)
        block.result(dweights_ref, dweights[...])
        block.result(dg_ref, dg[...])
        gpu.wait_smem_to_gmem(0)

    padded = pixels_down(x, plan, plan.channels)
    matrix = (plan.channels, plan.maps)
    dx, dweights, dbias, dg = plan.call(
        projected_expand_backward,
        [
            padded,
            pixels_down(dy, plan, plan.channels),
            *projection(plan, x, weights, bias),
            *_combinations(plan, g),
        ],
        [
            jax.ShapeDtypeStruct(padded.shape, x.dtype),
            *small_results(plan, matrix, (plan.maps,), matrix),
        ],
        [
            plan.operand(plan.maps, plan.channels),
            plan.over_maps(),
            plan.operand(plan.maps, plan.channels),
            plan.cut_tile(),
            plan.cut_tile(),
            plan.operand(plan.maps, plan.tile.pixels),
            plan.shared(plan.tile.pixels, plan.channels, x.dtype),
            gpu.Barrier(),
        ],
        accumulators=[matrix, matrix],
    )
    return (
        dx[:, :pixels, :depth],
        jnp.sum(dweights, axis=(0, 1))[:depth, :combinations],
        jnp.sum(dbias, axis=(0, 1))[:combinations],
        _summed(dg, combinations, channels),
    )


def _plan(
    kernel: str,
    pixels: int,
    g: Array,
    depth: int,
    moved: int,
    small: int,
    widths: Sequence[tuple[int, DTypeLike]],
    interpret: bool,
) -> Plan:
    """Of g [B, K, C] and pixels of `depth`; `moved` bytes of each, `small` of a matrix's number.

    `widths` are the channels and dtypes of what has pixels.
    """
    batch, combinations, channels = g.shape
    k, c = up(combinations, 16), up(max(channels, depth), ROWS)
    return Plan(
        frames=batch,
        pixels=pixels,
        maps=k,
        channels=c,
        tile=tiles.choose(kernel, k, c, g.dtype, mosaic=True),
        swizzle=swizzle_of(*widths),
        parts=PARTS[g.dtype.name],
        pixel_bytes=moved,
        program_bytes=small * k * c,
        interpret=interpret,
    )


def _logits(logits: Ref, combinations: int) -> Array:
    """A tile's logits in registers, -inf for combinations that there are none of."""
    a = gpu.layout_cast(logits[...], WGMMA).astype(jnp.float32)
    if combinations == a.shape[1]:
        return a
    column = gpu.broadcasted_iota(jnp.int32, a.shape, 1, layout=WGMMA)
    return jnp.where(column < combinations, a, full(a.shape, -jnp.inf))


def _softmax(a: Array) -> tuple[Array, Array]:
    """exp(a - maximum) and 1 / its sum for each pixel of a tile; 0 where all is masked."""
    maximum = jnp.maximum(jnp.max(a, axis=1), FLOOR)
    e = jnp.exp(a - down(maximum, a))
    total = jnp.sum(e, axis=1)
    return e, jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def _backward(plan: Plan, a: Array, dy: Sequence[Ref], g: Sequence[Ref]) -> tuple[Array, Array]:
    """The softmax of a tile's logits, and the derivative with respect to them."""
    e, inverse = _softmax(a)
    p = e * down(inverse, e)
    dp = plan.product(plan.logits, (dy, all_transposed(g)))
    return p, p * (dp - down(jnp.sum(p * dp, axis=1), dp))


def _combinations(plan: Plan, g: Array) -> list[Array]:
    return cut_array(g, plan.parts, plan.maps, plan.channels)


def _like_pixels(plan: Plan, rows: int, width: int, dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    pixels = jax.ShapeDtypeStruct((plan.frames, rows, width), dtype)
    return jax.eval_shape(lambda a: pixels_down(a, plan, plan.channels), pixels)


def _summed(parts: Array, combinations: int, channels: int) -> Array:
    """The derivative of g [B, K, C] from what each block found."""
    return jnp.swapaxes(jnp.sum(parts, axis=1), 1, 2)[:, :combinations, :channels]
