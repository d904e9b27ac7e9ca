"""EDVR: aligns five frames by deformable convolution, fuses by attention, restores by a deep net.

Source: "EDVR: Video Restoration with Enhanced Deformable Convolutional Networks" (Wang et al., CVPR
Workshops 2019); the network as in XPixelGroup/BasicSR (Apache-2.0), basicsr/archs/edvr_arch.py,
with ``hr_in`` and ``with_predeblur``, as for deblurring. Written from a description of its layers;
no code is copied.

What differs between paper, code and re-implementations:
  - The first code (xinntao/EDVR) computes the same under other names, with the two convolutions of
    the temporal attention swapped. Names here are BasicSR's.
  - Every frame is aligned to the centre, the centre itself included.
  - Offsets are not limited. The first code and BasicSR warn when their mean exceeds 50 pixels of
    the features: training has then failed and is resumed from an earlier checkpoint.
  - Frames are replicated at the ends of a video (BasicSR's test option ``padding: replicate``).
  - BasicSR rejects sizes that are not multiples of 16; here frames are padded by replication.
  - The authors published no recipe for deblurring. Their recipe for super-resolution sums the loss
    over the pixels, trains the network without attention first and starts from that.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.images import enlarge
from jaxdeblur.models.layers import Conv, ResidualBlock, activation, add_bias
from jaxdeblur.options import Count, Range, check_ranges
from jaxdeblur.shapes import Clip, Features, Frame, Kernel
from jaxdeblur.table1.layers import torch_default
from jaxdeblur.table1.windowed import Windowed

lrelu = activation(0.1)
_twice = functools.partial(enlarge, factor=2)
_conv = functools.partial(Conv, init=torch_default)
_block = functools.partial(ResidualBlock, gains=(0.1, 0.1))

Pyramid: TypeAlias = tuple[Float[Array, "B _ _ C"], ...]
"""A frame's features at 1/4, 1/8 and 1/16 of its size: L1, L2, L3."""


@dataclasses.dataclass(frozen=True)
class EdvrConfig:
    """The fields of EDVR; the defaults are EDVR-M for deblurring.

    Attributes:
      m: frames before and after the current one that the network sees; m frames of look-ahead.
      width: channels of the features.
      groups: channel groups of a deformable convolution, each with its own offsets.
      extract_blocks: residual blocks that extract a frame's features.
      blocks: residual blocks that restore the frame from the fused features.
      head_width: channels at full size.
      tsa: frames are fused by temporal and spatial attention, else by one convolution.
      dtype: type of the computation; parameters and output are float32.
    """

    m: Annotated[int, Range(0)] = 2
    width: Count = 64
    groups: Count = 8
    extract_blocks: Count = 5
    blocks: Count = 10
    head_width: Count = 64
    tsa: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % self.groups:
            raise UserError(
                f"--width must be a multiple of --groups={self.groups}, not {self.width}"
            )


def _blocks(count: int, width: int, **options: Any) -> nnx.Sequential:
    return nnx.Sequential(*(_block(width, **options) for _ in range(count)))


def _pixel_shuffle(x: Features) -> Float[Array, "B H W C2"]:
    """Shuffles pixels in PyTorch's channel order, that of the published weights."""
    return rearrange(x, "b h w (c p q) -> b (h p) (w q) c", p=2, q=2)


def deformable_conv2d(
    x: Features,
    offsets: Float[Array, "B h w groups taps 2"],
    mask: Float[Array, "B h w groups taps"],
    kernel: Kernel,
) -> Float[Array, "B h w C_out"]:
    """Computes y(p) = sum over taps k of w_k . mask_k(p) x(p + k + offset_k(p)), without bias.

    Source: "Deformable ConvNets v2" (Zhu et al., CVPR 2019), section 3.1; offsets and masks ordered
    as in the operators of mmcv, BasicSR and torchvision. Values are bilinear between pixels and 0
    outside. It is a gather and a contraction, so no operator has to be built.

    Args:
      x: features; their channels are divided evenly among the groups.
      offsets: in pixels, (row, column), for each tap of each group of channels. Taps are numbered
        row by row; an offset of 0 reads a tap at its regular position.
      mask: factor of each tap's value.
      kernel: ``3 3 C C_out``.
    """
    height, width = x.shape[1:3]
    taps = jnp.asarray(list(itertools.product((-1, 0, 1), repeat=2)), jnp.float32)
    here = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    # In float32: bfloat16 cannot represent every pixel position beyond 256.
    places = here[:, :, None, None].astype(jnp.float32) + taps + offsets.astype(jnp.float32)
    sampled = (_sample(x, places) * mask.astype(jnp.float32)[..., None]).astype(x.dtype)
    columns_of = rearrange(sampled, "b h w g k c -> b h w (g k c)")
    weights = rearrange(kernel, "i j (g c) o -> (g i j c) o", g=offsets.shape[3]).astype(x.dtype)
    return jnp.einsum("bhwk,ko->bhwo", columns_of, weights)


def _sample(
    x: Features, places: Float[Array, "B h w groups taps 2"]
) -> Float[Array, "B h w groups taps c"]:
    """Samples each group's channels bilinearly at (row, column), in float32; 0 outside x."""
    height, width = x.shape[1:3]
    groups = places.shape[3]
    # Everything far outside is 0. Clipping keeps indices within int32 and in the zero padding.
    places = jnp.clip(places, -2.0, jnp.asarray([height + 1.0, width + 1.0]))
    low = jnp.floor(places)
    down, right = jnp.moveaxis(places - low, -1, 0)[..., None]
    row, column = jnp.moveaxis(low.astype(jnp.int32) + 2, -1, 0)
    # The four pixels around a position form one row of a table: on a CPU the gradient of a gather
    # processes rows one by one, and this way it has a quarter as many.
    padded = jnp.pad(x, [(0, 0), (2, 3), (2, 3), (0, 0)])
    table = jnp.stack(
        [
            padded[:, i : i + height + 4, j : j + width + 4]
            for i, j in itertools.product((0, 1), repeat=2)
        ],
        axis=3,
    )
    table = rearrange(table, "b h w n (g c) -> b g (h w) (n c)", g=groups)
    index = rearrange(row * (width + 4) + column, "b h w g k -> b g (h w k) 1")
    around = jnp.take_along_axis(table, index, axis=2, mode="clip")
    around = rearrange(
        around, "b g (h w k) (n c) -> n b h w g k c", h=places.shape[1], w=places.shape[2], n=4
    )
    above = around[0] * (1 - right) + around[1] * right
    below = around[2] * (1 - right) + around[3] * right
    return above * (1 - down) + below * down


class DeformableConv(nnx.Module):
    """A 3x3 modulated deformable convolution; other features determine its offsets and mask.

    Args:
      width: channels of both inputs and of the result.
      groups: number of channel groups, each with its own offsets and mask.
      dtype: type of the computation.
      rngs: source of random numbers for the kernels.
    """

    def __init__(self, width: int, groups: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(torch_default(rngs.params(), (3, 3, width, width)))
        self.bias = nnx.Param(jnp.zeros(width))
        # Initially zero: every tap reads its regular position, and the mask is 1/2.
        self.conv_offset = Conv(width, 3 * groups * 9, gain=0.0, dtype=dtype, rngs=rngs)
        self.groups = groups

    def __call__(self, x: Features, features: Features) -> Features:
        """Convolves ``x`` with the offsets and mask computed from ``features``."""
        made = self.conv_offset(features)
        # The first two thirds are the offsets, ordered as (group, tap, (row, column)).
        offsets, mask = made[..., : -9 * self.groups], made[..., -9 * self.groups :]
        y = deformable_conv2d(
            x,
            rearrange(offsets, "b h w (g k a) -> b h w g k a", g=self.groups, a=2),
            jax.nn.sigmoid(rearrange(mask, "b h w (g k) -> b h w g k", g=self.groups)),
            self.kernel[...].astype(x.dtype),
        )
        return add_bias(y, self.bias[...])


class Predeblur(nnx.Module):
    """Maps a frame to features at 1/4 size, slightly deblurred by a pyramid of three sizes."""

    def __init__(self, width: int, **options: Any) -> None:
        conv: Callable[..., Conv] = functools.partial(_conv, c_out=width, stride=2, **options)
        self.conv_first = conv(3, stride=1)
        self.stride_conv_hr1, self.stride_conv_hr2 = conv(width), conv(width)
        self.stride_conv_l2, self.stride_conv_l3 = conv(width), conv(width)
        self.resblock_l3, self.resblock_l2_1, self.resblock_l2_2 = (
            _block(width, **options) for _ in range(3)
        )
        self.resblock_l1 = _blocks(5, width, **options)

    def __call__(self, frames: Float[Array, "B H W 3"]) -> Features:
        """Returns the features, without a final activation."""
        l1 = lrelu(self.stride_conv_hr1(lrelu(self.conv_first(frames))))
        l1 = lrelu(self.stride_conv_hr2(l1))
        l2 = lrelu(self.stride_conv_l2(l1))
        l3 = self.resblock_l3(lrelu(self.stride_conv_l3(l2)))
        l2 = self.resblock_l2_2(self.resblock_l2_1(l2) + _twice(l3))
        for i, block in enumerate(self.resblock_l1.layers):
            l1 = block(l1) + _twice(l2) if i == 1 else block(l1)
        return l1


class PcdAlignment(nnx.Module):
    """Pyramid, cascading and deformable alignment of a frame's features to the centre's."""

    def __init__(self, width: int, groups: int, **options: Any) -> None:
        conv: Callable[..., Conv] = functools.partial(_conv, c_out=width, **options)
        deformable = functools.partial(DeformableConv, width, groups, **options)
        self.offset_conv1 = nnx.Dict({level: conv(2 * width) for level in ("l3", "l2", "l1")})
        self.offset_conv2 = nnx.Dict(l3=conv(width), l2=conv(2 * width), l1=conv(2 * width))
        self.offset_conv3 = nnx.Dict(l2=conv(width), l1=conv(width))
        self.dcn_pack = nnx.Dict(l3=deformable(), l2=deformable(), l1=deformable())
        self.feat_conv = nnx.Dict(l2=conv(2 * width), l1=conv(2 * width))
        self.cas_offset_conv1, self.cas_offset_conv2 = conv(2 * width), conv(width)
        self.cas_dcnpack = deformable()

    def __call__(self, neighbour: Pyramid, centre: Pyramid) -> Features:
        """Returns the neighbour's features aligned to the centre."""
        offset = lrelu(self.offset_conv1["l3"](jnp.concatenate([neighbour[2], centre[2]], -1)))
        offset = lrelu(self.offset_conv2["l3"](offset))
        aligned = lrelu(self.dcn_pack["l3"](neighbour[2], offset))
        for level, x, reference in zip(("l2", "l1"), neighbour[1::-1], centre[1::-1], strict=True):
            # One pixel of the coarser level is two of this level.
            below = 2 * _twice(offset)
            offset = lrelu(self.offset_conv1[level](jnp.concatenate([x, reference], -1)))
            offset = lrelu(self.offset_conv2[level](jnp.concatenate([offset, below], -1)))
            offset = lrelu(self.offset_conv3[level](offset))
            both = [self.dcn_pack[level](x, offset), _twice(aligned)]
            aligned = self.feat_conv[level](jnp.concatenate(both, -1))
            if level == "l2":
                aligned = lrelu(aligned)
        offset = lrelu(self.cas_offset_conv1(jnp.concatenate([aligned, centre[0]], -1)))
        return lrelu(self.cas_dcnpack(aligned, lrelu(self.cas_offset_conv2(offset))))


class TsaFusion(nnx.Module):
    """Temporal and spatial attention: weights aligned frames pixel by pixel and fuses them."""

    def __init__(self, width: int, m: int, **options: Any) -> None:
        conv: Callable[..., Conv] = functools.partial(_conv, c_out=width, **options)
        frames = (2 * m + 1) * width
        self.temporal_attn1, self.temporal_attn2 = conv(width), conv(width)
        self.feat_fusion = conv(frames, kernel=1)
        self.spatial_attn1 = conv(frames, kernel=1)
        self.spatial_attn2 = conv(2 * width, kernel=1)
        self.spatial_attn_l1 = conv(width, kernel=1)
        self.spatial_attn_l2, self.spatial_attn_l3 = conv(2 * width), conv(width)
        self.spatial_attn3 = conv(width)
        self.spatial_attn4, self.spatial_attn5 = conv(width, kernel=1), conv(width)
        self.spatial_attn_add1 = conv(width, kernel=1)
        self.spatial_attn_add2 = conv(width, kernel=1)
        self.m = m

    def __call__(self, aligned: Float[Array, "B N h w C"]) -> Features:
        """Fuses the features of all frames."""
        # Similarity of each frame's embedding to the centre's, 0 to 1.
        query, key = self.temporal_attn1(aligned[:, self.m]), self.temporal_attn2(aligned)
        alike = jnp.einsum("bhwc,bnhwc->bnhw", query, key, preferred_element_type=jnp.float32)
        share = jax.nn.sigmoid(alike)[..., None].astype(aligned.dtype)
        weighed = rearrange(aligned * share, "b n h w c -> b h w (n c)")
        fused = lrelu(self.feat_fusion(weighed))
        attention = lrelu(self.spatial_attn2(_pools(lrelu(self.spatial_attn1(weighed)))))
        level = _pools(lrelu(self.spatial_attn_l1(attention)))
        level = lrelu(self.spatial_attn_l3(lrelu(self.spatial_attn_l2(level))))
        attention = lrelu(self.spatial_attn3(attention)) + _twice(level)
        attention = self.spatial_attn5(_twice(lrelu(self.spatial_attn4(attention))))
        added = self.spatial_attn_add2(lrelu(self.spatial_attn_add1(attention)))
        # Times 2, since sigmoid(0) is 1/2.
        return fused * jax.nn.sigmoid(attention) * 2 + added


def _pools(x: Features) -> Float[Array, "B h2 w2 2*C"]:
    """Concatenates 3x3 max and mean pooling with stride 2; the mean counts zeros outside."""
    window, strides, ends = (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
    least = np.asarray(-np.inf, x.dtype)
    largest = lax.reduce_window(x, least, lax.max, window, strides, ends)
    total = lax.reduce_window(x, np.asarray(0, x.dtype), lax.add, window, strides, ends)
    return jnp.concatenate([largest, total / 9], -1)


class Edvr(Windowed):
    """EDVR: its only state is the window's frames and their features, computed once."""

    multiple = 16  # L3 is at 1/16
    # jax2onnx 0.17 does not convert this operator, or wrongly, for frames of any size.
    not_in_onnx = "reduce_window_max"

    def __init__(self, config: EdvrConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.lookahead = config.m
        width, head = config.width, config.head_width
        options: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
        conv: Callable[..., Conv] = functools.partial(_conv, **options)
        self.predeblur = Predeblur(width, **options)
        self.conv_1x1 = conv(width, width, 1)
        self.feature_extraction = _blocks(config.extract_blocks, width, **options)
        self.conv_l2_1, self.conv_l2_2 = conv(width, width, stride=2), conv(width, width)
        self.conv_l3_1, self.conv_l3_2 = conv(width, width, stride=2), conv(width, width)
        self.pcd_align = PcdAlignment(width, config.groups, **options)
        self.fusion: TsaFusion | Conv = (
            TsaFusion(width, config.m, **options)
            if config.tsa
            else conv((2 * config.m + 1) * width, width, 1)
        )
        self.reconstruction = _blocks(config.blocks, width, **options)
        self.upconv1, self.upconv2 = conv(width, 4 * width), conv(width, 4 * head)
        self.conv_hr, self.conv_last = conv(head, head), conv(head, 3)

    @property
    def receptive_radius(self) -> int:
        """Raises :class:`UserError`: tiles would change the result."""
        raise UserError(
            "EDVR can't restore a frame in tiles: the offsets of its deformable convolutions are "
            "not limited, so a pixel may depend on any other; use smaller frames or a device with "
            "more memory"
        )

    def _of_frames(self, frames: Float[Array, "B H W 3"]) -> tuple[Frame, Pyramid]:
        l1 = self.feature_extraction(self.conv_1x1(self.predeblur(frames)))
        l2 = lrelu(self.conv_l2_2(lrelu(self.conv_l2_1(l1))))
        l3 = lrelu(self.conv_l3_2(lrelu(self.conv_l3_1(l2))))
        return frames, (l1, l2, l3)

    def _restore_windows(self, kept: Any) -> Clip:
        length = 2 * self.config.m + 1

        def restore(_: None, at: jax.Array) -> tuple[None, Frame]:
            window = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, at, length, axis=1), kept)
            return None, self._restore(*window)

        # One window at a time: the sampled values take nine times the memory of the features.
        starts = jnp.arange(kept[0].shape[1] - length + 1)
        _, restored = lax.scan(self.rematerialised(restore), None, starts)
        return rearrange(restored, "t b ... -> b t ...")

    def _restore(self, frames: Clip, pyramids: Any) -> Frame:
        """Restores the centre frame from the window's frames and features ``B N h w C``."""
        centre = tuple(x[:, self.config.m] for x in pyramids)
        by_frame = tuple(rearrange(x, "b n ... -> n b ...") for x in pyramids)
        # One neighbour at a time, for the same reason.
        align = self.rematerialised(lambda neighbour: self.pcd_align(neighbour, centre))
        aligned = lax.map(align, by_frame)
        order = "b n h w c" if self.config.tsa else "b h w (n c)"
        x = self.reconstruction(self.fusion(rearrange(aligned, f"n b h w c -> {order}")))
        x = lrelu(_pixel_shuffle(self.upconv1(x)))
        x = lrelu(_pixel_shuffle(self.upconv2(x)))
        residual = self.conv_last(lrelu(self.conv_hr(x)))
        return frames[:, self.config.m] + residual.astype(jnp.float32)
