"""RDN: a recurrent deblurring network that takes in the frames of a window one at a time.

Source: Wieschollek, Hirsch, Schölkopf and Lensch, "Learning Blind Motion Deblurring" (ICCV 2017);
cgtuebingen/learning-blind-motion-deblurring (learning_blind_motion_deblurring.py, on tensorpack),
Apache-2.0. The repository calls its code a re-implementation of the paper's, which ran on another
library; the weights that it names belong to a somewhat larger network and fit neither. The network
here is the code's, 3,671,517 parameters, with its padding (TensorFlow's SAME), its colours (BGR,
pixels / 128 - 1) and its normalisation: by the statistics of the current batch, also at inference.

So a result depends on the whole frame and on the other videos of the batch, and frames can't be
restored in tiles. Statistics are computed separately at each time, over the batch and all pixels,
as the code computes them over a batch of windows; thus a stream and a clip of the same videos
agree. They include the padding to a multiple of 8. Running statistics would give another network.
The biases before a normalisation are the code's; they have no effect, and no gradient beyond
rounding.

What differs: the code trains on windows of five frames; here the loss is over all frames of a clip,
each with the four before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdeblur.errors import UserError
from jaxdeblur.models.layers import Conv
from jaxdeblur.models.restorer import TrainingOutputs
from jaxdeblur.options import Count, check_ranges
from jaxdeblur.shapes import Clip, ClipFeatures
from jaxdeblur.table1.layers import (
    TransposedConv,
    normalise,
    statistics,
    variance_scaling,
    xavier_uniform,
)
from jaxdeblur.table1.windowed import Windowed

BEFORE = 4
"""Number of frames before the current one that the network takes in, the nearest first."""

EPSILON = 1.001e-5
"""Added to the variance: the smallest that TensorFlow's fused normalisation accepts."""


@dataclasses.dataclass(frozen=True)
class RdnConfig:
    """The fields of RDN; the defaults are the network of the authors' repository.

    Attributes:
      width: channels at full size on the way down; 2, 4 and 8 times as many at 1/2, 1/4 and 1/8.
      dtype: type of the computation; statistics, parameters and output are float32.
    """

    width: Count = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_ranges(self)


class Skips(NamedTuple):
    """Features at 1/8, 1/4 and 1/2 that pass from one step to the next within a window."""

    eighth: ClipFeatures
    quarter: ClipFeatures
    half: ClipFeatures


class _Past(NamedTuple):
    """The state from which a step within a window starts."""

    estimate: Clip
    skips: Skips
    first: Bool[Array, ""]
    """True in the first step, which has no skips to merge."""


class Layer(nnx.Module):
    """ReLU, a convolution or transposed convolution, and normalisation by the current batch."""

    def __init__(self, conv: Conv | TransposedConv, width: int) -> None:
        self.conv = conv
        self.gamma = nnx.Param(jnp.ones(width))
        self.beta = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "B T h w C_in"]) -> Float[Array, "B T h2 w2 C_out"]:
        """Applies the layer; normalises each time separately, over the batch and all pixels."""

        def of_one_time(x: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
            mean, variance = statistics(x)
            return normalise(x, mean, variance, self.gamma[...], self.beta[...], EPSILON)

        return jax.vmap(of_one_time, in_axes=1, out_axes=1)(self.conv(jax.nn.relu(x)))


class Rdn(Windowed):
    """RDN: restores frame t from frames t-4..t in four steps of one block."""

    multiple = 8
    # jax2onnx 0.17 does not convert this operator, or wrongly, for frames of any size.
    not_in_onnx = "broadcast_in_dim"
    lookahead = 0
    clips_are_independent = False

    def __init__(self, config: RdnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        full, half, quarter, eighth = (config.width * factor for factor in (1, 2, 4, 8))
        options: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
        same: dict[str, Any] = {"padding": "same", "init": variance_scaling, **options}
        layers: dict[str, Layer] = {}

        def conv(name: str, c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> None:
            layer = Conv(c_in, c_out, kernel, stride=stride, **same)
            layers[f"{name}_conv"] = Layer(layer, c_out)

        def deconv(name: str, c_in: int, c_out: int) -> None:
            layer = TransposedConv(c_in, c_out, init=xavier_uniform, **options)
            layers[f"{name}_deconv"] = Layer(layer, c_out)

        conv("d0", 6, full)
        for block, c_in, width, stride in (
            ("d1", full, half, 2),
            ("d2", half, half, 1),
            ("d3", half, quarter, 2),
            ("d4", quarter, eighth, 2),
        ):
            for i, kernel in ((1, 3), (2, 3), (3, 1)):
                conv(f"{block}_{i}", width, width, kernel)
            conv(f"{block}_0", c_in, width, stride=stride)
        for block, c_in, width in (("u1", eighth, quarter), ("u2", quarter, half)):
            deconv(f"{block}_0", c_in, width)
            for i in (1, 2, 3):
                conv(f"{block}_{i}", width, width)
        deconv("u3_0", half, half)
        for i, (c_in, c_out) in enumerate([(half, half), (half, half), (half, 6), (6, 3)], 1):
            conv(f"u3_{i}", c_in, c_out)
        for name, width in (("d41_s", eighth), ("u1_s", quarter), ("u2_s", half)):
            conv(name, 2 * width, width, 1)
        self.layers = nnx.Dict(layers)

    @property
    def receptive_radius(self) -> int:
        """Raises :class:`UserError`: tiles would change the result."""
        raise UserError(
            "RDN normalises by the statistics of the whole frame (and batch), so a frame can't be "
            "restored in tiles"
        )

    @property
    def context(self) -> tuple[int, int]:
        """The four frames before, and none after."""
        return BEFORE, 0

    def training_outputs(
        self, clip: Float[Array, "B length H W 3"], sharp: Clip
    ) -> TrainingOutputs:
        """Returns all four estimates of every frame, each with the sharp one as target."""
        height, width = clip.shape[2:4]
        estimates = self._estimates(self.with_context(clip, sharp))
        restored = tuple(each[:, :, :height, :width] for each in estimates)
        return TrainingOutputs(restored, (sharp,) * BEFORE, {})

    def _restore_windows(self, kept: Float[Array, "B length H W 3"]) -> Clip:
        return self._estimates(kept)[-1]

    def _estimates(self, clip: Float[Array, "B length H W 3"]) -> Float[Array, "n B T H W 3"]:
        """Estimates each frame with four before it, once after each of these, nearest first."""
        frames = clip[..., ::-1] * (255 / 128) - 1
        observations = jnp.stack(
            [frames[:, BEFORE - k : frames.shape[1] - k] for k in range(1, BEFORE + 1)]
        )
        batch, time, height, width, _ = observations.shape[1:]
        shapes = [(batch, time, height // n, width // n, n * self.config.width) for n in (8, 4, 2)]

        def improve(past: _Past, observation: Clip) -> tuple[_Past, Clip]:
            new = self._improve(past, observation)
            return new, new.estimate

        skips = Skips(*(jnp.zeros(shape, self.config.dtype) for shape in shapes))
        start = _Past(frames[:, BEFORE:], skips, jnp.bool_(True))
        _, estimates = lax.scan(self.rematerialised(improve), start, observations)
        return (estimates + 1)[..., ::-1] * (128 / 255)

    def _improve(self, past: _Past, observation: Clip) -> _Past:
        """Improves the estimate by one more observation, both BGR, centred, float32."""

        def layers(x: jax.Array, *names: str) -> jax.Array:
            for name in names:
                x = self.layers[name](x)
            return x

        def rest(x: jax.Array, block: str) -> jax.Array:
            return layers(x, f"{block}_1_conv", f"{block}_2_conv", f"{block}_3_conv")

        def merged(x: jax.Array, name: str, before: jax.Array) -> jax.Array:
            return jnp.where(past.first, x, layers(jnp.concatenate([x, before], -1), name))

        x = layers(jnp.concatenate([observation, past.estimate], -1), "d0_conv", "d1_0_conv")
        x = layers(x + rest(x, "d1"), "d2_0_conv")
        half = x + rest(x, "d2")
        x = layers(half, "d3_0_conv")
        quarter = x + rest(x, "d3")
        x = layers(quarter, "d4_0_conv")
        deep = x + rest(merged(x, "d41_s_conv", past.skips.eighth), "d4")
        x = layers(deep, "u1_0_deconv") + quarter
        higher = x + rest(merged(x, "u1_s_conv", past.skips.quarter), "u1")
        x = layers(higher, "u2_0_deconv") + half
        highest = x + rest(merged(x, "u2_s_conv", past.skips.half), "u2")
        x = layers(rest(layers(highest, "u3_0_deconv"), "u3"), "u3_4_conv")
        estimate = past.estimate + x.astype(jnp.float32)
        return _Past(estimate, Skips(deep, higher, highest), jnp.bool_(False))
