"""STRCNN+DTB as SimDeblur has it, for weights trained there.

Source: "Online Video Deblurring via Dynamic Temporal Blending Network" (Kim et al., ICCV 2017); the
network as in ljzycmd/SimDeblur @ 351b299 (MIT), simdeblur/model/backbone/strcnn/strcnn.py. Written
from a description of its layers; no code is taken over. To train STRCNN+DTB take
``models/strcnn.py``.

What differs from the paper, and so from ``models/strcnn.py``:
  - Residual blocks have batch normalisation and a ReLU after the sum; one more convolution follows
    those of the encoder, and those of the decoder.
  - The blending's convolution has a bias, reads the current map first and the blended one behind,
    and beta is a plain parameter, 0 at first; the weights are cut to 0 ... 1.
  - The picture is made by a transposed convolution and a 3x3 one.
  - Before the first frame everything is zeros, which the first frame is blended with.
  - SimDeblur restores only frames with two neighbours on both sides; here ends are replicated.

Trained further here, it keeps its running statistics as they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.peers.layers import (
    BatchNorm,
    Conv,
    TransposedConv,
    apply,
    check_config,
    clamp,
    push,
)
from jaxdeblur.models.restorer import VideoRestorer, replicate_ends
from jaxdeblur.shapes import Clip, Features, Frame

relu = jax.nn.relu


@dataclasses.dataclass(frozen=True)
class SimDeblurStrcnnConfig:
    """The fields of SimDeblur's STRCNN+DTB; the defaults are its own.

    Attributes:
      m: frames before and after the current one that the network sees; m frames of look-ahead.
      width: channels of the residual blocks; F_n and the stem have half as many.
      encoder_blocks, decoder_blocks: residual blocks.
      dtype: of the computation; parameters and output are float32.
    """

    m: int = 2
    width: int = 64
    encoder_blocks: int = 4
    decoder_blocks: int = 4
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_config(self, "width", "encoder_blocks", "decoder_blocks")
        if self.m < 0:
            raise UserError(f"m is a number of frames, 0 or more, not {self.m}")
        if self.width % 2:
            raise UserError(f"width is an even number of channels, not {self.width}")


class Recurrence(NamedTuple):
    """What passes from frame to frame."""

    features: Features
    """F_{n-1}."""
    blended: Features
    """h~_{n-1}."""


class StreamState(NamedTuple):
    """What a stream keeps: the window of frames and the recurrence."""

    frames: Clip
    """The last 2m+1 frames."""
    seen: jax.Array
    """How many frames came in, counted to m+1."""
    recurrence: Recurrence


class NormalisedBlock(nnx.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), 3x3."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.first, self.second = (Conv(width, width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.first_norm, self.second_norm = BatchNorm(width), BatchNorm(width)

    def __call__(self, x: Features) -> Features:
        """Adds to x what the two convolutions make of it."""
        y = relu(self.first_norm(self.first(x)))
        return relu(x + self.second_norm(self.second(y)))


class SimDeblurStrcnn(VideoRestorer):
    """SimDeblur's STRCNN+DTB."""

    multiple = 2

    def __init__(self, config: SimDeblurStrcnnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.lookahead = config.m
        self.dtype = jnp.dtype(config.dtype)
        width, half = config.width, config.width // 2

        def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> Conv:
            return Conv(c_in, c_out, kernel, stride=stride, dtype=self.dtype, rngs=rngs)

        def blocks(count: int) -> Any:
            each = [NormalisedBlock(width, dtype=self.dtype, rngs=rngs) for _ in range(count)]
            return nnx.List(each)

        self.stem = conv(3 * (2 * config.m + 1), width, 5)
        self.down = conv(width, half, stride=2)
        self.encoder, self.encoded = blocks(config.encoder_blocks), conv(width, width)
        self.compare = conv(2 * width, width, 5)
        self.beta = nnx.Param(jnp.zeros(1))
        self.decoder, self.decoded = blocks(config.decoder_blocks), conv(width, width)
        self.feedback = conv(width, half)
        self.up = TransposedConv(width, width, dtype=self.dtype, rngs=rngs)
        self.image = conv(width, 3)

    def _restore_clip(self, clip: Clip) -> Clip:
        batch, time, height, width, _ = clip.shape
        m = self.config.m
        padded = replicate_ends(clip, m, m)
        windows = jnp.concatenate([padded[:, i : i + time] for i in range(2 * m + 1)], axis=-1)
        stem = rearrange(self._stem(windows), "b t ... -> t b ...")
        _, features = lax.scan(self._recur, self._recurrence(batch, height, width), stem)
        return self._to_image(rearrange(features, "t b ... -> b t ..."))

    def _initial_state(self, batch: int, height: int, width: int) -> StreamState:
        frames = jnp.zeros((batch, 2 * self.config.m + 1, height, width, 3))
        return StreamState(frames, jnp.int32(0), self._recurrence(batch, height, width))

    def _step(
        self, state: StreamState, frame: Frame, repeated: jax.Array
    ) -> tuple[StreamState, Frame]:
        m = self.config.m
        frames = push(state.frames, frame, state.seen)

        def restore(recurrence: Recurrence) -> tuple[Recurrence, Frame]:
            window = rearrange(frames, "b n h w c -> b h w (n c)")
            recurrence, features = self._recur(recurrence, self._stem(window))
            return recurrence, self._to_image(features)

        def wait(recurrence: Recurrence) -> tuple[Recurrence, Frame]:
            return recurrence, frame.astype(jnp.float32)

        recurrence, restored = lax.cond(state.seen >= m, restore, wait, state.recurrence)
        return StreamState(frames, jnp.minimum(state.seen + 1, m + 1), recurrence), restored

    def _recurrence(self, batch: int, height: int, width: int) -> Recurrence:
        size, channels = (batch, height // 2, width // 2), self.config.width
        return Recurrence(
            jnp.zeros((*size, channels // 2), self.dtype), jnp.zeros((*size, channels), self.dtype)
        )

    def _stem(self, windows: jax.Array) -> jax.Array:
        return relu(self.down(relu(self.stem(windows))))

    def _recur(
        self, past: Recurrence, stem: Float[Array, "B h w C_half"]
    ) -> tuple[Recurrence, Features]:
        """One step of the recurrence: F_n, h~_n and the decoder's features."""
        h = self.encoded(apply(self.encoder, jnp.concatenate([stem, past.features], -1)))
        response = self.compare(jnp.concatenate([h, past.blended], -1)).astype(jnp.float32)
        # Eq. 3, with h_n for the map on which B acts, and eq. 2.
        w = clamp(jnp.abs(jnp.tanh(response)) + self.beta[...]).astype(h.dtype)
        blended = w * h + (1 - w) * past.blended
        features = self.decoded(apply(self.decoder, blended))
        return Recurrence(relu(self.feedback(features)), blended), features

    def _to_image(self, features: jax.Array) -> jax.Array:
        return self.image(relu(self.up(features))).astype(jnp.float32)

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side one step of the stream reads, of frames and of state."""
        blocks = self.config.encoder_blocks + self.config.decoder_blocks
        # The last one is that of F_n, or what the transposed convolution reads.
        at_half_size = 2 * blocks + 1 + 2 + 1 + 1
        # One pixel of a half-size map covers two, and may lie a pixel off the centre.
        return 2 + 1 + 1 + 2 * at_half_size + 1
