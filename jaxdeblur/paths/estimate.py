"""The middle one of five frames: its paths, the filtered frame, and the gate."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.data.exposure import GAMMA
from jaxdeblur.models.path_maps import CELL, smoothstep
from jaxdeblur.paths import wiener
from jaxdeblur.paths.fit import BEND, FINE_STAGES, SMOOTH, first_fit, fit_paths, gain_over_no_blur
from jaxdeblur.paths.gate import BLURRED, base_share, gate
from jaxdeblur.paths.light import as_stored
from jaxdeblur.paths.likelihood import observed
from jaxdeblur.paths.motion import (
    COARSE,
    FINE,
    LUMA,
    is_small,
    moves_of,
    offsets_of,
    speed_of,
    tiling_of,
)
from jaxdeblur.paths.path import exposed, exposures, extent, through
from jaxdeblur.paths.prior import Prior
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.tiles import Tiling, halved

WINDOW = 5
"""Frames: the path is that of the middle three, the outer ones say how it bends."""

LEAST_SIDE = 64
"""Pixels: smaller frames hold no tile."""

_LARGE = 28.0  # Pixels of blur, in the median tile: a patch of the whole size is small for it.
_SHARES = (wiener.NEIGHBOUR, 1.0, wiener.NEIGHBOUR)


class Estimate(NamedTuple):
    """What is known of a frame."""

    sharp: Float[Array, "H W 3"]
    """Without its blur, in [0, 1]."""
    base: Float[Array, "H W 3"]
    """The base, as far as the video is not known to be sharp (gate.py)."""
    unexplained: Float[Array, "H W 2"]
    """Of the luminance: what the reblurred frame leaves; the neighbours' X minus its own."""
    cells: Float[Array, "h w 3"]
    """Of cells: the gate, e and G (gate.py)."""
    paths: Float[Array, "N 9 2"]
    """Where the middle of each tile is moved during the exposure, (y, x) in pixels of the frame."""


@jax.default_matmul_precision("float32")  # A GPU's TF32 would move a path by tenths of a pixel.
def estimate(
    frames: Float[Array, "5 H W 3"],
    moves: Float[Array, "N 4 2"],
    base: Float[Array, "H W 3"],
    last: Float[Array, "H W 3"],
    present: Float[Array, 5],
    shutter: Shutter,
    duty: float | Array | None = None,
    linear: bool | Array | None = None,
) -> Estimate:
    """Restores the middle one of five frames.

    Args:
      frames: as stored, in [0, 1].
      moves: by ``moves_of``.
      base: the middle one as a network restores it, or as it is.
      last: the one before, likewise.
      present: 1 for a frame, 0 for one beyond the video's ends, whose pixels do not matter.
      shutter: what is known of it.
      duty: the share of the period that the shutter is open; None for what the shutter says.
      linear: averaged in linear light (True) or as stored (False); None likewise.
    """
    tiling, speed = tiling_of(frames), speed_of(moves) * present[2]
    is_linear = shutter.linear > 0 if linear is None else jnp.asarray(linear)
    open_for = shutter.duty if duty is None else jnp.float32(duty)
    told = (present, open_for, is_linear)
    prior = Prior(base, last, present[1])
    whole = functools.partial(_restored, frames, prior, moves, tiling, *told)

    def at_half_size() -> _Restored:
        half, below = _halved(frames), prior.map(_halved)
        of_half = tiling_of(half, COARSE)
        made = _restored(half, below, moves_of(half, of_half), of_half, *told)
        return _enlarged(made, base, below.base, of_half, tiling)

    large = jnp.median(speed) * open_for > _LARGE
    made: _Restored = whole() if is_small(frames) else lax.cond(large, at_half_size, whole)
    cells = made.cells
    if duty is None:
        cells = cells.at[..., 0].multiply(smoothstep(shutter.blurred, *BLURRED))
        base = frames[2] + base_share(shutter) * (base - frames[2])
    return Estimate(made.sharp, base, made.unexplained, cells, made.paths)


class _Restored(NamedTuple):
    """Of an Estimate, without what the shutter's video tells."""

    sharp: Float[Array, "H W 3"]
    unexplained: Float[Array, "H W 2"]
    cells: Float[Array, "h w 3"]
    paths: Float[Array, "N 9 2"]


def _restored(
    frames: Float[Array, "5 H W 3"],
    prior: Prior,
    moves: Float[Array, "N 4 2"],
    tiling: Tiling,
    present: Float[Array, 5],
    duty: Float[Array, ""],
    linear: Array,
) -> _Restored:
    middle, prior = frames[1:4], prior.map(lambda y: jnp.clip(y, 0.0, 1.0))
    bright, prior_bright = middle @ LUMA, prior.map(lambda y: y @ LUMA)
    basis, start = exposures(duty), through(moves, present)
    light = lax.cond(linear, lambda y: y**GAMMA, lambda y: y, bright)
    # Inward, since beyond the borders a mirror image moves the other way.
    seen = observed(light, tiling, offsets_of(start), present, inward=True)
    closer = COARSE[0] / tiling.stride
    smooth = SMOOTH * closer**2  # As stiff over the same distance.
    bend = BEND._replace(weight=BEND.weight * closer**3)  # A small frame shakes by fewer pixels.
    first = first_fit(start, seen.present)
    stiff = functools.partial(fit_paths, shape=tiling.shape, basis=basis, smooth=smooth, bend=bend)
    fit, value = stiff(first, seen)
    gain = gain_over_no_blur(fit, value, seen)
    if tiling.stride == FINE[0]:
        fine = observed(light, tiling, offsets_of(start), present, inward=True, scale=1)
        finer, _ = stiff(fit, fine, stages=FINE_STAGES, scale=1)
        # Of real footage, the spectrum of fine detail alone promises too little noise.
        fit = finer._replace(spectrum=0.5 * (fit.spectrum + finer.spectrum))
    weights = seen.present * jnp.exp(fit.trust) * jnp.array(_SHARES)
    tiles = wiener.Tiles(fit, offsets_of(fit.knots), weights, duty, basis)
    stored = lax.cond(linear, lambda: as_stored(middle, prior, tiles, tiling), lambda: middle)
    stored_bright = stored @ LUMA
    made = wiener.luminance(stored_bright, prior_bright, tiles, tiling)
    colours = _chroma(stored, stored_bright)
    known = prior.map(lambda y: _chroma(y, y @ LUMA))
    sharp = wiener.chrominance(colours, known, tiles, tiling.reduced(2), made.shares)
    shape = 2, 2 * sharp.shape[1], 2 * sharp.shape[2]
    red, blue = jax.image.resize(sharp - _chroma(middle[1], bright[1]), shape, "linear")
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    change = jnp.stack([red, green, blue], -1)[: tiling.height, : tiling.width]
    sharp = jnp.clip(middle[1] + (made.sharp - bright[1])[..., None] + change, 0.0, 1.0)
    cells = gate(made, bright[1], extent(fit.knots, duty), gain, tiling)
    unexplained = jnp.stack([made.residual, made.disagreement], -1)
    paths = jnp.asarray(tiling.centres)[:, None] + exposed(fit.knots, duty)
    return _Restored(sharp, unexplained, cells, paths)


def _enlarged(
    made: _Restored,
    base: Float[Array, "H W 3"],
    below: Float[Array, "h w 3"],
    small: Tiling,
    tiling: Tiling,
) -> _Restored:
    """Of a frame what was made of it at half size, over ``below``: the base has the details."""
    height, width = tiling[:2]

    def enlarge(image: jax.Array) -> jax.Array:
        shape = 2 * image.shape[0], 2 * image.shape[1], image.shape[2]
        return jax.image.resize(image, shape, "cubic")[:height, :width]

    sharp = jnp.clip(base + enlarge(made.sharp - below), 0.0, 1.0)
    cells = made.cells.repeat(2, 0).repeat(2, 1)[: -(-height // CELL), : -(-width // CELL)]
    rows, columns = (np.arange(n) // 2 for n in tiling.shape)
    bent = (made.paths - jnp.asarray(small.centres)[:, None]).reshape(*small.shape, -1, 2)
    bent = 2 * bent[rows][:, columns].reshape(len(tiling.centres), -1, 2)
    paths = jnp.asarray(tiling.centres)[:, None] + bent
    return _Restored(sharp, enlarge(made.unexplained), cells * jnp.array([1.0, 2.0, 1.0]), paths)


def _halved(image: Float[Array, "*leading H W 3"]) -> Float[Array, "*leading h w 3"]:
    return jnp.moveaxis(halved(jnp.moveaxis(image, -1, -3)), -3, -1)


def _chroma(
    image: Float[Array, "*leading H W 3"], bright: Float[Array, "*leading H W"]
) -> Float[Array, "*leading 2 h w"]:
    """Red and blue less the luminance, at half size."""
    apart = (image - bright[..., None])[..., jnp.array([0, 2])]
    return halved(jnp.moveaxis(apart, -1, -3))
