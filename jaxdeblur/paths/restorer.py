"""PathRestorer: restores frames by their blur paths, on top of a network's result.

A frame's paths are estimated from its neighbours, and nothing in them is learnt (estimate.py).
Where the gate does not trust them, the result is the base: the frame as a network restores it, or
the blurred frame. A second network may combine the two (models/path_maps.py). The last frame, as
the gate left it, helps to restore the next (prior.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.errors import UserError
from jaxdeblur.models.explanation import Explanation
from jaxdeblur.models.path_maps import gated
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.paths.estimate import WINDOW
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.windows import EVERY, FIRST, PathsConfig, Told, tell, watch_clips
from jaxdeblur.shapes import Clip, Frame

StepOf: TypeAlias = Callable[
    [VideoRestorer, State, Frame, bool | Bool[Array, ""]], tuple[State, Frame]
]

LOOKAHEAD = WINDOW // 2


class StreamState(NamedTuple):
    """The state of a stream."""

    frames: Clip
    """The last four frames, oldest first."""
    present: Float[Array, 4]
    """1 for each of these that belongs to the video, else 0."""
    shutter: Shutter
    """What is known of each video's shutter."""
    seen: Int[Array, ""]
    """The number of frames processed, including those of the opening."""
    looking: Bool[Array, ""]
    """Whether frames are only looked at, to find the shutter, and not restored."""
    base: State
    """The state of the base."""
    fusion: State
    """The state of the second network."""
    last: Frame
    """The previous frame, as the gate left it."""


class PathRestorer(VideoRestorer):
    """Restores frames by their paths, on top of a network (``base``) or of the blurred frames.

    Args:
      config: of the paths.
      base: the network that restores the base; None for the blurred frames.
      fusion: makes frames from the maps of models/path_maps.py; None for the gate alone.

    Raises:
      UserError: the base's look-ahead is not two frames, or that of ``fusion`` is not zero.
    """

    lookahead = LOOKAHEAD

    def __init__(
        self,
        config: PathsConfig,
        base: VideoRestorer | None = None,
        fusion: VideoRestorer | None = None,
    ) -> None:
        if fusion is not None and fusion.lookahead:
            raise UserError(
                f"a network over paths must not look ahead, but looks {fusion.lookahead} frames"
            )
        if base is not None and base.lookahead != LOOKAHEAD:
            raise UserError(f"a base must look {LOOKAHEAD} frames ahead, not {base.lookahead}")
        self.config = config
        self.opening = EVERY if config.asks else 0
        self.base = base
        self.fusion = fusion
        self.multiple = math.lcm(*(net.multiple for net in (base, fusion) if net is not None))

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        base, fusion = (
            () if net is None else net.initial_state(batch, height, width)
            for net in (self.base, self.fusion)
        )
        return StreamState(
            jnp.zeros((batch, WINDOW - 1, height, width, 3), jnp.float32),
            jnp.zeros(WINDOW - 1, jnp.float32),
            Shutter.unknown(batch),
            jnp.int32(0),
            jnp.bool_(False),
            base,
            fusion,
            jnp.zeros((batch, height, width, 3), jnp.float32),
        )

    def _step(
        self, state: StreamState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[StreamState, Frame]:
        return self.step_over(VideoRestorer.step, state, frame, repeated)

    def step_over(
        self,
        step_of: StepOf,
        state: StreamState,
        frame: Frame,
        repeated: Array,
        below: Float[Array, "B Hp Wp 3"] | None = None,
    ) -> tuple[StreamState, Frame]:
        """Runs ``step`` with the networks stepped by ``step_of``.

        Args:
          step_of: runs one step of a network, on the whole frame or in tiles.
          state: of the stream.
          frame: B H W 3, in [0, 1], of any size.
          repeated: whether the video has ended and its last frame is passed again.
          below: the base's result for the padded frame, if the caller steps the base; None steps it
            here.
        """
        height, width = frame.shape[1:3]
        frame = self.pad(frame)
        frames = jnp.concatenate([state.frames, frame[:, None]], 1)
        present = jnp.append(state.present, jnp.where(repeated, 0.0, 1.0))
        moves, shutter = watch_clips(self.config, frames, present, state.shutter, state.seen)
        here = present[LOOKAHEAD] > 0  # Before the first frame, no state is kept.

        def restore() -> tuple[State, State, Frame, Frame]:
            base, shown = state.base, frames[:, LOOKAHEAD]
            if below is not None:
                shown = below
            elif self.base is not None:
                base, shown = step_of(self.base, base, frame, repeated)
            if moves is None:
                return base, state.fusion, state.last, shown
            maps = tell(self.config, frames, moves, present, shutter, shown, state.last).maps
            last = gated(maps)
            fusion, restored = state.fusion, last
            if self.fusion is not None:
                fusion, restored = step_of(self.fusion, fusion, maps, jnp.bool_(False))
                fusion = jax.tree.map(functools.partial(jnp.where, here), fusion, state.fusion)
            # A frame without neighbours has no path.
            alone = present[LOOKAHEAD - 1] + present[LOOKAHEAD + 1] == 0
            last = jnp.where(here, last, state.last)
            return base, fusion, last, jnp.where(alone, shown, restored)

        def look() -> tuple[State, State, Frame, Frame]:
            return state.base, state.fusion, state.last, jnp.zeros_like(frame)

        base, fusion, last, restored = lax.cond(state.looking, look, restore)
        seen = state.seen + here.astype(int)
        kept = state._replace(
            frames=frames[:, 1:],
            present=present[1:],
            shutter=shutter,
            seen=seen,
            base=base,
            fusion=fusion,
            last=last,
        )
        return kept, restored[:, :height, :width]

    def look(self, state: StreamState) -> StreamState:
        """Returns the state in which steps look for the shutter and restore no frames."""
        return state._replace(looking=jnp.bool_(True))

    def looked(self, state: StreamState) -> StreamState:
        """Returns the state before the first frame, with the shutter known."""
        return state._replace(
            frames=jnp.zeros_like(state.frames),
            present=jnp.zeros_like(state.present),
            seen=jnp.full_like(state.seen, self.opening),
            looking=jnp.bool_(False),
        )

    def _restore_clip(self, clip: Clip) -> Clip:
        below, told = self._tell_clip(clip)
        if told is None:
            return below
        return gated(told.maps) if self.fusion is None else self.fusion.restore_clip(told.maps)

    def explain_clip(self, clip: Clip) -> Explanation:
        """Returns the gate and the paths of every frame, and nothing from the networks."""
        _, told = self._tell_clip(self.pad(clip))
        return Explanation() if told is None else Explanation(gate=told.gate, paths=told.paths)

    def _tell_clip(self, clip: Clip) -> tuple[Clip, Told | None]:
        """Returns the base of every frame, and the results of its paths."""
        length = clip.shape[1]
        below = clip if self.base is None else self.base.restore_clip(clip)
        if length == 1:  # A frame without neighbours has no path.
            return below, None
        ends = [(0, 0), (LOOKAHEAD, LOOKAHEAD), *[(0, 0)] * 3]
        padded = jnp.pad(clip, ends)
        inside = jnp.pad(jnp.ones(length), LOOKAHEAD)
        # The shutter, unless given, is found first: from the opening, or all of a shorter video.
        looks = 0 if not self.opening else length if length < self.opening else FIRST
        times = jnp.concatenate([jnp.arange(looks), jnp.arange(length)])
        looking = jnp.arange(len(times)) < looks
        seen = times + jnp.where(looking, 0, self.opening)

        def step(
            known: tuple[Shutter, Frame], of: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[tuple[Shutter, Frame], Told | None]:
            (shutter, last), (t, seen, looking) = known, of
            frames = lax.dynamic_slice_in_dim(padded, t, WINDOW, 1)
            present = lax.dynamic_slice_in_dim(inside, t, WINDOW)
            moves, shutter = watch_clips(self.config, frames, present, shutter, seen)
            if moves is None:
                return (shutter, last), None

            def restore() -> Told:
                return tell(self.config, frames, moves, present, shutter, below[:, t], last)

            def look() -> Told:
                shapes: Told = jax.eval_shape(restore)
                return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

            told: Told = lax.cond(looking, look, restore)
            return (shutter, gated(told.maps)), told

        nothing = Shutter.unknown(len(clip)), jnp.zeros_like(clip[:, 0])
        _, told = lax.scan(step, nothing, (times, seen, looking))
        return below, jax.tree.map(lambda leaf: jnp.moveaxis(leaf[looks:], 0, 1), told)

    def shutter_of(self, state: StreamState) -> tuple[float, str] | None:
        """Returns duty and light of a stream's first video, as found so far or as given.

        Without moving tiles nothing was found, and it returns None.
        """
        known = jax.tree.map(lambda leaf: leaf[0], state.shutter)
        if self.config.asks and not float(known.tiles):
            return None
        found = "linear" if float(known.linear) > 0 else "stored"
        light = found if self.config.light == "found" else self.config.light
        return self.config.duty or round(float(known.duty), 3), light
