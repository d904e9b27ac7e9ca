"""Cuts frames into tiles and measures how these move from frame to frame."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeblur.paths.displacement import displacement, phase_spectra
from jaxdeblur.paths.path import FRAMES, spline
from jaxdeblur.paths.tiles import REACH, Tiling, halved

COARSE = 80, 128, 192
"""The stride, size and n of a Tiling."""

CLOSE = 64, 128, 192
"""The same where an image has few coarse tiles: frames at half size, and the shutter of small
ones."""

FINE = 32, 64, 128
"""The same for small frames, most of which a coarse tile would cover."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_SMALL = 384  # Pixels: a frame with a shorter side is small.


def is_small(height: int, width: int) -> bool:
    """Returns whether frames of this size are cut into fine tiles."""
    return min(height, width) < _SMALL


def tiling_of(size: tuple[int, ...], tiles: tuple[int, int, int] | None = None) -> Tiling:
    """Returns the tiling for frames of this height and width; by default with suitable tiles."""
    height, width = size
    suited = FINE if is_small(height, width) else COARSE
    return Tiling(height, width, *(tiles or suited))


@jax.default_matmul_precision("float32")  # A GPU's TF32 would move a path by tenths of a pixel.
def moves_of(
    frames: Float[Array, "5 H W 3"], tiling: Tiling | None = None
) -> Float[Array, "N 4 2"]:
    """Returns how far each tile moved from the middle of five frames to the others, in pixels.

    Args:
      frames: in [0, 1].
      tiling: by default ``tiling_of(frames.shape[1:3])``.
    """
    quarter = (tiling or tiling_of(frames.shape[1:3])).reduced(4)
    small = jax.vmap(lambda y: halved(halved(y)))(frames @ LUMA)
    spectra = [phase_spectra(y, quarter) for y in small]
    return jnp.stack([4 * displacement(spectra[2], spectra[j], quarter) for j in (0, 1, 3, 4)], 1)


def speed_of(moves: Float[Array, "N 4 2"], present: Float[Array, 5]) -> Float[Array, " N"]:
    """Returns the speed in pixels per frame, the larger of those to the neighbours present."""
    speeds = jnp.linalg.norm(moves[:, 1:3], axis=-1) * present[jnp.array([1, 3])]
    return speeds.max(-1) * present[2]


def connected(moves: Float[Array, "N 4 2"], present: Float[Array, 5]) -> Float[Array, 5]:
    """Returns ``present`` without the frames beyond a jump, which tell nothing of the path.

    A jump cut within a scene moves the median tile much farther than before and afterwards; a
    camera gathers speed over several frames.

    Args:
      moves: from ``moves_of``.
      present: 1 for a frame, 0 for one beyond the video's ends.
    """
    places = jnp.insert(moves, 2, 0.0, axis=1)
    steps = jnp.median(jnp.linalg.norm(jnp.diff(places, axis=1), axis=-1), 0)
    known = present[1:] * present[:-1] > 0
    beside = jnp.pad(jnp.where(known, steps, -jnp.inf), 1, constant_values=-jnp.inf)
    beside = jnp.maximum(beside[:-2], beside[2:])
    most = jnp.minimum(4 * beside + 6, 2 * beside + 20)
    joined = jnp.where(jnp.isfinite(beside) & (steps > most), 0.0, 1.0)
    before, after = joined[:2][::-1], joined[2:]
    near = jnp.concatenate([jnp.cumprod(before)[::-1], jnp.ones(1), jnp.cumprod(after)])
    return present * near


def offsets_of(knots: Float[Array, "N P 2"]) -> Float[Array, "N 3 2"]:
    """Returns where the patches are cut: the path at each frame, in even pixels."""
    at = jnp.einsum("jp,npc->njc", spline(jnp.array(FRAMES, jnp.float32)), knots)
    return jnp.clip(2 * jnp.round(at / 2), -REACH, REACH)
