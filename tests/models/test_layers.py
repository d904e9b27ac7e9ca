"""Layers: the convolution's custom gradient equals XLA's, and maps keep their geometry."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur.models.layers import (
    Conv,
    conv2d,
    depth_to_space,
    space_to_depth,
)
from jaxdeblur.testing import float32_error


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (8, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (3, 5)])
@pytest.mark.parametrize(("stride", "c_in", "c_out"), [(1, 3, 4), (1, 12, 2), (2, 3, 4)])
def test_gradient_equals_that_of_the_plain_convolution(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, c_in: int, c_out: int
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, c_in)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(*kernel, c_in, c_out)), jnp.float32)
    target = jnp.asarray(rng.normal(size=conv2d(x, w, stride).shape), jnp.float32)

    def gradients(convolution: Callable[..., jax.Array]) -> tuple[jax.Array, jax.Array]:
        of = jax.grad(lambda x, w: jnp.sum(convolution(x, w, stride) * target), (0, 1))
        return jax.jit(of)(x, w)

    def plain(x: jax.Array, w: jax.Array, stride: int) -> jax.Array:
        halves, numbers = [(size // 2, size // 2) for size in kernel], ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), halves, dimension_numbers=numbers
        )

    for ours, xla in zip(gradients(conv2d), gradients(plain), strict=True):
        np.testing.assert_allclose(ours, xla, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before"),
    [
        ((8, 6), 5, 2, (1, 1)),
        ((5, 7), 2, 1, (1, 1)),
        ((4, 6), 4, 2, (1, 0)),
        ((5, 4), 3, 1, (0, 2)),
    ],
)
def test_zeros_before_the_first_pixel_are_as_many_as_asked_for(
    size: tuple[int, int], kernel: int, stride: int, before: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4)), jnp.float32)

    def plain(x: jax.Array, w: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), *((first, kernel) for first in before), (0, 0)])
        whole = jax.lax.conv_general_dilated(
            padded, w, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return whole[:, : -(-size[0] // stride), : -(-size[1] // stride)]

    target = jnp.asarray(rng.normal(size=plain(x, w).shape), jnp.float32)
    ours = jax.value_and_grad(lambda x, w: (conv2d(x, w, stride, before) * target).sum(), (0, 1))
    its = jax.value_and_grad(lambda x, w: (plain(x, w) * target).sum(), (0, 1))
    for one, other in zip(
        *(jax.tree.leaves(jax.jit(each)(x, w)) for each in (ours, its)), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 4), (12, 2)])
def test_gradient_with_a_stride_in_bfloat16_accumulates_in_float32(c_in: int, c_out: int) -> None:
    x = jnp.full((1, 128, 128, c_in), 1.0, jnp.bfloat16)
    w = jnp.zeros((1, 1, c_in, c_out), jnp.bfloat16)
    gradient = jax.grad(lambda w: conv2d(x, w, 2).astype(jnp.float32).sum())(w)
    np.testing.assert_array_equal(gradient.astype(jnp.float32), 4096)


def test_gradient_in_bfloat16_accumulates_in_float32() -> None:
    x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)
    w = jnp.zeros((1, 1, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda w: conv2d(x, w).astype(jnp.float32).sum())(w)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[0, 0, 0, 0]) == 4096  # summed in bfloat16 it would stop at 256


@pytest.mark.parametrize("size", [6, 7])
def test_stride_two_is_centred_for_even_and_odd_sizes(size: int) -> None:
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    x = jnp.arange(size * size, dtype=jnp.float32).reshape(1, size, size, 1)
    np.testing.assert_array_equal(conv2d(x, kernel, 2), x[:, ::2, ::2])


def test_any_number_of_leading_dimensions() -> None:
    conv = Conv(3, 5, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 4, 6, 8, 3))
    np.testing.assert_allclose(conv(x)[1, 2], conv(x[1, 2]), rtol=0, atol=float32_error(27))


def test_kernels_begin_as_he_et_al_have_them() -> None:
    """Their deviation is sqrt(2 / number of inputs), so that deep stacks keep their variance."""
    kernel = Conv(16, 128, 3, gain=0.5, rngs=nnx.Rngs(0)).kernel[...]
    assert float(jnp.std(kernel)) == pytest.approx(0.5 * (2 / (9 * 16)) ** 0.5, rel=0.02)


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        Conv(3, 5, 4, rngs=nnx.Rngs(0))


def test_space_and_depth_are_inverse() -> None:
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(depth_to_space(space_to_depth(x, 2), 2), x)
    assert space_to_depth(x, 2)[0, 0, 1, 3:6].tolist() == x[0, 0, 3].tolist()


def test_gradient_of_a_bias_in_bfloat16_accumulates_in_float32() -> None:
    graph, state = nnx.split(Conv(1, 1, 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    ones = jnp.ones((1, 64, 64, 1))

    @jax.jit
    @jax.grad
    def gradient(state: nnx.State, weight: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graph, state)(ones).astype(jnp.float32) * weight)

    assert float(gradient(state, ones)["bias"][0]) == 4096
