"""STFAN: a spatio-temporal filter adaptive network that aligns and deblurs by predicted filters.

Source: Zhou et al., "Spatio-Temporal Filter Adaptive Network for Video Deblurring" (ICCV 2019);
sczhou/STFAN (models/DeblurNet.py, models/submodules.py, core/train.py), MIT. The network is the
code's, 5,372,547 parameters, and takes the code's weights: the input is BGR, a leaky ReLU follows
every convolution outside a residual block, including the last one and those that predict filters,
and the restored frame is clamped to [0, 1] before it is fed back.

What differs: the code updates its parameters after every frame of a sequence; here a train step
sums the gradients of a clip's frames. Both detach what passes from frame to frame. The code's loss
adds features of VGG19 trained on ImageNet; the preset trains with the MSE alone.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.layers import Conv, ResidualBlock, activation
from jaxdeblur.models.restorer import TrainingOutputs, VideoRestorer
from jaxdeblur.options import Count, Range, check_ranges
from jaxdeblur.shapes import Clip, Features, Frame
from jaxdeblur.table1.layers import TransposedConv, clamp, xavier_uniform

LEAK = 0.1
leaky = activation(LEAK)


@dataclasses.dataclass(frozen=True)
class StfanConfig:
    """The fields of STFAN; the defaults are the authors' network.

    Attributes:
      width: channels at full size; twice as many at 1/2, four times as many at 1/4.
      taps: height and width of the predicted filters, odd.
      detach: in training no gradient passes from frame to frame, as in the authors' code.
      dtype: type of the computation; parameters and output are float32.
    """

    width: Count = 32
    taps: Annotated[int, Range(1, 15)] = 5
    detach: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.taps % 2 == 0:
            raise UserError(f"--taps must be odd, not {self.taps}")


def filter_adaptive_convolution(
    x: Features, filters: Float[Array, "B h w C_filters"], size: int
) -> Features:
    """Correlates each value of ``x`` with its own filter of ``size x size`` taps.

    Section 3.2 of the paper. In the code, models/FAC/kernelconv2d (a CUDA layer) agrees with
    models/submodules.py (PyTorch's operators).

    Args:
      x: ``B h w C``; its first and last rows and columns are repeated beyond the border.
      filters: ``B h w size*size*C``; tap (row i, column j) of channel c is channel
        ``size*size*c + size*i + j``.
      size: height and width of the filters, odd.

    Returns:
      ``y[h, w, c] = sum_ij x[h + i - r, w + j - r, c] filters[h, w, (c, i, j)]``, r = size // 2,
      summed in float32, returned in the dtype of ``x``.
    """
    reach = size // 2
    height, width = x.shape[1:3]
    wide = x.astype(jnp.float32)
    padded = jnp.pad(wide, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode="edge")
    # All neighbours of a value along the last axis: with products of slices, the filters' gradient
    # would be a sum of 25 arrays as large as the filters.
    neighbours = jnp.stack(
        [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)], -1
    )
    taps = rearrange(filters, "b h w (c k) -> b h w c k", k=size * size)
    summed = jnp.einsum("bhwck,bhwck->bhwc", neighbours, taps.astype(jnp.float32))
    return summed.astype(x.dtype)


class Recurrence(NamedTuple):
    """The state that passes from frame to frame."""

    blurred: Frame
    """The previous input frame."""
    restored: Frame
    """The previous output frame, clamped to [0, 1]."""
    features: Features
    """The previous frame's features, adapted, at 1/4 size."""
    begun: Bool[Array, ""]
    """False before the first frame."""


class Stfan(VideoRestorer):
    """STFAN: restores each frame from itself, the previous frame and its restoration."""

    multiple = 4
    # jax2onnx 0.17 does not convert this operator, or wrongly, for frames of any size.
    not_in_onnx = "broadcast_in_dim"
    lookahead = 0

    def __init__(self, config: StfanConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        full, half, quarter = (config.width * factor for factor in (1, 2, 4))
        options: dict[str, Any] = {"init": xavier_uniform, "dtype": config.dtype, "rngs": rngs}

        def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nnx.Sequential:
            return nnx.Sequential(Conv(c_in, c_out, kernel, stride=stride, **options), leaky)

        def upconv(c_in: int, c_out: int) -> nnx.Sequential:
            return nnx.Sequential(TransposedConv(c_in, c_out, **options), leaky)

        def block(width: int) -> ResidualBlock:
            return ResidualBlock(width, leak=LEAK, **options)

        def filters(c_in: int) -> nnx.Sequential:
            enter = [conv(c_in, quarter), block(quarter), block(quarter)]
            return nnx.Sequential(*enter, conv(quarter, quarter * config.taps**2, 1))

        self.conv1_1, self.conv1_2, self.conv1_3 = conv(3, full), block(full), block(full)
        self.conv2_1 = conv(full, half, stride=2)
        self.conv2_2, self.conv2_3 = block(half), block(half)
        self.conv3_1 = conv(half, quarter, stride=2)
        self.conv3_2, self.conv3_3 = block(quarter), block(quarter)
        self.kconv1_1, self.kconv1_2, self.kconv1_3 = conv(9, full), block(full), block(full)
        self.kconv2_1 = conv(full, half, stride=2)
        self.kconv2_2, self.kconv2_3 = block(half), block(half)
        self.kconv3_1 = conv(half, quarter, stride=2)
        self.kconv3_2, self.kconv3_3 = block(quarter), block(quarter)
        self.fac_warp = filters(quarter)
        self.kconv4 = conv(quarter * config.taps**2, quarter, 1)
        self.fac_deblur = filters(2 * quarter)
        self.fea = conv(2 * quarter, quarter)
        self.upconv2_u = upconv(2 * quarter, half)
        self.upconv2_2, self.upconv2_1 = block(half), block(half)
        self.upconv1_u = upconv(half, full)
        self.upconv1_2, self.upconv1_1 = block(full), block(full)
        self.img_prd = conv(full, 3)

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._recur_over(clip, detach=False)

    def training_outputs(self, clip: Clip, sharp: Clip) -> TrainingOutputs:
        """Returns the restored clip; with ``detach``, no gradient passes from frame to frame."""
        height, width = clip.shape[2:4]
        restored = self._recur_over(self.pad(clip), detach=self.config.detach)
        return TrainingOutputs((restored[:, :, :height, :width],), (sharp,), {})

    def _recur_over(self, clip: Clip, detach: bool) -> Clip:
        encoded = self._encode(clip[..., ::-1])

        def recur(past: Recurrence, frame: tuple[Frame, Features]) -> tuple[Recurrence, Frame]:
            return self._recur(lax.stop_gradient(past) if detach else past, *frame)

        start = self._initial_state(clip.shape[0], *clip.shape[2:4])
        frames, features = (rearrange(each, "b t ... -> t b ...") for each in (clip, encoded))
        _, restored = lax.scan(self.rematerialised(recur), start, (frames, features))
        return rearrange(restored, "t b ... -> b t ...")

    def _initial_state(self, batch: int, height: int, width: int) -> Recurrence:
        frame = jnp.zeros((batch, height, width, 3))
        features = jnp.zeros(
            (batch, height // 4, width // 4, 8 * self.config.width), self.config.dtype
        )
        return Recurrence(frame, frame, features, jnp.bool_(False))

    def _step(
        self, state: Recurrence, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[Recurrence, Frame]:
        return self._recur(state, frame, self._encode(frame[..., ::-1]))

    def _encode(self, x: Float[Array, "*leading H W 3"]) -> Float[Array, "*leading h w C"]:
        """Encodes BGR frames to features at 1/4 size (E3)."""
        x = self.conv1_3(self.conv1_2(self.conv1_1(x)))
        x = self.conv2_3(self.conv2_2(self.conv2_1(x)))
        return self.conv3_3(self.conv3_2(self.conv3_1(x)))

    def _recur(self, past: Recurrence, frame: Frame, encoded: Features) -> tuple[Recurrence, Frame]:
        """Restores ``frame`` from itself, its features at 1/4 size (``encoded``) and the state."""
        # The first frame serves as its own past: the frame three times, its features twice.
        blurred = jnp.where(past.begun, past.blurred, frame)
        restored = jnp.where(past.begun, past.restored, frame)
        twice = jnp.concatenate([encoded, encoded], -1)
        features = jnp.where(past.begun, past.features, twice)

        three = jnp.concatenate([each[..., ::-1] for each in (frame, blurred, restored)], -1)
        x = self.kconv1_3(self.kconv1_2(self.kconv1_1(three)))
        x = self.kconv2_3(self.kconv2_2(self.kconv2_1(x)))
        motion = self.kconv3_3(self.kconv3_2(self.kconv3_1(x)))
        warp = self.fac_warp(motion)
        deblur = self.fac_deblur(jnp.concatenate([motion, self.kconv4(warp)], -1))

        taps = self.config.taps
        features = jnp.concatenate(
            [
                filter_adaptive_convolution(encoded, deblur, taps),
                filter_adaptive_convolution(self.fea(features), warp, taps),
            ],
            -1,
        )
        x = self.upconv2_1(self.upconv2_2(self.upconv2_u(features)))
        x = self.upconv1_1(self.upconv1_2(self.upconv1_u(x)))
        output = frame + self.img_prd(x)[..., ::-1].astype(jnp.float32)
        return Recurrence(frame, clamp(output), features, jnp.bool_(True)), output

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step reads, by way of the filters, which is farthest."""
        level, reach = 5, self.config.taps // 2  # level: a convolution and two residual blocks
        encoder = level + 2 * (level - 1) + 1 + 4 * (level - 1) + 2
        filters = 4 * 2 * level
        decoder = 4 + 2 * (level - 1) + 2 + (level - 1) + 1
        return encoder + filters + 4 * reach + decoder + 3  # a value at 1/4 covers four pixels
