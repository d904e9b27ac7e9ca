"""Ways to fuse the current frame with its window, with which the attention is compared.

Each has two parts: the memory of a frame, which depends on that frame alone, and the fusion of the
current frame's features with the memory of its window. The factorised attention (attention.py)
remembers M+1 vectors per frame; the fusions here remember whole feature maps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FstaConfig, register_fusion
from jaxdeblur.models.layers import LEAK, Conv, activation
from jaxdeblur.shapes import ClipFeatures, Features

Memory = Any
"""What a fusion remembers of frames: a pytree of arrays whose first axes are ``B T``."""


class Fusion(nnx.Module):
    """One way to fuse a window of frames.

    Attributes:
      radius: how many feature pixels to each side an output pixel reads, if the fusion is local.
    """

    radius: int

    def remember(self, features: ClipFeatures) -> Memory:
        """Returns the memory of each frame; here the whole feature maps."""
        return features

    def fuse(self, features: Features, window: Memory) -> Features:
        """Returns y^R, what the current frame takes from the window, which contains it."""
        raise NotImplementedError

    def fuse_clip(
        self, features: ClipFeatures, memory: Memory, windows: Int[np.ndarray, "T window"]
    ) -> ClipFeatures:
        """Runs ``fuse`` on all frames of a clip at once; ``windows[t]`` are the frames t sees."""
        batch = features.shape[0]
        window = jax.tree.map(
            lambda kept: rearrange(kept[:, windows], "B T s ... -> (B T) s ..."), memory
        )
        fused = self.fuse(rearrange(features, "B T h w C -> (B T) h w C"), window)
        return rearrange(fused, "(B T) h w C -> B T h w C", B=batch)


class Concat(Fusion):
    """The usual fusion: a 3x3 convolution over the concatenated features of the window."""

    def __init__(self, config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        self.mix = Conv(config.window * channels, channels, dtype=config.dtype, rngs=rngs)
        self.radius = self.mix.radius

    def fuse(self, features: Features, window: ClipFeatures) -> Features:
        """Convolves the concatenated features."""
        return self.mix(rearrange(window, "B T h w C -> B h w (T C)"))


class Conv3d(Fusion):
    """3x3x3 convolutions, without padding in time, until one frame of the window is left.

    A 3-D convolution runs as the equivalent 2-D one over the channels of three successive frames.
    For an even window, the last layer spans two frames.
    """

    def __init__(self, config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        even = config.window % 2 == 0
        self.spans = (3,) * ((config.window - 1) // 2) + (2,) * even
        self.layers = nnx.List(
            [Conv(span * channels, channels, dtype=config.dtype, rngs=rngs) for span in self.spans]
        )
        self.radius = sum(layer.radius for layer in self.layers)

    def fuse(self, features: Features, window: ClipFeatures) -> Features:
        """Applies the layers; each that spans three frames leaves two fewer."""
        for index, (span, layer) in enumerate(zip(self.spans, self.layers, strict=True)):
            if index:
                window = activation(LEAK)(window)
            left = window.shape[1] - span + 1
            window = layer(jnp.concatenate([window[:, i : i + left] for i in range(span)], axis=-1))
        return window[:, 0]


class KeysAndValues(NamedTuple):
    """The memory of the non-local block, at every pixel of a frame."""

    keys: ClipFeatures
    values: ClipFeatures


class NonLocal(Fusion):
    """The non-local block of Wang et al. (CVPR 2018), embedded Gaussian, over the whole window.

    Its affinity is a T*H*W x T*H*W matrix. Only the current frame's H*W rows are computed, a chunk
    of rows at a time; the result for that frame is the same. Logits are divided by the square root
    of the keys' channels, which the original omits: otherwise the softmax starts saturated.

    Args:
      channels: C; keys and values have half as many, as in the original.
      limit_bytes: memory limit for the window's keys and values and the current chunk together.
      dtype: of the computation.
      rngs: what the kernels are drawn from.
    """

    LEAST_ROWS = 16
    """With fewer rows at a time, most of the work would be reading all keys again."""

    def __init__(self, config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        inner = max(1, channels // 2)
        options: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
        self.query = Conv(channels, inner, 1, gain=0.7, **options)
        self.key = Conv(channels, inner, 1, gain=0.7, **options)
        self.value = Conv(channels, inner, 1, **options)
        self.out = Conv(inner, channels, 1, **options)
        self.limit_bytes = config.nonlocal_bytes
        self.inner = inner
        self.radius = 0

    def remember(self, features: ClipFeatures) -> KeysAndValues:
        """Returns the keys and values of every pixel."""
        return KeysAndValues(self.key(features), self.value(features))

    def fuse(self, features: Features, window: KeysAndValues) -> Features:
        """Attends from every pixel of the current frame to every pixel of the window."""
        batch, height, width, _ = features.shape
        rows = self.rows_at_once(batch, window.keys.shape[1], height, width)
        gathered = nonlocal_rows(
            rearrange(self.query(features), "B h w c -> B (h w) c"),
            rearrange(window.keys, "B T h w c -> B (T h w) c"),
            rearrange(window.values, "B T h w c -> B (T h w) c"),
            rows,
        )
        return self.out(rearrange(gathered, "B (h w) c -> B h w c", h=height, w=width))

    def fuse_clip(
        self, features: ClipFeatures, memory: KeysAndValues, windows: Int[np.ndarray, "T window"]
    ) -> ClipFeatures:
        """Runs frame after frame, so that the windows are not all in memory at once."""

        def fuse_frame(current: tuple[Features, Int[Array, " window"]]) -> Features:
            frame, window = current
            return self.fuse(frame, jax.tree.map(lambda kept: kept[:, window], memory))

        frames = rearrange(features, "B T h w C -> T B h w C")
        fused = lax.map(fuse_frame, (frames, jnp.asarray(windows)))
        return rearrange(fused, "T B h w C -> B T h w C")

    def rows_at_once(self, batch: int, window: int, height: int, width: int) -> int:
        """Returns how many rows of the affinity fit into ``nonlocal_bytes``.

        Args:
          batch: B.
          window: T.
          height, width: of the features.

        Raises:
          UserError: fewer than ``LEAST_ROWS`` fit.
        """
        columns = batch * window * height * width
        kept = columns * 2 * self.inner * self.query.dtype.itemsize
        row = columns * 2 * 4  # logits and weights, float32
        rows = (self.limit_bytes - kept) // row
        if rows < min(self.LEAST_ROWS, height * width):
            least = kept + self.LEAST_ROWS * row
            raise UserError(
                f"fusion='nonlocal' does not fit: a window of {window} maps of {width}x{height} "
                f"needs {least / 2**20:.0f} MiB, but nonlocal_bytes allows "
                f"{self.limit_bytes / 2**20:.0f} MiB; raise it, or use smaller frames or 'fsta'"
            )
        return min(rows, height * width)


def nonlocal_rows(
    queries: Float[Array, "B Q c"],
    keys: Float[Array, "B S c"],
    values: Float[Array, "B S d"],
    rows: int,
) -> Float[Array, "B Q d"]:
    """Computes softmax(queries keys^T / sqrt(c)) values, ``rows`` rows of the affinity at a time.

    With the queries of all frames of a window, this is the full THW x THW block. The gradient
    recomputes each chunk, so it needs no more memory.

    Args:
      queries: ``B Q c``.
      keys: ``B S c``, of all pixels of the window.
      values: ``B S d``, of the same pixels.
      rows: how many rows are computed at a time.
    """
    _, count, channels = queries.shape
    chunks = -(-count // rows)
    padded = jnp.pad(queries, ((0, 0), (0, chunks * rows - count), (0, 0)))

    @jax.checkpoint
    def attend(chunk: Float[Array, "B rows c"]) -> Float[Array, "B rows d"]:
        logits = jnp.einsum("bqc,bsc->bqs", chunk, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / channels**0.5, axis=-1)
        return jnp.einsum("bqs,bsd->bqd", weights, values).astype(values.dtype)

    chunked = rearrange(padded, "B (n rows) c -> n B rows c", rows=rows)
    gathered = lax.map(attend, chunked)
    return rearrange(gathered, "n B rows d -> B (n rows) d")[:, :count]


register_fusion("nonlocal", NonLocal)
register_fusion("concat", Concat)
register_fusion("conv3d", Conv3d)
