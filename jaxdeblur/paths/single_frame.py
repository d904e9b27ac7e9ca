"""Finds how one frame alone is blurred: along straight paths, from the power spectra of its tiles.

A frame without neighbours shows its motion only by its blur. In a tile that moves by v during the
exposure, the power of the blurred patch B has the expectation

    P(f) = S(f) sinc^2(f . v) + N(f)

Texture has a direction as well, which blur imitates: a spectrum S that depends on the radius alone
explains a sharp picket fence best by a blur along its pickets. So S depends on the angle theta of
the frequency, smoothly, and what is left for blur are the zeros of the sinc:

    log S(f) = sum_r a_r T_r(|f|) + sum over m in {2, 4} of c_m cos m theta + s_m sin m theta
    log N(f) = n_0 + n_1 log |f|

with T_r the hats over RADII, and each of c_m and s_m linear in log |f|. Given P, the power of a
Gaussian field is exponentially distributed (Whittle, "Estimation and information in stationary
time series", Arkiv foer Matematik 2, 1953). An image has edges, whose power exceeds any smooth
spectrum; if its scale varies as the inverse of a gamma variable, |B|^2 / P has an F distribution
with 2 and 2 NU degrees of freedom:

    L = 1/n sum_f log P + (NU + 1) log(1 + |B|^2 / (NU P))

in nats per frequency, least over a, c, s and n: Fisher scoring, damped as by Levenberg and
Marquardt. ``G_i(v) = L_i(0) - L_i(v)`` is by how much blur explains tile i better. Blur is the same
in all tiles, or nearly, and texture's direction is not:

1. A grid of v finds what tiles that move alike gain most from,
   ``max over u of the mean over i of max over |v - u| < ALIKE |u| of G_i(v)``.
2. Through these v goes an affine field of velocities, which Fisher scoring improves together with
   the spectra of all tiles.
3. The evidence E is the mean over i of G_i along that field.

The sign of v is free: a straight path reversed is the same blur.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.paths import motion
from jaxdeblur.paths.likelihood import FULL_SIZE_BANDS, RADII, Band, band, observed
from jaxdeblur.paths.stabiliser import half_ring
from jaxdeblur.paths.tiles import over_tiles

SHORTEST_SIDE = 192
"""Pixels: frames with a shorter side hold too few tiles to agree."""

NU = 3.0
"""Half the degrees of freedom of an edge's power: the less, the less one edge counts."""

ALIKE = 0.45
"""Share of the common velocity by which a tile's own may differ from it."""

_TILES = 12
_PATCH = 128
_CLOSE, _FAR, _FARTHEST = 0.5, 9.2, 20.1  # Pixels: a grid of steps of 1 up to the second, then 2.
_SHORTEST, _LONGEST = 2.4, 11.5
"""Pixels: of the frame's velocity. A shorter blur has its zeros outside the band; regular texture,
as of windows, has gaps in its spectrum like those of a longer one."""

_ANGULAR = 1.4  # Standard deviation of the logarithm of the spectrum in each angular term.
_FIRST_STEPS, _STEPS, _FIELD_STEPS = 14, 6, 8
_LIMIT = 2.5  # Of a parameter's change in one step.
_FIELD_LIMIT = 0.5  # Pixels: the same of a velocity.
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


class _Model(NamedTuple):
    """The numbers of the model at the F frequencies of the band."""

    where: Band
    f: Float[np.ndarray, "F 2"]
    weight: Float[np.ndarray, " F"]
    of_texture: Float[np.ndarray, "F A"]
    of_noise: Float[np.ndarray, "F 2"]
    precision: Float[np.ndarray, " A2"]
    """Of the prior of all parameters; 0 for free ones."""


@functools.cache
def _model() -> _Model:
    where = band(_PATCH // 2, FULL_SIZE_BANDS[-1], 1)
    fy, fx = (each.ravel() for each in np.broadcast_arrays(where.fy[:, None], where.fx))
    theta, radius = np.arctan2(fy, fx), np.maximum(np.hypot(fy, fx), 1e-3)
    line = np.stack([np.ones_like(radius), np.clip(np.log(radius / 0.1), -2, 2)], 1)
    angular = [
        each[:, None] * line for m in (2, 4) for each in (np.cos(m * theta), np.sin(m * theta))
    ]
    radial = where.radial.reshape(len(RADII), -1).T
    texture = np.concatenate([radial, *angular], 1)
    precision = np.zeros(texture.shape[1] + 2)
    precision[len(RADII) : -2] = _ANGULAR**-2
    precision[-1] = 1.0
    arrays = np.stack([fy, fx], 1), where.weight.ravel(), texture, line, precision
    return _Model(where, *(each.astype(np.float32) for each in arrays))


def _grid() -> Float[np.ndarray, "V 2"]:
    """Returns the velocities that are tried, in half a disc."""
    close, far = half_ring(_CLOSE, _FAR, 1), half_ring(_FAR, _FARTHEST, 2)
    return np.concatenate([close, far])


class _Fitted(NamedTuple):
    """A tile's spectrum."""

    parameters: Float[Array, " A2"]
    damping: Float[Array, ""]
    value: Float[Array, ""]
    """L, times n."""


class _System(NamedTuple):
    """L of a tile times n, and its Fisher scoring."""

    value: Float[Array, ""]
    slope: Float[Array, " Q"]
    curvature: Float[Array, "Q Q"]
    """Both by the parameters of the spectrum and the velocity (y, x)."""


def _transfer(velocity: Float[Array, 2]) -> tuple[Float[Array, " F"], Float[Array, "F 2"]]:
    """Returns sinc^2(f . v), and its derivatives by the velocity."""
    f = jnp.asarray(_model().f)
    turns = f @ velocity
    sinc = jnp.sinc(turns)
    safe = jnp.where(jnp.abs(turns) < 1e-3, 1e-3, turns)
    slope = jnp.where(jnp.abs(turns) < 1e-3, 0.0, (jnp.cos(np.pi * safe) - jnp.sinc(safe)) / safe)
    return sinc**2, (2 * sinc * slope)[:, None] * f


def _system(
    parameters: Float[Array, " A2"], power: Float[Array, " F"], velocity: Float[Array, 2]
) -> _System:
    m = _model()
    count = m.of_texture.shape[1]
    through, slopes = _transfer(velocity)
    texture = jnp.exp(jnp.clip(m.of_texture @ parameters[:count], -40.0, 20.0))
    noise = jnp.exp(jnp.clip(m.of_noise @ parameters[count:], -40.0, 10.0))
    expected = texture * through + noise + m.where.floor
    ratio = power / expected
    value = (m.weight * (jnp.log(expected) + (NU + 1) * jnp.log1p(ratio / NU))).sum()
    value = value + 0.5 * (m.precision * parameters**2).sum()
    # The derivatives of log P.
    by = jnp.concatenate(
        [
            (texture * through / expected)[:, None] * m.of_texture,
            (noise / expected)[:, None] * m.of_noise,
            (texture / expected)[:, None] * slopes,
        ],
        1,
    )
    own = jnp.concatenate([m.precision * parameters, jnp.zeros(2)])
    slope = own - by.T @ (m.weight * ((NU + 1) * ratio / (NU + ratio) - 1))
    curvature = (by * m.weight[:, None]).T @ by
    stiff = jnp.concatenate([m.precision + 1e-3, jnp.zeros(2)])
    return _System(value, slope, curvature + jnp.diag(stiff))


def _stepped(fitted: _Fitted, power: Float[Array, " F"], velocity: Float[Array, 2]) -> _Fitted:
    """Moves a spectrum by one step, and takes it back unless L falls."""
    size = len(fitted.parameters)
    found = _system(fitted.parameters, power, velocity)
    curvature = found.curvature[:size, :size]
    damped = curvature + fitted.damping * jnp.diag(jnp.diag(curvature))
    change = jnp.linalg.solve(damped, -found.slope[:size])
    moved = fitted.parameters + jnp.clip(change, -_LIMIT, _LIMIT)
    value = _system(moved, power, velocity).value
    better = value < fitted.value
    kept = jnp.where(better, moved, fitted.parameters)
    damping = jnp.where(better, fitted.damping / 4, fitted.damping * 6)
    return _Fitted(kept, damping, jnp.where(better, value, fitted.value))


def _fitted(
    parameters: Float[Array, " A2"],
    power: Float[Array, " F"],
    velocity: Float[Array, 2],
    steps: int,
) -> _Fitted:
    """Fits a tile's spectrum, given its velocity."""
    start = _Fitted(parameters, jnp.float32(0.05), _system(parameters, power, velocity).value)

    def step(fitted: _Fitted, _: None) -> tuple[_Fitted, None]:
        return _stepped(fitted, power, velocity), None

    done: _Fitted = lax.scan(step, start, None, length=steps)[0]
    return done


def _first(power: Float[Array, " F"]) -> Float[Array, " A2"]:
    """Returns the initial spectrum: means of rings, and noise of twice the rounding."""
    m = _model()
    rings = m.of_texture[:, : len(RADII)] * m.weight[:, None]
    share = rings.sum(0)
    radial = jnp.log(power @ rings / np.maximum(share, 1e-6) + 1e-12)
    radial = jnp.where(share > 0.5, radial, radial[np.argmax(share > 0.5)])
    rest = jnp.zeros(len(m.precision) - len(RADII) - 2)
    return jnp.concatenate([radial, rest, jnp.array([np.log(2 * m.where.floor), 0.0])])


class _Seen(NamedTuple):
    power: Float[Array, "n F"]
    places: Float[Array, "n 2"]
    """Their middles, (y, x) in pixels from the frame's."""


def _view(luminance: Float[Array, "H W"]) -> _Seen:
    """Returns the tiles richest in texture, none of them twice."""
    tiling = motion.tiling_of(luminance.shape, motion.CLOSE)._replace(n=_PATCH)
    places = tiling.centres + tiling.inward
    _, first = np.unique(places, axis=0, return_index=True)
    only = np.sort(first)
    here = jnp.array([0.0, 0.0, 1.0, 0.0, 0.0])
    nothing = jnp.zeros((len(places), 3, 2))
    given = jnp.stack([luminance] * 3), tiling, nothing, here
    inward = jnp.asarray(tiling.inward)
    seen, where = observed(*given, inward, only=jnp.asarray(only), scale=1).up_to(
        FULL_SIZE_BANDS[-1], 1
    )
    power = (seen.spectra[:, 1] ** 2).sum(1).reshape(len(only), -1)
    power = power + _model().where.floor
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
    n = _model().weight.sum()

    def surface(power: Float[Array, " F"]) -> tuple[jax.Array, ...]:
        sharp = _fitted(_first(power), power, jnp.zeros(2), _FIRST_STEPS)
        blurred = jax.vmap(lambda v: _fitted(sharp.parameters, power, v, _STEPS))(jnp.asarray(grid))
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
        blurred = _fitted(parameters, power, velocity, _STEPS).value
        # From there, too: else a fit that has not arrived would count as evidence.
        again = _fitted(parameters, power, jnp.zeros(2), _FIRST_STEPS).value
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
    basis, n = _affine(seen.places), _model().weight.sum()
    size = spectra.shape[1]
    share = weight / (weight + weight.mean())  # A tile that gains nothing may hold something else.
    stiff = jnp.kron(jnp.diag(jnp.array([0.0, _STIFF, _STIFF])), jnp.eye(2)) * n * share.sum()

    def step(
        carry: tuple[Float[Array, "3 2"], Float[Array, "n A2"]], _: None
    ) -> tuple[tuple[Float[Array, "3 2"], Float[Array, "n A2"]], None]:
        field, spectra = carry

        def one(each: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
            found = _system(*each)
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
        return (field + change, spectra + jnp.clip(moved, -_LIMIT, _LIMIT)), None

    done: tuple[Float[Array, "3 2"], Float[Array, "n A2"]]
    done, _ = lax.scan(step, (field, spectra), None, length=_FIELD_STEPS)
    return done
