"""Factorised spatio-temporal attention: the six equations, one function each, and the block.

Source: "Dynamic Scene Video Deblurring using Non-local Attention" (Suin and Rajagopalan, arXiv
2022), section 3.

The functions keep the paper's order of axes, with the batch B first and the channels C last. Pixels
are one axis P = h*w, combinations one axis K = M*N with k = m*N + n. Each function receives the
output of its convolution f_s, f_t or f_p (the logits) as an argument, so that it is exactly its
equation. Every softmax runs in float32, whatever the dtype of the features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

import kernels
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FstaConfig, register_fusion
from jaxdeblur.models.fusion import Concat, Fusion
from jaxdeblur.models.layers import Conv, normal
from jaxdeblur.shapes import ClipFeatures, Features, Squeezed, SqueezedWindow

# Disables TF32, with which a GPU would compute these sums to only three digits.
_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

# --- The six equations ---


def spatial_maps(logits: Float[Array, "B T M P"]) -> Float[Array, "B T M P"]:
    """Eq. 1: A_s = softmax_HW(f_s(x)). Each of the M maps of a frame sums to 1 over its pixels."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def spatial_squeeze(maps: Float[Array, "B T M P"], x: Float[Array, "B T P C"]) -> Squeezed:
    """Eq. 2: G_s^m = S_HW(A_s^m * x). Each map m gathers one vector from each frame."""
    return _einsum("BTMP,BTPC->BTMC", maps, x).astype(x.dtype)


def temporal_maps(logits: Float[Array, "B N T"]) -> Float[Array, "B N T"]:
    """Eq. 3: A_t = softmax_T(f_t(x')). Each of the N maps sums to 1 over the window."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def temporal_squeeze(squeezed: Squeezed, maps: Float[Array, "B N T"]) -> SqueezedWindow:
    """Eq. 4: G_st = G_s A_t^Tr. Gathers from the window in all M*N ways, k = m*N + n."""
    gathered = _einsum("BTMC,BNT->BMNC", squeezed, maps)
    return rearrange(gathered, "B M N C -> B (M N) C").astype(squeezed.dtype)


def pixel_maps(logits: Float[Array, "B P K"]) -> Float[Array, "B P K"]:
    """Eq. 5: A_p = softmax_1(f_p(x^R)). Each pixel's weights sum to 1 over the K combinations."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def expand(maps: Float[Array, "B P K"], squeezed_window: SqueezedWindow) -> Float[Array, "B P C"]:
    """Eq. 6: y^R = G_st A_p. Mixes the gathered vectors at each pixel of the current frame."""
    return _einsum("BPK,BKC->BPC", maps, squeezed_window).astype(squeezed_window.dtype)


# --- The memory of a frame ---


class FrameMemory(NamedTuple):
    """All that a window keeps of a past frame: M*C + C numbers, whatever the frame size."""

    squeezed: Squeezed
    """G_s."""
    pooled: Float[Array, "B T C"]
    """x', the mean over the pixels."""
    features: ClipFeatures | None = None
    """The whole feature maps, which only :class:`ConcatAttention` keeps."""


class PartialMemory(NamedTuple):
    """The contribution of some pixels (those of a tile, say) to a frame's memory, in float32."""

    squeezed: kernels.Partial
    """Eq. 1-2 over these pixels."""
    pooled: Float[Array, "B T C"]
    """The sum of x."""
    pixels: Float[Array, ""]
    """The number of pixels."""


def combine_partials(a: PartialMemory, b: PartialMemory) -> PartialMemory:
    """Returns the contribution of the pixels of both."""
    return PartialMemory(
        kernels.combine_partials(a.squeezed, b.squeezed), a.pooled + b.pooled, a.pixels + b.pixels
    )


# --- The block ---


class FactorisedAttention(Fusion):
    """The six equations with their convolutions f_s, f_t and f_p.

    ``remember`` computes eq. 1-2, which depend on one frame alone; ``fuse`` computes eq. 3-6.

    Attributes:
      sharding: how the batch is spread over a mesh, which a kernel needs to know; None if one
        device holds the whole batch. Set by ``Fsta.spread_over``.
    """

    sharding: kernels.Sharding | None

    def __init__(self, config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        # f_s and f_t have no bias: it would shift all logits of a softmax alike, without effect.
        maps, combinations = config.spatial_maps, config.spatial_maps * config.temporal_maps
        options: dict[str, Any] = {"dtype": config.dtype, "rngs": rngs}
        self.f_s = Conv(channels, maps, 1, bias=None, **options)
        shape = (config.temporal_kernel, channels, config.temporal_maps)
        deviation = (2.0 / (config.temporal_kernel * channels)) ** 0.5
        self.f_t = nnx.Param(normal(rngs.params(), shape, deviation))
        self.f_p = Conv(channels, combinations, 1, **options)
        self.key_frames = config.key_frames
        self.implementation = config.implementation
        self.sharding = None
        self.radius = 0

    def remember(self, features: ClipFeatures) -> FrameMemory:
        """Computes eq. 1-2 and the pooling of eq. 3 for each frame."""
        x = rearrange(features, "B T h w C -> B T (h w) C")
        pooled = x.mean(axis=2, dtype=jnp.float32).astype(x.dtype)
        if self.implementation == "einsum":
            maps = spatial_maps(self._spatial_logits(features))
            return FrameMemory(spatial_squeeze(maps, x), pooled)
        return FrameMemory(self._run(kernels.softmax_squeeze, x, _matrix(self.f_s)), pooled)

    def remember_part(self, features: ClipFeatures, inside: Bool[Array, "h w"]) -> PartialMemory:
        """Returns the contribution of the pixels ``inside`` to the memory of each frame."""
        x = rearrange(features, "B T h w C -> B T (h w) C").astype(jnp.float32)
        inside = inside.reshape(-1)
        logits = jnp.where(inside, self._spatial_logits(features), -jnp.inf)
        return PartialMemory(
            kernels.squeeze_partial(logits, x),
            jnp.where(inside[:, None], x, 0.0).sum(axis=2),
            inside.sum(dtype=jnp.float32),
        )

    def finish(self, partial: PartialMemory, features: ClipFeatures) -> FrameMemory:
        """Returns a tiled frame's memory, from that of all its pixels and a tile's features."""
        squeezed = kernels.finish_partial(partial.squeezed, features.dtype)
        return FrameMemory(squeezed, (partial.pooled / partial.pixels).astype(features.dtype))

    def fuse(self, features: Features, window: FrameMemory) -> Features:
        """Returns y^R (eq. 3-6), from the current frame's features and the window's memory."""
        x = rearrange(features, "B h w C -> B (h w) C")
        squeezed_window = temporal_squeeze(window.squeezed, self.temporal_maps(window.pooled))
        if self.implementation == "einsum":
            y = expand(self.pixel_maps(features), squeezed_window)
        else:
            projection = _matrix(self.f_p), self._pixel_bias
            y = self._run(kernels.softmax_expand, x, *projection, squeezed_window)
        return y.reshape(features.shape)

    def spatial_maps(self, features: ClipFeatures) -> Float[Array, "B T M P"]:
        """Returns A_s of each frame (eq. 1)."""
        return spatial_maps(self._spatial_logits(features))

    def temporal_maps(self, pooled: Float[Array, "B T C"]) -> Float[Array, "B N T"]:
        """Returns A_t over the window (eq. 3), or over its key frames if so configured."""
        logits = self._temporal_logits(pooled)
        if self.key_frames is not None and self.key_frames < logits.shape[-1]:
            logits = keep_key_frames(logits, self.key_frames)
        return temporal_maps(logits)

    def pixel_maps(self, features: Features) -> Float[Array, "B P K"]:
        """Returns A_p of the current frame (eq. 5)."""
        x = rearrange(features, "B h w C -> B (h w) C")
        return pixel_maps(kernels.project(x, _matrix(self.f_p)) + self._pixel_bias)

    def _run(self, operation: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
        """Names the option in the errors of kernels that cannot run here or at these sizes."""
        try:
            return operation(*operands, implementation=self.implementation, sharding=self.sharding)
        except (NotImplementedError, ValueError) as error:
            raise UserError(f"--implementation: {error}") from error

    # The logits are always float32, as in the kernels. Rounding them to bfloat16 would change the
    # maps, and tiles would give other results than whole frames.

    def _spatial_logits(self, features: ClipFeatures) -> Float[Array, "B T M P"]:
        """f_s."""
        x = rearrange(features, "B T h w C -> B T (h w) C")
        return rearrange(kernels.project(x, _matrix(self.f_s)), "B T P M -> B T M P")

    def _temporal_logits(self, pooled: Float[Array, "B T C"]) -> Float[Array, "B N T"]:
        """f_t: a 1-D convolution over the window with zero padding, in float32."""
        kernel, time = self.f_t[...], pooled.shape[1]
        margin = kernel.shape[0] // 2
        padded = jnp.pad(pooled.astype(jnp.float32), ((0, 0), (margin, margin), (0, 0)))
        shifted = jnp.stack([padded[:, i : i + time] for i in range(kernel.shape[0])])
        return _einsum("iBTC,iCN->BNT", shifted, kernel)

    @property
    def _pixel_bias(self) -> Float[Array, " K"]:
        assert self.f_p.bias is not None  # __init__ makes it
        return self.f_p.bias[...]


class ConcatAttention(FactorisedAttention):
    """The sum of concatenation fusion (``Concat``) and the attention.

    Ours. ``Concat`` sees each neighbour's pixels within its 3x3 convolution; the attention sees the
    whole frames.
    """

    def __init__(self, config: FstaConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, channels, rngs=rngs)
        self.beside = Concat(config, channels, rngs=rngs)
        self.radius = self.beside.radius

    def remember(self, features: ClipFeatures) -> FrameMemory:
        """Keeps what the attention keeps, and the whole feature maps."""
        return super().remember(features)._replace(features=features)

    def finish(self, partial: PartialMemory, features: ClipFeatures) -> FrameMemory:
        """Does the same for a tiled frame; the features are the tile's."""
        return super().finish(partial, features)._replace(features=features)

    def fuse(self, features: Features, window: FrameMemory) -> Features:
        """Returns y^R plus the convolution over the window's features."""
        assert window.features is not None  # remember keeps them
        return super().fuse(features, window) + self.beside.fuse(features, window.features)


def _matrix(conv: Conv) -> Float[Array, "C M"]:
    """Returns the kernel of a 1x1 convolution as a matrix."""
    return conv.kernel[...][0, 0]


def keep_key_frames(logits: Float[Array, "B N T"], count: int) -> Float[Array, "B N T"]:
    """Keeps ``count`` frames of the window in eq. 3; the others get weight 0 in every map.

    The key frames are those with the highest logit in any of the N maps. This choice costs nothing
    and is trained through the weights of the chosen frames. (The CVPR 2021 version chooses by
    reinforcement learning, which its public text does not specify.)
    """
    _, chosen = lax.top_k(logits.max(axis=1), count)
    kept = jax.nn.one_hot(chosen, logits.shape[-1], dtype=jnp.bool_).any(axis=1)
    return jnp.where(kept[:, None], logits, -jnp.inf)


register_fusion("fsta", FactorisedAttention)
register_fusion("concat_fsta", ConcatAttention)
