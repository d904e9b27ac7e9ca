"""Stabilised video: the model, what the search finds, and what it must not find."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxdeblur.paths import stabiliser
from jaxdeblur.paths.octave import around_of
from jaxdeblur.paths.path import FREE, exposures, sample_times, with_shifts
from jaxdeblur.paths.stabiliser import TIMES, Stabiliser, fitted, follow, of_tiles, swing_of
from jaxdeblur.paths.tiles import Tiling
from jaxdeblur.paths.velocities import STABILISED_DUTY, velocity_of, view

VELOCITY = np.array([3.0, 5.0])


def seen_by_a_camera(kept: float, blurred: bool = True) -> np.ndarray:
    """Returns five luminances of a texture; ``kept`` of the camera's motion is left in them.

    The camera moves by VELOCITY during a frame, for STABILISED_DUTY of which the shutter is open.
    """
    rng = np.random.default_rng(3)
    texture = ndimage.gaussian_filter(rng.random((260, 330)), 0.8)
    texture += 2 * ndimage.gaussian_filter(rng.random((260, 330)), 3)
    texture = (texture - texture.min()) / np.ptp(texture)
    frames = []
    for t in range(-2, 3):
        times = np.linspace(-0.5, 0.5, 17) * STABILISED_DUTY * blurred
        stands = (kept - 1) * t * VELOCITY  # What the stabiliser takes away.
        moments = [
            ndimage.shift(texture, (t + s) * VELOCITY + stands, order=3)[40:200, 50:274]
            for s in times
        ]
        frames.append(np.mean(moments, 0))
    return np.stack(frames).astype(np.float32)


def test_two_blended_exposures_have_half_of_the_samples_each() -> None:
    times = np.asarray(sample_times(0.4, 1.0))
    assert np.abs(times[:4] + 0.5).max() < 0.2
    np.testing.assert_allclose(times[4:], -times[3::-1], atol=1e-6)
    np.testing.assert_allclose(sample_times(0.4), 0.4 * sample_times(1.0), atol=1e-7)


def test_shifts_are_taken_from_the_frames_beside() -> None:
    basis = with_shifts(exposures(0.5))
    swing = np.zeros(8, np.float32)
    swing[-2:] = 3, 7
    np.testing.assert_array_equal(basis @ swing, [[-3] * 8, [0] * 8, [-7] * 8])


def test_a_swing_moves_every_tile_and_turns_about_the_middle() -> None:
    tiling = Tiling(200, 300, 32, 64, 96)
    swing = np.zeros((8, 3), np.float32)
    swing[0], swing[-1] = (1, 2, 0), (0, 0, 0.01)
    paths, shifts = of_tiles(jnp.asarray(swing), jnp.asarray(around_of(tiling)))
    np.testing.assert_allclose(paths[:, 0], np.tile([1.0, 2.0], (len(paths), 1)))
    assert not np.any(paths[:, 1:])
    assert not np.any(shifts[:, :2])
    arm = tiling.centres + tiling.inward - [100, 150]
    np.testing.assert_allclose(shifts[:, 2], 0.01 * np.stack([arm[:, 1], -arm[:, 0]], 1), atol=1e-5)


def test_a_constant_velocity_is_a_swing() -> None:
    swing = swing_of(jnp.asarray(VELOCITY, jnp.float32))
    np.testing.assert_allclose(velocity_of(swing), VELOCITY, atol=1e-6)
    np.testing.assert_allclose(swing[:, 0], VELOCITY[0] * TIMES, atol=1e-6)
    assert swing.shape == (len(FREE) + 2, 3)


def test_the_motion_that_was_taken_away_is_found_nearby() -> None:
    """Both as a velocity and as the frames' shifts."""

    @jax.jit
    def found(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = view(frames, jnp.ones(5))
        starts = swing_of(jnp.asarray([VELOCITY + 0.3, 0 * VELOCITY], jnp.float32))
        shutters = jnp.asarray([[STABILISED_DUTY, 0.0], [STABILISED_DUTY, 0.0]])
        return fitted(seen, starts, shutters, jnp.array([1.0, 0.0]), (0, 2))

    swings, values = found(jnp.asarray(seen_by_a_camera(kept=0.0)))
    np.testing.assert_allclose(velocity_of(swings[0]), VELOCITY, atol=0.3)
    np.testing.assert_allclose(swings[0, -2:, :2], [-VELOCITY, VELOCITY], atol=0.3)
    np.testing.assert_allclose(swings[1, -2:], 0, atol=1e-2)  # Frames as the camera saw them.
    assert np.median(values[1] - values[0]) > 0.25


def towers() -> np.ndarray:
    """Returns five sharp luminances of towers that stand still, in noise of a grey level."""
    rng, picture = np.random.default_rng(5), np.full((160, 224), 0.7)
    for left in range(20, 224, 40):
        picture[:, left : left + 15] = rng.uniform(0.2, 0.5)
    return np.stack([picture + rng.normal(0, 0.004, picture.shape) for _ in range(5)])


def test_only_the_zeros_of_a_blur_are_evidence_of_a_stabiliser() -> None:
    """Texture with a direction is not, though a spectrum by radius explains it best by blur."""

    @jax.jit
    def of(frames: jax.Array, velocity: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen, swing = view(frames, jnp.ones(5)), swing_of(velocity)
        starts = jnp.stack([swing, 0 * swing])
        shutters = jnp.asarray([[STABILISED_DUTY, 0.0]] * 2)
        values = fitted(seen, starts, shutters, jnp.array([1.0, 0.0]), (0, 2))[1]
        return stabiliser.evidence_of(seen, swing, 0 * swing), jnp.median(values[1] - values[0])

    found, by_radius = of(jnp.asarray(seen_by_a_camera(kept=0.0)), jnp.asarray(VELOCITY))
    assert found > 2 * stabiliser.EVIDENT
    assert by_radius > 0.25
    found, by_radius = of(jnp.asarray(towers(), jnp.float32), jnp.array([6.0, 0.0]))
    assert found < stabiliser.EVIDENT / 2
    assert by_radius > 0.25


def test_the_search_goes_on_while_frames_prefer_a_stabiliser_and_zeros_leave_it_open() -> None:
    known = Stabiliser.unknown(8)._replace(frames=jnp.float32(2), preferred=jnp.float32(1))
    assert bool(known.undecided)
    assert not bool(known.stabilised)
    assert not bool(known._replace(preferred=jnp.float32(0.1)).undecided)
    assert not bool(known._replace(evidence=jnp.float32(-2 * stabiliser.EVIDENT)).undecided)


@pytest.mark.stress
@pytest.mark.parametrize(
    ("kept", "blurred", "stabilised"),
    [(0.0, True, True), (0.5, True, True), (1.0, True, False), (1.0, False, False)],
)
def test_stabilised_video_is_told_from_other_video(
    kept: float, blurred: bool, stabilised: bool
) -> None:
    frames = jnp.asarray(seen_by_a_camera(kept, blurred))
    one = jax.jit(follow)(frames, jnp.ones(5), Stabiliser.unknown(1))
    assert bool(one.stabilised) == stabilised
    if stabilised:
        velocity = np.asarray(velocity_of(one.swing)) + kept * VELOCITY
        reversed_too = min(np.abs(velocity - VELOCITY).max(), np.abs(velocity + VELOCITY).max())
        assert reversed_too < 0.5, "a straight path reversed explains one frame as well"


@pytest.mark.stress
def test_once_zeros_speak_against_a_stabiliser_frames_are_looked_at_for_blends_alone() -> None:
    known = Stabiliser.unknown(8)._replace(frames=jnp.float32(1.5), evidence=jnp.float32(-1))
    after = jax.jit(follow)(jnp.asarray(seen_by_a_camera(1.0)), jnp.ones(5), known)
    assert float(after.frames) == 2.5
    assert float(after.blends) == 0
    for name in ("evidence", "preferred", "swings", "lead", "looked"):
        np.testing.assert_array_equal(getattr(after, name), getattr(known, name))
