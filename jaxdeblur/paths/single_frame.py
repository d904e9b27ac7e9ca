"""Finds how one frame alone is blurred: along straight paths, from the power spectra of its tiles.

A frame without neighbours shows its motion only by its blur. With L_i(v) the likelihood of tile i,
whose texture may have a direction (whittle.py), ``G_i(v) = L_i(0) - L_i(v)`` is by how much blur
explains the tile better. Blur is the same in all tiles, or nearly, and texture's direction is not:

1. A grid of v finds what tiles that move alike gain most from,
   ``max over u of the mean over i of max over |v - u| < ALIKE |u| of G_i(v)``.
2. Through these v goes an affine field of velocities, which Fisher scoring improves together with
   the spectra of all tiles.
3. The evidence E is the mean over i of G_i along that field.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.paths import motion
from jaxdeblur.paths.likelihood import observed
from jaxdeblur.paths.tiles import over_tiles
from jaxdeblur.paths.velocities import half_ring
from jaxdeblur.paths.whittle import (
    FIRST_STEPS,
    LIMIT,
    PATCH,
    STEPS,
    Spectrum,
    first_spectrum,
    fit_spectrum,
    model,
    power_of,
    system,
    transfer,
)

SHORTEST_SIDE = 192
"""Pixels: frames with a shorter side hold too few tiles to agree."""

ALIKE = 0.45
"""Share of the common velocity by which a tile's own may differ from it."""

_TILES = 12
_CLOSE, _FAR, _FARTHEST = 0.5, 9.2, 20.1  # Pixels: a grid of steps of 1 up to the second, then 2.
_SHORTEST, _LONGEST = 2.4, 11.5
"""Pixels: of the frame's velocity. A shorter blur has its zeros outside the band; regular texture,
as of windows, has gaps in its spectrum like those of a longer one."""

_FIELD_STEPS = 8
_FIELD_LIMIT = 0.5  # Pixels: of a velocity's change in one step.
_ARM = 256.0  # Pixels: the field's slopes are velocities at this distance.
_STIFF = 0.02  # Nats per frequency and squared pixel: what keeps slopes small.


class SingleBlur(NamedTuple):
    """The blur of one frame."""

    evidence: Float[Array, ""]
    """E: how much better blur along the field explains the tiles, nats per frequency."""
    field: Float[Array, "3 2"]
    """The velocity (y, x) at the frame's middle, and its change for every _ARM pixels of y and x;
    in pixels per exposure."""

    @classmethod
    def none(cls, *frames: int) -> SingleBlur:
        """Returns what is known of no blur; for several frames, with that leading axis."""
        return cls(jnp.zeros(frames), jnp.zeros((*frames, 3, 2)))

    def at(self, places: Float[np.ndarray, "N 2"]) -> Float[Array, "N 2"]:
        """Returns the velocity at places (y, x), in pixels from the frame's middle."""
        return jnp.asarray(_affine(jnp.asarray(places, jnp.float32))) @ self.field


def _affine(places: Float[Array, "N 2"]) -> Float[Array, "N 3"]:
    return jnp.concatenate([jnp.ones((len(places), 1)), places / _ARM], 1)


def _grid() -> Float[np.ndarray, "V 2"]:
    """Returns the velocities that are tried, in half a disc."""
    close, far = half_ring(_CLOSE, _FAR, 1), half_ring(_FAR, _FARTHEST, 2)
    return np.concatenate([close, far])


class _Seen(NamedTuple):
    power: Float[Array, "n F"]
    places: Float[Array, "n 2"]
    """Their middles, (y, x) in pixels from the frame's."""


def _view(luminance: Float[Array, "H W"]) -> _Seen:
    """Returns the tiles richest in texture, none of them twice."""
    tiling = motion.tiling_of(luminance.shape, motion.CLOSE)._replace(n=PATCH)
    places = tiling.centres + tiling.inward
    _, first = np.unique(places, axis=0, return_index=True)
    only = np.sort(first)
    here = jnp.array([0.0, 0.0, 1.0, 0.0, 0.0])
    nothing = jnp.zeros((len(places), 3, 2))
    given = jnp.stack([luminance] * 3), tiling, nothing, here
    inward = jnp.asarray(tiling.inward)
    power = power_of(observed(*given, inward, only=jnp.asarray(only), scale=1))
    where = model().where
    texture = power @ (where.weight * np.hypot(where.fy[:, None], where.fx)).ravel()
    _, chosen = lax.top_k(texture, min(_TILES, len(only)))
    middle = np.array(luminance.shape) / 2
    return _Seen(power[chosen], jnp.asarray((places[only] - middle).astype(np.float32))[chosen])


@jax.default_matmul_precision("float32")  # As in motion.py.
def find(luminance: Float[Array, "H W"]) -> SingleBlur:
    """Returns how one frame is blurred; its shorter side has at least ``SHORTEST_SIDE`` pixels.

    Args:
      luminance: as stored, in [0, 1].
    """
    seen, grid = _view(luminance), _grid()
    n = model().weight.sum()

    def surface(power: Float[Array, " F"]) -> tuple[jax.Array, ...]:
        sharp = fit_spectrum(first_spectrum(power), power, jnp.ones(len(power)), FIRST_STEPS)

        def along(velocity: Float[Array, 2]) -> Spectrum:
            return fit_spectrum(sharp.parameters, power, transfer(velocity)[0], STEPS)

        blurred = jax.vmap(along)(jnp.asarray(grid))
        return blurred.parameters, (sharp.value - blurred.value) / n, sharp.value

    spectra, gains, sharp = over_tiles(surface, seen.power)
    # Each common velocity, and the tiles' own around it, the same way round.
    length = np.hypot(*grid.T)
    common = grid[(length > _SHORTEST) & (length < _LONGEST)]
    apart, reversed_ = (np.linalg.norm(grid - sign * common[:, None], axis=-1) for sign in (1, -1))
    near = np.minimum(apart, reversed_) <= ALIKE * np.linalg.norm(common, axis=1)[:, None]
    best = jnp.where(jnp.asarray(near)[:, None], gains, -jnp.inf).max(-1)
    chosen = best.mean(1).argmax()
    own = jnp.where(jnp.asarray(near)[chosen], gains, -jnp.inf).argmax(-1)
    turned = jnp.asarray(np.where(apart <= reversed_, 1.0, -1.0).astype(np.float32))[chosen]
    velocities = jnp.asarray(grid)[own] * turned[own][:, None]
    weight = jnp.maximum(best[chosen], 0.0) + 1e-4
    # The field through these, then the likeliest one.
    basis = _affine(seen.places)
    ridge = jnp.diag(jnp.array([0.0, 0.5, 0.5])) * weight.mean()
    middle = jnp.asarray(common)[chosen]
    normal = (basis * weight[:, None]).T @ basis + ridge
    field = jnp.linalg.solve(normal, (basis * weight[:, None]).T @ (velocities - middle))
    field = field.at[0].add(middle)
    own_spectra = jnp.take_along_axis(spectra, own[:, None, None], 1)[:, 0]
    field, own_spectra = _likeliest(field, own_spectra, seen, weight)

    def gain(tile: tuple[jax.Array, ...]) -> Float[Array, ""]:
        parameters, power, velocity, sharp = tile
        blurred = fit_spectrum(parameters, power, transfer(velocity)[0], STEPS).value
        # From there, too: else a fit that has not arrived would count as evidence.
        again = fit_spectrum(parameters, power, jnp.ones(len(power)), FIRST_STEPS).value
        return (jnp.minimum(sharp, again) - blurred) / n

    each = over_tiles(gain, (own_spectra, seen.power, basis @ field, sharp))
    inside = jnp.linalg.norm(field[0]) < _LONGEST
    return SingleBlur(jnp.where(inside, each.mean(), 0.0), field)


def _likeliest(
    field: Float[Array, "3 2"],
    spectra: Float[Array, "n A2"],
    seen: _Seen,
    weight: Float[Array, " n"],
) -> tuple[Float[Array, "3 2"], Float[Array, "n A2"]]:
    """Fits the field and the tiles' spectra together by Fisher scoring."""
    basis, n = _affine(seen.places), model().weight.sum()
    size = spectra.shape[1]
    share = weight / (weight + weight.mean())  # A tile that gains nothing may hold something else.
    stiff = jnp.kron(jnp.diag(jnp.array([0.0, _STIFF, _STIFF])), jnp.eye(2)) * n * share.sum()

    def step(
        carry: tuple[Float[Array, "3 2"], Float[Array, "n A2"]], _: None
    ) -> tuple[tuple[Float[Array, "3 2"], Float[Array, "n A2"]], None]:
        field, spectra = carry

        def one(each: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            parameters, power, velocity = each
            found = system(parameters, power, *transfer(velocity))
            own = found.curvature[:size, :size]
            own = own + 0.01 * jnp.diag(jnp.diag(own))
            both = jnp.concatenate([found.slope[:size, None], found.curvature[:size, size:]], 1)
            solved = jnp.linalg.solve(own, both)
            cross = found.curvature[size:, :size] @ solved
            rest = found.curvature[size:, size:] - cross[:, 1:]
            return found.slope[size:] - cross[:, 0], rest, solved

        slope, curvature, solved = over_tiles(one, (spectra, seen.power, basis @ field))
        gradient = jnp.einsum("n,np,nc->pc", share, basis, slope).ravel() + stiff @ field.ravel()
        own = jnp.einsum("n,np,nq,ncd->pcqd", share, basis, basis, curvature).reshape(6, 6)
        own = own + stiff + 0.05 * jnp.diag(jnp.diag(own)) + 1e-3 * jnp.eye(6)
        change = -jnp.linalg.solve(own, gradient).reshape(3, 2)
        most = jnp.abs(basis @ change).max()
        change = change * jnp.minimum(1.0, _FIELD_LIMIT / jnp.maximum(most, 1e-6))
        moved = -solved[..., 0] - jnp.einsum("nac,nc->na", solved[..., 1:], basis @ change)
        return (field + change, spectra + jnp.clip(moved, -LIMIT, LIMIT)), None

    done: tuple[Float[Array, "3 2"], Float[Array, "n A2"]]
    done, _ = lax.scan(step, (field, spectra), None, length=_FIELD_STEPS)
    return done
