"""The einsum definition of the four operations, which every implementation must equal.

Shapes: B videos, T frames, P pixels of a frame, C channels, M spatial maps, K combinations of
spatial and temporal maps. Everything inside is float32 at full precision; the result has the
dtype of `x` (squeeze) or of `g` (expand). A logit of -inf masks its pixel (or its map) out, and
where all are masked the softmax has nothing to weigh: the result and its gradients are then zero.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

FLOOR = float(jnp.finfo(jnp.float32).min)
"""Stands for the maximum of nothing: finite, so that -inf - FLOOR is -inf and never nan."""


class Partial(NamedTuple):
    """What some of a frame's pixels add to its squeeze; partials of other pixels join to it.

    With a the logits and the sums over those pixels only:
    maximum = max_p a[m, p], total = sum_p exp(a[m, p] - maximum[m]) and
    accumulator = sum_p exp(a[m, p] - maximum[m]) x[p, c].
    """

    maximum: Float32[Array, "*batch M"]
    total: Float32[Array, "*batch M"]
    accumulator: Float32[Array, "*batch M C"]


def einsum(equation: str, *operands: Array) -> Array:
    """`jnp.einsum` in float32 without TF32, whatever the dtype of the operands."""
    return jnp.einsum(
        equation, *(o.astype(jnp.float32) for o in operands), precision=lax.Precision.HIGHEST
    )


def project(
    x: Float[Array, "*batch P C"], weights: Float[Array, "C M"], bias: Float[Array, " M"]
) -> Float32[Array, "*batch P M"]:
    """Take the logits of every pixel by a 1x1 projection: x weights + bias, in float32.

    The weights are rounded to the dtype of `x` first, as the tensor cores of a GPU take them.
    """
    return einsum("...pc,cm->...pm", x, weights.astype(x.dtype)) + bias.astype(jnp.float32)


def squeeze_partial(logits: Float[Array, "*batch M P"], x: Float[Array, "*batch P C"]) -> Partial:
    """Squeeze some of the pixels of each frame, in the form that joins to others."""
    a = logits.astype(jnp.float32)
    # The result does not depend on which maximum is subtracted, so neither do its gradients.
    maximum = lax.stop_gradient(jnp.maximum(jnp.max(a, axis=-1, initial=FLOOR), FLOOR))
    e = jnp.exp(a - maximum[..., None])
    return Partial(maximum, jnp.sum(e, axis=-1), einsum("...mp,...pc->...mc", e, x))


def combine_partials(a: Partial, b: Partial) -> Partial:
    """Join the squeezes of two sets of pixels of the same frames into that of their union."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    in_a, in_b = jnp.exp(a.maximum - maximum), jnp.exp(b.maximum - maximum)
    return Partial(
        maximum,
        a.total * in_a + b.total * in_b,
        a.accumulator * in_a[..., None] + b.accumulator * in_b[..., None],
    )


def finish_partial(partial: Partial, dtype: DTypeLike = jnp.float32) -> Float[Array, "*batch M C"]:
    """Divide by the total: the squeeze G of all pixels that were joined into `partial`."""
    return (partial.accumulator * inverse_total(partial.total)[..., None]).astype(dtype)


def inverse_total(total: Float32[Array, "*batch M"]) -> Float32[Array, "*batch M"]:
    """1 / total, and 0 for a map that is masked out everywhere."""
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def softmax_squeeze(
    logits: Float[Array, "B T M P"], x: Float[Array, "B T P C"]
) -> Float[Array, "B T M C"]:
    """G[m, c] = sum_p softmax_p(logits)[m, p] x[p, c] for each frame (attention, eq. 1-2)."""
    return finish_partial(squeeze_partial(logits, x), x.dtype)


def projected_squeeze(
    x: Float[Array, "B T P C"], weights: Float[Array, "C M"], bias: Float[Array, " M"]
) -> Float[Array, "B T M C"]:
    """`softmax_squeeze` of `x` by its own projection: f_s of eq. 1 a 1x1 convolution."""
    return softmax_squeeze(jnp.swapaxes(project(x, weights, bias), -1, -2), x)


def softmax_expand(
    logits: Float[Array, "B P K"], g: Float[Array, "B K C"]
) -> Float[Array, "B P C"]:
    """y[p, c] = sum_k softmax_k(logits)[p, k] g[k, c] for each pixel (attention, eq. 5-6)."""
    return einsum("bpk,bkc->bpc", _softmax(logits), g).astype(g.dtype)


def projected_expand(
    x: Float[Array, "B P D"],
    weights: Float[Array, "D K"],
    bias: Float[Array, " K"],
    g: Float[Array, "B K C"],
) -> Float[Array, "B P C"]:
    """`softmax_expand` of `g` by the projection of `x`: f_p of eq. 5 a 1x1 convolution."""
    return softmax_expand(project(x, weights, bias), g)


def _softmax(logits: Float[Array, "B P K"]) -> Float32[Array, "B P K"]:
    a = logits.astype(jnp.float32)
    maximum = lax.stop_gradient(jnp.maximum(jnp.max(a, axis=-1, keepdims=True), FLOOR))
    e = jnp.exp(a - maximum)
    return e * inverse_total(jnp.sum(e, axis=-1))[..., None]


# The derivatives, written out: they keep nothing of the size of the pixels, and as they take the
# statistics of the whole frame they hold for a part of its pixels too.


class Saved(NamedTuple):
    """What the derivative of a squeeze keeps of it: its log-sum-exp in two parts, and G.

    exp(a - maximum) * inverse_total is accurate where a - (maximum + log(total)) is not: at a
    logit of 1e4 the nearest float32 values are 1e-3 apart.
    """

    maximum: Float32[Array, "B T M"]
    inverse_total: Float32[Array, "B T M"]
    squeezed: Float32[Array, "B T M C"]


def softmax_squeeze_backward(
    logits: Float[Array, "B T M P"],
    x: Float[Array, "B T P C"],
    saved: Saved,
    dg: Float32[Array, "B T M C"],
) -> tuple[Float32[Array, "B T M P"], Float32[Array, "B T P C"]]:
    """Derivatives of `softmax_squeeze` with respect to the logits and x, for that of G."""
    p = jnp.exp(logits.astype(jnp.float32) - saved.maximum[..., None])
    p = p * saved.inverse_total[..., None]
    dp = einsum("btmc,btpc->btmp", dg, x)
    delta = jnp.sum(dg * saved.squeezed, axis=-1)
    return p * (dp - delta[..., None]), einsum("btmp,btmc->btpc", p, dg)


def projected_squeeze_backward(
    x: Float[Array, "B T P C"],
    weights: Float[Array, "C M"],
    bias: Float[Array, " M"],
    saved: Saved,
    dg: Float32[Array, "B T M C"],
) -> tuple[Float32[Array, "B T P C"], Float32[Array, "C M"], Float32[Array, " M"]]:
    """Derivatives of `projected_squeeze` with respect to x, the weights and the bias."""
    logits = jnp.swapaxes(project(x, weights, bias), -1, -2)
    dlogits, dx = softmax_squeeze_backward(logits, x, saved, dg)
    return (
        dx + einsum("btmp,cm->btpc", dlogits, weights.astype(x.dtype)),
        einsum("btpc,btmp->cm", x, dlogits),
        jnp.sum(dlogits, axis=(0, 1, 3)),
    )


def softmax_expand_backward(
    logits: Float[Array, "B P K"], g: Float[Array, "B K C"], dy: Float[Array, "B P C"]
) -> tuple[Float32[Array, "B P K"], Float32[Array, "B K C"]]:
    """Derivatives of `softmax_expand` with respect to the logits and g, for that of y."""
    p = _softmax(logits)
    dp = einsum("bpc,bkc->bpk", dy, g)
    dlogits = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True))
    return dlogits, einsum("bpk,bpc->bkc", p, dy)


def projected_expand_backward(
    x: Float[Array, "B P D"],
    weights: Float[Array, "D K"],
    bias: Float[Array, " K"],
    g: Float[Array, "B K C"],
    dy: Float[Array, "B P C"],
) -> tuple[
    Float32[Array, "B P D"], Float32[Array, "D K"], Float32[Array, " K"], Float32[Array, "B K C"]
]:
    """Derivatives of `projected_expand` with respect to x, the weights, the bias and g."""
    dlogits, dg = softmax_expand_backward(project(x, weights, bias), g, dy)
    return (
        einsum("bpk,dk->bpd", dlogits, weights.astype(x.dtype)),
        einsum("bpd,bpk->dk", x, dlogits),
        jnp.sum(dlogits, axis=(0, 1)),
        dg,
    )
