"""The squeezes as Pallas kernels: one pass over the pixels, forward and backward.

A program takes one chunk of a frame's pixels, tile by tile, with an online softmax: it keeps the
maximum of the logits so far, and the sums relative to it. Its partial squeeze joins with those
of the frame's other chunks afterwards, in the few numbers that they are. The attention maps exist
for a tile at a time only. Backwards each tile recomputes its maps from the saved maximum and sum.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array
from jax.typing import DTypeLike

from kernels import tiles
from kernels.reference import FLOOR, Partial, Saved
from kernels.triton import Layout, Ref, everywhere, load, mask, pad, padded, product, store


def softmax_limits(logits: Array, x: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.squeeze_limits(logits.shape[-2], x.shape[-1])


def projected_limits(x: Array, weights: Array, bias: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.squeeze_limits(weights.shape[-1], x.shape[-1])


def softmax_forward(logits: Array, x: Array, *, interpret: bool) -> Partial:
    """Squeeze x [B, T, P, C] by the softmax of the logits [B, T, M, P], as a Partial."""
    *batch, maps, pixels = logits.shape
    m, c = padded(maps), padded(x.shape[-1])
    layout = Layout(
        batch[0] * batch[1], pixels, tiles.squeeze_forward(m, c, x.dtype, projected=False)
    )

    def softmax_squeeze(logits_ref: Ref, x_ref: Ref, *partial: Ref) -> None:
        def step(where, present, carry):
            a = load(
                logits_ref.at[:, where],
                mask(present, maps, (m, layout.tile.pixels), across=True),
                -jnp.inf,
            )
            there = mask(present, x.shape[-1], (layout.tile.pixels, c))
            return _join(carry, a.astype(jnp.float32), load(x_ref.at[where, :], there))

        _write(partial, layout.over_tiles(step, _nothing(m, c)))

    return _partial(
        layout.call(
            softmax_squeeze,
            [
                (rearrange(logits, "b t m p -> (b t) m p"), layout.columns(m)),
                (rearrange(x, "b t p c -> (b t) p c"), layout.rows(c)),
            ],
            _partials(layout, m, c),
            interpret,
        ),
        batch,
        maps,
        x.shape[-1],
    )


def projected_forward(x: Array, weights: Array, bias: Array, *, interpret: bool) -> Partial:
    """Squeeze x [B, T, P, C] by the softmax of x weights + bias, as a Partial."""
    *batch, pixels, channels = x.shape
    m, c = padded(bias.size), padded(channels)
    layout = Layout(
        batch[0] * batch[1], pixels, tiles.squeeze_forward(m, c, x.dtype, projected=True)
    )

    def projected_squeeze(x_ref: Ref, weights_ref: Ref, bias_ref: Ref, *partial: Ref) -> None:
        weights, bias = weights_ref[...], bias_ref[...]

        def step(where, present, carry):
            x = load(x_ref.at[where, :], mask(present, channels, (layout.tile.pixels, c)))
            return _join(carry, _logits(x, weights, bias, present), x)

        _write(partial, layout.over_tiles(step, _nothing(m, c)))

    return _partial(
        layout.call(
            projected_squeeze,
            [
                (rearrange(x, "b t p c -> (b t) p c"), layout.rows(c)),
                (pad(weights.astype(x.dtype), c, m), everywhere(c, m)),
                (_pad_bias(bias, m), everywhere(m)),
            ],
            _partials(layout, m, c),
            interpret,
        ),
        batch,
        bias.size,
        channels,
    )


def softmax_backward(
    logits: Array, x: Array, saved: Saved, dg: Array, *, interpret: bool
) -> tuple[Array, Array]:
    """Derivatives with respect to the logits and x, for the derivative dg [B, T, M, C] of G."""
    *batch, maps, pixels = logits.shape
    m, c = padded(maps), padded(x.shape[-1])
    layout = Layout(
        batch[0] * batch[1], pixels, tiles.squeeze_backward(m, c, x.dtype, projected=False)
    )

    def softmax_squeeze_backward(
        logits_ref, x_ref, maximum_ref, inverse_ref, delta_ref, dg_ref, dlogits_ref, dx_ref
    ):
        maximum, inverse, delta = maximum_ref[...], inverse_ref[...], delta_ref[...]
        dg = dg_ref[...]

        def step(where, present, carry):
            in_maps = mask(present, maps, (m, layout.tile.pixels), across=True)
            in_x = mask(present, x.shape[-1], (layout.tile.pixels, c))
            a = load(logits_ref.at[:, where], in_maps, -jnp.inf).astype(jnp.float32)
            p = jnp.exp(a - maximum[:, None]) * inverse[:, None]
            dp = product(dg, load(x_ref.at[where, :], in_x), (1, 1), x.dtype)
            store(dlogits_ref.at[:, where], in_maps, p * (dp - delta[:, None]))
            store(dx_ref.at[where, :], in_x, product(p, dg, (0, 0), _wide(x.dtype)))
            return carry

        layout.over_tiles(step, 0)

    dlogits, dx = layout.call(
        softmax_squeeze_backward,
        [
            (frames_of_logits := rearrange(logits, "b t m p -> (b t) m p"), layout.columns(m)),
            (frames := rearrange(x, "b t p c -> (b t) p c"), layout.rows(c)),
            *_saved(layout, saved, dg, m, c),
        ],
        [
            (jax.ShapeDtypeStruct(frames_of_logits.shape, logits.dtype), layout.columns(m)),
            (jax.ShapeDtypeStruct(frames.shape, x.dtype), layout.rows(c)),
        ],
        interpret,
    )
    return dlogits.reshape(logits.shape), dx.reshape(x.shape)


def projected_backward(
    x: Array, weights: Array, bias: Array, saved: Saved, dg: Array, *, interpret: bool
) -> tuple[Array, Array, Array]:
    """Derivatives with respect to x, the weights and the bias, for that of G."""
    *batch, pixels, channels = x.shape
    maps = bias.size
    m, c = padded(maps), padded(channels)
    layout = Layout(
        batch[0] * batch[1], pixels, tiles.squeeze_backward(m, c, x.dtype, projected=True)
    )
    dtype = _wide(x.dtype)

    def projected_squeeze_backward(
        x_ref,
        weights_ref,
        bias_ref,
        maximum_ref,
        inverse_ref,
        delta_ref,
        dg_ref,
        dx_ref,
        dweights_ref,
        dbias_ref,
    ):
        weights, bias, dg = weights_ref[...], bias_ref[...], dg_ref[...]
        maximum, inverse, delta = maximum_ref[...], inverse_ref[...], delta_ref[...]

        def step(where, present, carry):
            dweights, dbias = carry
            there = mask(present, channels, (layout.tile.pixels, c))
            x = load(x_ref.at[where, :], there)
            p = jnp.exp(_logits(x, weights, bias, present) - maximum[:, None]) * inverse[:, None]
            dlogits = p * (product(dg, x, (1, 1), x.dtype) - delta[:, None])
            dx = product(p, dg, (0, 0), dtype) + product(dlogits, weights, (0, 1), dtype)
            store(dx_ref.at[where, :], there, dx)
            dweights += product(dlogits, x, (1, 0), dtype)
            return dweights, dbias + jnp.sum(dlogits, axis=1)

        zero = jnp.zeros((m, c), jnp.float32), jnp.zeros((m,), jnp.float32)
        dweights_ref[...], dbias_ref[...] = layout.over_tiles(step, zero)

    dx, dweights, dbias = layout.call(
        projected_squeeze_backward,
        [
            (frames := rearrange(x, "b t p c -> (b t) p c"), layout.rows(c)),
            (pad(weights.astype(x.dtype), c, m), everywhere(c, m)),
            (_pad_bias(bias, m), everywhere(m)),
            *_saved(layout, saved, dg, m, c),
        ],
        [
            (jax.ShapeDtypeStruct(frames.shape, x.dtype), layout.rows(c)),
            (layout.of_programs(m, c), layout.each_program(m, c)),
            (layout.of_programs(m), layout.each_program(m)),
        ],
        interpret,
    )
    return (
        dx.reshape(x.shape),
        jnp.sum(dweights, axis=(0, 1)).T[:channels, :maps],
        jnp.sum(dbias, axis=(0, 1))[:maps],
    )


# A tile's part of an online softmax: (maximum [m], total [m], accumulator [m, c]).


def _nothing(m: int, c: int) -> tuple[Array, Array, Array]:
    return (
        jnp.full((m,), FLOOR, jnp.float32),
        jnp.zeros((m,), jnp.float32),
        jnp.zeros((m, c), jnp.float32),
    )


def _join(carry: tuple[Array, Array, Array], a: Array, x: Array) -> tuple[Array, Array, Array]:
    maximum, total, accumulator = carry
    higher = jnp.maximum(maximum, jnp.max(a, axis=1))
    e = jnp.exp(a - higher[:, None])
    before = jnp.exp(maximum - higher)
    return (
        higher,
        total * before + jnp.sum(e, axis=1),
        accumulator * before[:, None] + product(e, x, (1, 0), x.dtype),
    )


def _logits(x: Array, weights: Array, bias: Array, present: Array | None) -> Array:
    """The logits [m, tile] of a tile of pixels; -inf where there is no pixel."""
    a = product(weights, x, (0, 1), x.dtype) + bias[:, None]
    return a if present is None else jnp.where(present[None, :], a, -jnp.inf)


def _write(refs: tuple[Ref, ...], partial: tuple[Array, Array, Array]) -> None:
    for ref, value in zip(refs, partial, strict=True):
        ref[...] = value


def _partials(layout: Layout, m: int, c: int) -> list:
    return [(layout.of_programs(*s), layout.each_program(*s)) for s in ((m,), (m,), (m, c))]


def _partial(chunks: list[Array], batch: list[int], maps: int, channels: int) -> Partial:
    """Join the partial squeezes of the chunks of each frame, and cut the padding off."""
    maxima, totals, accumulators = chunks
    maximum = jnp.max(maxima, axis=1)
    here = jnp.exp(maxima - maximum[:, None])
    total = jnp.sum(totals * here, axis=1)
    accumulator = jnp.sum(accumulators * here[..., None], axis=1)
    return Partial(
        maximum[:, :maps].reshape(*batch, maps),
        total[:, :maps].reshape(*batch, maps),
        accumulator[:, :maps, :channels].reshape(*batch, maps, channels),
    )


def _pad_bias(bias: Array, m: int) -> Array:
    """Mask the maps that there are none of: a logit of -inf everywhere."""
    return pad(bias.astype(jnp.float32), m, value=-jnp.inf)


def _saved(layout: Layout, saved: Saved, dg: Array, m: int, c: int) -> list:
    """What all programs of a frame take backwards: maximum, 1 / total, sum_c dG G, and dG."""
    delta = jnp.sum(dg * saved.squeezed, axis=-1)
    vectors = (saved.maximum, saved.inverse_total, delta)
    return [
        *((pad(rearrange(v, "b t m -> (b t) m"), m), layout.each_frame(m)) for v in vectors),
        (pad(rearrange(dg, "b t m c -> (b t) m c"), m, c), layout.each_frame(m, c)),
    ]


def _wide(dtype: DTypeLike) -> DTypeLike:
    """The dtype of products with the maps or their derivatives, of the order of 1 / pixels.

    Over millions of pixels that is below what float16 holds.
    """
    return jnp.bfloat16 if dtype == jnp.float16 else dtype
