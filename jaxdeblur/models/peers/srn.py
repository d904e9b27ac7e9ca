"""SRN: one picture at 1/4, 1/2 and full size in turn, with the same weights at each.

Source: "Scale-Recurrent Network for Deep Image Deblurring" (Tao et al., CVPR 2018); the network as
in jiangsutx/SRN-Deblur @ 2caaa85 (MIT), models/model.py and util/BasicConvLSTMCell.py. Written from
a description of its layers; no code is taken over.

What differs between paper, code and re-implementations:
  - The authors published three variants: ``lstm`` has a ConvLSTM whose state goes from size to
    size; ``gray`` is that without it; ``color`` has none and takes the three colours together,
    where the others take them as three pictures of one channel. Those two are trained on grey ones.
  - The picture is restored, not a residual, and each finer size begins from the coarser one's
    picture, through which no gradient goes (it does through the LSTM's state).
  - Pictures change size as TensorFlow 1 does it: halving takes every other pixel, and doubling
    moves the picture by a quarter of a pixel. Today's resizing in its place gives another network.
  - Convolutions of stride 2 are TensorFlow's SAME: 1 zero before and 2 behind an even size.
  - ESTRNN's and SimDeblur's versions have another LSTM (5x5, no bias of 1 at the forget gate, its
    cell goes on to the decoder), symmetric padding and other resizing; neither reads the authors'
    weights.
  - The authors' program restores 720x1280 pixels, fills up smaller pictures by their edges, and
    SHRINKS larger ones; here a picture of any size is filled up to a multiple of 16.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.peers.layers import (
    Conv,
    TransposedConv,
    apply,
    check_config,
    double,
    halve,
    residual_blocks,
    truncated_normal,
    xavier_uniform,
)
from jaxdeblur.models.restorer import TrainingOutputs, VideoRestorer
from jaxdeblur.shapes import Clip, Features, Frame

LEVELS = 3
"""Sizes: 1/4, 1/2 and 1."""

GREY = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in TensorFlow's grey."""


@dataclasses.dataclass(frozen=True)
class SrnConfig:
    """The fields of SRN; the defaults are the authors' network for colour pictures.

    Attributes:
      srn: color takes the three colours together; gray and lstm take each by itself, and lstm
        passes the state of a ConvLSTM from size to size.
      width: channels at a level's own size; 2 and 4 times as many at 1/2 and 1/4 of it.
      dtype: of the computation; parameters and output are float32.
    """

    srn: Literal["color", "gray", "lstm"] = "color"
    width: int = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_config(self, "width")


class ConvLstm(nnx.Module):
    """A long short-term memory whose gates are one 3x3 convolution; state is [c, h]."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        draw = truncated_normal(1e-3)
        self.gates = Conv(2 * width, 4 * width, padding="same", init=draw, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Features, state: Float[Array, "B h w 2*C"]
    ) -> tuple[Features, Float[Array, "B h w 2*C"]]:
        """Gives h', and the state [c', h']."""
        c, h = jnp.split(state, 2, axis=-1)
        i, j, f, o = jnp.split(self.gates(jnp.concatenate([x, h], axis=-1)), 4, axis=-1)
        # c' = c sigmoid(f + 1) + sigmoid(i) tanh(j);  h' = tanh(c') sigmoid(o)
        c = c * jax.nn.sigmoid(f + 1) + jax.nn.sigmoid(i) * jnp.tanh(j)
        h = jnp.tanh(c) * jax.nn.sigmoid(o)
        return h, jnp.concatenate([c, h], axis=-1)


class Srn(VideoRestorer):
    """SRN: each frame by itself, so without look-ahead and without a state."""

    multiple = 16  # 1/4 of the size, of which the decoder begins at 1/4

    def __init__(self, config: SrnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.lookahead = 0
        self.dtype = jnp.dtype(config.dtype)
        width, channels = config.width, 3 if config.srn == "color" else 1

        def conv(c_in: int, c_out: int, stride: int = 1) -> Conv:
            return Conv(
                c_in, c_out, 5,
                stride=stride, padding="same", init=xavier_uniform, dtype=self.dtype, rngs=rngs,
            )  # fmt: skip

        def transposed(c_in: int, c_out: int) -> TransposedConv:
            return TransposedConv(c_in, c_out, init=xavier_uniform, dtype=self.dtype, rngs=rngs)

        def blocks(width: int) -> Any:
            return residual_blocks(
                3, width, 5, padding="same", init=xavier_uniform, dtype=self.dtype, rngs=rngs
            )

        self.enc1, self.enc1_blocks = conv(2 * channels, width), blocks(width)
        self.enc2, self.enc2_blocks = conv(width, 2 * width, 2), blocks(2 * width)
        self.enc3, self.enc3_blocks = conv(2 * width, 4 * width, 2), blocks(4 * width)
        self.lstm = (
            ConvLstm(4 * width, dtype=self.dtype, rngs=rngs) if config.srn == "lstm" else None
        )
        self.dec3_blocks = blocks(4 * width)
        self.dec2, self.dec2_blocks = transposed(4 * width, 2 * width), blocks(2 * width)
        self.dec1, self.dec1_blocks = transposed(2 * width, width), blocks(width)
        self.image = conv(width, channels)

    def _restore_clip(self, clip: Clip) -> Clip:
        batch = clip.shape[0]
        if self.config.srn == "color":
            pictures = rearrange(clip, "b t h w c -> (b t) h w c")
            return rearrange(self._pyramid(pictures)[-1], "(b t) h w c -> b t h w c", b=batch)
        pictures = rearrange(clip, "b t h w c -> (b t c) h w 1")
        return rearrange(self._pyramid(pictures)[-1], "(b t c) h w 1 -> b t h w c", b=batch, c=3)

    def training_outputs(self, clip: Clip, sharp: Clip) -> TrainingOutputs:
        """All three sizes, against the sharp clip with every fourth, every other and every pixel.

        What is trained on grey pictures gives three equal colours here.
        """
        clip, sharp = self.pad(clip), self.pad(sharp)
        if self.config.srn != "color":
            grey = jnp.asarray(GREY)[:, None]
            clip, sharp = clip @ grey, sharp @ grey
        levels = self._pyramid(rearrange(clip, "b t h w c -> (b t) h w c"))
        restored = [rearrange(x, "(b t) h w c -> b t h w c", b=clip.shape[0]) for x in levels]
        targets = [halve(sharp, LEVELS - 1 - level) for level in range(LEVELS)]
        in_colour = [jnp.broadcast_to(x, (*x.shape[:-1], 3)) for x in (*restored, *targets)]
        return TrainingOutputs(tuple(in_colour[:LEVELS]), tuple(in_colour[LEVELS:]), {})

    def _initial_state(self, batch: int, height: int, width: int) -> tuple[()]:
        return ()

    def _step(self, state: tuple[()], frame: Frame, repeated: jax.Array) -> tuple[tuple[()], Frame]:
        return state, self._restore_clip(frame[:, None])[:, 0]

    def _pyramid(
        self, blurred: Float[Array, "N H W channels"]
    ) -> list[Float[Array, "N _ _ channels"]]:
        """What each size restores, coarse to fine."""
        batch, height, width, _ = blurred.shape
        at_first = (batch, height // 16, width // 16, 8 * self.config.width)
        restored: list[jax.Array] = []
        state = jnp.zeros(at_first, self.dtype)
        for level in range(LEVELS):
            here = halve(blurred, LEVELS - 1 - level)
            if level:
                state = double(state)
            coarser = double(restored[-1]) if level else here
            picture, state = self._level(here, jax.lax.stop_gradient(coarser), state)
            restored.append(picture)
        return restored

    def _level(
        self,
        blurred: Float[Array, "N rows columns channels"],
        coarser: Float[Array, "N rows columns channels"],
        state: Features,
    ) -> tuple[Float[Array, "N rows columns channels"], Features]:
        """One size: encoder, memory, decoder."""
        relu = jax.nn.relu
        e1 = apply(self.enc1_blocks, relu(self.enc1(jnp.concatenate([blurred, coarser], -1))))
        e2 = apply(self.enc2_blocks, relu(self.enc2(e1)))
        x = apply(self.enc3_blocks, relu(self.enc3(e2)))
        if self.lstm is not None:
            x, state = self.lstm(x, state)
        x = apply(self.dec3_blocks, x)
        x = apply(self.dec2_blocks, relu(self.dec2(x)) + e2)
        x = apply(self.dec1_blocks, relu(self.dec1(x)) + e1)
        return self.image(x).astype(jnp.float32), state

    @property
    def receptive_radius(self) -> int:
        """None that would be of use for tiles.

        Raises:
          UserError: always.
        """
        raise UserError(
            "SRN can't restore a frame in tiles: each pixel reads about 1,300 pixels to each side; "
            "use smaller frames or a device with more memory"
        )
