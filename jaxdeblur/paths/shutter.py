"""Estimates a video's shutter, its duty cycle and light, from the likelihood as frames arrive.

The likelihood with a fitted spectrum reveals the length of the exposure, on which the zeros of the
transfer functions depend. The light, as stored or linear, is the one that explains the blur better.
Slow tiles are evaluated at full size, where their zeros lie. A video has one duty cycle and light,
so evidence is summed over frames. That on the duty cycle is forgotten slowly, so that changes are
followed; the light is the camera's, and its evidence is kept.

``L_i(g, d)`` is L of tile i (likelihood.py), fitted to frames to the power of g, one of LIGHTS, for
the duty cycle d, one of DUTIES. ``l_i(g, d) = L_i(g, d) - min over d' of L_i(g, d')`` is what
speaks against d. A frame adds, with the weights c_i,

    E(g, d) <- .9 E(g, d) + sum_i c_i l_i(g, d)
    V(g, d) <- .9 V(g, d) + sum_i c_i min(l_i(g, d), .15)
    W(g, d) <- .9 W(g, d) + sum_i c_i min(z_i(g, d), .02)
    N       <- .9 N + sum_i c_i
    S_k(d)  <- S_k(d) + sum_i c_i a_i(d)^k,    k = 1, 2
    a_i(d)  =  [L_i(G, 0) - L_i(G, d)] - [L_i(1, 0) - L_i(1, d)],    G = GAMMA

z_i is what speaks against d by the zeros of the middle frame's blur alone, along the path fitted
for d, with texture that may have a direction (whittle.py); 0 of a tile faster than FAST.

c_i is the share of the tile's texture that moves, a quarter of it in a frame with one neighbour,
and 0 of a tile that hardly moves. Light is linear (g = GAMMA, else 1) if

    S_1(d) > 2 sqrt(S_2(d)) at the d that minimises E(1, d) + E(G, d)

that is, by two standard errors of a sum. The duty cycle is at the vertex of the parabola through
the three values of ``V(g, d) / .15 + W(g, d) / .02 + .1 (d - .9)^2`` about the least one: either
likelihood gives a tile one vote. Three frames say more where paths are long and bent, zeros where
the exposure is short. The gate (gate.py) uses

    b = [E(g, 0) - min_d E(g, d)] / (N + 6)          for an open shutter
    q = min_d V(g, d) / N                            among tiles
    l = [min over d > 1/2 of V(1, d) - V(1, 0)] / N  for sharp frames against long exposures
    w = [min(U(0), U(1/4)) - U(d)] / (N + 6)         for a short exposure, d = .4 its likeliest

where N is at least 1 in q and l, and U = V(g, d) / .15 + W(g, d) / .02; w is 0 if the likeliest
exposure is longer.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.images import GAMMA, LUMA, power
from jaxdeblur.paths import motion
from jaxdeblur.paths.fit import (
    LONE_BEND,
    Stage,
    first_fit,
    fit_tiles,
    stiffness,
)
from jaxdeblur.paths.likelihood import (
    FULL_SIZE_BANDS,
    HALF_SIZE_BANDS,
    Observed,
    observed,
    texture,
)
from jaxdeblur.paths.path import USUAL_DUTY, exposures, through
from jaxdeblur.paths.tiles import REACH
from jaxdeblur.paths.whittle import PATCH, power_of, power_through, values_of

DUTIES = np.append(0.0, np.linspace(0.25, 1, 6)).astype(np.float32)
"""The candidate duty cycles; 0 is a sharp frame."""

LIGHTS = (1.0, GAMMA)
"""Exponents that convert stored values to those that the exposure averaged."""

TILES = 12
"""The number of moving tiles, those richest in texture, that provide a frame's evidence."""

LEAST_MOTION = 2.0
"""Pixels per frame: slower tiles carry no information on the exposure."""

SLOW = 5.0
"""Pixels per frame: slower tiles' transfer functions have their zeros in the finest detail."""

FAST = PATCH / 4
"""Pixels per frame: the zeros of faster tiles lie closer than the main lobe of a patch's window."""

_PRIOR_WEIGHT = 0.1  # Votes: for USUAL_DUTY if nothing moves, negligible otherwise.
_FORGET = 0.9
_MOST, _MOST_ZEROS = 0.15, 0.02  # Nats per frequency, at most, in a tile's vote of V and W.
_STANDARD_ERRORS = 2.0  # The lead that linear light needs.
_DOUBT = TILES / 2  # Tiles assumed to be sharp before there is evidence.
_INCOMPLETE = 0.25  # The weight of a frame at the ends of a video, which has one neighbour.
_STAGES = tuple(map(Stage, HALF_SIZE_BANDS, (3, 2, 1)))
_FINE_STAGES = tuple(map(Stage, FULL_SIZE_BANDS, (2, 3)))


class Shutter(NamedTuple):
    """What is known of the shutter so far."""

    costs: Float[Array, "2 D"]
    """E: L of each light and duty minus the best duty's, summed over tiles and slowly forgotten."""
    votes: Float[Array, "2 D"]
    """V: the same with each tile's part limited, so that no tile overrules the others."""
    zeros: Float[Array, "2 D"]
    """W: likewise, by the zeros of the middle frame's blur."""
    apart: Float[Array, "2 D"]
    """S_1 and S_2: how much more an open shutter explains in linear light than as stored, summed
    over all tiles so far, and its squares. Not forgotten."""
    tiles: Float[Array, ""]
    """N: the weighted number of tiles, forgotten like ``votes``."""

    @classmethod
    def unknown(cls, *videos: int) -> Shutter:
        """Returns the state before the first frame; for several videos, with that leading axis."""
        nothing = jnp.zeros((*videos, len(LIGHTS), len(DUTIES)), jnp.float32)
        return cls(nothing, nothing, nothing, nothing, jnp.zeros(videos, jnp.float32))

    def add(
        self,
        seen: Float[Array, "2 N D"],
        counts: Float[Array, " N"],
        zeros: Float[Array, "2 N D"] | None = None,
    ) -> Shutter:
        """Adds a frame's evidence.

        Args:
          seen: L of its tiles for each light and duty.
          counts: their weights.
          zeros: L by the zeros of the middle frame alone; None if they tell nothing.
        """
        zeros = jnp.zeros_like(seen) if zeros is None else zeros
        over, beyond = (each - each.min(-1, keepdims=True) for each in (seen, zeros))
        stored, linear = seen[..., :1] - seen
        apart = jnp.stack([linear - stored, (linear - stored) ** 2])
        costs, votes, by_zeros, sums = (
            jnp.einsum("lnd,n->ld", each, counts)
            for each in (over, jnp.minimum(over, _MOST), jnp.minimum(beyond, _MOST_ZEROS), apart)
        )
        return Shutter(
            _FORGET * self.costs + costs,
            _FORGET * self.votes + votes,
            _FORGET * self.zeros + by_zeros,
            self.apart + sums,
            _FORGET * self.tiles + counts.sum(),
        )

    @property
    def blurred(self) -> Float[Array, ""]:
        """b: how much better an open shutter explains the video than sharp frames.

        In nats per frequency and tile.
        """
        chosen = self.costs[self.linear.astype(int)]
        return (chosen[0] - chosen.min()) / (self.tiles + _DOUBT)

    @property
    def sharp_lead(self) -> Float[Array, ""]:
        """l: by how much a tile's vote prefers sharp frames to exposures of over half the period.

        Where tiles contradict each other, a long exposure explains them better than sharp frames
        do, though no exposure explains all.
        """
        votes = self.votes[0] / jnp.maximum(self.tiles, 1.0)
        return votes[np.flatnonzero(DUTIES > 0.5)].min() - votes[0]

    @property
    def disputed(self) -> Float[Array, ""]:
        """q: the mean vote of a tile against the likeliest duty, in nats per frequency."""
        return self._chosen.min() / jnp.maximum(self.tiles, 1.0)

    @property
    def linear(self) -> Bool[Array, ""]:
        """Whether frames were averaged in linear light.

        Tiles must agree: a few bright objects give strong but contradictory evidence.
        """
        sums, squares = self.apart[:, self.costs.sum(0).argmin()]
        return sums > _STANDARD_ERRORS * jnp.sqrt(squares)

    @property
    def duty(self) -> Float[Array, ""]:
        """The likeliest share of the period that the shutter is open, at a parabola's vertex."""
        chosen = self._both + _PRIOR_WEIGHT * (jnp.asarray(DUTIES) - USUAL_DUTY) ** 2
        least = jnp.argmin(chosen)
        around = jnp.clip(least, 1, len(DUTIES) - 2) + jnp.arange(-1, 2)
        x, y = jnp.asarray(DUTIES)[around], chosen[around]
        slopes = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
        bend = (slopes[1] - slopes[0]) / (x[2] - x[0])
        vertex = 0.5 * (x[0] + x[1]) - 0.5 * slopes[0] / jnp.maximum(bend, 1e-6)
        return jnp.clip(jnp.where(bend > 1e-6, vertex, jnp.asarray(DUTIES)[least]), 0.2, 1.0)

    @property
    def short_lead(self) -> Float[Array, ""]:
        """w: by how many votes a tile prefers an exposure of less than half the period to a shorter
        one and to none; 0 if the likeliest one is longer."""
        least = 2 + jnp.argmin(self._both[2:])
        lead = (self._both[:2].min() - self._both[least]) / (self.tiles + _DOUBT)
        return jnp.where(jnp.asarray(DUTIES)[least] < 0.5, lead, 0.0)

    @property
    def _chosen(self) -> Float[Array, " D"]:
        return self.votes[self.linear.astype(int)]

    @property
    def _both(self) -> Float[Array, " D"]:
        return self._chosen / _MOST + self.zeros[self.linear.astype(int)] / _MOST_ZEROS


def richest(
    seen: Observed, speed: Float[Array, " N"], moving: Float[Array, " N"]
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """Returns the moving tiles with the most texture, as stored, and their weights.

    ``speed`` is in pixels per frame, ``moving`` the share of their texture that moves.
    """
    moves = (speed > LEAST_MOTION) & (speed < REACH)
    score, chosen = lax.top_k(jnp.where(moves, moving * texture(seen), 0.0), min(TILES, len(speed)))
    complete = seen.present[chosen].min(1) > 0
    return chosen, (score > 0) * moving[chosen] * jnp.where(complete, 1.0, _INCOMPLETE)


def likelihoods_by_duty(
    knots: Float[Array, "n P 2"], seen: Observed, fine: Observed, slow: Bool[Array, " n"]
) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
    """Returns L of tiles for each of DUTIES, from fine detail for slow tiles, and by zeros alone.

    Args:
      knots: their initial paths.
      seen: their patches at half size, under the light model being tested.
      fine: the same at full size.
      slow: which tiles move less than SLOW.
    """

    stiff = stiffness(3, LONE_BEND)

    def of(duty: Float[Array, ""]) -> tuple[Float[Array, " n"], Float[Array, "n F"]]:
        first, alone, basis = first_fit(knots, seen.present), (len(knots), 1), exposures(duty)
        fit = functools.partial(fit_tiles, shape=alone, basis=basis, smooth=0.0, stiff=stiff)
        coarse, value = fit(first, seen, stages=_STAGES)

        def finer() -> tuple[Float[Array, " n"], Float[Array, "n P 2"]]:
            found, value = fit(coarse, fine, stages=_FINE_STAGES, scale=1)
            return value, found.knots

        close, at = lax.cond(slow.any(), finer, lambda: (value, coarse.knots))
        path = basis[1] @ jnp.where(slow[:, None, None], at, coarse.knots)
        return jnp.where(slow, close, value), jax.vmap(power_through)(path)

    values, through = lax.map(of, jnp.asarray(DUTIES))
    zeros = values_of(power_of(fine), jnp.swapaxes(through[1:], 0, 1))  # The first is 0.
    return values.T, zeros


@jax.default_matmul_precision("float32")  # As in motion.py.
def watch(
    frames: Float[Array, "5 H W 3"],
    moves: Float[Array, "N 4 2"],
    present: Float[Array, 5],
    still: Float[Array, "H W"],
    shutter: Shutter,
    observe: Array,
) -> Shutter:
    """Updates what is known of the shutter from the middle of five frames.

    A frame out of turn is used if it may tell more than all before: where little moves, that would
    take longer than the rest of the restoration, and add little.

    Args:
      frames: as stored, in [0, 1].
      moves: from ``moves_of``.
      present: 1 for a frame, 0 for one beyond the video's ends or a jump, which is ignored.
      still: from ``motion.still_of``.
      shutter: what is known from previous frames.
      observe: whether it is this frame's turn, a bool.
    """

    def with_this() -> Shutter:
        light = frames[1:4] @ LUMA
        # Small frames have large tiles here, too: fine ones carry too little information.
        small = motion.is_small(*frames.shape[1:3])
        tiling = motion.tiling_of(frames.shape[1:3], motion.CLOSE if small else motion.COARSE)
        found = motion.moves_of(frames, tiling) if small else moves
        speed, start = motion.speed_of(found, present), through(found, present)
        # Not moved inward, which underestimates the duty more often.
        offsets = motion.offsets_of(start)
        # The same tiles in each light, since others would explain more or less.
        moving = motion.moving_share(light[1], still, tiling)
        chosen, counts = richest(observed(light, tiling, offsets, present), speed, moving)
        of_less = tiling._replace(n=tiling.size)  # At full size twice as fast, and as good.
        slow = (speed[chosen] < SLOW) & (counts > 0)

        def told(gamma: Float[Array, ""]) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
            seen, fine = (
                observed(power(light, gamma), tiling, offsets, present, only=chosen, scale=scale)
                for tiling, scale in ((tiling, 2), (of_less, 1))
            )
            return likelihoods_by_duty(start[chosen], seen, fine, slow)

        by_frames, by_zeros = lax.map(told, jnp.array(LIGHTS))
        resolved = (speed[chosen] < FAST)[:, None]
        return shutter.add(by_frames, counts, jnp.where(resolved, by_zeros, 0.0))

    moving = motion.speed_of(moves, present) > LEAST_MOTION

    def most() -> Float[Array, ""]:
        tiling = motion.tiling_of(frames.shape[1:3])
        share = motion.moving_share(frames[2] @ LUMA, still, tiling)
        return lax.top_k(moving * share, min(TILES, len(share)))[0].sum()

    more = lax.cond(moving.any() & (shutter.tiles < TILES), most, lambda: jnp.float32(0))
    asked = moving.any() & (observe | (more > shutter.tiles))
    known: Shutter = lax.cond(asked, with_this, lambda: shutter)
    return known
