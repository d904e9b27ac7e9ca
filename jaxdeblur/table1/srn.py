"""SRN: restores a picture at 1/4, 1/2 and full size in turn, with the same weights at each.

Source: "Scale-Recurrent Network for Deep Image Deblurring" (Tao et al., CVPR 2018); the network as
in jiangsutx/SRN-Deblur @ 2caaa85 (MIT), models/model.py and util/BasicConvLSTMCell.py. Written from
a description of its layers; no code is copied.

What differs between paper, code and re-implementations:
  - The authors published three variants. ``lstm`` has a ConvLSTM whose state passes from size to
    size; ``gray`` is the same without it. Both take the colours as three pictures of one channel
    and are trained on grey pictures. ``color``, without an LSTM, takes the three colours together.
  - The network outputs the picture, not a residual. Each finer size starts from the coarser
    picture, through which no gradient passes (it does pass through the LSTM's state).
  - Pictures are resized as in TensorFlow 1: halving takes every other pixel, and doubling shifts
    the picture by a quarter of a pixel. With today's resizing it would be another network.
  - Convolutions of stride 2 use TensorFlow's SAME: 1 zero before and 2 after an even size.
  - ESTRNN's and SimDeblur's versions have another LSTM (5x5, no bias of 1 at the forget gate, its
    cell passed on to the decoder), symmetric padding and other resizing; neither can use the
    authors' weights.
  - The authors' program restores 720x1280 pixels: it pads smaller pictures with their edges and
    SHRINKS larger ones. Here a picture of any size is padded to a multiple of 16.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.layers import Conv, ResidualBlock
from jaxdeblur.models.restorer import TrainingOutputs, VideoRestorer
from jaxdeblur.options import Count, check_ranges
from jaxdeblur.shapes import Clip, Features, Frame
from jaxdeblur.table1.layers import (
    TransposedConv,
    double,
    halve,
    truncated_normal,
    xavier_uniform,
)

LEVELS = 3
"""Number of sizes: 1/4, 1/2 and 1."""

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in TensorFlow's grey."""


@dataclasses.dataclass(frozen=True)
class SrnConfig:
    """The fields of SRN; the defaults are the authors' network for colour pictures.

    Attributes:
      srn: color restores the three colours together, gray and lstm each separately; lstm passes
        the state of a ConvLSTM from size to size.
      width: channels at a level's own size; 2 and 4 times as many at 1/2 and 1/4 of it.
      dtype: type of the computation; parameters and output are float32.
    """

    srn: Literal["color", "gray", "lstm"] = "color"
    width: Count = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_ranges(self)


class ConvLstm(nnx.Module):
    """A convolutional LSTM whose gates come from one 3x3 convolution; its state is [c, h]."""

    def __init__(self, width: int, **options: Any) -> None:
        draw = functools.partial(truncated_normal, deviation=1e-3)
        self.LSTM_conv = Conv(2 * width, 4 * width, padding="same", init=draw, **options)

    def __call__(
        self, x: Features, state: Float[Array, "B h w 2*C"]
    ) -> tuple[Features, Float[Array, "B h w 2*C"]]:
        """Returns h' and the state [c', h']."""
        c, h = jnp.split(state, 2, axis=-1)
        i, j, f, o = jnp.split(self.LSTM_conv(jnp.concatenate([x, h], axis=-1)), 4, axis=-1)
        # c' = c sigmoid(f + 1) + sigmoid(i) tanh(j);  h' = tanh(c') sigmoid(o)
        c = c * jax.nn.sigmoid(f + 1) + jax.nn.sigmoid(i) * jnp.tanh(j)
        h = jnp.tanh(c) * jax.nn.sigmoid(o)
        return h, jnp.concatenate([c, h], axis=-1)


class Srn(VideoRestorer):
    """SRN: restores each frame by itself, without look-ahead or state."""

    multiple = 16  # the coarsest level is 1/4 of the size, and is reduced to 1/4 again
    # jax2onnx 0.17 does not convert this operator, or wrongly, for frames of any size.
    not_in_onnx = "broadcast_in_dim"
    lookahead = 0

    def __init__(self, config: SrnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, channels = config.width, 3 if config.srn == "color" else 1
        options: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
        drawn: dict[str, Any] = {"init": xavier_uniform, **options}
        net: dict[str, nnx.Module] = {}

        def conv(name: str, c_in: int, c_out: int, stride: int = 1) -> None:
            net[name] = Conv(c_in, c_out, 5, stride=stride, padding="same", **drawn)

        def blocks(width: int, *names: str) -> None:
            for name in names:
                net[name] = ResidualBlock(width, 5, padding="same", **drawn)

        conv("enc1_1", 2 * channels, width)
        blocks(width, "enc1_2", "enc1_3", "enc1_4")
        conv("enc2_1", width, 2 * width, 2)
        blocks(2 * width, "enc2_2", "enc2_3", "enc2_4")
        conv("enc3_1", 2 * width, 4 * width, 2)
        blocks(4 * width, "enc3_2", "enc3_3", "enc3_4")
        if config.srn == "lstm":
            net["convLSTM"] = ConvLstm(4 * width, **options)
        blocks(4 * width, "dec3_3", "dec3_2", "dec3_1")
        net["dec2_4"] = TransposedConv(4 * width, 2 * width, **drawn)
        blocks(2 * width, "dec2_3", "dec2_2", "dec2_1")
        net["dec1_4"] = TransposedConv(2 * width, width, **drawn)
        blocks(width, "dec1_3", "dec1_2", "dec1_1")
        conv("dec1_0", width, channels)
        self.g_net = nnx.Dict(net)

    @property
    def receptive_radius(self) -> int:
        """Raises :class:`UserError`: tiles would change the result."""
        raise UserError(
            "SRN can't restore a frame in tiles: each pixel depends on about 1,300 pixels to each "
            "side; use smaller frames or a device with more memory"
        )

    def _restore_clip(self, clip: Clip) -> Clip:
        whole = "b t h w c"
        pictures = "(b t) h w c" if self.config.srn == "color" else "(b t c) h w 1"
        restored = self._pyramid(rearrange(clip, f"{whole} -> {pictures}"))[-1]
        return rearrange(restored, f"{pictures} -> {whole}", b=clip.shape[0], c=3)

    def training_outputs(self, clip: Clip, sharp: Clip) -> TrainingOutputs:
        """Returns all three sizes; targets are every fourth, every other and every sharp pixel.

        Variants that are trained on grey pictures return three equal colours.
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
        """Returns the restored picture at each size, coarse to fine."""
        batch, height, width, _ = blurred.shape
        at_first = (batch, height // 16, width // 16, 8 * self.config.width)
        restored: list[jax.Array] = []
        state = jnp.zeros(at_first, self.config.dtype)
        for level in range(LEVELS):
            here = halve(blurred, LEVELS - 1 - level)
            if level:
                state = double(state)
            coarser = double(restored[-1]) if level else here
            restore = self.rematerialised(self._level)
            picture, state = restore(here, jax.lax.stop_gradient(coarser), state)
            restored.append(picture)
        return restored

    def _level(
        self,
        blurred: Float[Array, "N rows columns channels"],
        coarser: Float[Array, "N rows columns channels"],
        state: Features,
    ) -> tuple[Float[Array, "N rows columns channels"], Features]:
        """Runs encoder, ConvLSTM and decoder at one size."""
        net: Any = self.g_net

        def blocks(x: Features, *names: str) -> Features:
            for name in names:
                x = net[name](x)
            return x

        relu = jax.nn.relu
        e1 = relu(net.enc1_1(jnp.concatenate([blurred, coarser], -1)))
        e1 = blocks(e1, "enc1_2", "enc1_3", "enc1_4")
        e2 = blocks(relu(net.enc2_1(e1)), "enc2_2", "enc2_3", "enc2_4")
        x = blocks(relu(net.enc3_1(e2)), "enc3_2", "enc3_3", "enc3_4")
        if self.config.srn == "lstm":
            x, state = net.convLSTM(x, state)
        x = blocks(x, "dec3_3", "dec3_2", "dec3_1")
        x = blocks(relu(net.dec2_4(x)) + e2, "dec2_3", "dec2_2", "dec2_1")
        x = blocks(relu(net.dec1_4(x)) + e1, "dec1_3", "dec1_2", "dec1_1")
        return net.dec1_0(x).astype(jnp.float32), state
