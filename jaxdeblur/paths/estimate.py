"""Filters a frame along its paths, and rates the result."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.models.path_maps import CELL
from jaxdeblur.paths import wiener
from jaxdeblur.paths.gate import gate
from jaxdeblur.paths.light import as_stored
from jaxdeblur.paths.motion import CLOSE, LUMA, is_small, offsets_of, tiling_of
from jaxdeblur.paths.path import exposed, exposures, extent
from jaxdeblur.paths.tiles import Tiling, halved, halved_pixels
from jaxdeblur.paths.window_fit import WindowFit

LEAST_SIDE = 64
"""Pixels; frames with a shorter side hold no tile."""

_SHARES = (wiener.NEIGHBOUR, 1.0, wiener.NEIGHBOUR)


class Past(NamedTuple):
    """What a frame passes on to the filter of the next."""

    restored: Float[Array, "*leading H W 3"]
    """The frame as the gate left it."""
    excess: Float[Array, "*leading H W 3"]
    """What averaging in linear light added to it (light.py); zeros if it was averaged as stored."""


class Estimate(NamedTuple):
    """The results for one frame."""

    sharp: Float[Array, "H W 3"]
    """The deconvolved frame, in [0, 1]."""
    unexplained: Float[Array, "H W 2"]
    """Luminance residual of the reblurred frame; X of the neighbours minus X of the frame alone."""
    cells: Float[Array, "h w 3"]
    """The gate, e and G of each cell (gate.py)."""
    paths: Float[Array, "N 9 2"]
    """Positions of each tile's centre during the exposure, (y, x) in pixels of the frame."""
    excess: Float[Array, "H W 3"]
    """As in ``Past``."""


@jax.default_matmul_precision("float32")
def filtered(
    frames: Float[Array, "3 H W 3"],
    found: WindowFit,
    base: Float[Array, "H W 3"],
    past: Past,
) -> Estimate:
    """Restores the middle of three frames along its paths.

    Args:
      frames: as stored, in [0, 1]: the middle three of ``fit_window``.
      found: from ``fit_window``.
      base: the middle frame as a network restores it, or unchanged.
      past: what the previous frame passes on.
    """
    tiling = tiling_of(frames.shape[1:3])
    prior = wiener.Prior(base, past.restored, found.present[1])
    whole = functools.partial(_filtered, frames, past.excess, prior, found, tiling)

    def at_half_size() -> Estimate:
        half, below = halved_pixels(frames), prior.map(halved_pixels)
        small = tiling_of(half.shape[1:3], CLOSE)
        those = slice(len(small.centres))
        fit, gain = jax.tree.map(lambda leaf: leaf[those], (found.fit, found.gain))
        excess = halved_pixels(past.excess)
        made = _filtered(half, excess, below, found._replace(fit=fit, gain=gain), small)

        def enlarge(image: jax.Array) -> jax.Array:
            shape = 2 * image.shape[0], 2 * image.shape[1], image.shape[2]
            return jax.image.resize(image, shape, "cubic")[: tiling.height, : tiling.width]

        # Details finer than half size come from the base.
        sharp = jnp.clip(base + enlarge(made.sharp - below.base), 0.0, 1.0)
        rows, columns = -(-tiling.height // CELL), -(-tiling.width // CELL)
        cells = made.cells.repeat(2, 0).repeat(2, 1)[:rows, :columns] * jnp.array([1.0, 2.0, 1.0])
        bent = made.paths - jnp.asarray(small.centres)[:, None]
        bent = 2 * bent[tiling.nearest(small, scale=2)]
        paths = jnp.asarray(tiling.centres)[:, None] + bent
        return Estimate(sharp, enlarge(made.unexplained), cells, paths, enlarge(made.excess))

    made: Estimate = (
        whole() if is_small(*frames.shape[1:3]) else lax.cond(found.large, at_half_size, whole)
    )
    return made._replace(cells=made.cells.at[..., 0].multiply(found.trusted))


def _filtered(
    frames: Float[Array, "3 H W 3"],
    excess: Float[Array, "H W 3"],
    prior: wiener.Prior,
    found: WindowFit,
    tiling: Tiling,
) -> Estimate:
    """Filters the frame with tiles of one size; the gate does without the video's ``trusted``."""
    prior, fit, duty = prior.map(lambda y: jnp.clip(y, 0.0, 1.0)), found.fit, found.duty
    blurred, bright = frames[1], frames[1] @ LUMA
    weights = found.present[1:4] * jnp.exp(fit.trust) * jnp.array(_SHARES)
    tiles = wiener.Tiles(fit, offsets_of(fit.knots), weights, duty, exposures(duty))
    stored = lax.cond(
        found.linear, lambda: as_stored(frames, excess, prior, tiles, tiling), lambda: frames
    )
    made = wiener.luminance(stored @ LUMA, prior.map(lambda y: y @ LUMA), tiles, tiling)
    colours, known = _chroma(stored), prior.map(_chroma)
    sharp = wiener.chrominance(colours, known, tiles, tiling.reduced(2), made.shares)
    shape = 2, 2 * sharp.shape[1], 2 * sharp.shape[2]
    red, blue = jax.image.resize(sharp - _chroma(blurred), shape, "linear")
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    change = jnp.stack([red, green, blue], -1)[: tiling.height, : tiling.width]
    sharp = jnp.clip(blurred + (made.sharp - bright)[..., None] + change, 0.0, 1.0)
    cells = gate(made, bright, extent(fit.knots, duty), found.gain, tiling)
    unexplained = jnp.stack([made.residual, made.disagreement], -1)
    paths = jnp.asarray(tiling.centres)[:, None] + exposed(fit.knots, duty)
    return Estimate(sharp, unexplained, cells, paths, blurred - stored[1])


def _chroma(image: Float[Array, "*leading H W 3"]) -> Float[Array, "*leading 2 h w"]:
    """Returns red and blue minus the luminance, at half size."""
    apart = (image - (image @ LUMA)[..., None])[..., jnp.array([0, 2])]
    return halved(jnp.moveaxis(apart, -1, -3))
