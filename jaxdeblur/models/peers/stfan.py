"""STFAN: a spatio-temporal filter adaptive network, which aligns and deblurs by predicted filters.

Source: Zhou et al., "Spatio-Temporal Filter Adaptive Network for Video Deblurring" (ICCV 2019);
sczhou/STFAN (models/DeblurNet.py, models/submodules.py, core/train.py), MIT. The network is the
code's, 5,372,547 parameters, and takes the code's weights: colours go in as BGR, every convolution
outside a residual block is followed by a leaky ReLU, also those that predict filters and the last
one, and what is fed back of the restored frame is clamped to [0, 1].

What differs: the code updates its parameters after every frame of a sequence, here a train step
sums the gradients of a clip's frames; both detach what passes from frame to frame. The code's loss
adds features of VGG19 trained on ImageNet; the preset trains by the MSE alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.peers.filter_adaptive import filter_adaptive_convolution
from jaxdeblur.models.peers.layers import (
    Conv,
    TransposedConv,
    apply,
    clamp,
    leaky_relu,
    residual_blocks,
    xavier_uniform,
)
from jaxdeblur.models.restorer import TrainingOutputs, VideoRestorer
from jaxdeblur.shapes import Clip, Features, Frame

LEAK = 0.1
leaky = leaky_relu(LEAK)


@dataclasses.dataclass(frozen=True)
class StfanConfig:
    """The fields of STFAN; the defaults are the authors' network.

    Attributes:
      width: channels at full size; twice as many at 1/2, four times as many at 1/4.
      taps: height and width of the predicted filters, odd.
      detach: in training no gradient passes from frame to frame, as in the authors' code.
      dtype: of the computation; parameters and output are float32.
    """

    width: int = 32
    taps: int = 5
    detach: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width is 1 or more channels, not {self.width}")
        if self.taps < 1 or self.taps % 2 == 0 or self.taps > 15:
            raise UserError(f"taps is odd, 1 to 15, not {self.taps}")


class Recurrence(NamedTuple):
    """What passes from frame to frame."""

    blurred: Frame
    """The last frame that came in."""
    restored: Frame
    """What came out for it, clamped to [0, 1]."""
    features: Features
    """The last frame's features, adapted, at 1/4 of the size."""
    first: Bool[Array, ""]
    """True before the first frame."""


class Level(nnx.Module):
    """A convolution, or a transposed one, leaky ReLU, and two residual blocks."""

    def __init__(self, enter: Conv | TransposedConv, width: int, **options: Any) -> None:
        self.enter = enter
        self.blocks = residual_blocks(2, width, leak=LEAK, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``... h w C`` at the size that the first convolution makes."""
        return apply(self.blocks, leaky(self.enter(x)))


class Filters(nnx.Module):
    """Predicts the filters of a filter-adaptive convolution from features at 1/4."""

    def __init__(self, c_in: int, width: int, taps: int, **options: Any) -> None:
        self.level = Level(Conv(c_in, width, **options), width, **options)
        self.out = Conv(width, width * taps**2, 1, **options)

    def __call__(self, features: Features) -> Float[Array, "B h w C_filters"]:
        """The taps of each value, ``taps*taps*width`` channels."""
        return leaky(self.out(self.level(features)))


class Stfan(VideoRestorer):
    """One frame at a time, from this frame, the last one, and what was restored of it."""

    multiple = 4
    lookahead = 0

    def __init__(self, config: StfanConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = jnp.dtype(config.dtype)
        full, half, quarter = (config.width * factor for factor in (1, 2, 4))
        options: dict[str, Any] = {"init": xavier_uniform, "dtype": self.dtype, "rngs": rngs}

        def encoder(c_in: int) -> Any:
            return nnx.List(
                [
                    Level(Conv(c_in, full, **options), full, **options),
                    Level(Conv(full, half, stride=2, **options), half, **options),
                    Level(Conv(half, quarter, stride=2, **options), quarter, **options),
                ]
            )

        self.encoder = encoder(3)
        self.three_frames = encoder(9)
        self.to_align = Filters(quarter, quarter, config.taps, **options)
        self.seen_filters = Conv(quarter * config.taps**2, quarter, 1, **options)
        self.to_deblur = Filters(2 * quarter, quarter, config.taps, **options)
        self.past = Conv(2 * quarter, quarter, **options)
        self.decoder = nnx.List(
            [
                Level(TransposedConv(2 * quarter, half, **options), half, **options),
                Level(TransposedConv(half, full, **options), full, **options),
            ]
        )
        self.head = Conv(full, 3, **options)

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._recur_over(clip, detach=False)

    def training_outputs(self, clip: Clip, sharp: Clip) -> TrainingOutputs:
        """The clip alone, without gradients from frame to frame if ``detach`` says so."""
        height, width = clip.shape[2:4]
        restored = self._recur_over(self.pad(clip), detach=self.config.detach)
        return TrainingOutputs((restored[:, :, :height, :width],), (sharp,), {})

    def _recur_over(self, clip: Clip, detach: bool) -> Clip:
        encoded = apply(self.encoder, clip[..., ::-1])

        def recur(past: Recurrence, frame: tuple[Frame, Features]) -> tuple[Recurrence, Frame]:
            return self._recur(lax.stop_gradient(past) if detach else past, *frame)

        start = self._initial_state(clip.shape[0], *clip.shape[2:4])
        frames, features = (rearrange(each, "b t ... -> t b ...") for each in (clip, encoded))
        _, restored = lax.scan(self.in_backward_again(recur), start, (frames, features))
        return rearrange(restored, "t b ... -> b t ...")

    def _initial_state(self, batch: int, height: int, width: int) -> Recurrence:
        frame = jnp.zeros((batch, height, width, 3))
        features = jnp.zeros((batch, height // 4, width // 4, 8 * self.config.width), self.dtype)
        return Recurrence(frame, frame, features, jnp.bool_(True))

    def _step(
        self, state: Recurrence, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[Recurrence, Frame]:
        return self._recur(state, frame, apply(self.encoder, frame[..., ::-1]))

    def _recur(self, past: Recurrence, frame: Frame, encoded: Features) -> tuple[Recurrence, Frame]:
        """One frame (``frame``, and ``encoded``, its features at 1/4) with what passed so far."""
        # The first frame is its own past: three times the frame, twice its features.
        blurred = jnp.where(past.first, frame, past.blurred)
        restored = jnp.where(past.first, frame, past.restored)
        twice = jnp.concatenate([encoded, encoded], -1)
        features = jnp.where(past.first, twice, past.features)

        three = jnp.concatenate([each[..., ::-1] for each in (frame, blurred, restored)], -1)
        motion = apply(self.three_frames, three)
        align = self.to_align(motion)
        seen = leaky(self.seen_filters(align))
        deblur = self.to_deblur(jnp.concatenate([motion, seen], -1))

        taps = self.config.taps
        features = jnp.concatenate(
            [
                filter_adaptive_convolution(encoded, deblur, taps),
                filter_adaptive_convolution(leaky(self.past(features)), align, taps),
            ],
            -1,
        )
        change = leaky(self.head(apply(self.decoder, features)))
        output = frame + change[..., ::-1].astype(jnp.float32)
        return Recurrence(frame, clamp(output), features, jnp.bool_(False)), output

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step reads: by way of the filters, which is farthest."""
        level, reach = 5, self.config.taps // 2  # of a convolution and two residual blocks
        encoder = level + 2 * (level - 1) + 1 + 4 * (level - 1) + 2
        filters = 4 * 2 * level
        decoder = 4 + 2 * (level - 1) + 2 + (level - 1) + 1
        return encoder + filters + 4 * reach + decoder + 3  # a value at 1/4 covers four pixels
