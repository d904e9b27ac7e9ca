"""The einsum definition of the two operations, which every implementation must match.

Shapes: B videos, T frames, P pixels of a frame, C channels, M spatial maps, K combinations of
spatial and temporal maps. Everything inside is float32 at full precision; the result has the
dtype of `x` (squeeze) or of `g` (expand).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Float32

FLOOR = float(jnp.finfo(jnp.float32).min)
"""Stands for the maximum of no logits: finite, so that -inf - FLOOR is -inf and never nan."""


class Partial(NamedTuple):
    """What some of a frame's pixels contribute to its squeeze; `combine_partials` joins them.

    With logits a and sums over those pixels only:
    maximum = max_p a[m, p], total = sum_p exp(a[m, p] - maximum[m]) and
    accumulator = sum_p exp(a[m, p] - maximum[m]) x[p, c].
    """

    maximum: Float32[Array, "*batch M"]
    total: Float32[Array, "*batch M"]
    accumulator: Float32[Array, "*batch M C"]


def einsum(equation: str, *operands: Array) -> Array:
    """Computes `jnp.einsum` in float32 without TF32, whatever the dtype of the operands."""
    return jnp.einsum(
        equation, *(o.astype(jnp.float32) for o in operands), precision=lax.Precision.HIGHEST
    )


def project(
    x: Float[Array, "*batch P C"], weights: Float[Array, "C M"]
) -> Float32[Array, "*batch P M"]:
    """Computes the logits of every pixel by a 1x1 projection, x weights, in float32.

    The weights are rounded to the dtype of `x` first, as for the tensor cores of a GPU.
    """
    return einsum("...pc,cm->...pm", x, weights.astype(x.dtype))


def squeeze_partial(logits: Float[Array, "*batch M P"], x: Float[Array, "*batch P C"]) -> Partial:
    """Squeezes some of the pixels of each frame; a logit of -inf leaves its pixel out."""
    a = logits.astype(jnp.float32)
    # The result does not depend on which maximum is subtracted, so neither do its gradients.
    maximum = lax.stop_gradient(jnp.maximum(jnp.max(a, axis=-1), FLOOR))
    e = jnp.exp(a - maximum[..., None])
    return Partial(maximum, jnp.sum(e, axis=-1), einsum("...mp,...pc->...mc", e, x))


def combine_partials(a: Partial, b: Partial) -> Partial:
    """Joins the squeezes of two sets of pixels of the same frames into that of their union."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    in_a, in_b = jnp.exp(a.maximum - maximum), jnp.exp(b.maximum - maximum)
    return Partial(
        maximum,
        a.total * in_a + b.total * in_b,
        a.accumulator * in_a[..., None] + b.accumulator * in_b[..., None],
    )


def finish_partial(partial: Partial, dtype: DTypeLike = jnp.float32) -> Float[Array, "*batch M C"]:
    """Divides by the total, which gives the squeeze G of all pixels joined into `partial`."""
    return (partial.accumulator / partial.total[..., None]).astype(dtype)


def softmax_squeeze(
    x: Float[Array, "B T P C"], weights: Float[Array, "C M"]
) -> Float[Array, "B T M C"]:
    """G[m, c] = sum_p softmax_p(x weights)[p, m] x[p, c] for each frame (attention, eq. 1-2)."""
    logits = jnp.swapaxes(project(x, weights), -1, -2)
    return finish_partial(squeeze_partial(logits, x), x.dtype)


def softmax_expand(
    x: Float[Array, "B P D"],
    weights: Float[Array, "D K"],
    bias: Float[Array, " K"],
    g: Float[Array, "B K C"],
) -> Float[Array, "B P C"]:
    """y[p, c] = sum_k softmax_k(x weights + bias)[p, k] g[k, c] (attention, eq. 5-6).

    Args:
      x: the pixels of the current frame.
      weights, bias: f_p as a 1x1 projection; the weights are rounded to the dtype of `x`.
      g: the values gathered by each combination of maps.
    """
    maps = jax.nn.softmax(project(x, weights) + bias.astype(jnp.float32), axis=-1)
    return einsum("bpk,bkc->bpc", maps, g).astype(g.dtype)
