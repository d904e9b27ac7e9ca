"""DBN (DeBlurNet): restores the middle of five frames by an encoder-decoder with skips.

Source: "Deep Video Deblurring for Hand-held Cameras" (Su et al., CVPR 2017); the network as in
shuochsu/DeepVideoDeblurring @ c23eeac (MIT), models/model2_symskip_nngraph2_deeper.lua. Written
from a description of its layers; no code is copied.

What differs between paper, code and re-implementations:
  - The output is a sigmoid of the sum of middle frame and last layer, so the last layer is not a
    residual in intensity: where it is zero, 0 becomes 0.5 and 1 becomes 0.73. ESTRNN's and
    SimDeblur's versions have no sigmoid (``sigmoid=False``).
  - The batch normalisation's epsilon is 1e-3; ESTRNN's version has 1e-5. SimDeblur's applies the
    ReLU to the enlarged branch before it adds the skip, not after.
  - The authors can align the frames first (TV-L1 flow or homographies, in MATLAB). Here, as in
    their "nowarp", frames are not aligned.
  - Frames are padded to multiples of 8 with zeros below and right, as in the authors' inference.
  - The training was never published; the preset's recipe is SimDeblur's.

In training, biases of convolutions before a batch normalisation get no gradient, because
subtracting the batch mean cancels them. At inference they matter, since the running mean is fixed.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxdeblur.models.layers import Conv
from jaxdeblur.models.restorer import TrainingOutputs
from jaxdeblur.options import Count, Range, check_ranges
from jaxdeblur.shapes import Clip, Parameters
from jaxdeblur.table1.layers import BatchNorm, TransposedConv
from jaxdeblur.table1.windowed import Windowed


@dataclasses.dataclass(frozen=True)
class DbnConfig:
    """The fields of DBN; the defaults are the published network.

    Attributes:
      m: frames before and after the current one that the network sees; m frames of look-ahead.
      width: channels at full size; 2, 4 and 8 times as many at 1/2, 1/4 and 1/8.
      sigmoid: the output passes through a sigmoid, as in the authors' network.
      epsilon: added to the variance in batch normalisation.
      dtype: type of the computation; parameters and output are float32.
    """

    m: Annotated[int, Range(0)] = 2
    width: Count = 64
    sigmoid: bool = True
    epsilon: Annotated[float, Range(above=0)] = 1e-3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_ranges(self)


LAYERS = {
    "F0": (5, 1, 0, 1), "D1": (3, 2, 1, 1), "F1": (3, 1, 1, 2), "F2": (3, 1, 2, 2),
    "D2": (3, 2, 2, 4), "F3": (3, 1, 4, 4), "F4": (3, 1, 4, 4), "F5": (3, 1, 4, 4),
    "D3": (3, 2, 4, 8), "F6": (3, 1, 8, 8), "F7": (3, 1, 8, 8), "F8": (3, 1, 8, 8),
    "U1": (4, 0, 8, 4), "F9": (3, 1, 4, 4), "F10": (3, 1, 4, 4), "F11": (3, 1, 4, 4),
    "U2": (4, 0, 4, 2), "F12": (3, 1, 2, 2), "F13": (3, 1, 2, 1),
    "U3": (4, 0, 1, 1), "F14": (3, 1, 1, 0), "F15": (3, 1, 0, 0),
}  # fmt: skip
"""Kernel, stride (0: transposed, twice the size), input and output width in units of ``width``.

F and D are convolutions, U transposed ones. A width of 0 stands for that of the stacked frames,
3 (2m+1); as the last layer's output width it stands for 3.
"""


class Dbn(Windowed):
    """DBN: restores a frame from the frames around it, stacked as channels, without recurrence."""

    multiple = 8

    def __init__(self, config: DbnConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.lookahead = config.m
        stacked = 3 * (2 * config.m + 1)
        blocks = {}
        for name, (kernel, stride, given, made) in LAYERS.items():
            c_in = given * config.width or stacked
            c_out = 3 if name == "F15" else made * config.width or stacked
            options: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
            conv = (
                Conv(c_in, c_out, kernel, stride=stride, **options)
                if stride
                else TransposedConv(c_in, c_out, **options)
            )
            blocks[name] = nnx.List([conv, BatchNorm(c_out, epsilon=config.epsilon)])
        self.blocks: Any = nnx.Dict(blocks)

    def pad(self, images: Float[Array, "*leading H W 3"]) -> Float[Array, "*leading Hp Wp 3"]:
        """Pads with zeros below and to the right, as the authors' inference.lua does."""
        height, width = images.shape[-3:-1]
        ends = [(0, 0)] * (images.ndim - 3)
        below, right = self.round_up(height) - height, self.round_up(width) - width
        return jnp.pad(images, [*ends, (0, below), (0, right), (0, 0)])

    def training_outputs(
        self, clip: Float[Array, "B length H W 3"], sharp: Clip
    ) -> TrainingOutputs:
        """Normalises by the current batch and moves the running statistics towards its own."""
        moved: Parameters = {}
        restored = self._restore(self.with_context(clip, sharp), moved)
        height, width = clip.shape[-3:-1]
        return TrainingOutputs((restored[..., :height, :width, :],), (sharp,), moved)

    def _restore_windows(self, kept: Float[Array, "B length H W 3"]) -> Clip:
        return self._restore(kept)

    def _restore(
        self, clip: Float[Array, "B length H W 3"], moved: Parameters | None = None
    ) -> Clip:
        """Restores every frame with m to each side; training writes new statistics to ``moved``."""

        def layer(name: str, x: jax.Array) -> jax.Array:
            conv, norm = self.blocks[name]
            if moved is None:
                return norm(conv(x))
            path = f"blocks/{name}/1/running_"
            y, moved[f"{path}mean"], moved[f"{path}var"] = norm.by_batch(conv(x))
            return y

        def layers(x: jax.Array, *names: str) -> jax.Array:
            for name in names:
                x = jax.nn.relu(layer(name, x))
            return x

        m = self.config.m
        time = clip.shape[1] - 2 * m
        # The frames around each one, stacked as channels, oldest first.
        stacked = jnp.concatenate([clip[:, i : i + time] for i in range(2 * m + 1)], axis=-1)
        f0 = layers(stacked, "F0")
        f2 = layers(f0, "D1", "F1", "F2")
        f5 = layers(f2, "D2", "F3", "F4", "F5")
        f8 = layers(f5, "D3", "F6", "F7", "F8")
        # Each skip is added after the normalisation and before the ReLU.
        f11 = layers(jax.nn.relu(layer("U1", f8) + f5), "F9", "F10", "F11")
        f13 = layers(jax.nn.relu(layer("U2", f11) + f2), "F12", "F13")
        f14 = layers(jax.nn.relu(layer("U3", f13) + f0), "F14")
        image = layer("F15", f14).astype(jnp.float32) + clip[:, m : m + time]
        return jax.nn.sigmoid(image) if self.config.sigmoid else image

    @property
    def receptive_radius(self) -> int:
        """How many pixels to each side a restored pixel reads: 81."""
        # The 3x3 convolutions of encoder and decoder; F0 is 5x5, and D1 to D3 read the finer size.
        full, half, quarter, eighth = 1 + 4, 2 * (1 + 4), 4 * (1 + 6), 8 * 3
        transposed = 2 + 4 + 8  # each reads two pixels of the coarser size
        return full + half + quarter + eighth + transposed
