"""Any network at several sizes in parallel, and a small network that weights their residuals.

Blur of d pixels is blur of d/4 pixels at a quarter of the size, where a small network can reach it.
A network trained on a narrow range of blur restores that range best, and harms frames outside it
(docs/lab/recipe.md). So one network restores the same blurred frames at every size, and at some of
them the blur lies within its range. Gates set, cell by cell, the weight of each level's residual:
one level, several in part, or none where nothing is blurred. Training a separate network for each
size gained less (docs/lab/recipe.md).

This is a mixture of experts (Jacobs et al., "Adaptive mixtures of local experts", Neural
Computation 1991) over a pyramid. No level waits for another, so the look-ahead is that of one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.images import enlarge, reduce_size
from jaxdeblur.models.explanation import Explanation, explainer
from jaxdeblur.models.layers import LEAK, Conv, ResidualBlock, activation
from jaxdeblur.models.restorer import State, StepNetwork, TrainingOutputs, VideoRestorer
from jaxdeblur.shapes import (
    Clip,
    ClipFeatures,
    Features,
    Frame,
    Parameters,
    ReducedClip,
    SeenClip,
    SeenFrame,
)

_GATE_WIDTH = 48  # Channels of the gates' features.
_GATE_BLOCKS = 3  # Each sees two cells further to each side.
_LEAST_ENERGY = 1e-3  # For images in [0, 1]: a quarter of a grey level is noise.
_EVIDENCE = 5  # Numbers per cell and level, besides one for each of the network's features.
_LEAST_ACTIVITY = 1e-2  # For features, which are ten times as large.
_LEVEL = "level/"  # Prefix of the names of the network's parameters.


ReducedImages: TypeAlias = Float[Array, "*leading _ _ 3"]
CellMaps: TypeAlias = Float[Array, "*leading _ _ _"]


class StreamState(NamedTuple):
    """The state of a stream."""

    levels: tuple[State, ...]
    """The state of the network at each level; without the last, the finest level is left out."""
    waiting: Clip
    """The frames at full size that wait for the look-ahead, oldest first."""


class WholeFrame(nnx.Module):
    """Adds a summary of the whole frame, the mean over its cells, to every cell.

    The shutter was open equally long everywhere in a frame. One cell can hardly distinguish a sharp
    frame of something fast from a blurred frame; many cells together can (the experiment is in
    docs/lab/recipe.md). The mean is the squeeze of Hu et al.,
    "Squeeze-and-Excitation Networks", CVPR 2018; here the result is added.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.squeeze = Conv(width, width, kernel=1, rngs=rngs)
        self.mix = Conv(width, width, kernel=1, rngs=rngs)
        self.expand = Conv(width, width, kernel=1, gain=0.2, rngs=rngs)

    def __call__(self, cells: CellMaps) -> CellMaps:
        """Adds a frame-wide summary to every cell."""
        active = activation(LEAK)
        mean = active(self.squeeze(active(cells))).mean(axis=(-3, -2), keepdims=True)
        return cells + self.expand(active(self.mix(mean)))


class Gates(nnx.Module):
    """The weight of each level, in cells of twice the coarsest scale (16 pixels for 8 4 2 1).

    Which size fits depends on how far things moved, which hardly changes from pixel to pixel and
    cannot be seen in one pixel. Cells of 64 pixels would lose a tenth of a dB against cells of 16.
    On so few cells, a small network sees a hundred pixels around, and a mean
    over the whole frame costs next to nothing. The evidence consists of logarithms of energies:
    their ratios between the levels give the size of the blur, whatever the contrast.
    """

    def __init__(self, scales: tuple[int, ...], known: int, *, rngs: nnx.Rngs) -> None:
        self.scales = scales
        self.cell = 2 * scales[0]
        self.join = Conv(len(scales) * (_EVIDENCE + known), _GATE_WIDTH, kernel=1, rngs=rngs)
        self.context = nnx.List(
            [ResidualBlock(_GATE_WIDTH, leak=LEAK, rngs=rngs) for _ in range(_GATE_BLOCKS)]
        )
        self.whole_frame = WholeFrame(_GATE_WIDTH, rngs=rngs)
        self.head = Conv(_GATE_WIDTH, len(scales), kernel=1, gain=0.1, rngs=rngs)

    def evidence(
        self,
        frames: list[ReducedImages],
        residuals: list[ReducedImages],
        known: list[CellMaps | None],
    ) -> CellMaps:
        """Returns the input of the gates, a row of numbers for each cell.

        It is made of each level's blurred frames, residuals, and features at half its size.
        """
        levels = zip(self.scales, frames, residuals, known, strict=False)
        return jnp.concatenate([self._evidence(*level) for level in levels], axis=-1)

    def _evidence(
        self, scale: int, frames: ReducedImages, residual: ReducedImages, known: CellMaps | None
    ) -> CellMaps:
        side = self.cell // scale
        grey, change = (images.mean(axis=-1, keepdims=True) for images in (frames, residual))
        along_x, along_y = (
            jnp.abs(jnp.diff(grey, axis=axis, append=lax.slice_in_dim(grey, -1, None, axis=axis)))
            for axis in (-2, -3)
        )
        energies = jnp.concatenate([along_x, along_y, jnp.abs(change), change**2], axis=-1)
        energies = reduce_size(energies, side)
        # change**2 has squared units, so its root is taken.
        energies = energies.at[..., -1].set(jnp.sqrt(energies[..., -1] + _LEAST_ENERGY**2))
        parts = [jnp.log(energies + _LEAST_ENERGY), reduce_size(grey, side)]
        if known is not None:
            activity = reduce_size(jnp.abs(known.astype(jnp.float32)), side // 2)
            parts.append(jnp.log(activity + _LEAST_ACTIVITY))
        return jnp.concatenate(parts, axis=-1)

    def __call__(self, evidence: CellMaps) -> CellMaps:
        """Returns the weight of each level's residual in each cell, in [0, 1]."""
        return self.shares(self.logits(evidence))

    def logits(self, evidence: CellMaps) -> CellMaps:
        """Returns the weights before ``shares`` maps them to [0, 1]."""
        h = self.join(evidence)
        for i, block in enumerate(self.context):
            h = block(activation(LEAK)(h))
            if i == 0:
                h = self.whole_frame(h)
        return self.head(activation(LEAK)(h))

    @staticmethod
    def shares(logits: CellMaps) -> CellMaps:
        """Maps any number to [0, 1], both ends included, so that a gate can leave a cell unchanged.

        The sigmoid is stretched and clipped, as in Louizos et al., "Learning sparse neural networks
        through L0 regularization", ICLR 2018. At the ends, too, the gradient is that of the
        stretched sigmoid; without one, a closed gate could not open again.
        """
        stretched = 1.2 * jax.nn.sigmoid(logits) - 0.1
        return stretched + lax.stop_gradient(jnp.clip(stretched, 0.0, 1.0) - stretched)


def restore_with_features(network: Any, clip: SeenClip) -> tuple[Clip, ClipFeatures | None]:
    """Restores a clip and returns the network's half-size features of each frame, if it has any.

    A network that has them defines ``feature_channels``, ``restore_with_features(clip)`` and
    ``step_with_features(state, frame, repeated)``. Sizes are multiples of its ``multiple``.
    """
    if hasattr(network, "restore_with_features"):
        return network.restore_with_features(clip)
    return network.restore_clip(clip), None


def step_with_features(
    network: Any, state: State, frame: SeenFrame, repeated: jax.Array
) -> tuple[State, Frame, Features | None]:
    """Does the same for one frame of a stream."""
    if hasattr(network, "step_with_features"):
        return network.step_with_features(state, frame, repeated)
    return (*network.step(state, frame, repeated), None)


class ScaleChoice(VideoRestorer):
    """A network applied at each of ``config.scales``, and the gates that choose between them.

    Attributes:
      scales: the factors by which frames are reduced, coarse to fine.
      level: the network, the same at every size.
      gates: the network that chooses between the scales.

    Raises:
      UserError: the scales do not halve from one to the next and end at 1.
    """

    def __init__(self, config: Any, level: VideoRestorer, *, rngs: nnx.Rngs) -> None:
        scales = config.scales
        halving = all(coarse == 2 * fine for coarse, fine in itertools.pairwise(scales))
        if not scales or scales[-1] != 1 or not halving:
            raise UserError(f"--scales must halve from one to the next and end at 1, not {scales}")
        self.config = config
        self.scales = scales
        self.level = level
        self.gates = Gates(scales, getattr(level, "feature_channels", 0), rngs=rngs)
        self.lookahead = level.lookahead
        self.multiple = scales[0] * math.lcm(level.multiple, 2)

    @property
    def context(self) -> tuple[int, int]:
        """The ``context`` of the network."""
        return self.level.context

    def spread_over(self, mesh: Mesh) -> None:
        """Passes the mesh on to the network."""
        self.level.spread_over(mesh)

    def save_memory(self) -> None:
        """Makes the network save memory."""
        self.level.save_memory()

    def training_outputs(
        self, clip: Float[Array, "B length H W S"], sharp: Clip
    ) -> TrainingOutputs:
        """Returns the frames of each size with the sharp clip reduced to it, coarse to fine.

        Each is restored by all levels up to it.
        """
        restored = self.restore_levels(clip)
        if clip.shape[1] != sharp.shape[1]:
            before, after = self.context
            restored = tuple(level[:, before : level.shape[1] - after] for level in restored)
        targets = tuple(reduce_size(sharp, scale) for scale in self.scales)
        return TrainingOutputs(restored, targets, {})

    def restore_levels(self, clip: Clip) -> tuple[ReducedClip, ...]:
        """Returns the frames at each size, coarse to fine, restored by all levels up to it."""
        height, width = clip.shape[-3:-1]
        # As in the stream, the padding is restored with the clip, not cropped between levels.
        levels = self._choose(*self.reduce_and_restore(self.pad(clip)))
        return tuple(
            level[:, :, : -(-height // scale), : -(-width // scale)]
            for scale, level in zip(self.scales, levels, strict=True)
        )

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._choose(*self.reduce_and_restore(clip))[-1]

    def reduce_and_restore(
        self, clip: Clip
    ) -> tuple[list[jax.Array], list[tuple[jax.Array, jax.Array | None]]]:
        """Returns the clip at every size, and the network's result and features for each level."""
        reduced = [reduce_size(clip, scale) for scale in self.scales]
        return reduced, [restore_with_features(self.level, frames) for frames in reduced]

    def _choose(
        self,
        reduced: list[jax.Array],
        restored: list[tuple[jax.Array, jax.Array | None]],
    ) -> list[jax.Array]:
        """Returns the frames of every level plus the weighted residuals of all levels up to it."""
        residuals, evidence = self.evidence(reduced[: len(restored)], restored)
        shares = self.gates(evidence)
        taken = jnp.float32(0)
        chosen = []
        for i, (scale, frames) in enumerate(zip(self.scales, reduced, strict=True)):
            if i:
                taken = enlarge(taken, 2)
            if i < len(residuals):
                share = enlarge(shares[..., i : i + 1], self.gates.cell // scale)
                taken = share * residuals[i] + taken
            chosen.append(frames + taken)
        return chosen

    def evidence(
        self, reduced: list[jax.Array], restored: list[tuple[jax.Array, jax.Array | None]]
    ) -> tuple[list[jax.Array], jax.Array]:
        """Returns the residuals of the restored levels, and the input of the gates.

        Without the finest level, the next coarser one's evidence stands for its own, since the
        gates were trained with every level.
        """
        residuals = [level - frames for frames, (level, _) in zip(reduced, restored, strict=True)]
        evidence = self.gates.evidence(reduced, residuals, [known for _, known in restored])
        if len(restored) < len(self.scales):
            last = evidence[..., -(evidence.shape[-1] // len(restored)) :]
            evidence = jnp.concatenate([evidence, last], axis=-1)
        return residuals, evidence

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        return StreamState(
            levels=tuple(
                self.level.initial_state(batch, height // scale, width // scale)
                for scale in self.scales
            ),
            waiting=jnp.zeros((batch, self.lookahead + 1, height, width, 3)),
        )

    def _step(
        self, state: StreamState, frame: Frame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        return self.step_networks(step_with_features, state, frame, repeated)

    @property
    def halo(self) -> int:
        """The halo of every level, in pixels of its own frames."""
        return self.level.halo

    def step_networks(
        self, step: StepNetwork, state: StreamState, frame: Frame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        """Steps the state's levels on the same frame, then chooses between them.

        Args:
          step: steps one level.
          state: of the stream.
          frame: ``B H W 3``.
          repeated: whether the frame stands for one beyond the end of the video.
        """
        waiting = jnp.concatenate([state.waiting[:, 1:], frame[:, None]], axis=1)
        states, restored = [], []
        for scale, before in zip(self.scales, state.levels, strict=False):
            after, frame_of_level, known = step(
                self.level, before, reduce_size(frame, scale), repeated
            )
            states.append(after)
            restored.append((frame_of_level, known))
        reduced = [reduce_size(waiting[:, 0], scale) for scale in self.scales]
        return StreamState(tuple(states), waiting), self._choose(reduced, restored)[-1]

    def without_finest(self, state: StreamState) -> StreamState:
        """Returns the state whose steps leave out the finest level, three quarters of the work."""
        return state._replace(levels=state.levels[: max(1, len(self.scales) - 1)])

    def explain_clip(self, clip: Clip) -> Explanation:
        """Returns the explanation of the finest level."""
        explain = explainer(self.level)
        return explain(self.pad(clip)) if explain else Explanation()


def scales_of(model: VideoRestorer) -> tuple[int, ...]:
    """Returns the scales at which a model runs its network."""
    return getattr(model, "scales", (1,))


def renamed(
    parameters: Parameters, scales: tuple[int, ...], new_scales: tuple[int, ...]
) -> Parameters:
    """Names the parameters of a network at ``scales``, without gates, as at ``new_scales``."""
    if scales != (1,):
        parameters = {
            name.removeprefix(_LEVEL): array
            for name, array in parameters.items()
            if name.startswith(_LEVEL)
        }
    prefix = "" if new_scales == (1,) else _LEVEL
    return {prefix + name: array for name, array in parameters.items()}


def gates(parameters: Parameters) -> Parameters:
    """Returns the parameters of the gates; empty if there are none."""
    return {name: array for name, array in parameters.items() if name.startswith("gates/")}
