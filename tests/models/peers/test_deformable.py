"""Modulated deformable convolution against loops."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeblur.models.peers.deformable import deformable_conv2d


def loops(x: np.ndarray, offsets: np.ndarray, mask: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Computes the convolution tap by tap and corner by corner."""
    height, width, channels = x.shape
    groups = offsets.shape[2]
    each = channels // groups
    out = np.zeros((height, width, kernel.shape[-1]))
    for row, column, group, tap in itertools.product(
        range(height), range(width), range(groups), range(9)
    ):
        y = row + tap // 3 - 1 + offsets[row, column, group, tap, 0]
        z = column + tap % 3 - 1 + offsets[row, column, group, tap, 1]
        value = np.zeros(each)
        for i, j in itertools.product(
            (np.floor(y), np.floor(y) + 1), (np.floor(z), np.floor(z) + 1)
        ):
            if 0 <= i < height and 0 <= j < width:
                share = (1 - abs(y - i)) * (1 - abs(z - j))
                value += share * x[int(i), int(j), group * each : (group + 1) * each]
        weights = kernel[tap // 3, tap % 3, group * each : (group + 1) * each]
        out[row, column] += mask[row, column, group, tap] * value @ weights
    return out


def drawn(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    offsets = 3 * rng.normal(size=(1, 5, 6, 2, 9, 2))
    offsets[0, 0, 0] *= 1e4  # far outside
    offsets[0, 1, 1] = rng.integers(-2, 3, (2, 9, 2))  # on pixels
    return [
        rng.normal(size=(1, 5, 6, 4)).astype(np.float32),
        offsets.astype(np.float32),
        rng.random((1, 5, 6, 2, 9), np.float32),
        rng.normal(size=(3, 3, 4, 3)).astype(np.float32),
    ]


def test_it_equals_loops() -> None:
    given = drawn()
    made = jax.jit(deformable_conv2d)(*map(jnp.asarray, given))
    expected = loops(*(array[0] for array in given[:3]), given[3])
    np.testing.assert_allclose(made[0], expected, atol=1e-4)


def test_without_offsets_it_is_a_convolution() -> None:
    x, offsets, mask, kernel = drawn()
    given = (x, np.zeros_like(offsets), np.ones_like(mask), kernel)
    made = jax.jit(deformable_conv2d)(*map(jnp.asarray, given))
    plain = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(made, plain, atol=1e-4)


def test_gradients_are_those_of_small_changes() -> None:
    given = drawn(1)
    given[1] = np.where(np.abs(given[1]) > 100, 0.3, given[1])
    given[1] += 0.01 * (np.abs(given[1] - np.round(given[1])) < 0.01)  # away from the kinks
    weight = np.random.default_rng(2).normal(size=(5, 6, 3))

    def loss(*given: jax.Array) -> jax.Array:
        return (deformable_conv2d(*given)[0] * weight).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*map(jnp.asarray, given))
    rng = np.random.default_rng(3)
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=given[i].shape) * (rng.random(given[i].shape) < 0.1)
        values = []
        for sign in (1, -1):
            moved = [np.float64(array) for array in given]
            moved[i] = moved[i] + sign * 1e-4 * direction
            made = loops(*(array[0] for array in moved[:3]), moved[3])
            values.append((made * weight).sum())
        slope = (values[0] - values[1]) / 2e-4
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=2e-3, atol=1e-2)
