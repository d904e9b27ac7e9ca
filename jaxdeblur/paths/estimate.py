"""Everything about the middle one of five frames: its paths, the filtered frame, and the gate."""

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
from jaxdeblur.paths.displacement import displacement, phase_spectra
from jaxdeblur.paths.fit import BEND, FINE_STAGES, SMOOTH, first_fit, fit_paths, gain_over_no_blur
from jaxdeblur.paths.gate import BLURRED, base_share, gate
from jaxdeblur.paths.light import as_stored
from jaxdeblur.paths.likelihood import observed
from jaxdeblur.paths.path import FRAMES, exposed, exposures, extent, spline, through
from jaxdeblur.paths.shutter import LEAST_MOTION, LIGHTS, SLOW, TILES, Shutter, evidence, richest
from jaxdeblur.paths.tiles import REACH, Tiling, halved

WINDOW = 5
"""Frames: the path is that of the middle three, the outer ones say how it bends."""

LEAST_SIDE = 64
"""Pixels: smaller frames hold no tile."""

_COARSE = 64, 128, 192  # Of a Tiling: the stride, the size and n.
_FINE = 32, 64, 128  # Of small frames, of which a coarse tile would be the most part.
_SMALL = 384  # Pixels: a shorter side is a small frame's.
_LARGE = 28.0  # Pixels of blur, in the median tile: a patch of the whole size is small for it.
_SHARES = (wiener.NEIGHBOUR, 1.0, wiener.NEIGHBOUR)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


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
    shutter: Shutter
    """What its video's shutter is, this frame's evidence counted in."""


@jax.default_matmul_precision("float32")  # A GPU's TF32 would move a path by tenths of a pixel.
def estimate(
    frames: Float[Array, "5 H W 3"],
    base: Float[Array, "H W 3"],
    present: Float[Array, 5],
    shutter: Shutter,
    observe: Array,
    duty: float | Array | None = None,
    linear: bool | Array | None = None,
) -> Estimate:
    """Restores the middle one of five frames.

    Args:
      frames: as stored, in [0, 1].
      base: the middle one as a network restores it, or as it is.
      present: 1 for a frame, 0 for one beyond the video's ends, whose pixels do not matter.
      shutter: what the frames before told.
      observe: whether this frame is asked for evidence of the shutter though some is there, a bool.
      duty: the share of the period that the shutter is open; None for what the evidence says.
      linear: averaged in linear light (True) or as stored (False); None likewise.
    """
    small = min(frames.shape[1:3]) < _SMALL
    tiling = _tiling(frames, _FINE if small else _COARSE)
    moves = _moves(frames, tiling)
    speed = _speed(moves) * present[2]
    if duty is None or linear is None:  # else there is nothing to ask
        asked = (speed > LEAST_MOTION).any() & (observe | (shutter.tiles < TILES))
        ask = functools.partial(_ask, frames, None if small else moves, present)
        shutter = lax.cond(asked, ask, lambda shutter: shutter, shutter)
    is_linear = shutter.linear > 0 if linear is None else jnp.asarray(linear)
    open_for = shutter.duty if duty is None else jnp.float32(duty)
    told = (present, open_for, is_linear)
    whole = functools.partial(_restored, frames, base, moves, tiling, *told)

    def at_half_size() -> _Restored:
        first = (jnp.moveaxis(image, -1, -3) for image in (frames, base))
        half, below = (jnp.moveaxis(halved(image), -3, -1) for image in first)
        of_half = _tiling(half)
        made = _restored(half, below, _moves(half, of_half), of_half, *told)
        return _enlarged(made, base, below, of_half, tiling)

    large = jnp.median(speed) * open_for > _LARGE
    made: _Restored = whole() if small else lax.cond(large, at_half_size, whole)
    cells = made.cells
    if duty is None:
        cells = cells.at[..., 0].multiply(smoothstep(shutter.blurred, *BLURRED))
        base = frames[2] + base_share(shutter) * (base - frames[2])
    return Estimate(made.sharp, base, made.unexplained, cells, made.paths, shutter)


def _ask(
    frames: Float[Array, "5 H W 3"],
    moves: Float[Array, "N 4 2"] | None,
    present: Float[Array, 5],
    shutter: Shutter,
) -> Shutter:
    """With this frame's evidence counted in, by coarse tiles: fine ones tell too little."""
    tiling = _tiling(frames)
    moves = _moves(frames, tiling) if moves is None else moves
    speed, start = _speed(moves) * present[2], through(moves, present)
    bright = frames[1:4] @ _LUMA
    # Not inward: the duty is then read low more often.
    offsets = _offsets(start)
    # The same tiles in each light: others would explain more or less.
    chosen, counts = richest(observed(bright, tiling, offsets, present), speed)
    of_less = tiling._replace(n=tiling.size)  # Twice as fast at the whole size, and as good.
    slow = (speed[chosen] < SLOW) & (counts > 0)

    def told(gamma: Float[Array, ""]) -> Float[Array, "n D"]:
        seen, fine = (
            observed(bright**gamma, tiling, offsets, present, only=chosen, scale=scale)
            for tiling, scale in ((tiling, 2), (of_less, 1))
        )
        return evidence(start[chosen], seen, fine, slow)

    return shutter.add(lax.map(told, jnp.array(LIGHTS)), counts)


class _Restored(NamedTuple):
    """Of an Estimate, without what the shutter's video tells."""

    sharp: Float[Array, "H W 3"]
    unexplained: Float[Array, "H W 2"]
    cells: Float[Array, "h w 3"]
    paths: Float[Array, "N 9 2"]


def _restored(
    frames: Float[Array, "5 H W 3"],
    base: Float[Array, "H W 3"],
    moves: Float[Array, "N 4 2"],
    tiling: Tiling,
    present: Float[Array, 5],
    duty: Float[Array, ""],
    linear: Array,
) -> _Restored:
    middle, mean = frames[1:4], jnp.clip(base, 0.0, 1.0)
    bright, mean_bright = middle @ _LUMA, mean @ _LUMA
    basis, start = exposures(duty), through(moves, present)
    light = lax.cond(linear, lambda y: y**GAMMA, lambda y: y, bright)
    # Inward, since beyond the borders a mirror image moves the other way.
    seen = observed(light, tiling, _offsets(start), present, inward=True)
    closer = _COARSE[0] / tiling.stride
    smooth = SMOOTH * closer**2  # As stiff over the same distance.
    bend = BEND._replace(weight=BEND.weight * closer**3)  # A small frame shakes by fewer pixels.
    first = first_fit(start, seen.present)
    stiff = functools.partial(fit_paths, shape=tiling.shape, basis=basis, smooth=smooth, bend=bend)
    fit, value = stiff(first, seen)
    gain = gain_over_no_blur(fit, value, seen)
    if tiling.stride == _FINE[0]:
        fine = observed(light, tiling, _offsets(start), present, inward=True, scale=1)
        finer, _ = stiff(fit, fine, stages=FINE_STAGES, scale=1)
        # Of real footage, the spectrum of fine detail alone promises too little noise.
        fit = finer._replace(spectrum=0.5 * (fit.spectrum + finer.spectrum))
    weights = seen.present * jnp.exp(fit.trust) * jnp.array(_SHARES)
    tiles = wiener.Tiles(fit, _offsets(fit.knots), weights, duty, basis)
    stored = lax.cond(linear, lambda: as_stored(bright, mean_bright, tiles, tiling), lambda: bright)
    made = wiener.luminance(stored, mean_bright, tiles, tiling)
    colours, mean_colours = _chroma(middle, bright), _chroma(mean, mean_bright)
    sharp = wiener.chrominance(colours, mean_colours, tiles, tiling.reduced(2), made.shares)
    shape = 2, 2 * sharp.shape[1], 2 * sharp.shape[2]
    red, blue = jax.image.resize(sharp - colours[1], shape, "linear")
    green = -(_LUMA[0] * red + _LUMA[2] * blue) / _LUMA[1]
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


def _tiling(frames: Float[Array, "5 H W 3"], tiles: tuple[int, int, int] = _COARSE) -> Tiling:
    return Tiling(frames.shape[1], frames.shape[2], *tiles)


def _moves(frames: Float[Array, "5 H W 3"], tiling: Tiling) -> Float[Array, "N 4 2"]:
    """How far each tile moved from the middle frame to the others, in pixels."""
    quarter = tiling.reduced(4)
    small = jax.vmap(lambda y: halved(halved(y)))(frames @ _LUMA)
    spectra = [phase_spectra(y, quarter) for y in small]
    return jnp.stack([4 * displacement(spectra[2], spectra[j], quarter) for j in (0, 1, 3, 4)], 1)


def _speed(moves: Float[Array, "N 4 2"]) -> Float[Array, " N"]:
    return jnp.linalg.norm(moves[:, 1:3], axis=-1).max(-1)  # To the farther neighbour.


def _chroma(
    image: Float[Array, "*leading H W 3"], bright: Float[Array, "*leading H W"]
) -> Float[Array, "*leading 2 h w"]:
    """Red and blue less the luminance, at half size."""
    apart = (image - bright[..., None])[..., jnp.array([0, 2])]
    return halved(jnp.moveaxis(apart, -1, -3))


def _offsets(knots: Float[Array, "N P 2"]) -> Float[Array, "N 3 2"]:
    """Where the patches are cut: where the path is at each frame, in even pixels."""
    at = jnp.einsum("jp,npc->njc", spline(jnp.array(FRAMES, jnp.float32)), knots)
    return jnp.clip(2 * jnp.round(at / 2), -REACH, REACH)
