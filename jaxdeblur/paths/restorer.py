"""PathRestorer: frames restored by their blur paths, over what a network makes of the rest.

Nothing is learnt: the paths of each frame come from its neighbours (estimate.py). Where the gate
does not trust them, the base shows: the frames that a network restores, or the blurred ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.errors import UserError
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.options import Share, check_ranges
from jaxdeblur.paths.estimate import LEAST_SIDE, WINDOW, Estimate, estimate
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.shapes import Clip, Frame

StepOfBase: TypeAlias = Callable[
    [VideoRestorer, State, Frame, Bool[Array, ""]], tuple[State, Frame]
]

LOOKAHEAD = WINDOW // 2
_FIRST, _EVERY = 6, 8  # Frames that are all asked for the shutter, and how often later ones are.


@dataclasses.dataclass(frozen=True)
class PathsConfig:
    """The fields of a PathRestorer.

    Attributes:
      base: the network whose frames show where paths are not trusted, by the name of weights that
        ship; "" for the blurred frames.
      duty: the share of the time between frames that the shutter is open, above 0 and up to 1; 0
        finds it from the video.
      light: what the camera averaged: values as they are "stored", or "linear" light; "found" finds
        it from the video.
    """

    base: str = ""
    duty: Share = 0.0
    light: Literal["found", "stored", "linear"] = "found"

    def __post_init__(self) -> None:
        check_ranges(self)


PATH_PRESETS = {"paths": PathsConfig(), "paths_dtb": PathsConfig(base="strcnn_dtb_choice")}
"""What ``--ckpt`` takes: paths alone, and over the network that ships."""


class StreamState(NamedTuple):
    """What a stream keeps."""

    frames: Clip
    """The last four frames, oldest first."""
    present: Float[Array, 4]
    """1 for each of these that is a frame of the video, else 0."""
    shutter: Shutter
    """What is known of each video's shutter."""
    restored: Int[Array, ""]
    """How many frames were."""
    base: State
    """The network's."""


class PathRestorer(VideoRestorer):
    """Restores by paths, over a network (``base``) or the blurred frames (None).

    Raises:
      UserError: the network's look-ahead is not two frames.
    """

    lookahead = LOOKAHEAD

    def __init__(self, config: PathsConfig, base: VideoRestorer | None = None) -> None:
        if base is not None and base.lookahead != LOOKAHEAD:
            raise UserError(f"a base restores {LOOKAHEAD} frames late, not {base.lookahead}")
        self.config = config
        self.base = base
        self.multiple = 1 if base is None else base.multiple

    @property
    def receptive_radius(self) -> int:
        """The whole frame, since the shutter is one for all of it."""
        return 2**16

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        base = () if self.base is None else self.base.initial_state(batch, height, width)
        unknown = Shutter.unknown()
        return StreamState(
            jnp.zeros((batch, WINDOW - 1, height, width, 3), jnp.float32),
            jnp.zeros(WINDOW - 1, jnp.float32),
            jax.tree.map(lambda leaf: jnp.tile(leaf, (batch, *[1] * leaf.ndim)), unknown),
            jnp.int32(0),
            base,
        )

    def _step(
        self, state: StreamState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[StreamState, Frame]:
        return self.step_over(VideoRestorer.step, state, frame, repeated)

    def step_over(
        self, step_of_base: StepOfBase, state: StreamState, frame: Frame, repeated: Array
    ) -> tuple[StreamState, Frame]:
        """``step`` with the network stepped by ``step_of_base``: whole, or in tiles."""
        frames = jnp.concatenate([state.frames, frame[:, None]], 1)
        present = jnp.append(state.present, jnp.where(repeated, 0.0, 1.0))
        if self.base is None:
            base, below = state.base, frames[:, LOOKAHEAD]
        else:
            base, below = step_of_base(self.base, state.base, frame, repeated)
        shutter, restored = self._restore(frames, present, state.shutter, state.restored, below)
        here = present[LOOKAHEAD].astype(int)
        after = StreamState(frames[:, 1:], present[1:], shutter, state.restored + here, base)
        return after, restored

    def _restore_clip(self, clip: Clip) -> Clip:
        length = clip.shape[1]
        below = clip if self.base is None else self.base.restore_clip(clip)
        ends = [(0, 0), (LOOKAHEAD, LOOKAHEAD), *[(0, 0)] * 3]
        padded = jnp.pad(clip, ends)
        inside = jnp.pad(jnp.ones(length), LOOKAHEAD)
        unknown = Shutter.unknown()
        first = jax.tree.map(lambda leaf: jnp.tile(leaf, (len(clip), *[1] * leaf.ndim)), unknown)

        def step(shutter: Shutter, t: Int[Array, ""]) -> tuple[Shutter, Frame]:
            frames = lax.dynamic_slice_in_dim(padded, t, WINDOW, 1)
            present = lax.dynamic_slice_in_dim(inside, t, WINDOW)
            return self._restore(frames, present, shutter, t, below[:, t])

        _, restored = lax.scan(step, first, jnp.arange(length))
        return jnp.moveaxis(restored, 0, 1)

    def _restore(
        self,
        frames: Float[Array, "B 5 H W 3"],
        present: Float[Array, 5],
        shutter: Shutter,
        count: Int[Array, ""],
        below: Frame,
    ) -> tuple[Shutter, Frame]:
        """The middle frames, their base being ``below``."""
        if min(frames.shape[2:4]) < LEAST_SIDE:
            return shutter, below
        asked = (count < _FIRST) | (count % _EVERY == 0)
        observe = asked & (present[LOOKAHEAD] > 0)
        one = self._estimate(present, observe)

        def blended(each: tuple[jax.Array, Shutter, jax.Array]) -> tuple[Shutter, jax.Array]:
            window, known, base = each
            found = one(window, base, known)
            return found.shutter, base + found.gate[..., None] * (found.sharp - base)

        return lax.map(blended, (frames, shutter, below))

    def _estimate(
        self, present: Float[Array, 5], observe: Array
    ) -> Callable[[jax.Array, jax.Array, Shutter], Estimate]:
        light, duty = self.config.light, self.config.duty
        linear = None if light == "found" else light == "linear"

        def one(window: jax.Array, base: jax.Array, shutter: Shutter) -> Estimate:
            return estimate(window, base, present, shutter, observe, duty or None, linear)

        return one

    def shutter_of(self, state: StreamState) -> tuple[float, str]:
        """Duty and light of a stream's first video: as found so far, or as given."""
        known = jax.tree.map(lambda leaf: leaf[0], state.shutter)
        found = "linear" if float(known.linear) > 0 else "stored"
        light = found if self.config.light == "found" else self.config.light
        return self.config.duty or round(float(known.duty), 3), light
