"""VideoRestorer: the two views of every model, a whole clip and a stream.

The ends of a video are replicated, so N frames in give N frames out. Sizes that the network cannot
halve evenly are padded by replication and cropped again. Both happen here, once for all models.
``jaxdeblur.testing`` checks for every preset that the two views agree.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxdeblur.errors import UserError
from jaxdeblur.models.parts import (
    FRAME,
    REPEATED,
    RESTORED,
    Part,
    States,
    directly,
    run_parts,
    start_parts,
)
from jaxdeblur.shapes import (
    Clip,
    Features,
    Frame,
    Parameters,
    ReducedClip,
    SeenClip,
    SeenFrame,
)

P = ParamSpec("P")
R = TypeVar("R")

State = Any
"""The state of a stream: a pytree of arrays, of constant size."""

StepOf: TypeAlias = Callable[..., tuple[State, Frame]]
"""Steps a network like ``VideoRestorer.step``, on the whole frame or in tiles."""

StepNetwork: TypeAlias = Callable[..., tuple[State, Frame, Features | None]]
"""Steps a network and also returns its features (``scale_choice.step_with_features``), on the whole
frame or in tiles."""


class TrainingOutputs(NamedTuple):
    """What the loss compares, and the statistics that a train step keeps."""

    restored: tuple[ReducedClip, ...]
    """The network's outputs; the loss is summed over the pairs of output and target."""
    targets: tuple[ReducedClip, ...]
    """The target of each output, of the same shape."""
    statistics: Parameters
    """New values of the running statistics, by name (models/parameters.py, ``is_statistic``)."""


class VideoRestorer(nnx.Module):
    """A network that restores videos.

    A model implements three methods, ``_restore_clip``, ``_initial_state`` and ``_step``, for sizes
    that are multiples of ``multiple``; one of several parts, ``parts`` in place of the last two.
    ``jaxdeblur.testing.check_model`` checks them.

    Attributes:
      config: the frozen dataclass that the model was built from.
      lookahead: delay of the stream's output, in frames.
      opening: how many frames of a video its parts look at before the first is restored.
      multiple: the height and width that the network sees are multiples of this.
      channels: channels of an input frame: RGB, or the maps of blur paths.
      recomputes: set by ``save_memory``.
      trains_on_maps: whether its training clips are the maps of blur paths, not frames.
      clips_are_independent: whether the result for a clip does not depend on the rest of the batch,
        so that a batch may be processed in parts.
    """

    config: Any
    lookahead: int
    opening: ClassVar[int] | int = 0
    multiple: ClassVar[int] | int
    channels: ClassVar[int] | int = 3
    recomputes: bool = False
    trains_on_maps: bool = False
    clips_are_independent: bool = True

    # A model implements these three, or the first and ``parts``. The rest follows from them and may
    # be overridden.

    def _restore_clip(self, clip: SeenClip) -> Clip:
        """``restore_clip``."""
        raise NotImplementedError

    def _initial_state(self, batch: int, height: int, width: int) -> State:
        """``initial_state``."""
        return start_parts(self._several_parts(), batch, height, width)

    def _step(
        self, state: State, frame: SeenFrame, repeated: Bool[Array, ""]
    ) -> tuple[State, Frame]:
        """``step``."""
        parts, given = self._several_parts(), {FRAME: frame, REPEATED: repeated}
        state, made = run_parts(parts, directly, state, given)
        return state, made[RESTORED]

    def restore_clip(self, clip: SeenClip) -> Clip:
        """Restores a clip of any length and size, ``B T H W S`` in [0, 1], all frames at once.

        What does not depend on the past runs on all frames in parallel; only the recurrence runs in
        ``lax.scan``. The result is float32 and not clipped.
        """
        height, width = clip.shape[-3:-1]
        padded = self.pad(clip)
        restored = self._restore_clip(padded)
        check_shape(restored, (*padded.shape[:-1], 3), f"{type(self).__name__}._restore_clip")
        return restored[..., :height, :width, :]

    @property
    def context(self) -> tuple[int, int]:
        """How many frames before and after a frame its window reaches, not counting a recurrence.

        Training clips are longer by this (data/clips.py). Defaults to the look-ahead on both sides.
        """
        return self.lookahead, self.lookahead

    def training_outputs(
        self, clip: Float[Array, "B length H W S"], sharp: Clip
    ) -> TrainingOutputs:
        """Returns what the loss compares: by default the restored clip with the sharp one.

        ``clip`` is longer than ``sharp`` by the ``context``, so that each frame sees what it would
        in the middle of a video. If it is not, its ends are repeated.

        A model overrides this if its training needs more: several estimates, targets of its own,
        a state without gradients between frames, running statistics.
        """
        if clip.shape[1] == sharp.shape[1]:
            return TrainingOutputs((self.restore_clip(clip),), (sharp,), {})
        height, width = clip.shape[-3:-1]
        restored = self._restore_inside(self.pad(clip))[..., :height, :width, :]
        return TrainingOutputs((restored,), (sharp,), {})

    def parts(self, step_of: StepOf | None = None) -> list[Part]:
        """Returns the parts through which a frame passes, in order; a network is a single one.

        Args:
          step_of: steps a network; by default on the whole frame.
        """
        step = functools.partial(step_of or type(self).step, self)
        return [Part("network", (FRAME, REPEATED), RESTORED, self.initial_state, step)]

    def _several_parts(self) -> list[Part]:
        if type(self).parts is VideoRestorer.parts:
            raise NotImplementedError("a network implements _initial_state and _step")
        return self.parts()

    def found(self, states: States) -> dict[str, Any]:
        """Returns what the parts found out of the first video, by the names of their options."""
        return {}

    def remarks(self, states: States) -> list[str]:
        """Returns what the user should know of the first video's restoration, a line each."""
        return []

    def with_options(self, **options: Any) -> VideoRestorer:
        """Returns the model with other values in its config, of fields that hold no parameters.

        Raises:
          UserError: it has no such field, or the value is not allowed.
        """
        if options:
            named = " and ".join(f"--{name}" for name in options)
            raise UserError(f"{named}: for weights with blur paths only, such as --ckpt=paths")
        return self

    def step_networks(
        self, step: StepNetwork, state: State, frame: SeenFrame, repeated: Bool[Array, ""]
    ) -> tuple[State, Frame]:
        """Steps like ``_step``; ``step`` steps each network of which this one consists: itself."""
        return step(self, state, frame, repeated)[:2]

    def without_finest(self, state: State) -> State:
        """Returns the state whose steps leave out the finest of several sizes, if there are any."""
        return state

    @property
    def halo(self) -> int:
        """How many pixels a tile reads beyond each side: the receptive radius, rounded up.

        Raises:
          UserError: the model cannot run in tiles.
        """
        return self.round_up(self.receptive_radius)

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step of the stream reads, of the frame and the state.

        Raises:
          UserError: the model defines no radius, so frames can't be cut into tiles.
        """
        name = type(self).__name__
        raise UserError(f"{name} has no receptive_radius, so frames can't be cut into tiles")

    def spread_over(self, mesh: Mesh) -> None:
        """Sets the mesh over which clips are sharded (``devices.clips_over``).

        The compiler divides all work except that of hand-written kernels, so a model that has any
        passes the mesh on to them.
        """

    def save_memory(self) -> None:
        """Makes the backward pass recompute what lies within a step or a block of the network.

        Only what passes between them is then kept in memory. Results remain the same.
        """
        self.recomputes = True

    def rematerialised(self, part: Callable[P, R]) -> Callable[P, R]:
        """Returns ``part`` such that, after ``save_memory``, the backward pass recomputes it."""
        return jax.checkpoint(part) if self.recomputes else part

    def initial_state(self, batch: int, height: int, width: int) -> State:
        """Returns the state before the first frame of ``batch`` videos of ``height x width``."""
        return self._initial_state(batch, self.round_up(height), self.round_up(width))

    def step(
        self, state: State, frame: SeenFrame, repeated: bool | Bool[Array, ""] = False
    ) -> tuple[State, Frame]:
        """Takes one frame and returns the restored frame of ``lookahead`` steps ago.

        The caller drops the first ``lookahead`` outputs. After the last frame of a video, it passes
        that frame ``lookahead`` times more, with ``repeated`` true, to flush the remaining outputs.
        """
        height, width = frame.shape[-3:-1]
        padded = self.pad(frame)
        state, restored = self._step(state, padded, jnp.asarray(repeated))
        check_shape(restored, (*padded.shape[:-1], 3), f"{type(self).__name__}._step")
        return state, restored[..., :height, :width, :]

    def _restore_inside(self, clip: Float[Array, "B length H W S"]) -> Clip:
        """Restores the frames of a clip whose ``context`` lies within it."""
        before, after = self.context
        return self._restore_clip(clip)[:, before : clip.shape[1] - after]

    def round_up(self, size: int) -> int:
        """Returns the smallest multiple of ``multiple`` that is at least ``size``."""
        # At symbolic sizes, too: ONNX rounds quotients of negative numbers up.
        return (size + self.multiple - 1) // self.multiple * self.multiple

    def pad(self, images: Float[Array, "*leading H W S"]) -> Float[Array, "*leading Hp Wp S"]:
        """Replicates the last row and column up to multiples of ``multiple``."""
        height, width = images.shape[-3:-1]
        below, right = self.round_up(height) - height, self.round_up(width) - width
        if not below and not right:
            return images
        leading = [(0, 0)] * (images.ndim - 3)
        return jnp.pad(images, [*leading, (0, below), (0, right), (0, 0)], mode="edge")


def check_shape(made: jax.Array, expected: tuple[int, ...], maker: str) -> None:
    """Raises :class:`UserError` if an array that a user's model made has another shape."""
    if made.shape != expected:
        raise UserError(f"{maker} returned an array of shape {made.shape}, not {expected}")


def replicate_ends(clip: Float[Array, "B T ..."], before: int, after: int) -> jax.Array:
    """Repeats the first frame ``before`` times and the last one ``after`` times."""
    ends = [(0, 0), (before, after)] + [(0, 0)] * (clip.ndim - 2)
    return jnp.pad(clip, ends, mode="edge")


def push(
    window: Float[Array, "B N *rest"], new: jax.Array, seen: Int[Array, ""]
) -> Float[Array, "B N *rest"]:
    """Appends ``new`` to a stream's window and drops the oldest; the first one fills it."""
    shifted = jnp.concatenate([window[:, 1:], new[:, None]], axis=1)
    return jnp.where(seen == 0, new[:, None], shifted)
