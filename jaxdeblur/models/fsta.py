"""The attention network: an encoder-decoder of dense blocks that fuses its window by factorised
spatio-temporal attention, or by an alternative for comparison.

Source: "Dynamic Scene Video Deblurring using Non-local Attention" (Suin and Rajagopalan, arXiv
2022), section 3 and figure 1. Widths, depths, M, N and T were never published; docs/lab/papers.md
gives our choices and their cost.
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
from jaxtyping import Array, Bool, Float, Int

import kernels
from jaxdeblur.errors import UserError
from jaxdeblur.models.attention import FactorisedAttention, PartialMemory, combine_partials
from jaxdeblur.models.explanation import AttentionMaps, Explanation
from jaxdeblur.models.fsta_config import FUSIONS, FstaConfig
from jaxdeblur.models.fusion import Fusion, Memory
from jaxdeblur.models.layers import (
    LEAK,
    Conv,
    DenseBlock,
    activation,
    depth_to_space,
    space_to_depth,
)
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Clip, ClipFeatures, Frame


class FusionBlock(nnx.Module):
    """Merges y^R, the output of the fusion, into the current frame's features: x + merge([x, y]).

    The paper ends at y^R; the merging is ours and the same for every fusion.
    """

    def __init__(self, config: FstaConfig, width: int, *, rngs: nnx.Rngs) -> None:
        def mixed(gain: float) -> Conv:
            return Conv(2 * width, width, 1, gain=gain, dtype=config.dtype, rngs=rngs)

        self.fusion: Fusion = FUSIONS[config.fusion](config, width, rngs=rngs)
        self.gate = mixed(1.0) if config.gated else None
        self.merge = mixed(0.5)

    def __call__(
        self, x: Float[Array, "*leading h w C"], y: Float[Array, "*leading h w C"]
    ) -> Float[Array, "*leading h w C"]:
        """Returns the fused features."""
        if self.gate is not None:
            y = y * jax.nn.sigmoid(self.gate(jnp.concatenate([x, y], axis=-1)))
        return x + self.merge(jnp.concatenate([x, y], axis=-1))


Pyramid = tuple[Float[Array, "..."], ...]
"""Features of every level, level 0 first: ``... h w C``, with h, w and C of that level."""


class StreamState(NamedTuple):
    """The state of a stream. Slot ``i % slots`` of a ring holds frame i."""

    seen: Int[Array, ""]
    """Number of frames received, wrapped before overflow."""
    memory: tuple[Memory, ...]
    """For each fusion block, a ring with the memory of the last T frames."""
    waiting: tuple[Float[Array, "B L H W 3"], Pyramid] | None
    """Rings of the frames that wait for their look-ahead, and of their features; None if causal."""


class Fsta(VideoRestorer):
    """The attention network.

    The features of a frame (``encode``) and its memory (``remember``) depend on that frame alone.
    ``fuse`` merges the window into the features, ``decode`` makes the image from them. A clip runs
    each of the four once on all frames; a stream runs each once per frame.
    """

    def __init__(self, config: FstaConfig, *, rngs: nnx.Rngs) -> None:
        if config.fusion not in (*FUSIONS, "none"):
            raise UserError(
                f"--fusion must be one of {', '.join(FUSIONS)}, none or a fusion from an "
                f"extension (--extension=FILE), not {config.fusion!r}"
            )
        self.config = config
        self.lookahead = 0 if config.causal else config.window // 2
        self.multiple = 2 ** len(config.widths)
        self.dtype = jnp.dtype(config.dtype)
        options: dict[str, Any] = {"dtype": self.dtype, "rngs": rngs}
        widths, growths = config.widths, config.growths

        def dense_blocks(width: int, growth: int, count: int) -> Any:
            layers = config.dense_layers
            return nnx.List([DenseBlock(width, growth, layers, **options) for _ in range(count)])

        self.stem = Conv(12, widths[0], **options)
        self.encoder = nnx.List(map(dense_blocks, widths, growths, config.encoder_blocks))
        # Sizes are halved and doubled by moving pixels into channels and back around a 1x1 kernel:
        # strided and above all transposed convolutions have very slow gradients on a CPU.
        pairs = list(itertools.pairwise(widths))
        self.down = nnx.List([Conv(4 * fine, coarse, 1, **options) for fine, coarse in pairs])
        self.fusion_levels = () if config.fusion == "none" else tuple(config.attention_levels)
        self.fusion = nnx.List(
            [FusionBlock(config, widths[level], rngs=rngs) for level in self.fusion_levels]
        )
        self.up = nnx.List([Conv(coarse, 4 * f, 1, gain=0.5, **options) for f, coarse in pairs])
        self.decoder = nnx.List(map(dense_blocks, widths, growths, config.decoder_blocks))
        # Starts near the identity: short trainings never left an exact zero.
        self.head = Conv(widths[0], 12, gain=0.05, **options)

    # --- The parts of the network ---

    def encode(self, frames: Float[Array, "*leading H W 3"]) -> Pyramid:
        """Returns the features of each frame, at every level."""
        # Centred on zero, so that the zero padding at the border is mid-grey, not black.
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
        """Returns each fusion block's memory of each frame, from features of ``B T`` frames."""
        return tuple(
            block.fusion.remember(features[level])
            for level, block in zip(self.fusion_levels, self.fusion, strict=True)
        )

    def fuse(self, features: Pyramid, window: tuple[Memory, ...]) -> Pyramid:
        """Merges the memory of a window into the features of its current frame, ``B h w C``."""
        fused = list(features)
        for level, block, memory in zip(self.fusion_levels, self.fusion, window, strict=True):
            fused[level] = block(fused[level], block.fusion.fuse(fused[level], memory))
        return tuple(fused)

    def decode(
        self, frames: Float[Array, "*leading H W 3"], fused: Pyramid
    ) -> Float[Array, "*leading H W 3"]:
        """Returns the restored frames, float32: the blurred frames plus the decoder's residual."""
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
        """The frame at each place of the window, relative to the current one."""
        return tuple(range(self.lookahead - self.config.window + 1, self.lookahead + 1))

    @property
    def context(self) -> tuple[int, int]:
        """The window without the frame itself."""
        return self.config.window - 1 - self.lookahead, self.lookahead

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._restore_frames(clip, 0, clip.shape[1])

    def _restore_inside(self, clip: Float[Array, "B length H W 3"]) -> Clip:
        before, after = self.context
        return self._restore_frames(clip, before, clip.shape[1] - after)

    def _restore_frames(self, clip: Float[Array, "B length H W 3"], first: int, end: int) -> Clip:
        """Restores frames ``first`` to ``end`` (exclusive), each with its window."""
        features = self.encode(clip)
        memory = self.remember(features)
        windows = self._windows(clip.shape[1])[first:end]
        fused = [each[:, first:end] for each in features]
        for level, block, kept in zip(self.fusion_levels, self.fusion, memory, strict=True):
            y = block.fusion.fuse_clip(fused[level], kept, windows)
            fused[level] = block(fused[level], y)
        return self.decode(clip[:, first:end], tuple(fused))

    def _windows(self, time: int) -> Int[np.ndarray, "T window"]:
        """Returns the frames in each frame's window; beyond the ends, the first and the last."""
        current = np.arange(time)[:, None]
        return np.clip(current + np.asarray(self.offsets), 0, time - 1)

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
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
        # A repeated frame stands for one beyond the end and is processed like any other.
        features = self.encode(frame[:, None])
        return self._advance(state, frame, features, self.remember(features))

    def _advance(
        self, state: StreamState, frame: Frame, features: Pyramid, memory: tuple[Memory, ...]
    ) -> tuple[StreamState, Frame]:
        """Completes a step, given the features and the memory of the new frame."""
        rings = _write(state.memory, state.seen % self.config.window, memory)
        current, waiting = (frame[:, None], features), None
        if self.lookahead:
            slot = state.seen % self.lookahead
            current, waiting = _read(state.waiting, slot), _write(state.waiting, slot, current)
        current_frame, current_features = jax.tree.map(lambda array: array[:, 0], current)
        # The first frame stands for those before it; its ring holds it as long as it is needed.
        window = jnp.maximum(state.seen - self.lookahead + jnp.asarray(self.offsets), 0)
        slots = window % self.config.window
        fused = self.fuse(current_features, jax.tree.map(lambda ring: ring[:, slots], rings))
        seen = self._counted(state.seen + 1)
        return StreamState(seen, rings, waiting), self.decode(current_frame, fused)

    def _counted(self, seen: Int[Array, ""]) -> Int[Array, ""]:
        """Wraps a count before it overflows; after the first frames only ring positions matter."""
        rings = math.lcm(self.config.window, max(self.lookahead, 1))
        return jnp.where(seen < 2**30, seen, seen - 2**29 // rings * rings)

    def _attention(self) -> list[tuple[int, FactorisedAttention]]:
        """Returns the level and the attention of each block that has one."""
        fusions = (block.fusion for block in self.fusion)
        pairs = zip(self.fusion_levels, fusions, strict=True)
        return [(level, f) for level, f in pairs if isinstance(f, FactorisedAttention)]

    # --- Frames too large to hold at once (jaxdeblur/restoration/tiling.py) ---

    def gather_partial(self, frame: Frame, inside: Bool[Array, "H W"]) -> tuple[PartialMemory, ...]:
        """Returns the contribution of the pixels ``inside`` to each attention block's memory.

        The mask has whole blocks of ``multiple`` pixels.
        """
        features = self.encode(frame[:, None])
        return tuple(
            fusion.remember_part(features[level], inside[:: 2 ** (level + 1), :: 2 ** (level + 1)])
            for level, fusion in self._attention()
        )

    def combine_partials(
        self, a: tuple[PartialMemory, ...], b: tuple[PartialMemory, ...]
    ) -> tuple[PartialMemory, ...]:
        """Returns the contribution of the pixels of both."""
        return tuple(combine_partials(*pair) for pair in zip(a, b, strict=True))

    def step_gathered(
        self,
        gathered: tuple[PartialMemory, ...],
        state: StreamState,
        frame: Frame,
        repeated: Bool[Array, ""],
    ) -> tuple[StreamState, Frame]:
        """Runs ``_step`` on a tile.

        Args:
          gathered: the memory of the frame over all its tiles; empty without attention.
          state: of the stream.
          frame: the tile, ``B h w 3``.
          repeated: whether the frame stands for one beyond the end of the video.
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
        """How many pixels to each side a step reads, apart from those of ``gather_partial``.

        Raises:
          UserError: the fusion needs whole frames.
        """
        if self.config.fusion == "nonlocal" and self.fusion:
            raise UserError("fusion='nonlocal' needs whole frames and can't run in tiles")
        radius = 2 * (self.stem.radius + self.head.radius)
        for level in range(len(self.encoder)):
            blocks = [*self.encoder[level], *self.decoder[level]]
            radius += 2 ** (level + 1) * sum(block.radius for block in blocks)
        for level, block in zip(self.fusion_levels, self.fusion, strict=True):
            radius += 2 ** (level + 1) * block.fusion.radius
        # Halving merges blocks of pixels: a radius that ends inside a block extends to its end.
        return radius + self.multiple

    # --- Several devices ---

    def spread_over(self, mesh: Mesh) -> None:
        """Tells the kernels the mesh, without which each would gather the whole batch."""
        sharding = kernels.Sharding(mesh, batch="data")
        for _, fusion in self._attention():
            fusion.sharding = sharding

    # --- The attention maps ---

    def explain_clip(self, clip: Clip) -> Explanation:
        """Returns the maps of eq. 1, 3 and 5 for every attention block and frame."""
        features = self.encode(self.pad(clip))
        blocks = self._attention()
        return Explanation(attention=tuple(self._explain(*b, features[b[0]]) for b in blocks))

    def _explain(
        self, level: int, attention: FactorisedAttention, features: ClipFeatures
    ) -> AttentionMaps:
        pooled = attention.remember(features).pooled[:, self._windows(features.shape[1])]
        frames = {"B": features.shape[0]}
        pixels = dict(zip("hw", features.shape[2:4], strict=True))
        spatial = attention.spatial_maps(features)
        temporal = attention.temporal_maps(rearrange(pooled, "B T s C -> (B T) s C"))
        mix = attention.pixel_maps(rearrange(features, "B T h w C -> (B T) h w C"))
        return AttentionMaps(
            name=f"level {level}, 1/{2 ** (level + 1)} of the size",
            spatial_maps=rearrange(spatial, "B T M (h w) -> B T M h w", **pixels),
            temporal_maps=rearrange(temporal, "(B T) N s -> B T N s", **frames),
            pixel_mix=rearrange(mix, "(B T) (h w) K -> B T h w K", **frames, **pixels),
            offsets=self.offsets,
        )


def _write(rings: Any, slot: Int[Array, ""], frame: Any) -> Any:
    """Writes ``frame``, ``B 1 ...``, into a slot of each ring."""
    return jax.tree.map(
        lambda ring, one: lax.dynamic_update_slice_in_dim(ring, one.astype(ring.dtype), slot, 1),
        rings,
        frame,
    )


def _read(rings: Any, slot: Int[Array, ""]) -> Any:
    """Returns the frame in a slot of each ring, ``B 1 ...``."""
    return jax.tree.map(lambda ring: lax.dynamic_slice_in_dim(ring, slot, 1, axis=1), rings)
