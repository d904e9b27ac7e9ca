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
from jaxdeblur.paths import wiener
from jaxdeblur.paths.displacement import displacement, phase_spectra
from jaxdeblur.paths.fit import first_fit, fit_paths, gain_over_no_blur
from jaxdeblur.paths.gate import BLURRED, base_share, gate, smoothstep
from jaxdeblur.paths.likelihood import Fit, Observed, band, folded_spectra, noise_floor
from jaxdeblur.paths.path import FRAMES, exposed, exposures, extent, spline, through
from jaxdeblur.paths.shutter import LEAST_MOTION, LIGHTS, TILES, Shutter, evidence
from jaxdeblur.paths.tiles import REACH, Tiling, hann

WINDOW = 5
"""Frames: the path is that of the middle three, the outer ones say how it bends."""

LEAST_SIDE = 64
"""Pixels: smaller frames hold no tile."""

_STRIDE, _TILE, _PATCH = 64, 128, 192
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


def estimate(
    frames: Float[Array, "5 H W 3"],
    base: Float[Array, "H W 3"],
    present: Float[Array, 5],
    shutter: Shutter,
    observe: Array,
    duty: float | None = None,
    linear: bool | None = None,
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
    height, width = frames.shape[1:3]
    tiling = Tiling(height, width, _STRIDE, _TILE, _PATCH)
    half, quarter = tiling.reduced(2), tiling.reduced(4)
    stored = frames @ _LUMA
    small = jax.vmap(lambda y: _halved(_halved(y)))(stored)
    spectra = [phase_spectra(y, quarter) for y in small]
    moved = [4.0 * displacement(spectra[2], spectra[j], quarter) for j in (0, 1, 3, 4)]
    moves = jnp.stack(moved, 1)
    others = present[jnp.array([0, 1, 3, 4])]
    here = jnp.broadcast_to(present[1:4], (len(moves), 3))
    floor = noise_floor(hann(half.n), 2)
    where = functools.partial(band, half.n // 2, scale=2)

    def observed(luminance: Float[Array, "3 H W"], offsets: Float[Array, "N 3 2"]) -> Observed:
        whole = jnp.round(offsets / 2).astype(int)
        folded = [folded_spectra(_halved(y), half, whole[:, j]) for j, y in enumerate(luminance)]
        return Observed(jnp.stack(folded, 1), offsets, here)

    start = through(moves, others, 1.0)
    offsets = _offsets(start)
    speed = jnp.linalg.norm(moves[:, 1:3], axis=-1).max(-1) * present[2]

    def ask(shutter: Shutter) -> Shutter:
        def told(gamma: Float[Array, ""]) -> tuple[Float[Array, "n D"], Float[Array, " n"]]:
            seen = observed(stored[1:4] ** gamma, offsets)
            return evidence(start, seen, speed, where, floor)

        found, counts = lax.map(told, jnp.array(LIGHTS))
        return shutter.add(found, counts[0])

    if duty is None or linear is None:  # else there is nothing to ask
        moving = (speed > LEAST_MOTION).any()
        asked = moving & (observe | (shutter.tiles < TILES))
        shutter = lax.cond(asked, ask, lambda shutter: shutter, shutter)
    is_linear = shutter.linear > 0 if linear is None else jnp.asarray(linear)
    open_for = shutter.duty if duty is None else jnp.float32(duty)

    middle, mean = lax.cond(
        is_linear,
        lambda x: (x[0] ** GAMMA, x[1] ** GAMMA),
        lambda x: x,
        (frames[1:4], jnp.clip(base, 0.0, 1.0)),
    )
    bright, mean_bright = middle @ _LUMA, mean @ _LUMA
    basis = exposures(open_for)
    seen = observed(bright, offsets)
    fit, value = fit_paths(first_fit(start, here), seen, tiling.shape, where, basis, floor)
    gain = gain_over_no_blur(fit, value, seen, where, floor)
    tiles = wiener.Tiles(fit, _offsets(fit.knots), _weights(fit, here), open_for)
    made = wiener.luminance(bright, mean_bright, tiles, basis, tiling)
    colours, mean_colours = _chroma(middle, bright), _chroma(mean, mean_bright)
    sharp = wiener.chrominance(colours, mean_colours, tiles, basis, half, made.shares)
    change = sharp - colours[1]
    red, blue = jax.image.resize(change, (2, 2 * change.shape[1], 2 * change.shape[2]), "linear")
    green = -(_LUMA[0] * red + _LUMA[2] * blue) / _LUMA[1]
    change = jnp.stack([red, green, blue], -1)[:height, :width]
    sharp = jnp.clip(middle[1] + (made.sharp - bright[1])[..., None] + change, 0.0, 1.0)
    sharp = lax.cond(is_linear, lambda x: x ** (1 / GAMMA), lambda x: x, sharp)
    cells = gate(made, bright[1], extent(fit.knots, open_for), gain, tiling)
    if duty is None:
        cells = cells.at[..., 0].multiply(smoothstep(shutter.blurred, *BLURRED))
        base = frames[2] + base_share(shutter) * (base - frames[2])
    unexplained = jnp.stack([made.residual, made.disagreement], -1)
    paths = jnp.asarray(tiling.centres)[:, None] + exposed(fit.knots, open_for)
    return Estimate(sharp, base, unexplained, cells, paths, shutter)


def _halved(image: Float[Array, "*leading H W"]) -> Float[Array, "*leading h w"]:
    """Means over 2 x 2 pixels; an odd border is repeated."""
    height, width = image.shape[-2:]
    ends = [(0, 0)] * (image.ndim - 2) + [(0, height % 2), (0, width % 2)]
    image = jnp.pad(image, ends, mode="edge")
    return image.reshape(*image.shape[:-2], -(-height // 2), 2, -(-width // 2), 2).mean((-3, -1))


def _chroma(
    image: Float[Array, "*leading H W 3"], bright: Float[Array, "*leading H W"]
) -> Float[Array, "*leading 2 h w"]:
    """Red and blue less the luminance, at half size."""
    apart = (image - bright[..., None])[..., jnp.array([0, 2])]
    return _halved(jnp.moveaxis(apart, -1, -3))


def _offsets(knots: Float[Array, "N P 2"]) -> Float[Array, "N 3 2"]:
    """Where the patches are cut: where the path is at each frame, in even pixels."""
    at = jnp.einsum("jp,npc->njc", spline(jnp.array(FRAMES, jnp.float32)), knots)
    return jnp.clip(2 * jnp.round(at / 2), -REACH, REACH)


def _weights(fit: Fit, present: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
    return present * jnp.exp(fit.trust) * jnp.array([wiener.NEIGHBOUR, 1.0, wiener.NEIGHBOUR])
