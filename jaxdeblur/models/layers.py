"""Building blocks of all networks: convolution, residual and dense blocks, resizing.

The convolution has a custom gradient because, on a CPU, XLA runs the standard one 10 to 60 times
slower inside ``lax.scan`` than outside: the kernel's gradient is a convolution whose operands are
not in NHWC/HWIO order, and XLA computes these naively inside a loop. Here it is one matrix product
(``benchmarks/train_step.py`` measures the difference).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdeblur.shapes import Kernel

Input: TypeAlias = Float[Array, "B H W C_in"]
Output: TypeAlias = Float[Array, "B h w C_out"]
Init: TypeAlias = Callable[[jax.Array, tuple[int, int, int, int]], jax.Array]
"""Draws a kernel ``kh kw C_in C_out`` from a key."""

LEAK = 0.1
"""Slope of the leaky ReLU for negative values, in the networks that use one."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(
    x: Input, kernel: Kernel, stride: int = 1, before: tuple[int, int] | None = None
) -> Output:
    """Convolves with zero padding; height and width are divided by ``stride``, rounded up.

    Args:
      x: ``B H W C_in``.
      kernel: ``kh kw C_in C_out``.
      stride: distance in pixels between the places where the kernel is applied.
      before: zeros above and left of the first pixel. By default half a kernel, so that an odd
        kernel is centred for every stride and size; with stride 2, "SAME" would shift by a pixel
        between odd and even sizes.
    """
    return _convolve(x, kernel, stride, before)


def _half(kernel: Kernel) -> tuple[int, int]:
    return kernel.shape[0] // 2, kernel.shape[1] // 2


def _convolve(
    x: Input, kernel: Kernel, stride: int, before: tuple[int, int] | None = None
) -> Output:
    # The zeros to add per axis; negative where the last pixels aren't read.
    margins = [
        (first, (-(-length // stride) - 1) * stride - first + size - length)
        for first, length, size in zip(
            before or _half(kernel), x.shape[1:3], kernel.shape[:2], strict=True
        )
    ]
    if missing := -x.shape[-1] % 4:
        # On a CPU, XLA is 2.5 times slower for 15 input channels than for 16.
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, missing)])
        kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, missing), (0, 0)])
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), margins, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _conv2d_forward(
    x: Input, kernel: Kernel, stride: int, before: tuple[int, int] | None
) -> tuple[Output, tuple[Input, Kernel]]:
    return conv2d(x, kernel, stride, before), (x, kernel)


def _conv2d_backward(
    stride: int, before: tuple[int, int] | None, saved: tuple[Input, Kernel], gradient: Output
) -> tuple[Input, Kernel]:
    def as_convolution(x: Input, kernel: Kernel, gradient: Output) -> tuple[Input, Kernel]:
        return jax.vjp(lambda x, k: _convolve(x, k, stride, before), x, kernel)[1](gradient)

    as_matmul = functools.partial(
        _gradients_as_matmul, stride=stride, before=before or _half(saved[1])
    )
    return lax.platform_dependent(*saved, gradient, cpu=as_matmul, default=as_convolution)


def _gradients_as_matmul(
    x: Input, kernel: Kernel, gradient: Output, *, stride: int, before: tuple[int, int]
) -> tuple[Input, Kernel]:
    """Computes dx as a convolution with the flipped kernel, and dW as one matrix product.

    With s x s pixels grouped into the channels of one, stride s becomes stride 1. Then
    dW[i, j] = sum_yx x[y+i, x+j] gradient[y, x].
    """
    groups = [-(-count // stride) for count in before]  # read before the kernel's own

    def in_groups(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        if stride == 1:
            return x, kernel
        ends = [(0, -size % stride) for size in x.shape[1:3]]
        x = space_to_depth(jnp.pad(x, [(0, 0), *ends, (0, 0)]), stride)
        starts = [stride * count - first for count, first in zip(groups, before, strict=True)]
        sides = [
            (start, -(start + size) % stride)
            for start, size in zip(starts, kernel.shape[:2], strict=True)
        ]
        kernel = jnp.pad(kernel, [*sides, (0, 0), (0, 0)])
        return x, rearrange(kernel, "(i p) (j q) c o -> i j (p q c) o", p=stride, q=stride)

    (x, kernel), as_it_was = jax.vjp(in_groups, x, kernel)
    above, left = (size - 1 - count for size, count in zip(kernel.shape[:2], groups, strict=True))
    dx = _convolve(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, (above, left))
    margins = list(zip((above, left), groups, strict=True))
    return as_it_was((dx, _kernel_gradient(x, kernel, gradient, margins)))


def _kernel_gradient(
    x: Input, kernel: Kernel, gradient: Output, margins: list[tuple[int, int]]
) -> Kernel:
    """Computes dW as one matrix product, over all pixels, of shifted copies of x and the gradient.

    Shifting x along the columns (kw copies) and the gradient along the rows (kh copies) takes kw+kh
    copies instead of kw*kh. If the gradient has few channels, kw*kh copies of it are smaller.
    """
    rows, columns, c_in, c_out = kernel.shape
    height, width = x.shape[1:3]
    above, left = margins
    gradient = jnp.pad(gradient, [(0, 0), above, (0, 0), (0, 0)])
    gradients = [gradient[:, rows - 1 - i : rows - 1 - i + height] for i in range(rows)]
    if c_in + rows * columns * c_out < columns * c_in + rows * c_out:
        wide = [jnp.pad(each, [(0, 0), (0, 0), left, (0, 0)]) for each in gradients]
        gradients = [
            each[:, :, columns - 1 - j : columns - 1 - j + width]
            for each in wide
            for j in range(columns)
        ]
        order = "(i j o) c -> i j c o"
    else:
        x = jnp.pad(x, [(0, 0), (0, 0), left[::-1], (0, 0)])
        x = jnp.concatenate([x[:, :, j : j + width] for j in range(columns)], axis=-1)
        order = "(i o) (j c) -> i j c o"
    product = jnp.einsum(
        "bhwq,bhwp->qp", jnp.concatenate(gradients, -1), x, preferred_element_type=jnp.float32
    )
    return rearrange(product, order, i=rows, j=columns, c=c_in, o=c_out).astype(kernel.dtype)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def normal(key: jax.Array, shape: tuple[int, ...], deviation: float) -> jax.Array:
    """Draws a power of two of normal samples and keeps the first: most shapes share a program."""
    count = max(4096, 1 << (math.prod(shape) - 1).bit_length())
    return _first_scaled(jax.random.normal(key, (count,)), deviation, shape)


@functools.partial(jax.jit, static_argnums=2)
def _first_scaled(
    drawn: jax.Array, deviation: float | jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    return deviation * drawn[: math.prod(shape)].reshape(shape)


class Conv(nnx.Module):
    """A convolution with zero padding on maps with any number of leading dimensions.

    ``... h w C_in`` becomes ``... ceil(h/stride) ceil(w/stride) C_out``. Parameters are float32;
    the computation runs in ``dtype``.

    Args:
      c_in: channels of the input.
      c_out: channels of the output.
      kernel: height and width of the kernel, odd.
      stride: distance in pixels between the places where the kernel is applied.
      padding: "centred" pads as many zeros before the first pixel as after the last, as PyTorch
        does with padding k // 2. "same" is TensorFlow's SAME, which pads an odd zero at the end:
        with stride 2, a 5x5 kernel has 1 zero before an even size and 2 after it.
      gain: scales He initialisation (He et al. 2015).
      init: draws the kernel instead.
      bias: the initial bias; None for no bias.
      dtype: of the computation.
      rngs: what the kernel is drawn from.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: Literal["centred", "same"] = "centred",
        gain: float = 1.0,
        init: Init | None = None,
        bias: float | None = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {kernel}")
        deviation = gain * (2.0 / (kernel * kernel * c_in)) ** 0.5
        shape = (kernel, kernel, c_in, c_out)
        key = rngs.params()
        self.kernel = nnx.Param(init(key, shape) if init else normal(key, shape, deviation))
        self.bias = None if bias is None else nnx.Param(jnp.full((c_out,), bias, jnp.float32))
        self.stride = stride
        self.padding = padding
        self.dtype = jnp.dtype(dtype)

    @property
    def radius(self) -> int:
        """How many input pixels to each side an output pixel reads."""
        return self.kernel.shape[0] // 2

    def __call__(
        self, x: Float[Array, "*leading h w C_in"]
    ) -> Float[Array, "*leading h2 w2 C_out"]:
        """Convolves and adds the bias."""
        flat = x.reshape(-1, *x.shape[-3:]).astype(self.dtype)
        before = None
        if self.padding == "same":
            before = (self._zeros_before(flat.shape[1]), self._zeros_before(flat.shape[2]))
        y = conv2d(flat, self.kernel[...].astype(self.dtype), self.stride, before)
        if self.bias is not None:
            y = add_bias(y, self.bias[...])
        return y.reshape(*x.shape[:-3], *y.shape[1:])

    def _zeros_before(self, length: int) -> int:
        steps = -(-length // self.stride) - 1
        return max(steps * self.stride + self.kernel.shape[0] - length, 0) // 2


def add_bias(
    y: Float[Array, "*leading h w C"], bias: Float[Array, " C"]
) -> Float[Array, "*leading h w C"]:
    """Returns y + bias."""
    # Broadcast in float32: its gradient sums over all pixels, for which bfloat16 is too coarse.
    return y + jnp.broadcast_to(bias, y.shape).astype(y.dtype)


def activation(leak: float) -> Callable[[jax.Array], jax.Array]:
    """Returns a ReLU with slope ``leak`` below 0 and, as in PyTorch and TensorFlow, at 0 itself.

    With ``jnp.maximum`` the slope at 0 would be the mean of both slopes, so that on black frames
    zero biases would diverge from those of a reference implementation.
    """
    return lambda x: jnp.where(x > 0, x, jnp.asarray(leak, x.dtype) * x)


class ResidualBlock(nnx.Module):
    """x + conv(activation(conv(x))), without normalisation.

    Args:
      width: channels of x and between the convolutions.
      kernel: size of both kernels.
      leak: slope of the activation below 0.
      gains: of the two convolutions.
      options: other arguments of both (``Conv``).
    """

    def __init__(
        self,
        width: int,
        kernel: int = 3,
        *,
        leak: float = 0.0,
        # A small second convolution keeps the variance of a deep stack near that of its input, as
        # batch normalisation would.
        gains: tuple[float, float] = (1.0, 0.2),
        **options: Any,
    ) -> None:
        self.first, self.second = (
            Conv(width, width, kernel, gain=gain, **options) for gain in gains
        )
        self.leak = leak

    @property
    def radius(self) -> int:
        """How many pixels to each side an output pixel reads."""
        return self.first.radius + self.second.radius

    def __call__(self, x: Float[Array, "*leading h w C"]) -> Float[Array, "*leading h w C"]:
        """Adds the output of the two convolutions to x."""
        return x + self.second(activation(self.leak)(self.first(x)))


class DenseBlock(nnx.Module):
    """Convolutions that each see all previous outputs, then a residual 1x1 back to the width.

    The "densely connected modules" of Suin and Rajagopalan, section 3. The 1x1 and the addition are
    from residual dense networks (Zhang et al., CVPR 2018), so that blocks can be stacked.

    Args:
      width: channels of the features.
      growth: channels that each convolution adds.
      layers: how many convolutions.
      dtype: of the computation.
      rngs: what the kernels are drawn from.
    """

    def __init__(
        self, width: int, growth: int, layers: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.layers = nnx.List(
            [Conv(width + i * growth, growth, dtype=dtype, rngs=rngs) for i in range(layers)]
        )
        # A small last convolution keeps the variance of a deep stack near that of its input.
        self.join = Conv(width + layers * growth, width, 1, gain=0.2, dtype=dtype, rngs=rngs)

    @property
    def radius(self) -> int:
        """How many pixels to each side an output pixel reads."""
        return sum(layer.radius for layer in self.layers)

    def __call__(self, x: Float[Array, "*leading h w C"]) -> Float[Array, "*leading h w C"]:
        """Returns features of the same shape."""
        seen = x
        for layer in self.layers:
            seen = jnp.concatenate([seen, activation(LEAK)(layer(seen))], axis=-1)
        return x + self.join(seen)


def depth_to_space(
    x: Float[Array, "*leading h w C"], factor: int
) -> Float[Array, "*leading H W C2"]:
    """Spreads groups of ``factor**2`` channels over ``factor x factor`` pixels."""
    return rearrange(x, "... h w (p q c) -> ... (h p) (w q) c", p=factor, q=factor)


def space_to_depth(
    x: Float[Array, "*leading H W C"], factor: int
) -> Float[Array, "*leading h w C2"]:
    """Gathers ``factor x factor`` pixels into the channels of one; inverts ``depth_to_space``."""
    return rearrange(x, "... (h p) (w q) c -> ... h w (p q c)", p=factor, q=factor)
