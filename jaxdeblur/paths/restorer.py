"""PathRestorer: frames restored by their blur paths, over what a network makes of the rest.

The paths of each frame come from its neighbours, and nothing in them is learnt (estimate.py). Where
the gate does not trust them, the base shows: the frames that a network restores, or the blurred
ones. A second network may make the frame of both (models/path_maps.py).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.errors import UserError
from jaxdeblur.models.explanation import Explanation
from jaxdeblur.models.path_maps import MADE, at_pixels, path_maps, restored_of
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.options import Share, check_ranges
from jaxdeblur.paths.estimate import LEAST_SIDE, WINDOW, estimate
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.shapes import Clip, Frame

StepOf: TypeAlias = Callable[[VideoRestorer, State, Frame, Bool[Array, ""]], tuple[State, Frame]]

LOOKAHEAD = WINDOW // 2
_FIRST, _EVERY = 6, 8  # Frames that are all asked for the shutter, and how often later ones are.


@dataclasses.dataclass(frozen=True)
class PathsConfig:
    """The fields of a PathRestorer.

    Attributes:
      duty: the share of the time between frames that the shutter is open, above 0 and up to 1; 0
        finds it from the video.
      light: what the camera averaged: values as they are "stored", or "linear" light; "found" finds
        it from the video.
    """

    duty: Share = 0.0
    light: Literal["found", "stored", "linear"] = "found"

    def __post_init__(self) -> None:
        check_ranges(self)


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
    """The base's."""
    fusion: State
    """The second network's."""


class _Told(NamedTuple):
    maps: Float[Array, "*leading H W 14"]
    gate: Float[Array, "*leading h w"]
    paths: Float[Array, "*leading N 9 2"]


def _gated(maps: Float[Array, "*leading H W 14"]) -> Float[Array, "*leading H W 3"]:
    """The frames as the gate mixes them."""
    return restored_of(maps, jnp.zeros((*maps.shape[:-1], MADE)))


class PathRestorer(VideoRestorer):
    """Restores by paths, over a network (``base``) or the blurred frames (None).

    Args:
      config: of the paths.
      base: restores the frames that are the base.
      fusion: makes frames of the maps of models/path_maps.py; None for the gate alone.

    Raises:
      UserError: the base's look-ahead is not two frames, or that of ``fusion`` is not none.
    """

    lookahead = LOOKAHEAD

    def __init__(
        self,
        config: PathsConfig,
        base: VideoRestorer | None = None,
        fusion: VideoRestorer | None = None,
    ) -> None:
        if fusion is not None and fusion.lookahead:
            raise UserError(f"a network over paths looks no frames ahead, not {fusion.lookahead}")
        if base is not None and base.lookahead != LOOKAHEAD:
            raise UserError(f"a base restores {LOOKAHEAD} frames late, not {base.lookahead}")
        self.config = config
        self.base = base
        self.fusion = fusion
        self.multiple = math.lcm(*(net.multiple for net in (base, fusion) if net is not None))

    @property
    def receptive_radius(self) -> int:
        """The whole frame, since the shutter is one for all of it."""
        return 2**16

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
            base,
            fusion,
        )

    def _step(
        self, state: StreamState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[StreamState, Frame]:
        return self.step_over(VideoRestorer.step, state, frame, repeated)

    def step_over(
        self, step_of: StepOf, state: StreamState, frame: Frame, repeated: Array
    ) -> tuple[StreamState, Frame]:
        """``step`` with the networks stepped as the caller wants.

        Args:
          step_of: one step of a network, over the whole frame or in tiles.
          state: of the stream.
          frame: B H W 3, in [0, 1].
          repeated: whether the video has ended and its last frame is given once more.
        """
        frames = jnp.concatenate([state.frames, frame[:, None]], 1)
        present = jnp.append(state.present, jnp.where(repeated, 0.0, 1.0))
        if self.base is None:
            base, below = state.base, frames[:, LOOKAHEAD]
        else:
            base, below = step_of(self.base, state.base, frame, repeated)
        shutter, told = self._tell(frames, present, state.shutter, state.restored, below)
        fusion, restored = state.fusion, below
        if told is not None:
            restored = _gated(told.maps)
        if told is not None and self.fusion is not None:
            fusion, restored = step_of(self.fusion, fusion, told.maps, jnp.bool_(False))
        # A frame without neighbours has no path.
        alone = present[LOOKAHEAD - 1] + present[LOOKAHEAD + 1] == 0
        restored = jnp.where(alone, below, restored)
        here = present[LOOKAHEAD] > 0  # Before the first frame, nothing is remembered.
        fusion = jax.tree.map(functools.partial(jnp.where, here), fusion, state.fusion)
        count = state.restored + here.astype(int)
        return StreamState(frames[:, 1:], present[1:], shutter, count, base, fusion), restored

    def _restore_clip(self, clip: Clip) -> Clip:
        below, told = self._tell_clip(clip)
        if told is None:
            return below
        return _gated(told.maps) if self.fusion is None else self.fusion.restore_clip(told.maps)

    def explain_clip(self, clip: Clip) -> Explanation:
        """The gate and the paths of every frame; nothing of what the networks do."""
        _, told = self._tell_clip(self.pad(clip))
        return Explanation() if told is None else Explanation(gate=told.gate, paths=told.paths)

    def _tell_clip(self, clip: Clip) -> tuple[Clip, _Told | None]:
        """The base of every frame, and what the paths tell of it."""
        length = clip.shape[1]
        below = clip if self.base is None else self.base.restore_clip(clip)
        if length == 1:  # A frame without neighbours has no path.
            return below, None
        ends = [(0, 0), (LOOKAHEAD, LOOKAHEAD), *[(0, 0)] * 3]
        padded = jnp.pad(clip, ends)
        inside = jnp.pad(jnp.ones(length), LOOKAHEAD)

        def step(shutter: Shutter, t: Int[Array, ""]) -> tuple[Shutter, _Told | None]:
            frames = lax.dynamic_slice_in_dim(padded, t, WINDOW, 1)
            present = lax.dynamic_slice_in_dim(inside, t, WINDOW)
            return self._tell(frames, present, shutter, t, below[:, t])

        _, told = lax.scan(step, Shutter.unknown(len(clip)), jnp.arange(length))
        return below, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), told)

    def _tell(
        self,
        frames: Float[Array, "B 5 H W 3"],
        present: Float[Array, 5],
        shutter: Shutter,
        count: Int[Array, ""],
        below: Frame,
    ) -> tuple[Shutter, _Told | None]:
        """What the paths tell of the middle frames, their base being ``below``.

        None where frames are too small for tiles.
        """
        if min(frames.shape[2:4]) < LEAST_SIDE:
            return shutter, None
        asked = (count < _FIRST) | (count % _EVERY == 0)
        observe = asked & (present[LOOKAHEAD] > 0)
        light, duty = self.config.light, self.config.duty or None
        linear = None if light == "found" else light == "linear"

        def one(each: tuple[jax.Array, Shutter, jax.Array]) -> tuple[Shutter, _Told]:
            window, known, base = each
            found = estimate(window, base, present, known, observe, duty, linear)
            evidence = at_pixels(found.cells, *base.shape[:2])
            blurred = window[LOOKAHEAD]
            maps = path_maps(blurred, found.base, found.sharp, found.unexplained, evidence)
            return found.shutter, _Told(maps, found.cells[..., 0], found.paths)

        told: tuple[Shutter, _Told] = lax.map(one, (frames, shutter, below))
        return told

    def shutter_of(self, state: StreamState) -> tuple[float, str]:
        """Duty and light of a stream's first video: as found so far, or as given."""
        known = jax.tree.map(lambda leaf: leaf[0], state.shutter)
        found = "linear" if float(known.linear) > 0 else "stored"
        light = found if self.config.light == "found" else self.config.light
        return self.config.duty or round(float(known.duty), 3), light
