"""Blur paths: each equation by hand, the shutter, recovery, and the contract of a restorer."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from jaxdeblur.data.fixed_scenes import fixed_kinds, render_fixed_scene
from jaxdeblur.data.textures import cut_textures, find_photographs
from jaxdeblur.images import GAMMA, LUMA, halved, smoothstep
from jaxdeblur.models.parts import Part, start_parts
from jaxdeblur.models.path_maps import at_pixels, gated, path_maps, restored_of
from jaxdeblur.models.registry import build
from jaxdeblur.models.restorer import VideoRestorer
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.paths import self_ensemble
from jaxdeblur.paths.config import PathsConfig
from jaxdeblur.paths.estimate import Estimate, filtered, response_correction
from jaxdeblur.paths.fit import KEEP, Stage, _keeping, fit_tiles
from jaxdeblur.paths.light import ResponseCorrection, corrections_of
from jaxdeblur.paths.likelihood import (
    START,
    Band,
    Fit,
    Observed,
    observed,
)
from jaxdeblur.paths.motion import connected, displacement, moves_of, phase_spectra, still_of
from jaxdeblur.paths.path import (
    FREE,
    KNOTS,
    blur_length,
    cos_sin,
    exposures,
    otf,
    spline,
)
from jaxdeblur.paths.records import FusionInput, maps_of
from jaxdeblur.paths.restorer import PathRestorer
from jaxdeblur.paths.shutter import DUTIES, Shutter, richest, watch
from jaxdeblur.paths.stabiliser import Stabiliser
from jaxdeblur.paths.tiles import Tiling, cut, overlap_add, taper
from jaxdeblur.paths.wiener import Tiles
from jaxdeblur.paths.window_fit import PastPaths, fit_window
from jaxdeblur.restoration import stream as stream_module
from jaxdeblur.restoration.stream import Stream, restore_frames, restore_pixels
from jaxdeblur.testing import float32_error
from jaxdeblur.video.pixels import PixelLayout


def test_tiles_add_up_to_the_image() -> None:
    image = np.random.default_rng(0).random((2, 75, 130), np.float32)
    tiling = Tiling(75, 130, 32, 64, 96)
    patches = cut(jnp.asarray(image), tiling)
    chex.assert_shape(patches, (len(tiling.centres), 2, 96, 96))
    whole = overlap_add(patches[:, :, 16:80, 16:80] * taper(64, 32), tiling)
    np.testing.assert_allclose(whole, image, rtol=0, atol=float32_error(8))


def test_patches_at_the_borders_are_cut_inside() -> None:
    """However far that is: at the last row it adds up to more than REACH."""
    image = np.random.default_rng(1).random((1, 98, 130), np.float32)
    tiling = Tiling(98, 130, 32, 64, 128)
    offsets = np.tile(np.array([40, -50]), (len(tiling.centres), 1))
    patches = cut(
        jnp.asarray(image), tiling, jnp.asarray(offsets), inward=jnp.asarray(tiling.inward)
    )
    around = np.pad(image, ((0, 0), (200, 200), (200, 200)), "symmetric")
    for patch, corner in zip(patches, tiling.centres + tiling.inward + offsets + 136, strict=True):
        y, x = corner
        np.testing.assert_array_equal(patch, around[:, y : y + 128, x : x + 128])


def test_a_patch_is_cut_where_its_offset_says() -> None:
    image = np.random.default_rng(1).random((1, 96, 96), np.float32)
    tiling = Tiling(96, 96, 32, 32, 16)
    offsets = np.tile(np.array([3, -5]), (len(tiling.centres), 1))
    tile = tiling.shape[1] + 1  # the second tile of the second row, centred at (32, 32)
    np.testing.assert_array_equal(
        cut(jnp.asarray(image), tiling, jnp.asarray(offsets))[tile, 0], image[0, 27:43, 19:35]
    )


def test_patches_move_inward_but_for_an_eighth() -> None:
    tiling = Tiling(200, 300, 32, 64, 96)
    corners = tiling.centres + tiling.inward - 48
    assert corners.min() == -12
    assert (corners + 96).max(0).tolist() == [212, 312]
    small = Tiling(64, 70, 32, 64, 128)  # Smaller than a patch: all are centred.
    assert np.unique(small.centres + small.inward, axis=0).tolist() == [[32, 35]]


def test_splines_are_natural_and_cubic() -> None:
    unit = np.eye(len(KNOTS))[:, FREE]
    times = np.linspace(KNOTS[0], KNOTS[-1], 41)
    wanted = CubicSpline(KNOTS, unit, bc_type="natural")(times)
    np.testing.assert_allclose(spline(jnp.asarray(times, jnp.float32)), wanted, atol=1e-5)


def test_splines_pass_through_their_knots_and_are_still_at_zero() -> None:
    np.testing.assert_allclose(spline(jnp.asarray(KNOTS[FREE])), np.eye(6), atol=1e-5)
    np.testing.assert_allclose(spline(jnp.float32(0)), np.zeros(6), rtol=0, atol=float32_error(6))


@pytest.mark.parametrize("scale", [1, 2])
def test_nearest_tile_of_another_grid(scale: int) -> None:
    tiling, other = Tiling(360, 500, 80, 128, 192), Tiling(360 // scale, 500 // scale, 64, 128, 192)
    apart = np.linalg.norm(tiling.centres[:, None] - scale * other.centres, axis=-1)
    found = apart[np.arange(len(apart)), tiling.nearest(other, scale)]
    np.testing.assert_allclose(found, apart.min(1), rtol=1e-12)  # float64


def test_extent_of_uniform_motion() -> None:
    knots = jnp.asarray(KNOTS[FREE, None] * np.array([3.0, 4.0]), jnp.float32)
    np.testing.assert_allclose(blur_length(knots, 0.5), 2.5, rtol=1e-4)


def test_cosine_and_sine_of_turns_are_exact_to_rounding() -> None:
    turns = np.random.default_rng(1).uniform(-60, 60, 10_000).astype(np.float32)
    rate = 2 * np.pi * turns.astype(np.float64)
    found, slopes = jax.jvp(cos_sin, (jnp.asarray(turns),), (jnp.ones(turns.shape),))
    np.testing.assert_allclose(found, (np.cos(rate), np.sin(rate)), rtol=0, atol=float32_error(16))
    expected = -2 * np.pi * np.sin(rate), 2 * np.pi * np.cos(rate)
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=float32_error(16, 2 * np.pi))


def test_transfer_function_is_the_mean_of_shifts() -> None:
    rng = np.random.default_rng(2)
    path, weights = rng.normal(0, 5, (8, 2)), rng.random((3, 8))
    fy, fx = np.fft.fftfreq(12), np.fft.rfftfreq(10)
    found = otf(*(jnp.asarray(a, jnp.float32) for a in (path, weights)), fy, fx)
    for row, set_ in enumerate(weights):
        expected = np.zeros((12, 6), complex)
        for (y, x), weight in zip(path, set_, strict=True):
            expected += weight * np.exp(-2j * np.pi * (fy[:, None] * y + fx * x))
        np.testing.assert_allclose(found[row, 0] + 1j * found[row, 1], expected, atol=1e-5)


def textured(height: int, width: int) -> np.ndarray:
    """Draws soft noise H W 3 in [0, 1], whose amplitude falls with the square of the frequency."""
    white = np.random.default_rng(4).normal(size=(height, width, 3))
    fy, fx = np.fft.fftfreq(height)[:, None, None], np.fft.rfftfreq(width)[:, None]
    shaped = np.fft.rfft2(white, axes=(0, 1)) / np.maximum(np.hypot(fy, fx), 0.02) ** 2
    image = np.fft.irfft2(shaped, s=(height, width), axes=(0, 1))
    return np.clip(0.5 + 0.15 * image / image.std(), 0, 1)


def moving(
    speed: tuple[float, float], duty: float, frames: int = 5, gamma: float = 1.0
) -> tuple[np.ndarray, ...]:
    """Returns blurred and sharp frames of a uniformly moving picture, T H W 3 in [0, 1].

    The exposure averages stored values to the power of ``gamma``.
    """
    height, width, border = 256, 320, 64
    picture = textured(height + 2 * border, width + 2 * border) ** gamma
    spectrum = np.fft.rfft2(picture, axes=(0, 1))
    fy = np.fft.fftfreq(picture.shape[0])[:, None, None]
    fx = np.fft.rfftfreq(picture.shape[1])[:, None]

    def at(times: np.ndarray) -> np.ndarray:
        turn = sum(np.exp(-2j * np.pi * t * (fy * speed[0] + fx * speed[1])) for t in times)
        moved = np.fft.irfft2(spectrum * turn / len(times), s=picture.shape[:2], axes=(0, 1))
        return np.clip(moved[border:-border, border:-border], 0, None) ** (1 / gamma)

    middle = np.arange(frames) - frames // 2
    exposure = np.linspace(-duty / 2, duty / 2, 33)
    blurred = np.stack([at(m + exposure) for m in middle])
    return blurred, np.stack([at(np.array([m])) for m in middle])


def test_displacement_of_a_moved_picture() -> None:
    _, sharp = moving((8.0, -20.0), 1.0)
    tiling = Tiling(256, 320, 64, 128, 192).reduced(4)
    small = [f.mean(-1).reshape(64, 4, 80, 4).mean((1, 3)).astype(np.float32) for f in sharp]
    spectra_of = jax.jit(functools.partial(phase_spectra, tiling=tiling))
    one, other = (spectra_of(jnp.asarray(frame)) for frame in small[2:4])
    found = 4 * jax.jit(functools.partial(displacement, tiling=tiling))(one, other)
    np.testing.assert_allclose(np.median(found, axis=0), [8.0, -20.0], atol=1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Compares the interior, away from content that enters at the borders."""
    return float(-10 * np.log10(np.mean((np.clip(a, 0, 1) - b)[80:-80, 80:-80] ** 2) + 1e-12))


@functools.partial(jax.jit, static_argnames="linear")
def restored_with(
    last: jax.Array,
    paths: PastPaths,
    frames: jax.Array,
    present: jax.Array,
    duty: float,
    linear: bool = False,
) -> tuple[Estimate, PastPaths]:
    """Restores the middle frame over itself and the frame before."""
    unknown = Shutter.unknown(), Stabiliser.unknown(1)
    fit = fit_window(frames, moves_of(frames), present, *unknown, paths, duty, linear=linear)
    correction = response_correction(
        frames[1:4], fit, frames[2], ResponseCorrection.unknown(*frames.shape[1:3])
    )
    return filtered(frames[1:4], fit, frames[2], last, correction), fit.passed_on


def restored_after(last: jax.Array, frames: jax.Array, present: jax.Array, duty: float) -> Estimate:
    """Restores the middle frame likewise, with nothing known but the restored frame before."""
    return restored_with(last, PastPaths.unknown(last.shape[:2]), frames, present, duty)[0]


def restored(frames: jax.Array, present: jax.Array, duty: float) -> Estimate:
    """Restores the middle frame likewise, with the blurred frame before in place of a restored."""
    return restored_after(frames[1], frames, present, duty)


@jax.jit
def asked(frames: jax.Array, shutter: Shutter) -> Shutter:
    """Adds the middle frame's evidence to the shutter."""
    seen = moves_of(frames), jnp.ones(5), still_of(frames, jnp.ones(5))
    return watch(frames, *seen, shutter, jnp.bool_(True))


@pytest.mark.parametrize("duty", [pytest.param(0.5, marks=pytest.mark.stress), 1.0])
def test_a_frame_blurred_along_a_known_path_comes_back(duty: float) -> None:
    blurred, sharp = moving((2.0, 9.0), duty)
    frames = jnp.asarray(blurred, jnp.float32)
    told = restored(frames, jnp.ones(5), duty)
    assert psnr(np.asarray(told.sharp), sharp[2]) > max(35.0, psnr(blurred[2], sharp[2]) + 3)
    assert np.asarray(told.cells)[5:-5, 5:-5, 0].mean() > 0.5


@pytest.mark.stress  # the prior's weights by hand are below
def test_the_last_frame_hands_on_what_it_knows() -> None:
    blurred, sharp = (jnp.asarray(f, jnp.float32) for f in moving((2.0, 9.0), 1.0))
    blurred += 0.02 * jax.random.normal(jax.random.key(0), blurred.shape)
    gains = [
        psnr(
            np.asarray(restored_after(last, blurred, jnp.ones(5), 1.0).sharp), np.asarray(sharp[2])
        )
        for last in (blurred[1], sharp[1])
    ]
    assert gains[1] > gains[0] + 0.4
    first = jnp.array([0.0, 0.0, 1.0, 1.0, 1.0])
    with_none, with_any = (restored_after(last, blurred, first, 1.0).sharp for last in sharp[:2])
    np.testing.assert_array_equal(with_none, with_any)


@pytest.mark.stress  # the penalty by hand is below
def test_the_last_path_helps_to_find_the_next() -> None:
    speed = np.array([2.0, 9.0])
    frames = jnp.asarray(moving(tuple(speed), 1.0)[0], jnp.float32)
    frames = frames + 0.05 * jax.random.normal(jax.random.key(0), frames.shape)
    unknown = PastPaths.unknown((256, 320))
    true = KNOTS[FREE][:, None] * speed
    known = PastPaths(jnp.broadcast_to(true, unknown.knots.shape), jnp.bool_(False))

    def error(paths: PastPaths, present: jax.Array) -> float:
        found = restored_with(frames[1], paths, frames, present, 1.0)[1]
        return float(np.sqrt(((np.asarray(found.knots) - true) ** 2).mean()))

    every = jnp.ones(5)
    assert error(known, every) < 0.7 * error(unknown, every)
    after_a_cut = every.at[:2].set(0.0)
    assert error(known, after_a_cut) == error(unknown, after_a_cut)


def test_leaving_the_last_path_is_penalised() -> None:
    rng = np.random.default_rng(0)
    knots, before = (jnp.asarray(rng.normal(size=(3, len(FREE), 2)), jnp.float32) for _ in range(2))
    before = before.at[2].set(0.0)  # unknown

    def penalty(flat: jax.Array) -> jax.Array:
        at = jnp.asarray([-1.5, -1.0, -0.5, 0.0, 0.5])
        path = jnp.einsum("tp,npc->ntc", spline(at), flat.reshape(knots.shape))
        past = jnp.einsum("tp,npc->ntc", spline(at + 1), before)
        e = jnp.linalg.norm((path - path[:, 1:2] - past)[:2, jnp.array([0, 2, 3, 4])], axis=-1)
        return KEEP * (jnp.log1p(e) + 1 / (1 + e)).sum()

    gradient, curvature = jax.jit(_keeping)(knots, before)
    wanted = jax.jit(jax.grad(penalty))(knots.reshape(3, -1))
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=float32_error(64))
    # The curvature is that of the squared norm, which lies above the penalty.
    of_penalty = jax.jit(jax.hessian(penalty))(knots.reshape(3, -1))
    for n in range(2):
        assert np.linalg.eigvalsh(curvature[n] - of_penalty[n, :, n]).min() > -1e-5
    assert not np.asarray(curvature[2]).any()


def test_the_first_frame_is_not_shifted_along_its_path() -> None:
    blurred, sharp = moving((2.0, 9.0), 1.0)
    frames = jnp.asarray(blurred, jnp.float32)
    after = jnp.array([0.0, 0.0, 1.0, 1.0, 0.0])
    told = restored(frames, after, 1.0)
    assert psnr(np.asarray(told.sharp), sharp[2]) > psnr(blurred[2], sharp[2]) + 3
    path = np.asarray(told.paths)
    wanted = np.linspace(-0.5, 0.5, 9)[:, None] * np.array([2.0, 9.0])
    np.testing.assert_allclose(np.median(path - path[:, 4:5], 0), wanted, atol=0.1)


def test_frames_of_linear_light_become_those_averaged_as_stored() -> None:
    speed = np.array([2.0, 12.0])
    linear, stored = (
        jnp.asarray(moving(tuple(speed), 1.0, 3, gamma)[0], jnp.float32) for gamma in (GAMMA, 1.0)
    )
    tiling = Tiling(*linear.shape[1:3], 64, 128, 192)
    number = len(tiling.centres)
    knots = jnp.tile(jnp.asarray(KNOTS[FREE][:, None] * speed, jnp.float32), (number, 1, 1))
    fit = Fit(knots, jnp.tile(jnp.asarray(START), (number, 1)), jnp.zeros((number, 3)))
    offsets = jnp.tile(2 * jnp.round(jnp.arange(-1, 2)[:, None] * speed / 2), (number, 1, 1))
    told = jnp.zeros_like(offsets), jnp.ones((number, 3)), jnp.float32(1), exposures(1.0)
    tiles = Tiles(fit, offsets, *told)
    found_in = jax.jit(corrections_of, static_argnums=4)
    height, width = linear.shape[1:3]

    def errors(found: ResponseCorrection) -> np.ndarray:
        """Of each frame: of its luminance, and of red and blue at half size."""
        light, colours = linear @ LUMA - found.luminance, _colours(linear) - found.colours
        reds_and_blues = halved(light)[:, None] + colours
        right = halved(jnp.moveaxis(stored, -1, 1))[:, ::2]
        apart = (light - stored @ LUMA)[:, None], reds_and_blues - right
        means = [np.abs(each)[..., 48:-48, 48:-48].mean((2, 3)) for each in map(np.asarray, apart)]
        return np.concatenate(means, 1)

    given, unknown = (linear @ LUMA, jnp.moveaxis(linear[1], -1, 0)), ResponseCorrection.unknown
    first = found_in(*given, unknown(height, width), tiles, tiling)
    unchanged = errors(unknown(height, width, 3))
    np.testing.assert_array_less(errors(first), 0.5 * unchanged)  # In neighbouring frames too.
    known = ResponseCorrection((linear - stored)[0] @ LUMA, _colours(linear - stored)[0])
    again = found_in(*given, known, tiles, tiling)
    np.testing.assert_array_equal(again.luminance[0], known.luminance)  # It is kept,
    # and helps the other frames.
    np.testing.assert_array_less(errors(again)[1:].mean(1), errors(first)[1:].mean(1))
    np.testing.assert_array_less(errors(again)[1:, 0], errors(first)[1:, 0])


def _colours(frames: jax.Array) -> jax.Array:
    """Returns red and blue minus the luminance, at half size."""
    return halved(jnp.moveaxis((frames - (frames @ LUMA)[..., None])[..., ::2], -1, -3))


@pytest.mark.stress  # compiles two large programs
@pytest.mark.parametrize(("gamma", "least", "lead"), [(1.0, 2.0, 0.5), (GAMMA, 0.7, 0.1)])
def test_large_blur_is_restored_at_half_size(gamma: float, least: float, lead: float) -> None:
    """Averaged as stored or in linear light; whoever takes one for the other gains less."""
    frames = moving((3.0, 16.0), 1.0, gamma=gamma)
    blurred, sharp = (np.array(jax.image.resize(f, (5, 512, 640, 3), "cubic")) for f in frames)
    # Without a camera's noise, paths fit so well that the filter trusts them too much: 1.9 dB.
    noisy = blurred + 2 / 255 * np.random.default_rng(0).normal(size=blurred.shape)
    blurred = np.round(255 * np.clip(noisy, 0, 1)) / 255
    given, unknown = jnp.asarray(blurred, jnp.float32), PastPaths.unknown((512, 640))
    gains = []
    for linear in (gamma != 1.0, gamma == 1.0):  # right, then wrong
        told, _ = restored_with(given[1], unknown, given, jnp.ones(5), 1.0, linear=linear)
        gains.append(psnr(np.asarray(told.sharp), sharp[2]) - psnr(blurred[2], sharp[2]))
    assert gains[0] > least
    assert gains[0] > gains[1] + lead
    length = np.linalg.norm(np.diff(np.asarray(told.paths), axis=1), axis=-1).sum(-1)
    np.testing.assert_allclose(np.median(length), np.hypot(6, 32), atol=1)
    chex.assert_shape(told.cells, (32, 40, 3))
    np.testing.assert_array_equal(told.cells[::2, ::2], told.cells[1::2, 1::2])


@pytest.mark.stress  # The query compiles its own program.
@pytest.mark.parametrize(("duty", "gamma"), [(0.5, 1.0), (1.0, 1.0), (1.0, GAMMA)])
@pytest.mark.parametrize("speed", [(2.0, 9.0), (1.0, 3.5)])  # The second shows in fine detail.
def test_the_shutter_is_found(speed: tuple[float, float], duty: float, gamma: float) -> None:
    blurred, _ = moving(speed, duty, gamma=gamma)
    # Grey, since the luminance of differing colours is no average of light.
    frames = jnp.asarray(blurred[..., :1].repeat(3, -1), jnp.float32)
    shutter = Shutter.unknown()
    for _ in range(2):  # One frame is too little evidence for linear light.
        shutter = asked(frames, shutter)
    assert abs(float(shutter.duty) - duty) <= 0.1
    assert bool(shutter.linear) == (gamma > 1)


@pytest.mark.stress  # Renders frames of 1280x720.
@pytest.mark.parametrize("duty", [0.375, 0.625, 0.875, 1.0])
def test_the_duty_cycle_of_rendered_scenes_is_found(duty: float) -> None:
    kind = fixed_kinds()["10px"]
    shown = cut_textures(find_photographs("test"), 2, kind.texture_size, seed=0)
    scene = jax.tree.map(lambda values: jnp.asarray(values[0]), kind.scenes)
    scene = scene._replace(
        exposure=jnp.float32(duty), gamma=jnp.float32(1), textures=scene.textures % 2
    )
    frames, _ = render_fixed_scene(
        jax.random.key(0), scene, jnp.asarray(shown), size=kind.size, frames=7, moments=kind.moments
    )
    shutter = Shutter.unknown()
    for first in range(3):
        shutter = asked(frames[first : first + 5], shutter)
    assert abs(float(shutter.duty) - duty) <= 0.1


def test_sharp_frames_stay_as_they_are() -> None:
    _, sharp = moving((2.0, 9.0), 1.0)
    frames = jnp.asarray(np.round(np.clip(sharp, 0, 1) * 255) / 255, jnp.float32)
    found = restored(frames, jnp.ones(5), 1.0)
    share = at_pixels(found.cells[..., :1], *frames.shape[1:3])
    out = frames[2] + share * (found.sharp - frames[2])
    assert psnr(np.asarray(out), np.asarray(frames[2])) > 50


def test_a_frame_out_of_turn_is_watched_if_it_may_tell_more_than_all_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(knots: jax.Array, *given: Any) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros((len(knots), len(DUTIES))), jnp.zeros((len(knots), len(DUTIES)))

    monkeypatch.setattr("jaxdeblur.paths.shutter.likelihoods_by_duty", nothing)
    frames = jnp.asarray(moving((2.0, 9.0), 1.0)[0], jnp.float32)
    seen, everything = (moves_of(frames), jnp.ones(5)), jnp.zeros(frames.shape[1:3])

    @jax.jit
    def watched(known: float, still: jax.Array, turn: bool) -> jax.Array:
        shutter = Shutter.unknown()._replace(tiles=jnp.float32(known))
        return watch(frames, *seen, still, shutter, jnp.asarray(turn)).tiles != known

    assert watched(0.0, everything, False)
    assert watched(11.5, everything, False)
    assert not watched(12.5, everything, False)
    assert watched(12.5, everything, True)
    a_corner = jnp.ones_like(everything).at[:64, :64].set(0.0)
    assert watched(0.1, a_corner, False)
    assert not watched(8.0, a_corner, False)


def test_the_richest_tiles_that_move_are_asked() -> None:
    texture = jnp.arange(1.0, 21.0)
    spectra = jnp.ones((20, 3, 2, 32, 17)) * texture[:, None, None, None, None]
    present = jnp.ones((20, 3)).at[18, 0].set(0.0)
    seen = Observed(spectra, jnp.zeros((20, 3, 2)), present)
    motion = jnp.full(20, 5.0).at[19].set(1.0)  # The richest tile does not move.
    moving = jnp.ones(20).at[17].set(0.75)  # A quarter of its texture is burnt-in text.
    chosen, counts = richest(seen, motion, moving)
    assert chosen.tolist() == [18, 16, 15, 17, *range(14, 6, -1)]
    assert counts.tolist() == [0.25, 1.0, 1.0, 0.75, *[1.0] * 8]


def test_shutter_goes_by_all_evidence_and_follows_a_change() -> None:
    at = {duty: 0.4 * (jnp.asarray(DUTIES) - duty) ** 2 for duty in (0.5, 0.8)}
    tiles = jnp.ones(12)

    def seen(stored: jax.Array, linear: jax.Array) -> jax.Array:
        return jnp.stack([jnp.tile(each, (12, 1)) for each in (stored, linear)])

    shutter = Shutter.unknown()
    assert 0.8 < float(shutter.duty) <= 1.0
    for _ in range(4):
        shutter = shutter.add(seen(at[0.5], at[0.5]), tiles)
    np.testing.assert_allclose(shutter.duty, 0.5, atol=0.03)
    for _ in range(40):
        shutter = shutter.add(seen(at[0.8], 2 * at[0.8]), tiles)
    np.testing.assert_allclose(shutter.duty, 0.8, atol=0.03)
    assert bool(shutter.linear)


def test_tiles_must_agree_that_light_is_linear() -> None:
    """Twelve tiles that agree suffice; one with as much evidence as all of them does not."""
    curve = -jnp.asarray(DUTIES)
    for more, linear in ((jnp.full(12, 0.1), True), (jnp.zeros(12).at[3].set(1.2), False)):
        seen = jnp.stack([jnp.tile(curve, (12, 1)), (1 + more[:, None]) * curve])
        assert bool(Shutter.unknown().add(seen, jnp.ones(12)).linear) == linear


def test_a_cameras_light_is_remembered() -> None:
    """Twenty frames in linear light outweigh the six after them, which look more like stored."""
    shutter, curve = Shutter.unknown(), -jnp.asarray(DUTIES)
    for more in (0.1,) * 20 + (-0.15,) * 6:
        seen = jnp.stack([jnp.tile(curve, (12, 1)), jnp.tile((1 + more) * curve, (12, 1))])
        shutter = shutter.add(seen, jnp.ones(12))
    assert bool(shutter.linear)


def test_patches_at_both_sizes_have_the_same_frequencies() -> None:
    image = jnp.asarray(textured(256, 320)[..., 0], jnp.float32)
    tiling, centre = Tiling(256, 320, 64, 128, 128), jnp.array([14])
    images, offsets, present = jnp.stack([image] * 3), jnp.zeros((30, 3, 2)), jnp.ones(5)

    @functools.partial(jax.jit, static_argnums=0)
    def seen(scale: int) -> tuple[Observed, Band]:
        whole = observed(images, tiling, offsets, present, only=centre, scale=scale)
        return whole.up_to(0.1, scale)

    (low, at), (high, same) = seen(2), seen(1)
    np.testing.assert_allclose(at.fy, same.fy, rtol=float32_error(4))
    np.testing.assert_allclose(at.weight, same.weight, rtol=float32_error(4))
    inside = at.weight > 0
    # A mean of 2 x 2 pixels lies half a pixel further, which changes only the phase.
    small, large = (jnp.hypot(*each.spectra[0, 0])[inside] for each in (low, high))
    assert np.corrcoef(small, large)[0, 1] > 0.99
    np.testing.assert_allclose(np.median(large / small), 4, rtol=0.1)  # Pixels per mean.


def test_maps_without_a_change_are_the_gates_frame() -> None:
    key = jax.random.split(jax.random.key(0), 5)
    blurred, base, sharp = jax.random.uniform(key[0], (3, 16, 32, 3))
    cells = jax.random.uniform(key[1], (1, 2, 3))
    evidence = at_pixels(cells, 16, 32)
    maps = path_maps(blurred, base, sharp, jnp.zeros((16, 32, 2)), evidence)
    rounding = float32_error(16)
    np.testing.assert_array_less(-rounding, maps)
    np.testing.assert_array_less(maps, 1 + rounding)
    expected = base + evidence[..., :1] * (sharp - base)
    np.testing.assert_allclose(gated(maps), expected, rtol=0, atol=rounding)
    unchanged = restored_of(maps, jnp.zeros((16, 32, 4)))
    np.testing.assert_allclose(unchanged, expected, rtol=0, atol=rounding)
    change = jnp.broadcast_to(jnp.array([0.1, 0.0, -0.1, 2.0]), (16, 32, 4))
    moved = restored_of(maps, change)
    np.testing.assert_allclose(moved, sharp + change[..., :3], atol=0.01)
    # Where base and gate leave the blurred frame unchanged, so does the network.
    still = path_maps(blurred, blurred, sharp, jnp.zeros((16, 32, 2)), 0 * evidence)
    np.testing.assert_allclose(restored_of(still, change), blurred, rtol=0, atol=rounding)
    # A path of 40 pixels is left to the physics: the network changes nothing.
    far = path_maps(blurred, base, sharp, jnp.zeros((16, 32, 2)), evidence.at[..., 1].set(40.0))
    np.testing.assert_allclose(restored_of(far, change), expected, rtol=0, atol=rounding)


def test_a_smooth_step_is_flat_outside_of_its_ends() -> None:
    found = smoothstep(jnp.array([0.0, 1.0, 3.0]), 0.5, 1.5)
    np.testing.assert_allclose(found, [0, 0.5, 1], rtol=0, atol=float32_error(4))


@pytest.fixture(name="one_stage")
def each_fit_has_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves one stage of each fit, as each compiles its own program."""
    few, fine = (Stage(0.24, 3),), (Stage(0.4, 1),)
    monkeypatch.setattr("jaxdeblur.paths.fit.STAGES", few)
    monkeypatch.setattr(
        "jaxdeblur.paths.window_fit.fit_tiles", functools.partial(fit_tiles, stages=few)
    )
    monkeypatch.setattr("jaxdeblur.paths.window_fit.FINE_STAGES", fine)


class Halved(VideoRestorer):
    """A base that halves its frames, two frames late."""

    lookahead, multiple = 2, 4

    def _restore_clip(self, clip: jax.Array) -> jax.Array:
        return 0.5 * clip

    def _initial_state(self, batch: int, height: int, width: int) -> jax.Array:
        return jnp.zeros((batch, 2, height, width, 3))

    def _step(self, state: jax.Array, frame: jax.Array, repeated: jax.Array) -> tuple:
        return jnp.concatenate([state[:, 1:], frame[:, None]], 1), 0.5 * state[:, 0]


OVER_PATHS = StrcnnConfig(
    m=0, width=4, blocks=2, head_width=0, residual=True, beta0=0.1, of_maps=True
)


def test_the_second_network_runs_only_where_it_is_heard() -> None:
    model = PathRestorer(PathsConfig(), None, build(OVER_PATHS))
    maps = jax.random.uniform(jax.random.key(0), (1, 32, 48, 14)).at[..., 12].set(0.5)
    start = start_parts(model.parts(), 1, 32, 48)["fusion"]
    still, no, yes = jnp.zeros(maps.shape[:3]), jnp.bool_(False), jnp.bool_(True)
    frame, step = maps[..., :3], jax.jit(functools.partial(model._fusion, VideoRestorer.step))

    def ran(second: float, maps: jax.Array) -> bool:
        """Returns whether the network keeps anything of a frame, and so changes it."""
        given = maps, maps[..., ::16, ::16, 11], None, jnp.full(1, second)
        state, restored = step(start, FusionInput(*given, frame, frame, still, yes, no))
        kept = jax.tree.map(lambda after, before: bool((after == before).all()), state, start)
        assert bool(jnp.allclose(restored, gated(maps))) == all(jax.tree.leaves(kept))
        return not all(jax.tree.leaves(kept))

    far = maps.at[..., 12].set(0.9)  # paths of 36 pixels
    assert ran(1.0, maps)
    assert ran(0.1, maps)
    assert not ran(0.0, maps)
    assert not ran(1.0, far)
    assert ran(1.0, far.at[:, :8, :8, 12].set(0.5))


@pytest.mark.parametrize(
    ("base", "over", "length"),
    [
        (Halved(), OVER_PATHS, 3),
        *(
            pytest.param(base, over, length, marks=pytest.mark.stress)  # each compiles a program
            for base, over, length in (
                (None, None, 1),
                (None, None, 2),
                (None, None, 5),
                (None, None, 9),  # longer than its opening
                (Halved(), None, 1),
                (Halved(), None, 5),
                (Halved(), OVER_PATHS, 5),
                (None, OVER_PATHS, 2),
            )
        ),
    ],
)
def test_a_stream_equals_its_clip(
    base: VideoRestorer | None,
    over: StrcnnConfig | None,
    length: int,
    one_stage: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blurred, _ = moving((1.0, 6.0), 1.0, frames=max(5, length))
    video = np.round(np.clip(blurred[:length, :67, :93], 0, 1) * 255).astype(np.uint8)
    has_text = base is not None and length > 2  # In so small a frame it hides the shutter.
    if has_text:  # It keeps its pixels, whatever base and paths do around it.
        video[:, 24:44, 20:80] = 0
        video[:, 28:40, 24:76] = np.tile([0, 0, 0, 255, 255, 255, 0, 0], 7)[:52, None]
    # With everything known it compiles in half the time.
    light: Literal["stored", "linear"] = "stored" if over else "linear"
    given = PathsConfig(duty=1.0, light=light, stabilised="no")
    config = given if base else PathsConfig()
    model = PathRestorer(config, base, build(over) if over else None)
    streams: list[Stream] = []

    def opened(height: int, width: int, layout: PixelLayout) -> Stream:
        streams.append(Stream(model, height, width, layout))
        return streams[0]

    queued: list[str] = []
    queue = stream_module.queue

    def noted(part: Part, *given: Any) -> Any:
        queued.append(part.name)
        return queue(part, *given)

    monkeypatch.setattr(stream_module, "queue", noted)
    stream = np.stack(list(restore_frames(opened, video)))
    if base:  # Before a frame is due, what is only about that one does not run.
        assert queued.count("filter") == length == queued.count("motion") - model.lookahead
    if base and length > 1:
        states = streams[0]._states
        assert np.asarray(states["fit"].knots).any()
        assert np.asarray(states["filter"]).any()
        assert np.asarray(states["light"].luminance).any() == (light == "linear")
    clip = restore_pixels(model, video)
    if has_text:
        text, around = np.s_[:, 28:40, 24:76], np.s_[:, :18]
        assert np.abs(stream[text].astype(int) - video[text]).max() <= 1
        assert np.abs(stream[around].astype(int) - video[around]).mean() > 5
    assert stream.shape == video.shape
    assert np.abs(stream.astype(int) - clip).max() <= 1
    if length == 1:  # without neighbours no path is known
        expected = video if base is None else np.round(0.5 * video)
        assert np.abs(stream - expected).max() <= 1
    if length >= 5 and base is None:
        assert np.abs(stream.astype(int) - video).max() > 1


@pytest.mark.parametrize("small", [True, False])
def test_networks_see_small_frames_mirrored_too(
    small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr("jaxdeblur.paths.self_ensemble._MOST", 383)  # of 384
    network = build(dataclasses.replace(OVER_PATHS, m=2, of_maps=False))
    step = jax.jit(network.step)
    video = np.random.default_rng(8).random((4, 2, 16, 24, 3), np.float32)

    def mirrored(axes: tuple[int, ...]) -> np.ndarray:
        state, restored = network.initial_state(2, 16, 24), []
        for frame in np.flip(video, axes):
            state, made = step(state, jnp.asarray(frame))
            restored.append(np.asarray(made))
        return np.flip(np.stack(restored), axes)

    mirrored_step = jax.jit(functools.partial(self_ensemble.step, type(network).step, network))
    state, restored = self_ensemble.initial_state(2, 16, 24, network), []
    of_paths = PathRestorer(PathsConfig(), network).initial_state(2, 16, 24)
    chex.assert_trees_all_equal_shapes(of_paths["base"], state)
    for frame in video:
        state, made = mirrored_step(state, jnp.asarray(frame), False)
        restored.append(made)
    axes = [(), (2,), (3,), (2, 3)] if small else [()]
    each = np.stack([mirrored(those) for those in axes])
    # Four networks, each with a dozen layers of 3 x 3 x 4 terms.
    rounding = float32_error(4 * 12 * 36)
    np.testing.assert_allclose(np.stack(restored), each.mean(0), rtol=0, atol=rounding)
    assert not small or np.ptp(each, axis=0).max() > 1e-3


@pytest.mark.stress  # compiles its own program
def test_large_frames_do_without_the_finest_size_of_the_base(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jaxdeblur.paths.motion._SMALL", 64)  # makes these frames large
    monkeypatch.setattr("jaxdeblur.paths.self_ensemble._MOST", 0)
    blurred, _ = moving((2.0, 12.0), 1.0, frames=5)
    video = np.round(np.clip(blurred[:, :, :256], 0, 1) * 255).astype(np.uint8)
    base = build(dataclasses.replace(OVER_PATHS, m=2, of_maps=False, scales=(2, 1)))
    model = PathRestorer(PathsConfig(duty=1.0, light="stored", stabilised="no"), base)
    stream = Stream(model, 256, 256)
    restored = [stream.push(frame) for frame in video]
    assert len(stream._states["base"].levels) == 1
    restored = np.stack([frame[0] for frame in [*restored[2:], *stream.flush()]])
    assert np.abs(restored.astype(int) - restore_pixels(model, video)).max() <= 1


@pytest.mark.stress  # half a minute
def test_a_sharp_video_that_moves_is_left_to_the_base() -> None:
    _, sharp = moving((2.0, 9.0), 1.0, frames=6)
    video = np.round(np.clip(sharp, 0, 1) * 255).astype(np.uint8)
    out = restore_pixels(PathRestorer(PathsConfig(), Halved()), video)
    differs = np.abs(out.astype(int) - restore_pixels(Halved(), video)).max(-1) > 1
    # But for pixels that happen to be alike in all frames, as if they stood still.
    assert differs.mean() < 1e-3


def test_an_explanation_has_a_gate_and_paths_for_every_frame() -> None:
    clip = jax.ShapeDtypeStruct((2, 3, 192, 256, 3), jnp.float32)
    given = PathsConfig(duty=0.8, light="stored", stabilised="no")
    found = jax.eval_shape(PathRestorer(given, Halved()).explain_clip, clip)
    chex.assert_shape(found.gate, (2, 3, 12, 16))
    chex.assert_shape(found.paths, (2, 3, len(Tiling(192, 256, 32, 64, 128).centres), 9, 2))


@pytest.mark.stress  # compiles its own program
def test_an_explanation_draws_the_motion_of_the_exposure() -> None:
    blurred, _ = moving((6.0, 20.0), 0.8, frames=3)
    clip = jnp.asarray(np.clip(blurred[None, :, :190, :254], 0, 1), jnp.float32)
    config = PathsConfig(duty=0.8, light="stored", stabilised="no")
    model = PathRestorer(config, Halved())  # pads to 192 x 256
    found = jax.jit(model.explain_clip)(clip)
    tiling = Tiling(192, 256, 32, 64, 128)  # the tiling of small frames
    chex.assert_shape(found.gate, (1, 3, 12, 16))
    chex.assert_shape(found.paths, (1, 3, len(tiling.centres), 9, 2))
    assert 0 <= found.gate.min() < found.gate.max() <= 1
    np.testing.assert_allclose(found.paths[0, :, :, 4] - tiling.centres, 0, atol=1e-3)
    inside = found.paths[0, 1, 2 * tiling.shape[1] + 4]  # the tile centred at (64, 128)
    np.testing.assert_allclose(inside[-1] - inside[0], [4.8, 16.0], atol=0.5)


def test_frames_beyond_a_jump_are_absent() -> None:
    compiled = jax.jit(connected)

    def near(*steps: float, present: tuple[int, ...] = (1, 1, 1, 1, 1)) -> list[float]:
        """Returns what is connected if the scene moves by ``steps`` from frame to frame."""
        places = np.cumsum([0.0, *steps])
        moves = np.zeros((9, 4, 2), np.float32)
        moves[:, :, 1] = np.delete(places - places[2], 2)
        moves[:2] = 50.0  # two tiles of something else
        return compiled(jnp.asarray(moves), jnp.array(present, jnp.float32)).tolist()

    assert near(14, 16, 60, 6) == [1, 1, 1, 0, 0]
    assert near(17, 60, 6, 14) == [0, 0, 1, 1, 1]
    assert near(60, 6, 14, 27) == [0, 1, 1, 1, 1]
    assert near(0, 0, 9, 0) == [1, 1, 1, 0, 0]
    assert near(8, 22, 8, 13) == near(0, 2, 9, 20) == near(20, -20, 20, -20) == [1] * 5
    # At an end, beside a single step, nothing says that it is a jump.
    assert near(0, 0, 60, 6, present=(0, 0, 1, 1, 0)) == [0, 0, 1, 1, 0]


@pytest.mark.stress  # compiles its own program
def test_a_jump_leaves_the_frame_before_it_one_neighbour(one_stage: None) -> None:
    blurred = moving((0.0, 6.0), 1.0)[0][:, :128, :128]
    cut = np.roll(blurred, 40, axis=2)[3:]
    frames = jnp.asarray(np.clip(np.concatenate([blurred[:3], cut]), 0, 1), jnp.float32)
    present, correction = jnp.ones(5), ResponseCorrection.unknown(128, 128)
    known = Shutter.unknown(), Stabiliser.unknown(1), PastPaths.unknown((128, 128))

    @jax.jit
    def told(frames: jax.Array, present: jax.Array) -> jax.Array:
        moves = moves_of(frames)
        scene = connected(moves, present)
        fit = fit_window(frames, moves, scene, *known, duty=1.0, linear=False)
        shown = frames[2]
        after = response_correction(frames[1:4], fit, shown, correction)
        return maps_of(frames[1:4], fit, shown, shown, after)[0]

    alike = told(frames.at[3:].set(0.0), present.at[3:].set(0.0))
    np.testing.assert_allclose(told(frames, present), alike, atol=1e-5)


def test_frames_that_hold_no_tile_go_through() -> None:
    video = np.full((3, 40, 200, 3), 77, np.uint8)
    np.testing.assert_array_equal(restore_pixels(PathRestorer(PathsConfig()), video), video)
