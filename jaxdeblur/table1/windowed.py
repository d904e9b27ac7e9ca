"""Networks whose only state is their window of frames: DBN, EDVR and RDN."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.models.restorer import VideoRestorer, push, replicate_ends
from jaxdeblur.shapes import Clip, Frame

Kept: TypeAlias = Any
"""What is computed from each frame alone: arrays ``B T ...`` in any pytree."""


class WindowState(NamedTuple):
    """The state of a stream."""

    window: Kept
    """``Kept`` of the frames in the window, oldest first."""
    seen: Int[Array, ""]
    """How many frames have come in, counted up to ``lookahead`` + 1."""


class Windowed(VideoRestorer):
    """Restores each frame from its ``context``; a subclass implements ``_restore_windows``."""

    def _of_frames(self, frames: Float[Array, "B H W 3"]) -> Kept:
        """Computes, once, what depends on a single frame; by default the frame itself."""
        return frames

    def _restore_windows(self, kept: Kept) -> Clip:
        """Maps ``B length ...``, longer by the context, to ``B T H W 3``."""
        raise NotImplementedError

    def with_context(self, clip: Float[Array, "B length H W 3"], sharp: Clip) -> jax.Array:
        """Returns the padded training clip; its ends are repeated if it comes without context."""
        whole = clip.shape[1] == sharp.shape[1]
        return self.pad(replicate_ends(clip, *self.context) if whole else clip)

    def _restore_clip(self, clip: Clip) -> Clip:
        kept = jax.tree.map(lambda x: replicate_ends(x, *self.context), self._of_clip(clip))
        return self._restore_windows(kept)

    def _restore_inside(self, clip: Float[Array, "B length H W 3"]) -> Clip:
        return self._restore_windows(self._of_clip(clip))

    def _of_clip(self, clip: Clip) -> Kept:
        kept = self._of_frames(rearrange(clip, "b t h w c -> (b t) h w c"))
        return jax.tree.map(lambda x: rearrange(x, "(b t) ... -> b t ...", b=len(clip)), kept)

    def _initial_state(self, batch: int, height: int, width: int) -> WindowState:
        frames = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.float32)
        length = sum(self.context) + 1
        window = jax.tree.map(
            lambda x: jnp.zeros((batch, length, *x.shape[1:]), x.dtype),
            jax.eval_shape(self._of_frames, frames),
        )
        return WindowState(window, jnp.int32(0))

    def _step(
        self, state: WindowState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[WindowState, Frame]:
        kept = self._of_frames(frame)
        window = jax.tree.map(lambda old, new: push(old, new, state.seen), state.window, kept)

        def restore() -> Frame:
            return self._restore_windows(window)[:, 0]

        if not self.lookahead:
            return WindowState(window, jnp.int32(1)), restore()
        full = state.seen >= self.lookahead
        restored = jax.lax.cond(full, restore, lambda: frame.astype(jnp.float32))
        return WindowState(window, jnp.minimum(state.seen + 1, self.lookahead + 1)), restored
