"""Coarse to fine: any network at several sizes, each starting from what the coarser one restored.

Blur of d pixels is blur of d/4 pixels at a quarter of the size, where a small network reaches it.
Each level restores its reduced frames; its residual is enlarged and added to the frames that the
next level sees. A level costs a quarter of the next finer one. (Multi-scale training as in
Nah et al., CVPR 2017; with ``share_levels`` the same weights at all sizes, as in Tao et al.,
"Scale-recurrent Network", CVPR 2018; here each level adds a residual.)
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from jaxdeblur.errors import UserError
from jaxdeblur.models.explanation import Explanation, explainer
from jaxdeblur.models.layers import enlarge, reduce_size
from jaxdeblur.models.restorer import State, VideoRestorer
from jaxdeblur.shapes import Clip, Features, Frame, Parameters, ReducedClip


class LevelState(NamedTuple):
    """What a stream keeps for one level."""

    network: State
    """The state of the level's own network."""
    waiting: Clip
    """The frames at full size that wait for the network's look-ahead, oldest first."""


class StreamState(NamedTuple):
    """What a stream keeps for all levels."""

    levels: tuple[LevelState, ...]
    seen: jax.Array
    """How many frames came in, up to the look-ahead."""
    past_end: jax.Array
    """How often the last frame was repeated."""


ConstructLevel: TypeAlias = Callable[[Any, nnx.Rngs], VideoRestorer]
"""How the network of a level is made from its config: ``registry.construct``."""

StepOfLevel: TypeAlias = Callable[
    [VideoRestorer, State, Frame, jax.Array], tuple[State, Frame, Features | None]
]
"""How a level is stepped, as by its ``step_with_features``: whole, or in tiles (tiling.py)."""


class SeveralScales(VideoRestorer):
    """What networks at several scales have in common: ``_levels`` gives what each level restores.

    Attributes:
      scales: the sizes, coarse to fine.
      levels: the network of each.
    """

    scales: tuple[int, ...]
    levels: nnx.List

    def spread_over(self, mesh: Mesh) -> None:
        """Tells every level."""
        for level in self.levels:
            level.spread_over(mesh)

    def save_memory(self) -> None:
        """Tells every level."""
        for level in self.levels:
            level.save_memory()

    def restore_levels(self, clip: Clip) -> tuple[ReducedClip, ...]:
        """What each scale restores, coarse to fine, each at its own size."""
        height, width = clip.shape[-3:-1]
        # The padding is computed with the clip, not cropped between the levels, as in the stream.
        return tuple(
            level[:, :, : -(-height // scale), : -(-width // scale)]
            for scale, level in zip(self.scales, self._levels(self.pad(clip)), strict=True)
        )

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._levels(clip)[-1]

    def _step(self, state: State, frame: Frame, repeated: jax.Array) -> tuple[State, Frame]:
        return self.step_levels(_step_whole, state, frame, repeated)

    def step_levels(
        self, step_level: StepOfLevel, state: State, frame: Frame, repeated: jax.Array
    ) -> tuple[State, Frame]:
        """``_step`` with every level stepped by ``step_level``."""
        raise NotImplementedError

    def _levels(self, clip: Clip) -> list[ReducedClip]:
        """What each level restores, at its own size."""
        raise NotImplementedError


def _step_whole(
    level: VideoRestorer, state: State, frame: Frame, repeated: jax.Array
) -> tuple[State, Frame, Features | None]:
    return level.step_with_features(state, frame, repeated)


class CoarseToFine(SeveralScales):
    """A network at each of ``config.scales``, coarse to fine.

    Every level has weights of its own, unless the config says ``share_levels``, and is the network
    of ``config.at_scale``; of a config without that method all levels are alike. A level may start
    only when the one above it has looked ahead, so the look-aheads add up.
    """

    def __init__(self, config: Any, construct: ConstructLevel, *, rngs: nnx.Rngs) -> None:
        check_scales(config.scales)
        self.config = config
        self.scales = config.scales
        levels = [construct(level, rngs) for level in level_configs(config)]
        # With shared weights there is one, which is every level.
        self.levels = nnx.List(levels * (len(config.scales) // len(levels)))
        self.lookahead = sum(level.lookahead for level in self.levels)
        self.multiple = max(
            scale * level.multiple for scale, level in zip(self.scales, self.levels, strict=True)
        )

    @property
    def context(self) -> tuple[int, int]:
        """The levels' in a row, each of which sees what the one before it restored."""
        before, after = zip(*(level.context for level in self.levels), strict=True)
        return sum(before), sum(after)

    def _levels(self, clip: Clip) -> list[ReducedClip]:
        """What each level restores, at its own size."""
        current = clip
        restored = []
        for scale, level in zip(self.scales, self.levels, strict=True):
            reduced = reduce_size(current, scale)
            restored.append(level.restore_clip(reduced))
            current = current + enlarge(restored[-1] - reduced, scale)
        return restored

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        return StreamState(
            levels=tuple(
                LevelState(
                    level.initial_state(batch, height // scale, width // scale),
                    jnp.zeros((batch, level.lookahead + 1, height, width, 3)),
                )
                for scale, level in zip(self.scales, self.levels, strict=True)
            ),
            seen=jnp.int32(0),
            past_end=jnp.int32(0),
        )

    def step_levels(
        self, step_level: StepOfLevel, state: StreamState, frame: Frame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        """One level after the other, each on what the coarser ones restored."""
        current, starts_at, states = frame, 0, []
        past_end = state.past_end + repeated
        for scale, level, level_state in zip(self.scales, self.levels, state.levels, strict=True):

            def run(
                operand: tuple[LevelState, Frame],
                level: VideoRestorer = level,
                scale: int = scale,
                ended: jax.Array = past_end > starts_at,
            ) -> tuple[LevelState, Frame]:
                (network, waiting), current = operand
                # Each level repeats the last frame that it was given, once that has come.
                current = jnp.where(ended, waiting[:, -1], current)
                waiting = jnp.concatenate([waiting[:, 1:], current[:, None]], axis=1)
                reduced = reduce_size(current, scale)
                network, restored, _ = step_level(level, network, reduced, ended)
                residual = restored - reduce_size(waiting[:, 0], scale)
                return LevelState(network, waiting), waiting[:, 0] + enlarge(residual, scale)

            # Until the level above has looked ahead, there is nothing to start from.
            level_state, current = lax.cond(
                state.seen >= starts_at, run, lambda operand: operand, (level_state, current)
            )
            states.append(level_state)
            starts_at += level.lookahead
        seen = jnp.minimum(state.seen + 1, self.lookahead)
        return StreamState(tuple(states), seen, past_end), current

    def explain_clip(self, clip: Clip) -> Explanation:
        """What the finest level says of the clip that the coarser ones left it."""
        current = self.pad(clip)
        for scale, level in zip(self.scales[:-1], self.levels[:-1], strict=True):
            reduced = reduce_size(current, scale)
            current = current + enlarge(level.restore_clip(reduced) - reduced, scale)
        explain = explainer(self.levels[-1])
        return explain(current) if explain else Explanation()


def check_scales(scales: tuple[int, ...]) -> None:
    """Raises :class:`UserError` unless ``scales`` are powers of two that fall and end at 1."""
    powers = all(scale >= 1 and scale & (scale - 1) == 0 for scale in scales)
    falling = all(a > b for a, b in itertools.pairwise(scales))
    if not scales or not powers or not falling or scales[-1] != 1:
        raise UserError(f"scales are falling powers of two that end at 1, as 4 2 1, not {scales}")


def scales_of(config: Any) -> tuple[int, ...]:
    """The scales of a network's config; one where it has no such field, as an extension's may."""
    return getattr(config, "scales", (1,))


def level_configs(config: Any) -> list[Any]:
    """The config of every level that has parameters, coarse to fine: of one if they are shared."""
    scales = scales_of(config)
    scales = scales[-1:] if getattr(config, "share_levels", False) else scales
    return [_at_scale(config, scale) for scale in scales]


def _at_scale(config: Any, scale: int) -> Any:
    if hasattr(config, "at_scale"):
        return config.at_scale(scale)
    return dataclasses.replace(config, scales=(1,)) if hasattr(config, "scales") else config


def level_parameters(parameters: Parameters, config: Any) -> list[Parameters]:
    """The parameters of every level that has some, named as those of a network at one scale."""
    if scales_of(config) == (1,):
        return [parameters]
    prefixes = [f"levels/{i}/" for i in range(len(level_configs(config)))]
    return [
        {name.removeprefix(p): a for name, a in parameters.items() if name.startswith(p)}
        for p in prefixes
    ]


def join_levels(levels: Sequence[Parameters], config: Any) -> Parameters:
    """The parameters of a network of ``config`` from those of its levels (``gates`` apart)."""
    if scales_of(config) == (1,):
        return levels[0]
    return {f"levels/{i}/{name}": a for i, level in enumerate(levels) for name, a in level.items()}


def gates(parameters: Parameters) -> Parameters:
    """The parameters that choose between the scales; empty where there are none."""
    return {name: array for name, array in parameters.items() if name.startswith("gates/")}


_T = TypeVar("_T")


def for_levels(levels: list[_T], config: Any) -> list[_T]:
    """What belongs to the levels of one network, for as many as one of ``config`` has.

    Blur looks alike at every size: the coarse levels are taken in order, the finest is repeated. It
    is also the one that levels with shared weights take.

    Raises:
      UserError: there are more levels than places for them.
    """
    count = len(level_configs(config))
    if count == 1 and scales_of(config) != (1,):
        return levels[-1:]
    if len(levels) > count:
        raise UserError(f"it has {len(levels)} levels, more than the {count} here")
    return levels + levels[-1:] * (count - len(levels))
