"""The shutter of a video: its duty cycle and its light, read off the likelihood as frames come.

The likelihood with a fitted spectrum tells how long the exposure was, since the zeros of the
transfer functions lie elsewhere for each. Averaged as stored or in linear light: the kind that
explains the blur better. Both are one for a video, so evidence is added up, and forgotten slowly,
so that a change is followed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdeblur.data.exposure import GAMMA
from jaxdeblur.paths.fit import Stage, first_fit, fit_paths
from jaxdeblur.paths.likelihood import Band, Observed
from jaxdeblur.paths.path import exposures

DUTIES = np.array([0.0, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0], np.float32)
"""The candidates; 0 is a sharp frame."""

LIGHTS = (1.0, GAMMA)
"""Exponents that take stored values to what the exposure averaged."""

TILES = 12
"""Of the richest that move, which a frame's evidence comes from."""

LEAST_MOTION = 2.0
"""Pixels a frame: what moves less tells nothing of the exposure."""

_PRIOR = 0.9  # Where nothing moves; of no account where something does.
_PRIOR_WEIGHT = 0.02  # Nats a frequency.
_FORGET = 0.9
_BEND = 0.02  # Ten times that of a fit: else a path that slows down passes for a shorter exposure.
_LINEAR_IF = 1.25  # By how much it must explain better: with bright objects it does by chance.
_INCOMPLETE = 0.25  # What a frame at the ends of a video counts, which has one neighbour.
_STAGES = (Stage(0.08, 3, 3.0), Stage(0.16, 2, 2.0), Stage(0.24, 1, 2.0))


class Shutter(NamedTuple):
    """What is known of the shutter so far."""

    evidence: Float[Array, "2 D"]
    """L of each light and duty, added up and forgotten slowly."""

    @classmethod
    def unknown(cls) -> Shutter:
        """Before the first frame."""
        return cls(jnp.zeros((len(LIGHTS), len(DUTIES)), jnp.float32))

    def add(self, evidence: Float[Array, "2 D"]) -> Shutter:
        """With the evidence of one more frame."""
        return Shutter(_FORGET * self.evidence + evidence)

    @property
    def linear(self) -> Float[Array, ""]:
        """1.0 if frames were averaged in linear light, else 0.0."""
        gain = self.evidence[:, 0] - self.evidence.min(1)
        return (gain[1] > _LINEAR_IF * gain[0] + 1e-3).astype(jnp.float32)

    @property
    def duty(self) -> Float[Array, ""]:
        """The likeliest share of the period that the shutter is open: a parabola's vertex."""
        chosen = self.evidence[self.linear.astype(int)]
        chosen = chosen + _PRIOR_WEIGHT * (jnp.asarray(DUTIES) - _PRIOR) ** 2
        middle = jnp.clip(jnp.argmin(chosen), 1, len(DUTIES) - 2)
        x = jnp.asarray(DUTIES)[middle + jnp.arange(-1, 2)]
        y = chosen[middle + jnp.arange(-1, 2)]
        slopes = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
        bend = jnp.maximum((slopes[1] - slopes[0]) / (x[2] - x[0]), 1e-9)
        vertex = 0.5 * (x[0] + x[1]) - 0.5 * slopes[0] / bend
        return jnp.clip(vertex, 0.2, 1.0)


def evidence(
    knots: Float[Array, "N P 2"],
    seen: Observed,
    motion: Float[Array, " N"],
    where: Callable[[float], Band],
    floor: float,
) -> Float[Array, " D"]:
    """The sum of L over the richest tiles that move, for each of DUTIES.

    Args:
      knots: where the paths begin.
      seen: the patches of all tiles, in the light that is tried.
      motion: pixels that each tile moves per frame.
      where: gives the band of frequencies up to one.
      floor: the least noise power.
    """
    band = where(0.16)
    texture = (seen.spectra[:, 1][..., band.rows, :][..., band.columns] ** 2).sum(1)
    texture = (texture * band.weight * np.hypot(band.fy[:, None], band.fx)).sum((-2, -1))
    moves = (motion > LEAST_MOTION) & (motion < 40.0)
    score, chosen = jax.lax.top_k(jnp.where(moves, texture, 0.0), min(TILES, len(motion)))
    knots, few = knots[chosen], jax.tree.map(lambda leaf: leaf[chosen], seen)

    def of(duty: Float[Array, ""]) -> Float[Array, ""]:
        fit = first_fit(knots, few.present)
        alone = (len(chosen), 1)
        _, value = fit_paths(
            fit, few, alone, where, exposures(duty), floor, _STAGES, smooth=0.0, bend=_BEND
        )
        complete = few.present.min(1) > 0
        return (value * (score > 0) * jnp.where(complete, 1.0, _INCOMPLETE)).sum()

    return jax.lax.map(of, jnp.asarray(DUTIES))
