"""SingleFrameRestorer: restores frames one by one along the blur that each shows by itself.

A frame passes through three parts (models/parts.py):

    find     finds straight paths by the power spectra of tiles    single_frame.py
    base     restores the frame by a network
    filter   filters the frame along its paths, if they are sure   estimate.py

Without evidence, the result is the base. The paths see large frames reduced, so that a blur that
shows at the size of a screen is some pixels long; finer detail is the base's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxdeblur.images import LUMA, reduce_size, smoothstep
from jaxdeblur.models.parts import (
    FRAME,
    REPEATED,
    RESTORED,
    Part,
)
from jaxdeblur.models.path_maps import at_pixels
from jaxdeblur.models.restorer import State, StepOf, VideoRestorer
from jaxdeblur.paths.estimate import filter_tiles
from jaxdeblur.paths.fit import first_fit, refitted
from jaxdeblur.paths.light import ResponseCorrection
from jaxdeblur.paths.likelihood import (
    FULL_SIZE_BANDS,
    HALF_SIZE_BANDS,
    Fit,
    Observed,
    likelihood,
    observed,
)
from jaxdeblur.paths.motion import tiling_of
from jaxdeblur.paths.path import FREE, KNOTS, exposures
from jaxdeblur.paths.records import for_each
from jaxdeblur.paths.single_frame import SHORTEST_SIDE, SingleBlur, find
from jaxdeblur.paths.tiles import over_tiles
from jaxdeblur.paths.wiener import Prior
from jaxdeblur.paths.window_fit import WindowFit
from jaxdeblur.shapes import Clip, Frame

REDUCED_SIDE = 1100
"""Pixels: frames are halved until their shorter side has no more."""

_EVIDENT = (0.025, 0.045)
"""Nats per frequency: between these, the paths gain trust. docs/lab/single_frames.md has values of
blurred and of sharp pictures."""

_CAUTION = 2.0
"""Factor of the fitted noise-to-signal ratio: no neighbour corrects the errors of a path. Chosen on
single frames of TEST04 and TEST11, and on photographs blurred along straight paths."""

_DUTY = 1.0  # A path here is that of the exposure.
_PRESENT = np.array([0.0, 0.0, 1.0, 0.0, 0.0], np.float32)

FOUND, BASE = "found", "base"
"""What the parts give, in their order; the last one gives the restored frame."""


@dataclasses.dataclass(frozen=True)
class SingleFrameConfig:
    """The configuration of a SingleFrameRestorer.

    Attributes:
      base: of the network that restores the base.
    """

    base: Any = None


class WaitingFrames(NamedTuple):
    """The state of the part that finds blur."""

    frames: Float[Array, "B lookahead H W 3"]
    """Those that the base has not restored yet, oldest first."""
    seen: Int[Array, ""]
    """The number of frames that came in."""


class FoundBlur(NamedTuple):
    """A frame and its blur."""

    frame: Frame
    blur: SingleBlur | None
    """None for frames that are too small."""


class SingleFrameRestorer(VideoRestorer):
    """Restores each frame along the blur that it shows by itself, on top of a network.

    Args:
      config: of both.
      base: the network.
    """

    def __init__(self, config: SingleFrameConfig, base: VideoRestorer) -> None:
        self.config, self.base = config, base
        self.lookahead, self.multiple = base.lookahead, base.multiple

    def parts(self, step_of: StepOf | None = None) -> list[Part]:
        """Returns the parts, in the frame's order.

        Args:
          step_of: steps a network; by default on the whole frame.
        """
        step = functools.partial(step_of or VideoRestorer.step, self.base)
        return [
            Part("find", (FRAME,), FOUND, self._start, self._find, whole=True),
            Part("base", (FRAME, REPEATED), BASE, self.base.initial_state, step),
            Part("filter", (FOUND, BASE), RESTORED, _start_filter, _filter, whole=True),
        ]

    @property
    def context(self) -> tuple[int, int]:
        """The ``context`` of the network."""
        return self.base.context

    def spread_over(self, mesh: Mesh) -> None:
        """Passes the mesh on to the network."""
        self.base.spread_over(mesh)

    @property
    def halo(self) -> int:
        """The halo of the base; the paths always run on the whole frame."""
        return self.base.halo

    def _start(self, batch: int, height: int, width: int) -> WaitingFrames:
        return WaitingFrames(jnp.zeros((batch, self.lookahead, height, width, 3)), jnp.int32(0))

    def _find(self, state: WaitingFrames, frame: Frame) -> tuple[WaitingFrames, FoundBlur]:
        frames = jnp.concatenate([state.frames, frame[:, None]], 1)
        after, due = WaitingFrames(frames[:, 1:], state.seen + 1), frames[:, 0]
        if min(_reduced(due).shape[1:3]) < SHORTEST_SIDE:
            return after, FoundBlur(due, None)
        found = lax.cond(
            state.seen >= self.lookahead,
            lambda: for_each(lambda each: find(_reduced(each[0]) @ LUMA), (due,)),
            lambda: SingleBlur.none(len(due)),
        )
        return after, FoundBlur(due, found)

    def _restore_clip(self, clip: Clip) -> Clip:
        base = self.base.restore_clip(clip)
        if min(_reduced(clip[0]).shape[1:3]) < SHORTEST_SIDE:
            return base
        flat = [each.reshape(-1, *clip.shape[2:]) for each in (clip, base)]
        blurs = for_each(lambda each: find(_reduced(each[0]) @ LUMA), flat[:1])
        made: Clip = _filter((), FoundBlur(flat[0], blurs), flat[1])[1].reshape(clip.shape)
        return made


def trusted(blur: SingleBlur) -> Float[Array, "*B"]:
    """Returns how far a frame's blur is trusted, in [0, 1]."""
    return smoothstep(blur.evidence, *_EVIDENT)


def along_paths(
    frame: Float[Array, "H W 3"], blur: SingleBlur, base: Float[Array, "H W 3"]
) -> Float[Array, "H W 3"]:
    """Returns a frame filtered along its paths where the gate trusts these, else the base.

    Args:
      frame: as stored, in [0, 1].
      blur: from ``find`` of the frame, reduced if it is large.
      base: the frame as a network restores it.
    """

    def filtered() -> Float[Array, "H W 3"]:
        small, below = _reduced(frame), _reduced(base)
        frames, tiling = jnp.stack([small] * 3), tiling_of(small.shape[:2])
        height, width = small.shape[:2]
        correction = jax.tree.map(
            lambda leaf: jnp.zeros((3, *leaf.shape)), ResponseCorrection.unknown(height, width)
        )
        prior = Prior(below, below, jnp.float32(0))
        made = filter_tiles(frames, correction, prior, _paths(small, blur), tiling)
        share = trusted(blur) * at_pixels(made.cells[..., :1], height, width)
        return base + _enlarged(share * (made.sharp - below), frame.shape[:2])

    restored: Float[Array, "H W 3"] = lax.cond(trusted(blur) > 0, filtered, lambda: base)
    return restored


def _start_filter(batch: int, height: int, width: int) -> State:
    return ()


def _filter(state: State, found: FoundBlur, base: Frame) -> tuple[State, Frame]:
    if found.blur is None:
        return state, base
    return state, for_each(lambda each: along_paths(*each), (found.frame, found.blur, base))


@jax.default_matmul_precision("float32")  # As in motion.py.
def _paths(frame: Float[Array, "H W 3"], blur: SingleBlur) -> WindowFit:
    """Returns the tiles' paths, as those of a window, and fits their noise-to-signal ratios."""
    tiling = tiling_of(frame.shape[:2])
    places = tiling.centres + tiling.inward - np.array([tiling.height, tiling.width]) / 2
    knots = (
        jnp.asarray(KNOTS[FREE, None], jnp.float32) * blur.at(places.astype(np.float32))[:, None]
    )
    offsets, basis = jnp.zeros((len(places), 3, 2)), exposures(_DUTY)
    given = jnp.stack([frame @ LUMA] * 3), tiling, offsets, jnp.asarray(_PRESENT)
    inward = jnp.asarray(tiling.inward)
    coarse, fine = (observed(*given, inward, scale=scale) for scale in (2, 1))

    def fitted(fit: Fit, seen: Observed, top: float, scale: int, steps: int) -> Fit:
        inside, where = seen.up_to(top, scale)

        def one(each: tuple[Fit, Observed]) -> Fit:
            def step(fit: Fit, _: None) -> tuple[Fit, None]:
                found = likelihood(fit, each[1], where, basis)
                return refitted(fit, found, each[1].present), None

            done: Fit = lax.scan(step, each[0], None, length=steps)[0]
            return done

        made: Fit = over_tiles(one, (fit, inside))
        return made

    first = fitted(first_fit(knots, coarse.present), coarse, HALF_SIZE_BANDS[-1], 2, 6)
    finer = fitted(first, fine, FULL_SIZE_BANDS[-1], 1, 4)
    # The mean as in window_fit.py.
    log_nsr = 0.5 * (first.log_nsr + finer.log_nsr) + np.log(_CAUTION)
    fit = finer._replace(log_nsr=log_nsr)
    sure, one, no = jnp.ones(len(places)), jnp.float32(1), jnp.bool_(False)
    return WindowFit(
        fit, sure, offsets, jnp.asarray(_PRESENT), jnp.float32(_DUTY), no, no, one, jnp.float32(0)
    )


def _reduced(frame: Float[Array, "*leading H W 3"]) -> Float[Array, "*leading h w 3"]:
    """Returns the frame at the size that the paths see."""
    factor = 1
    while min(frame.shape[-3:-1]) > REDUCED_SIDE * factor:
        factor *= 2
    return reduce_size(frame, factor)


def _enlarged(change: Float[Array, "h w 3"], size: tuple[int, ...]) -> Float[Array, "H W 3"]:
    """Returns a change of the reduced frame at the frame's size."""
    height, width = size
    factor = -(-height // change.shape[0])
    if factor == 1:
        return change
    shape = factor * change.shape[0], factor * change.shape[1], 3
    return jax.image.resize(change, shape, "cubic")[:height, :width]
