"""Filters a frame along its paths, and scores it; also computes the correction for linear light."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import reduce
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.images import LUMA, enlarge_along, halved
from jaxdeblur.paths import octave, wiener
from jaxdeblur.paths.gate import gate
from jaxdeblur.paths.light import ResponseCorrection, corrections_of
from jaxdeblur.paths.motion import FINE, is_small, offsets_of, tiling_of
from jaxdeblur.paths.path import blur_length, exposed, exposures
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.window_fit import WindowFit

LEAST_SIDE = FINE[1]
"""Pixels; frames with a shorter side hold no tile."""

_SHARES = (wiener.NEIGHBOUR, 1.0, wiener.NEIGHBOUR)


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


@jax.default_matmul_precision("float32")
def response_correction(
    frames: Float[Array, "3 H W 3"],
    found: WindowFit,
    base: Float[Array, "H W 3"],
    known: ResponseCorrection,
) -> ResponseCorrection:
    """Returns what averaging in linear light added to three frames; zeros if they are as stored.

    Args:
      frames: as stored, in [0, 1]: the middle three of ``fit_window``.
      found: from ``fit_window``.
      base: the middle frame as a network restores it, or unchanged.
      known: what linear light added to the previous frame; zeros if unknown.
    """
    tiling, size = tiling_of(frames.shape[1:3]), frames.shape[1:3]
    given = frames @ LUMA, jnp.moveaxis(jnp.clip(base, 0.0, 1.0), -1, 0), known

    def of_linear() -> ResponseCorrection:
        light, below, before = octave.at_octave(given, found.large, size)
        made = corrections_of(light, below, before, _tiles_of(found), tiling)
        return octave.at_full_size(made, found.large, size)

    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(frames), *leaf.shape)), known)
    return lax.cond(found.linear, of_linear, lambda: nothing)


@jax.default_matmul_precision("float32")
def filtered(
    frames: Float[Array, "3 H W 3"],
    found: WindowFit,
    base: Float[Array, "H W 3"],
    last: Float[Array, "H W 3"],
    correction: ResponseCorrection,
) -> Estimate:
    """Restores the middle of three frames along its paths.

    Args:
      frames: as stored, in [0, 1]: the middle three of ``fit_window``.
      found: from ``fit_window``.
      base: the middle frame as a network restores it, or unchanged.
      last: the previous frame, restored, as the gate left it.
      correction: from ``response_correction``.
    """
    tiling, size = tiling_of(frames.shape[1:3]), frames.shape[1:3]
    seen, below, before = octave.at_octave((frames, base, last), found.large, size, axis=-3)
    correction = octave.at_octave(correction, found.large, size)
    prior = wiener.Prior(below, before, found.present[1])
    made = filter_tiles(seen, correction, prior, found, tiling)

    def at_full_size() -> Estimate:
        # Details finer than half size come from the base.
        change = jnp.concatenate([made.sharp - below, made.unexplained], -1)
        change = jnp.moveaxis(octave.enlarged(jnp.moveaxis(change, -1, 0)), 0, -1)
        sharp = jnp.clip(base + change[..., :3], 0.0, 1.0)
        rows, columns = made.cells.shape[:2]
        cells = made.cells.repeat(2, 0).repeat(2, 1)[:rows, :columns] * jnp.array([1.0, 2.0, 1.0])
        bent = 2 * (made.paths - jnp.asarray(tiling.centres)[:, None])
        paths = jnp.asarray(tiling.centres)[:, None] + bent[tiling.nearest(tiling, scale=2)]
        return Estimate(sharp, change[..., 3:], cells, paths)

    if not is_small(*size):
        made = lax.cond(found.large, at_full_size, lambda: made)
    return made


def filter_tiles(
    frames: Float[Array, "3 H W 3"],
    correction: ResponseCorrection,
    prior: wiener.Prior,
    found: WindowFit,
    tiling: Tiling,
) -> Estimate:
    """Filters the frame with tiles of one size, and decides how much of it is used.

    Args:
      frames: as in ``filtered``.
      correction: of the frames, from ``response_correction``.
      prior: the base and the previous frame, restored.
      found: the paths of the tiles of ``tiling``.
      tiling: of the frames.
    """
    prior, fit, duty = prior.map(lambda y: jnp.clip(y, 0.0, 1.0)), found.fit, found.duty
    tiles, light, colours = _tiles_of(found), frames @ LUMA, _chroma(frames)
    bright = prior.map(lambda y: y @ LUMA)
    made = wiener.luminance(light - correction.luminance, bright, tiles, tiling)
    shares = reduce(made.shares, "n c (y 2) (x 2) -> n c y x", "mean")
    given = colours - correction.colours, prior.map(_chroma), tiles, tiling.reduced(2), shares
    sharp = wiener.filtered_channels(*given, scale=2)
    red, blue = enlarge_along(enlarge_along(sharp - colours[1], 2, 2), 1, 2)
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    change = jnp.stack([red, green, blue], -1)[: tiling.height, : tiling.width]
    sharp = jnp.clip(frames[1] + (made.sharp - light[1])[..., None] + change, 0.0, 1.0)
    known = blur_length(fit.knots, duty), found.log_evidence_ratio
    cells = gate(made, jnp.clip(frames[1], 0.0, 1.0), prior.base, *known, found.agreed, tiling)
    unexplained = jnp.stack([made.residual, made.disagreement], -1)
    paths = jnp.asarray(tiling.centres)[:, None] + exposed(fit.knots, duty)
    return Estimate(sharp, unexplained, cells, paths)


def _tiles_of(found: WindowFit) -> wiener.Tiles:
    weights = found.present[1:4] * jnp.exp(found.fit.log_weights) * jnp.array(_SHARES)
    offsets = offsets_of(found.fit.knots, found.shifts)
    told = weights, found.duty, exposures(found.duty)
    return wiener.Tiles(found.fit, offsets, found.shifts, *told)


def _chroma(image: Float[Array, "*leading H W 3"]) -> Float[Array, "*leading 2 h w"]:
    """Returns red and blue minus the luminance, at half size."""
    apart = (image - (image @ LUMA)[..., None])[..., jnp.array([0, 2])]
    return halved(jnp.moveaxis(apart, -1, -3))
