"""PathRestorer: restores frames by their blur paths, on top of a network's result.

A frame's paths are fitted to its neighbours, and nothing in them is learnt (window_fit.py). The
frame is filtered along them (estimate.py). Where the gate does not trust them, the result is the
base: the frame as a network restores it, or the blurred frame. A second network may combine the two
(models/path_maps.py). The last frame, as the gate left it, helps to restore the next (wiener.py).

A stream runs the five parts of a step as separate programs (restoration/placement.py). Large frames
do without the base's finest size, three quarters of its work: the second network sees the frame at
that size, too (docs/lab/paths.md).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from jaxdeblur.errors import UserError
from jaxdeblur.models.explanation import Explanation
from jaxdeblur.models.path_maps import gated
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.models.scale_choice import ScaleChoice
from jaxdeblur.paths import self_ensemble
from jaxdeblur.paths.estimate import LEAST_SIDE, light_excess
from jaxdeblur.paths.light import Excess
from jaxdeblur.paths.motion import connected, is_small, moves_of
from jaxdeblur.paths.self_ensemble import StepOf
from jaxdeblur.paths.shutter import Shutter, watch
from jaxdeblur.paths.window_fit import WINDOW, PastPaths, fit_window
from jaxdeblur.paths.windows import (
    EVERY,
    FIRST,
    Fitted,
    OverPaths,
    PathsConfig,
    StreamState,
    Told,
    for_each,
    tell,
)
from jaxdeblur.shapes import Clip, Frame

LOOKAHEAD = WINDOW // 2


class PathRestorer(VideoRestorer):
    """Restores frames by their paths, on top of a network (``base``) or of the blurred frames.

    Args:
      config: of the paths.
      base: the network that restores the base; None for the blurred frames.
      fusion: makes frames from the maps of models/path_maps.py; None for the gate alone.

    Raises:
      UserError: the base's look-ahead is not two frames.
    """

    lookahead = LOOKAHEAD

    def __init__(
        self,
        config: PathsConfig,
        base: VideoRestorer | None = None,
        fusion: VideoRestorer | None = None,
    ) -> None:
        if base is not None and base.lookahead != LOOKAHEAD:
            raise UserError(f"a base must look {LOOKAHEAD} frames ahead, not {base.lookahead}")
        self.config = config
        self.opening = EVERY if config.asks else 0
        self.base, self.fusion = base, fusion
        self.multiple = math.lcm(*(net.multiple for net in (base, fusion) if net is not None))

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        base: Any
        start = functools.partial(self_ensemble.initial_state, batch, height, width)
        base, fusion = (() if net is None else start(net) for net in (self.base, self.fusion))
        if isinstance(self.base, ScaleChoice) and not is_small(height, width):
            base = self.base.without_finest(base)
        return StreamState(
            frames=jnp.zeros((batch, WINDOW - 1, height, width, 3), jnp.float32),
            present=jnp.zeros(WINDOW - 1, jnp.float32),
            shutter=Shutter.unknown(batch),
            seen=jnp.int32(0),
            paths=PastPaths.unknown((height, width), batch),
            looking=jnp.bool_(False),
            base=base,
            light=Excess.unknown(height, width, batch),
            filter=jnp.zeros((batch, height, width, 3)),
            fusion=fusion,
        )

    def _step(
        self, state: StreamState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[StreamState, Frame]:
        return self._step_and_tell(state, frame, repeated)[:2]

    def _step_and_tell(
        self, state: StreamState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[StreamState, Frame, Told | None]:
        """Runs the five parts of a step; if frames are only looked at, that of the fit."""
        after, fitted = self.step_fit(state, frame, repeated)

        @jax.jit  # Traced once for both branches.
        def restores() -> tuple[StreamState, Frame, Told | None]:
            step, base, below = VideoRestorer.step, state.base, None
            if self.base is not None:
                base, below = self.step_base(step, base, frame, repeated)
            light, excess = self.step_light(state.light, fitted, below)
            last, over = self.step_filter(state.filter, fitted, below, excess)
            fusion, restored = self.step_fusion(step, state.fusion, over)
            done = after._replace(base=base, light=light, filter=last, fusion=fusion)
            return done, restored, over.told

        return lax.cond(state.looking, lambda: (after, *_zeros_of(restores)[1:]), restores)

    def step_base(
        self, step_of: StepOf, state: State, frame: Frame, repeated: bool | Bool[Array, ""]
    ) -> tuple[State, Frame]:
        """Runs the base's part of a step, which can run beside the paths of the frame before.

        Args:
          step_of: runs one step of a network, on the whole frame or in tiles.
          state: of the base.
          frame: B H W 3, in [0, 1], padded.
          repeated: whether the video has ended and its last frame is passed again.
        """
        assert self.base is not None
        return self_ensemble.step(step_of, self.base, state, frame, repeated)

    def step_fit(
        self, state: StreamState, frame: Frame, repeated: bool | Array
    ) -> tuple[StreamState, Fitted]:
        """Fits paths, which can run beside the filter of the frame before.

        Only the fields ``of_fit`` of the state are used.
        """
        frames = jnp.concatenate([state.frames, frame[:, None]], 1)
        present = jnp.append(state.present, jnp.where(repeated, 0.0, 1.0))
        here = present[LOOKAHEAD] > 0  # Before the first frame, no state is kept.
        alone = present[LOOKAHEAD - 1] + present[LOOKAHEAD + 1] == 0
        seen, shutter, paths, fit = state.seen, state.shutter, state.paths, None
        if min(frames.shape[2:4]) >= LEAST_SIDE:
            moves = for_each(moves_of, frames)
            videos = frames, moves, jax.vmap(connected, (0, None))(moves, present)
            if self.config.asks:
                observe = (seen < FIRST) | (seen % EVERY == EVERY - 1)
                shutter = for_each(lambda each: watch(*each, observe), (*videos, shutter))

            @jax.jit  # Traced once for both branches.
            def fits() -> Any:
                given = self.config.given
                return for_each(lambda each: fit_window(*each, *given), (*videos, shutter, paths))

            fit = lax.cond(state.looking, lambda: _zeros_of(fits), fits)
        state = state._replace(
            frames=frames[:, 1:],
            present=present[1:],
            shutter=shutter,
            seen=seen + here.astype(int),
            paths=paths if fit is None else fit.passed_on,
        )
        return state, Fitted(frames[:, LOOKAHEAD - 1 : LOOKAHEAD + 2], fit, here, alone)

    def step_light(
        self, state: State, fitted: Fitted, below: Frame | None
    ) -> tuple[State, Excess | None]:
        """Finds what linear light added to a frame, which can run beside the filter of the last."""
        frames, fit, here, _ = fitted
        if fit is None:
            return state, None
        shown = frames[:, 1] if below is None else below
        excess = for_each(lambda each: light_excess(*each), (frames, fit, shown, state))
        of_frame = jax.tree.map(lambda leaf: leaf[:, 1], excess)
        return jax.tree.map(functools.partial(jnp.where, here), of_frame, state), excess

    def step_filter(
        self, state: State, fitted: Fitted, below: Frame | None, excess: Excess | None
    ) -> tuple[State, OverPaths]:
        """Filters a frame along its paths, over the base's result.

        Args:
          state: the last frame, restored, ``B H W 3``.
          fitted: from ``step_fit``.
          below: from ``step_base``; None without a base.
          excess: from ``step_light``.
        """
        frames, fit, here, alone = fitted
        shown = frames[:, 1] if below is None else below
        if fit is None:
            return state, OverPaths(None, shown, here, alone)
        told = for_each(lambda each: tell(*each), (frames, fit, shown, state, excess))
        return jnp.where(here, gated(told.maps), state), OverPaths(told, shown, here, alone)

    def step_fusion(self, step_of: StepOf, state: State, over: OverPaths) -> tuple[State, Frame]:
        """Runs the second network's part of a step, as ``step_base`` does the base's."""
        if over.told is None:
            return state, over.base
        restored = gated(over.told.maps)
        if self.fusion is not None:
            given = state, over.told.maps, jnp.bool_(False)
            after, restored = self_ensemble.step(step_of, self.fusion, *given)
            state = jax.tree.map(functools.partial(jnp.where, over.here), after, state)
        return state, jnp.where(over.alone, over.base, restored)

    def look(self, state: StreamState) -> StreamState:
        """Returns the state in which steps look for the shutter and restore no frames."""
        return state._replace(looking=jnp.bool_(True))

    def looked(self, state: StreamState) -> StreamState:
        """Returns the state before the first frame, with the shutter known."""
        return state._replace(
            frames=jnp.zeros_like(state.frames),
            present=jnp.zeros_like(state.present),
            shutter=state.shutter._replace(camera=state.shutter.camera.rewound()),
            seen=jnp.full_like(state.seen, self.opening),
            looking=jnp.bool_(False),
        )

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._stream(clip)[0]

    def explain_clip(self, clip: Clip) -> Explanation:
        """Returns the gate and the paths of every frame, and nothing from the networks."""
        _, told = self._stream(self.pad(clip))
        if told is None or clip.shape[1] == 1:  # A frame without neighbours has no path.
            return Explanation()
        return Explanation(gate=told.gate, paths=told.paths)

    def _stream(self, clip: Clip) -> tuple[Clip, Told | None]:
        """Passes a clip through a stream; returns its restored frames and the paths' results."""
        batch, length, height, width, _ = clip.shape
        # The shutter, unless given, is found first: from the opening, or all of a shorter video.
        looks = self.opening if length >= self.opening else length + LOOKAHEAD
        times = np.concatenate([np.arange(looks), np.arange(length + LOOKAHEAD)])
        starts = np.arange(len(times)) == looks

        def step(
            state: StreamState, at: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[StreamState, tuple[Frame, Told | None]]:
            frame, repeated, start = at
            state = jax.tree.map(functools.partial(jnp.where, start), self.looked(state), state)
            state, restored, told = self._step_and_tell(state, frame, repeated)
            return state, (restored, told)

        state = self.look(self._initial_state(batch, height, width))
        frames = jnp.moveaxis(clip, 1, 0)[np.minimum(times, length - 1)]
        given = frames, jnp.asarray(times >= length), jnp.asarray(starts)
        _, made = lax.scan(step, state, given)
        restored, told = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf[looks + LOOKAHEAD :], 0, 1), made
        )
        return restored, told


def _zeros_of(work: Callable[[], Any]) -> Any:
    """Returns zeros in the shapes of the results of ``work``."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(work))
