"""The attention network: an encoder-decoder of dense blocks that fuses its window by factorised
spatio-temporal attention, or by what that replaces.

Source: "Dynamic Scene Video Deblurring using Non-local Attention" (Suin and Rajagopalan, arXiv
2022), section 3 and figure 1. Widths, depths, M, N and T were never published: docs/lab/papers.md
says what was chosen and what it costs.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

import kernels
from jaxdeblur.errors import UserError
from jaxdeblur.models.attention import FactorisedAttention, PartialMemory, combine_partials
from jaxdeblur.models.explanation import AttentionMaps, Explanation
from jaxdeblur.models.fsta_config import FUSIONS, FstaConfig
from jaxdeblur.models.fusion import Fusion, Memory, NonLocal
from jaxdeblur.models.layers import (
    LEAK,
    Conv,
    DenseBlock,
    activation,
    depth_to_space,
    space_to_depth,
)
from jaxdeblur.models.restorer import VideoRestorer, check_shape
from jaxdeblur.shapes import Clip, Features, Frame


class FusionBlock(nnx.Module):
    """Takes y^R, what the window gives, into the current frame's features: x + merge([x, y]).

    The paper ends at y^R; the merging is ours and the same for every way of fusing. As a product it
    is x + x scale(y) + merge(y).

    Args:
      fusion: makes y^R.
      width: channels of the features.
      gated: y is weighted by pixel and channel first.
      product: merges as a product.
      dtype: of the computation.
      rngs: what the kernels are drawn from.
    """

    def __init__(
        self,
        fusion: Fusion,
        width: int,
        *,
        gated: bool,
        product: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        def mixed(c_in: int, gain: float = 1.0) -> Conv:
            return Conv(c_in, width, 1, gain=gain, dtype=dtype, rngs=rngs)

        self.fusion = fusion
        self.gate = mixed(2 * width) if gated else None
        self.scale = mixed(width, 0.5) if product else None
        self.merge = mixed(width if product else 2 * width, 0.5)

    def __call__(
        self, x: Float[Array, "*leading h w C"], y: Float[Array, "*leading h w C"]
    ) -> Float[Array, "*leading h w C"]:
        """The fused features."""
        check_shape(y, x.shape, f"the fusion {type(self.fusion).__name__}")
        if self.gate is not None:
            y = y * jax.nn.sigmoid(self.gate(jnp.concatenate([x, y], axis=-1)))
        if self.scale is not None:
            return x + x * self.scale(y) + self.merge(y)
        return x + self.merge(jnp.concatenate([x, y], axis=-1))


Pyramid = tuple[Float[Array, "..."], ...]
"""Features of every level, level 0 first: ``... h w C`` each with its own h, w and C."""


class StreamState(NamedTuple):
    """What a stream keeps. Slot ``i % slots`` of a ring holds frame i."""

    seen: Int[Array, ""]
    """Frames seen, wrapped before overflow."""
    memory: tuple[Memory, ...]
    """For each fusion block, a ring of what the last T frames are remembered by."""
    waiting: tuple[Float[Array, "B L H W 3"], Pyramid] | None
    """Rings of the frames that wait for their look-ahead, and of their features; None if causal."""


class Fsta(VideoRestorer):
    """The attention network.

    The features of a frame depend on that frame alone (``encode``), and so does what it is
    remembered by (``remember``). ``fuse`` brings the window in, ``decode`` makes the image. A clip
    runs each of them once on all frames; a stream runs each once a frame.
    """

    def __init__(self, config: FstaConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.lookahead = 0 if config.causal else config.window // 2
        self.multiple = 2 ** len(config.widths)
        self.dtype = jnp.dtype(config.dtype)
        options: dict[str, Any] = {"dtype": self.dtype, "rngs": rngs}
        widths, growths = config.widths, config.growths

        def dense_blocks(width: int, growth: int, count: int) -> Any:
            layers = config.dense_layers
            return nnx.List([DenseBlock(width, growth, layers, **options) for _ in range(count)])

        def fusion_block(width: int) -> FusionBlock:
            fusion = FUSIONS[config.fusion](config, width, rngs=rngs)
            product = config.merge == "product"
            return FusionBlock(fusion, width, gated=config.gated, product=product, **options)

        self.stem = Conv(12, widths[0], **options)
        self.encoder = nnx.List(map(dense_blocks, widths, growths, config.encoder_blocks))
        # Halving and doubling move pixels into channels and back around a 1x1 convolution: on a
        # CPU a strided convolution and above all a transposed one have very slow gradients.
        pairs = list(itertools.pairwise(widths))
        self.down = nnx.List([Conv(4 * fine, coarse, 1, **options) for fine, coarse in pairs])
        self.fusion_levels = () if config.fusion == "none" else tuple(config.attention_levels)
        self.fusion = nnx.List([fusion_block(widths[level]) for level in self.fusion_levels])
        self.up = nnx.List([Conv(coarse, 4 * f, 1, gain=0.5, **options) for f, coarse in pairs])
        self.decoder = nnx.List(map(dense_blocks, widths, growths, config.decoder_blocks))
        # Near the identity at the start; with exactly zero short trainings stayed there.
        self.head = Conv(widths[0], 12, gain=0.05, **options)

    # --- The parts of the network ---

    def encode(self, frames: Float[Array, "*leading H W 3"]) -> Pyramid:
        """The features of each frame, at every level."""
        # Centred on zero, so that the zero padding at the border is a mid-grey, not black.
        x = self.stem(space_to_depth(frames.astype(self.dtype) - 0.5, 2))
        features = []
        for level, blocks in enumerate(self.encoder):
            if level:
                x = self.down[level - 1](space_to_depth(activation(LEAK)(x), 2))
            for block in blocks:
                x = self.rematerialised(block)(x)
            features.append(x)
        return tuple(features)

    def remember(self, features: Pyramid) -> tuple[Memory, ...]:
        """What each fusion block keeps of each frame; features of ``B T`` frames."""
        return tuple(
            block.fusion.remember(features[level])
            for level, block in zip(self.fusion_levels, self.fusion, strict=True)
        )

    def fuse(self, features: Pyramid, window: tuple[Memory, ...]) -> Pyramid:
        """Brings the memory of a window into the features of its current frame, ``B h w C``."""
        fused = list(features)
        for level, block, memory in zip(self.fusion_levels, self.fusion, window, strict=True):
            fused[level] = block(fused[level], block.fusion.fuse(fused[level], memory))
        return tuple(fused)

    def decode(
        self, frames: Float[Array, "*leading H W 3"], fused: Pyramid
    ) -> Float[Array, "*leading H W 3"]:
        """The restored frames, float32: the blurred ones plus what the decoder makes."""
        x = fused[-1]
        for level in reversed(range(len(fused))):
            if level < len(fused) - 1:
                x = fused[level] + depth_to_space(self.up[level](x), 2)
            for block in self.decoder[level]:
                x = self.rematerialised(block)(x)
        residual = depth_to_space(self.head(activation(LEAK)(x)), 2)
        return frames.astype(jnp.float32) + residual.astype(jnp.float32)

    # --- The two views ---

    @property
    def offsets(self) -> tuple[int, ...]:
        """Which frame each place of the window is, counted from the current one."""
        return tuple(range(self.lookahead - self.config.window + 1, self.lookahead + 1))

    @property
    def context(self) -> tuple[int, int]:
        """The window but for the frame itself."""
        return self.config.window - 1 - self.lookahead, self.lookahead

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._restore_frames(clip, 0, clip.shape[1])

    def _restore_inside(self, clip: Float[Array, "B length H W 3"]) -> Clip:
        before, after = self.context
        return self._restore_frames(clip, before, clip.shape[1] - after)

    def _restore_frames(self, clip: Float[Array, "B length H W 3"], first: int, end: int) -> Clip:
        """Restores the frames from ``first`` to before ``end``, each with its window."""
        features = self.encode(clip)
        memory = self.remember(features)
        windows = self._windows(clip.shape[1])[first:end]
        fused = [each[:, first:end] for each in features]
        for level, block, kept in zip(self.fusion_levels, self.fusion, memory, strict=True):
            y = block.fusion.fuse_clip(fused[level], kept, windows)
            fused[level] = block(fused[level], y)
        return self.decode(clip[:, first:end], tuple(fused))

    def _windows(self, time: int) -> Int[np.ndarray, "T window"]:
        """The frames that each frame of a clip sees; beyond the ends, the first and the last."""
        current = np.arange(time)[:, None]
        return np.clip(current + np.asarray(self.offsets), 0, time - 1)

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        self._check_fits(batch, height, width)
        frame = jax.ShapeDtypeStruct((batch, 1, height, width, 3), jnp.float32)
        features = jax.eval_shape(self.encode, frame)
        memory = jax.eval_shape(self.remember, features)

        def ring(slots: int, one: Any) -> Any:
            return jax.tree.map(
                lambda array: jnp.zeros((batch, slots, *array.shape[2:]), array.dtype), one
            )

        waiting = ring(self.lookahead, (frame, features)) if self.lookahead else None
        return StreamState(jnp.int32(0), ring(self.config.window, memory), waiting)

    def _step(
        self, state: StreamState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[StreamState, Frame]:
        # A repeated frame stands for what lies beyond the end, like any other.
        features = self.encode(frame[:, None])
        return self._advance(state, frame, features, self.remember(features))

    def _advance(
        self, state: StreamState, frame: Frame, features: Pyramid, memory: tuple[Memory, ...]
    ) -> tuple[StreamState, Frame]:
        """The rest of a step, once the features and the memory of the new frame are known."""
        rings = _write(state.memory, state.seen % self.config.window, memory)
        current, waiting = (frame[:, None], features), None
        if self.lookahead:
            slot = state.seen % self.lookahead
            current, waiting = _read(state.waiting, slot), _write(state.waiting, slot, current)
        current_frame, current_features = jax.tree.map(lambda array: array[:, 0], current)
        # Frames before the first are the first, which is still in its ring as long as it is needed.
        window = jnp.maximum(state.seen - self.lookahead + jnp.asarray(self.offsets), 0)
        slots = window % self.config.window
        fused = self.fuse(current_features, jax.tree.map(lambda ring: ring[:, slots], rings))
        seen = self._counted(state.seen + 1)
        return StreamState(seen, rings, waiting), self.decode(current_frame, fused)

    def _counted(self, seen: Int[Array, ""]) -> Int[Array, ""]:
        """A count that never overflows; after the first frames its places in the rings are all."""
        rings = math.lcm(self.config.window, max(self.lookahead, 1))
        return jnp.where(seen < 2**30, seen, seen - 2**29 // rings * rings)

    def _check_fits(self, batch: int, height: int, width: int) -> None:
        """Raises :class:`UserError` before anything is compiled if the fusion can't fit."""
        for level, block in zip(self.fusion_levels, self.fusion, strict=True):
            if isinstance(block.fusion, NonLocal):
                size = height >> (level + 1), width >> (level + 1)
                block.fusion.rows_at_once(batch, self.config.window, *size)

    def _attention(self) -> list[tuple[int, FactorisedAttention]]:
        """The attention of each block that has one, and its level."""
        fusions = (block.fusion for block in self.fusion)
        pairs = zip(self.fusion_levels, fusions, strict=True)
        return [(level, f) for level, f in pairs if isinstance(f, FactorisedAttention)]

    # --- A frame too large to hold at once (jaxdeblur/restoration/tiling.py) ---

    def gather_partial(self, frame: Frame, inside: Bool[Array, "H W"]) -> tuple[PartialMemory, ...]:
        """What some pixels add to the memory of a frame: one part for each attention block.

        Args:
          frame: ``B H W 3``.
          inside: which pixels, whole blocks of ``multiple``.
        """
        features = self.encode(frame[:, None])
        return tuple(
            fusion.remember_part(features[level], inside[:: 2 ** (level + 1), :: 2 ** (level + 1)])
            for level, fusion in self._attention()
        )

    def combine_partials(
        self, a: tuple[PartialMemory, ...], b: tuple[PartialMemory, ...]
    ) -> tuple[PartialMemory, ...]:
        """What the pixels of both add."""
        return tuple(combine_partials(*pair) for pair in zip(a, b, strict=True))

    def step_gathered(
        self,
        gathered: tuple[PartialMemory, ...],
        state: StreamState,
        frame: Frame,
        repeated: Bool[Array, ""],
    ) -> tuple[StreamState, Frame]:
        """``_step`` on a tile.

        Args:
          gathered: the memory of the frame over all its tiles; nothing without attention.
          state: of the stream.
          frame: the tile, ``B h w 3``.
          repeated: the frame stands for what lies beyond the end of the video.
        """
        if not gathered:
            return self._step(state, frame, repeated)
        features = self.encode(frame[:, None])
        memory = tuple(
            fusion.finish(partial, features[level])
            for (level, fusion), partial in zip(self._attention(), gathered, strict=True)
        )
        return self._advance(state, frame, features, memory)

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side a step reads, apart from what ``gather_partial`` does.

        Raises:
          UserError: the fusion is nonlocal, which needs whole frames.
        """
        if self.config.fusion == "nonlocal" and self.fusion:
            raise UserError("fusion='nonlocal' needs whole frames and can't run in tiles")
        radius = 2 * (self.stem.radius + self.head.radius)
        for level in range(len(self.encoder)):
            blocks = [*self.encoder[level], *self.decoder[level]]
            radius += 2 ** (level + 1) * sum(block.radius for block in blocks)
        for level, block in zip(self.fusion_levels, self.fusion, strict=True):
            radius += 2 ** (level + 1) * block.fusion.radius
        # Halving joins blocks of pixels: a reach that ends inside a block extends to its end.
        return radius + self.multiple

    # --- Several devices ---

    def spread_over(self, mesh: Mesh) -> None:
        """Called when clips are sharded over ``mesh`` (``devices.clips_over``).

        The compiler divides everything else by itself; a kernel that is not told would have the
        whole batch brought to every device. Call it where the train step rebuilds the model.
        """
        sharding = kernels.Sharding(mesh, batch="data")
        for _, fusion in self._attention():
            fusion.sharding = sharding

    # --- Pictures of the attention ---

    def explain_clip(self, clip: Clip) -> Explanation:
        """The maps of eq. 1, 3 and 5 of every attention block and frame."""
        features = self.encode(self.pad(clip))
        windows = self._windows(clip.shape[1])
        maps = [
            self._explain(level, fusion, features[level], windows)
            for level, fusion in self._attention()
        ]
        return Explanation(attention=tuple(maps))

    def _explain(
        self,
        level: int,
        attention: FactorisedAttention,
        features: Float[Array, "B T h w C"],
        windows: Int[np.ndarray, "T window"],
    ) -> AttentionMaps:
        height, width = features.shape[2:4]
        pooled = attention.remember(features).pooled[:, windows]
        folded: Features = rearrange(features, "B T h w C -> (B T) h w C")
        batch = {"B": features.shape[0]}
        size = {"h": height, "w": width}
        return AttentionMaps(
            name=f"level {level}, 1/{2 ** (level + 1)} of the size",
            spatial_maps=rearrange(
                attention.spatial_maps(features), "B T M (h w) -> B T M h w", **size
            ),
            temporal_maps=rearrange(
                attention.temporal_maps(rearrange(pooled, "B T s C -> (B T) s C")),
                "(B T) N s -> B T N s",
                **batch,
            ),
            pixel_mix=rearrange(
                attention.pixel_maps(folded), "(B T) (h w) K -> B T h w K", **batch, **size
            ),
            offsets=self.offsets,
        )


def _write(rings: Any, slot: Int[Array, ""], frame: Any) -> Any:
    """Puts the one frame of ``frame``, ``B 1 ...``, into a slot of each ring."""
    return jax.tree.map(
        lambda ring, one: lax.dynamic_update_slice_in_dim(ring, one.astype(ring.dtype), slot, 1),
        rings,
        frame,
    )


def _read(rings: Any, slot: Int[Array, ""]) -> Any:
    """The frame in a slot of each ring, ``B 1 ...``."""
    return jax.tree.map(lambda ring: lax.dynamic_slice_in_dim(ring, slot, 1, axis=1), rings)
