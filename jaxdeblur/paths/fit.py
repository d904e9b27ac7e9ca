"""Fits the paths of all tiles by Gauss-Newton on the likelihood, with neighbouring tiles coupled.

    minimise  sum over tiles of L  +  SMOOTH sum d^2 / (1 + |d|)
              +  BEND sum |p'''' - m''''|^2  +  BEND N w |m''''|^2,    w = 1 / (1 + r / SHAKE)
              +  KEEP sum [log(1 + |e|) + 1 / (1 + |e|)],    e = p(t) - p(-1) - q(t + 1)

where d are differences of neighbouring tiles' knots, which may be large at an object's border, m is
the mean path of the N tiles, and q the path found at the tile in the previous frame, which covers
some of the same motion. Primes are differences of the knots. A hand shakes the whole frame: all
tiles share what is rough in its path, and little is known of it beforehand. So the penalty on m
weakens with its roughness r (``shake_weight``), as the last step left it. Each step solves the
12 x 12 systems of all tiles jointly by conjugate gradients. The frequency band widens from stage to
stage, so that a path that is off by pixels still converges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdeblur.paths.likelihood import (
    FULL_SIZE_BANDS,
    HALF_SIZE_BANDS,
    LEAST_LOG_WEIGHT,
    LOG_NSR_LIMITS,
    START,
    Fit,
    Likelihood,
    Observed,
    likelihood,
)
from jaxdeblur.paths.path import FREE, KNOTS, exposures
from jaxdeblur.paths.tiles import over_tiles

SMOOTH = 0.0025
"""Nats per frequency and pixel, between neighbouring tiles of 128 pixels."""

KEEP = 0.25
"""Nats per frequency and pixel, between a path and that of the previous frame."""


BEND = 0.04
"""Nats per frequency and squared pixel of fourth differences, between a path and the mean path.

Cubic paths have none. Without it, paths bypass p(0) and yield a shifted frame, which no blurred
frame contradicts."""

SHAKE = 0.02
"""Squared pixels: the roughness that halves the penalty. Chosen on GOPR0372, hand-held, where r is
0.07 to 0.7, and on X4K, from smooth cameras."""

_ALONG = 0.05
"""The share of the roughness along one line in r: frames that show uneven instants, as blended ones
do, have some too."""

LONE_BEND = 0.02
"""The same of third differences, in tiles fitted without their neighbours.

Without it, a path that slows down passes for a shorter exposure."""

_AT_KNOTS = np.eye(len(KNOTS), dtype=np.float32)[:, FREE]


def _at(times: Float[np.ndarray, " k"] | float) -> Float[np.ndarray, "*k P"]:
    """Returns the share of each free knot in the path at some of KNOTS."""
    share: np.ndarray = _AT_KNOTS[np.searchsorted(KNOTS, times)]
    return share


_BOTH = KNOTS[np.isin(KNOTS + 1, KNOTS) & (KNOTS != -1)]
_MOVED, _MOVED_BEFORE = _at(_BOTH) - _at(-1), _at(_BOTH + 1)
"""p(t) - p(-1) and q(t + 1), from the free knots, at the times t that both paths reach."""

_DAMPING = 0.02  # Of the mean curvature.
_CG_STEPS = 8  # Conjugate gradient steps, preconditioned by each tile's own system.
_FIRST_LOG_WEIGHT = np.log(0.5)


class Stage(NamedTuple):
    """A few steps on the frequencies up to ``top``."""

    top: float
    """Cycles per pixel."""
    steps: int

    @property
    def limit(self) -> float:
        """Pixels that a knot may move in one step: half of the shortest wavelength, beyond which
        the nearest phase that fits is another one."""
        return 0.5 / self.top


STAGES = tuple(map(Stage, HALF_SIZE_BANDS, (4, 2, 1)))
FINE_STAGES = tuple(map(Stage, FULL_SIZE_BANDS, (1, 2)))
"""Run afterwards, on patches at full size."""


def first_fit(knots: Float[Array, "N P 2"], present: Float[Array, "N 3"]) -> Fit:
    """Returns the initial fit, given a path for each tile."""
    log_nsr = jnp.tile(jnp.asarray(START), (len(knots), 1))
    log_weights = _FIRST_LOG_WEIGHT * jnp.array([1.0, 0.0, 1.0]) * present
    return Fit(knots, log_nsr, log_weights)


def fit_tiles(
    fit: Fit,
    seen: Observed,
    shape: tuple[int, int],
    basis: Float[Array, "3 J P"],
    stages: tuple[Stage, ...] = STAGES,
    smooth: float = SMOOTH,
    stiff: Float[np.ndarray, "Q Q"] | None = None,
    scale: int = 2,
    before: Float[Array, "N P 2"] | None = None,
    shaken: Bool[Array, ""] | bool = True,
    inside: Float[Array, " N"] | None = None,
) -> tuple[Fit, Float[Array, " N"]]:
    """Fits path, noise-to-signal ratio and the frames' weights, of all tiles.

    Args:
      fit: the initial fit (``first_fit``).
      seen: the patches, with all frequencies of their transform.
      shape: rows and columns of tiles.
      basis: the spline at the samples of the exposures (``path.exposures``).
      stages: the frequency bands and the number of steps on each.
      smooth: the weight of neighbours' differences; 0 for tiles that are not neighbours.
      stiff: the Hessian of a penalty on the bend of each path by itself (``stiffness``); None for
        that of BEND and SHAKE.
      scale: the patches come from an image at ``1/scale`` of its size.
      before: the paths of the previous frame, zeros where unknown; None for none.
      shaken: whether roughness of the mean path is cheap. In frames that an editor blended from two
        it comes from uneven instants, not from a hand.
      inside: 1 for a tile, 0 for one beyond the frame (octave.py); None for only tiles.

    Returns:
      The fit, and L of each tile before the last step.
    """

    bend = jnp.asarray(stiffness(4, BEND) if stiff is None else stiff)
    inside = jnp.ones(len(fit.knots)) if inside is None else inside

    def of_mean(knots: Float[Array, "N P 2"]) -> Float[Array, ""] | float:
        mean = _mean(knots, inside)
        return jnp.where(shaken, shake_weight(mean), 1.0) if stiff is None else 1.0

    def improved(fit: Fit, stage: Stage) -> tuple[Fit, Float[Array, " steps N"]]:
        within, where = seen.up_to(stage.top, scale)

        def step(fit: Fit, _: None) -> tuple[Fit, Float[Array, " N"]]:
            found: Likelihood = over_tiles(
                lambda tile: likelihood(tile[0], tile[1], where, basis), (fit, within)
            )
            weights = bend, of_mean(fit.knots), inside
            change = _solve(fit.knots, found, shape, smooth, *weights, before)
            knots = fit.knots + jnp.clip(change, -stage.limit, stage.limit)
            return refitted(fit, found, seen.present)._replace(knots=knots), found.value

        return jax.lax.scan(step, fit, None, length=stage.steps)

    for stage in stages:
        fit, values = improved(fit, stage)
    return fit, values[-1]


def log_evidence_ratio(fit: Fit, value: Float[Array, " N"], seen: Observed) -> Float[Array, " N"]:
    """Returns G: how much better the path explains each tile than sharp frames moving along it.

    ``value`` is L of the fit in the last of STAGES.
    """
    basis, (inside, where) = exposures(0.0), seen.up_to(STAGES[-1].top)

    def again(each: tuple[Fit, Observed]) -> Float[Array, ""]:
        first, patches = each

        def refit(tile: Fit, _: None) -> tuple[Fit, Float[Array, ""]]:
            found = likelihood(tile, patches, where, basis)
            return refitted(tile, found, patches.present), found.value

        return jax.lax.scan(refit, first, None, length=3)[1][-1]

    return over_tiles(again, (fit, inside)) - value


def refitted(fit: Fit, found: Likelihood, present: Float[Array, "*N 3"]) -> Fit:
    """Takes an M-step of log lam, and half of one of log w, given the path."""
    log_weights = jnp.clip(0.5 * (fit.log_weights + found.log_weights), LEAST_LOG_WEIGHT, 0.0)
    log_weights = log_weights * jnp.array([1.0, 0.0, 1.0]) * present
    return fit._replace(log_nsr=jnp.clip(found.log_nsr, *LOG_NSR_LIMITS), log_weights=log_weights)


@functools.partial(jax.jit, static_argnames=("shape", "smooth"))  # Traced once for all stages.
def _solve(
    knots: Float[Array, "N P 2"],
    found: Likelihood,
    shape: tuple[int, int],
    smooth: float,
    stiff: Float[Array, "Q Q"],
    of_mean: Float[Array, ""] | float,
    inside: Float[Array, " N"],
    before: Float[Array, "N P 2"] | None,
) -> Float[Array, "N P 2"]:
    """Returns the joint Gauss-Newton step of all tiles.

    The bend of the mean path counts ``of_mean`` times as much as differences from it.
    """
    flat = knots.reshape(len(knots), -1)
    couple, diagonal = _coupling(flat, shape, smooth, inside)

    def shared(v: Float[Array, "N Q"]) -> Float[Array, "N Q"]:
        return (1 - of_mean) * inside[:, None] * (_mean(v, inside) @ stiff)

    gradient = found.gradient + flat @ stiff - shared(flat) + couple(flat)
    own = found.curvature + stiff + damping(found.curvature)
    if before is not None:
        slope, kept = _keeping(knots, before)
        gradient, own = gradient + slope, own + kept
    unit = jnp.eye(flat.shape[1])
    inverse = jax.vmap(
        lambda each, beside: jax.scipy.linalg.solve(each + jnp.diag(beside), unit, assume_a="pos")
    )(own, diagonal)

    def product(matrices: jax.Array, v: jax.Array) -> jax.Array:
        return (matrices * v[:, None, :]).sum(-1)

    change, _ = jax.scipy.sparse.linalg.cg(
        lambda v: product(own, v) - shared(v) + couple(v),
        -gradient,
        M=lambda v: product(inverse, v),
        maxiter=_CG_STEPS,
    )
    return change.reshape(knots.shape)


def _keeping(
    knots: Float[Array, "N P 2"], before: Float[Array, "N P 2"]
) -> tuple[Float[Array, "N Q"], Float[Array, "N Q Q"]]:
    """Returns gradient and curvature of the penalty on leaving the previous frame's path."""
    moved, before = (
        jnp.einsum("kp,npc->nkc", at, path)
        for at, path in ((_MOVED, knots), (_MOVED_BEFORE, before))
    )
    known = jnp.any(before != 0, axis=(1, 2))
    e = moved - before
    length = jnp.sqrt((e**2).sum(-1) + 1e-12)  # Unlike a norm, it has a gradient at zero.
    weight = KEEP * known[:, None] / (1 + length) ** 2  # of |e|^2 / 2
    gradient = jnp.einsum("nk,kp,nkc->npc", weight, _MOVED, e)
    curvature = jnp.einsum("nk,kp,kq->npq", weight, _MOVED, _MOVED)
    return gradient.reshape(len(knots), -1), jnp.kron(curvature, jnp.eye(2))


def _mean(each: Float[Array, "N ..."], inside: Float[Array, " N"]) -> Float[Array, ...]:
    """Returns the mean of the tiles that count."""
    return jnp.tensordot(inside, each, 1) / inside.sum()


def _coupling(
    flat: Float[Array, "N Q"], shape: tuple[int, int], smooth: float, inside: Float[Array, " N"]
) -> tuple[Callable[[jax.Array], jax.Array], Float[Array, "N Q"]]:
    """Returns the neighbour penalty as a reweighted quadratic form, and the form's diagonal."""
    grid, counts = flat.reshape(*shape, -1), inside.reshape(*shape, 1)
    weights = []
    for axis in (0, 1):
        d = jnp.abs(jnp.diff(grid, axis=axis))
        # The frame is apart from what is beyond.
        both = 1 - jnp.abs(jnp.diff(counts, axis=axis))
        weights.append(both * smooth * (2 + d) / (1 + d) ** 2)  # (d^2 / (1 + d))' / d

    def scatter(parts: list[jax.Array], sign: float) -> jax.Array:
        total = jnp.zeros_like(grid)
        for axis, part in enumerate(parts):
            before, after = [(0, 0)] * 3, [(0, 0)] * 3
            before[axis], after[axis] = (1, 0), (0, 1)
            total = total + jnp.pad(part, before) + sign * jnp.pad(part, after)
        return total.reshape(flat.shape)

    def couple(v: jax.Array) -> jax.Array:
        field = v.reshape(grid.shape)
        return scatter([w * jnp.diff(field, axis=a) for a, w in enumerate(weights)], -1.0)

    return couple, scatter(weights, 1.0)


def damping(curvature: Float[Array, "*N Q Q"]) -> Float[Array, "*N Q Q"]:
    """Returns what is added to a curvature, so that tiles without texture stay in place."""
    mean = jnp.trace(curvature, axis1=-2, axis2=-1) / curvature.shape[-1]
    return _DAMPING * (mean + 1e-3)[..., None, None] * jnp.eye(curvature.shape[-1])


def shake_weight(mean: Float[Array, "P 2"]) -> Float[Array, ""]:
    """Returns w, the weight of the bend of the mean path: 1 where that is a cubic.

    r is the least mean square of its fourth differences along a direction, and _ALONG of the most.
    """
    bend = jnp.einsum("kp,pc->kc", np.diff(_AT_KNOTS, 4, axis=0), mean)
    (yy, xx), yx = (bend**2).mean(0), bend.prod(1).mean()
    apart = jnp.sqrt((yy - xx) ** 2 + 4 * yx**2 + 1e-12)  # Unlike a norm, it has a gradient at 0.
    least, most = 0.5 * (yy + xx - apart), 0.5 * (yy + xx + apart)
    return 1 / (1 + (least + _ALONG * most) / SHAKE)


def stiffness(order: int, weight: float) -> Float[np.ndarray, "Q Q"]:
    """Returns the Hessian of the penalty on the knots' squared differences of an order.

    ``weight`` is in nats per frequency and squared pixel.
    """
    d = np.diff(np.eye(len(KNOTS)), order, axis=0)[:, FREE]
    return np.kron(2 * weight * d.T @ d, np.eye(2)).astype(np.float32)
