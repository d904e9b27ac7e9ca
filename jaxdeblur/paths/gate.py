"""How much of the deconvolved frame is taken, in cells of 16 x 16 pixels: the gate, in [0, 1].

    g = s(e; .5, 1.2) s(G; -.1, .1) (1 - .6 s(a; .2, .9)) (1 - s(r; .02, .3)) (1 - s(c; .98, .995))

s: the smooth step between two numbers. e: how long the path is during the exposure, in pixels. G:
the likelihood's gain over a path without blur. r = R / (R + E), R the energy that the reblurred
frame leaves unexplained, E that of the change; a = A / (A + E), A that of what the neighbours'
frame differs from its own; c = E / (E + V), V the variance of the blurred frame: a change of fifty
times the energy of what it changes is ringing, of which the reblurred frame shows nothing.

Where the duty cycle is found from the video, g is multiplied by s(b; .07, .14), b the nats a tile
by which an open shutter explains the video better than sharp frames (shutter.py): slow motion of
sharp frames is hard to distinguish from blur tile by tile.

The base Y, which a network may have sharpened without need, is then taken by

    1 - s(n; 2, 8) (1 - s(b; .015, .04))

and the blurred frame else, n the number of tiles that moved and were asked: a video that moves and
shows no open shutter comes out as it went in.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeblur.models.path_maps import CELL, cell_means, smoothstep
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.wiener import Luminance

BLURRED = (0.07, 0.14)
"""Between these b opens the gate. Chosen on validation clips (docs/lab/paths.md)."""

_SHARP, _TOLD = (0.015, 0.04), (2.0, 8.0)  # Of b; of n.

_FLOOR = 0.5 / 255**2  # Of E: a change of less than a grey level proves nothing.


def gate(
    made: Luminance,
    blurred: Float[Array, "H W"],
    extent: Float[Array, " N"],
    gain: Float[Array, " N"],
    tiling: Tiling,
) -> Float[Array, "h w 3"]:
    """The gate, e and G of every cell.

    Args:
      made: what the filter made of the luminance.
      blurred: the luminance that came in.
      extent: e of each tile.
      gain: G of each tile.
      tiling: of the frame.
    """
    squares = [(made.sharp - blurred) ** 2, made.residual**2, made.disagreement**2]
    images = jnp.stack([*squares, blurred, blurred**2], -1)
    change, residual, apart, mean, square = jnp.moveaxis(cell_means(images), -1, 0)
    change, variance = change + _FLOOR, jnp.maximum(square - mean**2, 0) + 2 * _FLOOR
    shape = change.shape[0], change.shape[1]
    e, g = (_at_cells(each, tiling, shape) for each in (extent, gain))
    r, a = residual / (residual + change), apart / (apart + change)
    c = change / (change + variance)
    share = smoothstep(e, 0.5, 1.2) * smoothstep(g, -0.1, 0.1)
    share = share * (1 - 0.6 * smoothstep(a, 0.2, 0.9)) * (1 - smoothstep(r, 0.02, 0.3))
    share = share * (1 - smoothstep(c, 0.98, 0.995))
    return jnp.stack([share, e, g], -1)


def base_share(shutter: Shutter) -> Float[Array, ""]:
    """How much of the base's change is taken, in [0, 1]."""
    return 1 - smoothstep(shutter.tiles, *_TOLD) * (1 - smoothstep(shutter.blurred, *_SHARP))


def _at_cells(
    tiles: Float[Array, " N"], tiling: Tiling, shape: tuple[int, int]
) -> Float[Array, "h w"]:
    """Values of tiles at the middles of cells, bilinear."""
    middles = [(np.arange(n) + 0.5) * CELL / tiling.stride for n in shape]
    rows, columns = (
        np.maximum(1 - np.abs(middle[:, None] - np.arange(count)), 0)
        for middle, count in zip(middles, tiling.shape, strict=True)
    )
    grid = tiles.reshape(tiling.shape)
    return jnp.einsum("yr,xc,rc->yx", rows.astype(np.float32), columns.astype(np.float32), grid)
