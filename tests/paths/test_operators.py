"""The linear operators of blur paths, each against its adjoint: <A x, y> = <x, A' y>."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdeblur.images import halved
from jaxdeblur.paths.gate import _at_cells
from jaxdeblur.paths.library import _blurred, adjoint
from jaxdeblur.paths.likelihood import RADII, START, Fit, _conj_times
from jaxdeblur.paths.motion import tiling_of
from jaxdeblur.paths.path import FREE, KNOTS, SAMPLE_WEIGHTS, exposures, frequencies, otf
from jaxdeblur.paths.tiles import Tiling, cut, overlap_add, taper
from jaxdeblur.paths.wiener import LAM, Prior, Tiles, _without_small_gradients, filtered_channels
from jaxdeblur.paths.window_fit import WindowFit
from jaxdeblur.testing import float32_error


def drawn(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def check_adjoint(forwards: jax.Array, y: jax.Array, x: jax.Array, backwards: jax.Array) -> None:
    """Compares the two products, up to rounding relative to the lengths of the vectors."""
    left, right = (float((a.astype(float) * b).sum()) for a, b in ((forwards, y), (x, backwards)))
    length = float(jnp.linalg.norm(forwards) * jnp.linalg.norm(y))
    np.testing.assert_allclose(left, right, rtol=0, atol=float32_error(64, length))
    assert abs(left) > 1e-3 * length, "drawn vectors are not orthogonal"


def bent_paths(height: int, width: int) -> WindowFit:
    """Returns a path for each tile, which differ."""
    count = len(tiling_of((height, width)).centres)
    knots = KNOTS[FREE][:, None] * np.array([3.0, -6.0]) + np.asarray(drawn(0, count, 6, 2))
    spectrum = jnp.tile(jnp.asarray(START), (count, 1))
    fit = Fit(jnp.asarray(knots, jnp.float32), spectrum, jnp.zeros((count, 3)))
    told = jnp.ones(count), jnp.zeros((count, 3, 2)), jnp.ones(5), jnp.float32(0.8)
    return WindowFit(fit, *told, jnp.bool_(False), jnp.bool_(False), *[jnp.float32(1)] * 2)


def test_the_adjoint_of_blur_along_differing_paths() -> None:
    paths, x, y = bent_paths(75, 130), drawn(1, 75, 130, 3), drawn(2, 75, 130, 3)
    # Frames that share what is bright, so that the product is not small.
    y = y + x
    check_adjoint(jax.jit(_blurred)(x, paths), y, x, jax.jit(adjoint)(y, paths))


def test_the_adjoint_of_a_transfer_function_is_its_conjugate() -> None:
    """That is the transfer function of the path reversed."""
    path, n = 5 * drawn(0, 8, 2), 24
    x, y = drawn(1, n, n), drawn(2, n, n)
    y = y + x

    def kernel_of(path: jax.Array) -> jax.Array:
        return otf(path, SAMPLE_WEIGHTS[None], *frequencies(n))[0]

    def apply(kernel: jax.Array, image: jax.Array) -> jax.Array:
        return jnp.fft.irfft2(lax.complex(kernel[0], kernel[1]) * jnp.fft.rfft2(image), s=(n, n))

    def backwards(image: jax.Array) -> jax.Array:
        spectrum = jnp.fft.rfft2(image)
        made = _conj_times(kernel_of(path), jnp.stack([spectrum.real, spectrum.imag]))
        return jnp.fft.irfft2(lax.complex(made[0], made[1]), s=(n, n))

    # A real image has no phase at the highest frequency, where sines count as zero.
    low = kernel_of(path).at[:, n // 2].set(0).at[:, :, n // 2].set(0)
    reverse = kernel_of(-path).at[:, n // 2].set(0).at[:, :, n // 2].set(0)
    np.testing.assert_allclose(reverse, low * jnp.array([1.0, -1.0])[:, None, None], atol=1e-6)
    check_adjoint(apply(kernel_of(path), x), y, x, backwards(y))
    check_adjoint(apply(low, x), y, x, apply(reverse, y))


@pytest.mark.parametrize("size", [32, 48])
def test_the_adjoint_of_cutting_tiles_is_their_sum(size: int) -> None:
    tiling = Tiling(75, 130, 32, size, size)
    x, y = drawn(1, 2, 75, 130), drawn(2, len(tiling.centres), 2, size, size)
    patches = cut(x, tiling, mirrored=False)
    check_adjoint(patches, y + patches, x, overlap_add(y + patches, tiling))


def test_windows_of_overlapping_tiles_sum_to_one() -> None:
    tiling = Tiling(75, 130, 32, 48, 48)
    windows = jnp.tile(taper(48, 16), (len(tiling.centres), 1, 1, 1))
    np.testing.assert_allclose(overlap_add(windows, tiling), 1, rtol=0, atol=float32_error(4))


def test_the_adjoint_of_halving_repeats_a_quarter() -> None:
    x, y = drawn(1, 2, 20, 30), drawn(2, 2, 10, 15)
    small = halved(x)
    y = y + small
    check_adjoint(small, y, x, y.repeat(2, 1).repeat(2, 2) / 4)


def test_gradients_and_their_adjoint_are_the_filters_roughness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without shrinkage, sum_d G_d' G_d; of small gradients, nothing is left."""
    x, y = drawn(1, 24, 24), drawn(2, 24, 24)
    fy, fx = np.fft.fftfreq(24)[:, None], np.fft.rfftfreq(24)
    monkeypatch.setattr("jaxdeblur.paths.wiener.THRESHOLD", 0.0)
    rough = _without_small_gradients(x)[0]
    spectrum = np.fft.rfft2(x) * 4 * (np.sin(np.pi * fy) ** 2 + np.sin(np.pi * fx) ** 2)
    np.testing.assert_allclose(np.fft.rfft2(rough), spectrum, atol=1e-3)
    y = y + x
    check_adjoint(rough, y, x, _without_small_gradients(y)[0])
    monkeypatch.setattr("jaxdeblur.paths.wiener.THRESHOLD", 100.0)
    assert not np.asarray(_without_small_gradients(x)).any()


def test_cells_interpolate_tiles() -> None:
    tiling = Tiling(75, 130, 32, 48, 48)
    y, x = tiling.centres.T.astype(np.float32)
    found = _at_cells(jnp.asarray(2 + 3 * y - x), tiling, (4, 8))
    middles = 16 * (np.arange(8) + 0.5)
    np.testing.assert_allclose(found, 2 + 3 * middles[:4, None] - middles, atol=1e-4)


def test_the_filter_solves_its_normal_equations() -> None:
    """In the quarter of a frame that its first tile covers; without a last frame, m is 0."""
    n, side, velocity, weights = 48, 32, np.array([1.5, 2.0]), np.array([0.3, 1.0, 0.6])
    tiling = Tiling(side, side, side, side, n)
    frames, base = drawn(0, 3, 1, side, side), drawn(1, 1, side, side)
    count = len(tiling.centres)
    knots = jnp.tile(jnp.asarray(KNOTS[FREE][:, None] * velocity, jnp.float32), (count, 1, 1))
    fit = Fit(knots, jnp.tile(jnp.asarray(START), (count, 1)), jnp.zeros((count, 3)))
    none, each = jnp.zeros((count, 3, 2)), jnp.tile(jnp.asarray(weights, jnp.float32), (count, 1))
    tiles = Tiles(fit, none, none, each, jnp.float32(0.9), exposures(0.9))
    whole = jnp.ones((1, 1, side, side))
    restore = jax.jit(filtered_channels, static_argnums=3)
    found = restore(frames, Prior(base, base, jnp.float32(0)), tiles, tiling, whole)

    def patch(image: jax.Array) -> np.ndarray:
        return np.pad(np.asarray(image[0], np.float64), 24, "symmetric")[:n, :n]

    mean, edge = patch(frames[1]).mean(), taper(n, 6)
    blurred = np.stack([np.fft.rfft2((p - p.mean()) * edge) for p in map(patch, frames)])
    prior = np.fft.rfft2((patch(base) - mean) * edge)
    fy, fx = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)
    times = np.linspace(-0.45, 0.45, 2001)[1::2]
    turns = (fy * velocity[0] + fx * velocity[1])[..., None]
    kernel = np.stack([np.exp(-2j * np.pi * turns * (j + times)).mean(-1) for j in (-1, 0, 1)])
    radius = np.maximum(np.hypot(fy, fx), 1e-4)
    ratio = LAM * np.exp(np.interp(np.log(radius), np.log(RADII), START))
    w = weights[:, None, None]
    sharp = (w * kernel.conj() * blurred).sum(0) + ratio * prior
    sharp = np.fft.irfft2(sharp / ((w * np.abs(kernel) ** 2).sum(0) + ratio), s=(n, n)) + mean
    np.testing.assert_allclose(found[0, :16, :16], sharp[24:40, 24:40], atol=1e-3)
