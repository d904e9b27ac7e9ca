"""Building blocks of the systems of Table 1 beyond ``models/layers.py``.

These systems initialise weights in other ways and enlarge by transposed convolutions; two of them
normalise. All kernels are stored as ``kh kw C_in C_out``, transposed ones in the orientation in
which they scatter, so that converting a reference's weights only moves axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdeblur.models.layers import Init, add_bias, conv2d, depth_to_space
from jaxdeblur.shapes import Kernel

Maps: TypeAlias = Float[Array, "*leading h w C_in"]
NewMaps: TypeAlias = Float[Array, "*leading h2 w2 C_out"]


# Initialisation.


def _uniform(bound_of: Callable[[int, int, int, int], float]) -> Init:
    def draw(key: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
        bound = bound_of(*shape)
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return draw


xavier_uniform = _uniform(
    lambda rows, columns, c_in, c_out: (6 / (rows * columns * (c_in + c_out))) ** 0.5
)
"""Glorot and Bengio 2010."""

torch_default = _uniform(lambda rows, columns, c_in, c_out: (rows * columns * c_in) ** -0.5)
"""As PyTorch draws."""

torch_transposed = _uniform(lambda rows, columns, c_in, c_out: (rows * columns * c_out) ** -0.5)
"""As PyTorch draws for a transposed convolution, whose fan in counts the outputs."""


def truncated_normal(key: jax.Array, shape: tuple[int, ...], deviation: float) -> jax.Array:
    """Draws from a normal distribution, redrawn beyond two deviations, as in TensorFlow."""
    return deviation * jax.random.truncated_normal(key, -2.0, 2.0, shape)


def variance_scaling(key: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
    """Draws as TensorFlow 1 with factor 2 and fan in: truncated normal, variance 2 / fan in."""
    # Factor 1.3, as in TensorFlow 1: truncation at two deviations reduces the variance.
    return truncated_normal(key, shape, (1.3 * 2 / math.prod(shape[:3])) ** 0.5)


# Layers.


def clamp(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Clips to [0, 1]; the gradient passes within, both ends included, as in PyTorch."""
    return jnp.where((x >= 0) & (x <= 1), x, jnp.clip(jax.lax.stop_gradient(x), 0, 1))


class TransposedConv(nnx.Module):
    """A transposed convolution of stride 2, which doubles the size.

    Pixel i adds w[k] times itself to pixel 2i - 1 + k. With 4x4 kernels this is PyTorch's padding
    1 and TensorFlow's SAME; with 3x3 ones, PyTorch's padding 1 and output padding 1.

    Args:
      c_in: channels of the input.
      c_out: channels of the output.
      kernel: height and width of the kernel, 3 or 4.
      init: draws the kernel.
      dtype: type of the computation.
      rngs: source of random numbers for the kernel.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 4,
        *,
        init: Init = torch_transposed,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(init(rngs.params(), (kernel, kernel, c_in, c_out)))
        self.bias = nnx.Param(jnp.zeros(c_out))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Maps) -> NewMaps:
        """Applies the transposed convolution and adds the bias."""
        flat = x.reshape(-1, *x.shape[-3:]).astype(self.dtype)
        y = transposed_conv2d(flat, self.kernel[...].astype(self.dtype))
        return add_bias(y, self.bias[...]).reshape(*x.shape[:-3], *y.shape[1:])


def transposed_conv2d(x: Float[Array, "B h w C_in"], kernel: Kernel) -> Float[Array, "B H W C_out"]:
    """Computes the transposed convolution above by a convolution that outputs 2x2 pixels at once.

    XLA's own is slow on a CPU, where it computes the kernel's gradient naively.
    """
    missing = 4 - kernel.shape[0]
    kernel = jnp.pad(kernel, [(0, missing), (0, missing), (0, 0), (0, 0)])
    # The new pixels 2i-1 and 2i lie around the corner between pixels i-1 and i and read only these
    # two: new pixel 2i-1+p reads pixel i-1+r with w[2 (1-r) + p].
    corners = rearrange(kernel, "(r p) (c q) i o -> r c i (p q o)", p=2, q=2)[::-1, ::-1]
    padded = jnp.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)])  # h pixels have h + 1 corners
    return depth_to_space(conv2d(padded, corners, 1, (1, 1)), 2)[:, 1:-1, 1:-1]


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) with the running statistics as arrays.

    ``running_mean`` and ``running_var`` are stored beside the parameters, so they are saved, loaded
    and converted with them. ``models/parameters.py`` tells them apart by name, and no optimiser
    changes them.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-5) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.running_mean = nnx.Param(jnp.zeros(width))
        self.running_var = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon

    def __call__(self, x: Maps) -> Maps:
        """Normalises by the running statistics."""
        return self._normalised(x, self.running_mean[...], self.running_var[...])

    def by_batch(self, x: Maps) -> tuple[Maps, Float[Array, " C"], Float[Array, " C"]]:
        """Normalises by the statistics of ``x`` itself; also returns the updated running ones.

        These move a tenth of the way, the variance to the unbiased one, as in PyTorch.
        """
        mean, variance = statistics(x)
        count = math.prod(x.shape[:-1])
        unbiased = variance * count / max(count - 1, 1)
        running_mean, running_var = (
            old[...] + 0.1 * jax.lax.stop_gradient(new - old[...])
            for old, new in ((self.running_mean, mean), (self.running_var, unbiased))
        )
        return self._normalised(x, mean, variance), running_mean, running_var

    def _normalised(self, x: Maps, mean: jax.Array, variance: jax.Array) -> Maps:
        return normalise(x, mean, variance, self.scale[...], self.bias[...], self.epsilon)


def statistics(x: Maps) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """Returns each channel's mean and (biased) variance over batch and pixels, in float32."""
    pixels = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    mean = pixels.mean(0)
    return mean, ((pixels - mean) ** 2).mean(0)


def normalise(
    x: Maps,
    mean: Float[Array, " C_in"],
    variance: Float[Array, " C_in"],
    scale: Float[Array, " C_in"],
    bias: Float[Array, " C_in"],
    epsilon: float,
) -> Maps:
    """Computes (x - mean) / sqrt(variance + epsilon) * scale + bias, in float32.

    Args:
      x: maps ``... h w C``; the result has the same dtype.
      mean, variance: statistics of each channel.
      scale, bias: learnt parameters of each channel.
      epsilon: added to the variance.
    """
    factor = scale * jax.lax.rsqrt(variance + epsilon)
    return (x.astype(jnp.float32) * factor + (bias - mean * factor)).astype(x.dtype)


# Resizing as in TensorFlow 1.


def halve(x: Maps, times: int = 1) -> NewMaps:
    """Keeps every 2**times-th pixel, from the first, as TensorFlow 1's ``resize_images`` does.

    With align_corners off, output pixel i is read at i * 2**times, exactly on an input pixel.
    """
    step = 2**times
    return x[..., ::step, ::step, :]


def double(x: Maps) -> NewMaps:
    """Doubles the size as TensorFlow 1's ``resize_images`` does, bilinear with align_corners off.

    Output pixel i is read at i / 2: it is an input pixel or the mean of two. The last pixel is
    repeated beyond the border. So the picture is shifted by a quarter of an input pixel from where
    today's resizing puts it.
    """
    for axis in (x.ndim - 3, x.ndim - 2):
        ends = [(0, 0)] * x.ndim
        ends[axis] = (0, 1)
        following = jax.lax.slice_in_dim(
            jnp.pad(x, ends, mode="edge"), 1, x.shape[axis] + 1, axis=axis
        )
        shape = list(x.shape)
        shape[axis] *= 2
        x = jnp.stack([x, (x + following) / 2], axis + 1).reshape(shape)
    return x
