"""The scenes on which results are reported: eq. 1 holds, and no pixel changes."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.data import fixed_scenes
from jaxdeblur.data.fixed_scenes import (
    fixed_kinds,
    render_fixed_scene,
    render_moment,
    rendered_videos,
)
from jaxdeblur.data.raster import compress, look_up, pack_texels
from jaxdeblur.data.textures import Split
from jaxdeblur.errors import UserError
from jaxdeblur.files import cache_folder

TINY = fixed_kinds()["tiny"]
KEY = jax.random.key(7)
PARAMETERS = "9cbbd54e62b2e8067cf0b933209162b58fb60c21970fbfbd9eb5db72e669cbc9"
"""The SHA-256 of fixed_scenes.json."""
PIXELS = {
    "tiny": (-6.591, -4.573),
    "narrow": (177.169, 183.124),
    "wide": (72.435, 106.947),
    "5px": (-38.863, -40.474),
}
"""Weighted sums of the blurred and of the sharp frames of each kind's first test scene."""


@pytest.fixture(scope="module")
def photographs():
    """Blocky noise from pure black to pure white: detail everywhere, and highlights."""
    values = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    values[:, ::5] = 255
    return jnp.asarray(values.repeat(3, axis=1).repeat(3, axis=2))


@functools.cache
def compiled(function, *options):
    """Compiles ``function`` once, with fixed last arguments."""
    return jax.jit(lambda *arguments: function(*arguments, *options))


def plain(scene, gamma=1.0, highlights=0.0):
    """Returns the scene without noise and compression: frames are rounded means of moments."""
    zero = jnp.zeros(())
    return scene._replace(
        gamma=jnp.float32(gamma), highlights=jnp.float32(highlights), noise=zero, compression=zero
    )


def nth(kind, index):
    """Returns one scene of a kind."""
    return jax.tree.map(lambda values: jnp.asarray(values[index]), kind.scenes)


@pytest.fixture(scope="module")
def scene():
    """A scene with objects that move."""
    scenes = (nth(TINY, index) for index in range(6))
    return next(s for s in scenes if s.objects.number == 2 and not s.objects.follows.all())


def render(key, scene, photographs):
    return render_fixed_scene(
        key, scene, photographs, size=TINY.size, frames=TINY.frames, moments=TINY.moments
    )


def moments_of(scene, photographs):
    """Renders every averaged moment of a clip, one at a time, as (T, moments, H, W, 3)."""
    packed = pack_texels(photographs[scene.textures])
    offsets = ((np.arange(TINY.moments) + 0.5) / TINY.moments - 0.5) * scene.exposure
    times = np.arange(TINY.frames) - (TINY.frames - 1) / 2
    moment = compiled(render_moment, TINY.size)
    return np.moveaxis([[moment(scene, packed, t + at) for at in offsets] for t in times], 2, -1)


def test_blurred_is_the_mean_of_the_moments_and_sharp_the_middle_one(scene, photographs):
    blurred, sharp = render(KEY, plain(scene), photographs)
    moments = moments_of(scene, photographs)
    np.testing.assert_allclose(blurred, moments.mean(axis=1), atol=0.51 / 255)
    np.testing.assert_allclose(sharp, moments[:, 1], atol=0.51 / 255)
    assert np.abs(blurred - sharp).mean() > 0.02  # otherwise the test would show nothing


def test_a_short_exposure_is_a_share_of_the_period(scene, photographs):
    """Most presets draw one. Taken as the whole period, it would blur every clip too much."""
    short = plain(scene)._replace(exposure=jnp.float32(0.3))
    blurred, sharp = render(KEY, short, photographs)
    moments = moments_of(short, photographs)
    np.testing.assert_allclose(blurred, moments.mean(axis=1), atol=0.51 / 255)
    np.testing.assert_allclose(sharp, moments[:, 1], atol=0.51 / 255)
    whole, same = render(KEY, plain(scene), photographs)
    np.testing.assert_array_equal(sharp, same)
    assert np.abs(blurred - sharp).mean() < 0.6 * np.abs(whole - same).mean()


def test_linear_light_averages_light_and_clips_highlights(scene, photographs):
    linear = plain(scene, 2.2, 0.8)
    blurred, sharp = render(KEY, linear, photographs)
    moments = moments_of(scene, photographs)
    light = moments**2.2
    light = light + 0.8 * 10 * np.maximum(light - 0.9, 0)
    assert light.max() > 1.1  # some of it exceeds the sensor's range
    # light ** (1 / 2.2) is steep in the deepest shadows: errors there exceed rounding.
    expected = np.clip(light.mean(axis=1), 0, 1) ** (1 / 2.2)
    np.testing.assert_allclose(blurred, expected, atol=1.1 / 255)
    np.testing.assert_allclose(sharp, np.clip(light[:, 1], 0, 1) ** (1 / 2.2), atol=1.1 / 255)
    # A mean in linear light is brighter than the mean of the stored values.
    assert (np.asarray(blurred) - moments.mean(axis=1)).mean() > 0.01


@pytest.mark.parametrize(("gamma", "highlights"), [(1.0, 0.0), (2.2, 1.0)])
def test_a_scene_that_stands_still_is_sharp(scene, photographs, gamma, highlights):
    still = plain(scene, gamma, highlights)
    paths = (scene.camera, scene.objects.path, scene.turning.at[1:].set(0.1), scene.objects.spin)
    camera, path, *_ = jax.tree.map(jnp.zeros_like, paths)
    still = still._replace(
        camera=camera,
        objects=scene.objects._replace(path=path, spin=jnp.zeros(2)),
        turning=scene.turning.at[0].set(0),
        zooming=scene.zooming.at[0].set(0),
    )
    blurred, sharp = render(KEY, still, photographs)
    np.testing.assert_allclose(blurred, sharp, atol=1.01 / 255)  # a tie may round either way
    assert np.mean(np.asarray(blurred) != np.asarray(sharp)) < 1e-3
    np.testing.assert_array_equal(sharp, np.broadcast_to(sharp[:1], sharp.shape))


def shifts_between(image, other, reach):
    """Returns the integer shift at which two grey images agree best, by exhaustive search."""
    inner = image[reach:-reach, reach:-reach]
    h, w = inner.shape
    candidates = [(y, x) for y in range(2 * reach + 1) for x in range(2 * reach + 1)]
    errors = [np.mean((other[y : y + h, x : x + w] - inner) ** 2) for y, x in candidates]
    return np.array(candidates[int(np.argmin(errors))]) - reach


def test_the_picture_moves_as_the_path_says(scene, photographs):
    """From one frame to the next, the background moves by the camera's path, to the pixel."""
    straight = plain(scene)._replace(
        tilt=jnp.zeros(()),
        texels=jnp.ones(3),
        slope=jnp.zeros(2),
        turning=scene.turning.at[0].set(0),
        zooming=scene.zooming.at[0].set(0),
        camera=scene.camera._replace(velocity=jnp.array([3.0, -4.0])),
        objects=scene.objects._replace(number=jnp.int32(0)),
    )
    _, sharp = render(KEY, straight, photographs)
    moved = straight.camera.at(jnp.float32(1)) - straight.camera.at(jnp.float32(0))
    assert jnp.linalg.norm(moved) > 4
    grey = np.asarray(sharp).mean(axis=-1)
    np.testing.assert_allclose(shifts_between(grey[1], grey[2], 6), -np.asarray(moved), atol=0.75)


def test_compression_is_mild_and_grows_with_strength(photographs):
    frames = jnp.asarray(photographs[:2, :30, :44], jnp.float32) / 255  # not multiples of 8
    squeeze = jax.jit(compress)
    errors = [float(jnp.abs(squeeze(frames, s) - frames).mean()) for s in (0.1, 0.5, 1.0)]
    assert 0 < errors[0] < errors[1] < errors[2] < 8 / 255  # for noise, the worst case
    flat = jnp.full((1, 16, 16, 3), 0.5)
    np.testing.assert_allclose(compress(flat, 1.0), flat, atol=1.5 / 255)


def test_noise_and_compression_touch_the_blurred_frames_alone(scene, photographs):
    blurred, sharp = (np.asarray(v) * 255 for v in render(KEY, plain(scene), photographs))
    noisy = plain(scene)._replace(noise=jnp.float32(4 / 255))
    squeezed = plain(scene)._replace(compression=jnp.float32(1.0))
    for changed, spread in ((noisy, (3, 5)), (squeezed, (1, 12))):
        other, same = render(KEY, changed, photographs)
        np.testing.assert_array_equal(np.asarray(same) * 255, sharp)
        inner = (blurred > 20) & (blurred < 235)  # where nothing is clipped
        difference = (np.asarray(other) * 255 - blurred)[inner]
        assert spread[0] < difference.std() < spread[1]
        assert abs(difference.mean()) < 0.5


def test_the_parameters_are_those_of_the_first_scores():
    file = Path(fixed_scenes.__file__).with_suffix(".json")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == PARAMETERS
    assert list(fixed_kinds()) == [
        *("narrow", "small", "medium", "wide", "tiny", "handheld", "footage", "shutter"),
        *("2px", "5px", "10px", "20px", "40px"),
    ]


@pytest.mark.parametrize(
    "kind",
    ["tiny", *(pytest.param(k, marks=pytest.mark.stress) for k in ("narrow", "wide", "5px"))],
)
def test_no_pixel_has_changed_since(kind):
    """Digests come from the code that drew and rendered these first. A weighted sum hides pixels
    that round differently on another machine, but not another scene, noise or compression."""
    (video, *_) = rendered_videos("test", kind)
    weights = np.random.default_rng(0).standard_normal(video.blurred_frames.array.shape)
    found = [
        float(np.sum(weights * half.array) / weights.size**0.5)
        for half in (video.blurred_frames, video.sharp_frames)
    ]
    np.testing.assert_allclose(found, PIXELS[kind], atol=0.1, err_msg="raise _RENDERER_VERSION")


def test_the_splits_share_no_photograph(tmp_path, monkeypatch):
    shown: dict[str, set[str]] = {}
    for split in get_args(Split):
        monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path / split))
        rendered_videos(split, "tiny", scenes=1)
        (recipe,) = (tmp_path / split).glob("*/recipe.json")
        shown[split] = set(json.loads(recipe.read_text())["photographs"].values())
    assert all(shown.values())
    assert not shown["train"] & (shown["validation"] | shown["test"])
    assert not shown["validation"] & shown["test"]


def test_scenes_are_rendered_once_then_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path))
    videos = rendered_videos("train", "tiny", scenes=3)
    assert "3/3 scenes" in capsys.readouterr().err
    (folder,) = tmp_path.iterdir()  # complete, with nothing beside it
    assert json.loads((folder / "recipe.json").read_text())["kind"] == "tiny"
    with monkeypatch.context() as patch:
        patch.setattr(fixed_scenes, "render_fixed_scene", None)
        again = rendered_videos("train", "tiny", scenes=3)
    for one, other in zip(videos, again, strict=True):
        np.testing.assert_array_equal(one.blurred(1), other.blurred(1))


def test_an_interrupted_rendering_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fixed_scenes, "render_fixed_scene", interrupt)
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        rendered_videos("train", "tiny")
    assert not list(tmp_path.iterdir())


def test_rendered_videos_are_named_and_averaged_as_asked(tmp_path):
    videos = rendered_videos("test", "tiny")
    assert [video.name for video in videos] == [f"rendered_0{i}" for i in range(6)]
    video = videos[0]
    assert (len(video), video.height, video.width) == (3, 32, 48)
    assert video.blurred(1).shape == (32, 48, 3)
    assert np.mean(video.blurred(1) != video.sharp(1)) > 0.5
    assert video.blurred(0).flags.writeable
    stored, linear = (rendered_videos("test", "tiny", linear=light)[0] for light in (False, True))
    assert (stored.name, linear.name) == ("rendered_stored_00", "rendered_linear_00")
    np.testing.assert_array_equal(stored.blurred(1), video.blurred(1))  # as tiny scenes are
    assert np.mean(linear.blurred(1) != video.blurred(1)) > 0.1
    with pytest.raises(UserError, match=r"must be one of narrow, small,.* 40px, not '8px'"):
        rendered_videos("test", "8px")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAXDEBLUR_CACHE", raising=False)
    assert cache_folder() == tmp_path / "jaxdeblur"
    monkeypatch.setenv("JAXDEBLUR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_between_texels_the_picture_is_linear():
    """Looks up ramps between the texels and beyond an edge, where they are mirrored."""
    y, x = np.mgrid[:8, :8]
    ramp = np.stack([10 * y, 20 * x, 0 * x], axis=-1).astype(np.uint8)
    packed = jax.jit(pack_texels)(ramp[None])[0]
    rows, columns = jnp.array([[1.25], [5.5], [-2.0]]), jnp.array([0.75, 6.0])
    found = np.asarray(jax.jit(look_up)(packed, rows, columns)) * 255
    expected = np.array([[12.5], [55.0], [20.0]]), np.array([15.0, 120.0])
    for channel, values in zip(found, expected, strict=False):
        np.testing.assert_allclose(channel, np.broadcast_to(values, (3, 2)), atol=1e-3)


def test_what_stands_nearer_moves_the_same_way_and_further():
    """Parallax: motion is ``follows`` times the camera's and opposite, like the background's."""
    size = (64, 96)
    black_white = np.stack([np.zeros((64, 64, 3)), np.full((64, 64, 3), 255)]).astype(np.uint8)
    packed = pack_texels(jnp.asarray(black_white))
    drawn = nth(fixed_kinds()["narrow"], 0)
    still = jax.tree.map(jnp.zeros_like, drawn.camera)
    scene = drawn._replace(
        camera=still._replace(velocity=jnp.array([4.0, -6.0])),
        tilt=jnp.zeros(()),
        slope=jnp.zeros(2),
        turning=drawn.turning.at[0].set(0),
        zooming=drawn.zooming.at[0].set(0),
        objects=drawn.objects._replace(
            number=jnp.int32(1),
            start=jnp.zeros((2, 2)),
            follows=jnp.full(2, 1.3),
            path=jax.tree.map(jnp.zeros_like, drawn.objects.path),
            outline=drawn.objects.outline._replace(radius=jnp.full(2, 8.0)),
            spin=jnp.zeros(2),
        ),
    )

    def middle(time):
        cover = np.asarray(compiled(render_moment, size)(scene, packed, time)[0], np.float64)
        grid = np.mgrid[: size[0], : size[1]]
        return (grid * cover).sum((1, 2)) / cover.sum()

    moved = middle(jnp.float32(1)) - middle(jnp.float32(0))
    np.testing.assert_allclose(moved, [-1.3 * 4, 1.3 * 6], atol=0.05)
