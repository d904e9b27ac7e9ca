"""Updates what is known of a video's shutter (shutter.py), from some of its frames."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.paths.likelihood import observed
from jaxdeblur.paths.motion import (
    CLOSE,
    COARSE,
    LUMA,
    is_small,
    moves_of,
    offsets_of,
    speed_of,
    tiling_of,
)
from jaxdeblur.paths.path import power, through
from jaxdeblur.paths.shutter import LEAST_MOTION, LIGHTS, SLOW, TILES, Shutter, evidence, richest


@jax.default_matmul_precision("float32")  # As in estimate.py.
def watch(
    frames: Float[Array, "5 H W 3"],
    moves: Float[Array, "N 4 2"],
    present: Float[Array, 5],
    shutter: Shutter,
    observe: Array,
) -> Shutter:
    """Updates what is known of the shutter from the middle of five frames.

    Args:
      frames: as stored, in [0, 1].
      moves: from ``moves_of``.
      present: 1 for a frame, 0 for one beyond the video's ends or a jump, which is ignored.
      shutter: what is known from previous frames.
      observe: whether to use this frame even if there is enough evidence, a bool.
    """
    moving = (speed_of(moves, present) > LEAST_MOTION).any()
    ask = functools.partial(_ask, frames, None if is_small(*frames.shape[1:3]) else moves, present)
    asked = moving & (observe | (shutter.tiles < TILES))
    known: Shutter = lax.cond(asked, ask, lambda shutter: shutter, shutter)
    return known


def _ask(
    frames: Float[Array, "5 H W 3"],
    moves: Float[Array, "N 4 2"] | None,
    present: Float[Array, 5],
    shutter: Shutter,
) -> Shutter:
    """Adds this frame's evidence. Small frames, without ``moves``, have large tiles here, too: fine
    ones carry too little information."""
    tiling = tiling_of(frames.shape[1:3], CLOSE if moves is None else COARSE)
    moves = moves_of(frames, tiling) if moves is None else moves
    speed, start = speed_of(moves, present), through(moves, present)
    bright = frames[1:4] @ LUMA
    # Not moved inward, which underestimates the duty more often.
    offsets = offsets_of(start)
    # The same tiles in each light, since others would explain more or less.
    chosen, counts = richest(observed(bright, tiling, offsets, present), speed)
    of_less = tiling._replace(n=tiling.size)  # At full size twice as fast, and as good.
    slow = (speed[chosen] < SLOW) & (counts > 0)

    def told(gamma: Float[Array, ""]) -> Float[Array, "n D"]:
        seen, fine = (
            observed(power(bright, gamma), tiling, offsets, present, only=chosen, scale=scale)
            for tiling, scale in ((tiling, 2), (of_less, 1))
        )
        return evidence(start[chosen], seen, fine, slow)

    return shutter.add(lax.map(told, jnp.array(LIGHTS)), counts)
