"""Estimates the middle of five frames: its paths, the filtered frame, and the gate."""

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
"""Frames: the path spans the middle three, and the outer two show how it bends."""

LEAST_SIDE = 64
"""Pixels; frames with a shorter side hold no tile."""

_LARGE = 28.0  # Pixels of blur in the median tile, above which full-size patches are too small.
_SHARES = (wiener.NEIGHBOUR, 1.0, wiener.NEIGHBOUR)


class Estimate(NamedTuple):
    """The results for one frame."""

    sharp: Float[Array, "H W 3"]
    """The deconvolved frame, in [0, 1]."""
    base: Float[Array, "H W 3"]
    """The base, mixed with the blurred frame as far as the video appears sharp (gate.py)."""
    unexplained: Float[Array, "H W 2"]
    """Luminance residual of the reblurred frame; X of the neighbours minus X of the frame alone."""
    cells: Float[Array, "h w 3"]
    """The gate, e and G of each cell (gate.py)."""
    paths: Float[Array, "N 9 2"]
    """Positions of each tile's centre during the exposure, (y, x) in pixels of the frame."""


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
    """Restores the middle of five frames.

    Args:
      frames: as stored, in [0, 1].
      moves: from ``moves_of``.
      base: the middle frame as a network restores it, or unchanged.
      last: the previous frame, restored.
      present: 1 for a frame, 0 for one beyond the video's ends or a jump, which is ignored.
      shutter: what is known of the shutter.
      duty: the share of the period that the shutter is open; None takes it from ``shutter``.
      linear: whether frames are averaged in linear light or as stored; None likewise.
    """
    tiling, speed = tiling_of(frames), speed_of(moves, present)
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
    made: _Restored = (
        whole() if is_small(*frames.shape[1:3]) else lax.cond(large, at_half_size, whole)
    )
    cells = made.cells
    if duty is None:
        cells = cells.at[..., 0].multiply(smoothstep(shutter.blurred, *BLURRED))
        base = frames[2] + base_share(shutter) * (base - frames[2])
    return Estimate(made.sharp, base, made.unexplained, cells, made.paths)


class _Restored(NamedTuple):
    """The fields of an Estimate before the video's evidence on the shutter is applied."""

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
    # Patches are moved inward: beyond the border a mirrored image moves the opposite way.
    seen = observed(light, tiling, offsets_of(start), present, inward=True)
    closer = COARSE[0] / tiling.stride
    smooth = SMOOTH * closer**2  # Equally stiff over the same distance.
    bend = BEND._replace(weight=BEND.weight * closer**3)  # A small frame shakes by fewer pixels.
    first = first_fit(start, seen.present)
    stiff = functools.partial(fit_paths, shape=tiling.shape, basis=basis, smooth=smooth, bend=bend)
    fit, value = stiff(first, seen)
    gain = gain_over_no_blur(fit, value, seen)
    if tiling.stride == FINE[0]:
        fine = observed(light, tiling, offsets_of(start), present, inward=True, scale=1)
        finer, _ = stiff(fit, fine, stages=FINE_STAGES, scale=1)
        # On real footage, the spectrum of fine detail alone underestimates the noise.
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
    """Enlarges a result made at half size over ``below``. Finer details come from ``base``."""
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
    """Returns red and blue minus the luminance, at half size."""
    apart = (image - bright[..., None])[..., jnp.array([0, 2])]
    return halved(jnp.moveaxis(apart, -1, -3))
