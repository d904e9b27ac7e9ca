"""RDN: a recurrent deblurring network that takes in one more frame of a window at a time.

Source: Wieschollek, Hirsch, Schölkopf and Lensch, "Learning Blind Motion Deblurring" (ICCV 2017);
cgtuebingen/learning-blind-motion-deblurring (learning_blind_motion_deblurring.py, on tensorpack),
Apache-2.0. The repository calls its code a re-implementation of the paper's, which ran on another
library; the weights that it names are of a somewhat larger network and fit neither. The network
here is the code's, 3,671,517 parameters, with its padding (TensorFlow's SAME), its colours (BGR,
pixels / 128 - 1) and its normalisation: by the statistics of the batch at hand, also in use.

So a result depends on the whole frame and on the other videos of the batch, and frames can't be
restored in tiles. The statistics are taken at each time alone, over the batch and all pixels, as
the code takes them of a batch of windows: thus a stream and a clip of the same videos agree. What
the frame is padded with, to a multiple of 8, counts too. Running statistics would give another
network. The biases before a normalisation are the code's; none has an effect, or a gradient beyond
rounding.

What differs: the code trains on windows of five frames; here the loss is over all frames of a clip,
each with the four before it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.peers.layers import (
    Conv,
    TransposedConv,
    apply,
    normalise,
    statistics,
    variance_scaling,
    xavier_uniform,
)
from jaxdeblur.models.restorer import TrainingOutputs, VideoRestorer, replicate_ends
from jaxdeblur.shapes import Clip, ClipFeatures, Frame

BEFORE = 4
"""Frames before the current one that the network takes in, the nearest first."""

EPSILON = 1.001e-5
"""Added to the variance: the least that TensorFlow's fused normalisation takes."""


@dataclasses.dataclass(frozen=True)
class RdnConfig:
    """The fields of RDN; the defaults are the network of the authors' repository.

    Attributes:
      width: channels at full size on the way down; 2, 4 and 8 times as many at 1/2, 1/4 and 1/8.
      dtype: of the computation; statistics, parameters and output are float32.
    """

    width: int = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"width is 1 or more channels, not {self.width}")


class WindowState(NamedTuple):
    """What a stream keeps."""

    frames: Clip
    """The last four frames."""
    first: Bool[Array, ""]
    """True before the first frame."""


class Skips(NamedTuple):
    """What passes from one step to the next within a window: features at 1/8, 1/4 and 1/2."""

    eighth: ClipFeatures
    quarter: ClipFeatures
    half: ClipFeatures


class _Past(NamedTuple):
    """What a step within a window starts from."""

    estimate: Clip
    skips: Skips
    first: Bool[Array, ""]
    """True in the first step, which has nothing to merge."""


class Layer(nnx.Module):
    """ReLU, a convolution or a transposed one, and normalisation by the batch at hand."""

    def __init__(self, conv: Conv | TransposedConv, width: int) -> None:
        self.conv = conv
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "B T h w C_in"]) -> Float[Array, "B T h2 w2 C_out"]:
        """Each time is normalised by itself, over the batch and all pixels."""

        def of_one_time(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
            mean, variance = statistics(x)
            return normalise(x, mean, variance, self.scale[...], self.bias[...], EPSILON)

        return jax.vmap(of_one_time, in_axes=1, out_axes=1)(self.conv(jax.nn.relu(x)))


class Rdn(VideoRestorer):
    """From the frames t-4..t to frame t, in four steps of one block."""

    multiple = 8
    lookahead = 0
    clips_are_independent = False

    def __init__(self, config: RdnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = jnp.dtype(config.dtype)
        full, half, quarter, eighth = (config.width * factor for factor in (1, 2, 4, 8))

        def layer(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> Layer:
            conv = Conv(
                c_in,
                c_out,
                kernel,
                stride=stride,
                padding="same",
                init=variance_scaling,
                dtype=self.dtype,
                rngs=rngs,
            )
            return Layer(conv, c_out)

        def enlarging(c_in: int, c_out: int) -> Layer:
            conv = TransposedConv(c_in, c_out, init=xavier_uniform, dtype=self.dtype, rngs=rngs)
            return Layer(conv, c_out)

        def down(c_in: int, width: int, stride: int = 2) -> Any:
            rest = [layer(width, width), layer(width, width), layer(width, width, 1)]
            return nnx.List([layer(c_in, width, stride=stride), *rest])

        def up(c_in: int, width: int) -> Any:
            return nnx.List([enlarging(c_in, width), *(layer(width, width) for _ in range(3))])

        self.d0 = layer(6, full)
        self.d1 = down(full, half)
        self.d2 = down(half, half, stride=1)
        self.d3 = down(half, quarter)
        self.d4 = down(quarter, eighth)
        self.u1 = up(eighth, quarter)
        self.u2 = up(quarter, half)
        self.u3 = nnx.List(
            [
                enlarging(half, half),
                layer(half, half),
                layer(half, half),
                layer(half, 6),
                layer(6, 3),
            ]
        )
        self.merge = nnx.List([layer(2 * width, width, 1) for width in (eighth, quarter, half)])

    @property
    def context(self) -> tuple[int, int]:
        """The four frames before."""
        return BEFORE, 0

    def _restore_clip(self, clip: Clip) -> Clip:
        return self._restore_inside(replicate_ends(clip, BEFORE, 0))

    def _restore_inside(self, clip: Float[Array, "B length H W 3"]) -> Clip:
        return self._windows(clip)[-1]

    def training_outputs(
        self, clip: Float[Array, "B length H W 3"], sharp: Clip
    ) -> TrainingOutputs:
        """All four estimates of every frame, each against the sharp one."""
        height, width = clip.shape[2:4]
        whole = clip.shape[1] == sharp.shape[1]
        estimates = self._windows(self.pad(replicate_ends(clip, BEFORE, 0) if whole else clip))
        restored = tuple(each[:, :, :height, :width] for each in estimates)
        return TrainingOutputs(restored, (sharp,) * BEFORE, {})

    def _windows(self, clip: Float[Array, "B length H W 3"]) -> Float[Array, "n B T H W 3"]:
        """The estimates of every frame that has four before it."""
        before = [clip[:, BEFORE - k : clip.shape[1] - k] for k in range(1, BEFORE + 1)]
        return self._estimates(clip[:, BEFORE:], jnp.stack(before))

    def _initial_state(self, batch: int, height: int, width: int) -> WindowState:
        return WindowState(jnp.zeros((batch, BEFORE, height, width, 3)), jnp.bool_(True))

    def _step(
        self, state: WindowState, frame: Frame, repeated: Bool[Array, ""]
    ) -> tuple[WindowState, Frame]:
        # Nothing precedes the first frame but itself.
        before = jnp.where(state.first, frame[:, None], state.frames)
        observations = rearrange(before[:, ::-1], "b n h w c -> n b 1 h w c")
        restored = self._estimates(frame[:, None], observations)[-1, :, 0]
        frames = jnp.concatenate([before[:, 1:], frame[:, None]], axis=1)
        return WindowState(frames, jnp.bool_(False)), restored

    def _estimates(
        self, clip: Clip, observations: Float[Array, "n B T H W 3"]
    ) -> Float[Array, "n B T H W 3"]:
        """The estimate of every frame of ``clip`` after each observation of its window."""
        clip, observations = (
            frames[..., ::-1] * (255 / 128) - 1 for frames in (clip, observations)
        )
        batch, time, height, width, _ = clip.shape

        def nothing(scale: int, channels: int) -> ClipFeatures:
            shape = (batch, time, height // scale, width // scale, channels * self.config.width)
            return jnp.zeros(shape, self.dtype)

        def improve(past: _Past, observation: Clip) -> tuple[_Past, Clip]:
            new = self._improve(past, observation)
            return new, new.estimate

        skips = Skips(nothing(8, 8), nothing(4, 4), nothing(2, 2))
        start = _Past(clip, skips, jnp.bool_(True))
        _, estimates = lax.scan(self.in_backward_again(improve), start, observations)
        return (estimates + 1)[..., ::-1] * (128 / 255)

    def _improve(self, past: _Past, observation: Clip) -> _Past:
        """One step: a better estimate from one more observation, both BGR, centred, float32."""

        def merge(layer: Layer, x: jax.Array, before: jax.Array) -> jax.Array:
            merged = layer(jnp.concatenate([x, before], -1))
            return jnp.where(past.first, x, merged)

        merging = [
            functools.partial(merge, layer, before=before)
            for layer, before in zip(self.merge, past.skips, strict=True)
        ]
        x = self.d0(jnp.concatenate([observation, past.estimate], -1))
        x = _residual(self.d1[0](x), self.d1[1:])
        half = _residual(self.d2[0](x), self.d2[1:])
        quarter = _residual(self.d3[0](half), self.d3[1:])
        deep = _residual(self.d4[0](quarter), [merging[0], *self.d4[1:]])
        higher = _residual(self.u1[0](deep) + quarter, [merging[1], *self.u1[1:]])
        highest = _residual(self.u2[0](higher) + half, [merging[2], *self.u2[1:]])
        estimate = past.estimate + apply(self.u3, highest).astype(jnp.float32)
        return _Past(estimate, Skips(deep, higher, highest), jnp.bool_(False))

    @property
    def receptive_radius(self) -> int:
        """None: every pixel depends on the statistics of the whole frame, and of the batch."""
        raise UserError(
            "RDN normalises by the statistics of the whole frame (and batch), so a frame can't be "
            "restored in tiles"
        )


def _residual(x: jax.Array, layers: Any) -> jax.Array:
    """x + layers(x)."""
    return x + apply(layers, x)
