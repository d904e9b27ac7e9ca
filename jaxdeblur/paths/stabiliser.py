"""Finds the motion that a stabiliser took from a frame: a shift and turn that all tiles share.

A stabilised video shows the camera's path minus a smooth correction, frame by frame, so what is
seen to move no longer tells how long the blur is. Frame j was cut from the camera's image at w_j:

    K_j(f) = mean over t of exp(-2 pi i f.(p(t) - w_j - o_j)),    w_0 = 0

The camera's path differs from the apparent one by the swing S, whose numbers are those of a path
(path.py) and, behind them, w_-1 and w_1, each as a shift in pixels (y, x) and as a turn about the
middle of the frame. The search takes three steps, on the tiles richest in texture:

1. L of the middle frame alone, with a straight path: a grid of velocities, close ones at full
   size, where a blur of a few pixels has its first zero, far ones at half size. Two frames more
   would say less: errors of their displacements outweigh the blur.
2. The same, finer, around the best ones.
3. Gauss-Newton on S from each of these and from its reversal, on all three frames.

L's spectrum depends on the radius alone, so the search prefers blur along the edges of a building
that stands still. Whether the video is stabilised, the zeros of the middle frame's blur tell, with
texture that may have a direction (whittle.py): the evidence E is by how much the velocity found
explains tiles better than blur along what is seen to move, and than none,

    E = mean over i of min over d of L_i(d u_i) - L_i(.9 v_i)

where v_i is the velocity of tile i that was found, u_i the one that is seen, fitted likewise, and d
any duty cycle, 0 among them.

Source of the model: stabilisation crops each frame from a larger image; the search is ours.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.images import halved
from jaxdeblur.paths.fit import (
    LONE_BEND,
    Stage,
    damping,
    first_fit,
    refitted,
    stiffness,
)
from jaxdeblur.paths.likelihood import (
    FULL_SIZE_BANDS,
    Fit,
    Likelihood,
    likelihood,
)
from jaxdeblur.paths.path import (
    FREE,
    KNOTS,
    exposures,
    with_shifts,
)
from jaxdeblur.paths.tiles import over_tiles
from jaxdeblur.paths.velocities import KEPT, STABILISED_DUTY, Seen, candidates, velocity_of, view
from jaxdeblur.paths.whittle import power_of, transfer, values_of

MOST_SIDE = 600
"""Pixels: frames are halved until their shorter side has no more, so that a velocity is found in
proportion to the frame."""

TIMES = np.concatenate([KNOTS[FREE], [-1.0, 1.0]]).astype(np.float32)
"""The times of the numbers of a swing: a constant velocity is this multiple of it."""

_SINGLE = *np.linspace(0, 0.75, 4), STABILISED_DUTY, 1.1
_SHUTTERS = np.array(
    [*((duty, 0) for duty in _SINGLE), (STABILISED_DUTY, 1), (1.1, 1.25)], np.float32
)
"""Duty cycles of what a stabilised camera is compared with, and distances of two exposures, in
frames: sharp; blurred along what is seen to move, also in 24 frames a second that are shown as 30;
blended from neighbours, and from such frames."""

_STAGES = tuple(map(Stage, FULL_SIZE_BANDS, (4, 5)))
_PINNED = 1e4  # Nats per frequency and squared pixel: what keeps a shift at zero.
_WORST = 3.0  # Nats per frequency: a tile's part in choosing among fitted swings.
_ARM = 128.0  # Pixels: a turn is fitted as the shift that it makes at this distance.
_ENOUGH, _UNLIKELY = 1.5, 0.1
"""Frames and nats per frequency: the search ends once so many frames on average prefer a stabiliser
by less."""

EVIDENT = 0.008
"""Nats per frequency, of E: what makes a video stabilised and blurred (docs/lab/paths.md). The
search ends as well once the sum over frames speaks as much against it."""

_COMPARED = 2.5
"""Frames that are looked at for two blended exposures, if the video is not stabilised. Of 24 frames
a second shown as 30, one in five is no blend, and two hardly are."""

_DUTIES = np.linspace(0.3, 1.1, 17, dtype=np.float32)
"""Of what is seen to move, in E. A stabilised camera's velocity could make up for wider gaps."""

_BLENDED = 0.25  # Nats per frequency, by which two exposures explain a blended frame better.


def swing_of(velocity: Float[Array, "*k 2"]) -> Float[Array, "*k 8 3"]:
    """Returns the swing of a constant velocity, without a turn."""
    flat = jnp.asarray(TIMES)[:, None] * velocity[..., None, :]
    return jnp.concatenate([flat, jnp.zeros((*flat.shape[:-1], 1))], -1)


def fitted(
    seen: Seen,
    swings: Float[Array, "k 8 3"],
    shutters: Float[Array, "k 2"],
    free: Float[Array, " k"],
    used: tuple[Int[Array, ""] | int, Int[Array, ""] | int],
) -> tuple[Float[Array, "k 8 3"], Float[Array, "k n"]]:
    """Fits swings to three frames by Gauss-Newton: step 3.

    Args:
      seen: the tiles.
      swings: where to start.
      shutters: the duty cycle of each, and the distance of two blended exposures.
      free: 1 where the frames may be shifted, 0 where they show what the camera saw.
      used: the first of them that is fitted, and the first after it that is not. L of the others
        is infinite.

    Returns:
      The swings, and L of each tile before the last step.
    """
    # A turn is fitted as the shift that it makes at _ARM, so that all numbers are pixels.
    units = jnp.array([1.0, 1.0, 1 / _ARM])

    def one(i: Int[Array, ""], done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        basis = with_shifts(exposures(*shutters[i]))
        swing, spectra = swings[i] / units, first_fit(seen.start, seen.fine.present)
        values = jnp.zeros(len(seen.start))
        for stage in _STAGES:
            step = functools.partial(_step, seen, basis, free[i], stage)
            (spectra, swing), each = lax.scan(step, (spectra, swing), None, length=stage.steps)
            values = each[-1]
        return done[0].at[i].set(swing * units), done[1].at[i].set(values)

    values = jnp.full((len(swings), len(seen.start)), jnp.inf)
    made: tuple[jax.Array, jax.Array] = lax.fori_loop(*used, one, (swings, values))
    return made


def _step(
    seen: Seen,
    basis: Float[Array, "3 J 8"],
    free: Float[Array, ""],
    stage: Stage,
    carry: tuple[Fit, Float[Array, "8 3"]],
    _: None,
) -> tuple[tuple[Fit, Float[Array, "8 3"]], Float[Array, " n"]]:
    """Moves a swing by one Gauss-Newton step; returns L of each tile before it."""
    (fit, swing), count = carry, len(seen.start)
    inside, where = seen.fine.up_to(stage.top, 1)
    start = jnp.pad(seen.start, ((0, 0), (0, 2), (0, 0)))
    # How far (y, x) each tile moves by a pixel of y, of x and of the turn.
    moved = jnp.tile(jnp.eye(2), (count, 1, 1))
    moved = jnp.concatenate([moved, seen.around[..., None] / _ARM], -1)
    knots = start + jnp.einsum("ncd,pd->npc", moved, swing)
    found: Likelihood = over_tiles(
        lambda tile: likelihood(tile[0], tile[1], where, basis), (fit._replace(knots=knots), inside)
    )
    # A tile that is explained worse than most may hold something else.
    weight = 1 / (1 + jnp.maximum(found.value - jnp.median(found.value), 0.0))
    weight = weight / weight.sum()
    gradient = found.gradient.reshape(count, 8, 2)
    slope = jnp.einsum("n,npc,ncd->pd", weight, gradient, moved)
    curvature = found.curvature.reshape(count, 8, 2, 8, 2)
    of_swing = jnp.einsum("n,npcqe,ncd,nef->pdqf", weight, curvature, moved, moved)
    # The typical path bends little; its shifts are as free as the frame's cut.
    bend = np.pad(stiffness(3, LONE_BEND)[::2, ::2], (0, 2))
    typical = jnp.pad(jnp.median(start, 0), ((0, 0), (0, 1)))
    slope = (slope + bend @ (typical + swing)).ravel()
    own = of_swing.reshape(swing.size, swing.size) + jnp.kron(bend, jnp.eye(3))
    own = own + damping(own)
    pinned = np.repeat([0.0] * len(FREE) + [_PINNED] * 2, 3).astype(np.float32)
    own = own + jnp.diag(pinned * (1 - free))
    change = -jnp.linalg.solve(own, slope).reshape(swing.shape)
    swing = swing + jnp.clip(change, -stage.limit, stage.limit)
    return (refitted(fit, found, seen.fine.present), swing), found.value


class Stabiliser(NamedTuple):
    """What is known of a stabiliser so far; a leading axis holds several videos."""

    evidence: Float[Array, ""]
    """E, summed over frames. It is the camera's or the editor's, and not forgotten."""
    preferred: Float[Array, ""]
    """How much better by L a stabilised camera explains the frames than blur along what is seen to
    move: nats per frequency of the median tile, summed over frames."""
    blends: Float[Array, ""]
    """The number of frames that two blended exposures explain better than anything else."""
    frames: Float[Array, ""]
    """The number of frames that were looked at."""
    swings: Float[Array, "2 8 3"]
    """S of the last frame, and of its reversal, in pixels of a frame as it is."""
    lead: Float[Array, ""]
    """How much better the reversals explain the frames, nats per frequency, summed."""
    opening: Float[Array, "F 2 8 3"]
    """S of the first frames, found when they were looked at."""
    at: Int[Array, ""]
    """The number of frames seen since the video's start."""
    looked: Float[Array, ""]
    """The number of frames in ``opening``; -1 once they are restored."""
    given: Bool[Array, ""]
    """Whether the user says that the video is stabilised."""

    @classmethod
    def unknown(cls, opening: int, *videos: int, given: bool = False) -> Stabiliser:
        """Returns the state before the first frame, with room for the ``opening`` frames."""
        none, whole = jnp.zeros(videos), jnp.zeros(videos, jnp.int32)
        swings, first = jnp.zeros((*videos, 2, 8, 3)), jnp.zeros((*videos, opening, 2, 8, 3))
        told = jnp.full(videos, given)
        return cls(none, none, none, none, swings, none, first, whole, none, told)

    @property
    def stabilised(self) -> Bool[Array, "*videos"]:
        """Whether the video is stabilised and blurred."""
        evident = self.evidence > EVIDENT * jnp.maximum(self.frames, 1.0)
        return evident & (self.blends == 0) | self.given

    @property
    def undecided(self) -> Bool[Array, "*videos"]:
        """Whether the first frames leave it open that the video is stabilised."""
        open_still = (self.frames < _ENOUGH) | (self.preferred > _UNLIKELY * self.frames)
        return open_still & (self.evidence > -EVIDENT)

    @property
    def chosen(self) -> Float[Array, "8 3"]:
        """S of the last frame, the way round that explains the frames so far better."""
        return jnp.where(self.lead > 0, self.swings[1], self.swings[0])

    @property
    def swing(self) -> Float[Array, "8 3"]:
        """S of the last frame; zeros if the video is not stabilised."""
        return jnp.where(self.stabilised, self.chosen, 0.0)


def evidence_of(
    seen: Seen, swing: Float[Array, "8 3"], shown: Float[Array, "8 3"]
) -> Float[Array, ""]:
    """Returns E: what the zeros of the middle frame's blur say for a stabilised camera.

    Args:
      seen: the tiles.
      swing: that of a stabilised camera.
      shown: that of a camera whose motion is all seen.
    """

    def during(swing: Float[Array, "8 3"]) -> Float[Array, "n 2"]:
        turn = (swing[3] - swing[2])[2:]
        return velocity_of(seen.start) + velocity_of(swing) + turn * seen.around

    as_seen = _DUTIES[:, None] * during(shown)[:, None]
    along = jnp.concatenate([as_seen, STABILISED_DUTY * during(swing)[:, None]], 1)
    values = values_of(power_of(seen.fine), jax.vmap(jax.vmap(lambda v: transfer(v)[0]))(along))
    return (values[:, :-1].min(1) - values[:, -1]).mean()


def follow(
    luminance: Float[Array, "5 H W"],
    present: Float[Array, 5],
    known: Stabiliser,
    starts: Bool[Array, ""] | bool = False,
) -> Stabiliser:
    """Updates what is known of the stabiliser from the middle of five frames.

    Args:
      luminance: of the frames, as stored.
      present: 1 for a frame, 0 for one beyond the video's ends or a cut.
      known: what is known from previous frames.
      starts: whether a video starts with the last of these frames, perhaps again after its opening.
    """
    known = known._replace(at=jnp.where(starts, 0, known.at))
    scale = 1
    while min(luminance.shape[1:]) > MOST_SIDE:
        luminance, scale = halved(luminance), 2 * scale
    here, again = present[2] > 0, known.at < known.looked
    steady = known.stabilised
    first = (known.frames < len(known.opening)) & known.undecided
    search = here & ~again & (first | (steady & (present[1] == 0)))
    compares = search | (here & ~again & ~steady & (known.frames < _COMPARED))
    follows = here & ~again & ~search & steady
    place = jnp.minimum(known.at, len(known.opening) - 1)
    units = jnp.array([scale, scale, 1.0])  # A turn is in radians.

    def fits() -> Stabiliser:
        seen = view(luminance, present)
        typical = jnp.median(velocity_of(seen.start), 0)
        last = known.chosen / units
        warm = jnp.stack([velocity_of(last), last[4, :2]])  # As it was, and as it was to become.

        def found() -> Float[Array, "k 2"]:
            apart = jnp.concatenate([candidates(seen), warm[:1]])
            return jnp.concatenate([apart, -apart - 2 * typical])

        most, count = len(_SHUTTERS), 2 * (KEPT + 2)
        tries = lax.cond(search, found, lambda: jnp.pad(warm, ((0, count - len(warm)), (0, 0))))
        all_swings, all_values = fitted(
            seen,
            jnp.concatenate([jnp.zeros((most, 8, 3)), swing_of(tries)]),
            jnp.concatenate([_SHUTTERS, jnp.tile(jnp.array([STABILISED_DUTY, 0.0]), (count, 1))]),
            jnp.concatenate([jnp.zeros(most), jnp.ones(count)]),
            (
                jnp.where(follows, most, 0),
                most + jnp.where(search, count, jnp.where(follows, len(warm), 0)),
            ),
        )
        (as_seen, swings), (others, values) = (
            (each[:most], each[most:]) for each in (all_swings, all_values)
        )
        score = jnp.minimum(values - all_values.min(0), _WORST).mean(1)
        best = score.argmin()
        # The same way round as in the last frame.
        way = velocity_of(swings[best]) + typical
        turned = (way @ (velocity_of(known.swings[0] / units) + typical) < 0) & (known.frames > 0)
        pair = jnp.stack([best, jnp.where(search, (best + count // 2) % count, best)])
        pair = jnp.where(turned & search, pair[::-1], pair)
        both, lead = swings[pair] * units, score[pair[0]] - score[pair[1]]
        alone, two = others[: len(_SINGLE)].min(0), others[len(_SINGLE) :].min(0)
        blended = (jnp.median(alone - two) > _BLENDED) & (jnp.median(two - values[best]) < 0)
        weight = present[jnp.array([1, 3])].mean()
        shown = as_seen[_SINGLE.index(STABILISED_DUTY)]
        preferred = jnp.median(alone - values[best])
        evidence = lax.cond(search, lambda: evidence_of(seen, swings[best], shown), lambda: 0.0)
        return known._replace(
            evidence=known.evidence + jnp.where(search, weight * evidence, 0.0),
            preferred=known.preferred + jnp.where(search, weight * preferred, 0.0),
            blends=known.blends + (compares & blended),
            frames=known.frames + jnp.where(compares, weight, 0.0),
            swings=jnp.where(search | follows, both, known.swings),
            lead=known.lead + jnp.where(search, weight * lead, 0.0),
            opening=known.opening.at[place].set(both),
            looked=jnp.where(first & search & (known.looked >= 0), place + 1.0, known.looked),
        )

    after: Stabiliser = lax.cond(compares | follows, fits, lambda: known)
    after = after._replace(swings=jnp.where(again, known.opening[place], after.swings))
    # Beyond the opening's last frame, another scene may start.
    spent = again & (known.at + 1 >= known.looked)
    looked = jnp.where(spent, -1.0, after.looked)
    return after._replace(at=after.at + here.astype(jnp.int32), looked=looked)


def of_tiles(
    swing: Float[Array, "8 3"], around: Float[Array, "N 2"]
) -> tuple[Float[Array, "N P 2"], Float[Array, "N 3 2"]]:
    """Returns what a swing adds to the path of each tile, and how far it shifts the three frames.

    Both are in pixels, as the swing's shifts and ``around`` (octave.py) are.
    """
    whole = swing[None, :, :2] + swing[None, :, 2:] * around[:, None]
    shifts = jnp.stack([whole[:, -2], jnp.zeros_like(whole[:, 0]), whole[:, -1]], 1)
    return whole[:, : len(FREE)], shifts
