"""The likelihood of a blur from power spectra alone: its zeros, not texture's direction."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.paths.gate import agreement, noise_factor
from jaxdeblur.paths.likelihood import observed
from jaxdeblur.paths.path import sample_times
from jaxdeblur.paths.shutter import DUTIES, Shutter
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.whittle import PATCH, power_of, power_through, transfer, values_of

VELOCITY = np.array([3.0, 11.0])


@functools.cache
def tiles_of(duty: float) -> np.ndarray:
    """Returns L of tiles for each of DUTIES; their texture falls off along x, as if blurred."""
    rng, (height, width) = np.random.default_rng(2), (320, 384)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    waves = np.fft.rfft2(rng.normal(size=(height, width))) / (np.hypot(fy, 3 * fx) + 0.01)
    waves = waves * np.sinc(duty * (VELOCITY[0] * fy + VELOCITY[1] * fx))
    image = np.fft.irfft2(waves, s=(height, width))
    image = 0.5 + 0.15 * image / image.std() + 0.004 * rng.normal(size=(height, width))
    image = np.round(255 * np.clip(image, 0, 1)).astype(np.float32) / 255

    @jax.jit
    def of(image: jax.Array) -> jax.Array:
        tiling = Tiling(height, width, 64, 128, PATCH)
        count = len(tiling.centres)
        given = jnp.stack([image] * 3), tiling, jnp.zeros((count, 3, 2)), jnp.ones(5)
        power = power_of(observed(*given, jnp.asarray(tiling.inward), scale=1))
        lengths = jnp.asarray(DUTIES[1:, None] * VELOCITY, jnp.float32)
        blurs = jax.vmap(lambda v: transfer(v)[0])(lengths)
        return values_of(power, jnp.broadcast_to(blurs, (count, *blurs.shape)))

    return np.asarray(of(jnp.asarray(image)))


def test_a_straight_path_leaves_the_power_that_a_sinc_does() -> None:
    path = jnp.asarray(sample_times(0.5)[:, None] * VELOCITY, jnp.float32)
    of_path, of_velocity = power_through(path), transfer(jnp.asarray(0.5 * VELOCITY))[0]
    np.testing.assert_allclose(of_path, of_velocity, rtol=0, atol=1e-4)  # Eight samples.


@pytest.mark.parametrize("duty", [0.0, 0.4, 0.85])
def test_zeros_tell_the_exposure_of_texture_with_a_direction(duty: float) -> None:
    values = tiles_of(duty).mean(0)
    assert DUTIES[values.argmin()] == np.float32(duty)
    assert np.sort(values)[1] - values.min() > 0.002


def test_zeros_decide_on_a_short_exposure_that_three_frames_leave_open() -> None:
    """Frames count as noisy as fitted then, not where they are sharp, or zeros show a long one."""
    for duty, expected in ((0.4, 1.0), (0.0, 0.0), (0.85, 0.0)):
        values = jnp.asarray(np.stack([tiles_of(duty)] * 2))
        shutter = Shutter.unknown().add(0 * values, jnp.ones(values.shape[1]), values)
        np.testing.assert_allclose(noise_factor(agreement(shutter)), 4 ** (1 - expected), atol=0.05)
        np.testing.assert_allclose(shutter.duty, max(duty, 0.2), atol=0.05)
