"""The results of blur paths as maps for a network, and the frame made from the network's output.

The 14 maps in [0, 1] are the blurred frame B, the base Y and the deconvolved frame X in RGB
(jaxdeblur/paths/wiener.py), and evidence for and against X. The evidence is the luminance residual
of the reblurred frame and the luminance of X of the neighbours minus X of the frame alone, both
centred at 0.5, then the gate g, the length e of the blur and the log-evidence ratio G of blur to
none (jaxdeblur/paths/gate.py).

    restored = Y + clip(g + m dg, 0, 1) (X - Y) + m dI
    m = a / (a + a0) (1 - s(e / (e + 4); .6, .85)),  a = |Y - B| + g |X - Y|

where the network outputs dI and dg; if these are zero, the result is the physics alone. a is a mean
over cells of 16 x 16 pixels: where base and gate leave the blurred frame unchanged, so does the
network. s is a smooth step, here from 6 to 23 pixels: a network trained on small rendered frames
harms long blur of real video, where the physics alone is better (docs/lab/paths.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdeblur.images import reduce_size, smoothstep

MADE = 4
"""Channels that the network outputs: dI in RGB, and dg."""

CELL = 16
"""The side of a cell, in pixels."""

_SLOPE = 2.0  # Of maps centred at 0.5, which hold differences up to a quarter of the range.
_LENGTH, _RATIO = 4.0, 0.2  # Pixels and nats that map to a half.
_LEAST = 1 / 255  # a0
_LONG = (0.6, 0.85)  # Of the mapped length, e / (e + 4).


def path_maps(
    blurred: Float[Array, "*leading H W 3"],
    base: Float[Array, "*leading H W 3"],
    sharp: Float[Array, "*leading H W 3"],
    unexplained: Float[Array, "*leading H W 2"],
    evidence: Float[Array, "*leading H W 3"],
) -> Float[Array, "*leading H W 14"]:
    """Returns the maps of frames.

    Args:
      blurred: B, in [0, 1].
      base: Y.
      sharp: X.
      unexplained: the two luminance differences, as in ``Estimate``.
      evidence: g, e in pixels and G in nats a frequency.
    """
    share, length, ratio = jnp.split(evidence, 3, -1)
    ratio = jnp.maximum(ratio, 0.0)
    told = [share, length / (length + _LENGTH), ratio / (ratio + _RATIO)]
    maps = jnp.concatenate([blurred, base, sharp, 0.5 + _SLOPE * unexplained, *told], -1)
    return jnp.clip(maps, 0.0, 1.0)


def restored_of(
    maps: Float[Array, "*leading H W 14"], made: Float[Array, "*leading H W 4"]
) -> Float[Array, "*leading H W 3"]:
    """Returns the restored frame, from its maps and the network's output."""
    blurred, base, sharp, share = maps[..., :3], maps[..., 3:6], maps[..., 6:9], maps[..., 11:12]
    change = jnp.abs(base - blurred) + share * jnp.abs(sharp - base)
    active = at_pixels(reduce_size(change.mean(-1, keepdims=True), CELL), *maps.shape[-3:-1])
    made = made * (active / (active + _LEAST)) * (1 - smoothstep(maps[..., 12:13], *_LONG))
    return base + jnp.clip(share + made[..., 3:], 0.0, 1.0) * (sharp - base) + made[..., :3]


def is_heard(maps: Float[Array, "*leading H W 14"]) -> Bool[Array, "*leading"]:
    """Returns whether the network's output could change anything: a path is short enough."""
    return (maps[..., 12] < _LONG[1]).any((-2, -1))


def gated(maps: Float[Array, "*leading H W 14"]) -> Float[Array, "*leading H W 3"]:
    """Returns the frames as the gate mixes them: the result if the network outputs zero."""
    base, sharp, share = maps[..., 3:6], maps[..., 6:9], maps[..., 11:12]
    return base + share * (sharp - base)


def at_pixels(cells: Float[Array, "*leading h w C"], height: int, width: int) -> jax.Array:
    """Interpolates values of cells at every pixel, bilinearly between the cells' centres."""
    *leading, rows, columns, channels = cells.shape
    shape = (*leading, rows * CELL, columns * CELL, channels)
    return jax.image.resize(cells, shape, "linear")[..., :height, :width, :]
