"""EDVR: five frames aligned by deformable convolutions, fused by attention, restored by a deep net.

Source: "EDVR: Video Restoration with Enhanced Deformable Convolutional Networks" (Wang et al., CVPR
Workshops 2019); the network as in XPixelGroup/BasicSR (Apache-2.0), basicsr/archs/edvr_arch.py,
with ``hr_in`` and ``with_predeblur``, as for deblurring. Written from a description of its layers;
no code is taken over.

What differs between paper, code and re-implementations:
  - The first code (xinntao/EDVR) computes the same under other names, where the two convolutions of
    the temporal attention change places. Names here are BasicSR's.
  - Each frame is aligned with the centre, and the centre with itself.
  - Offsets are not limited. The first code and BasicSR warn when their mean is over 50 pixels of
    the features: the training has then failed, and is taken up again at an earlier state.
  - At the ends of a video frames are replicated (BasicSR's test option ``padding: replicate``).
  - Sizes other than multiples of 16 are refused there, and here filled up by replication.
  - The authors published no recipe for deblurring. Theirs for super-resolution sums the loss over
    the pixels, trains the network without its attention first and starts from that.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.layers import depth_to_space
from jaxdeblur.models.peers.deformable import deformable_conv2d
from jaxdeblur.models.peers.layers import (
    Conv,
    add_bias,
    apply,
    check_config,
    enlarge_bilinear,
    kaiming_normal,
    leaky_relu,
    push,
    residual_blocks,
    torch_default,
    zeros,
)
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.shapes import Clip, Features, Frame

lrelu = leaky_relu(0.1)

Pyramid: TypeAlias = tuple[Float[Array, "B _ _ C"], ...]
"""A frame's features at 1/4, 1/8 and 1/16 of its size: L1, L2, L3."""

Pyramids: TypeAlias = tuple[Any, ...]
"""Those of several frames, each ``B N h w C``."""


@dataclasses.dataclass(frozen=True)
class EdvrConfig:
    """The fields of EDVR; the defaults are EDVR-M for deblurring.

    Attributes:
      m: frames before and after the current one that the network sees; m frames of look-ahead.
      width: channels of the features.
      groups: of the channels of a deformable convolution, each with offsets of its own.
      extract_blocks: residual blocks that make a frame's features.
      blocks: residual blocks that restore what is fused.
      head_width: channels at full size.
      tsa: frames are fused by temporal and spatial attention; else by one convolution.
      dtype: of the computation; parameters and output are float32.
    """

    m: int = 2
    width: int = 64
    groups: int = 8
    extract_blocks: int = 5
    blocks: int = 10
    head_width: int = 64
    tsa: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_config(self, "width", "groups", "extract_blocks", "blocks", "head_width")
        if self.m < 0:
            raise UserError(f"m is a number of frames, 0 or more, not {self.m}")
        if self.width % self.groups:
            raise UserError(f"width is a multiple of the {self.groups} groups, not {self.width}")


class StreamState(NamedTuple):
    """What a stream keeps: the features of the frames in the window, so that each is seen once."""

    frames: Clip
    """The last m+1 frames, of which the first is the one to restore."""
    pyramids: Pyramids
    """The features of the last 2m+1."""
    seen: jax.Array
    """How many frames came in, counted to m+1."""


class DeformableConv(nnx.Module):
    """A 3x3 modulated deformable convolution whose offsets and mask are made of other features."""

    def __init__(self, width: int, groups: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(torch_default(rngs.params(), (3, 3, width, width)))
        self.bias = nnx.Param(jnp.zeros(width))
        # Zeros at first: every tap at its place, and a mask of 1/2.
        self.offset = Conv(width, 3 * groups * 9, init=zeros, dtype=dtype, rngs=rngs)
        self.groups = groups

    def __call__(self, x: Features, features: Features) -> Features:
        """Convolves ``x``, sampled where ``features`` say."""
        made = self.offset(features)
        # Three thirds: the first two together are the offsets, read as (group, tap, (row, column)).
        offsets, mask = made[..., : -9 * self.groups], made[..., -9 * self.groups :]
        y = deformable_conv2d(
            x,
            rearrange(offsets, "b h w (g k a) -> b h w g k a", g=self.groups, a=2),
            jax.nn.sigmoid(rearrange(mask, "b h w (g k) -> b h w g k", g=self.groups)),
            self.kernel[...].astype(x.dtype),
        )
        return add_bias(y, self.bias[...])


class Predeblur(nnx.Module):
    """A frame to features at 1/4 of its size, cleared a little by a pyramid of three sizes."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        def conv(c_in: int, stride: int) -> Conv:
            return Conv(c_in, width, stride=stride, dtype=dtype, rngs=rngs)

        def blocks(count: int) -> Any:
            return residual_blocks(count, width, init=kaiming_normal(0.1), dtype=dtype, rngs=rngs)

        self.first, self.half, self.quarter = conv(3, 1), conv(width, 2), conv(width, 2)
        self.to_l2, self.to_l3 = conv(width, 2), conv(width, 2)
        self.l3, self.l2_before, self.l2_after = blocks(1), blocks(1), blocks(1)
        self.l1_before, self.l1_after = blocks(2), blocks(3)

    def __call__(self, frames: Float[Array, "B H W 3"]) -> Features:
        """Features without an activation at their end."""
        l1 = lrelu(self.quarter(lrelu(self.half(lrelu(self.first(frames))))))
        l2 = lrelu(self.to_l2(l1))
        l3 = apply(self.l3, lrelu(self.to_l3(l2)))
        l2 = apply(self.l2_after, apply(self.l2_before, l2) + enlarge_bilinear(l3))
        return apply(self.l1_after, apply(self.l1_before, l1) + enlarge_bilinear(l2))


class PcdAlignment(nnx.Module):
    """Pyramid, cascading and deformable: a frame's features moved onto those of the centre."""

    def __init__(self, config: EdvrConfig, *, rngs: nnx.Rngs) -> None:
        width, dtype = config.width, jnp.dtype(config.dtype)

        def conv(c_in: int) -> Conv:
            return Conv(c_in, width, dtype=dtype, rngs=rngs)

        def deformable() -> DeformableConv:
            return DeformableConv(width, config.groups, dtype=dtype, rngs=rngs)

        # Lists hold L3, L2, L1, in the order in which they are computed.
        self.offset1 = nnx.List([conv(2 * width) for _ in range(3)])
        self.offset2 = nnx.List([conv(width), conv(2 * width), conv(2 * width)])
        self.offset3 = nnx.List([conv(width) for _ in range(2)])
        self.deformable = nnx.List([deformable() for _ in range(3)])
        self.feature = nnx.List([conv(2 * width) for _ in range(2)])
        self.cascade1, self.cascade2 = conv(2 * width), conv(width)
        self.cascade = deformable()

    def __call__(self, neighbour: Pyramid, centre: Pyramid) -> Features:
        """The neighbour's features where the centre has them."""
        offset = lrelu(self.offset1[0](jnp.concatenate([neighbour[2], centre[2]], -1)))
        offset = lrelu(self.offset2[0](offset))
        aligned = lrelu(self.deformable[0](neighbour[2], offset))
        for level in (1, 2):
            x, reference = neighbour[2 - level], centre[2 - level]
            # A pixel below is two here.
            below = 2 * enlarge_bilinear(offset)
            offset = lrelu(self.offset1[level](jnp.concatenate([x, reference], -1)))
            offset = lrelu(self.offset2[level](jnp.concatenate([offset, below], -1)))
            offset = lrelu(self.offset3[level - 1](offset))
            both = [self.deformable[level](x, offset), enlarge_bilinear(aligned)]
            aligned = self.feature[level - 1](jnp.concatenate(both, -1))
            if level == 1:
                aligned = lrelu(aligned)
        offset = lrelu(self.cascade1(jnp.concatenate([aligned, centre[0]], -1)))
        return lrelu(self.cascade(aligned, lrelu(self.cascade2(offset))))


class TsaFusion(nnx.Module):
    """Temporal and spatial attention: aligned frames weighed pixel by pixel, and fused."""

    def __init__(self, config: EdvrConfig, *, rngs: nnx.Rngs) -> None:
        width, frames, dtype = config.width, 2 * config.m + 1, jnp.dtype(config.dtype)

        def conv(c_in: int, kernel: int = 3) -> Conv:
            return Conv(c_in, width, kernel, dtype=dtype, rngs=rngs)

        self.query, self.key = conv(width), conv(width)
        self.fuse = conv(frames * width, 1)
        self.spatial1, self.spatial2 = conv(frames * width, 1), conv(2 * width, 1)
        self.level1, self.level2, self.level3 = conv(width, 1), conv(2 * width), conv(width)
        self.spatial3, self.spatial4, self.spatial5 = conv(width), conv(width, 1), conv(width)
        self.add1, self.add2 = conv(width, 1), conv(width, 1)
        self.centre = config.m

    def __call__(self, aligned: Float[Array, "B N h w C"]) -> Features:
        """The frames' features made one."""
        # How alike each frame's embedding is to the centre's, 0 to 1.
        query, key = self.query(aligned[:, self.centre]), self.key(aligned)
        alike = jnp.einsum("bhwc,bnhwc->bnhw", query, key, preferred_element_type=jnp.float32)
        share = jax.nn.sigmoid(alike)[..., None].astype(aligned.dtype)
        weighed = rearrange(aligned * share, "b n h w c -> b h w (n c)")
        fused = lrelu(self.fuse(weighed))
        attention = lrelu(self.spatial2(_pools(lrelu(self.spatial1(weighed)))))
        level = lrelu(self.level2(_pools(lrelu(self.level1(attention)))))
        level = enlarge_bilinear(lrelu(self.level3(level)))
        attention = lrelu(self.spatial4(lrelu(self.spatial3(attention)) + level))
        attention = self.spatial5(enlarge_bilinear(attention))
        added = self.add2(lrelu(self.add1(attention)))
        # Twice, since sigmoid(0) is 1/2.
        return fused * jax.nn.sigmoid(attention) * 2 + added


def _pools(x: Features) -> Float[Array, "B h2 w2 2*C"]:
    """Maximum and mean of 3x3 at half the size, side by side; the mean counts zeros outside."""
    window, strides, ends = (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
    least = np.asarray(-np.inf, x.dtype)
    largest = lax.reduce_window(x, least, lax.max, window, strides, ends)
    total = lax.reduce_window(x, np.asarray(0, x.dtype), lax.add, window, strides, ends)
    return jnp.concatenate([largest, total / 9], -1)


class Edvr(VideoRestorer):
    """EDVR: no state beyond the window of frames."""

    multiple = 16  # L3 is at 1/16

    def __init__(self, config: EdvrConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.lookahead = config.m
        self.dtype = jnp.dtype(config.dtype)
        width, frames, head = config.width, 2 * config.m + 1, config.head_width

        def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> Conv:
            return Conv(c_in, c_out, kernel, stride=stride, dtype=self.dtype, rngs=rngs)

        def blocks(count: int) -> Any:
            draw = kaiming_normal(0.1)
            return residual_blocks(count, width, init=draw, dtype=self.dtype, rngs=rngs)

        self.predeblur = Predeblur(width, dtype=self.dtype, rngs=rngs)
        self.to_features = conv(width, width, 1)
        self.extraction = blocks(config.extract_blocks)
        self.l2_down, self.l2 = conv(width, width, stride=2), conv(width, width)
        self.l3_down, self.l3 = conv(width, width, stride=2), conv(width, width)
        self.alignment = PcdAlignment(config, rngs=rngs)
        self.fusion: TsaFusion | Conv = (
            TsaFusion(config, rngs=rngs) if config.tsa else conv(frames * width, width, 1)
        )
        self.reconstruction = blocks(config.blocks)
        self.up1, self.up2 = conv(width, 4 * width), conv(width, 4 * head)
        self.full_size, self.image = conv(head, head), conv(head, 3)

    def _restore_clip(self, clip: Clip) -> Clip:
        batch, time, m = *clip.shape[:2], self.config.m
        each = self._features(rearrange(clip, "b t h w c -> (b t) h w c"))
        features = [rearrange(x, "(b t) ... -> b t ...", b=batch) for x in each]

        def restore(_: None, at: jax.Array) -> tuple[None, Frame]:
            # The ends of a video are replicated.
            inside = jnp.clip(at + jnp.arange(-m, m + 1), 0, time - 1)
            window = tuple(jnp.take(x, inside, axis=1) for x in features)
            centre = lax.dynamic_index_in_dim(clip, at, axis=1, keepdims=False)
            return None, self._restore(window, centre)

        # One window after the other: their samples take nine times the memory of the features.
        _, restored = lax.scan(restore, None, jnp.arange(time))
        return rearrange(restored, "t b ... -> b t ...")

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        m, channels = self.config.m, self.config.width
        pyramids = tuple(
            jnp.zeros((batch, 2 * m + 1, height // size, width // size, channels), self.dtype)
            for size in (4, 8, 16)
        )
        return StreamState(jnp.zeros((batch, m + 1, height, width, 3)), pyramids, jnp.int32(0))

    def _step(
        self, state: StreamState, frame: Frame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        frames = push(state.frames, frame, state.seen)
        features = zip(state.pyramids, self._features(frame), strict=True)
        pyramids = tuple(push(window, new, state.seen) for window, new in features)
        restored = lax.cond(
            state.seen >= self.config.m,
            lambda: self._restore(pyramids, frames[:, 0]),
            lambda: frames[:, 0].astype(jnp.float32),
        )
        seen = jnp.minimum(state.seen + 1, self.config.m + 1)
        return StreamState(frames, pyramids, seen), restored

    def _features(self, frames: Float[Array, "B H W 3"]) -> Pyramid:
        """What is made of each frame by itself."""
        l1 = apply(self.extraction, self.to_features(self.predeblur(frames)))
        l2 = lrelu(self.l2(lrelu(self.l2_down(l1))))
        l3 = lrelu(self.l3(lrelu(self.l3_down(l2))))
        return l1, l2, l3

    def _restore(self, window: Pyramids, centre: Frame) -> Frame:
        """The centre frame, from the features of the window ``B N h w C`` at each size."""
        reference = tuple(x[:, self.config.m] for x in window)
        by_frame = tuple(rearrange(x, "b n ... -> n b ...") for x in window)
        # One neighbour after the other, for the same reason.
        aligned = lax.map(lambda neighbour: self.alignment(neighbour, reference), by_frame)
        if isinstance(self.fusion, TsaFusion):
            x = self.fusion(rearrange(aligned, "n b ... -> b n ..."))
        else:
            x = self.fusion(rearrange(aligned, "n b h w c -> b h w (n c)"))
        x = apply(self.reconstruction, x)
        x = lrelu(depth_to_space(self.up1(x), 2))
        x = lrelu(depth_to_space(self.up2(x), 2))
        residual = self.image(lrelu(self.full_size(x)))
        return centre + residual.astype(jnp.float32)

    @property
    def receptive_radius(self) -> int:
        """There is none.

        Raises:
          UserError: always.
        """
        raise UserError(
            "EDVR can't restore a frame in tiles: the offsets of its deformable convolutions are "
            "not limited, so a pixel may read any other; use smaller frames or a device with more "
            "memory"
        )


EDVR_M = EdvrConfig()
EDVR_L = EdvrConfig(width=128, blocks=40)
