"""The layers of Table 1's systems, each against loops over its definition."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxdeblur.models.layers import Conv, Init, activation
from jaxdeblur.table1 import layers
from jaxdeblur.testing import float32_error


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", [4, 3])
def test_a_transposed_convolution_scatters(size: int) -> None:
    layer = layers.TransposedConv(2, 3, size, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray([1.0, 2.0, 3.0])
    x, kernel = random(1, 3, 2, 2), np.asarray(layer.kernel[...])
    expected = np.tile(np.float32([1, 2, 3]), (6, 4, 1))
    for i, j, k, m in itertools.product(range(3), range(2), range(size), range(size)):
        row, column = 2 * i - 1 + k, 2 * j - 1 + m
        if 0 <= row < 6 and 0 <= column < 4:
            expected[row, column] += x[0, i, j] @ kernel[k, m]
    np.testing.assert_allclose(layer(jnp.asarray(x))[0], expected, atol=1e-5)


def test_the_gradient_of_a_transposed_convolution() -> None:
    x, kernel = jnp.asarray(random(2, 3, 4, 2)), jnp.asarray(random(4, 4, 2, 3, seed=1))
    weight = jnp.asarray(random(2, 6, 8, 3, seed=2))

    def xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), "SAME")

    for ours, its in zip(
        *(
            jax.grad(lambda x, k, f=f: (f(x, k) * weight).sum(), (0, 1))(x, kernel)
            for f in (layers.transposed_conv2d, xla)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(ours, its, atol=1e-4)


def test_slopes_where_pytorch_and_a_maximum_differ() -> None:
    slope = jax.vmap(jax.grad(activation(0.1)))(jnp.asarray([-1.0, 0, 1]))
    np.testing.assert_allclose(slope, [0.1, 0.1, 1], rtol=float32_error(1))
    x = jnp.asarray([-0.5, 0, 0.5, 1, 1.5])
    np.testing.assert_array_equal(layers.clamp(x), [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(jax.vmap(jax.grad(layers.clamp))(x), [0, 1, 1, 1, 0])


def test_same_padding_has_one_more_behind_than_before() -> None:
    """5x5 with stride 2 pads even sizes by 1 zero before and 2 behind, odd sizes by 2 and 2."""
    conv = Conv(1, 1, 5, stride=2, padding="same", rngs=nnx.Rngs(0))
    kernel = np.asarray(conv.kernel[...])[..., 0, 0]
    x = random(1, 6, 7, 1)
    padded = np.pad(x[0, ..., 0], [(1, 2), (2, 2)])
    expected = [
        [np.sum(padded[i : i + 5, j : j + 5] * kernel) for j in (0, 2, 4, 6)] for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(conv(jnp.asarray(x))[0, ..., 0], expected, atol=1e-5)
    centred = Conv(1, 1, 5, stride=2, rngs=nnx.Rngs(0))
    assert not np.allclose(centred(jnp.asarray(x))[0, ..., 0], expected, atol=0.1)


def test_sizes_change_as_tensorflow_1_changes_them() -> None:
    x = jnp.arange(4.0)[None, :, None, None]
    assert layers.halve(x)[0, :, 0, 0].tolist() == [0, 2]
    assert layers.halve(x, 2)[0, :, 0, 0].tolist() == [0]
    assert layers.double(x)[0, :, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_batch_normalisation_by_running_statistics_and_by_the_batch() -> None:
    norm = layers.BatchNorm(3, epsilon=1e-3)
    mean, var, scale, bias = (random(3, seed=seed) for seed in range(4))
    norm.running_mean[...], norm.running_var[...] = jnp.asarray(mean), jnp.asarray(var**2)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    x = random(2, 4, 5, 3, seed=5) + 3
    fixed = (x - mean) / np.sqrt(var**2 + 1e-3) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x)), fixed, atol=1e-5)
    y, new_mean, new_var = norm.by_batch(jnp.asarray(x))
    pixels = x.reshape(-1, 3)
    batch = (x - pixels.mean(0)) / np.sqrt(pixels.var(0) + 1e-3) * scale + bias
    np.testing.assert_allclose(y, batch, atol=1e-5)
    np.testing.assert_allclose(new_mean, 0.9 * mean + 0.1 * pixels.mean(0), atol=1e-5)
    np.testing.assert_allclose(new_var, 0.9 * var**2 + 0.1 * pixels.var(0, ddof=1), atol=1e-5)


@pytest.mark.parametrize(
    ("init", "deviation", "bound"),
    [
        (layers.xavier_uniform, (2 / (9 * 48)) ** 0.5, (6 / (9 * 48)) ** 0.5),
        (layers.torch_default, (1 / 3 / (9 * 16)) ** 0.5, (9 * 16) ** -0.5),
        (layers.torch_transposed, (1 / 3 / (9 * 32)) ** 0.5, (9 * 32) ** -0.5),
        (layers.variance_scaling, (2 / (9 * 16)) ** 0.5, 2 * (2.6 / (9 * 16)) ** 0.5),
        (functools.partial(layers.truncated_normal, deviation=1e-3), 0.88e-3, 2e-3),
    ],
)
def test_how_weights_begin(init: Init, deviation: float, bound: float) -> None:
    kernel = np.asarray(init(jax.random.key(0), (3, 3, 16, 32)))
    assert kernel.std() == pytest.approx(deviation, rel=0.04)
    assert 0.95 * bound < np.abs(kernel).max() <= bound
