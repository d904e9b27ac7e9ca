"""Fits the paths of the middle of five frames, at half size if blur is large."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdeblur.images import GAMMA, LUMA, halved, power
from jaxdeblur.paths import motion, octave
from jaxdeblur.paths.fit import (
    FINE_STAGES,
    SMOOTH,
    first_fit,
    fit_tiles,
    log_evidence_ratio,
)
from jaxdeblur.paths.gate import agreement, noise_factor, second_share
from jaxdeblur.paths.likelihood import Fit, observed
from jaxdeblur.paths.path import FREE, exposures, through
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.stabiliser import Stabiliser, of_tiles
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.velocities import STABILISED_DUTY, velocity_of

WINDOW = 5
"""Frames: the path spans the middle three, and the outer two show how it bends."""


class PastPaths(NamedTuple):
    """The paths of the previous frame."""

    knots: Float[Array, "*leading N P 2"]
    """As in ``WindowFit.fit``; zeros if unknown."""
    large: Bool[Array, "*leading"]
    """As in ``WindowFit``."""

    @classmethod
    def unknown(cls, size: tuple[int, ...], *videos: int) -> PastPaths:
        """Returns the paths before the first frame, of this height and width.

        For several videos, they have that leading axis.
        """
        tiles = len(motion.tiling_of(size).centres)
        return cls(jnp.zeros((*videos, tiles, len(FREE), 2)), jnp.zeros(videos, bool))


class WindowFit(NamedTuple):
    """The paths of the middle of five frames, and what else is known before it is filtered."""

    fit: Fit
    """Of N tiles, with u lam for lam (gate.py); where the frame is reduced, in its pixels
    (octave.py)."""
    log_evidence_ratio: Float[Array, " N"]
    """G of each tile (gate.py)."""
    shifts: Float[Array, "N 3 2"]
    """w_j of each tile, by a stabiliser (stabiliser.py)."""
    present: Float[Array, 5]
    duty: Float[Array, ""]
    linear: Bool[Array, ""]
    large: Bool[Array, ""]
    """Whether the frame is fitted and filtered at half size."""
    second: Float[Array, ""]
    """The share of the second network's change (gate.py)."""
    agreed: Float[Array, ""]
    """How far tiles agree on the shutter, T(4.5) in gate.py."""

    @property
    def passed_on(self) -> PastPaths:
        """What helps to fit the next frame."""
        # Copies: the next fit reuses their memory, and would wait until the filter has read it.
        return jax.tree.map(jnp.copy, PastPaths(self.fit.knots, self.large))


@jax.default_matmul_precision("float32")  # A GPU's TF32 would move a path by tenths of a pixel.
def fit_window(
    frames: Float[Array, "5 H W 3"],
    moves: Float[Array, "N 4 2"],
    present: Float[Array, 5],
    shutter: Shutter,
    stabiliser: Stabiliser,
    past: PastPaths,
    duty: float | Array | None = None,
    linear: bool | Array | None = None,
) -> WindowFit:
    """Fits the paths of the middle of five frames.

    Args:
      frames: as stored, in [0, 1].
      moves: from ``moves_of``.
      present: 1 for a frame, 0 for one beyond the video's ends or a jump, which is ignored.
      shutter: what is known of the shutter.
      stabiliser: what is known of a stabiliser.
      past: the paths of the previous frame.
      duty: the share of the period that the shutter is open; None takes it from ``shutter``.
      linear: whether frames are averaged in linear light or as stored; None likewise.
    """
    tiling = motion.tiling_of(frames.shape[1:3])
    is_linear = jnp.asarray(shutter.linear if linear is None else linear)
    steady, swing = stabiliser.stabilised, stabiliser.swing
    open_for = jnp.where(steady, STABILISED_DUTY, shutter.duty)
    open_for = open_for if duty is None else jnp.float32(duty)
    told = present, open_for, is_linear
    shaken = stabiliser.blends == 0
    taken = velocity_of(swing)
    speed = jnp.median(
        motion.speed_of(moves + taken * jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), present)
    )
    small = motion.is_small(*frames.shape[1:3])
    large = jnp.bool_(False) if small else speed * open_for > octave.MOST
    before = jnp.where((past.large == large) & (present[1] > 0), past.knots, 0.0)
    light = frames @ LUMA
    if not small:
        moves = lax.cond(
            large, lambda: motion.moves_between(_on_black(light), tiling), lambda: moves
        )
    light = octave.at_octave(light[1:4], large, frames.shape[1:3])
    places = octave.Places.of(tiling, large)
    swing = swing * jnp.where(large, jnp.array([0.5, 0.5, 1.0]), 1.0)
    found = _fit(light, moves, tiling, places, *told, before, swing, shaken)
    fit, ratio, shifts = jax.tree.map(lambda leaf: leaf[places.near], found)
    second, agreed = jnp.float32(1), jnp.float32(1)
    if duty is None:  # Else the user, or the maker of training clips, vouches for the blur.
        by_evidence = second_share(shutter), agreement(shutter)
        second, agreed = (jnp.where(steady, 1.0, each) for each in by_evidence)
    fit = fit._replace(log_nsr=fit.log_nsr + jnp.log(noise_factor(agreed)))
    return WindowFit(fit, ratio, shifts, *told, large, second, agreed)


def _on_black(luminance: Float[Array, "5 H W"]) -> Float[Array, "5 H W"]:
    """Returns images at half size, less their mean, with zeros up to their former size."""
    small = halved(luminance)
    small = small - small.mean((1, 2), keepdims=True)
    rest = ((0, whole - n) for n, whole in zip(small.shape[1:], luminance.shape[1:], strict=True))
    return jnp.pad(small, ((0, 0), *rest))


def _fit(
    light: Float[Array, "3 H W"],
    moves: Float[Array, "N 4 2"],
    tiling: Tiling,
    places: octave.Places,
    present: Float[Array, 5],
    duty: Float[Array, ""],
    linear: Array,
    before: Float[Array, "N P 2"],
    swing: Float[Array, "8 3"],
    shaken: Bool[Array, ""],
) -> tuple[Fit, Float[Array, " N"], Float[Array, "N 3 2"]]:
    """Returns the fit of each tile, G, and how far a stabiliser shifted its frames."""
    basis, start = exposures(duty), through(moves, present)
    offsets = motion.offsets_of(start)
    taken, shifts = of_tiles(swing, places.around)
    start = start + taken
    light = lax.cond(linear, lambda y: power(y, GAMMA), lambda y: y, light)
    # Patches are moved inward: beyond the border a mirrored image moves the opposite way.
    seen = observed(light, tiling, offsets, present, places.inward, shifts=shifts)
    closer = motion.COARSE[1] / tiling.size
    smooth = SMOOTH * closer**2  # Equally stiff over the same distance.
    first = first_fit(start, seen.present)
    fitted = functools.partial(
        fit_tiles,
        shape=tiling.shape,
        basis=basis,
        smooth=smooth,
        before=before,
        shaken=shaken,
        inside=places.inside,
    )
    fit, value = fitted(first, seen)
    ratio = log_evidence_ratio(fit, value, seen)
    if tiling.stride == motion.FINE[0]:
        fine = observed(light, tiling, offsets, present, places.inward, None, 1, shifts)
        finer, _ = fitted(fit, fine, stages=FINE_STAGES, scale=1)
        # On real footage, fine detail alone underestimates the noise-to-signal ratio.
        fit = finer._replace(log_nsr=0.5 * (fit.log_nsr + finer.log_nsr))
    return fit, ratio, shifts
