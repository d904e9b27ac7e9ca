"""What blur paths tell of a frame, as maps for a network, and the frame that it makes of them.

The maps, 14 channels in [0, 1]: the blurred frame B, the base Y and the deconvolved frame X in RGB
(jaxdeblur/paths/wiener.py), and what speaks for X and against it: of the luminance, what the
reblurred frame leaves unexplained and what the neighbours' X has more than its own, each about
0.5; then the gate g, the extent e of the path and the gain G of the likelihood
(jaxdeblur/paths/gate.py).

    restored = Y + clip(g + m dg, 0, 1) (X - Y) + m dI
    m = a / (a + a0) (1 - s(e / (e + 4); .6, .85)),  a = |Y - B| + g |X - Y|

where the network makes dI and dg; at zero, that is the physics. a is a mean over cells of 16 x 16
pixels: where base and gate leave the blurred frame as it is, so does the network. s is a smooth
step, here from 6 to 23 pixels: what the network has learnt on small rendered frames harms long blur
of real video, where the physics alone is better (docs/lab/paths.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHANNELS = 14
MADE = 4
"""dI in RGB, and dg."""

CELL = 16
"""Pixels that the side of a cell has."""

_SLOPE = 2.0  # Of what lies about 0.5: differences of up to a quarter of the range are told.
_EXTENT, _GAIN = 4.0, 0.2  # Pixels and nats that are told as a half.
_LEAST = 1 / 255  # a0
_LONG = (0.6, 0.85)  # Of the extent as it is told, e / (e + 4).


def path_maps(
    blurred: Float[Array, "*leading H W 3"],
    base: Float[Array, "*leading H W 3"],
    sharp: Float[Array, "*leading H W 3"],
    unexplained: Float[Array, "*leading H W 2"],
    evidence: Float[Array, "*leading H W 3"],
) -> Float[Array, "*leading H W 14"]:
    """The maps of frames.

    Args:
      blurred: B, in [0, 1].
      base: Y.
      sharp: X.
      unexplained: of the luminance, by the reblurred X and by the neighbours' X.
      evidence: g, e in pixels and G in nats a frequency.
    """
    share, extent, gain = jnp.split(evidence, 3, -1)
    gain = jnp.maximum(gain, 0.0)
    told = [share, extent / (extent + _EXTENT), gain / (gain + _GAIN)]
    maps = jnp.concatenate([blurred, base, sharp, 0.5 + _SLOPE * unexplained, *told], -1)
    return jnp.clip(maps, 0.0, 1.0)


def restored_of(
    maps: Float[Array, "*leading H W 14"], made: Float[Array, "*leading H W 4"]
) -> Float[Array, "*leading H W 3"]:
    """The restored frame, of its maps and what the network makes of them."""
    blurred, base, sharp, share = maps[..., :3], maps[..., 3:6], maps[..., 6:9], maps[..., 11:12]
    change = jnp.abs(base - blurred) + share * jnp.abs(sharp - base)
    active = at_pixels(cell_means(change.mean(-1, keepdims=True)), *maps.shape[-3:-1])
    made = made * (active / (active + _LEAST)) * (1 - smoothstep(maps[..., 12:13], *_LONG))
    return base + jnp.clip(share + made[..., 3:], 0.0, 1.0) * (sharp - base) + made[..., :3]


def gated(maps: Float[Array, "*leading H W 14"]) -> Float[Array, "*leading H W 3"]:
    """The frames as the gate mixes them: what is restored where the network makes nothing."""
    base, sharp, share = maps[..., 3:6], maps[..., 6:9], maps[..., 11:12]
    return base + share * (sharp - base)


def smoothstep(x: jax.Array, low: float, high: float) -> jax.Array:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = jnp.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def cell_means(image: Float[Array, "*leading H W C"]) -> Float[Array, "*leading h w C"]:
    """Means over cells; those at the border repeat its pixels."""
    *leading, height, width, channels = image.shape
    ends = [(0, 0)] * len(leading) + [(0, -height % CELL), (0, -width % CELL), (0, 0)]
    padded = jnp.pad(image, ends, mode="edge")
    rows, columns = -(-height // CELL), -(-width // CELL)
    return padded.reshape(*leading, rows, CELL, columns, CELL, channels).mean((-4, -2))


def at_pixels(cells: Float[Array, "*leading h w C"], height: int, width: int) -> jax.Array:
    """Values of cells at every pixel, bilinear between their middles."""
    *leading, rows, columns, channels = cells.shape
    shape = (*leading, rows * CELL, columns * CELL, channels)
    return jax.image.resize(cells, shape, "linear")[..., :height, :width, :]
