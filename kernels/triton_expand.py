"""The expands as Pallas kernels: one read of the pixels and one write, forward and backward.

A program takes one chunk of a frame's pixels, tile by tile. All K logits of a pixel are in its
tile, so its softmax is finished there, and backwards it is recomputed without anything saved.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from kernels import tiles
from kernels.reference import FLOOR
from kernels.triton import (
    Layout,
    Ref,
    everywhere,
    load,
    pad,
    pad_bias,
    padded,
    product,
    store,
)


def softmax_limits(logits: Array, g: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    return tiles.limit(padded(g.shape[-2]), padded(g.shape[-1]), g.dtype)


def projected_limits(x: Array, weights: Array, bias: Array, g: Array) -> str | None:
    """Say why the kernels cannot take these shapes, or None."""
    widest = padded(max(x.shape[-1], g.shape[-1]))
    return tiles.limit(padded(bias.size), widest, _dtype(x, g))


def softmax_forward(logits: Array, g: Array, *, interpret: bool) -> Array:
    """Expand g [B, K, C] to the pixels by the softmax of the logits [B, P, K]."""
    batch, pixels, combinations = logits.shape
    channels = g.shape[-1]
    k, c = padded(combinations), padded(channels)
    layout = Layout(
        frames=batch,
        pixels=pixels,
        tile=tiles.choose("softmax_expand", k, c, g.dtype),
        pixel_bytes=combinations * logits.itemsize + channels * g.itemsize,
        program_bytes=g.itemsize * k * c,
    )

    def softmax_expand(logits_ref: Ref, g_ref: Ref, y_ref: Ref) -> None:
        g = g_ref[...]

        def step(where: pl.Slice, present: Array | None, carry: Any) -> Any:
            a = load(
                logits_ref.at[where, :],
                layout.mask(present, combinations, k),
                -jnp.inf,
            )
            e, inverse = _softmax(a.astype(jnp.float32))
            y = product(e, g, (1, 0), g.dtype) * inverse[:, None]
            store(y_ref.at[where, :], layout.mask(present, channels, c), y)
            return carry

        layout.over_tiles(step, 0)

    [y] = layout.call(
        softmax_expand,
        [(logits, layout.rows(k)), (pad(g, k, c), layout.each_frame(k, c))],
        [(jax.ShapeDtypeStruct((batch, pixels, channels), g.dtype), layout.rows(c))],
        interpret,
    )
    return y


def projected_forward(x: Array, weights: Array, bias: Array, g: Array, *, interpret: bool) -> Array:
    """Expand g [B, K, C] to the pixels by the softmax of x weights + bias, x [B, P, D]."""
    batch, pixels, depth = x.shape
    channels = g.shape[-1]
    k, c, d = padded(bias.size), padded(channels), padded(depth)
    layout = Layout(
        frames=batch,
        pixels=pixels,
        tile=tiles.choose("projected_expand", k, max(c, d), _dtype(x, g)),
        pixel_bytes=depth * x.itemsize + channels * g.itemsize,
        program_bytes=k * (x.itemsize * d + g.itemsize * c),
    )

    def projected_expand(
        x_ref: Ref, weights_ref: Ref, bias_ref: Ref, g_ref: Ref, y_ref: Ref
    ) -> None:
        weights, bias, g = weights_ref[...], bias_ref[...], g_ref[...]

        def step(where: pl.Slice, present: Array | None, carry: Any) -> Any:
            x = load(x_ref.at[where, :], layout.mask(present, depth, d))
            e, inverse = _softmax(product(x, weights, (1, 0), x.dtype) + bias[None, :])
            y = product(e, g, (1, 0), g.dtype) * inverse[:, None]
            store(y_ref.at[where, :], layout.mask(present, channels, c), y)
            return carry

        layout.over_tiles(step, 0)

    [y] = layout.call(
        projected_expand,
        [
            (x, layout.rows(d)),
            (pad(weights.astype(x.dtype), d, k), everywhere(d, k)),
            (pad_bias(bias, k), everywhere(k)),
            (pad(g, k, c), layout.each_frame(k, c)),
        ],
        [(jax.ShapeDtypeStruct((batch, pixels, channels), g.dtype), layout.rows(c))],
        interpret,
    )
    return y


def softmax_backward(logits: Array, g: Array, dy: Array, *, interpret: bool) -> tuple[Array, Array]:
    """Derivatives with respect to the logits and g, for the derivative dy [B, P, C] of y."""
    batch, pixels, combinations = logits.shape
    channels = g.shape[-1]
    k, c = padded(combinations), padded(channels)
    layout = Layout(
        frames=batch,
        pixels=pixels,
        tile=tiles.choose("softmax_expand_backward", k, c, g.dtype),
        pixel_bytes=2 * combinations * logits.itemsize + channels * g.itemsize,
        program_bytes=(4 + g.itemsize) * k * c,
    )

    def softmax_expand_backward(
        logits_ref: Ref, g_ref: Ref, dy_ref: Ref, dlogits_ref: Ref, dg_ref: Ref
    ) -> None:
        g = g_ref[...]

        def step(where: pl.Slice, present: Array | None, dg: Array) -> Array:
            in_logits = layout.mask(present, combinations, k)
            a = load(logits_ref.at[where, :], in_logits, -jnp.inf)
            dy = load(dy_ref.at[where, :], layout.mask(present, channels, c))
            p, dlogits = _backward(a.astype(jnp.float32), g, dy)
            store(dlogits_ref.at[where, :], in_logits, dlogits)
            return dg + product(p, dy, (0, 0), g.dtype)

        dg_ref[...] = layout.over_tiles(step, jnp.zeros((k, c), jnp.float32))

    dlogits, dg = layout.call(
        softmax_expand_backward,
        [
            (logits, layout.rows(k)),
            (pad(g, k, c), layout.each_frame(k, c)),
            (dy, layout.rows(c)),
        ],
        [
            (jax.ShapeDtypeStruct(logits.shape, logits.dtype), layout.rows(k)),
            layout.result(k, c),
        ],
        interpret,
    )
    return dlogits, jnp.sum(dg, axis=1)[:, :combinations, :channels]


def projected_backward(
    x: Array, weights: Array, bias: Array, g: Array, dy: Array, *, interpret: bool
) -> tuple[Array, Array, Array, Array]:
    """Derivatives with respect to x, the weights, the bias and g, for the derivative dy of y."""
    batch, pixels, depth = x.shape
    combinations, channels = g.shape[-2:]
    k, c, d = padded(combinations), padded(channels), padded(depth)
    layout = Layout(
        frames=batch,
        pixels=pixels,
        tile=tiles.choose("projected_expand_backward", k, max(c, d), _dtype(x, g)),
        pixel_bytes=2 * depth * x.itemsize + channels * g.itemsize,
        program_bytes=k * ((4 + x.itemsize) * d + (4 + g.itemsize) * c),
    )

    def projected_expand_backward(
        x_ref: Ref,
        weights_ref: Ref,
        bias_ref: Ref,
        g_ref: Ref,
        dy_ref: Ref,
        dx_ref: Ref,
        dweights_ref: Ref,
        dbias_ref: Ref,
        dg_ref: Ref,
    ) -> None:
        weights, bias, g = weights_ref[...], bias_ref[...], g_ref[...]

        def step(where: pl.Slice, present: Array | None, carry: Any) -> Any:
            dweights, dbias, dg = carry
            in_x = layout.mask(present, depth, d)
            x = load(x_ref.at[where, :], in_x)
            dy = load(dy_ref.at[where, :], layout.mask(present, channels, c))
            # Past the end dy is 0, so dlogits and p dy are: those pixels add nothing.
            p, dlogits = _backward(product(x, weights, (1, 0), x.dtype) + bias[None, :], g, dy)
            store(dx_ref.at[where, :], in_x, product(dlogits, weights, (1, 1), x.dtype))
            return (
                dweights + product(x, dlogits, (0, 0), x.dtype),
                dbias + jnp.sum(dlogits, axis=0),
                dg + product(p, dy, (0, 0), g.dtype),
            )

        sums = tuple(jnp.zeros(shape, jnp.float32) for shape in ((d, k), (k,), (k, c)))
        dweights_ref[...], dbias_ref[...], dg_ref[...] = layout.over_tiles(step, sums)

    dx, dweights, dbias, dg = layout.call(
        projected_expand_backward,
        [
            (x, layout.rows(d)),
            (pad(weights.astype(x.dtype), d, k), everywhere(d, k)),
            (pad_bias(bias, k), everywhere(k)),
            (pad(g, k, c), layout.each_frame(k, c)),
            (dy, layout.rows(c)),
        ],
        [
            (jax.ShapeDtypeStruct(x.shape, x.dtype), layout.rows(d)),
            layout.result(d, k),
            layout.result(k),
            layout.result(k, c),
        ],
        interpret,
    )
    return (
        dx,
        jnp.sum(dweights, axis=(0, 1))[:depth, :combinations],
        jnp.sum(dbias, axis=(0, 1))[:combinations],
        jnp.sum(dg, axis=1)[:, :combinations, :channels],
    )


def _dtype(x: Array, g: Array) -> DTypeLike:
    """The wider of the dtypes of two operands of a kernel."""
    return jnp.promote_types(x.dtype, g.dtype)


def _softmax(a: Array) -> tuple[Array, Array]:
    """exp(a - maximum) and 1 / its sum for each pixel of a tile; 0 where all is masked."""
    maximum = jnp.maximum(jnp.max(a, axis=1), FLOOR)
    e = jnp.exp(a - maximum[:, None])
    total = jnp.sum(e, axis=1)
    return e, jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def _backward(a: Array, g: Array, dy: Array) -> tuple[Array, Array]:
    """The softmax of a tile's logits, and the derivative with respect to them."""
    e, inverse = _softmax(a)
    p = e * inverse[:, None]
    dp = product(dy, g, (1, 1), g.dtype)
    return p, p * (dp - jnp.sum(p * dp, axis=1)[:, None])
