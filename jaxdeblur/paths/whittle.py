"""The likelihood of a blur, from the power spectrum of one patch.

In a tile that moves by v during the exposure, the power of the blurred patch B has the expectation

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
Marquardt. The sign of v is free: a straight path reversed is the same blur. Of a path that bends,
|K(f)|^2 takes the place of sinc^2(f . v).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve
from jaxtyping import Array, Float

from jaxdeblur.paths.likelihood import FULL_SIZE_BANDS, RADII, Band, Observed, band
from jaxdeblur.paths.path import SAMPLE_WEIGHTS, otf
from jaxdeblur.paths.tiles import over_tiles

NU = 3.0
"""Half the degrees of freedom of an edge's power: the less, the less one edge counts."""

PATCH = 128
"""Pixels: the side of the patches."""

FIRST_STEPS, STEPS = 14, 6
"""Of a fit to a sharp tile, and from there to a blurred one."""

LIMIT = 2.5
"""Of a parameter's change in one step."""

_ANGULAR = 1.4  # Standard deviation of the logarithm of the spectrum in each angular term.


class PowerModel(NamedTuple):
    """The numbers of the model at the F frequencies of the band."""

    where: Band
    f: Float[np.ndarray, "F 2"]
    weight: Float[np.ndarray, " F"]
    of_texture: Float[np.ndarray, "F A"]
    of_noise: Float[np.ndarray, "F 2"]
    precision: Float[np.ndarray, " A2"]
    """Of the prior of all parameters; 0 for free ones."""


@functools.cache
def model() -> PowerModel:
    """Returns the model's numbers."""
    where = band(PATCH // 2, FULL_SIZE_BANDS[-1], 1)
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
    return PowerModel(where, *(each.astype(np.float32) for each in arrays))


class Spectrum(NamedTuple):
    """A tile's spectrum."""

    parameters: Float[Array, " A2"]
    value: Float[Array, ""]
    """L, times n."""


class System(NamedTuple):
    """L of a tile times n, and its Fisher scoring."""

    value: Float[Array, ""]
    slope: Float[Array, " Q"]
    curvature: Float[Array, "Q Q"]
    """Both by the parameters of the spectrum and what is fitted beside it."""


def transfer(velocity: Float[Array, 2]) -> tuple[Float[Array, " F"], Float[Array, "F 2"]]:
    """Returns sinc^2(f . v), and its derivatives by the velocity."""
    f = jnp.asarray(model().f)
    turns = f @ velocity
    sinc = jnp.sinc(turns)
    safe = jnp.where(jnp.abs(turns) < 1e-3, 1e-3, turns)
    slope = jnp.where(jnp.abs(turns) < 1e-3, 0.0, (jnp.cos(np.pi * safe) - jnp.sinc(safe)) / safe)
    return sinc**2, (2 * sinc * slope)[:, None] * f


def system(
    parameters: Float[Array, " A2"],
    power: Float[Array, " F"],
    through: Float[Array, " F"],
    slopes: Float[Array, "F V"] | None = None,
) -> System:
    """Returns L of a tile, and what Fisher scoring needs.

    Args:
      parameters: of its spectrum: a, c, s and n.
      power: of its patch, from ``power_of``.
      through: the share of the power that the blur leaves, as sinc^2(f . v).
      slopes: its derivatives by what is fitted beside the spectrum; None for nothing.
    """
    m = model()
    count = m.of_texture.shape[1]
    slopes = jnp.zeros((len(through), 0)) if slopes is None else slopes
    beside = jnp.zeros(slopes.shape[1])
    texture = jnp.exp(jnp.clip(m.of_texture @ parameters[:count], -40.0, 20.0))
    noise = jnp.exp(jnp.clip(m.of_noise @ parameters[count:], -40.0, 10.0))
    expected = texture * through + noise + m.where.floor
    ratio = power / expected
    value = jnp.sum(m.weight * (jnp.log(expected) + (NU + 1) * jnp.log1p(ratio / NU)))
    value = value + 0.5 * jnp.sum(m.precision * parameters**2)
    # The derivatives of log P.
    by = jnp.concatenate(
        [
            (texture * through / expected)[:, None] * m.of_texture,
            (noise / expected)[:, None] * m.of_noise,
            (texture / expected)[:, None] * slopes,
        ],
        1,
    )
    own = jnp.concatenate([m.precision * parameters, beside])
    slope = own - by.T @ (m.weight * ((NU + 1) * ratio / (NU + ratio) - 1))
    curvature = (by * m.weight[:, None]).T @ by
    stiff = jnp.concatenate([m.precision + 1e-3, beside])
    return System(value, slope, curvature + jnp.diag(stiff))


def fit_spectrum(
    parameters: Float[Array, " A2"],
    power: Float[Array, " F"],
    through: Float[Array, " F"],
    steps: int,
) -> Spectrum:
    """Fits a tile's spectrum, given what its blur leaves of the power.

    A step is taken back unless L falls.
    """
    size = len(parameters)

    def step(carry: tuple[jax.Array, System, jax.Array], _: None) -> tuple[Any, None]:
        at, found, damping = carry
        damped = found.curvature + damping * jnp.diag(jnp.diag(found.curvature))
        change = solve(damped, -found.slope, assume_a="pos")
        moved = at + jnp.clip(change, -LIMIT, LIMIT)
        tried = system(moved, power, through)
        better = tried.value < found.value
        kept = jax.tree.map(functools.partial(jnp.where, better), (moved, tried), (at, found))
        return (*kept, jnp.where(better, damping / 4, damping * 6)), None

    # The first step stays where it is, and divides the damping by 4: so the program holds
    # ``system`` once.
    nothing = System(jnp.float32(jnp.inf), jnp.zeros(size), jnp.eye(size))
    start = parameters, nothing, jnp.float32(4 * 0.05)
    (at, found, _), _ = lax.scan(step, start, None, length=1 + steps)
    return Spectrum(at, found.value)


def first_spectrum(power: Float[Array, " F"]) -> Float[Array, " A2"]:
    """Returns the initial spectrum: means of rings, and noise of twice the rounding."""
    m = model()
    rings = m.of_texture[:, : len(RADII)] * m.weight[:, None]
    share = rings.sum(0)
    radial = jnp.log(power @ rings / np.maximum(share, 1e-6) + 1e-12)
    radial = jnp.where(share > 0.5, radial, radial[np.argmax(share > 0.5)])
    rest = jnp.zeros(len(m.precision) - len(RADII) - 2)
    return jnp.concatenate([radial, rest, jnp.array([np.log(2 * m.where.floor), 0.0])])


def power_of(seen: Observed) -> Float[Array, "n F"]:
    """Returns the power of the middle frame's patches, which are PATCH pixels wide."""
    m = model()
    spectra = seen.up_to(FULL_SIZE_BANDS[-1], 1)[0].spectra[:, 1]
    return (spectra**2).sum(1).reshape(len(spectra), -1) + m.where.floor


def power_through(path: Float[Array, "J 2"]) -> Float[Array, " F"]:
    """Returns |K|^2 of a path, given its samples at the times of SAMPLE_WEIGHTS, in pixels."""
    m = model()
    kernel = otf(path - path.mean(0), jnp.asarray(SAMPLE_WEIGHTS)[None], m.where.fy, m.where.fx)[0]
    return (kernel**2).sum(0).ravel()


def values_of(power: Float[Array, "n F"], through: Float[Array, "n V F"]) -> Float[Array, "n W"]:
    """Returns L of each tile without blur, then for each blur: W = V + 1 values.

    Args:
      power: from ``power_of``.
      through: the shares of the power that blurs leave.
    """

    def one(tile: tuple[jax.Array, jax.Array]) -> Float[Array, " W"]:
        power, blurs = tile
        sharp = fit_spectrum(first_spectrum(power), power, jnp.ones(len(power)), FIRST_STEPS)
        rest = jax.vmap(lambda blur: fit_spectrum(sharp.parameters, power, blur, STEPS).value)
        return jnp.append(sharp.value, rest(blurs)) / model().weight.sum()

    values: Float[Array, "n W"] = over_tiles(one, (power, through))
    return values
