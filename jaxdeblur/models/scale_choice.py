"""Any network at several sizes side by side, and a small one that chooses between them.

Blur of d pixels is blur of d/4 pixels at a quarter of the size, where a small network reaches it. A
network that has learnt a narrow range of blur restores it best, and harms what lies outside of that
range (docs/recipe.md). So here every level restores the same blurred frames at its own size, where
some of the blur is of the range that it knows, and gates pick, pixel by pixel, what to take: the
level's own residual, that of the coarser ones, both in part, or neither where nothing is blurred.

This is a mixture of experts (Jacobs et al., "Adaptive mixtures of local experts", Neural
Computation 1991) over a pyramid. Against ``CoarseToFine`` no level waits for another, so the
look-ahead is that of one level.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.coarse_to_fine import SeveralScales, check_scales, level_configs
from jaxdeblur.models.explanation import Explanation, explainer
from jaxdeblur.models.layers import (
    Conv,
    activation,
    enlarge,
    reduce_size,
    space_to_depth,
)
from jaxdeblur.models.restorer import State
from jaxdeblur.shapes import Clip, Frame, ReducedClip

GATE_WIDTH = 16
"""Channels of a gate's features, at half the size of its level."""

_RESIDUAL_GAIN = 8.0  # Residuals are of about 0.1: so they weigh as much as the frames in a gate.


Images: TypeAlias = Float[Array, "*leading h w 3"]
Maps: TypeAlias = Float[Array, "*leading _ _ _"]


class StreamState(NamedTuple):
    """What a stream keeps."""

    levels: tuple[State, ...]
    """The state of each level's network."""
    waiting: Clip
    """The frames at full size that wait for the look-ahead, oldest first."""


class Gate(nnx.Module):
    """What one level takes, pixel by pixel: of the coarser levels' residual and of its own.

    It works at half the size of its level, where STRCNN's features are, which know of the motion
    from frame to frame, and hands features of its own on to the next finer gate, which so knows
    what stands around a pixel.
    """

    def __init__(self, coarsest: bool, known: int, *, rngs: nnx.Rngs) -> None:
        inputs = 4 * 3 * 2 + known if coarsest else 4 * 3 * 3 + known + GATE_WIDTH
        self.first = Conv(inputs, GATE_WIDTH, rngs=rngs)
        self.second = Conv(GATE_WIDTH, GATE_WIDTH, rngs=rngs)
        # At first the halves of both.
        self.head = Conv(GATE_WIDTH, 1 if coarsest else 2, gain=0.1, rngs=rngs)

    def __call__(
        self,
        frames: Images,
        own: Images,
        known: Maps | None,
        coarser: Images | None,
        passed_on: Maps | None,
    ) -> tuple[Images, Maps]:
        """The residual that is taken, and the features for the next finer gate.

        Args:
          frames: the blurred frames at the level's size.
          own: the residual of the level's network.
          known: the features of the level's network, at half its size, if it gives any.
          coarser: what the coarser gates took, enlarged to this size; None at the coarsest level.
          passed_on: the features of the coarser gate.
        """
        relu = activation(0.1)
        pictures = [frames - 0.5, _RESIDUAL_GAIN * own]
        if coarser is not None:
            pictures.append(_RESIDUAL_GAIN * coarser)
        parts = [space_to_depth(jnp.concatenate(pictures, axis=-1), 2)]
        if known is not None:
            parts.append(known.astype(jnp.float32))
        if passed_on is not None:
            parts.append(enlarge(passed_on, 2))
        h = relu(self.first(jnp.concatenate(parts, axis=-1)))
        h = h + relu(self.second(h))
        shares = enlarge(_share(self.head(h)), 2)
        taken = shares[..., :1] * own
        if coarser is not None:
            taken = taken + shares[..., 1:] * coarser
        return taken, h

    @property
    def radius(self) -> int:
        """How many pixels of the level to each side an output pixel reads, coarser gates apart."""
        # At half the size; enlarging the shares reads one more there, and a pixel there is two.
        return 2 * (self.first.radius + self.second.radius + self.head.radius + 1) + 1


def _share(x: jax.Array) -> jax.Array:
    """Any number to [0, 1], both ends included, so that a gate can leave a pixel as it is.

    The sigmoid stretched and clipped, as in Louizos et al., "Learning sparse neural networks
    through L0 regularization", ICLR 2018.
    """
    return jnp.clip(1.2 * jax.nn.sigmoid(x) - 0.1, 0.0, 1.0)


class ScaleChoice(SeveralScales):
    """A network at each of ``config.scales`` and the gates that choose between them.

    The levels are those of ``CoarseToFine``: with weights of their own or shared, each the network
    of ``config.at_scale``.

    Raises:
      UserError: the scales are not powers of two next to each other, or the levels look ahead
        differently far.
    """

    def __init__(self, config: Any, *, rngs: nnx.Rngs) -> None:
        from jaxdeblur.models import construct  # the registry imports this file

        check_scales(config.scales)
        if any(coarse != 2 * fine for coarse, fine in itertools.pairwise(config.scales)):
            raise UserError(
                f"to choose between scales, each is half of the one before, not {config.scales}"
            )
        self.config = config
        self.scales = config.scales
        levels = [construct(level, rngs) for level in level_configs(config)]
        # With shared weights there is one, which is every level.
        self.levels = nnx.List(levels * (len(config.scales) // len(levels)))
        self.gates = nnx.List(
            [Gate(i == 0, level.feature_channels, rngs=rngs) for i, level in enumerate(self.levels)]
        )
        self.lookahead = levels[0].lookahead
        if any(level.lookahead != self.lookahead for level in levels):
            raise UserError("to choose between scales, all levels look ahead as far")
        self.multiple = max(
            scale * math.lcm(level.multiple, 2)
            for scale, level in zip(self.scales, self.levels, strict=True)
        )

    def _levels(self, clip: Clip) -> list[ReducedClip]:
        reduced = [reduce_size(clip, scale) for scale in self.scales]
        restored = [
            level.restore_with_features(frames)
            for level, frames in zip(self.levels, reduced, strict=True)
        ]
        return self._choose(reduced, restored)

    def _choose(
        self, reduced: list[jax.Array], restored: list[tuple[jax.Array, jax.Array | None]]
    ) -> list[jax.Array]:
        """The frames of every level with the residual that is chosen up to it."""
        taken: jax.Array | None = None
        features: jax.Array | None = None
        chosen = []
        for gate, frames, (level, known) in zip(self.gates, reduced, restored, strict=True):
            coarser = None if taken is None else enlarge(taken, 2)
            taken, features = gate(frames, level - frames, known, coarser, features)
            chosen.append(frames + taken)
        return chosen

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        return StreamState(
            levels=tuple(
                level.initial_state(batch, height // scale, width // scale)
                for scale, level in zip(self.scales, self.levels, strict=True)
            ),
            waiting=jnp.zeros((batch, self.lookahead + 1, height, width, 3)),
        )

    def _step(
        self, state: StreamState, frame: Frame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        waiting = jnp.concatenate([state.waiting[:, 1:], frame[:, None]], axis=1)
        states, restored = [], []
        for scale, level, before in zip(self.scales, self.levels, state.levels, strict=True):
            after, frame_of_level, known = level.step_with_features(
                before, reduce_size(frame, scale), repeated
            )
            states.append(after)
            restored.append((frame_of_level, known))
        reduced = [reduce_size(waiting[:, 0], scale) for scale in self.scales]
        return StreamState(tuple(states), waiting), self._choose(reduced, restored)[-1]

    def explain_clip(self, clip: Clip) -> Explanation:
        """What the finest level says of the clip."""
        explain = explainer(self.levels[-1])
        return explain(self._pad(clip)) if explain else Explanation()

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step of the stream reads, of frames and of state."""
        # What a coarser gate gives is enlarged, which reads one of its pixels more; its features,
        # enlarged, one of half that size.
        gates = sum(
            scale * (gate.radius + 2) for scale, gate in zip(self.scales, self.gates, strict=True)
        )
        return gates + max(
            scale * level.receptive_radius
            for scale, level in zip(self.scales, self.levels, strict=True)
        )
