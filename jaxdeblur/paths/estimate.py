"""Filters a frame along its paths, and scores it; also computes the correction for linear light."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import reduce
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.images import LUMA, halved, reduce_size
from jaxdeblur.models.path_maps import CELL
from jaxdeblur.paths import wiener
from jaxdeblur.paths.gate import gate
from jaxdeblur.paths.light import ResponseCorrection, corrections_of
from jaxdeblur.paths.motion import CLOSE, FINE, is_small, offsets_of, tiling_of
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
    tiling = tiling_of(frames.shape[1:3])
    light, base = frames @ LUMA, jnp.clip(base, 0.0, 1.0)

    def whole() -> ResponseCorrection:
        return corrections_of(light, base, known, _tiles_of(found), tiling)

    def at_half_size() -> ResponseCorrection:
        small, those = _at_half_size(found, tiling)
        given = halved(light), reduce_size(base, 2), ResponseCorrection(*map(halved, known))
        made = corrections_of(*given, _tiles_of(those), small)
        return ResponseCorrection(
            *(_enlarged(x, y.shape) for x, y in zip(made, known, strict=True))
        )

    def of_linear() -> ResponseCorrection:
        return whole() if is_small(*light.shape[1:]) else lax.cond(found.large, at_half_size, whole)

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
    tiling = tiling_of(frames.shape[1:3])
    prior = wiener.Prior(base, last, found.present[1])
    whole = functools.partial(filter_tiles, frames, correction, prior, found, tiling)

    def at_half_size() -> Estimate:
        half, below = reduce_size(frames, 2), prior.map(lambda y: reduce_size(y, 2))
        small, those = _at_half_size(found, tiling)
        made = filter_tiles(half, ResponseCorrection(*map(halved, correction)), below, those, small)

        def enlarge(image: jax.Array) -> jax.Array:
            channels = jnp.moveaxis(image, -1, 0)
            return jnp.moveaxis(_enlarged(channels, frames.shape[1:3]), 0, -1)

        # Details finer than half size come from the base.
        sharp = jnp.clip(base + enlarge(made.sharp - below.base), 0.0, 1.0)
        rows, columns = -(-tiling.height // CELL), -(-tiling.width // CELL)
        cells = made.cells.repeat(2, 0).repeat(2, 1)[:rows, :columns] * jnp.array([1.0, 2.0, 1.0])
        bent = made.paths - jnp.asarray(small.centres)[:, None]
        bent = 2 * bent[tiling.nearest(small, scale=2)]
        paths = jnp.asarray(tiling.centres)[:, None] + bent
        return Estimate(sharp, enlarge(made.unexplained), cells, paths)

    made: Estimate = (
        whole() if is_small(*frames.shape[1:3]) else lax.cond(found.large, at_half_size, whole)
    )
    return made._replace(cells=made.cells.at[..., 0].multiply(found.trusted))


def filter_tiles(
    frames: Float[Array, "3 H W 3"],
    correction: ResponseCorrection,
    prior: wiener.Prior,
    found: WindowFit,
    tiling: Tiling,
    *,
    alone: bool = False,
) -> Estimate:
    """Filters the frame with tiles of one size; the gate does without the video's ``trusted``.

    Args:
      frames: as in ``filtered``.
      correction: of the frames, from ``response_correction``.
      prior: the base and the previous frame, restored.
      found: the paths of the tiles of ``tiling``.
      tiling: of the frames.
      alone: whether the frame has no neighbours, with which its result could disagree.
    """
    prior, fit, duty = prior.map(lambda y: jnp.clip(y, 0.0, 1.0)), found.fit, found.duty
    tiles, light, colours = _tiles_of(found), frames @ LUMA, _chroma(frames)
    bright = prior.map(lambda y: y @ LUMA)
    made = wiener.luminance(light - correction.luminance, bright, tiles, tiling)
    if alone:
        made = made._replace(disagreement=jnp.zeros_like(made.disagreement))
    shares = reduce(made.shares, "n c (y 2) (x 2) -> n c y x", "mean")
    given = colours - correction.colours, prior.map(_chroma), tiles, tiling.reduced(2), shares
    sharp = wiener.filtered_channels(*given, scale=2)
    shape = 2, 2 * sharp.shape[1], 2 * sharp.shape[2]
    red, blue = jax.image.resize(sharp - colours[1], shape, "linear")
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    change = jnp.stack([red, green, blue], -1)[: tiling.height, : tiling.width]
    sharp = jnp.clip(frames[1] + (made.sharp - light[1])[..., None] + change, 0.0, 1.0)
    cells = gate(made, light[1], blur_length(fit.knots, duty), found.log_evidence_ratio, tiling)
    unexplained = jnp.stack([made.residual, made.disagreement], -1)
    paths = jnp.asarray(tiling.centres)[:, None] + exposed(fit.knots, duty)
    return Estimate(sharp, unexplained, cells, paths)


def _tiles_of(found: WindowFit) -> wiener.Tiles:
    weights = found.present[1:4] * jnp.exp(found.fit.log_weights) * jnp.array(_SHARES)
    offsets = offsets_of(found.fit.knots, found.shifts)
    told = weights, found.duty, exposures(found.duty)
    return wiener.Tiles(found.fit, offsets, found.shifts, *told)


def _at_half_size(found: WindowFit, tiling: Tiling) -> tuple[Tiling, WindowFit]:
    """Returns the tiling of the frame at half size, and the fit of its tiles."""
    small = tiling_of((-(-tiling.height // 2), -(-tiling.width // 2)), CLOSE)
    of_tiles = found.fit, found.log_evidence_ratio, found.shifts
    fit, ratio, shifts = jax.tree.map(lambda leaf: leaf[: len(small.centres)], of_tiles)
    return small, found._replace(fit=fit, log_evidence_ratio=ratio, shifts=shifts)


def _enlarged(
    image: Float[Array, "*leading h w"], shape: tuple[int, ...]
) -> Float[Array, "*leading H W"]:
    """Returns the image at twice its size, without what exceeds ``shape``."""
    *leading, height, width = image.shape
    large = jax.image.resize(image, (*leading, 2 * height, 2 * width), "cubic")
    return large[..., : shape[-2], : shape[-1]]


def _chroma(image: Float[Array, "*leading H W 3"]) -> Float[Array, "*leading 2 h w"]:
    """Returns red and blue minus the luminance, at half size."""
    apart = (image - (image @ LUMA)[..., None])[..., jnp.array([0, 2])]
    return halved(jnp.moveaxis(apart, -1, -3))
