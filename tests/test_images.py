"""Images: blocks are averaged, enlarging is bilinear, and powers are those of NumPy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.images import GAMMA, enlarge, halved, power, reduce_size
from jaxdeblur.testing import float32_error


def test_enlarging_keeps_a_ramp_and_reducing_takes_means() -> None:
    x = jnp.broadcast_to(jnp.arange(4.0)[None, None, :, None], (1, 3, 4, 1))
    big = enlarge(x, 2)
    rounding = float32_error(4, 3)
    ramp = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(big[0, 0, :, 0], ramp, rtol=0, atol=rounding)
    np.testing.assert_allclose(reduce_size(big, 2)[0, 0, 1:3, 0], [1, 2], rtol=0, atol=rounding)


def test_whole_blocks_are_not_padded() -> None:
    """JAX pads by arrays of size 0, too, and ONNX reads 0 in a shape as the size before."""
    whole, part = (
        str(jax.make_jaxpr(lambda x: reduce_size(x, 2))(jnp.zeros((1, height, 6, 3))))
        for height in (4, 5)
    )
    of_size_0 = re.compile(r"\[(\d+,)*0[,\]]")
    assert of_size_0.search(part)
    assert not of_size_0.search(whole)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_enlarging_is_bilinear(size: tuple[int, int], factor: int) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((2, 1, *size, 3)), jnp.float32)
    shape = (2, 1, factor * size[0], factor * size[1], 3)
    weight = jnp.asarray(rng.random(shape), jnp.float32)

    def of_both(x: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
        for f in (lambda x: enlarge(x, factor), lambda x: jax.image.resize(x, shape, "bilinear")):
            yield f(x), jax.grad(lambda x, f=f: jnp.sum(f(x) * weight))(x)

    ours, its = jax.jit(lambda x: tuple(of_both(x)))(x)
    np.testing.assert_allclose(ours[0], its[0], rtol=0, atol=float32_error(4 * 8))
    np.testing.assert_allclose(ours[1], its[1], atol=1e-5)


@pytest.mark.parametrize("xp", [np, jnp])
def test_blocks_at_the_ends_repeat_the_last_pixel(xp: ModuleType) -> None:
    """Blocks of 2 x 3 in an image of 3 x 4 pixels with two channels."""
    image = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    filled = np.pad(image, ((0, 1), (0, 2), (0, 0)), mode="edge")
    blocks = [[filled[y : y + 2, x : x + 3].mean((0, 1)) for x in (0, 3)] for y in (0, 2)]
    found = reduce_size(xp.asarray(image), (2, 3))
    assert isinstance(found, type(xp.zeros(1)))
    np.testing.assert_allclose(found, blocks, rtol=0, atol=float32_error(6, 24))


def test_an_axis_without_channels_is_halved_alike() -> None:
    frames = np.random.default_rng(0).random((2, 5, 7), np.float32)
    found, expected = halved(jnp.asarray(frames)), reduce_size(frames[..., None], 2)[..., 0]
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found, expected, rtol=0, atol=float32_error(4))


def test_powers_are_exact_to_rounding_down_to_zero() -> None:
    base = np.linspace(0, 1, 1001, dtype=np.float32)
    for exponent in (1.0, GAMMA, 1 / GAMMA):
        found = power(jnp.asarray(base), exponent)
        exact = base.astype(np.float64) ** exponent
        # The logarithm is up to 7 / GAMMA, and its error that of the power, relatively.
        np.testing.assert_allclose(found, exact, rtol=float32_error(8, 7))
