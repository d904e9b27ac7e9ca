"""The squeezes as Pallas kernels: one pass over the pixels, forward and backward.

A program takes one chunk of a frame's pixels, tile by tile, with an online softmax: it keeps the
maximum of the logits so far, and the sums relative to it. Its partial squeeze then joins those of
the frame's other chunks. The attention maps exist for one tile at a time only; backwards each
tile recomputes its own from the saved maximum and sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from kernels import tiles
from kernels.reference import FLOOR, Partial, Saved
from kernels.triton import (
    Input,
    Layout,
    Output,
    Ref,
    call,
    everywhere,
    load,
    pad,
    pad_bias,
    padded,
    product,
    store,
)


def softmax_limits(logits: Array, x: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.limit(padded(logits.shape[-2]), padded(x.shape[-1]), x.dtype)


def projected_limits(x: Array, weights: Array, bias: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.limit(padded(bias.size), padded(x.shape[-1]), x.dtype)


def softmax_forward(logits: Array, x: Array, *, interpret: bool) -> Partial:
    """Squeeze x [B, T, P, C] by the softmax of the logits [B, T, M, P], as a Partial."""
    *batch, maps, pixels = logits.shape
    channels = x.shape[-1]
    m, c = padded(maps), padded(channels)
    layout = Layout(
        frames=batch[0] * batch[1],
        pixels=pixels,
        tile=tiles.choose("softmax_squeeze", m, c, x.dtype),
        pixel_bytes=maps * logits.itemsize + channels * x.itemsize,
        program_bytes=4 * m * c,
    )

    def softmax_squeeze(logits_ref: Ref, x_ref: Ref, *partial: Ref) -> None:
        def step(where: pl.Slice, present: Array | None, carry: Any) -> Any:
            in_maps = layout.mask(present, maps, m, across=True)
            a = load(logits_ref.at[:, where], in_maps, -jnp.inf)
            x = load(x_ref.at[where, :], layout.mask(present, channels, c))
            return _join(carry, a.astype(jnp.float32), x)

        _write(partial, layout.over_tiles(step, _nothing(m, c)))

    chunks = layout.call(
        softmax_squeeze,
        [
            (rearrange(logits, "b t m p -> (b t) m p"), layout.columns(m)),
            (rearrange(x, "b t p c -> (b t) p c"), layout.rows(c)),
        ],
        _partials(layout, m, c),
        interpret,
    )
    return _joined(chunks, batch, maps, channels, interpret)


def projected_forward(x: Array, weights: Array, bias: Array, *, interpret: bool) -> Partial:
    """Squeeze x [B, T, P, C] by the softmax of x weights + bias, as a Partial."""
    *batch, pixels, channels = x.shape
    m, c = padded(bias.size), padded(channels)
    layout = Layout(
        frames=batch[0] * batch[1],
        pixels=pixels,
        tile=tiles.choose("projected_squeeze", m, c, x.dtype),
        pixel_bytes=channels * x.itemsize,
        program_bytes=(4 + x.itemsize) * m * c,
    )

    def projected_squeeze(x_ref: Ref, weights_ref: Ref, bias_ref: Ref, *partial: Ref) -> None:
        weights, bias = weights_ref[...], bias_ref[...]

        def step(where: pl.Slice, present: Array | None, carry: Any) -> Any:
            x = load(x_ref.at[where, :], layout.mask(present, channels, c))
            return _join(carry, _logits(x, weights, bias, present), x)

        _write(partial, layout.over_tiles(step, _nothing(m, c)))

    chunks = layout.call(
        projected_squeeze,
        [
            (rearrange(x, "b t p c -> (b t) p c"), layout.rows(c)),
            (pad(weights.astype(x.dtype), c, m), everywhere(c, m)),
            (pad_bias(bias, m), everywhere(m)),
        ],
        _partials(layout, m, c),
        interpret,
    )
    return _joined(chunks, batch, bias.size, channels, interpret)


def softmax_backward(
    logits: Array, x: Array, saved: Saved, dg: Array, *, interpret: bool
) -> tuple[Array, Array]:
    """Derivatives with respect to the logits and x, for the derivative dg [B, T, M, C] of G."""
    *batch, maps, pixels = logits.shape
    channels = x.shape[-1]
    m, c = padded(maps), padded(channels)
    layout = Layout(
        frames=batch[0] * batch[1],
        pixels=pixels,
        tile=tiles.choose("softmax_squeeze_backward", m, c, x.dtype),
        pixel_bytes=2 * (maps * logits.itemsize + channels * x.itemsize),
        program_bytes=4 * m * c,
    )

    def softmax_squeeze_backward(
        logits_ref: Ref,
        x_ref: Ref,
        maximum_ref: Ref,
        inverse_ref: Ref,
        delta_ref: Ref,
        dg_ref: Ref,
        dlogits_ref: Ref,
        dx_ref: Ref,
    ) -> None:
        maximum, inverse, delta = maximum_ref[...], inverse_ref[...], delta_ref[...]
        dg = dg_ref[...]

        def step(where: pl.Slice, present: Array | None, carry: Any) -> Any:
            in_maps = layout.mask(present, maps, m, across=True)
            in_x = layout.mask(present, channels, c)
            a = load(logits_ref.at[:, where], in_maps, -jnp.inf).astype(jnp.float32)
            x = load(x_ref.at[where, :], in_x)
            p = jnp.exp(a - maximum[:, None]) * inverse[:, None]
            dlogits = p * (product(dg, x, (1, 1), x.dtype) - delta[:, None])
            store(dlogits_ref.at[:, where], in_maps, dlogits)
            store(dx_ref.at[where, :], in_x, product(p, dg, (0, 0), _wide(x.dtype)))
            return carry

        layout.over_tiles(step, 0)

    logits_of_frames = rearrange(logits, "b t m p -> (b t) m p")
    frames = rearrange(x, "b t p c -> (b t) p c")
    dlogits, dx = layout.call(
        softmax_squeeze_backward,
        [
            (logits_of_frames, layout.columns(m)),
            (frames, layout.rows(c)),
            *_of_frames(layout, saved, dg, m, c),
        ],
        [
            (jax.ShapeDtypeStruct(logits_of_frames.shape, logits.dtype), layout.columns(m)),
            (jax.ShapeDtypeStruct(frames.shape, x.dtype), layout.rows(c)),
        ],
        interpret,
    )
    return dlogits.reshape(logits.shape), dx.reshape(x.shape)


def projected_backward(
    x: Array, weights: Array, bias: Array, saved: Saved, dg: Array, *, interpret: bool
) -> tuple[Array, Array, Array]:
    """Derivatives with respect to x, the weights and the bias, for the derivative dg of G."""
    *batch, pixels, channels = x.shape
    maps, dtype = bias.size, _wide(x.dtype)
    m, c = padded(maps), padded(channels)
    layout = Layout(
        frames=batch[0] * batch[1],
        pixels=pixels,
        tile=tiles.choose("projected_squeeze_backward", m, c, x.dtype),
        pixel_bytes=2 * channels * x.itemsize,
        program_bytes=(8 + x.itemsize) * m * c,
    )

    def projected_squeeze_backward(
        x_ref: Ref,
        weights_ref: Ref,
        bias_ref: Ref,
        maximum_ref: Ref,
        inverse_ref: Ref,
        delta_ref: Ref,
        dg_ref: Ref,
        dx_ref: Ref,
        dweights_ref: Ref,
        dbias_ref: Ref,
    ) -> None:
        weights, bias, dg = weights_ref[...], bias_ref[...], dg_ref[...]
        maximum, inverse, delta = maximum_ref[...], inverse_ref[...], delta_ref[...]

        def step(where: pl.Slice, present: Array | None, carry: Any) -> Any:
            dweights, dbias = carry
            in_x = layout.mask(present, channels, c)
            x = load(x_ref.at[where, :], in_x)
            p = jnp.exp(_logits(x, weights, bias, present) - maximum[:, None]) * inverse[:, None]
            dlogits = p * (product(dg, x, (1, 1), x.dtype) - delta[:, None])
            dx = product(p, dg, (0, 0), dtype) + product(dlogits, weights, (0, 1), dtype)
            store(dx_ref.at[where, :], in_x, dx)
            return dweights + product(dlogits, x, (1, 0), dtype), dbias + jnp.sum(dlogits, axis=1)

        nothing = jnp.zeros((m, c), jnp.float32), jnp.zeros((m,), jnp.float32)
        _write((dweights_ref, dbias_ref), layout.over_tiles(step, nothing))

    frames = rearrange(x, "b t p c -> (b t) p c")
    dx, dweights, dbias = layout.call(
        projected_squeeze_backward,
        [
            (frames, layout.rows(c)),
            (pad(weights.astype(x.dtype), c, m), everywhere(c, m)),
            (pad_bias(bias, m), everywhere(m)),
            *_of_frames(layout, saved, dg, m, c),
        ],
        [
            (jax.ShapeDtypeStruct(frames.shape, x.dtype), layout.rows(c)),
            layout.result(m, c),
            layout.result(m),
        ],
        interpret,
    )
    return (
        dx.reshape(x.shape),
        jnp.sum(dweights, axis=(0, 1)).T[:channels, :maps],
        jnp.sum(dbias, axis=(0, 1))[:maps],
    )


# The online softmax: (maximum [m], total [m], accumulator [m, c]) of the pixels so far.


def _nothing(m: int, c: int) -> tuple[Array, Array, Array]:
    return (
        jnp.full((m,), FLOOR, jnp.float32),
        jnp.zeros((m,), jnp.float32),
        jnp.zeros((m, c), jnp.float32),
    )


def _join(carry: tuple[Array, Array, Array], a: Array, x: Array) -> tuple[Array, Array, Array]:
    """Take a tile's logits [m, tile] and values [tile, c] in."""
    maximum, total, accumulator = carry
    higher = jnp.maximum(maximum, jnp.max(a, axis=1))
    # Rounded as the product takes them, and so summed: the weights of G then sum to 1. Else what
    # all pixels have in common would not cancel in the derivative of the logits, dG (x - G).
    e = jnp.exp(a - higher[:, None]).astype(x.dtype)
    before = jnp.exp(maximum - higher)
    return (
        higher,
        total * before + jnp.sum(e.astype(jnp.float32), axis=1),
        accumulator * before[:, None] + product(e, x, (1, 0), x.dtype),
    )


def _logits(x: Array, weights: Array, bias: Array, present: Array | None) -> Array:
    """The logits [m, tile] of a tile of pixels; -inf where there is no pixel."""
    a = product(weights, x, (0, 1), x.dtype) + bias[:, None]
    return a if present is None else jnp.where(present[None, :], a, -jnp.inf)


def _write(refs: Sequence[Ref], values: Sequence[Array]) -> None:
    for ref, value in zip(refs, values, strict=True):
        ref[...] = value


def _partials(layout: Layout, m: int, c: int) -> list[Output]:
    return [layout.result(m), layout.result(m), layout.result(m, c)]


def _joined(
    chunks: Sequence[Array], batch: list[int], maps: int, channels: int, interpret: bool
) -> Partial:
    """Join the partial squeezes of the chunks of each frame, one program for each map.

    One kernel where XLA would run four, each of them little but its launch.
    """
    frames, count, _, c = chunks[2].shape
    block = min(pl.next_power_of_2(count), tiles.JOINED_CHUNKS)
    blocks = pl.cdiv(count, block)

    def join_chunks(maxima_ref: Ref, totals_ref: Ref, accumulators_ref: Ref, *partial: Ref) -> None:
        def step(i: Array, carry: Any) -> Any:
            maximum, total, accumulator = carry
            where = pl.ds(i * block, block)
            there = i * block + jnp.arange(block) < count
            maxima = load(maxima_ref.at[where], there, FLOOR)
            totals = load(totals_ref.at[where], there)
            rows = jnp.broadcast_to(there[:, None], (block, c))
            accumulators = load(accumulators_ref.at[where, :], rows)
            higher = jnp.maximum(maximum, jnp.max(maxima))
            before, here = jnp.exp(maximum - higher), jnp.exp(maxima - higher)
            return (
                higher,
                total * before + jnp.sum(totals * here),
                accumulator * before + jnp.sum(accumulators * here[:, None], axis=0),
            )

        nothing = jnp.float32(FLOOR), jnp.float32(0), jnp.zeros((c,), jnp.float32)
        _write(partial, lax.fori_loop(0, blocks, step, nothing))

    numbers = pl.BlockSpec((None, blocks * block, None), lambda i, j: (i, 0, j))
    rows = pl.BlockSpec((None, blocks * block, None, c), lambda i, j: (i, 0, j, 0))
    number = pl.BlockSpec((None, None), lambda i, j: (i, j))
    row = pl.BlockSpec((None, None, c), lambda i, j: (i, j, 0))
    maximum, total, accumulator = call(
        join_chunks,
        (frames, maps),
        list(zip(chunks, (numbers, numbers, rows), strict=True)),
        [
            (jax.ShapeDtypeStruct((frames, maps), jnp.float32), number),
            (jax.ShapeDtypeStruct((frames, maps), jnp.float32), number),
            (jax.ShapeDtypeStruct((frames, maps, c), jnp.float32), row),
        ],
        warps=4,
        stages=2,
        interpret=interpret,
    )
    return Partial(
        maximum.reshape(*batch, maps),
        total.reshape(*batch, maps),
        accumulator[..., :channels].reshape(*batch, maps, channels),
    )


def _of_frames(layout: Layout, saved: Saved, dg: Array, m: int, c: int) -> list[Input]:
    """What a frame's programs take backwards: maximum, 1 / total, delta = sum_c dG G, and dG."""
    delta = jnp.sum(dg * saved.squeezed, axis=-1)
    vectors = (saved.maximum, saved.inverse_total, delta)
    return [
        *((pad(rearrange(v, "b t m -> (b t) m"), m), layout.each_frame(m)) for v in vectors),
        (pad(rearrange(dg, "b t m c -> (b t) m c"), m, c), layout.each_frame(m, c)),
    ]


def _wide(dtype: DTypeLike) -> DTypeLike:
    """The dtype for products of the maps and their derivatives, which are of order 1 / pixels.

    Over millions of pixels that is less than float16 can hold.
    """
    return jnp.bfloat16 if dtype == jnp.float16 else dtype
