"""Equation 1 forwards and backwards, as a library offers it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxdeblur import paths as library
from jaxdeblur.images import GAMMA
from jaxdeblur.paths import deconvolve, fit_paths
from jaxdeblur.paths.likelihood import START, Fit
from jaxdeblur.paths.motion import tiling_of
from jaxdeblur.paths.path import FREE, KNOTS
from jaxdeblur.paths.window_fit import WindowFit

VELOCITY = np.array([3.0, 6.0])

# As single operations, each would compile a hundred programs.
adjoint, synthesise = jax.jit(library.adjoint), jax.jit(library.synthesise)


def along(velocity: np.ndarray, duty: float = 1.0, linear: bool = False) -> WindowFit:
    """Returns straight paths, alike in all tiles of frames of 96 x 128 pixels."""
    count = len(tiling_of((96, 128)).centres)
    knots = jnp.tile(jnp.asarray(KNOTS[FREE][:, None] * velocity, jnp.float32), (count, 1, 1))
    fit = Fit(knots, jnp.tile(jnp.asarray(START), (count, 1)), jnp.zeros((count, 3)))
    shutter = jnp.float32(duty), jnp.bool_(linear), jnp.bool_(False)
    told = jnp.ones(count), jnp.zeros((count, 3, 2)), jnp.ones(5)
    return WindowFit(fit, *told, *shutter, jnp.float32(1), jnp.float32(1))


def texture(height: int = 96, width: int = 128) -> np.ndarray:
    image = ndimage.gaussian_filter(np.random.default_rng(0).random((height, width, 3)), (1, 1, 0))
    return ((image - image.min()) / np.ptp(image)).astype(np.float32)


def moments(image: np.ndarray, duty: float) -> np.ndarray:
    """Returns the sharp frames that one exposure averages."""
    times = (np.arange(65) - 32) / 65 * duty
    return np.stack([ndimage.shift(image, (*(t * VELOCITY), 0), mode="reflect") for t in times])


@pytest.mark.parametrize("linear", [False, True])
def test_forwards_is_the_mean_of_moments(linear: bool) -> None:
    image, exponent = texture(), GAMMA if linear else 1.0
    made = synthesise(jnp.asarray(image), along(VELOCITY, 0.7, linear))
    mean = (np.clip(moments(image, 0.7), 0, 1) ** exponent).mean(0) ** (1 / exponent)
    inside = np.s_[10:-10, 10:-10]
    assert np.abs(image - mean)[inside].mean() > 0.03
    assert np.abs(made - mean)[inside].mean() < 0.004


def test_backwards_is_the_transpose_of_forwards() -> None:
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.normal(size=(96, 128, 2)), jnp.float32) for _ in range(2))
    paths = along(VELOCITY)
    forwards, backwards = jnp.vdot(synthesise(x, paths), y), jnp.vdot(x, adjoint(y, paths))
    np.testing.assert_allclose(forwards, backwards, rtol=1e-4)
    assert abs(float(jnp.vdot(synthesise(y, paths), y) - forwards)) > 1


def test_forwards_has_a_gradient_with_respect_to_the_duty_cycle() -> None:
    image = jnp.asarray(texture())

    def error(duty: jax.Array, target: jax.Array) -> jax.Array:
        paths = along(VELOCITY)._replace(duty=duty)
        return ((synthesise(image, paths) - target) ** 2).mean()

    target = synthesise(image, along(VELOCITY, 0.6))
    value, step = jax.jit(error), 0.02
    slope = jax.jit(jax.grad(error))(0.8, target)
    expected = (value(0.8 + step, target) - value(0.8 - step, target)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=0.05)
    assert slope > 0


def test_black_pixels_have_a_gradient_in_linear_light() -> None:
    image = jnp.asarray(texture()).at[30:60, 40:80].set(0.0)
    slope = jax.jit(jax.grad(lambda x: synthesise(x, along(VELOCITY, 0.6, linear=True)).sum()))
    assert np.isfinite(slope(image)).all()
    assert slope(image).mean() > 0.5


def test_frames_that_hold_no_tile_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 64x64"):
        fit_paths(jnp.zeros((5, 40, 200, 3)))


@pytest.mark.stress  # compiles the fit, for one video and for two, and its gradient
def test_paths_are_found_and_the_blur_removed() -> None:
    whole = texture(150, 220)
    places = [(t * VELOCITY + [20, 30]).astype(int) for t in range(5)]
    sharp = np.stack([whole[y:, x:][:96, :128] for y, x in (places[::-1])])
    times = np.linspace(-0.5, 0.5, 17)
    blurred = np.stack(
        [
            np.mean(
                [
                    ndimage.shift(whole, (*(t * VELOCITY), 0), order=1)[y:, x:][:96, :128]
                    for t in times
                ],
                0,
            )
            for y, x in places[::-1]
        ]
    )
    frames = jnp.asarray(blurred, jnp.float32)
    paths = jax.jit(fit_paths)(frames)
    restored = np.asarray(jax.jit(deconvolve)(frames[1:4], paths))
    error = [((each - sharp[2])[8:-8, 8:-8] ** 2).mean() for each in (blurred[2], restored)]
    assert error[1] < 0.8 * error[0]
    both = jax.jit(jax.vmap(fit_paths))(jnp.stack([frames, frames[:, ::-1]]))
    np.testing.assert_allclose(both.fit.knots[0], paths.fit.knots, atol=0.05)
    evidence = jax.jit(lambda duty: fit_paths(frames, duty).log_evidence_ratio.mean())
    slope = jax.jit(jax.jacfwd(evidence))(0.8)
    np.testing.assert_allclose(slope, (evidence(0.81) - evidence(0.79)) / 0.02, rtol=0.1)
