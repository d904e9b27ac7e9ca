"""Finds velocities that the blur of one frame may show, on the tiles richest in texture.

Steps 1 and 2 of the search for what a stabiliser took (stabiliser.py).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.paths import motion
from jaxdeblur.paths.likelihood import (
    FULL_SIZE_BANDS,
    HALF_SIZE_BANDS,
    LOG_NSR_LIMITS,
    START,
    Fit,
    Observed,
    likelihood,
    observed,
    texture,
)
from jaxdeblur.paths.octave import around_of
from jaxdeblur.paths.path import USUAL_DUTY, sample_times, through
from jaxdeblur.paths.tiles import over_tiles

STABILISED_DUTY = USUAL_DUTY
"""The duty cycle of a stabilised video: it cannot be told from velocity there."""

KEPT = 4
"""The number of close velocities that are fitted, beside one far one."""

_TILES = 16
_FAR, _FARTHEST = 10.5, 20.0  # Pixels per frame: from the former, half size shows the zeros.
_CLOSE_ONES, _FAR_ONES = 6, 2  # Velocities whose neighbourhood is searched.
_APART, _CLOSER = 1.5, 0.3  # Steps of a grid: between the best velocities, and of the finer one.
_MOST = 1.0  # Nats per frequency: a tile's part in ranking velocities.


class Seen(NamedTuple):
    """The tiles of three frames that the search compares."""

    coarse: Observed
    """At half the size of the frames that are searched."""
    fine: Observed
    start: Float[Array, "n P 2"]
    """Their apparent paths, in pixels of these frames."""
    around: Float[Array, "n 2"]
    """Pixels (y, x) by which a turn by one radian moves each tile."""


def view(luminance: Float[Array, "5 H W"], present: Float[Array, 5]) -> Seen:
    """Returns the tiles richest in texture of the middle three of five frames."""
    tiling = motion.tiling_of(luminance.shape[1:], motion.CLOSE)
    start = through(motion.moves_between(luminance, tiling), present)
    offsets = motion.offsets_of(start)
    given = luminance[1:4], tiling, offsets, present
    coarse = observed(*given, inward=jnp.asarray(tiling.inward))
    _, chosen = lax.top_k(texture(coarse), min(_TILES, len(start)))
    # At full size twice as fast with smaller patches, and as good.
    close = tiling._replace(n=tiling.size)
    inward = jnp.asarray(close.inward)
    fine = observed(luminance[1:4], close, *given[2:], inward, only=chosen, scale=1)
    coarse, start = jax.tree.map(lambda leaf: leaf[chosen], (coarse, start))
    return Seen(coarse, fine, start, jnp.asarray(around_of(tiling))[chosen])


def _only(seen: Observed) -> Observed:
    """Returns the middle frame."""
    middle = slice(1, 2)
    return Observed(seen.spectra[:, middle], seen.offsets[:, middle], seen.present[:, middle])


def _values(seen: Observed, velocities: Float[Array, "c n 2"], scale: int) -> Float[Array, "c n"]:
    """Returns L of each tile's middle frame where it moves at constant velocities."""
    top = FULL_SIZE_BANDS[-1] if scale == 1 else HALF_SIZE_BANDS[-1]
    inside, where = _only(seen).up_to(top, scale)
    basis = jnp.asarray(sample_times(STABILISED_DUTY))[None, :, None]

    def of(velocity: Float[Array, "n 2"]) -> Float[Array, " n"]:
        count = len(velocity)
        log_nsr = jnp.tile(jnp.asarray(START), (count, 1))
        fit = Fit(velocity[:, None], log_nsr, jnp.zeros((count, 1)))

        def step(log_nsr: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            def one(tile: tuple[Fit, Observed]) -> tuple[jax.Array, jax.Array]:
                found = likelihood(tile[0], tile[1], where, basis)
                return jnp.clip(found.log_nsr, *LOG_NSR_LIMITS), found.value

            return over_tiles(one, (fit._replace(log_nsr=log_nsr), inside))

        return lax.scan(step, log_nsr, None, length=4)[1][-1]

    return lax.map(of, velocities)


def _distinct(
    points: Float[Array, "c 2"], score: Float[Array, " c"], count: int, apart: float
) -> Float[Array, "count 2"]:
    """Returns the best points that lie apart from each other, and from each other's reversals."""
    picked = []
    for _ in range(count):
        best = points[score.argmin()]
        picked.append(best)
        near = jnp.minimum(*(jnp.linalg.norm(points - sign * best, axis=1) for sign in (1, -1)))
        score = jnp.where(near <= apart, jnp.inf, score)
    return jnp.stack(picked)


def half_ring(inside: float, outside: float, step: int) -> Float[np.ndarray, "c 2"]:
    """Returns the velocities of a grid in half a ring: the other half holds their reversals."""
    line = step * np.arange(-np.ceil(outside / step), np.ceil(outside / step) + 1)
    y, x = (each.ravel() for each in np.meshgrid(line, line, indexing="ij"))
    radius = np.hypot(y, x)
    kept = ((x > 0) | ((x == 0) & (y >= 0))) & (radius >= inside) & (radius < outside)
    return np.stack([y, x], 1)[kept].astype(np.float32)


def candidates(seen: Seen) -> Float[Array, "k 2"]:
    """Returns velocities that the middle frame's blur may show, of either sign: steps 1 and 2.

    They are relative to the median tile's apparent velocity.
    """
    apparent = velocity_of(seen.start)
    typical = jnp.median(apparent, 0)

    def ranked(points: Float[Array, "c 2"], of: Observed, scale: int) -> jax.Array:
        values = _values(of, apparent + (points - typical)[:, None], scale)
        return jnp.minimum(values - values.min(0), _MOST).mean(1)

    def best_of(inside: float, outside: float, of: Observed, count: int, scale: int) -> jax.Array:
        points = jnp.asarray(half_ring(inside, outside, scale))  # Steps of a pixel of the patches.
        return _distinct(points, ranked(points, of, scale), count, _APART * scale)

    close = best_of(0.0, _FAR, seen.fine, _CLOSE_ONES, 1)
    best = jnp.concatenate([close, best_of(_FAR, _FARTHEST, seen.coarse, _FAR_ONES, 2)])
    line = _CLOSER * np.arange(-2, 3, dtype=np.float32)
    around = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    around = around * np.array([1.0] * _CLOSE_ONES + [2.0] * _FAR_ONES)[:, None, None]
    local = best[:, None] + around
    score = ranked(local.reshape(-1, 2), seen.fine, 1).reshape(len(best), -1)
    found = jnp.take_along_axis(local, score.argmin(1)[:, None, None], 1)[:, 0]
    least, first_far = score.min(1), _CLOSE_ONES
    kept = jnp.argsort(least[:first_far])[:KEPT]
    far_one = found[first_far + least[first_far:].argmin()]
    return jnp.concatenate([found[kept], far_one[None]]) - typical


def velocity_of(swing: Float[Array, "*k P C"]) -> Float[Array, "*k 2"]:
    """Returns the mean velocity (y, x) during the middle frame, of a swing or a path."""
    return swing[..., 3, :2] - swing[..., 2, :2]
