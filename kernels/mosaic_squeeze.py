"""The squeezes as Mosaic GPU kernels: one pass over the pixels, forward and backward.

The rows of a product are pixels and its columns maps, so that few maps leave none of its 64 rows
idle. The online softmax runs down the columns; its weights then go through shared memory, to be
the right operand of x^T e, whose rows are channels. The partial results of the blocks of a frame,
some megabytes at most, are joined by XLA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.experimental.pallas import mosaic_gpu as gpu

from kernels import tiles
from kernels.mosaic import (
    COLUMNS,
    PARTS,
    ROWS,
    TRANSPOSED,
    WGMMA,
    Block,
    Plan,
    Ref,
    across,
    all_transposed,
    cut_array,
    full,
    load,
    pixels_across,
    pixels_down,
    projected,
    projection,
    small_results,
    swizzle_of,
    transposed,
    up,
    widest,
)
from kernels.reference import FLOOR, Partial, Saved


def softmax_limits(logits: Array, x: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.mosaic_limit(logits.shape[-2], x.shape[-1], x.dtype)


def projected_limits(x: Array, weights: Array, bias: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.mosaic_limit(bias.size, x.shape[-1], x.dtype)


def softmax_forward(logits: Array, x: Array, *, interpret: bool) -> Partial:
    """Squeeze x [B, T, P, C] by the softmax of the logits [B, T, M, P], as a Partial."""
    maps = logits.shape[-2]
    plan = _plan("softmax_squeeze", x, maps, 1, maps * logits.dtype.itemsize, 4, interpret)

    def softmax_squeeze(block: Block, logits_ref: Ref, x_ref: Ref, *refs: Ref) -> None:
        *partial, x_parts, e_parts = refs

        def body(tile: Array, logits: Ref, x: Ref, carry: Any) -> Any:
            a = _logits(block, tile, logits)
            return _join(block, carry, a, plan.as_operand(x, x_parts), e_parts)

        pixels = [
            (logits_ref, block.columns(plan.maps, logits.dtype)),
            (x_ref, block.rows(plan.channels, x.dtype)),
        ]
        _write(block, partial, block.over_tiles(body, pixels, _nothing(plan)))

    chunks = plan.call(
        softmax_squeeze,
        [pixels_across(_frames(logits)), pixels_down(_frames(x), plan, plan.channels)],
        _partials(plan),
        [plan.cut_tile(), plan.operand(plan.maps, plan.tile.pixels)],
    )
    return _joined(chunks, x, maps)


def projected_forward(x: Array, weights: Array, bias: Array, *, interpret: bool) -> Partial:
    """Squeeze x [B, T, P, C] by the softmax of x weights + bias, as a Partial."""
    plan = _plan("projected_squeeze", x, bias.size, 1, 0, 6, interpret)
    n = plan.parts

    def projected_squeeze(block: Block, x_ref: Ref, bias_ref: Ref, *refs: Ref) -> None:
        partial = refs[n : n + 3]
        weights, x_parts, e_parts, barrier = refs[n + 3 :]
        plan.fetch(barrier, refs[:n], weights)
        bias = load(bias_ref, COLUMNS)

        def body(tile: Array, x: Ref, carry: Any) -> Any:
            x_operand = plan.as_operand(x, x_parts)
            a = projected(plan, x_operand, weights, bias)
            a = block.absent(tile, a, -jnp.inf)
            return _join(block, carry, a, x_operand, e_parts)

        pixels = [(x_ref, block.rows(plan.channels, x.dtype))]
        _write(block, partial, block.over_tiles(body, pixels, _nothing(plan)))

    chunks = plan.call(
        projected_squeeze,
        [pixels_down(_frames(x), plan, plan.channels), *projection(plan, x, weights, bias)],
        _partials(plan),
        [
            plan.operand(plan.maps, plan.channels),
            plan.cut_tile(),
            plan.operand(plan.maps, plan.tile.pixels),
            gpu.Barrier(),
        ],
    )
    return _joined(chunks, x, bias.size)


def softmax_backward(
    logits: Array, x: Array, saved: Saved, dg: Array, *, interpret: bool
) -> tuple[Array, Array]:
    """Derivatives with respect to the logits and x, for the derivative dg [B, T, M, C] of G."""
    maps, channels = logits.shape[-2], x.shape[-1]
    name, extra = "softmax_squeeze_backward", 2 * maps * logits.dtype.itemsize
    plan = _plan(name, x, maps, 2, extra, 2, interpret)
    n = plan.parts

    def softmax_squeeze_backward(block: Block, logits_ref: Ref, x_ref: Ref, *refs: Ref) -> None:
        vectors, dlogits_ref, dx_ref = refs[:3], refs[3 + n], refs[4 + n]
        dg, dg_over_maps, x_parts, dlogits_buffer, dx_buffer, barrier = refs[5 + n :]
        dg_of_frame = [part.at[block.frame] for part in refs[3 : 3 + n]]
        plan.fetch(barrier, [*dg_of_frame, *dg_of_frame], [*dg, *dg_over_maps])
        statistics = [load(vector.at[block.frame], COLUMNS) for vector in vectors]

        def body(tile: Array, logits: Ref, x: Ref) -> None:
            a = _logits(block, tile, logits)
            p, dlogits = _backward(block, tile, a, plan.as_operand(x, x_parts), dg, statistics)
            block.send_across(dlogits, dlogits_buffer, dlogits_ref, tile)
            dx = plan.product((plan.tile.pixels, plan.channels), (plan.cut(p), dg_over_maps))
            block.send(dx, dx_buffer, dx_ref, tile)

        pixels = [
            (logits_ref, block.columns(plan.maps, logits.dtype)),
            (x_ref, block.rows(plan.channels, x.dtype)),
        ]
        block.over_tiles(body, pixels)
        gpu.wait_smem_to_gmem(0)

    frames = pixels_down(_frames(x), plan, plan.channels)
    logits_of_frames = pixels_across(_frames(logits))
    dlogits, dx = plan.call(
        softmax_squeeze_backward,
        [logits_of_frames, frames, *_of_frames(plan, saved, dg)],
        [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (logits_of_frames, frames)],
        [
            plan.operand(plan.maps, plan.channels),
            plan.over_maps(),
            plan.cut_tile(),
            gpu.SMEM((plan.maps, plan.tile.pixels), logits.dtype, transforms=widest(logits.dtype)),
            plan.shared(plan.tile.pixels, plan.channels, x.dtype),
            gpu.Barrier(),
        ],
    )
    return (
        dlogits[:, :maps, : logits.shape[-1]].reshape(logits.shape),
        dx[:, : x.shape[-2], :channels].reshape(x.shape),
    )


def projected_backward(
    x: Array, weights: Array, bias: Array, saved: Saved, dg: Array, *, interpret: bool
) -> tuple[Array, Array, Array]:
    """Derivatives with respect to x, the weights and the bias, for the derivative dg of G."""
    maps, channels = bias.size, x.shape[-1]
    plan = _plan("projected_squeeze_backward", x, maps, 2, 0, 8, interpret)
    n = plan.parts

    def projected_squeeze_backward(block: Block, x_ref: Ref, bias_ref: Ref, *refs: Ref) -> None:
        vectors, dx_ref, dweights_ref = refs[n : n + 3], refs[3 + 2 * n], refs[4 + 2 * n]
        weights, weights_over_maps, dg, dg_over_maps, *rest = refs[5 + 2 * n :]
        x_parts, dlogits_parts, dx_buffer, barrier, dweights = rest
        dg_of_frame = [part.at[block.frame] for part in refs[n + 3 : 2 * n + 3]]
        plan.fetch(barrier, [*refs[:n], *refs[:n]], [*weights, *weights_over_maps])
        plan.fetch(barrier, [*dg_of_frame, *dg_of_frame], [*dg, *dg_over_maps])
        statistics = [load(vector.at[block.frame], COLUMNS) for vector in vectors]
        bias = load(bias_ref, COLUMNS)

        def body(tile: Array, x: Ref) -> None:
            x_operand = plan.as_operand(x, x_parts)
            a = projected(plan, x_operand, weights, bias)
            a = block.absent(tile, a, -jnp.inf)
            p, dlogits = _backward(block, tile, a, x_operand, dg, statistics)
            dlogits_cut = plan.cut(dlogits)
            plan.store_transposed(dlogits_parts, dlogits_cut)
            dx = plan.product(
                (plan.tile.pixels, plan.channels),
                (plan.cut(p), dg_over_maps),
                (dlogits_cut, weights_over_maps),
            )
            plan.accumulate(dweights, all_transposed(x_operand), all_transposed(dlogits_parts))
            block.send(dx, dx_buffer, dx_ref, tile)

        block.over_tiles(body, [(x_ref, block.rows(plan.channels, x.dtype))])
        block.result(dweights_ref, dweights[...])
        gpu.wait_smem_to_gmem(0)

    frames = pixels_down(_frames(x), plan, plan.channels)
    dx, dweights = plan.call(
        projected_squeeze_backward,
        [frames, *projection(plan, x, weights, bias), *_of_frames(plan, saved, dg)],
        [
            jax.ShapeDtypeStruct(frames.shape, x.dtype),
            *small_results(plan, (plan.channels, plan.maps)),
        ],
        [
            plan.operand(plan.maps, plan.channels),
            plan.over_maps(),
            plan.operand(plan.maps, plan.channels),
            plan.over_maps(),
            plan.cut_tile(),
            plan.operand(plan.maps, plan.tile.pixels),
            plan.shared(plan.tile.pixels, plan.channels, x.dtype),
            gpu.Barrier(),
        ],
        accumulators=[(plan.channels, plan.maps)],
    )
    return (
        dx[:, : x.shape[-2], :channels].reshape(x.shape),
        jnp.sum(dweights, axis=(0, 1))[:channels, :maps],
        # It shifts all logits of a map alike, and so moves nothing.
        jnp.zeros(maps, jnp.float32),
    )


def _plan(
    kernel: str, x: Array, maps: int, moved: int, extra: int, small: int, interpret: bool
) -> Plan:
    """Of x [B, T, P, C], `moved` times over, and `extra` bytes of each pixel.

    A block moves `small` bytes for each number of a matrix of maps and channels besides.
    """
    batch, time, pixels, channels = x.shape
    m, c = up(maps, 16), up(channels, ROWS)
    return Plan(
        frames=batch * time,
        pixels=pixels,
        maps=m,
        channels=c,
        tile=tiles.choose(kernel, m, c, x.dtype, mosaic=True),
        swizzle=swizzle_of((channels, x.dtype)),
        parts=PARTS[x.dtype.name],
        pixel_bytes=moved * channels * x.dtype.itemsize + extra,
        program_bytes=small * m * c,
        interpret=interpret,
    )


# The online softmax: (maximum [m], totals [tile, m], accumulator [c, m]) of the pixels so far. The
# totals are of each row of the tiles; they are summed at the end.


def _nothing(plan: Plan) -> tuple[Array, Array, Array]:
    return (
        full((plan.maps,), FLOOR, COLUMNS),
        full(plan.logits, 0.0),
        full((plan.channels, plan.maps), 0.0),
    )


def _join(block: Block, carry: Any, a: Array, x: Sequence[Ref], e_parts: Sequence[Ref]) -> Any:
    """Take a tile's logits [tile, m] and values [tile, c] in."""
    plan = block.plan
    maximum, totals, accumulator = carry
    higher = jnp.maximum(maximum, jnp.max(a, axis=0))
    e = jnp.exp(a - across(higher, a))
    cut = plan.cut(e)
    # What is summed is what the products take: see _join of the Triton kernels.
    taken = cut[0].astype(jnp.float32) if plan.parts == 1 else e
    plan.store_transposed(e_parts, cut)
    before = jnp.exp(maximum - higher)
    terms = all_transposed(x), all_transposed(e_parts)
    added = plan.product((plan.channels, plan.maps), terms)
    return (
        higher,
        totals * across(before, totals) + taken,
        accumulator * across(before, accumulator) + added,
    )


def _write(block: Block, refs: Sequence[Ref], ends: Sequence[Array]) -> None:
    maximum, totals, accumulator = ends
    for ref, value in zip(refs, (maximum, jnp.sum(totals, axis=0), accumulator), strict=True):
        block.result(ref, value)


def _partials(plan: Plan) -> list[jax.ShapeDtypeStruct]:
    return small_results(plan, (plan.maps,), (plan.maps,), (plan.channels, plan.maps))


def _joined(chunks: Sequence[Array], x: Array, maps: int) -> Partial:
    """Join the partial squeezes of the blocks of each frame."""
    maxima, totals, accumulators = chunks
    maximum = jnp.max(maxima, axis=1)
    share = jnp.exp(maxima - maximum[:, None])
    found = Partial(
        maximum,
        jnp.sum(totals * share, axis=1),
        jnp.swapaxes(jnp.sum(accumulators * share[:, :, None], axis=1), 1, 2),
    )
    batch, channels = x.shape[:2], x.shape[-1]
    return Partial(
        found.maximum[:, :maps].reshape(*batch, maps),
        found.total[:, :maps].reshape(*batch, maps),
        found.accumulator[:, :maps, :channels].reshape(*batch, maps, channels),
    )


def _logits(block: Block, tile: Array, logits: Ref) -> Array:
    """A tile [maps, pixels] of logits as registers [pixels, maps]; -inf where there is no pixel."""
    a = gpu.layout_cast(transposed(logits)[...], TRANSPOSED)
    a = gpu.layout_cast(a, WGMMA).astype(jnp.float32)
    return block.absent(tile, a, -jnp.inf)


def _backward(
    block: Block,
    tile: Array,
    a: Array,
    x: Sequence[Ref],
    dg: Sequence[Ref],
    statistics: Sequence[Array],
) -> tuple[Array, Array]:
    """The softmax of a tile's logits, and the derivative with respect to them."""
    maximum, inverse, delta = (across(vector, a) for vector in statistics)
    p = jnp.exp(a - maximum) * inverse
    dp = block.plan.product(block.plan.logits, (x, all_transposed(dg)))
    return p, p * (dp - delta)


def _frames(array: Array) -> Array:
    return rearrange(array, "b t ... -> (b t) ...")


def _of_frames(plan: Plan, saved: Saved, dg: Array) -> list[Array]:
    """What a frame's blocks take backwards: maximum, 1 / total, delta = sum_c dG G, and dG."""
    delta = jnp.sum(dg * saved.squeezed, axis=-1)
    vectors = (
        jnp.pad(_frames(v), ((0, 0), (0, plan.maps - v.shape[-1])))
        for v in (saved.maximum, saved.inverse_total, delta)
    )
    return [*vectors, *cut_array(_frames(dg), plan.parts, plan.maps, plan.channels)]
