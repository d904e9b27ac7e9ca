"""What the parts of a step of blur paths remember, and what they pass on (restorer.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.paths.prior import Past
from jaxdeblur.paths.shutter import Shutter
from jaxdeblur.paths.window_fit import WINDOW, PastPaths, WindowFit
from jaxdeblur.paths.windows import Told
from jaxdeblur.shapes import Clip, Frame

LOOKAHEAD = WINDOW // 2

StepOf: TypeAlias = Callable[
    [VideoRestorer, State, Frame, bool | Bool[Array, ""]], tuple[State, Frame]
]
"""Runs one step of a network, on the whole frame or in tiles."""


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
    paths: PastPaths
    """The paths of the previous frame."""
    looking: Bool[Array, ""]
    """Whether frames are only looked at, to find the shutter, and not restored."""
    base: State
    """The state of the base."""
    filter: State
    """The state of the filter: what the previous frame passes on, a Past."""
    fusion: State
    """The state of the second network."""

    @classmethod
    def before_first(
        cls, batch: int, height: int, width: int, base: State, fusion: State
    ) -> StreamState:
        """Returns the state before the first frame.

        Args:
          batch, height, width: of the frames, in pixels.
          base, fusion: the states of these networks.
        """
        nothing = jnp.zeros((batch, height, width, 3), jnp.float32)
        return cls(
            jnp.zeros((batch, WINDOW - 1, height, width, 3), jnp.float32),
            jnp.zeros(WINDOW - 1, jnp.float32),
            Shutter.unknown(batch),
            jnp.int32(0),
            jax.tree.map(lambda x: jnp.stack([x] * batch), PastPaths.unknown((height, width))),
            jnp.bool_(False),
            base,
            Past(nothing, nothing),
            fusion,
        )

    def of_fit(self) -> StreamState:
        """Returns the part of the state that ``step_fit`` needs."""
        return self._replace(base=(), filter=(), fusion=())


class Fitted(NamedTuple):
    """What a frame is filtered from."""

    frames: Float[Array, "B 3 H W 3"]
    """The frame, between the one before and the one after."""
    fit: WindowFit | None
    """Its paths; None for frames too small for any."""
    here: Bool[Array, ""]
    """Whether the frame belongs to the video."""
    alone: Bool[Array, ""]
    """Whether it has no neighbours, and so no path."""


class OverPaths(NamedTuple):
    """What the second network restores a frame from."""

    told: Told | None
    """The results of the paths; None for frames too small for any."""
    base: Frame
    here: Bool[Array, ""]
    alone: Bool[Array, ""]
    """Both as in ``Fitted``."""
